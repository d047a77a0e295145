"""Cache of the frozen encoders' outputs for a stage's pictures (a stage's key `precompute`).

    FOLDER/clip-DIGEST.safetensors   for one shard: CLIP's patch features, a tensor KEY/NUMBER (P, Dv) per picture
    FOLDER/vae-DIGEST.safetensors    for one shard: mean and standard deviation of the VAE's posterior, (2C, h, w)

Pictures are not augmented, so the cache changes a training by rounding only; latents are still sampled at every step.
DIGEST covers everything that the tensors depend on, and the file's metadata lists it. Each file is written whole or not
at all: a killed training continues with the files that are there. Stages, experiments and processes may share the
folder, and files may be deleted between trainings.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dreamllm import provenance
from dreamllm.atomic import new_file
from dreamllm.data import packing, shards
from dreamllm.data.document import Document, Part, Picture
from dreamllm.data.layout import Mode
from dreamllm.data.mixture import LIST_SUFFIX
from dreamllm.data.packing import Batch, Row
from dreamllm.data.shards import Record
from dreamllm.digests import digest
from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration
from dreamllm.model.finite import check_finite
from dreamllm.model.processor import DreamLLMProcessor
from dreamllm.progress import counted
from dreamllm.train import distributed

BATCH_SIZE = 16  # pictures, at least, in one pass of an encoder


class FeatureCacheProblem(ValueError):
    """A damaged cache file, or one that was made from other inputs: names the file."""


@dataclass(frozen=True)
class CachedPicture:
    """Takes the place of an image in a Document: where its tensors are. files: encoder -> file."""

    files: Mapping[str, Path]
    name: str

    def tensor(self, encoder: str) -> torch.Tensor:
        """The output of one encoder for this picture."""
        return _open(self.files[encoder])[0].get_tensor(self.name)


@dataclass(frozen=True)
class FeatureCache:
    """The cached features of the pictures of some shards. files: shard -> encoder -> file."""

    files: Mapping[Path, Mapping[str, Path]]

    def load(self, record: Record) -> Document:
        """Load a document like `shards.load`, with a CachedPicture for each picture; no picture is decoded.

        Raises ShardProblem for a damaged document, FeatureCacheProblem for a picture that its file does not have.
        """
        assert isinstance(record.file, Path)  # `build` refuses sets of remote shards
        files = self.files[record.file]
        document = shards.load(record, decode=False)
        parts: list[Part] = []
        for part in document.parts:
            if isinstance(part, Picture):
                number = sum(isinstance(other, Picture) for other in parts)
                cached = CachedPicture(files, f"{record.key}/{number}")
                if missing := [file for file in files.values() if cached.name not in _open(file)[1]]:
                    shards.load(record)  # raises for a damaged document, which `encode_shard` leaves out
                    raise FeatureCacheProblem(f"{missing[0]}: has no picture {cached.name}; delete this file")
                part = Picture(cached, part.role)  # type: ignore[arg-type]  # in place of the image
            parts.append(part)
        return replace(document, parts=tuple(parts))

    def collate(self, rows: list[Row], processor: DreamLLMProcessor, align: bool = False) -> Batch:
        """Collate rows of documents from `load`, like `DreamLLMProcessor.collate`."""

        def stack(encoder: str):
            return lambda pictures: torch.stack([picture.tensor(encoder) for picture in pictures])

        batch = packing.collate(rows, processor.vocabulary, stack("clip"), stack("vae"), align)
        return replace(
            batch,
            read_pixels=None,
            draw_pixels=None,
            read_features=batch.read_pixels,
            draw_moments=batch.draw_pixels,
            target_pixels=None,
            target_features=batch.target_pixels,
        )


def build(
    folder: Path,
    model: DreamLLMForConditionalGeneration,
    processor: DreamLLMProcessor,
    sets: Mapping[str, Sequence[Path]],
    mode: Mode,
    accelerator: Accelerator,
) -> FeatureCache:
    """Encode the pictures of all shards that have no cache file yet, divided among the processes; returns the cache.

    folder: of the cache files.  sets: name -> shards.  mode: of the stage. Mode "comprehension" draws nothing and needs
    no VAE; mode "creation" still needs CLIP, for the user's pictures.
    Damaged documents are left out; the training then skips and reports them. Raises ShardProblem for a damaged shard,
    FeatureCacheProblem for a file of the folder that cannot be used, and for a set that is a shard list.
    """
    if listed := [name for name, paths in sets.items() if any(path.suffix == LIST_SUFFIX for path in paths)]:
        raise FeatureCacheProblem(
            f"shard set {listed[0]!r} is a shard list, whose pictures are not encoded in advance: set precompute to "
            "false in this stage, or bring the set here (format documents)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    encoders = ("clip",) if mode == "comprehension" else ("clip", "vae")
    common = distributed.broadcast_object(accelerator.is_main_process and _dependencies(model, processor, accelerator))
    paths = [path for paths in sets.values() for path in paths]
    shard_digests = distributed.broadcast_object(accelerator.is_main_process and [digest(path) for path in paths])
    files: dict[Path, dict[str, Path]] = {}
    todo: list[tuple[Path, str, Path, dict[str, Any]]] = []
    for path, shard_digest in zip(paths, shard_digests, strict=True):
        for encoder in encoders:
            about = {"shard": shard_digest, **common[encoder]}
            name = f"{encoder}-{sha256(_canonical(about)).hexdigest()[:32]}.safetensors"
            files.setdefault(path, {})[encoder] = folder / name
            todo.append((path, encoder, folder / name, about))
    missing = [job for job in todo if not job[2].exists()]
    local = missing[accelerator.process_index :: accelerator.num_processes]
    for number in counted("encoding pictures", len(local), "shard"):
        path, encoder, file, about = local[number]
        with file.with_name(f".{file.stem}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another training may be encoding the same shard
            if not file.exists():
                with accelerator.autocast():
                    tensors = encode_shard(path, encoder, model, processor)
                with new_file(file) as temporary:
                    save_file(tensors, temporary, {"about": _canonical(about).decode()})
    accelerator.wait_for_everyone()
    for _, _, file, about in todo:
        _check(file, about)
    return FeatureCache(files)


@torch.no_grad()
def encode_shard(
    shard: Path, encoder: str, model: DreamLLMForConditionalGeneration, processor: DreamLLMProcessor
) -> dict[str, torch.Tensor]:
    """The outputs of one encoder for the pictures of a shard, KEY/NUMBER -> tensor. Damaged documents are left out."""
    tensors: dict[str, torch.Tensor] = {}
    batch: dict[str, Any] = {}

    def encode_batch() -> None:
        images = list(batch.values())
        if encoder == "clip":
            outputs = model.patch_features(processor.read_pixels(images).to(model.device))
        else:
            outputs = model.latent_moments(processor.draw_pixels(images).to(model.device))
        check_finite(outputs, [f"{shard}, picture {name}" for name in batch], f"features of {encoder}")
        tensors.update(zip(batch, outputs.cpu(), strict=True))
        batch.clear()

    for record in shards.index(shard):
        try:
            pictures = shards.load(record).pictures
        except shards.ShardProblem:
            continue
        batch |= {f"{record.key}/{number}": picture for number, picture in enumerate(pictures)}
        if len(batch) >= BATCH_SIZE:
            encode_batch()
    if batch:
        encode_batch()
    # a contiguous copy of each, because safetensors stores neither views nor other memory formats
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}


def _dependencies(
    model: DreamLLMForConditionalGeneration, processor: DreamLLMProcessor, accelerator: Accelerator
) -> dict[str, dict[str, Any]]:
    """Everything that a tensor depends on except its shard, as JSON, by encoder."""
    common = {
        "computed on": f"{accelerator.device.type} {accelerator.mixed_precision}",
        "code": provenance.code_digest(__name__),
        "versions": provenance.versions(),
    }
    clip = {
        "weights": _digest_of(model.vision_model),
        "config": model.config.vision_config.to_dict(),
        "layer": model.config.vision_feature_layer,
        "pictures": processor.image_processor.to_dict(),
    }
    vae = {
        "weights": _digest_of(model.vae),
        "config": dict(model.config.vae_config),
        "pictures": processor.draw_size,
    }
    return json.loads(_canonical({"clip": clip | common, "vae": vae | common}))


def _digest_of(module: torch.nn.Module) -> str:
    """Digest of the loaded tensors, whatever files they came from."""
    hasher = sha256()
    for name, tensor in module.state_dict().items():
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        hasher.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode()


def _check(file: Path, about: Mapping[str, Any]) -> None:
    """Raises FeatureCacheProblem for a damaged file, and for one that was not made from `about`."""
    try:
        with safe_open(file, framework="pt") as opened:
            found = json.loads((opened.metadata() or {}).get("about", "{}"))
    except (SafetensorError, ValueError) as error:
        raise FeatureCacheProblem(f"{file}: cannot be read ({error}); delete this file") from error
    if differing := sorted(key for key in found.keys() | about.keys() if found.get(key) != about.get(key)):
        raise FeatureCacheProblem(f"{file}: was made from other inputs ({', '.join(differing)}); delete this file")


@lru_cache(maxsize=256)
def _open(file: Path) -> tuple[Any, frozenset[str]]:
    """An open safetensors file, and the names of its tensors."""
    opened = safe_open(file, framework="pt")
    return opened, frozenset(opened.keys())
