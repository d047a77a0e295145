"""Looks at pictures once: `dreamllm features`. It stores what FID and CLIP score need, so that none is drawn again.

    of drawn pictures   NAME.safetensors with, per item of the benchmark and in its order,
                          NETWORK (N, D)   features of each network of `networks.py`
                          clip_prompt (N,)   cosine of picture and prompt in CLIP's space
                          clip_captions (N,)   the largest cosine with any caption of the real picture
                          seeds (N,)
    of real pictures    NETWORK.mean (D,), NETWORK.covariance (D, D), float64: the statistics that FID compares with

Both say in their metadata, under `about`, what they are of.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dreamllm.atomic import new_file
from dreamllm.config.reading import load
from dreamllm.digests import digest, sha256_of_file
from dreamllm.evaluate import tasks
from dreamllm.evaluate.files import BenchmarkProblem, Pictures, pictures_of
from dreamllm.evaluate.metrics import fid
from dreamllm.evaluate.predictions import Predictions, check_complete, read

if TYPE_CHECKING:
    from dreamllm.evaluate.networks import Clip, Network

BATCH = 64


@dataclass(frozen=True)
class Stored:
    """A file of features or statistics: arrays by name, and what they are of."""

    path: Path
    about: dict[str, Any]
    arrays: dict[str, np.ndarray]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm features`."""
    parser.add_argument("--config", required=True, type=Path, help="experiment with the section evaluation.pictures")
    parser.add_argument("--benchmark", required=True, help="one of the emoji world, or of the section `benchmarks`")
    parser.add_argument("--benchmarks", required=True, type=Path, help="folder of the benchmark files")
    parser.add_argument("--predictions", type=Path, help="drawn pictures; without it, statistics of the real ones")
    parser.add_argument("--clip", required=True, type=Path, help="folder of the CLIP that looks at pictures")
    parser.add_argument("--threads", type=int, default=1, help="for reading and resizing")
    parser.add_argument("--out", required=True, type=Path, help=".safetensors")


def main(args: argparse.Namespace) -> None:
    """Look at the drawn pictures of one prediction file, or at the real ones of a benchmark."""
    from dreamllm.evaluate import networks

    experiment = load(args.config)
    evaluation, task = experiment.evaluation, experiment.benchmark(args.benchmark).task
    if not tasks.about(task).image_metrics:
        raise BenchmarkProblem(args.config, args.benchmark, f"is of the task {task}, which draws no images to measure")
    if evaluation.pictures is None:
        raise BenchmarkProblem(args.config, "evaluation.pictures", "is null; it says how pictures are measured")
    if evaluation.pictures.features == "inception":
        chosen = networks.inception(Path(evaluation.pictures.inception))
    else:
        chosen = [networks.clip_network(args.clip)]
    if args.predictions:
        drawn = read(args.predictions)
        items = tasks.load(task, args.benchmarks, drawn.header["split"], drawn.header.get("limit"))
        about, arrays = of_drawn(drawn, args.benchmark, items, chosen, networks.Clip(args.clip), args.threads)
        about["clip"] = digest(args.clip)
    else:
        items = tasks.load(task, args.benchmarks, evaluation.split, evaluation.limit)
        shown = pictures_of(args.benchmarks, evaluation.split)
        about, arrays = of_real(items, shown, chosen, args.threads)
        about |= {"benchmark": args.benchmark, "split": evaluation.split}
    store(args.out, about, arrays)


