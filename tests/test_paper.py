"""config/paper.yaml and its variants: the whole DAG without network, and foundations from the Hub."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import loopback
import repository
import tiny
from dreamllm.config.reading import load
from dreamllm.evaluate import tasks
from dreamllm.model.build import build_from_foundations

CONFIGS = sorted((repository.ROOT / "config").glob("*.yaml"))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    return repository.copy(tmp_path_factory.mktemp("paper") / "checkout")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Every proxy leads to a port where nobody listens."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


def test_the_whole_dag_of_the_paper(checkout):
    planned = repository.planned(checkout, "--configfile=config/paper.yaml", "results/tables")
    experiment = load(repository.ROOT / "config/paper.yaml")
    assert {rule.removeprefix("train_") for rule in planned if rule.startswith("train_")} == {
        *experiment.stages,
        "sd_finetuned",
    }
    assert planned["fetch_foundation"] == 3  # llm, clip, sd
    for name in ("blip_laion", "laion400m", "laion_coco", "mmc4_core"):
        assert {f"list_urls_{name}", f"fetch_pictures_{name}", f"build_{name}"} <= planned.keys()
    assert {"write_instruct_mmc4", "write_instruct_blip_laion", "build_llava_instruct_80k"} <= planned.keys()
    benchmarks = sum(len(evaluation.benchmarks) for evaluation in experiment.evaluations)
    predicting = ("predict_text", "predict_pictures", "predict_attention")
    assert planned["score"] == sum(planned[rule] for rule in predicting) == benchmarks
    names = [name for evaluation in experiment.evaluations for name in evaluation.benchmarks]
    drawn = sum(tasks.about(experiment.benchmark(name).task).image_metrics for name in names)
    samples = experiment.evaluation.pictures.samples
    assert planned["score_pictures"] == drawn
    assert planned["predict_sample"] == (samples - 1) * drawn and planned["features"] == samples * drawn
    asked = {use.source for use in experiment.benchmarks.values() if use.source and use.source in names}
    examples = {use.shots_from for use in experiment.benchmarks.values() if use.shots_from and use.source in asked}
    assert planned["place_benchmark"] == len(asked | examples) < planned["fetch_source"]
    assert planned["fetch_foundations"] == planned["figures"] == planned["tables"] == 1
    assert "train_foundation_llm" not in planned


@pytest.mark.parametrize("name", ["paper-as-released", "single_gpu", "modern", "metaquery"])
def test_the_dags_beside_it(checkout, name):
    planned = repository.planned(checkout, f"--configfile=config/{name}.yaml", "results/tables")
    assert {f"train_{stage}" for stage in load(repository.ROOT / f"config/{name}.yaml").stages} <= planned.keys()


def test_the_rules_lint_without_findings(checkout):
    assert repository.lint_findings(checkout, "config/paper.yaml") == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_fetched_foundations_are_in_the_store(path):
    foundations = load(path).foundations
    fetched = foundations if foundations.source == "fetch" else getattr(foundations, "instruments", None)
    if fetched:
        listing = repository.ROOT / fetched.store / "files/md5" / fetched.md5[:2] / fetched.md5[2:]
        assert listing.exists(), f"{path}: {fetched.md5} is not in {fetched.store}"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_foundations_of_the_hub_are_in_the_manifest(path):
    foundations = load(path).foundations
    if foundations.source == "hub":
        known = yaml.safe_load((repository.ROOT / "paper/released.yaml").read_text(encoding="utf-8"))
        assert {foundations.llm, foundations.clip, foundations.sd} <= known.keys()
        weights = known[foundations.sd]["patterns"]
        denoisers = {f"{folder}/diffusion_pytorch_model.safetensors" for folder in ("unet", "transformer")}
        assert "vae/diffusion_pytorch_model.safetensors" in weights and not denoisers.isdisjoint(weights)


def test_a_foundation_comes_from_the_hub(checkout, tmp_path, monkeypatch):
    served = tiny.foundations(tmp_path / "served") / "llm"
    with loopback.serve() as server:
        server.hub["models/owner/tiny"] = {path.name: path.read_bytes() for path in served.iterdir()}
        folder = tmp_path / "checkout"
        shutil.copytree(checkout, folder, symlinks=True)
        path = folder / "paper/released.yaml"
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
        entry = {"repo": "owner/tiny", "revision": loopback.COMMIT, "patterns": ["*"], "sha256": {}}
        entries["vicuna-7b-v1.1"] = entry
        path.write_text(yaml.safe_dump(entries))
        target = ("--configfile=config/paper.yaml", "data/foundations_paper/llm")
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        repository.run(folder, "snakemake", "--cores", "1", *target)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (folder / target[1] / name).read_bytes() == (served / name).read_bytes()


class Trap:
    """Unpickled with code, it would make a folder."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_foundations_may_be_pickles_of_tensors_and_of_nothing_else(tmp_path):
    folder = tiny.foundations(tmp_path / "foundations")
    parts = [folder / part for part in ("llm", "clip", "sd")]
    model, _ = build_from_foundations(*parts, num_dream_queries=4)
    for part in ("llm", "clip"):
        torch.save(load_file(folder / part / "model.safetensors"), folder / part / "pytorch_model.bin")
        (folder / part / "model.safetensors").unlink()
    again, _ = build_from_foundations(*parts, num_dream_queries=4)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(again.get_parameter(name), parameter, rtol=0, atol=0, msg=name)
    trap = tmp_path / "sprung"
    torch.save({"model.norm.weight": Trap(trap)}, folder / "llm/pytorch_model.bin")
    with pytest.raises((pickle.UnpicklingError, OSError, RuntimeError, ValueError)):
        build_from_foundations(*parts, num_dream_queries=4)
    assert not trap.exists()
