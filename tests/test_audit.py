"""The audit passes a sound repository, and each planted fault is found by its own check."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path

import pytest

import audited_repository
import repository
from dreamllm.digests import sha256_of_file
from dreamllm.repro.audit import check_inputs, lineage, run, study
from dreamllm.repro.audit.findings import AuditProblem, CheckResult

CHECKPOINT = "results/checkpoints/small/{}/checkpoint.json"
TENSORS = "results/checkpoints/small/{}/trained.safetensors"
METRIC = "results/metrics/small/sft/vqa.json"
ANSWERS = "results/predictions/small/sft/vqa.jsonl"


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return audited_repository.build(tmp_path_factory.mktemp("audit") / "sound")


@pytest.fixture
def checkout(sound, tmp_path) -> Path:
    return shutil.copytree(sound, tmp_path / "checkout", symlinks=True)


def results(root: Path) -> dict[str, CheckResult]:
    return dict(run.audit(audited_repository.audited_run(root)))


def failed(found: dict[str, CheckResult]) -> set[str]:
    return {id_ for id_, result in found.items() if result.outcome == "fail"}


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def rewrite(path: Path, change) -> None:
    """Change a JSON file's content."""
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_a_checkpoint_that_is_cut_off_is_no_whole_safetensors_file(checkout):
    cut_a_checkpoint(checkout)
    [fault] = results(checkout)["A09"].faults
    assert fault.file == TENSORS.format("sft") and fault.what.startswith("is not a complete safetensors file")


def test_a_sound_repository_has_no_faults(sound):
    found = results(sound)
    assert list(found) == [f"A{number:02}" for number in range(1, 17)]
    assert {id_: result.faults for id_, result in found.items() if result.faults} == {}
    assert [id_ for id_, result in found.items() if result.outcome != "pass"] == ["A15"], "the smoke run is elsewhere"
    assert "3 metrics computed again" in found["A12"].reason


# ---- planted faults ------------------------------------------------------------------------------------------------


def edit_a_cell(root: Path) -> None:
    path = root / "results/tables/table3.csv"
    lines = path.read_text().splitlines(keepends=True)
    number = next(i for i, line in enumerate(lines) if ",ours," in line and "sft/vqa" in line)
    place = f"results/tables/table3.csv, line {number + 1}"
    cell = next(
        cell for cell in lineage.read_measured_cells(audited_repository.audited_run(root).run) if cell.place == place
    )
    lines[number] = lines[number].replace(f",{cell.columns['value']},", ",99.9,", 1)
    path.write_text("".join(lines))


def edit_a_shown_cell(root: Path) -> None:
    replace(root / "results/tables/table3.md", "<sub>", " <sub>")


def answer_otherwise(root: Path) -> None:
    audited_repository.write_predictions(audited_repository.audited_run(root).run, "sft", "vqa", right=3)


def answer_otherwise_and_forge_the_digest(root: Path) -> None:
    answer_otherwise(root)
    rewrite(root / METRIC, lambda m: m["protocol"]["inputs"].update({"vqa.jsonl": sha256_of_file(root / ANSWERS)}))


def edit_a_metric(root: Path) -> None:
    rewrite(root / METRIC, lambda metric: metric["metrics"]["accuracy"].update(value=0.999))


def swap_checkpoints(root: Path) -> None:
    shutil.copy(root / TENSORS.format("sft"), root / TENSORS.format("align"))


def cut_a_checkpoint(root: Path) -> None:
    path = root / TENSORS.format("sft")
    path.write_bytes(path.read_bytes()[:-4])


def edit_the_saved_configuration(root: Path) -> None:
    rewrite(root / CHECKPOINT.format("sft"), lambda about: about["config"].update(learning_rate=5e-4))


def edit_the_experiment(root: Path) -> None:
    replace(root / audited_repository.CONFIG, "steps: 2", "steps: 3")


def edit_the_trained_parts(root: Path) -> None:
    rewrite(root / CHECKPOINT.format("sft"), lambda about: about["config"].update(trains=["visual_projector"]))


def take_a_licence(root: Path) -> None:
    replace(root / "data/sources.yaml", "  licence: '\"other\" on the Hub'\n", "")


def take_our_own_licence(root: Path) -> None:
    replace(root / "data/made.yaml", "licence: CC BY-SA 4.0", 'licence: ""')


