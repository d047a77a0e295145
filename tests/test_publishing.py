"""Publishing a model: the card of an exported folder, uploading it to a hub, and loading it from there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, constants
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import hub

import loopback
import test_train
from dreamllm.repro.report import hub_card
from dreamllm.train.checkpoint import read_metadata
from dreamllm.verbs import export

NUMBER = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 100}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    """Foundations, and a checkpoint in a folder of results, with metrics of it and of other tensors."""
    root = tmp_path_factory.mktemp("results")
    world = test_train.write_world(tmp_path_factory.mktemp("world"))
    checkpoint = root / "checkpoints" / "run" / "sft"
    test_train.run(world, root, test_train.experiment(steps=1)).rename(_parent(checkpoint))
    tensors = read_metadata(checkpoint)["tensors"]
    for name, digest in (("sft", tensors), ("other", "0" * 64)):
        folder = root / "metrics" / "run" / name
        folder.mkdir(parents=True)
        about = {"model": name, "benchmark": f"captions of {name}", "split": "test", "metrics": {"cider": NUMBER}}
        (folder / "captions.json").write_text(json.dumps(about | {"protocol": {"checkpoints": {"sft": digest}}}))
    return world / "foundations", checkpoint


def _parent(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    return path


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A hub on this machine, also for those who have read its address already."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with loopback.serve() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = f"{running.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(hub, "_hf_api", HfApi(endpoint=running.url, token="hf_test"))
        yield running


def test_the_card_names_data_licence_use_and_the_results_of_these_very_tensors(trained):
    _, checkpoint = trained
    card = ModelCard(hub_card.card([checkpoint]))
    data = set(read_metadata(checkpoint)["data"])
    assert card.data.license == "cc-by-sa-4.0" and set(card.data.datasets) == data and data
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "image-text-to-text"
    assert "pip install ." in card.text and "import dreamllm" in card.text and "OpenMoji" in card.text
    assert "| captions of sft | test | cider | 0.5 | 0.4 to 0.6 | 100 |" in card.text
    assert "captions of other" not in card.text and len(card.data.eval_results) == 1


def test_the_program_of_the_card_runs(trained, tmp_path, monkeypatch, capsys):
    foundations, checkpoint = trained
    export.export(foundations, [checkpoint], tmp_path / "whole")
    card = (tmp_path / "whole" / "README.md").read_text()
    program = card.partition("```python\n")[2].partition("```")[0]
    test_train.tiny.picture().save(tmp_path / "cat.png")
    monkeypatch.chdir(tmp_path)
    exec(program.replace("FOLDER", "'whole'"), {})
    assert capsys.readouterr().out.endswith("\n")


def test_a_model_is_uploaded_with_its_card_and_loads_by_name(trained, server, tmp_path):
    foundations, checkpoint = trained
    export.export(foundations, [checkpoint], tmp_path / "whole")
    api = HfApi(endpoint=server.url, token="hf_test")
    api.create_repo("me/dream")
    api.upload_folder(repo_id="me/dream", folder_path=tmp_path / "whole")
    published = server.hub["models/me/dream"]
    assert published["README.md"] == (tmp_path / "whole" / "README.md").read_bytes()
    model = AutoModelForImageTextToText.from_pretrained("me/dream", cache_dir=tmp_path / "loaded")
    here = AutoModelForImageTextToText.from_pretrained(tmp_path / "whole").state_dict()
    assert all(torch.equal(value, here[name]) for name, value in model.state_dict().items())
    processor = AutoProcessor.from_pretrained("me/dream", cache_dir=tmp_path / "loaded")
    assert processor.num_dream_queries == model.config.num_dream_queries
    with torch.no_grad():
        model.dream_queries.zero_()
    model.push_to_hub("me/dream", token="hf_test")
    processor.push_to_hub("me/dream", token="hf_test")
    card = ModelCard(server.hub["models/me/dream"]["README.md"].decode())
    assert "captions of sft" in card.text, "transformers keeps the card that is there"
    assert server.hub["models/me/dream"]["model.safetensors"] != (tmp_path / "whole/model.safetensors").read_bytes()