def of_drawn(
    drawn: Predictions, benchmark: str, items: Sequence[Any], chosen: Sequence[Network], clip: Clip, threads: int = 1
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Features, CLIP's cosines and seeds of drawn pictures, one per item.

    Raises BenchmarkProblem when there is not exactly one picture per item, when a picture was drawn for another prompt
    than its item's, or when features are not finite: pictures and captions that do not belong together give a number,
    too, but not this one (in the official code they do not: each of its seeds shuffles the captions anew).
    """
    if drawn.header["benchmark"] != benchmark:
        raise BenchmarkProblem(drawn.path, "header", f"is for {drawn.header['benchmark']!r}, not for {benchmark!r}")
    check_complete(drawn, [item.id for item in items])
    for item in items:
        if (prompt := drawn.get(item.id, "prompt", str)) != item.prompt:
            raise BenchmarkProblem(drawn.path, f"item {item.id}", f"was drawn for {prompt!r}, not for {item.prompt!r}")
    names = [drawn.get(item.id, "image", str) for item in items]
    places = [f"item {item.id}" for item in items]
    arrays: dict[str, list[np.ndarray]] = {name: [] for name in (*(n.name for n in chosen), "prompt", "captions")}

    def shown(number: int) -> Image.Image:
        return drawn.image(names[number], places[number])

    for start, pictures, found in _looks(shown, len(items), chosen, threads):
        for name, values in found.items():
            arrays[name].append(values)
        embedded = clip.embed_pictures(pictures)  # (B, D)
        for picture, item in zip(embedded, items[start : start + len(pictures)], strict=True):
            cosines = clip.embed_texts([item.prompt, *_captions(item)]) @ picture
            arrays["prompt"].append(cosines[:1])
            arrays["captions"].append(cosines[1:].max(keepdims=True))
    whole = {name: np.concatenate(values) for name, values in arrays.items()}
    for name, values in whole.items():
        if not np.isfinite(values).all():
            item = items[int(np.argwhere(~np.isfinite(values))[0][0])]
            raise BenchmarkProblem(drawn.path, f"item {item.id}", f"its features for {name} are not finite")
    about = {
        **{key: drawn.header.get(key) for key in ("model", "benchmark", "split", "limit", "sample")},
        "ids": [item.id for item in items],
        "networks": {network.name: network.weights for network in chosen},
        "predictions": sha256_of_file(drawn.path),
        "protocol": drawn.header.get("protocol", {}),
        "prompts_cut_by_clip": sum(clip.too_long(item.prompt) for item in items),
    }
    whole["clip_prompt"], whole["clip_captions"] = whole.pop("prompt"), whole.pop("captions")
    whole["seeds"] = np.array([drawn.get(item.id, "seed", int) for item in items], dtype=np.int64)
    return about, whole


def of_real(
    items: Sequence[Any], shown: Pictures, chosen: Sequence[Network], threads: int = 1
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Mean and covariance of the features of the real pictures that the items name, each counted once.

    Raises BenchmarkProblem for features that are not finite and for fewer than two pictures.
    """
    names = list(dict.fromkeys(item.picture for item in items))  # several prompts may share a picture
    statistics = {}
    for name, values in extract(lambda number: shown.read(names[number]), len(names), chosen, threads).items():
        if not np.isfinite(values).all():
            name_of = names[int(np.argwhere(~np.isfinite(values))[0][0])]
            raise BenchmarkProblem(shown.path, f"picture {name_of}", f"its features for {name} are not finite")
        try:
            statistics[f"{name}.mean"], statistics[f"{name}.covariance"] = fid.gaussian(values)
        except ValueError as error:
            raise BenchmarkProblem(shown.path, "", str(error)) from None
    return {"networks": {network.name: network.weights for network in chosen}, "n": len(names)}, statistics


def extract(
    shown: Callable[[int], Image.Image], count: int, chosen: Sequence[Network], threads: int = 1
) -> dict[str, np.ndarray]:
    """Features (count, D), float32, by network, of the pictures shown(0) ... shown(count - 1)."""
    arrays: dict[str, list[np.ndarray]] = {network.name: [] for network in chosen}
    for _, _, found in _looks(shown, count, chosen, threads):
        for name, values in found.items():
            arrays[name].append(values)
    return {name: np.concatenate(values) for name, values in arrays.items()}


def _captions(item: Any) -> Sequence[str]:
    """All captions of an item's real picture, as far as the benchmark tells them; else its prompt."""
    return getattr(item, "captions", ()) or (item.prompt,)


def _looks(
    shown: Callable[[int], Image.Image], count: int, chosen: Sequence[Network], threads: int
) -> Iterator[tuple[int, list[Image.Image], dict[str, np.ndarray]]]:
    """Batches of pictures 0 .. count - 1: number of the first, pictures, features (B, D) by network."""
    from tqdm import tqdm

    with ThreadPoolExecutor(threads) as pool:  # threads, since a zip file cannot be read in forked processes
        for start in tqdm(range(0, count, BATCH), desc="features", unit="batch", mininterval=5):
            pictures = list(pool.map(shown, range(start, min(start + BATCH, count))))
            yield (
                start,
                pictures,
                {network.name: network.features(list(pool.map(network.prepare, pictures))) for network in chosen},
            )


# ---- files ---------------------------------------------------------------------------------------------------------


def store(path: Path, about: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write a features file; the same content always gives the same bytes."""
    from safetensors.numpy import save

    with new_file(path) as file:
        contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        file.write_bytes(save(contiguous, metadata={"about": json.dumps(about, sort_keys=True)}))


def restore(path: Path) -> Stored:
    """Read what `store` wrote. Raises BenchmarkProblem for a file that is missing, damaged or something else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {})["about"])
            return Stored(path, about, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except FileNotFoundError:
        raise BenchmarkProblem(path, "", "no such file") from None
    except (SafetensorError, KeyError, ValueError) as error:
        raise BenchmarkProblem(path, "", f"is no features file of `dreamllm features` ({error})") from None
