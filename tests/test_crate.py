"""The files that describe a run to others: RO-Crate, CODECHECK manifest, REPORT.md, model and data cards."""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard
from rocrate.rocrate import ROCrate

import finished_run
from dreamllm.digests import content_files, sha256_of_file
from dreamllm.repro.report import crate, documents, jobs
from dreamllm.repro.report.report import Report, gather

PROVENANCE = "https://w3id.org/ro/wfrun/provenance/0.5"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = finished_run.write(tmp_path_factory.mktemp("run"))
    crate.main(argparse.Namespace(root=root, config=root / "config/smoke.yaml"))
    return root


@pytest.fixture(scope="module")
def loaded(root: Path) -> ROCrate:
    return ROCrate(root)


@pytest.fixture(scope="module")
def report(root: Path) -> Report:
    return gather(root, Path("config/smoke.yaml"), root / "paper", finished_run.metrics(root), [])


def ids(value) -> list[str]:
    """Ids of entities in a property."""
    return [one.id for one in (value if isinstance(value, list) else [value])]


# ---- the crate -----------------------------------------------------------------------------------------------------


def test_every_file_of_the_crate_is_there_with_its_digest(root, loaded) -> None:
    files = [one for one in loaded.get_entities() if "File" in one.type and "sha256" in one.properties()]
    assert {unquote(one.id) for one in files} >= {
        "workflow/Snakefile", "config/smoke.yaml", "results/checkpoints/smoke/sft/trained.safetensors",
        "results/predictions/smoke/sft/draw.tar", "results/metrics/smoke/sft/draw.json", "results/tables/table1.csv",
        "data/emoji_smoke/train/pairs-00000.tar", "data/foundations_smoke/sd/model.safetensors",
    }  # fmt: skip
    for one in files:
        path = root / unquote(one.id)
        assert one["sha256"] == sha256_of_file(path) and one["contentSize"] == str(path.stat().st_size)


def test_every_folder_of_the_crate_has_all_its_files(root, loaded) -> None:
    folders = [one for one in loaded.get_entities() if one.type == "Dataset" and one.id != "./"]
    assert {one.id for one in folders} >= {"results/tables/", "results/checkpoints/smoke/", "data/emoji_smoke/"}
    for one in folders:
        here = sorted(path.relative_to(root).as_posix() for path in content_files(root / unquote(one.id)))
        assert sorted(unquote(id_) for id_ in ids(one["hasPart"])) == here


def test_the_run_has_its_workflow_inputs_outputs_and_times(loaded) -> None:
    workflow, action = loaded.mainEntity, loaded.get("#run-smoke")
    assert workflow.id == "workflow/Snakefile" and action["instrument"] is workflow
    assert PROVENANCE in ids(loaded.root_dataset["conformsTo"])
    assert set(ids(action["object"])) == {"config/smoke.yaml", "data/emoji_smoke/", "data/foundations_smoke/"}
    assert {"results/tables/", "results/metrics/smoke/"} <= set(ids(action["result"]))
    assert (action["startTime"], action["endTime"]) == ("2023-11-14T22:13:20+00:00", "2023-11-14T22:13:55+00:00")
    assert action in loaded.root_dataset["mentions"] or action is loaded.root_dataset["mentions"]
    software = {one["name"]: one["version"] for one in workflow["softwareRequirements"]}
    assert software == {"python": "3.11", "torch": "2.13.0"}
    assert workflow["memoryRequirements"] == "4000 MB a job"


def test_every_job_is_an_action_with_what_it_used(loaded) -> None:
    actions = {one.id: one for one in loaded.get_entities() if one.type == "CreateAction"}
    assert set(actions) == {
        "#run-smoke", "#job-train_sft", "#job-predict_pictures-predict_sft_draw", "#job-score_sft_draw", "#job-tables"
    }  # fmt: skip
    train = actions["#job-train_sft"]
    assert ids(train["object"]) == ["data/emoji_smoke/train/"]
    assert ids(train["result"]) == ["results/checkpoints/smoke/sft/"]
    usage = {one["name"]: (one["value"], one["unitCode"]) for one in train["resourceUsage"]}
    assert usage == {"wallClockTime": ("3600", "SEC"), "cpuTime": ("1800", "SEC"), "peakMemory": ("500", "E63")}
    short = actions["#job-score_sft_draw"]["resourceUsage"]
    assert ids(short) == ["#job-score_sft_draw-wallClockTime"]
    assert ids(actions["#job-score_sft_draw"]["object"]) == ids(
        actions["#job-predict_pictures-predict_sft_draw"]["result"]
    )


def test_tools_steps_and_orders_are_linked_as_the_profile_asks(loaded) -> None:
    workflow = loaded.mainEntity
    assert "HowTo" in workflow.type
    controls = [one for one in loaded.get_entities() if one.type == "ControlAction"]
    assert len(controls) == 4
    for control in controls:
        step, action = control["instrument"], control["object"]
        assert step in workflow["step"] and action["instrument"] is step["workExample"]
        assert step["workExample"] in workflow["hasPart"]
    organise = next(one for one in loaded.get_entities() if one.type == "OrganizeAction")
    assert organise["result"] is loaded.get("#run-smoke") and set(ids(organise["object"])) == set(ids(controls))


