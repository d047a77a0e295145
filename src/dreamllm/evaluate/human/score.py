"""Compute metrics from human ratings: `dreamllm human-score`.

Reads the key of a page and one file of ratings per person; writes a metrics file like those of `dreamllm score`:

    supported     share of ratings that call a document supported, of the model's and (group "real") of real ones
    difference    real minus the model's
    fleiss_kappa  agreement of all raters beyond chance: 1 is full, 0 none (Fleiss 1971)
    cohen_kappa   the same for two raters, mean over all pairs of them (Cohen 1960)

Intervals are over the choice of documents; they do not cover the choice of raters.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from dreamllm.atomic import new_file
from dreamllm.digests import sha256_of_file
from dreamllm.evaluate.files import BenchmarkProblem, field, keyed, read_json
from dreamllm.evaluate.human.rating_form import GENERATED, REAL, HumanProblem
from dreamllm.evaluate.metrics.intervals import RESAMPLES, SEED, bootstrap, mean_share, measurement, undefined
from dreamllm.output_paths import file_to_write


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm human-score`."""
    parser.add_argument("--key", required=True, type=Path, help="key.json of `dreamllm human-page`")
    parser.add_argument("--judgements", required=True, nargs="+", type=Path, help="files that the raters saved")
    parser.add_argument("--out", required=True, type=file_to_write, help="metrics file to write (JSON)")


def main(args: argparse.Namespace) -> None:
    """Score the ratings and write their metrics file."""
    result = score(args.key, args.judgements)
    with new_file(args.out) as file:
        file.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def score(key_path: Path, paths: Sequence[Path]) -> dict[str, Any]:
    """All metrics, ready for JSON. Raises BenchmarkProblem and HumanProblem as `read_ratings` does."""
    key = read_json(key_path)
    samples = field(key, "samples", dict, key_path, "")
    sources = {id_: field(sample, "source", str, key_path, f"sample {id_}") for id_, sample in samples.items()}
    raters: dict[str, np.ndarray] = {}
    for path in paths:
        rater, supported = read_ratings(path, field(key, "page", str, key_path, ""), list(sources))
        if rater in raters:
            raise HumanProblem(f"{path}: a second file of rater {rater!r}; keep one of the two")
        raters[rater] = supported
    table = np.array(list(raters.values()))  # (raters, samples)
    groups = {
        source: {"supported": mean_share(table[:, [one == source for one in sources.values()]].mean(axis=0))}
        for source in (GENERATED, REAL)
    }
    metrics = {
        "supported": groups[GENERATED]["supported"],
        "difference": _difference(table, [one == REAL for one in sources.values()]),
        "fleiss_kappa": _agreement(fleiss_kappa, table),
        "cohen_kappa": _agreement(mean_cohen_kappa, table),
    }
    by_rater = {f"judge/{name}": {"supported": mean_share(row)} for name, row in raters.items()}
    protocol = {
        "n": len(sources),
        "judges": len(raters),
        "settings": {"judges": len(raters), "samples": len(sources)},
        "scorer": {"numpy": version("numpy")},
        "inputs": {path.name: sha256_of_file(path) for path in (key_path, *paths)} | key.get("inputs", {}),
    }
    about = {name: field(key, name, str, key_path, "") for name in ("model", "split")}
    return about | {"benchmark": "human", "metrics": metrics, "groups": groups | by_rater, "protocol": protocol}


def read_ratings(path: Path, page: str, ids: Sequence[str]) -> tuple[str, np.ndarray]:
    """A rater's code name and ratings (samples,) of 0 and 1, in the order of the key.

    Raises HumanProblem for ratings of another page, and for samples that are missing or not on the page;
    BenchmarkProblem for a malformed file and a sample that is rated twice.
    """
    content = read_json(path)
    of_page = field(content, "page", str, path, "")
    if of_page != page:
        raise HumanProblem(f"{path}: is of page {of_page}, the key is of page {page}; give the key that belongs to it")
    records = []
    for number, record in enumerate(field(content, "judgements", list, path, "")):
        place = f"judgements[{number}]"
        if not isinstance(record, dict):
            raise BenchmarkProblem(path, place, f"expected an object, found {type(record).__name__}")
        id_ = field(record, "sample", str, path, place)
        records.append((id_, field(record, "supported", bool, path, place)))
    rated = keyed(records, path, "sample")
    if unknown := [id_ for id_ in rated if id_ not in set(ids)]:
        raise HumanProblem(f"{path}: sample {unknown[0]} is not on the page")
    if missing := [id_ for id_ in ids if id_ not in rated]:
        words = f"{len(missing)} of {len(ids)} samples are not rated, the first is {missing[0]}"
        raise HumanProblem(f"{path}: {words}; open the page in the same browser, rate them, save again")
    rater = field(content, "rater", str, path, "").strip()
    if not rater:
        raise HumanProblem(f"{path}: the rater has no name; write a code name into the field 'rater'")
    return rater, np.array([rated[id_] for id_ in ids], dtype=np.float64)


def fleiss_kappa(table: np.ndarray) -> float | None:
    """Agreement of raters on yes and no, table (raters, samples) of 0 and 1; None where no disagreement was possible.

    (P - Pe) / (1 - Pe): P is the share of agreeing pairs of raters, Pe that of pairs of ratings drawn at random from
    all (Fleiss 1971).
    """
    raters = len(table)
    yes = table.sum(axis=0)
    agreeing = (yes * (yes - 1) + (raters - yes) * (raters - yes - 1)) / (raters * (raters - 1))
    share = table.mean()
    return _beyond_chance(float(agreeing.mean()), float(share**2 + (1 - share) ** 2))


def mean_cohen_kappa(table: np.ndarray) -> float | None:
    """Cohen's kappa, the mean over all pairs of raters; None where a pair of raters could not disagree."""
    kappas = []
    for one, other in itertools.combinations(table, 2):
        chance = one.mean() * other.mean() + (1 - one.mean()) * (1 - other.mean())
        kappa = _beyond_chance(float((one == other).mean()), float(chance))
        if kappa is None:
            return None
        kappas.append(kappa)
    return float(np.mean(kappas))


def _beyond_chance(agreement: float, chance: float) -> float | None:
    return None if np.isclose(chance, 1) else (agreement - chance) / (1 - chance)


def _agreement(kappa: Any, table: np.ndarray) -> dict[str, Any]:
    """A kappa with its bootstrap interval over documents; resamples without a possible disagreement count as 1."""
    if len(table) < 2:
        return undefined("agreement needs two raters or more")
    value = kappa(table)
    if value is None:
        return undefined("all documents were rated alike: no disagreement was possible")

    def of_samples(chosen: np.ndarray) -> float:
        found = kappa(table[:, chosen])
        return 1.0 if found is None else found

    return measurement(value, table.shape[1], *bootstrap(of_samples, table.shape[1]))


def _difference(table: np.ndarray, is_real: Sequence[bool]) -> dict[str, Any]:
    """Support of real minus support of the model's documents, resampled within each."""
    rates, real = table.mean(axis=0), np.array(is_real)
    parts = rates[real], rates[~real]
    value = float(parts[0].mean() - parts[1].mean())
    if all(np.ptp(part) == 0 for part in parts):
        return measurement(value, len(rates), value, value)
    from scipy import stats  # only when it is needed: it takes half a second

    interval = stats.bootstrap(
        parts,
        lambda one, other, axis: one.mean(axis=axis) - other.mean(axis=axis),
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return measurement(value, len(rates), float(interval.low), float(interval.high))
