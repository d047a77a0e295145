"""paper/recipe.yaml against the configurations that it describes, key by key."""

from __future__ import annotations

import copy
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import yaml

from dreamllm.config.experiment import Experiment
from dreamllm.config.reading import load
from dreamllm.repro.audit import check_inputs
from dreamllm.repro.plan import arithmetic
from dreamllm.repro.plan.report import kinds, read_assumptions

ROOT = Path(__file__).parent.parent
RECIPE = yaml.safe_load((ROOT / "paper/recipe.yaml").read_text(encoding="utf-8"))
ENTRIES = {f"{group}: {name}": entry for group, entries in RECIPE.items() for name, entry in entries.items()}
CONFIGS = {"paper": "paper", "as released": "paper-as-released"}
BASES = check_inputs.VARIANTS
OF_THE_MACHINE = {"machine", "evaluation.text.batch_size", "evaluation.drawing.batch_size"}  # change no result
NOT_IN_THE_PAPER = {"evaluation.limit", "evaluation.stories", "evaluation.attention", "evaluation.detection"}
NOT_IN_THE_PAPER |= {"model.language_model", "model.decoder"}  # names of our folders
OWN_OPTIONS = ("connector_layers", "language_model", "decoder")  # of a stage, for arms that the paper does not have


def plain(name: str) -> dict[str, Any]:
    return load(ROOT / f"config/{name}.yaml").model_dump(mode="json")


def differences(which: str, content: dict[str, Any]) -> list[str]:
    """What a configuration has otherwise than the recipe says."""
    return check_inputs.recipe_differences(ENTRIES, which, content)


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_is_complete(name):
    entry = ENTRIES[name]
    assert len({"key", "code", "open"} & entry.keys()) == 1, "in a configuration, fixed by code, or open"
    assert entry["why"]
    paper, released = entry["paper"], entry["released"]
    if paper["value"] is None:
        assert paper.keys() == {"value", "reason"}
    else:
        assert {"value", "where", "source", "confidence"} <= paper.keys() <= {*paper, "note"}
        assert paper["confidence"] in ("C", "S", "D")
        known = (ROOT / "paper/README.md").read_text(encoding="utf-8")
        assert all(f"`{source}`" in known for source in paper["source"].split())
    assert released.keys() == ({"value", "reason"} if released["value"] is None else {"value", "file"})
    if "key" in entry:
        assert entry["ours"].keys() in ({"both"}, set(CONFIGS))
    if "code" in entry:
        assert (ROOT / entry["code"]).is_file()


@pytest.mark.parametrize("which", CONFIGS)
def test_the_configurations_are_the_recipe(which):
    assert differences(which, plain(CONFIGS[which])) == []


@pytest.mark.parametrize("which", CONFIGS)
def test_every_number_of_a_configuration_is_in_the_recipe(which):
    patterns = [entry["key"] for entry in ENTRIES.values() if "key" in entry]
    content = plain(CONFIGS[which])

    def leaves(value: Any, path: str):
        if isinstance(value, dict) and not any(fnmatchcase(path, pattern) for pattern in patterns):
            for key, inner in value.items():
                yield from leaves(inner, f"{path}.{key}")
        else:
            yield path

    parts = [("model", content["model"]), ("evaluation", content["evaluation"])]
    parts += [(f"stages.{name}", stage) for name, stage in content["stages"].items() if name not in BASES]
    skipped = OF_THE_MACHINE | NOT_IN_THE_PAPER
    for name, value in parts:
        for path in leaves(value, name):
            known = any(fnmatchcase(path, pattern) for pattern in patterns)
            if path.startswith("stages.") and path.endswith(OWN_OPTIONS):
                assert content["stages"][name.partition(".")[2]][path.rpartition(".")[2]] is None, path
                continue
            assert known or any(path.startswith(skip) for skip in skipped), f"{path} is not in paper/recipe.yaml"


def test_the_other_stages_repeat_the_recipe():
    stages = plain("paper")["stages"]
    assert {*stages} == {"align_comprehension", "align_creation", "pretrain", "sft", *BASES}
    for name, (base, changed) in BASES.items():
        assert {key for key in stages[base] if stages[name][key] != stages[base][key]} == changed, name


