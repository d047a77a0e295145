"""Training on cached encoder outputs gives the same losses; a wrong or damaged cache file is refused."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dreamllm.train import feature_cache
from dreamllm.train.checkpoint import read_metadata
from dreamllm.train.feature_cache import FeatureCacheProblem
from test_train import experiment, losses, run, write_world

MODES = {
    "comprehension": {"trains": ["visual_projector"], "loss_weights": {"language": 1, "diffusion": 0}},
    "creation": {"trains": ["dream_queries", "condition_projector"], "loss_weights": {"language": 0, "diffusion": 1}},
    "joint": {},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


def train(world: Path, folder: Path, cache: Path, precompute: bool = True, **changes) -> Path:
    return run(world, folder, experiment(precompute=precompute, **changes), encoded_pictures=cache)


@pytest.fixture(scope="module")
def cache(world, tmp_path_factory) -> Path:
    """The cache of a joint stage."""
    folder = tmp_path_factory.mktemp("cache")
    train(world, tmp_path_factory.mktemp("trained"), folder)
    return folder


@pytest.mark.parametrize("mode", MODES)
def test_losses_are_those_of_a_training_that_encodes_at_every_step(world, tmp_path, mode):
    options = {"mode": mode, **MODES[mode]}
    plain = losses(train(world, tmp_path / "plain", tmp_path / "unused", precompute=False, **options))
    cached = losses(train(world, tmp_path / "cached", tmp_path / "cache", **options))
    assert not (tmp_path / "unused").exists()
    for ours, theirs in zip(cached, plain, strict=True):
        assert ours == pytest.approx(theirs, abs=1.1e-6, rel=1e-6, nan_ok=True)  # the log has six digits
    encoders = {path.name.split("-")[0] for path in (tmp_path / "cache").glob("*.safetensors")}
    assert encoders == ({"clip"} if mode == "comprehension" else {"clip", "vae"})


def test_another_training_reuses_the_cache_and_has_the_same_bytes(world, tmp_path, cache, monkeypatch):
    monkeypatch.setattr(feature_cache, "encode_shard", lambda *_: pytest.fail("a picture was encoded again"))
    first, second = (train(world, tmp_path / name, cache) for name in ("first", "second"))
    assert (first / "trained.safetensors").read_bytes() == (second / "trained.safetensors").read_bytes()


def test_a_killed_encoding_continues_where_it_stopped(world, tmp_path, cache, monkeypatch):
    encode, done = feature_cache.encode_shard, []

    def killed(*arguments):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(arguments[:2])
        return encode(*arguments)

    monkeypatch.setattr(feature_cache, "encode_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        train(world, tmp_path / "work", tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 3
    monkeypatch.setattr(feature_cache, "encode_shard", lambda *given: (done.append(given[:2]), encode(*given))[1])
    train(world, tmp_path / "work", tmp_path / "cache")
    assert len(set(done)) == len(done) == 16  # eight shards, two encoders
    for path in cache.glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "cache" / path.name).read_bytes()


def test_the_cache_holds_mean_and_deviation_of_the_latent(world, cache):
    path = max(cache.glob("vae-*.safetensors"), key=lambda path: path.stat().st_size)
    tensors = load_file(path)
    mean, std = next(iter(tensors.values())).chunk(2)
    assert mean.dtype == torch.float32 and (std > 0).all()


def test_a_file_of_another_shard_is_refused(world, tmp_path, cache):
    shutil.copytree(cache, tmp_path / "cache")
    one, other = sorted((tmp_path / "cache").glob("clip-*.safetensors"))[:2]
    shutil.copy(one, other)
    with pytest.raises(
        FeatureCacheProblem, match=f"{other.name}: was made from other inputs .shard.; delete this file"
    ):
        train(world, tmp_path / "work", tmp_path / "cache")


def test_a_file_that_is_cut_short_is_refused(world, tmp_path, cache):
    shutil.copytree(cache, tmp_path / "cache")
    path = min((tmp_path / "cache").glob("vae-*.safetensors"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FeatureCacheProblem, match=f"{path.name}: cannot be read .*; delete this file"):
        train(world, tmp_path / "work", tmp_path / "cache")


def test_other_encoders_have_other_files(world, tmp_path, cache):
    """The files of one CLIP are never taken for those of another."""
    other = tmp_path / "world"
    shutil.copytree(world, other)
    weights = other / "foundations" / "clip" / "model.safetensors"
    tensors = load_file(weights)
    tensors["vision_model.embeddings.patch_embedding.weight"] += 0.01
    save_file(tensors, weights, {"format": "pt"})
    shutil.copytree(cache, tmp_path / "cache")
    train(other, tmp_path / "work", tmp_path / "cache")
    before = {path.name for path in cache.glob("*.safetensors")}
    added = {path.name for path in (tmp_path / "cache").glob("*.safetensors")} - before
    assert len(added) == 8 and all(name.startswith("clip-") for name in added)


def test_another_precision_has_files_of_its_own(world, tmp_path, cache):
    shutil.copytree(cache, tmp_path / "cache")
    train(world, tmp_path / "work", tmp_path / "cache", precision="bf16")
    assert len([*(tmp_path / "cache").glob("*.safetensors")]) == 2 * len([*cache.glob("*.safetensors")])


def test_a_damaged_document_is_skipped_as_without_the_cache(world, tmp_path):
    damaged = tmp_path / "world"
    shutil.copytree(world, damaged)
    shard = damaged / "data" / "pairs-00000.tar"
    content = bytearray(shard.read_bytes())
    middle = content.index(b"IDAT") + 20
    content[middle : middle + 40] = bytes(40)
    shard.write_bytes(content)
    options = {"mixture": {"pairs": 1.0}}
    plain = train(damaged, tmp_path / "plain", tmp_path / "unused", precompute=False, **options)
    cached = train(damaged, tmp_path / "cached", tmp_path / "cache", **options)
    assert read_metadata(plain)["totals"] == read_metadata(cached)["totals"]
    assert read_metadata(cached)["totals"]["skipped_documents"] > 0
    assert losses(cached)[-1]["loss"] == pytest.approx(losses(plain)[-1]["loss"], rel=1e-6)


def test_a_picture_that_is_missing_from_its_file_is_refused(world, tmp_path, cache):
    shutil.copytree(cache, tmp_path / "cache")
    for path in (tmp_path / "cache").glob("clip-*.safetensors"):
        with safe_open(path, framework="pt") as opened:
            about = opened.metadata()
        save_file({"other": torch.zeros(1)}, path, about)
    with pytest.raises(FeatureCacheProblem, match="clip-.*: has no picture .*; delete this file"):
        train(world, tmp_path / "work", tmp_path / "cache")
