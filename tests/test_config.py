"""Experiment files: what is rejected, with which message, and what is derived from them."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from pydantic import ValidationError

from dreamllm.config.base import Section
from dreamllm.config.evaluation import scheduler_names
from dreamllm.config.experiment import Experiment
from dreamllm.config.machine import Machine, tracker_problem
from dreamllm.config.reading import ConfigProblem, digest, load

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "config").glob("*.yaml"))
EMBEDDED = (ROOT / "config/embedded.yaml").read_text(encoding="utf-8")


@pytest.fixture
def changed(tmp_path):
    """Loads the default configuration with texts replaced, and returns the complaint."""

    def change(*replacements: tuple[str, str]) -> str:
        content = EMBEDDED
        for old, new in replacements:
            assert old in content
            content = content.replace(old, new, 1)
        path = tmp_path / "changed.yaml"
        path.write_text(content, encoding="utf-8")
        with pytest.raises(ConfigProblem) as problem:
            load(path)
        return str(problem.value)

    return change


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_configuration_is_valid_and_named_after_its_file(path):
    """But for the one that continues the default run under its name (docs/your-data.md)."""
    assert load(path).name == ("embedded" if path.stem == "own_data" else path.stem)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_foundations_that_are_fetched_lie_in_the_store(path):
    fetched = load(path).instruments
    if fetched.source == "fetch":
        assert (ROOT / fetched.store / "files/md5" / fetched.md5[:2] / fetched.md5[2:]).is_file()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_schema_accepts_every_configuration(path):
    schema = json.loads((ROOT / "workflow/schemas/config.schema.json").read_text(encoding="utf-8"))
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    jsonschema.validate(content, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content | {"unknown": 1}, schema)


def test_an_unknown_key_is_named_with_its_path_and_near_matches(changed):
    complaint = changed(("guidance:", "guidence:"))
    assert "changed.yaml" in complaint
    assert "evaluation.drawing.guidence: unknown key; did you mean guidance or guidance_rescale?" in complaint


def test_an_unknown_key_inside_a_named_stage_is_found(changed):
    assert "stages.align_comprehension.learning_rates: unknown key; did you mean learning_rate?" in changed(
        ("learning_rate:", "learning_rates:")
    )


def test_an_unknown_key_without_near_match_lists_what_is_known(changed):
    assert "machine.zzz: unknown key; known: attention, compile, distributor, gpus, gpus_per_prediction" in changed(
        ("gpus:", "zzz: 1\n  gpus:")
    )


def test_all_problems_are_told_at_once(changed):
    complaint = changed(("seed: 0 #", "sed: 0 #"), ("source: fetch", "source: fetched"), ("model: llm", "model: 3"))
    assert "3 problem(s)" in complaint
    assert "foundations.source: 'fetched' is none of fetch, train, hub, import" in complaint


def test_a_key_of_the_other_kind_of_foundations_is_refused(changed):
    assert "foundations.llm: unknown key" in changed(("source: fetch", "source: fetch\n  llm: {steps: 1}"))


def test_a_value_of_the_wrong_type_is_shown(changed):
    assert "name: " in changed(("name: embedded", "name: Über"))
    complaint = changed(("learning_rate: 1.0e-2", "learning_rate: fast"))
    assert "stages.align_comprehension.learning_rate" in complaint
    assert "'fast'" in complaint


def test_a_scheduler_is_one_of_those_that_draw(changed):
    from diffusers.schedulers import KarrasDiffusionSchedulers

    complaint = changed(("scheduler: DPMSolverMultistepScheduler", "scheduler: DDIM"))
    assert "evaluation.drawing.scheduler: 'DDIM' is no scheduler of diffusers for Stable Diffusion" in complaint
    complaint = changed(("scheduler: DPMSolverMultistep", "scheduler: DPMSolverMultiStep"))
    assert "did you mean DPMSolverMultistepScheduler or " in complaint
    assert set(scheduler_names()) == set(KarrasDiffusionSchedulers.__members__)


def test_a_tracker_is_one_that_is_installed(changed):
    assert "machine.tracker: 'wandb2' is none of tensorboard, trackio, wandb" in changed(
        ("gpus:", "tracker: wandb2\n  gpus:")
    )
    assert tracker_problem(Machine()) is None
    if not importlib.util.find_spec("wandb"):
        told = "machine.tracker: wandb is not installed here; `pip install wandb`, or choose tensorboard"
        assert tracker_problem(Machine(tracker="wandb")) == told


def test_a_stage_can_only_start_from_earlier_stages(changed):
    complaint = changed(("init: [pretrain]", "init: [pretrian]"))
    assert "stages.sft.init: no earlier stage 'pretrian'; did you mean pretrain" in complaint
    assert "no earlier stage 'sft'" in changed(("init: [pretrain]", "init: [sft]"))


def test_queries_trained_for_one_number_are_not_loaded_for_another(changed):
    """Of a stage's own model, and of the stages that an evaluation puts together; other parts serve any number."""
    own = load(ROOT / "config/embedded.yaml").model.num_dream_queries
    complaint = changed(("init: [pretrain]", "init: [pretrain]\n    num_dream_queries: 3"))
    assert f"stages.sft.init: pretrain was trained with num_dream_queries {own}, sft has 3" in complaint
    assert "align_comprehension" not in complaint
    few = ("  sft: &sft\n", "  few: {<<: *pretrain, init: [align_comprehension], num_dream_queries: 3}\n  sft: &sft\n")
    both = ("evaluations:\n", "evaluations:\n  - {model: mixed, stages: [few, align_creation], benchmarks: [draw]}\n")
    assert f"evaluations[0]: few was trained with num_dream_queries 3, align_creation has {own}" in changed(few, both)