def leave_an_orphan(root: Path) -> None:
    (root / "results/metrics/small/ghost").mkdir()
    shutil.copy(root / METRIC, root / "results/metrics/small/ghost/vqa.json")
    rewrite(root / "results/metrics/small/ghost/vqa.json", lambda metric: metric.update(model="ghost"))


def dirty_the_tree(root: Path) -> None:
    (root / "paper/notes.txt").write_text("by the way")


def pin_another_version(root: Path) -> None:
    replace(root / "requirements.lock", "accelerate==1.15.0", "accelerate==1.14.0")


def forget_a_seed(root: Path) -> None:
    rewrite(root / CHECKPOINT.format("align"), lambda about: about.pop("seed"))


def forget_the_seed_of_an_answer(root: Path) -> None:
    replace(root / ANSWERS, '"prompt": "?", "seed": 42', '"prompt": "?"')


def type_a_verdict(root: Path) -> None:
    replace(root / "results/tables/claims.csv", "not attempted", "reproduced")


def type_a_shown_verdict(root: Path) -> None:
    replace(root / "results/tables/claims.md", "not attempted", "reproduced")


def make_by_a_modified_tree(root: Path) -> None:
    rewrite(root / CHECKPOINT.format("align"), lambda about: about.update(commit=about["commit"] + "-modified"))


def make_by_other_code(root: Path) -> None:
    rewrite(root / CHECKPOINT.format("align"), lambda about: about.update(code="0123456789abcdef"))


def change_the_training_data(root: Path) -> None:
    path = root / "data/emoji_small/train/pairs-00000.tar"
    path.write_bytes(path.read_bytes() + bytes(512))


def train_on_the_test(root: Path) -> None:
    test = root / "data/emoji_small/benchmarks/scenes_test.jsonl"
    scene = next(iter(check_inputs._training_scenes(root / "data/emoji_small/train")))
    lines = test.read_text().splitlines()
    lines[0] = json.dumps(json.loads(lines[0]) | {"scene": json.loads(scene)})
    test.write_text("\n".join(lines) + "\n")


def edit_a_figure(root: Path) -> None:
    (root / "results/figures/curves.png").write_text("another figure")


def edit_an_answer_and_everything_that_follows(root: Path) -> None:
    audited_repository.write_predictions(audited_repository.audited_run(root).run, "sft", "vqa", right=3)
    shutil.rmtree(root / "results/tables")
    audited_repository.write_scores(audited_repository.audited_run(root).run)


def edit_an_answer_and_forge_its_time(root: Path) -> None:
    before = (root / ANSWERS).stat()
    edit_an_answer_and_everything_that_follows(root)
    os.utime(root / ANSWERS, ns=(before.st_atime_ns, before.st_mtime_ns))


def shorten_the_selection(root: Path) -> None:
    """Keep the first answers only, say so in the header, and compute everything again from them."""
    lines = (root / ANSWERS).read_text().splitlines()
    header = json.loads(lines[0])
    header["header"]["limit"] = 2
    (root / ANSWERS).write_text("\n".join([json.dumps(header), *lines[1:3]]) + "\n")
    shutil.rmtree(root / "results/tables")
    audited_repository.write_scores(audited_repository.audited_run(root).run)


def shorten_the_selection_where_no_record_is_left(root: Path) -> None:
    shorten_the_selection(root)
    shutil.rmtree(root / ".snakemake")


def remove_the_items(root: Path) -> None:
    (root / "results/items/small/sft/vqa.json").unlink()


def remove_the_index(root: Path) -> None:
    """The page that says whose tables these are, after an edited cell."""
    edit_a_cell(root)
    (root / "results/tables/README.md").unlink()


def remove_a_checkpoint_json(root: Path) -> None:
    (root / CHECKPOINT.format("sft")).unlink()


def remove_the_timings(root: Path) -> None:
    shutil.rmtree(root / "timings/small")


def link_to_another_place(root: Path) -> None:
    elsewhere = root.parent / "elsewhere.json"
    shutil.move(root / METRIC, elsewhere)
    (root / METRIC).symlink_to(elsewhere)


def link_a_folder(root: Path) -> None:
    (root.parent / "ghosts").mkdir()
    (root / "results/metrics/ghost").symlink_to(root.parent / "ghosts")


