"""A checkpoint holds the trained parameters, loads exactly, and is rejected by a model that it does not fit."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

import tiny
from dreamllm.train import checkpoint
from dreamllm.train.checkpoint import CheckpointProblem, load_model, save_trained, trained_parameters
from dreamllm.verbs import export

OPTIONS = {"num_dream_queries": 4, "template": "plain", "vision_feature_layer": -2, "seed": 0}


@pytest.fixture(scope="module")
def foundations(tmp_path_factory):
    return tiny.foundations(tmp_path_factory.mktemp("foundations"))


def save_changed(folder, foundations, parts, shift=1.0, options=OPTIONS):
    """A checkpoint of `parts` whose parameters are the fresh model's plus `shift`."""
    model, _ = load_model(foundations, [], options)
    model.train_only(parts)
    parameters = {name: parameter + shift for name, parameter in trained_parameters(model).items()}
    metadata = {"foundations": checkpoint.foundation_digests(foundations), "model": options}
    save_trained(folder, parameters, metadata, "step\n")
    return folder


def test_a_checkpoint_holds_only_what_was_trained(foundations, tmp_path):
    folder = save_changed(tmp_path / "c", foundations, ["dream_queries", "condition_projector"])
    assert set(load_file(folder / "trained.safetensors")) == {"dream_queries", "condition_projector.weight"}


def test_checkpoints_are_loaded_in_order_and_touch_nothing_else(foundations, tmp_path):
    first = save_changed(tmp_path / "1", foundations, ["dream_queries", "visual_projector"], shift=1.0)
    second = save_changed(tmp_path / "2", foundations, ["dream_queries"], shift=2.0)
    fresh = load_model(foundations, [], OPTIONS)[0].state_dict()
    loaded = load_model(foundations, [first, second])[0].state_dict()
    shifts = {name: (loaded[name] - fresh[name]).mean().round(decimals=3).item() for name in fresh}
    assert {name: shift for name, shift in shifts.items() if shift} == {
        "dream_queries": 2.0,
        "visual_projector.weight": 1.0,
        "visual_projector.bias": 1.0,
    }


