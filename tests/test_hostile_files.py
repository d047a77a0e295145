"""Names that content gives to files stay inside their folders; hostile weights and records are one line of error."""

import json
import os
import re
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

import foundation_card
import tiny
from dreamllm.config.world import World
from dreamllm.digests import digest, md5
from dreamllm.emoji.foundations import scene_classifier
from dreamllm.emoji.foundations.fetch import StoreProblem, fetch
from dreamllm.evaluate import placing, predictions
from dreamllm.evaluate.files import BenchmarkProblem
from dreamllm.model.build import FoundationProblem, build_from_foundations
from dreamllm.model.weights import load_weights
from dreamllm.official.convert import OfficialProblem
from dreamllm.official.files import read_tensors
from dreamllm.safe_join import NameProblem, safe_join, shards_of
from dreamllm.sources.fetch import RemoteFile, fetch_files
from dreamllm.sources.picture_files import PictureFiles
from dreamllm.sources.records import RecordProblem
from dreamllm.sources.services.http import FetchProblem
from dreamllm.train import checkpoint, resume
from dreamllm.train.checkpoint import CheckpointProblem

OUTSIDE = ["../x", "a/../../x", "/x", "..", "", ".", "a\nb", "a\0b", "cut \ud83d", "n" * 300, "a/" + "n" * 300]


# ---- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*OUTSIDE, None, 7, ["x"]], ids=ascii)
def test_a_name_that_leads_out_or_is_no_file_name_is_refused(tmp_path, name):
    with pytest.raises(NameProblem) as told:
        safe_join(tmp_path, name)
    assert "\n" not in str(told.value) and len(str(told.value)) < 300


@pytest.mark.parametrize("name", ["x", "a/b/c.txt", "..x", "a..b/c", "über.jpg", "with space", "n" * 255])
def test_other_names_are_joined_as_they_are(tmp_path, name):
    assert safe_join(tmp_path, name) == tmp_path / name


def test_a_link_that_leads_out_is_not_followed(tmp_path):
    inside, outside = tmp_path / "set", tmp_path / "other"
    inside.mkdir(), outside.mkdir()
    (inside / "link").symlink_to(outside)
    (inside / "near").symlink_to(inside)
    with pytest.raises(NameProblem, match="through a symbolic link"):
        safe_join(inside, "link/x")
    assert safe_join(inside, "near/x") == inside / "near/x"


def put(store: Path, content: bytes, name: str) -> None:
    path = store / "files/md5" / name[:2] / name[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["../../victim", "llm/../../victim", "/victim", "n" * 300])
def test_a_listing_of_a_store_writes_nothing_outside(tmp_path, name):
    (tmp_path / "file").write_text("bytes")
    one = md5(tmp_path / "file")
    put(tmp_path / "store", b"bytes", one)
    put(tmp_path / "store", json.dumps([{"md5": one, "relpath": name}]).encode(), "a" * 32 + ".dir")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StoreProblem, match="listing"):
        fetch(tmp_path / "store", "a" * 32 + ".dir", "0" * 64, World(), tmp_path / "deep/out")
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before] == [
        tmp_path / "deep",
        tmp_path / "deep/out",
    ]


def test_a_listing_of_a_store_reads_nothing_outside(tmp_path):
    (tmp_path / "secret").write_text("a secret")
    listing = [{"md5": "../../../secret", "relpath": "llm/copy"}]
    put(tmp_path / "store", json.dumps(listing).encode(), "a" * 32 + ".dir")
    (tmp_path / "store/files/md5/..").mkdir(exist_ok=True)
    with pytest.raises(StoreProblem, match="is no MD5 of 32 hex digits"):
        fetch(tmp_path / "store", "a" * 32 + ".dir", "0" * 64, World(), tmp_path / "out")


@pytest.mark.parametrize("listing", [b"{", b"{}", b"[1]", b'[{"md5": 1, "relpath": "x"}]', b'[{"md5": "a"}]'])
def test_a_listing_that_is_none_is_told(tmp_path, listing):
    put(tmp_path / "store", listing, "a" * 32 + ".dir")
    with pytest.raises(StoreProblem, match="no listing of a folder"):
        fetch(tmp_path / "store", "a" * 32 + ".dir", "0" * 64, World(), tmp_path / "out")


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "n" * 300])
def test_files_of_the_hub_and_of_addresses_stay_in_their_folder(tmp_path, name):
    with pytest.raises(FetchProblem):
        fetch_files([RemoteFile(name, "http://127.0.0.1:9/x")], tmp_path / "out")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("shard", ["../other/model.safetensors", "/etc/passwd", "sub/model.safetensors", "..", ""])