def test_no_path_of_the_machine_is_in_the_crate(root) -> None:
    text = (root / crate.METADATA).read_text(encoding="utf-8")
    assert str(root.resolve()) not in text
    assert "--config config/smoke.yaml" in text


def test_the_same_run_gives_the_same_crate(root) -> None:
    before = [(root / name).read_bytes() for name in (crate.METADATA, crate.CODECHECK)]
    crate.main(argparse.Namespace(root=root, config=root / "config/smoke.yaml"))
    assert before == [(root / name).read_bytes() for name in (crate.METADATA, crate.CODECHECK)]


def test_every_reference_leads_to_an_entity(root) -> None:
    graph = json.loads((root / crate.METADATA).read_text(encoding="utf-8"))["@graph"]
    known = {one["@id"] for one in graph}
    assert len(known) == len(graph)
    found = set(re.findall(r'\{\s*"@id": "([^"]+)"\s*\}', json.dumps(graph)))
    assert {id_ for id_ in found if not id_.startswith("http")} <= known


def test_without_snakemake_s_record_it_is_a_crate_of_the_run_alone(tmp_path) -> None:
    root = finished_run.write(tmp_path / "run")
    shutil.rmtree(root / ".snakemake")
    crate.main(argparse.Namespace(root=root, config=root / "config/smoke.yaml"))
    bare = ROCrate(root)
    assert PROVENANCE not in ids(bare.root_dataset["conformsTo"])
    assert [one.id for one in bare.get_entities() if one.type == "CreateAction"] == ["#run-smoke"]


# ---- jobs ----------------------------------------------------------------------------------------------------------


def test_jobs_are_those_that_lead_to_the_targets(root) -> None:
    found = jobs.read_jobs(root, ["results/tables"])
    assert [job.rule for job in found] == ["train_sft", "predict_pictures", "score", "tables"]
    assert found[0].inputs == ("data/emoji_smoke/train",)
    assert jobs.read_jobs(root, ["results/figures"]) == []


def test_several_outputs_of_a_job_are_one_job_and_long_names_are_read(tmp_path) -> None:
    outputs = ["data/" + "x" * 300, "data/second"]
    for output in outputs:
        finished_run.write_record(tmp_path, output, "make", [], 0)
    (tmp_path / ".snakemake/metadata/no record").write_text("{}")
    (job,) = jobs.read_jobs(tmp_path, outputs)
    assert set(job.outputs) == set(outputs)


# ---- CODECHECK -----------------------------------------------------------------------------------------------------


def test_the_codecheck_manifest_keeps_codecheck_s_rules(root) -> None:
    text = (root / crate.CODECHECK).read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    assert text.startswith("---\n")  # CC-CFG-002
    assert {one["file"] for one in content["manifest"]} == {
        "results/tables/claims.csv", "results/tables/table1.csv", "results/figures/curves.png"
    }  # fmt: skip
    assert all((root / one["file"]).is_file() and one["comment"] for one in content["manifest"])  # CC-BUN-001
    assert content["paper"]["authors"] and content["paper"]["reference"].startswith("https://")
    assert not re.search("FIXME|TODO|XXXXX", text)  # CC-CFG-023
    assert "codechecker" not in content


# ---- in writing ----------------------------------------------------------------------------------------------------


def test_the_report_says_what_was_computed(report) -> None:
    text = documents.reproducibility_report(report)
    stated = dict(re.findall(r"(?m)^### (C\d+): (.*)$", text))
    assert stated == {claim.claim.id: claim.status for claim in report.claims}
    counts = Counter(claim.status for claim in report.claims)
    summary = re.search(r"claims of the paper are tested:\n(.*)\.\n", text)[1]
    assert dict(reversed(re.match(r"(\d+) (.*)", one).groups()) for one in summary.split(", ")) == {
        status: str(count) for status, count in counts.items()
    }
    findings = [finding for claim in report.claims for finding in claim.tests]
    lines = re.findall(r"(?m)^\| \w+\.\w+\..* \| the paper \| .*\n(\| \| .*)$", text)  # below the paper's row
    assert len(lines) == len(findings)
    for line, finding in zip(lines, findings, strict=True):
        assert f"| {finding.outcome}" in line
        assert not finding.measured or f"| {finding.measured[0]:.4g} |" in line


def test_model_cards_can_be_read_by_the_hub_s_library(report, tmp_path) -> None:
    for name, text in documents.documents(report).items():
        path = tmp_path / Path(name).name
        path.write_text(text, encoding="utf-8")
    card = ModelCard.load(tmp_path / "model-sft.md")
    assert (card.data.license, card.data.datasets) == ("cc-by-sa-4.0", ["pairs"])
    results = {(one.dataset_type, one.metric_type): one.metric_value for one in card.data.eval_results}
    assert results[("vqa", "accuracy")] == 0.5
    assert sha256_of_file(report.run.root / "results/checkpoints/smoke/sft/trained.safetensors") in card.text
    assert "| final language loss | 1.5 |" in card.text and "diffusion" not in card.text
    data = DatasetCard.load(tmp_path / "data-pairs.md")
    assert data.data.license == "cc-by-sa-4.0"
    assert sha256_of_file(report.run.root / finished_run.SET / "pairs-00000.tar") in data.text
