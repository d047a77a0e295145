"""The real DAG in the smoke configuration: from nothing, with foundations, to tables and figures."""

import json
from pathlib import Path

import pytest
import yaml

import repository
from dreamllm.config.evaluation import WITHOUT_EFFECT
from dreamllm.config.machine import Machine
from dreamllm.config.reading import load

EXPERIMENT = load(repository.ROOT / "config/smoke.yaml")
TARGET = ("--configfile=config/smoke.yaml", "results/tables")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    folder = repository.copy(tmp_path_factory.mktemp("end_to_end") / "checkout")
    repository.run(folder, "snakemake", "--cores", "2", *TARGET)
    return folder


def test_tables_and_figures_are_made(checkout):
    tables = {path.name for path in (checkout / "results/tables").iterdir()}
    assert {f"table{number}.{kind}" for number in (1, 2, 3, 4, 7, "9a") for kind in ("csv", "md", "tex")} <= tables
    figures = {path.name for path in (checkout / "results/figures").iterdir()}
    drawn = ("learning_curves", "drawings", "figure5_in_context", "figure6_attention", "figure8_subject")
    assert {f"{name}.{kind}" for name in drawn for kind in ("png", "pdf")} | {"README.md"} <= figures
    index = (checkout / "results/figures/README.md").read_text()
    assert "| figure4_questions | not drawn: no run of model comprehension_only on benchmark vqa |" in index


def test_every_evaluation_has_its_metrics(checkout):
    metrics = checkout / "results/metrics/smoke"
    found = {f"{path.parent.name}/{path.stem}" for path in metrics.rglob("*.json")}
    assert found == {f"{e.model}/{benchmark}" for e in EXPERIMENT.evaluations for benchmark in e.benchmarks}


def test_a_second_run_has_nothing_to_do(checkout):
    assert "Nothing to be done" in repository.run(checkout, "snakemake", "--cores", "2", *TARGET).stdout


def test_what_no_result_depends_on_makes_nothing_again(checkout):
    """Every key of `machine`, batch sizes of evaluation, prices and parallelism of services."""
    settings = yaml.safe_load((checkout / "config/smoke.yaml").read_text(encoding="utf-8"))
    settings["machine"] = {"gpus": 2, "nodes": 2, "jobs_per_gpu": 4, "sharding": "full_shard", "rows_at_a_time": 1}
    settings["machine"] |= {"pictures_at_a_time": 3, "gradient_checkpointing": True, "attention": "eager"}
    settings["machine"] |= {"compile": True, "threads": 2, "memory_mb": 5000, "minutes": 61, "distributor": "ray"}
    settings["machine"] |= {
        "optimizer": "adamw_8bit",
        "gpus_per_prediction": 2,
        "shard_cache": "s",
        "shard_cache_gb": 7,
    }
    settings["machine"] |= {"tracker": "tensorboard"}  # the others need not be installed
    assert settings["machine"].keys() == Machine.model_fields.keys()
    for section, keys in WITHOUT_EFFECT.items():
        settings["evaluation"].setdefault(section, {}).update(dict.fromkeys(keys, 7))
    for service in ("instruction_writer", "answer_judge"):
        settings[service] = {"parallel": 3, "dollars_per_million": [1.0, 2.0]}
    (checkout / "config/other.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    said = repository.run(checkout, "snakemake", "--dry-run", "--configfile=config/other.yaml", "results/tables").stdout
    assert "Nothing to be done" in said, said


def test_every_job_wrote_a_log_and_a_timing(checkout):
    logs = {path.stem for path in (checkout / "logs/smoke").glob("*.log")}
    assert logs == {path.stem for path in (checkout / "timings/smoke").glob("*.tsv")}
    assert {"train_sft", "train_foundation_sd", "predict_sft_draw", "score_sft_draw", "tables"} <= logs


def test_the_audit_passes_and_catches_what_is_changed_afterwards(checkout):
    """All green once the repository is one: the copy is no git checkout, so its runs have no commit of it."""
    arguments = ("--config", "config/smoke.yaml", "--out", "audit.json")
    repository.run(checkout, "python", "-m", "dreamllm", "audit", *arguments, check=False)
    checks = json.loads((checkout / "audit.json").read_text())["checks"]
    assert {id_: one["faults"] for id_, one in checks.items() if one["outcome"] == "fail" and id_ != "A03"} == {}
    assert [id_ for id_, one in checks.items() if one["outcome"] == "not applicable"] == []
    assert "this code is in no git repository" in checks["A03"]["faults"][0]["what"]


def test_the_report_can_be_made(checkout):
    repository.run(checkout, "snakemake", "--report", "report.zip", *TARGET)
    assert (checkout / "report.zip").stat().st_size > 10_000