def test_a_mixture_names_sets_of_the_world_or_of_the_sources(changed):
    complaint = changed(("mixture: {pairs: 1}", "mixture: {pears: 1}"))
    assert "stages.align_comprehension.mixture: no shard set 'pears'; did you mean pairs?" in complaint
    sources = ("name: embedded", "name: embedded\nsources: {llava_pretrain: {}, text: {}}")
    complaint = changed(sources, ("mixture: {pairs: 1}", "mixture: {llava_pretrian: 1}"))
    assert "no shard set 'llava_pretrian'; did you mean llava_pretrain?" in complaint
    assert "sources.text: this name is taken by the emoji world" in complaint


def test_an_evaluated_model_must_exist_and_stand_once(changed):
    assert "no model 'lm'; did you mean llm?" in changed(("model: llm", "model: lm"))
    assert "no stage 'pretran'" in changed(("stages: [pretrain]", "stages: [pretran]"))
    assert "sd is listed twice" in changed(("model: llm", "model: sd"))


def test_a_key_that_stands_twice_is_refused(changed):
    assert "duplicate key 'seed'" in changed(("seed: 0 #", "seed: 1\nseed: 0 #"))


@pytest.mark.parametrize("content", ["- a list", "", "name: [1", "\x00"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, content):
    path = tmp_path / "odd.yaml"
    path.write_text(content)
    with pytest.raises(ConfigProblem, match="odd.yaml"):
        load(path)


def test_a_missing_file_is_told_with_those_that_are_there():
    with pytest.raises(ConfigProblem, match="no such file; configurations there: .*embedded.yaml"):
        load(ROOT / "config/embeded.yaml")


def test_the_foundations_were_trained_on_pictures_of_the_side_that_is_used():
    side = load(ROOT / "config/embedded.yaml").world.picture_side
    assert load(ROOT / "config/foundations.yaml").world.picture_side == side


def test_lineage_leaves_out_what_is_trained_again():
    def stage(init: list[str], *trains: str) -> dict:
        base = {"mode": "joint", "mixture": {"pairs": 1}, "steps": 1, "rows_per_batch": 1, "context": 8}
        return base | {"learning_rate": 1, "init": init, "trains": list(trains)}

    experiment = Experiment.model_validate(
        {
            "name": "x",
            "foundations": {"source": "fetch", "md5": "0" * 32 + ".dir", "sha256": "0" * 64},
            "stages": {
                "read": stage([], "visual_projector"),
                "draw": stage([], "dream_queries", "condition_projector"),
                "language": stage(["read", "draw"], "language_model"),
                "all": stage(["language"], "language_model", "visual_projector", "dream_queries"),
            },
        }
    )
    assert experiment.lineage("read") == ["read"]
    assert experiment.lineage("read", "draw") == ["read", "draw"]
    assert experiment.lineage("language") == ["read", "draw", "language"]
    assert experiment.lineage("all") == ["draw", "all"], "draw holds the only condition_projector"
    assert experiment.lineage() == []


def test_every_field_is_documented():
    def sections(section: type[Section]):
        yield section
        for child in section.__subclasses__():
            yield from sections(child)

    missing = [s.__name__ for s in sections(Section) if s is not Section and not s.__doc__]
    assert not missing


def test_schema_and_documentation_are_up_to_date():
    spec = importlib.util.spec_from_file_location("describe", ROOT / "workflow/describe.py")
    describe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(describe)
    for path, content in describe.FILES.items():
        assert path.read_text(encoding="utf-8") == content(), f"{path}: run `python workflow/describe.py`"


def test_digest_follows_values_alone():
    experiment = load(ROOT / "config/embedded.yaml")
    same = Experiment.model_validate(experiment.model_dump())
    other = experiment.model_copy(update={"seed": 1})
    assert digest(experiment, 3) == digest(same, 3)
    assert digest(experiment) != digest(other)


def test_reading_a_configuration_imports_no_torch():
    code = "import sys, dreamllm.config.reading as _; "
    code += "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_runs_of_an_experiment_differ_in_their_random_numbers_alone():
    one = load(ROOT / "config/smoke.yaml")
    assert one.runs() == {"smoke": one}
    several = one.model_copy(update={"seeds": [0, 3]})
    first, other = several.runs().values()
    assert list(several.runs()) == ["smoke_0", "smoke_3"] and first == several
    assert (other.seed, other.evaluation.seed - first.evaluation.seed) == (3, 3_000_000)
    same = {"seed": 0, "evaluation": first.evaluation}
    assert other.model_copy(update=same) == first
    assert load(ROOT / "config/smoke.yaml", 3) == one.with_seed(3)


def test_an_evaluation_may_be_of_the_first_seeds_alone():
    evaluations = [{"model": "sd", "benchmarks": ["draw"]}, {"model": "llm", "benchmarks": ["language"], "seeds": 2}]
    content = load(ROOT / "config/smoke.yaml").model_dump(mode="json") | {"evaluations": evaluations}
    runs = Experiment.model_validate(content | {"seeds": [4, 0, 7]}).runs()
    models = {name: [one.model for one in run.evaluations] for name, run in runs.items()}
    assert models == {"smoke_4": ["sd", "llm"], "smoke_0": ["sd", "llm"], "smoke_7": ["sd"]}
    with pytest.raises(ValidationError, match=r"evaluations\[1\]\.seeds: 2, more than the experiment has \(1\)"):
        Experiment.model_validate(content | {"seeds": [4]})
