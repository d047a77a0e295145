"""Extract image features for FID and CLIP score: `dreamllm features`. Scores are computed from them without the images.

    of generated images NAME.safetensors with, per item of the benchmark and in its order,
                          NETWORK (N, D)   features of each network of `networks.py`
                          clip_prompt (N,)   cosine of picture and prompt in CLIP's space
                          clip_captions (N,)   the largest cosine with any caption of the real picture
                          seeds (N,)
    of real pictures    NETWORK.mean (D,), NETWORK.covariance (D, D), float64: the statistics that FID compares with

Their metadata say under `about` which model, benchmark and networks they belong to.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dreamllm.atomic import new_file
from dreamllm.config.reading import load
from dreamllm.data.damage import parse_json
from dreamllm.digests import digest, sha256_of_file
from dreamllm.evaluate import tasks
from dreamllm.evaluate.files import BenchmarkProblem, Pictures, field, pictures_of
from dreamllm.evaluate.metrics import fid
from dreamllm.evaluate.predictions import Predictions, check_complete, read
from dreamllm.output_paths import file_to_write
from dreamllm.progress import counted

if TYPE_CHECKING:
    from dreamllm.evaluate.networks import Clip, Network

BATCH = 64


@dataclass(frozen=True)
class FeatureFile:
    """A file of features or statistics. about: model, benchmark, networks; arrays: by name."""

    path: Path
    about: dict[str, Any]
    arrays: dict[str, np.ndarray]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm features`."""
    parser.add_argument("--config", required=True, type=Path, help="experiment with the section evaluation.pictures")
    parser.add_argument("--benchmark", required=True, help="one of the emoji world, or of the section `benchmarks`")
    parser.add_argument("--benchmarks", required=True, type=Path, help="folder of the benchmark files")
    parser.add_argument("--predictions", type=Path, help="generated images; without it, statistics of the real images")
    parser.add_argument("--clip", required=True, type=Path, help="folder of the CLIP that embeds images")
    parser.add_argument("--threads", type=int, default=1, help="threads that read and resize images")
    parser.add_argument("--out", required=True, type=file_to_write, help=".safetensors")


def main(args: argparse.Namespace) -> None:
    """Extract features of the images in one prediction file, or statistics of a benchmark's real images."""
    from dreamllm.evaluate import networks

    experiment = load(args.config)
    evaluation, task = experiment.evaluation, experiment.benchmark(args.benchmark).task
    if not tasks.about(task).image_metrics:
        raise BenchmarkProblem(
            args.config, args.benchmark, f"is of the task {task}, which generates no images to measure"
        )
    if evaluation.pictures is None:
        raise BenchmarkProblem(args.config, "evaluation.pictures", "is null; it says how pictures are measured")
    if evaluation.pictures.features == "inception":
        extractors = networks.inception(Path(evaluation.pictures.inception))
    else:
        extractors = [networks.clip_network(args.clip)]
    if args.predictions:
        predictions = read(args.predictions)
        items = tasks.load(task, args.benchmarks, predictions.header["split"], predictions.header.get("limit"))
        about, arrays = generated_features(
            predictions, args.benchmark, items, extractors, networks.Clip(args.clip), args.threads
        )
        about["clip"] = digest(args.clip)
    else:
        items = tasks.load(task, args.benchmarks, evaluation.split, evaluation.limit)
        pictures = pictures_of(args.benchmarks, evaluation.split)
        about, arrays = real_statistics(items, pictures, extractors, args.threads)
        about |= {"benchmark": args.benchmark, "split": evaluation.split}
    write_features(args.out, about, arrays)


def generated_features(
    predictions: Predictions,
    benchmark: str,
    items: Sequence[Any],
    extractors: Sequence[Network],
    clip: Clip,
    threads: int = 1,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Features, CLIP cosines and seeds of generated images, one per item.

    Raises BenchmarkProblem when there is not exactly one image per item, when an image was generated from another
    prompt than its item's (in the official code images and captions do not match: each of its seeds shuffles the
    captions anew), and when features are not finite.
    """
    if predictions.header["benchmark"] != benchmark:
        raise BenchmarkProblem(
            predictions.path, "header", f"is for {predictions.header['benchmark']!r}, not for {benchmark!r}"
        )
    check_complete(predictions, [item.id for item in items])
    for item in items:
        if (prompt := predictions.get(item.id, "prompt", str)) != item.prompt:
            raise BenchmarkProblem(
                predictions.path, f"item {item.id}", f"was drawn for {prompt!r}, not for {item.prompt!r}"
            )
    names = [predictions.get(item.id, "image", str) for item in items]
    places = [f"item {item.id}" for item in items]
    arrays: dict[str, list[np.ndarray]] = {name: [] for name in (*(n.name for n in extractors), "prompt", "captions")}

    def load_picture(number: int) -> Image.Image:
        return predictions.image(names[number], places[number])

    for start, pictures, found in _feature_batches(load_picture, len(items), extractors, threads):
        for name, values in found.items():
            arrays[name].append(values)
        embedded = clip.embed_pictures(pictures)  # (B, D)
        for picture, item in zip(embedded, items[start : start + len(pictures)], strict=True):
            cosines = clip.embed_texts([item.prompt, *_captions(item)]) @ picture
            arrays["prompt"].append(cosines[:1])
            arrays["captions"].append(cosines[1:].max(keepdims=True))
    whole = {name: np.concatenate(values) for name, values in arrays.items()}
    for name, values in whole.items():
        if (number := _first_not_finite(values)) is not None:
            raise BenchmarkProblem(
                predictions.path, f"item {items[number].id}", f"its features for {name} are not finite"
            )
    about = {
        **{key: predictions.header.get(key) for key in ("model", "benchmark", "split", "limit", "sample")},
        "ids": [item.id for item in items],
        "networks": {network.name: network.weights for network in extractors},
        "predictions": sha256_of_file(predictions.path),
        "protocol": predictions.header.get("protocol", {}),
        "prompts_cut_by_clip": sum(clip.too_long(item.prompt) for item in items),
    }
    whole["clip_prompt"], whole["clip_captions"] = whole.pop("prompt"), whole.pop("captions")
    whole["seeds"] = np.array([predictions.get(item.id, "seed", int) for item in items], dtype=np.int64)
    return about, whole


def real_statistics(
    items: Sequence[Any], pictures: Pictures, extractors: Sequence[Network], threads: int = 1
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Mean and covariance of the features of the real pictures that the items name, each counted once.

    Raises BenchmarkProblem for features that are not finite and for fewer than two pictures.
    """
    names = list(dict.fromkeys(item.picture for item in items))  # several prompts may share a picture
    statistics = {}
    for name, values in extract(lambda number: pictures.read(names[number]), len(names), extractors, threads).items():
        if (number := _first_not_finite(values)) is not None:
            raise BenchmarkProblem(pictures.path, f"picture {names[number]}", f"its features for {name} are not finite")
        try:
            statistics[f"{name}.mean"], statistics[f"{name}.covariance"] = fid.gaussian(values)
        except ValueError as error:
            raise BenchmarkProblem(pictures.path, "", str(error)) from None
    return {"networks": {network.name: network.weights for network in extractors}, "n": len(names)}, statistics


