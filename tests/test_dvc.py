"""Snakemake and DVC agree, in every order in which people use them. Only the verbs are stubs (stub_verbs.py)."""

import json
import shutil
from pathlib import Path

import pytest

import repository
from repository import planned, run

TRAINED, SUMMARY = "results/checkpoints/embedded", "results/summary"


def ran(folder: Path) -> list[str]:
    """Verbs that have run so far."""
    return (folder / "logs/ran.txt").read_text().splitlines()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A repository after `snakemake results/tables`, with nothing recorded."""
    folder = repository.copy_with_stub_verbs(tmp_path_factory.mktemp("dvc") / "made")
    run(folder, "snakemake", "--cores", "2", "results/tables")
    return folder


@pytest.fixture(scope="module")
def recorded(made) -> Path:
    """The same after `dvc repro`, which found nothing to do, a push of the summary to the store, and a commit."""
    before = ran(made)
    said = run(made, "dvc", "repro").stdout
    assert "Nothing to be done" in said
    assert ran(made) == before, "dvc repro after an unrecorded Snakemake run must not train again"
    run(made, "dvc", "push", "--quiet", SUMMARY)  # as workflow/record.py does
    repository.commit(made)
    return made


def test_one_target_makes_tables_and_figures(made):
    assert (made / "results/tables").is_dir()
    assert (made / "results/figures").is_dir()
    assert ran(made).count("train") == 8
    assert planned(made) == {}


def test_after_a_snakemake_run_dvc_has_nothing_to_do_and_the_other_way_round(recorded):
    before = ran(recorded)
    assert "Data and pipelines are up to date." in run(recorded, "dvc", "repro").stdout
    assert "Nothing to be done" in run(recorded, "snakemake", "--cores", "2", "results/tables").stdout
    assert ran(recorded) == before
    assert run(recorded, "git", "status", "--short").stdout == ""


def test_metrics_and_plots_are_known_to_dvc(recorded):
    assert "seal" in run(recorded, "dvc", "metrics", "show").stdout
    assert f"{SUMMARY}/losses/sft.csv" in run(recorded, "dvc", "plots", "show", "--json").stdout


def test_in_a_fresh_clone_dvc_compares_with_the_recorded_run(recorded, tmp_path):
    folder = repository.clone(recorded, tmp_path / "clone")
    shutil.copytree(recorded / SUMMARY, folder / SUMMARY)  # as the clone's own `make tables` does
    recorded_seal = json.loads((folder / SUMMARY / "metrics.json").read_text())["seal"]
    (folder / SUMMARY / "metrics.json").write_text('{"seal": "another"}')
    run(folder, "dvc", "fetch", "--quiet", "--remote", "store", SUMMARY)  # as `make tables` does at its end
    said = run(folder, "dvc", "metrics", "diff", "--json").stdout
    assert json.loads(said) == {f"{SUMMARY}/metrics.json": {"seal": {"old": recorded_seal, "new": "another"}}}
    assert f"{SUMMARY}/losses/sft.csv" in run(folder, "dvc", "plots", "show", "--json").stdout
    assert "workspace" in run(folder, "dvc", "exp", "show", "--csv").stdout


def test_touching_and_commenting_train_nothing(recorded):
    for path in [*recorded.glob("config/*"), *recorded.glob("src/dreamllm/*/*.py")]:
        path.touch()
    stage = recorded / "src/dreamllm/train/trainer.py"
    text = stage.read_text()
    stage.write_text(text + "# a comment\n")
    assert planned(recorded) == {}
    stage.write_text(text + "CHANGED = 1\n")
    assert planned(recorded)["train_sft"] == 1
    stage.write_text(text)
    assert planned(recorded) == {}


def test_a_changed_value_runs_what_depends_on_it(recorded):
    config = recorded / "config/embedded.yaml"
    text = config.read_text()
    config.write_text(text.replace("memory_mb: 4000", "memory_mb: 5000"))
    assert planned(recorded) == {}
    config.write_text(text.replace("max_pictures: 6", "max_pictures: 5"))
    assert set(planned(recorded)) == {"predict_pictures", "score", "tables", "figures"}
    config.write_text(text.replace("condition_dropout: 0.1 # ", "condition_dropout: 0.2 # "))
    jobs = planned(recorded)
    assert jobs["train_align_creation"] == jobs["train_sft"] == jobs["train_sft_creation"] == 1
    assert not {"make_world", "train_align_comprehension", "train_sft_comprehension"} & set(jobs)
    config.write_text(text)
    assert planned(recorded) == {}


def test_a_renamed_configuration_trains_nothing_and_a_new_name_trains_all(recorded, tmp_path):
    text = (recorded / "config/embedded.yaml").read_text()
    (tmp_path / "renamed.yaml").write_text(text)
    assert planned(recorded, f"--configfile={tmp_path / 'renamed.yaml'}", "results/tables") == {}
    (tmp_path / "other.yaml").write_text(text.replace("name: embedded", "name: other"))
    jobs = planned(recorded, f"--configfile={tmp_path / 'other.yaml'}", "results/tables")
    assert jobs["train_sft"] == jobs["tables"] == jobs["figures"] == 1
    assert not {"make_world", "fetch_foundations"} & set(jobs), "these are shared"


def test_a_fresh_clone_without_a_remote_gets_the_foundations_and_runs_the_rest(recorded, tmp_path):
    folder = repository.clone(recorded, tmp_path / "clone")
    said = run(folder, "python", "workflow/restore.py").stdout
    assert (folder / "data/foundations/sd/unet/model.safetensors").read_text() == "sd/unet"
    assert not (folder / "results/tables").exists()
    assert "as recorded: foundations; left to run: data, align, pretrain, sft, arms, evaluate, results" in said
    jobs = planned(folder, "results/tables")
    assert jobs["train_sft"] == 1
    assert "fetch_foundations" not in jobs


def test_in_a_fresh_clone_dvc_repro_makes_everything_and_snakemake_agrees(recorded, tmp_path):
    folder = repository.clone(recorded, tmp_path / "clone")
    run(folder, "dvc", "repro")
    assert sorted(ran(folder)) == sorted(ran(recorded))
    assert planned(folder) == {}
    assert "Data and pipelines are up to date." in run(folder, "dvc", "repro").stdout