def test_an_index_of_weights_names_files_beside_it_alone(tmp_path, shard):
    folder = tiny.foundations(tmp_path / "foundations")
    index = folder / "llm/model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": shard}}))
    with pytest.raises(NameProblem, match="not the name of a file in the same folder"):
        shards_of(index)
    with pytest.raises(FoundationProblem, match=re.escape(str(index))):
        build_from_foundations(*(folder / part for part in ("llm", "clip", "sd")), num_dream_queries=2)


def test_pictures_are_placed_under_names_that_stay_in_the_archive(tmp_path):
    (tmp_path / "raw").mkdir()
    with zipfile.ZipFile(tmp_path / "raw/images.zip", "w") as archive:
        archive.writestr("../x.jpg", b"bytes")
    with pytest.raises(RecordProblem, match="leads out of its folder"):
        placing._write_pictures({"../x.jpg": "x.jpg"}, PictureFiles((("", tmp_path / "raw"),)), tmp_path / "out.zip")
    assert not (tmp_path / "out.zip").exists()


@pytest.mark.parametrize("key", ["split", "benchmark"])
def test_a_prediction_file_names_no_other_files(tmp_path, key):
    header = {"model": "m", "benchmark": "stories", "split": "test", "limit": None, key: "../../test"}
    predictions.write(tmp_path / "p.jsonl", header, [])
    with pytest.raises(BenchmarkProblem, match=f"{key} '../../test' is no name"):
        predictions.read(tmp_path / "p.jsonl")


# ---- weights -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def foundations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.foundations(tmp_path_factory.mktemp("hostile") / "foundations")


def made(folder: Path, foundations: Path, tensors: dict[str, torch.Tensor] | None = None, **changes: object) -> Path:
    """A checkpoint of the dream queries; changes: of checkpoint.json, None = without the key."""
    options = {"num_dream_queries": 3, "seed": 0}
    about = {"stage": "s", "model": options, "foundations": checkpoint.foundation_digests(foundations)}
    if tensors is None:
        folders = (foundations / part for part in checkpoint.foundation_folders({}))
        model, _ = build_from_foundations(*folders, **options)
        tensors = {"dream_queries": model.dream_queries}
    about = {key: value for key, value in {**about, **changes}.items() if value is not None}
    checkpoint.save_trained(folder, tensors, about, "step\n")
    return folder


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_checkpoint_with_a_number_that_is_none_is_refused_by_name(tmp_path, foundations, value):
    whole = made(tmp_path / "whole", foundations)
    checkpoint.load_model(foundations, [whole])
    tensors = load_file(whole / checkpoint.TENSORS)
    tensors["dream_queries"].view(-1)[5] = value
    folder = made(tmp_path / "c", foundations, tensors)
    with pytest.raises(CheckpointProblem, match="tensor dream_queries holds NaN or infinity"):
        checkpoint.load_model(foundations, [folder])


def test_a_checkpoint_of_integers_is_refused(tmp_path, foundations):
    folder = made(tmp_path / "c", foundations)
    tensors = {name: tensor.int() for name, tensor in load_file(folder / checkpoint.TENSORS).items()}
    save_file(tensors, folder / checkpoint.TENSORS)
    about = json.loads((folder / checkpoint.METADATA).read_text())
    about["tensors"] = digest(folder / checkpoint.TENSORS)
    (folder / checkpoint.METADATA).write_text(json.dumps(about))
    with pytest.raises(CheckpointProblem, match="dream_queries is of type torch.int32"):
        checkpoint.load_model(foundations, [folder])


@pytest.mark.parametrize(
    ("part", "file"),
    [
        ("llm", "llm/model.safetensors"),
        ("clip", "clip/model.safetensors"),
        ("vae", "sd/vae/diffusion_pytorch_model.safetensors"),
        ("unet", "sd/unet/diffusion_pytorch_model.safetensors"),
    ],
)
def test_foundations_with_nan_are_refused_by_folder_and_tensor(tmp_path, part, file):
    folder = tiny.foundations(tmp_path / "foundations")
    tensors = load_file(folder / file)
    name = next(name for name in tensors if name.endswith("weight") and "text_model" not in name)
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, folder / file, {"format": "pt"})
    with pytest.raises(FoundationProblem, match=f"{part}: weight .* holds NaN or infinity"):
        build_from_foundations(*(folder / name for name in checkpoint.foundation_folders({})), num_dream_queries=2)


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_a_stable_diffusion_with_nan_is_refused_by_part_and_tensor(tmp_path, foundations, part):
    width = {"hidden_size": 20, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2}
    text_encoder = CLIPTextModel(CLIPTextConfig(vocab_size=400, max_position_embeddings=32, **width))
    parts = {
        "vae": AutoencoderKL.from_pretrained(foundations / "sd/vae"),
        "unet": UNet2DConditionModel.from_pretrained(foundations / "sd/unet"),
        "scheduler": DDPMScheduler.from_pretrained(foundations / "sd/scheduler"),
        "text_encoder": text_encoder,
    }
    whole = dict.fromkeys(("tokenizer", "safety_checker", "feature_extractor")) | parts
    pipeline = StableDiffusionPipeline(**whole, requires_safety_checker=False)
    pipeline.save_pretrained(tmp_path / "sd")
    load_weights(StableDiffusionPipeline, tmp_path / "sd", safety_checker=None, tokenizer=None)
    with torch.no_grad():
        next(parts[part].parameters()).view(-1)[0] = float("inf")
    pipeline.save_pretrained(tmp_path / "sd")
    with pytest.raises(FoundationProblem, match=f"sd/{part}: weight .* holds NaN or infinity"):
        load_weights(StableDiffusionPipeline, tmp_path / "sd", safety_checker=None, tokenizer=None)


