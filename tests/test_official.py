"""Released checkpoints are imported and exported without loss, and a damaged one is rejected with the reason."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, GPT2Config

import released
import tiny
from dreamllm.official import convert
from dreamllm.official.convert import OfficialProblem
from dreamllm.official.exporter import export_official
from dreamllm.official.files import read_tensors
from dreamllm.official.importer import import_official
from dreamllm.train import checkpoint
from dreamllm.train.checkpoint import load_model
from dreamllm.verbs import export


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    return released.write(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def imported(release, tmp_path_factory) -> Path:
    """What the release becomes: foundations/ and checkpoint/."""
    folder = tmp_path_factory.mktemp("imported")
    run_import(release, folder)
    return folder


@pytest.fixture(scope="module")
def loaded(imported):
    """The imported model and its processor; not to be changed."""
    return load_model(imported / "foundations", [imported / "checkpoint"])


def run_import(release: Path, folder: Path) -> str:
    return import_official(
        release / "dreamllm", release / "clip", release / "sd", folder / "foundations", folder / "checkpoint"
    )


@pytest.fixture
def changed(release, tmp_path) -> Path:
    """A copy of the release to damage."""
    shutil.copytree(release, tmp_path / "release", ignore=shutil.ignore_patterns("parts"))
    return tmp_path / "release"


def complaint(release: Path) -> str:
    """What the importer says against a release; it must have written nothing."""
    folder = release.parent / "refused"
    with pytest.raises(OfficialProblem) as problem:
        run_import(release, folder)
    assert not list(folder.rglob("*.*"))
    return str(problem.value)


def change_config(release: Path, change) -> None:
    path = release / "dreamllm/config.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def change_tensors(release: Path, name: str, change) -> None:
    path = release / "dreamllm" / name
    tensors = load_file(path) if name.endswith("safetensors") else torch.load(path, weights_only=True)
    change(tensors)
    save_file(tensors, path, {"format": "pt"}) if name.endswith("safetensors") else torch.save(tensors, path)


def report_of(folder: Path) -> dict:
    return json.loads((folder / "checkpoint/import.json").read_text())


def assert_same_files(theirs: Path, ours: Path) -> None:
    expected, found = read_tensors(theirs), read_tensors(ours)
    assert {file: tensors.keys() for file, tensors in found.items()} == {f: t.keys() for f, t in expected.items()}
    for file, tensors in expected.items():
        for name, tensor in tensors.items():
            assert found[file][name].dtype == tensor.dtype, name
            assert torch.equal(found[file][name], tensor), name


# ---- there and back ------------------------------------------------------------------------------------------------


def test_the_imported_model_is_the_released_one(release, loaded):
    parts = release / "parts"
    expected, _ = load_model(parts, [parts / "checkpoint"])
    found, processor = loaded
    assert found.state_dict().keys() == expected.state_dict().keys()
    assert all(torch.equal(found.state_dict()[name], tensor) for name, tensor in expected.state_dict().items())
    assert (
        dict(zip(released.IDS, processor.tokenizer.convert_tokens_to_ids(list(released.IDS)), strict=True))
        == released.IDS
    )
    assert found.config.dream_start_token_id == processor.vocabulary.dream_start == released.IDS["<dream_start>"]
    assert found.config.num_dream_queries == 4 and processor.template == "vicuna_v1.1"


def test_it_becomes_one_hugging_face_folder(imported, loaded, tmp_path):
    export.export(imported / "foundations", [imported / "checkpoint"], tmp_path / "whole")
    expected, _ = loaded
    found = AutoModel.from_pretrained(tmp_path / "whole").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.state_dict().items())


def test_written_back_nothing_differs(release, imported, tmp_path):
    export_official(imported / "foundations", [imported / "checkpoint"], tmp_path / "back")
    assert_same_files(release / "dreamllm", tmp_path / "back")
    for name in ("config.json", "added_tokens.json", "tokenizer_config.json", "tokenizer.model"):
        assert (tmp_path / "back" / name).read_bytes() == (release / "dreamllm" / name).read_bytes()


def test_the_authors_configuration_with_wrong_ids_and_paths_that_are_none(changed, loaded, tmp_path):
    """As in their released config.json: ids of another tokenizer at the top, and plugin paths "none"."""

    def as_released(content: dict) -> None:
        content |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": -1}
        for settings in content["plugins_init_kwargs"].values():
            settings |= {"pretrained_model_name_or_path": "none", "local_files_only": True}
        content["plugins_init_kwargs"]["clip_vision_embedding"]["clip_vision_model_name_or_path"] = "none"
        content["plugins_init_kwargs"]["stable_diffusion_head"]["diffusion_name_or_path"] = "none"

    change_config(changed, as_released)
    run_import(changed, tmp_path)
    parts = (tmp_path / "foundations", [tmp_path / "checkpoint"])
    model, processor = load_model(*parts)
    llm = model.config.text_config
    assert (llm.bos_token_id, llm.eos_token_id, llm.pad_token_id) == (1, 2, None)
    assert (processor.vocabulary.bos, processor.vocabulary.eos) == (1, 2)
    assert processor.vocabulary.pad == released.IDS["[PAD]"]
    expected = loaded[0].state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    export_official(*parts, tmp_path / "back")
    files = [json.loads((folder / "config.json").read_text()) for folder in (changed / "dreamllm", tmp_path / "back")]
    assert files[0] == files[1]
    generation = json.loads((tmp_path / "back/generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 2}


def test_the_report_tells_what_became_of_every_tensor(release, imported, loaded):
    report = report_of(imported)
    tensors = read_tensors(release / "dreamllm")
    assert {(key["file"], key["name"]) for key in report["keys"]} == {(f, n) for f in tensors for n in tensors[f]}
    becomes = [key["becomes"] for key in report["keys"] if key["use"] == "used"]
    assert sorted(becomes) == sorted(loaded[0].state_dict())
    assert {key["name"] for key in report["keys"] if key["use"] != "used"} == {
        f"model.layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in range(2)
    }
    assert report["files"]["dream_embedding.bin"] == checkpoint.digest(release / "dreamllm/dream_embedding.bin")


def test_names_go_there_and_back(loaded):
    assert all(convert.to_ours(convert.to_official(name)) == name for name in loaded[0].state_dict())


def test_what_the_release_does_not_hold_comes_from_clip_and_stable_diffusion(release, imported):
    theirs, ours = (
        load_file(release / "clip/model.safetensors"),
        load_file(imported / "foundations/clip/model.safetensors"),
    )
    assert theirs.keys() == ours.keys()
    differing = {name for name in theirs if not torch.equal(theirs[name], ours[name])}
    assert differing and all(name.startswith("vision_model.") for name in differing)
    scheduler = "scheduler/scheduler_config.json"
    assert (imported / "foundations/sd" / scheduler).read_bytes() == (release / "sd" / scheduler).read_bytes()


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_in_half_precision_are_read_and_written_back(changed, tmp_path, kind):
    single = changed / "dreamllm/model.safetensors"
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(single).items()}
    single.unlink()
    names = sorted(tensors)
    stem, suffix = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    weight_map = {name: f"{stem}-0000{1 + index % 2}-of-00002.{suffix}" for index, name in enumerate(names)}
    for shard in set(weight_map.values()):
        content = {name: tensors[name] for name in names if weight_map[name] == shard}
        path = changed / "dreamllm" / shard
        save_file(content, path) if kind == "safetensors" else torch.save(content, path)
    index = changed / f"dreamllm/{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    run_import(changed, tmp_path)
    export_official(tmp_path / "foundations", [tmp_path / "checkpoint"], tmp_path / "back")
    found = read_tensors(tmp_path / "back")["model.safetensors"]
    assert found.keys() == tensors.keys()
    assert all(found[name].dtype == torch.bfloat16 and torch.equal(found[name], tensors[name]) for name in tensors)


def test_a_model_trained_further_is_not_rounded_to_its_old_precision(changed, tmp_path):
    change_tensors(changed, "dream_embedding.bin", lambda t: t.update(dream_queries=t["dream_queries"].bfloat16()))
    run_import(changed, tmp_path)
    trained = {"dream_queries": load_file(tmp_path / "checkpoint/trained.safetensors")["dream_queries"] + 1e-4}
    metadata = checkpoint.read_metadata(tmp_path / "checkpoint")
    checkpoint.save_trained(tmp_path / "more", trained, metadata, "step\n")
    told = export_official(tmp_path / "foundations", [tmp_path / "checkpoint", tmp_path / "more"], tmp_path / "back")
    found = read_tensors(tmp_path / "back")["dream_embedding.bin"]["dream_queries"]
    assert found.dtype == torch.float32 and torch.equal(found, trained["dream_queries"])
    assert "1 tensors stay in float32" in told


def test_a_file_of_the_whole_model_is_read_and_the_plugins_files_count(changed, tmp_path):
    """Official training under FSDP saves all tensors in pytorch_model.bin, beside the plugins' files."""
    files = read_tensors(changed / "dreamllm")
    whole = dict(files["model.safetensors"])
    for plugin, prefix in convert.PLUGINS.items():
        whole |= {prefix + name: tensor for name, tensor in files[f"{plugin}.bin"].items()}
    whole["model.dream_embedding.dream_queries"] = whole["model.dream_embedding.dream_queries"] + 1
    torch.save(whole, changed / "dreamllm/pytorch_model.bin")
    (changed / "dreamllm/model.safetensors").unlink()
    told = run_import(changed, tmp_path)
    uses = [key["use"] for key in report_of(tmp_path)["keys"] if key["file"] == "pytorch_model.bin"]
    assert uses.count("differs") == 1 and uses.count("duplicate") == len(whole) - len(files["model.safetensors"]) - 1
    assert "1 tensors have other values" in told
    trained = load_file(tmp_path / "checkpoint/trained.safetensors")
    assert torch.equal(trained["dream_queries"], files["dream_embedding.bin"]["dream_queries"])


