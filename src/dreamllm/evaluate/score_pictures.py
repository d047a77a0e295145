"""Compute FID and CLIP score of generated images by several rules of selection: `dreamllm score-pictures`.

Reads the files of `dreamllm features`, one per sample. Metrics, for NETWORK paper and clean (or clip):

    fid_NETWORK_RULE          FID of the images that the rule selects (selection.py)
    fid_NETWORK_seeds         mean over the samples of the FID of each sample by itself, with Student's interval
    fid_NETWORK_seeds_std     their standard deviation
    clip_score_RULE, clip_score_seeds, clip_score_seeds_std     100 times the cosine of picture and prompt

The number of the paper's Table 2 for COCO is fid_paper_best_any, for LN-COCO fid_paper_first; clean-fid's way is
fid_clean_first. The interval of a FID covers the choice of prompts, that over seeds the choice of seeds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from dreamllm.atomic import new_file
from dreamllm.digests import sha256_of_file
from dreamllm.evaluate import selection
from dreamllm.evaluate.features import FeatureFile, read_features
from dreamllm.evaluate.files import BenchmarkProblem
from dreamllm.evaluate.metrics import fid
from dreamllm.evaluate.metrics.intervals import mean_bootstrap, measurement, undefined
from dreamllm.output_paths import file_to_write

LIBRARIES = ("numpy", "scipy", "torch", "torchvision", "transformers", "clean-fid")
MUST_AGREE = ("model", "benchmark", "split", "limit", "ids", "networks", "clip", "protocol")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm score-pictures`."""
    parser.add_argument(
        "--features", required=True, nargs="+", type=Path, help="features of generated images, a file per sample"
    )
    parser.add_argument(
        "--statistics", required=True, type=Path, help="statistics of the real images, by the same networks"
    )
    parser.add_argument("--out", required=True, type=file_to_write, help="metrics file to write (JSON)")


def main(args: argparse.Namespace) -> None:
    """Score the samples of one model on one benchmark and write the metrics file."""
    result = score([read_features(path) for path in args.features], read_features(args.statistics))
    with new_file(args.out) as file:
        file.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def score(samples: Sequence[FeatureFile], real: FeatureFile) -> dict[str, Any]:
    """All metrics of the samples of one model, ready for JSON.

    Raises BenchmarkProblem when the files have different items, an item has the same seed twice, or the statistics
    of the real images come from other networks.
    """
    samples = sorted(samples, key=lambda sample: sample.about["sample"])
    _check(samples, real)
    about = samples[0].about
    metrics: dict[str, dict[str, Any]] = {}
    by_sample: dict[str, list[float | None]] = {}
    selected = {
        rule: choose(np.stack([sample.arrays[scores] for sample in samples]))
        for rule, (scores, choose) in selection.RULES.items()
    }
    for network in about["networks"]:
        statistics = real.arrays[f"{network}.mean"], real.arrays[f"{network}.covariance"], real.about["n"]
        features = np.stack([sample.arrays[network] for sample in samples])  # (S, N, D)
        per_sample = [fid.score(drawn, *statistics) for drawn in features]
        for rule, numbers in selected.items():
            metrics[f"fid_{network}_{rule}"] = (
                per_sample[0] if rule == "first" else fid.score(selection.take(features, numbers), *statistics)
            )
        by_sample[f"fid_{network}"] = [measured["value"] for measured in per_sample]
        metrics |= spread(f"fid_{network}_seeds", per_sample)
    cosines = np.stack([sample.arrays["clip_prompt"] for sample in samples])  # (S, N)
    per_sample = [mean_bootstrap(100 * values) for values in cosines]
    for rule, numbers in selected.items():
        metrics[f"clip_score_{rule}"] = mean_bootstrap(100 * selection.take(cosines, numbers))
    by_sample["clip_score"] = [measured["value"] for measured in per_sample]
    metrics |= spread("clip_score_seeds", per_sample)
    protocol = about["protocol"] | {
        "n": len(about["ids"]),
        "limit": about["limit"],
        "samples": len(samples),
        "real_pictures": real.about["n"],
        "prompts_cut_by_clip": about["prompts_cut_by_clip"],
        "networks": about["networks"],
        "clip": about["clip"],
        "scorer": {name: version(name) for name in LIBRARIES},
        "inputs": {file.path.name: sha256_of_file(file.path) for file in (*samples, real)},
    }
    name = f"{about['benchmark']}_pictures"
    return {
        "model": about["model"],
        "benchmark": name,
        "split": about["split"],
        "metrics": metrics,
        "groups": {},
        "samples": by_sample,
        "protocol": protocol,
    }


def spread(name: str, per_sample: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean and standard deviation over samples, with 95 % intervals for normally distributed values.

    per_sample: the measurement of each sample; n is the number of samples
    """
    values = np.array([measured["value"] for measured in per_sample], dtype=np.float64)  # None becomes NaN
    reason = next((measured["reason"] for measured in per_sample if measured["value"] is None), "")
    if len(values) < 2:
        reason = reason or "one sample per prompt has no spread"
    if reason:
        return {name: undefined(reason), f"{name}_std": undefined(reason)}
    n, mean, std = len(values), float(values.mean()), float(values.std(ddof=1))
    from scipy import stats  # only when it is needed: it takes half a second

    half = float(stats.t.ppf(0.975, n - 1)) * std / n**0.5
    low, high = (std * ((n - 1) / stats.chi2.ppf(share, n - 1)) ** 0.5 for share in (0.975, 0.025))
    return {name: measurement(mean, n, mean - half, mean + half), f"{name}_std": measurement(std, n, low, high)}


def _check(samples: Sequence[FeatureFile], real: FeatureFile) -> None:
    first = samples[0]
    for number, sample in enumerate(samples):
        if "ids" not in sample.about:
            raise BenchmarkProblem(sample.path, "", "holds statistics of real pictures, not features of drawn ones")
        for key in MUST_AGREE:
            if sample.about.get(key) != first.about.get(key):
                raise BenchmarkProblem(sample.path, key, f"is not the same as in {first.path}")
        if sample.about["sample"] != number:
            raise BenchmarkProblem(sample.path, "", f"is sample {sample.about['sample']}, sample {number} is missing")
        for earlier in samples[:number]:
            if (same := np.flatnonzero(sample.arrays["seeds"] == earlier.arrays["seeds"])).size:
                item = first.about["ids"][int(same[0])]
                raise BenchmarkProblem(sample.path, f"item {item}", f"has the same seed as in {earlier.path}")
    if "n" not in real.about:
        raise BenchmarkProblem(real.path, "", "holds features of drawn pictures, not statistics of real ones")
    if real.about["networks"] != first.about["networks"]:
        raise BenchmarkProblem(real.path, "", f"was made with other networks than {first.path}")
