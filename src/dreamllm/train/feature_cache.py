"""What the frozen encoders make of a stage's pictures, computed once (a stage's key `precompute`).

    FOLDER/clip-DIGEST.safetensors   of one shard: CLIP's patch features, a tensor KEY/NUMBER (P, Dv) per picture
    FOLDER/vae-DIGEST.safetensors    of one shard: mean and standard deviation of the VAE's posterior, (2C, h, w)

A picture is the same in every epoch, nothing is augmented, so this changes a training by rounding alone; the latent is
still sampled anew at every step. DIGEST covers all that the tensors depend on, and stands in the file again with its
parts. Files appear whole, shard by shard: a killed training goes on with those that are there, and stages, experiments
and processes share them. They may be deleted at any time.
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
from tqdm import tqdm

from dreamllm import provenance
from dreamllm.atomic import new_file
from dreamllm.data import packing, shards
from dreamllm.data.document import Document, Part, Picture
from dreamllm.data.layout import Mode
from dreamllm.data.packing import Batch, Row
from dreamllm.data.shards import Record
from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration
from dreamllm.model.processor import DreamLLMProcessor
from dreamllm.train import checkpoint, distributed

AT_ONCE = 16  # pictures through an encoder


class EncodedProblem(ValueError):
    """A file of encoded pictures that is not what it should be."""


@dataclass(frozen=True)
class Encoded:
    """Stands in a Document for a picture: where its tensors lie. files: encoder -> file."""

    files: Mapping[str, Path]
    name: str

    def tensor(self, encoder: str) -> torch.Tensor:
        """The picture as one of the encoders sees it."""
        return _opened(self.files[encoder])[0].get_tensor(self.name)


@dataclass(frozen=True)
class Store:
    """The encoded pictures of some shards. files: shard -> encoder -> file."""

    files: Mapping[Path, Mapping[str, Path]]

    def load(self, record: Record) -> Document:
        """In place of `shards.load`: the document with Encoded in place of its pictures, of which none is decoded.

        Raises ShardProblem for a damaged document, EncodedProblem where a picture is missing or its file is damaged.
        """
        files = self.files[record.file]
        document = shards.load(record, decode=False)
        parts: list[Part] = []
        for part in document.parts:
            if isinstance(part, Picture):
                number = sum(isinstance(other, Picture) for other in parts)
                encoded = Encoded(files, f"{record.key}/{number}")
                if missing := [file for file in files.values() if encoded.name not in _opened(file)[1]]:
                    shards.load(record)  # says what is wrong with a damaged document, which has been left out
                    raise EncodedProblem(f"{missing[0]}: has no picture {encoded.name}; delete this file")
                part = Picture(encoded, part.role)  # type: ignore[arg-type]  # in place of the image
            parts.append(part)
        return replace(document, parts=tuple(parts))

    def collate(self, rows: list[Row], processor: DreamLLMProcessor, align: bool = False) -> Batch:
        """In place of `DreamLLMProcessor.collate`, for rows of documents from `load`."""

        def stacked(encoder: str):
            return lambda pictures: torch.stack([picture.tensor(encoder) for picture in pictures])

        batch = packing.collate(rows, processor.vocabulary, stacked("clip"), stacked("vae"), align)
        return replace(
            batch,
            read_pixels=None,
            draw_pixels=None,
            read_features=batch.read_pixels,
            draw_moments=batch.draw_pixels,
            target_pixels=None,
            target_features=batch.target_pixels,
        )


def prepare(
    folder: Path,
    model: DreamLLMForConditionalGeneration,
    processor: DreamLLMProcessor,
    sets: Mapping[str, Sequence[Path]],
    mode: Mode,
    accelerator: Accelerator,
) -> Store:
    """Encode the pictures of all shards that have no file yet, and return them all; the processes share the work.

    mode: that of the stage; where nothing is drawn, the VAE is not needed. (CLIP is, for the user's pictures.)
    Raises ShardProblem for a shard that is damaged as a whole. A damaged document is left out, and is met in training.
    """
    folder.mkdir(parents=True, exist_ok=True)
    encoders = ("clip",) if mode == "comprehension" else ("clip", "vae")
    common = distributed.from_first(accelerator.is_main_process and _dependencies(model, processor, accelerator))
    paths = [path for paths in sets.values() for path in paths]
    digests = distributed.from_first(accelerator.is_main_process and [checkpoint.digest(path) for path in paths])
    files: dict[Path, dict[str, Path]] = {}
    todo: list[tuple[Path, str, Path, dict[str, Any]]] = []
    for path, digest in zip(paths, digests, strict=True):
        for encoder in encoders:
            about = {"shard": digest, **common[encoder]}
            name = f"{encoder}-{sha256(_canonical(about)).hexdigest()[:32]}.safetensors"
            files.setdefault(path, {})[encoder] = folder / name
            todo.append((path, encoder, folder / name, about))
    missing = [job for job in todo if not job[2].exists()]
    mine = missing[accelerator.process_index :: accelerator.num_processes]
    for path, encoder, file, about in tqdm(mine, "encoding pictures", unit="shard", disable=not mine):
        with file.with_name(f".{file.stem}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another training may be at the same shard
            if not file.exists():
                with accelerator.autocast():
                    tensors = encode(path, encoder, model, processor)
                with new_file(file) as temporary:
                    save_file(tensors, temporary, {"about": _canonical(about).decode()})
    accelerator.wait_for_everyone()
    for _, _, file, about in todo:
        _check(file, about)
    return Store(files)


@torch.no_grad()
def encode(
    shard: Path, encoder: str, model: DreamLLMForConditionalGeneration, processor: DreamLLMProcessor
) -> dict[str, torch.Tensor]:
    """All pictures of a shard through an encoder, KEY/NUMBER -> tensor; without those of damaged documents."""
    tensors: dict[str, torch.Tensor] = {}
    waiting: dict[str, Any] = {}

    def run() -> None:
        images = list(waiting.values())
        if encoder == "clip":
            found = model.patch_features(processor.read_pixels(images).to(model.device))
        else:
            found = model.latent_moments(processor.draw_pixels(images).to(model.device))
        tensors.update(zip(waiting, found.cpu(), strict=True))
        waiting.clear()

    for record in shards.index(shard):
        try:
            pictures = shards.load(record).pictures
        except shards.ShardProblem:
            continue
        waiting |= {f"{record.key}/{number}": picture for number, picture in enumerate(pictures)}
        if len(waiting) >= AT_ONCE:
            run()
    if waiting:
        run()
    # safetensors stores neither parts of a batch nor other orders of memory
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}


def _dependencies(
    model: DreamLLMForConditionalGeneration, processor: DreamLLMProcessor, accelerator: Accelerator
) -> dict[str, dict[str, Any]]:
    """All that a tensor depends on besides the shard, as JSON, for each encoder."""
    common = {
        "computed on": f"{accelerator.device.type} {accelerator.mixed_precision}",
        "code": provenance.code_digest(__name__),
        "versions": provenance.versions(),
    }
    clip = {
        "weights": _weights(model.vision_model),
        "config": model.config.vision_config.to_dict(),
        "layer": model.config.vision_feature_layer,
        "pictures": processor.image_processor.to_dict(),
    }
    vae = {"weights": _weights(model.vae), "config": dict(model.config.vae_config), "pictures": processor.draw_size}
    return json.loads(_canonical({"clip": clip | common, "vae": vae | common}))


def _weights(module: torch.nn.Module) -> str:
    """Digest of the tensors that were loaded, from whatever files."""
    digest = sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode()


def _check(file: Path, about: Mapping[str, Any]) -> None:
    """Raises EncodedProblem for a file that was made from something else than `about`, and for a damaged one."""
    try:
        with safe_open(file, framework="pt") as opened:
            found = json.loads((opened.metadata() or {}).get("about", "{}"))
    except (SafetensorError, ValueError) as error:
        raise EncodedProblem(f"{file}: cannot be read ({error}); delete this file") from error
    if differing := sorted(key for key in found.keys() | about.keys() if found.get(key) != about.get(key)):
        raise EncodedProblem(f"{file}: was made from other {', '.join(differing)}; delete this file")


@lru_cache(maxsize=256)
def _opened(file: Path) -> tuple[Any, frozenset[str]]:
    """A file of tensors, and their names."""
    opened = safe_open(file, framework="pt")
    return opened, frozenset(opened.keys())