def test_weights_that_are_not_read_are_named(changed, tmp_path):
    torch.save({}, changed / "dreamllm/training_args.bin")
    assert "not read: training_args.bin" in run_import(changed, tmp_path)


# ---- damaged and hostile files -------------------------------------------------------------------------------------


class Runs:
    """Unpickled, it creates a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["dream_embedding.bin", "pytorch_model.bin"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_in_it_is_refused_and_not_run(changed, tmp_path, name, zipped):
    if name == "pytorch_model.bin":
        (changed / "dreamllm/model.safetensors").unlink()
    path, trace = changed / "dreamllm" / name, tmp_path / "it_ran"
    if zipped:
        torch.save({"dream_queries": Runs(trace)}, path)
    else:
        path.write_bytes(pickle.dumps({"dream_queries": Runs(trace)}))
    assert f"{name}: rejected, because its pickle is malformed or contains code" in complaint(changed)
    assert not trace.exists()


def test_a_pickle_of_something_else_is_refused(changed):
    torch.save([torch.zeros(2)], changed / "dreamllm/dream_embedding.bin")
    assert "dream_embedding.bin: is not a dict from names to tensors" in complaint(changed)


@pytest.mark.parametrize("name", ["model.safetensors", "stable_diffusion_head.bin"])
@pytest.mark.parametrize("kept", [0, 7, 0.5, 0.999])
def test_a_file_that_was_cut_off_is_refused(changed, name, kept):
    path = changed / "dreamllm" / name
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    assert name in complaint(changed)


@pytest.mark.parametrize(
    "name",
    ["dream_embedding.bin", "clip_vision_embedding.bin", "stable_diffusion_head.bin", "tokenizer.model", "config.json"],
)
def test_a_missing_file_is_named(changed, name):
    (changed / "dreamllm" / name).unlink()
    assert name in complaint(changed)


def test_a_missing_language_model_is_named(changed):
    (changed / "dreamllm/model.safetensors").unlink()
    assert "neither model*.safetensors nor pytorch_model*.bin" in complaint(changed)


def test_a_missing_shard_is_named_and_none_outside_the_folder_is_read(changed):
    (changed / "dreamllm/model.safetensors").rename(changed / "dreamllm/model-00001-of-00002.safetensors")
    index = changed / "dreamllm/model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}})
    )
    assert "model-00002-of-00002.safetensors missing" in complaint(changed)
    index.write_text(json.dumps({"weight_map": {"a": "../clip/model.safetensors"}}))
    assert "'../clip/model.safetensors' is not the name of a file in the same folder" in complaint(changed)
    index.write_text(json.dumps({"weight_map": ["a"]}))
    assert "has no weight_map" in complaint(changed)


# ---- tensors that do not fit ---------------------------------------------------------------------------------------


def test_a_tensor_of_another_shape_is_named_with_both_shapes(changed):
    change_tensors(changed, "dream_embedding.bin", lambda tensors: tensors.update(dream_queries=torch.zeros(1, 5, 32)))
    assert "dream_embedding.bin: dream_queries has shape [1, 5, 32], expected [1, 4, 32]" in complaint(changed)


def test_a_missing_tensor_is_named(changed):
    change_tensors(changed, "model.safetensors", lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    assert "model.layers.1.mlp.up_proj.weight is missing" in complaint(changed)


def test_an_unexpected_tensor_is_named(changed):
    change_tensors(
        changed, "clip_vision_embedding.bin", lambda tensors: tensors.update({"post_layernorm.weight": torch.ones(32)})
    )
    assert "clip_vision_embedding.bin: post_layernorm.weight is unexpected" in complaint(changed)


def test_a_tensor_that_two_shards_hold_is_refused(changed):
    tensors = load_file(changed / "dreamllm/model.safetensors")
    save_file({"lm_head.weight": tensors["lm_head.weight"]}, changed / "dreamllm/b.safetensors")
    (changed / "dreamllm/model.safetensors").rename(changed / "dreamllm/a.safetensors")
    index = {
        "weight_map": {"lm_head.weight": "b.safetensors"}
        | {n: "a.safetensors" for n in tensors if n != "lm_head.weight"}
    }
    (changed / "dreamllm/model.safetensors.index.json").write_text(json.dumps(index))
    assert "lm_head.weight is also in another file" in complaint(changed)


def test_rotary_frequencies_unlike_the_configuration_are_refused(changed):
    change_config(changed, lambda content: content.update(rope_theta=20000.0))
    assert "inv_freq does not agree with config.json" in complaint(changed)


def test_old_position_ids_are_not_unexpected(changed, tmp_path):
    name = "clip_vision_model.vision_model.embeddings.position_ids"
    change_tensors(changed, "clip_vision_embedding.bin", lambda tensors: tensors.update({name: torch.arange(17)[None]}))
    assert "clip_vision_embedding.bin: 1 recomputed" in run_import(changed, tmp_path)


def test_many_problems_are_counted(changed):
    change_tensors(changed, "stable_diffusion_head.bin", lambda tensors: tensors.clear())
    told = complaint(changed)
    assert "more" in told and "missing" in told and len(told) < 3000


# ---- configurations that do not fit --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c.update(model_type="llama"), "model_type is 'llama'"),
        (lambda c: c.pop("special_tokens2ids_dict"), "special_tokens2ids_dict is missing or not of type dict"),
        (lambda c: c.update(hidden_size="32"), "hidden_size is missing or not of type int"),
        (lambda c: c.update(tie_word_embeddings=True), "a separate output head"),
        (lambda c: c["plugins_init_kwargs"].pop("dream_embedding"), "plugin dream_embedding is missing"),
        (lambda c: c["plugins_init_kwargs"].update(controlnet={}), "plugin controlnet is unknown"),
        (
            lambda c: c["plugins_init_kwargs"].update(dream_embedding=3),
            "dream_embedding: settings are 3, not an object",
        ),
        (
            lambda c: c["plugins_init_kwargs"]["dream_embedding"].update(_target_="os.system"),
            "dream_embedding: _target_ is 'os.system', only 'omni.",
        ),
        (lambda c: c["plugins_init_kwargs"]["dream_embedding"].pop("_target_"), "dream_embedding: _target_ is missing"),
        (
            lambda c: c["plugins_init_kwargs"]["clip_vision_embedding"].update(projector_type="mlp", projector_depth=2),
            "projector_type is 'mlp', only 'linear' is supported",
        ),
        (
            lambda c: c["plugins_init_kwargs"]["clip_vision_embedding"].update(use_additional_post_layernorm=True),
            "use_additional_post_layernorm is True",
        ),
        (lambda c: c["plugins_init_kwargs"]["stable_diffusion_head"].update(sdxl=True), "unknown setting sdxl"),
        (
            lambda c: c["plugins_init_kwargs"]["stable_diffusion_head"].update(
                _target_="omni.models.dreamllm_sdxl.modeling_plugins.StableDiffusionXLHead",
                global_condition_hidden_size=9,
            ),
            "stable_diffusion_head: the SDXL variant cannot be imported",
        ),
        (lambda c: c["plugins_init_kwargs"]["dream_embedding"].pop("embed_hidden_size"), "embed_hidden_size is 4096"),
        (lambda c: c["special_tokens2ids_dict"].pop("[PAD]"), "no id for [PAD]"),
        (
            lambda c: c["special_tokens2ids_dict"]["additional_special_tokens"].update({"<dream>": 328}),
            "the id of <dream> is 328, outside the vocabulary of 328 tokens",
        ),
        (
            lambda c: c["special_tokens2ids_dict"]["additional_special_tokens"].update({"<dream>": 2}),
            "</s> and <dream> have the same id 2",
        ),
    ],
)
def test_a_configuration_of_another_model_is_refused(changed, change, told):
    change_config(changed, change)
    assert told in complaint(changed)


def test_ids_unlike_the_tokenizers_are_refused(changed):
    def swap(content):
        ids = content["special_tokens2ids_dict"]["additional_special_tokens"]
        ids["<im_start>"], ids["<im_end>"] = ids["<im_end>"], ids["<im_start>"]

    change_config(changed, swap)
    start, end = released.IDS["<im_start>"], released.IDS["<im_end>"]
    assert f"<im_start> is {start} in the tokenizer and {end} in config.json" in complaint(changed)


def test_a_configuration_that_is_no_json_is_refused(changed):
    (changed / "dreamllm/config.json").write_text('{"model_type": ')
    assert "malformed JSON" in complaint(changed)


def test_missing_foundations_are_named(changed):
    shutil.rmtree(changed / "sd/unet")
    assert "sd/unet: missing" in complaint(changed)


# ---- models that the official code cannot hold ---------------------------------------------------------------------


def test_a_tokenizer_of_another_kind_cannot_be_exported(tmp_path):
    foundations = tiny.foundations(tmp_path / "f")
    metadata = {"foundations": checkpoint.foundation_digests(foundations), "model": released.OPTIONS}
    checkpoint.save_trained(tmp_path / "c", {"dream_queries": torch.zeros(1, 4, 32)}, metadata, "step\n")
    with pytest.raises(OfficialProblem, match="tokenizer.model missing"):
        export_official(foundations, [tmp_path / "c"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_language_model_cannot_be_exported(tmp_path):
    llm = GPT2Config(vocab_size=len(tiny.tokenizer()), n_embd=32, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2)
    foundations = tiny.foundations(tmp_path / "f", llm=llm)
    metadata = {"foundations": checkpoint.foundation_digests(foundations), "model": released.OPTIONS}
    checkpoint.save_trained(tmp_path / "c", {"dream_queries": torch.zeros(1, 4, 32)}, metadata, "step\n")
    with pytest.raises(OfficialProblem, match="the language model is gpt2"):
        export_official(foundations, [tmp_path / "c"], tmp_path / "out")


def test_boundary_tokens_are_those_that_a_split_at_special_tokens_leaves():
    """`USER: <image> What?` in the authors' tokenizer: each stretch of text is tokenized by itself, with its spaces."""
    from dreamllm.data.document import Document, Picture, Text

    _, processor = tiny.build()
    processor.boundary_tokens = True
    question = Document("q", "conversation", (Picture(tiny.picture(), "user"), Text("What?", "user")))
    found = processor.tokenizer.convert_ids_to_tokens(
        list(processor.lay_out_prompt(question, "comprehension").input_ids)
    )
    before, after = found[: found.index("<im_start>")], found[found.index("<im_end>") + 1 :]
    words = processor.vocabulary.encode
    tokens = processor.tokenizer.convert_ids_to_tokens
    template = processor.vocabulary.template
    assert before[1:] == tokens(words(f"{template.system} {template.user} ".lstrip()))
    assert after == ["▁", *tokens(words(f"What? {template.assistant}"))]