def bombs() -> dict[str, bytes]:
    """Safetensors files that are none: header longer than the file, tensors of exabytes, nested and overlapping."""

    def file(header: bytes, body: bytes = b"") -> bytes:
        return struct.pack("<Q", len(header)) + header + body

    def tensor(shape: list[int], end: int) -> bytes:
        return json.dumps({"dream_queries": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()

    return {
        "header of 2^60 bytes": struct.pack("<Q", 2**60) + b"{}",
        "shape of exabytes": file(tensor([2**40, 2**20], 4), bytes(4)),
        "shape that overflows": file(tensor([2**63, 2], 16), bytes(16)),
        "end beyond the file": file(tensor([2], 2**50), bytes(8)),
        "nested 5000 deep": file(b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}"),
        "no JSON": file(b"\xff\xfe" * 10),
        "cut": file(tensor([3, 4], 48), bytes(7)),
        "nothing": b"",
    }


@pytest.mark.parametrize("bomb", bombs())
def test_a_file_that_is_no_safetensors_is_one_line(tmp_path, foundations, bomb):
    folder = made(tmp_path / "c", foundations)
    (folder / checkpoint.TENSORS).write_bytes(bombs()[bomb])
    with pytest.raises(CheckpointProblem, match="is no whole safetensors file") as told:
        checkpoint.load_model(foundations, [folder])
    assert "\n" not in str(told.value)
    (tmp_path / "p.safetensors").write_bytes(bombs()[bomb])
    with pytest.raises(BenchmarkProblem):
        predictions.read(tmp_path / "p.safetensors")


@pytest.mark.parametrize("bomb", bombs())
def test_foundations_that_are_no_safetensors_are_one_line(tmp_path, bomb):
    folder = tiny.foundations(tmp_path / "foundations")
    (folder / "llm/model.safetensors").write_bytes(bombs()[bomb])
    with pytest.raises(FoundationProblem, match="llm: its weights are no whole safetensors file"):
        build_from_foundations(*(folder / name for name in checkpoint.foundation_folders({})), num_dream_queries=2)


@pytest.mark.parametrize(("a", "b"), [((2, 8), None), (None, (8, 2)), ((2, 8), (8, 3)), ((2,), (8, 2)), ((), ())])
def test_an_adapter_that_is_no_pair_of_matrices_is_named(tmp_path, foundations, a, b):
    name = "language_model.model.layers.0.self_attn.q_proj"
    shapes = {f"{name}.lora_A": a, f"{name}.lora_B": b}
    tensors = {key: torch.zeros(shape) for key, shape in shapes.items() if shape is not None}
    with pytest.raises(CheckpointProblem, match="the adapter of language_model.* is no pair of matrices"):
        checkpoint.load_model(foundations, [made(tmp_path / "c", foundations, tensors)])


@pytest.mark.parametrize(
    "text",
    [
        "[]", "7", "null", "{", "[" * 100_000, '{"model": []}', '{"foundations": "x", "model": {}}', "{}",
        '{"seed": ' + "9" * 5000 + "}", '{"foundations": {}, "model": {"__class__": 1}}',
        '{"foundations": {}, "model": {"num_dream_queries": 1e9}}',
        '{"foundations": {}, "model": {"num_dream_queries": 9000000000000}}',
        '{"foundations": {}, "model": {"num_dream_queries": true}}', '{"foundations": {}, "model": {"template": 3}}',
    ],
    ids=lambda text: text[:40],
)  # fmt: skip
def test_an_odd_checkpoint_json_is_one_line(tmp_path, foundations, text):
    folder = made(tmp_path / "c", foundations)
    (folder / checkpoint.METADATA).write_text(text)
    with pytest.raises(CheckpointProblem, match=re.escape(str(folder))) as told:
        checkpoint.load_model(foundations, [folder])
    assert "\n" not in str(told.value) and len(str(told.value)) < 500


def test_a_checkpoint_json_of_gigabytes_is_not_read(tmp_path, foundations):
    folder = made(tmp_path / "c", foundations)
    os.truncate(folder / checkpoint.METADATA, 10_000_000_000)  # a hole in the file: it takes no space
    with pytest.raises(CheckpointProblem, match="has 10000000000 bytes"):
        checkpoint.read_metadata(folder)


def test_a_release_with_nan_is_refused_by_name(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    save_file({"lm_head.weight": torch.tensor([1.0, float("nan")])}, tmp_path / "model.safetensors")
    for name in ("clip_vision_embedding", "dream_embedding", "stable_diffusion_head"):
        torch.save({"x": torch.zeros(1)}, tmp_path / f"{name}.bin")
    with pytest.raises(OfficialProblem, match="tensor 'lm_head.weight' holds NaN or infinity"):
        read_tensors(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", "[" * 100_000, '{"folder": "../secret", "identity": {"a": 1}, "step": 1, "position": %s}',
     '{"folder": 3, "identity": {"a": 1}, "step": 1, "position": %s}',
     '{"folder": "state-1", "identity": {"a": 1}, "step": 1, "position": 7}',
     '{"folder": "state-1", "identity": {"a": 1}, "step": 1, "position": %s, "files": {}}',
     '{"folder": "state-1", "identity": 3, "step": 1, "position": %s}'],
    ids=lambda text: text[:30],
)  # fmt: skip
def test_an_odd_state_of_a_training_starts_it_anew(tmp_path, content, capsys):
    work = tmp_path / "work"
    for folder in (tmp_path / "secret", work / "state-1"):
        folder.mkdir(parents=True)
        save_file({"/log": torch.zeros(1, 1)}, folder / "part-00001.safetensors")
    (work / resume.STATE).write_text(content.replace("%s", '{"drawn": {}, "pending": [], "skipped": 0}'))
    assert resume.Checkpointer(work, {"a": 1}, {}, torch.optim.AdamW([torch.zeros(1)])).load() is None
    assert "cannot be read" in capsys.readouterr().out


def test_digests_do_not_depend_on_this_module(tmp_path):
    """What is fetched as before gives the same bytes as before."""
    folder = tmp_path / "made"
    (folder / "llm").mkdir(parents=True)
    (folder / "llm/a").write_text("bytes")
    foundation_card.write(folder)
    for path in folder.rglob("*"):
        if path.is_file():
            put(tmp_path / "store", path.read_bytes(), md5(path))
    files = [{"md5": md5(folder / name), "relpath": name} for name in ("card.json", "llm/a")]
    listing = json.dumps(files, sort_keys=True)
    put(tmp_path / "store", listing.encode(), md5(folder))
    fetch(tmp_path / "store", md5(folder), digest(folder), World(), tmp_path / "out")
    assert digest(tmp_path / "out") == digest(folder)


@pytest.mark.parametrize(
    "text",
    ["[]", "{", "{}", '{"side": 16, "width": 1000000000000}', '{"side": "x", "width": 2}', "[" * 100_000,
     '{"side": 16, "width": 2, "names": 7}', '{"side": 16, "width": -1}', '{"side": 16, "width": 2, "run": 1}'],
    ids=lambda text: text[:40],
)  # fmt: skip
def test_an_odd_scene_classifier_is_one_line(tmp_path, text):
    scene_classifier.save(scene_classifier.SceneClassifier(16, 2), tmp_path)
    scene_classifier.load(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(FoundationProblem, match="is no scene classifier") as told:
        scene_classifier.load(tmp_path)
    assert "\n" not in str(told.value) and len(str(told.value)) < 600


@pytest.mark.parametrize("half", [False, True])
def test_a_scene_classifier_is_loaded_as_it_was_saved_and_not_with_nan(tmp_path, half):
    torch.manual_seed(0)
    saved = scene_classifier.SceneClassifier(16, 2)
    scene_classifier.save(saved.half() if half else saved, tmp_path)
    loaded = scene_classifier.load(tmp_path)
    expected = {name: tensor.float() for name, tensor in saved.state_dict().items()}
    assert all(torch.equal(tensor.float(), expected[name]) for name, tensor in loaded.state_dict().items())
    assert all(parameter.dtype == torch.float32 and parameter.requires_grad for parameter in loaded.parameters())
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["heads.bias"][0] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(FoundationProblem, match="weight heads.bias holds NaN"):
        scene_classifier.load(tmp_path)