def add_a_run_of_no_experiment(root: Path) -> None:
    shutil.copytree(root / "results/metrics/small", root / "results/metrics/ghost")


def add_to_the_committed_study(root: Path) -> None:
    (root / "results/study").mkdir(exist_ok=True)
    (root / "results/study/ghost.json").write_text("{}")


def lose_a_timing(root: Path) -> None:
    (root / "timings/small/train_sft.tsv").unlink()


def lose_a_reason(root: Path) -> None:
    replace(root / "paper/recipe.yaml", "    why: the paper's\n", "    why: null\n")


FAULTS = [  # (fault, the check that is there for it, what it says, other checks that see it too)
    (edit_a_cell, "A01", "value is '99.9', the metrics give", {"A04"}),
    (edit_a_shown_cell, "A01", "is not what the metrics give, first in line", {"A04"}),
    (answer_otherwise, "A12", "computed from another results/predictions/small/sft/vqa.jsonl", {"A04"}),
    (answer_otherwise_and_forge_the_digest, "A12", "the predictions give 1.0", {"A04"}),
    (edit_a_metric, "A12", "accuracy is 0.999, the predictions give", {"A01", "A04", "A13"}),
    (swap_checkpoints, "A04", "tensors of stage align were replaced or truncated", {"A09"}),
    (cut_a_checkpoint, "A04", "tensors of stage sft were replaced or truncated", {"A09"}),
    (edit_the_saved_configuration, "A09", "stage sft: config.learning_rate is 0.0005, but 0.001 in", {"A04"}),
    (edit_the_experiment, "A09", "stage sft: config.steps is 2, but 3 in config/small.yaml", {"A03"}),
    (edit_the_trained_parts, "A09", "has tensors of dream_queries, visual_projector, checkpoint.json says", {"A04"}),
    (take_a_licence, "A07", "llava_pretrain has no licence, and `unknown` gives no reason", {"A03"}),
    (take_our_own_licence, "A07", "emoji world has no licence", {"A03"}),
    (leave_an_orphan, "A14", "is not the output of any rule of the experiment", set()),
    (dirty_the_tree, "A03", "the tree is dirty", set()),
    (pin_another_version, "A05", "accelerate 1.15.0 is installed, not 1.14.0", {"A03"}),
    (forget_a_seed, "A08", "stage align: seed was not recorded", {"A04"}),
    (forget_the_seed_of_an_answer, "A08", "1 of ", {"A04", "A12"}),
    (type_a_verdict, "A13", "status is 'reproduced', the metrics give 'not attempted'", {"A04"}),
    (type_a_shown_verdict, "A13", "is not what the metrics give", {"A04"}),
    (make_by_a_modified_tree, "A03", "was trained by code that was not committed", {"A04"}),
    (make_by_other_code, "A03", "stage align was trained by code 0123456789abcdef, commit", {"A04"}),
    (change_the_training_data, "A04", "data pairs was changed or replaced", set()),
    (train_on_the_test, "A16", "is also in a training document", {"A04"}),
    (lose_a_timing, "A11", "job train_sft: has no timing", set()),
    (edit_a_figure, "A04", "was changed by hand after Snakemake made it (figures)", set()),
    (edit_an_answer_and_everything_that_follows, "A04", "was changed by hand after Snakemake made it (predict", set()),
    (edit_an_answer_and_forge_its_time, "A04", "was changed by hand after Snakemake made it (predict_sft_vqa)", set()),
    (shorten_the_selection, "A12", "items have no prediction", {"A04", "A09"}),
    (shorten_the_selection_where_no_record_is_left, "A09", "limit is 2, but None in config", {"A04", "A12"}),
    (remove_the_items, "A12", "is missing: the scores of single items", {"A02"}),
    (remove_the_index, "A01", "results/tables/README.md: is missing", {"A04"}),
    (remove_a_checkpoint_json, "A09", "stage sft: is missing or cannot be read", {"A03", "A04", "A08"}),
    (remove_the_timings, "A11", "has no timing", set()),
    (link_to_another_place, "A14", "is a symbolic link", set()),
    (link_a_folder, "A14", "is a symbolic link", set()),
    (add_a_run_of_no_experiment, "A14", "is not the output of any rule of the experiment", set()),
    (add_to_the_committed_study, "A14", "is in a committed folder, but not in git", {"A03"}),
    (lose_a_reason, "A10", "language model has no why", {"A03"}),
]