def extract(
    load_picture: Callable[[int], Image.Image], count: int, extractors: Sequence[Network], threads: int = 1
) -> dict[str, np.ndarray]:
    """Features (count, D), float32, by network, of the pictures load_picture(0) ... load_picture(count - 1)."""
    arrays: dict[str, list[np.ndarray]] = {network.name: [] for network in extractors}
    for _, _, found in _feature_batches(load_picture, count, extractors, threads):
        for name, values in found.items():
            arrays[name].append(values)
    return {name: np.concatenate(values) for name, values in arrays.items()}


def _first_not_finite(values: np.ndarray) -> int | None:
    """Number of the first picture whose values (N, ...) hold NaN or infinity; None when all are finite."""
    bad = np.argwhere(~np.isfinite(values))
    return int(bad[0][0]) if len(bad) else None


def _captions(item: Any) -> Sequence[str]:
    """All captions of an item's real image if the benchmark has them; else its prompt."""
    return getattr(item, "captions", ()) or (item.prompt,)


def _feature_batches(
    load_picture: Callable[[int], Image.Image], count: int, extractors: Sequence[Network], threads: int
) -> Iterator[tuple[int, list[Image.Image], dict[str, np.ndarray]]]:
    """Batches of pictures 0 .. count - 1: number of the first, pictures, features (B, D) by network."""
    with ThreadPoolExecutor(threads) as pool:  # threads, since a zip file cannot be read in forked processes
        for number in counted("features", math.ceil(count / BATCH), "batch"):
            start = number * BATCH
            pictures = list(pool.map(load_picture, range(start, min(start + BATCH, count))))
            yield (
                start,
                pictures,
                {network.name: network.features(list(pool.map(network.prepare, pictures))) for network in extractors},
            )


# ---- files ---------------------------------------------------------------------------------------------------------


def write_features(path: Path, about: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write a features file; the same content always gives the same bytes."""
    from safetensors.numpy import save

    with new_file(path) as file:
        contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        file.write_bytes(save(contiguous, metadata={"about": json.dumps(about, sort_keys=True)}))


def read_features(path: Path) -> FeatureFile:
    """Read a features file. Raises BenchmarkProblem when it is missing, damaged or something else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            about = parse_json((file.metadata() or {})["about"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise BenchmarkProblem(path, "", "no such file") from None
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise BenchmarkProblem(path, "", f"is no features file of `dreamllm features` ({error})") from None
    _check_features(path, about, arrays)
    return FeatureFile(path, about, arrays)


def _check_features(path: Path, about: Any, arrays: dict[str, np.ndarray]) -> None:
    """Raises BenchmarkProblem for a features file that lacks something, with other shapes, or with NaN or infinity."""
    networks = field(about, "networks", dict, path, "about")
    if "ids" in about:  # of generated images
        count = len(field(about, "ids", list, path, "about"))
        for key, kind in (("benchmark", str), ("sample", int), ("protocol", dict)):
            field(about, key, kind, path, "about")
        wanted = dict.fromkeys(("clip_prompt", "clip_captions", "seeds"), 1) | dict.fromkeys(networks, 2)
    else:
        count = 0
        field(about, "n", int, path, "about")
        wanted = {f"{name}.{kind}": axes for name in networks for kind, axes in (("mean", 1), ("covariance", 2))}
    for name, axes in wanted.items():
        if name not in arrays:
            raise BenchmarkProblem(path, name, f"is missing; the file has {', '.join(arrays) or 'nothing'}")
        if arrays[name].ndim != axes or (count and len(arrays[name]) != count):
            raise BenchmarkProblem(path, name, f"has shape {arrays[name].shape}, which does not fit its {count} items")
        if not np.isfinite(arrays[name]).all():
            raise BenchmarkProblem(path, name, "holds NaN or infinite values; run `dreamllm features` again")