def test_a_difference_from_the_recipe_is_found():
    content = plain("paper")
    for key, value in (("learning_rate", 2e-3), ("weight_decay", 0.1), ("mixture", {"mmc4_core": 1})):
        changed = copy.deepcopy(content)
        changed["stages"]["pretrain"][key] = value
        assert [line.split()[0] for line in differences("paper", changed)] == [f"stages.pretrain.{key}"]
    assert differences("as released", content), "the two recipes differ"


def average_document(experiment: Experiment, stage: str, patches: int = 256) -> arithmetic.Load:
    """The average document of a stage; patches: CLIP ViT-L/14's, or B/16's 196."""
    path = ROOT / "paper/assumptions.yaml"
    sets = kinds(experiment, read_assumptions(path), path)
    queries = experiment.model_of(stage).num_dream_queries
    return arithmetic.mixture_load(experiment.stages[stage], sets, patches, queries)


def of_a_step(experiment: Experiment, stage: str, patches: int = 256) -> float:
    """Documents in a step as `dreamllm plan` counts them."""
    fill = read_assumptions(ROOT / "paper/assumptions.yaml").fill.value
    mean = average_document(experiment, stage, patches)
    return arithmetic.documents_per_step(experiment.stages[stage], mean, fill)


def drawn_in_all(experiment: Experiment, stage: str) -> float:
    """Images that a stage draws."""
    mean = average_document(experiment, stage)
    return mean.drawn * of_a_step(experiment, stage) * experiment.stages[stage].steps


@pytest.mark.parametrize("which", CONFIGS)
def test_rows_make_the_batch_and_steps_make_the_epochs(which):
    experiment = load(ROOT / f"config/{CONFIGS[which]}.yaml")
    for name, entry in ENTRIES.items():
        if "epochs" in entry or "batch" in entry:
            stage = entry["key"].split(".")[1]
            documents = of_a_step(experiment, stage)
            if "batch" in entry:
                assert documents == pytest.approx(entry["batch"][which], rel=0.1), name
            else:
                epochs, size = entry["epochs"][which]
                assert documents * experiment.stages[stage].steps == pytest.approx(epochs * size, rel=0.03), name


def test_an_arm_sees_as_many_documents_as_the_joint_run():
    for config, patches in (("paper", 256), ("single_gpu", 196), ("modern", 256)):
        experiment = load(ROOT / f"config/{config}.yaml")
        for joint in ("pretrain", "sft"):
            for mode in ("creation", "comprehension"):
                arm = of_a_step(experiment, f"{joint}_{mode}", patches)
                assert arm == pytest.approx(of_a_step(experiment, joint, patches), rel=0.05), (config, joint, mode)


def test_todays_parts_see_the_documents_of_the_small_ones_and_both_ideas_draw_as_many_images():
    small, modern, metaquery = (load(ROOT / f"config/{name}.yaml") for name in ("single_gpu", "modern", "metaquery"))
    assert small.stages.keys() == modern.stages.keys() and small.sources == modern.sources == metaquery.sources
    assert small.benchmarks == modern.benchmarks == metaquery.benchmarks
    assert modern.foundations == metaquery.foundations
    for name, stage in modern.stages.items():
        assert (stage.mixture, stage.steps) == (small.stages[name].mixture, small.stages[name].steps), name
        assert of_a_step(modern, name) == pytest.approx(of_a_step(small, name, 196), rel=0.05), name
    drawn = {name: drawn_in_all(modern, name) for name in ("align_creation", "pretrain", "sft")}
    assert drawn_in_all(metaquery, "pretrain") == pytest.approx(drawn["align_creation"] + drawn["pretrain"], rel=0.01)
    assert drawn_in_all(metaquery, "sft") == pytest.approx(drawn["sft"], rel=0.01)
    for arm in ("queries_256", "decoder_trained"):
        assert drawn_in_all(metaquery, arm) == pytest.approx(drawn_in_all(metaquery, "pretrain"), rel=0.01), arm


def test_an_arm_with_other_queries_sees_as_many_documents_in_all():
    experiment = load(ROOT / "config/paper.yaml")
    for arm in [name for name, stage in experiment.stages.items() if stage.num_dream_queries]:
        base = BASES[arm][0]
        documents = [of_a_step(experiment, name) * experiment.stages[name].steps for name in (arm, base)]
        assert documents[0] == pytest.approx(documents[1], rel=0.05), arm