@pytest.mark.parametrize(("plant", "check", "words", "others"), FAULTS, ids=[fault[0].__name__ for fault in FAULTS])
def test_a_planted_fault_is_caught_by_its_check(checkout, plant, check, words, others):
    plant(checkout)
    found = results(checkout)
    said = [f"{fault.file}: {fault.what}" for fault in found[check].faults]
    assert any(words in line for line in said), said
    assert failed(found) == {check, *others}
    assert all(fault.fix for result in found.values() for fault in result.faults)


def test_an_ancestor_with_other_code_does_not_pass_for_the_one_that_trained(checkout):
    """Also where today's code is the recorded one."""
    trainer = checkout / "src/dreamllm/train/trainer.py"
    code = trainer.read_text(encoding="utf-8")
    trainer.write_text(code + "\n\nOTHER = 1\n", encoding="utf-8")
    repository.commit(checkout)
    other = repository.run(checkout, "git", "rev-parse", "HEAD").stdout.strip()
    trainer.write_text(code, encoding="utf-8")
    repository.commit(checkout)
    assert not results(checkout)["A03"].faults
    rewrite(checkout / CHECKPOINT.format("align"), lambda about: about.update(commit=other))
    (fault,) = results(checkout)["A03"].faults
    assert "stage align was trained by code" in fault.what and f"commit {other[:12]} has" in fault.what


# ---- what is missing -----------------------------------------------------------------------------------------------


def test_a_clone_without_outputs_says_what_is_not_there(sound, tmp_path):
    folder = repository.clone(sound, tmp_path / "clone")
    audited = audited_repository.audited_run(folder)
    found = dict(run.audit(audited))
    assert failed(found) == set()
    for id_ in ("A01", "A02", "A04", "A08", "A09", "A11", "A12", "A13", "A15", "A16"):
        assert found[id_].outcome == "not applicable", found[id_]
        assert "not " in found[id_].reason or "no " in found[id_].reason
    assert "--configfile=config/small.yaml" in found["A01"].reason


def test_tables_without_their_predictions_and_checkpoints_fail(checkout):
    for kind in ("checkpoints", "predictions"):
        shutil.rmtree(checkout / "results" / kind)
    found = results(checkout)
    assert failed(found) == {"A02", "A12"}, "no other check has files that it can compare"
    assert [fault.what for fault in found["A02"].faults] == ["was made here and is gone"] * 5
    assert any("which is missing" in fault.what for fault in found["A12"].faults)


def test_what_snakemake_would_make_again_is_a_fault(sound):
    audited = audited_repository.audited_run(sound)
    outputs = audited_repository.dag_outputs(sound)
    changed = next(output for output in outputs if output.rule == "train_sft")
    outputs[outputs.index(changed)] = type(changed)(
        changed.path, changed.rule, changed.log, changed.command, "params changed", "update pending"
    )
    audited.outputs = outputs
    result = dict(run.audit(audited))["A02"]
    assert [fault.what for fault in result.faults] == ["is not up to date with its rule train_sft: params changed"]


def test_an_honest_run_elsewhere_passes_and_says_how_well_it_reproduces_the_recorded_one(checkout):
    recorded = checkout / "results/recorded/metrics"
    shutil.copytree(checkout / "results/metrics", recorded)
    edit_an_answer_and_everything_that_follows(checkout)  # as another machine may answer
    shutil.rmtree(checkout / ".snakemake")
    audited_repository.write_records(audited_repository.audited_run(checkout).run)
    repository.commit(checkout)
    found = results(checkout)
    assert failed(found) == set()
    assert "2 of 6 outputs in dvc.lock are the same bytes, numbers: " in found["A04"].reason
    assert " same bytes, " in found["A04"].reason and " within tolerance" in found["A04"].reason


def test_without_records_of_jobs_the_results_have_to_be_those_of_the_lock(checkout):
    shutil.rmtree(checkout / ".snakemake")
    shutil.rmtree(checkout / "results/figures")
    assert failed(results(checkout)) == set(), "as restored"
    edit_an_answer_and_everything_that_follows(checkout)
    shutil.rmtree(checkout / "results/figures")
    faults = results(checkout)["A04"].faults
    assert {fault.file for fault in faults} == {
        f"results/{part}" for part in ("predictions/small", "metrics/small", "items/small")
    } | {"results/tables"}
    assert all("differs from dvc.lock" in fault.what and "was not made here" in fault.what for fault in faults)
    shutil.rmtree(checkout / "results/tables")
    (checkout / "dvc.lock").write_text("stages: {}\n")
    assert {fault.what.partition(":")[0] for fault in results(checkout)["A04"].faults} == {"has an unknown origin"}