def test_same_arguments_give_the_same_bytes(foundations, tmp_path):
    folders = [save_changed(tmp_path / name, foundations, ["language_model"]) for name in "ab"]
    for name in ("trained.safetensors", "checkpoint.json", "losses.csv"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_large_checkpoints_are_split_as_transformers_does_and_load_the_same(foundations, tmp_path, monkeypatch):
    whole = save_changed(tmp_path / "whole", foundations, ["language_model", "dream_queries"])
    monkeypatch.setattr(checkpoint, "LARGEST_FILE", 20_000)
    folder = save_changed(tmp_path / "split", foundations, ["language_model", "dream_queries"])
    index = json.loads((folder / "trained.safetensors.index.json").read_text())
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"trained-00001-of-{len(files):05d}.safetensors"
    assert sorted(set(index["weight_map"].values())) == files
    tensors = load_file(whole / "trained.safetensors")
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    wanted, found = (load_model(foundations, [one])[0].state_dict() for one in (whole, folder))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert checkpoint.has_query_parts(folder)

    part = folder / index["weight_map"]["dream_queries"]
    content = part.read_bytes()
    part.write_bytes(content[:-4] + b"\0\0\0\0")
    with pytest.raises(CheckpointProblem, match="is not the file that checkpoint.json describes"):
        load_model(foundations, [folder])
    part.unlink()
    with pytest.raises(CheckpointProblem, match=f"{part.name}"):
        load_model(foundations, [folder])
    part.write_bytes(content)
    load_model(foundations, [folder])
    index["weight_map"]["dream_queries"] = "../whole/trained.safetensors"
    (folder / "trained.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointProblem, match="is not the name of a file in the same folder"):
        load_model(foundations, [folder])


def test_a_new_checkpoint_replaces_the_old_one_whole(foundations, tmp_path):
    folder = save_changed(tmp_path / "c", foundations, ["language_model"])
    (folder / "leftover").touch()
    save_changed(folder, foundations, ["dream_queries"])
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.json", "losses.csv", "trained.safetensors"]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_failed_save_leaves_the_old_one(foundations, tmp_path):
    folder = save_changed(tmp_path / "c", foundations, ["dream_queries"])
    before = (folder / "checkpoint.json").read_bytes()
    with pytest.raises(TypeError):
        save_trained(folder, {"dream_queries": torch.zeros(1)}, {"not json": object()}, "")
    assert (folder / "checkpoint.json").read_bytes() == before
    assert list(tmp_path.iterdir()) == [folder]


def test_tied_weights_are_saved_once_and_stay_tied(tmp_path):
    config = tiny.llm_config()
    config.tie_word_embeddings = True
    foundations = tiny.foundations(tmp_path / "f", llm=config)
    folder = save_changed(tmp_path / "c", foundations, ["language_model"])
    model, _ = load_model(foundations, [folder])
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert embeddings is head
    fresh = load_model(foundations, [], OPTIONS)[0].get_output_embeddings().weight
    assert torch.allclose(head, fresh + 1.0)


# ---- refusals ------------------------------------------------------------------------------------------------------


def test_other_foundations_are_refused(foundations, tmp_path):
    folder = save_changed(tmp_path / "c", foundations, ["dream_queries"])
    other = tiny.foundations(tmp_path / "other")
    load_model(other, [folder])  # the same foundations elsewhere are the same
    (other / "clip" / ".snakemake_timestamp").touch()  # made by a rule or by hand
    load_model(other, [folder])
    config = other / "clip" / "config.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(CheckpointProblem, match="another clip foundation"):
        load_model(other, [folder])


def test_other_options_are_refused(foundations, tmp_path):
    folder = save_changed(tmp_path / "c", foundations, ["visual_projector"])
    with pytest.raises(CheckpointProblem, match="vision_feature_layer -2, not -1"):
        load_model(foundations, [folder], {**OPTIONS, "vision_feature_layer": -1})


@pytest.mark.parametrize("part", ["dream_queries", "condition_projector"])
def test_what_was_trained_for_other_queries_is_refused(foundations, tmp_path, part):
    folder = save_changed(tmp_path / "c", foundations, [part, "language_model"])
    with pytest.raises(CheckpointProblem, match="num_dream_queries 4, not 8"):
        load_model(foundations, [folder], {**OPTIONS, "num_dream_queries": 8})


def test_what_does_not_depend_on_the_queries_is_loaded_with_any_number(foundations, tmp_path):
    """And nothing that was frozen beside it is another: a projector is trained against these very random embeddings."""
    folder = save_changed(tmp_path / "c", foundations, ["visual_projector", "language_model"])
    own = load_model(foundations, [folder])[0].state_dict()
    other = load_model(foundations, [folder], {**OPTIONS, "num_dream_queries": 8})[0].state_dict()
    assert other["dream_queries"].shape[1] == 8 and own["dream_queries"].shape[1] == 4
    assert all(torch.equal(own[name], other[name]) for name in own if name != "dream_queries")


def test_the_last_checkpoint_with_queries_says_how_many(foundations, tmp_path):
    few = OPTIONS | {"num_dream_queries": 2}
    read = save_changed(tmp_path / "read", foundations, ["visual_projector"])
    drawn = save_changed(tmp_path / "drawn", foundations, ["dream_queries", "condition_projector"], options=few)
    for order in ([read, drawn], [drawn, read]):
        model, processor = load_model(foundations, order)
        assert model.dream_queries.shape[1] == model.config.num_dream_queries == processor.num_dream_queries == 2
    again = save_changed(tmp_path / "again", foundations, ["dream_queries"])
    with pytest.raises(CheckpointProblem, match="drawn: .* num_dream_queries 2, not 4"):
        load_model(foundations, [drawn, again])


def test_a_checkpoint_that_does_not_say_how_many_queries_is_refused(foundations, tmp_path):
    folder = save_changed(tmp_path / "c", foundations, ["dream_queries"])
    about = checkpoint.read_metadata(folder)
    del about["model"]["num_dream_queries"]
    (folder / checkpoint.METADATA).write_text(json.dumps(about))
    with pytest.raises(CheckpointProblem, match="checkpoint.json: model does not have num_dream_queries"):
        load_model(foundations, [folder])


def test_a_tensor_that_does_not_fit_is_named_and_nothing_is_copied(foundations, tmp_path):
    folder = save_changed(tmp_path / "c", foundations, ["dream_queries"])
    tensors = {"dream_queries": torch.zeros(1, 4, 32), "condition_projector.weight": torch.zeros(7, 5)}
    metadata = checkpoint.read_metadata(folder)
    save_trained(folder, tensors | {"plugin.weight": torch.zeros(1)}, metadata, "step\n")
    with pytest.raises(CheckpointProblem) as error:
        load_model(foundations, [folder])
    assert "has no plugin.weight" in str(error.value)
    assert "condition_projector.weight is [7, 5] in the file and [20, 32] in the model" in str(error.value)
    model, _ = load_model(foundations, [], OPTIONS)
    with pytest.raises(CheckpointProblem):
        checkpoint.load_trained(model, folder)
    assert model.dream_queries.abs().sum() > 0


def test_another_file_of_tensors_than_the_recorded_one_is_refused(foundations, tmp_path):
    folder, other = (save_changed(tmp_path / f"{n}", foundations, ["dream_queries"], n) for n in (1, 2))
    (folder / "trained.safetensors").write_bytes((other / "trained.safetensors").read_bytes())
    with pytest.raises(CheckpointProblem, match=r"trained.safetensors: is not the file that checkpoint.json describes"):
        load_model(foundations, [folder])


def test_what_is_no_checkpoint_is_refused(foundations, tmp_path):
    with pytest.raises(CheckpointProblem, match=r"no checkpoint\.json"):
        load_model(foundations, [tmp_path])
    folder = save_changed(tmp_path / "c", foundations, ["dream_queries"])
    (folder / "trained.safetensors").unlink()
    with pytest.raises(CheckpointProblem, match=r"no trained\.safetensors"):
        load_model(foundations, [folder])
    (folder / "checkpoint.json").write_text("{")
    with pytest.raises(CheckpointProblem, match="malformed JSON"):
        load_model(foundations, [folder])
    with pytest.raises(ValueError, match="pass the model.s options"):
        load_model(foundations, [])


# ---- export --------------------------------------------------------------------------------------------------------


def test_an_exported_folder_is_the_same_model(foundations, tmp_path):
    folder = save_changed(tmp_path / "c", foundations, ["language_model", "dream_queries"], shift=0.1)
    export.export(foundations, [folder], tmp_path / "whole")
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["model_type"] == "dreamllm"
    expected = load_model(foundations, [folder])[0].state_dict()
    found = AutoModel.from_pretrained(tmp_path / "whole").state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    processor = AutoProcessor.from_pretrained(tmp_path / "whole")
    assert processor.num_dream_queries == 4 and processor.template == "plain"