def test_a_result_marked_as_done_by_touch_has_to_be_that_of_the_lock(checkout):
    shutil.rmtree(checkout / ".snakemake")
    audited_repository.write_records(audited_repository.audited_run(checkout).run, touched=True)
    assert {fault.file for fault in results(checkout)["A04"].faults} == {"results/figures"}


def test_the_study_in_git_is_compared_with_its_digests(tmp_path):
    shutil.copytree(repository.ROOT / "results/study", tmp_path / "results/study")
    assert list(study.check(tmp_path)) == []
    latency = tmp_path / "results/study/metrics/study_2/sd/latency.json"  # a metric without items
    replace(latency, '"value": ', '"value": 1')
    sft = tmp_path / "results/study/metrics/study_0/sft/draw.json"
    rewrite(sft, lambda metric: metric["protocol"]["inputs"].update({"draw.tar": "0" * 64}))
    found = {fault.file: fault.what for fault in study.check(tmp_path)}
    assert found == {
        "results/study/metrics/study_0/sft/draw.json": "is another, by results/study/results.sha256",
        "results/study/metrics/study_2/sd/latency.json": "is another, by results/study/results.sha256",
        "results/predictions/study_0/sft/draw.tar": "is another, by results/study/answers.sha256",
    }
    (tmp_path / "results/study/answers.sha256").unlink()
    assert "cannot be compared with the study" in {fault.what.partition(" (")[0] for fault in study.check(tmp_path)}


# ---- command line --------------------------------------------------------------------------------------------------


def test_the_verb_prints_a_line_for_each_check_and_exits_with_1_for_a_fault(checkout, monkeypatch, capsys):
    monkeypatch.chdir(checkout)
    monkeypatch.setattr(run, "AuditedRun", lambda found: audited_repository.audited_run(found.root))
    arguments = argparse.Namespace(
        config=Path(audited_repository.CONFIG), out=Path("results/audit.json"), pictures=False
    )
    run.main(arguments)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 17 and said[-1].startswith("15 pass, 0 fail, 1 not applicable")
    edit_a_cell(checkout)
    with pytest.raises(SystemExit) as stopped:
        run.main(arguments)
    assert stopped.value.code == 1
    said = capsys.readouterr().out
    assert "A01 FAIL" in said and "results/tables/table3.csv, line" in said and "fix: remove results/tables" in said
    content = json.loads((checkout / "results/audit.json").read_text())
    assert content["counts"]["fail"] == 2 and content["experiment"] == "small"
    assert content["checks"]["A01"]["faults"][0]["file"].startswith("results/tables/table3.csv")


def test_outside_of_a_checkout_the_audit_says_where_to_run_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AuditProblem, match="run the audit in the root of a checkout"):
        run.main(argparse.Namespace(config=Path("config/embedded.yaml"), out=Path("audit.json"), pictures=False))


# ---- lineage and lock file -----------------------------------------------------------------------------------------


def test_a_cell_is_followed_down_to_commit_and_environment(sound):
    checkout = audited_repository.audited_run(sound).run
    cell = next(cell for cell in lineage.read_measured_cells(checkout) if cell.source == "sft/vqa")
    links = list(lineage.walk(lineage.cell_link(checkout, cell)))
    kinds = [link.kind for link in links]
    assert kinds[:3] == ["cell", "metric", "predictions"]
    assert {"checkpoint", "configuration", "foundations", "data", "commit", "environment"} <= set(kinds)
    assert all(link.agrees for link in links)
    assert {link.name for link in links if link.kind == "checkpoint"} == {"align", "sft"}


def test_a_lock_is_read_without_what_is_for_other_machines():
    others = "other==0.4.6 ; sys_platform == 'win32' \\\n    --hash=sha256:11\n"
    text = f"# made\na-b==1.0 \\\n    --hash=sha256:00\n{others}"
    assert check_inputs.read_lock(text) == {"a-b": "1.0"}
