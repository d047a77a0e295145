"""Compare the numbers of two result folders: `dreamllm compare A B`.

A and B are results/ of two machines or commits, or results/metrics/NAME of each (the names may differ). Every number of
the metrics gets the first level that it reaches:

    same bytes          value, interval and number of items are the same to the last bit
    same number         they differ by at most 1e-6 of the larger (1e-9 near 0): floating point noise
    within tolerance    the 95 % interval of the difference contains 0. As for claims, its half-width is sqrt(u^2 + l^2)
                        with the upper half-width u of the smaller number and the lower half-width l of the larger one;
                        the two are treated as independent. A number without an interval has half-width 0. Where the
                        runs of --seeds have the number, the bound is wider by their scatter, see `seed_scatter`
    time                a time of the benchmark `latency`: it depends on the machine, and other values are expected
    not                 none of these, or only one side has the number

Numbers that neither side could measure are not counted. Writes the levels as CSV and Markdown; the exit code is 1 if a
number has the level `not`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import stdev
from typing import Any, Literal

from dreamllm.atomic import new_folder
from dreamllm.digests import sha256_of_file
from dreamllm.evaluate import tasks
from dreamllm.evaluate.predictions import open_tensors
from dreamllm.output_paths import folder_to_write
from dreamllm.repro.audit.check_numbers import SAME_NUMBER, flat
from dreamllm.repro.audit.findings import AuditProblem
from dreamllm.repro.audit.study import STUDY
from dreamllm.results.csv_files import csv_text

Level = Literal["same bytes", "same number", "within tolerance", "time", "not"]
LEVELS: tuple[Level, ...] = ("same bytes", "same number", "within tolerance", "time", "not")
NEAR_ZERO = 1e-9
COLUMNS = ["number", "level", "a", "a_low", "a_high", "b", "b_low", "b_high", "difference", "bound", "by", "n_a", "n_b"]
COLUMNS += ["predictions", "note"]
WORST = 20  # differences on the terminal


@dataclass(frozen=True)
class ComparedNumber:
    """A number on both sides with its level.

    bound: the largest difference that the level allows.  by: origin of the bound
    predictions: whether both were computed from the same raw predictions ("same", "other", "" if unknown)
    """

    name: str
    level: Level
    a: Mapping[str, Any]
    b: Mapping[str, Any]
    bound: float | None = None
    by: str = ""
    predictions: str = ""
    note: str = ""

    @property
    def difference(self) -> float | None:
        """b minus a; None if one of them has no value."""
        a, b = self.a.get("value"), self.b.get("value")
        return None if a is None or b is None else float(b) - float(a)


def level(
    a: Mapping[str, Any], b: Mapping[str, Any], scatter: float = 0.0, *, timed: bool = False
) -> tuple[Level, float | None, str]:
    """Level of two numbers {"value", "low", "high", "n"}, the largest difference it allows, and the origin of that.

    scatter: half-width of the difference between two seeds.  timed: it is a time
    Symmetric in the two numbers. {} is a missing number.
    """
    one, other = a.get("value"), b.get("value")
    if one is None or other is None:
        return "not", None, "one side has no number"
    ends = [(float(one), float(other))]
    ends += [(float(a[end]), float(b[end])) for end in ("low", "high") if end in a and end in b]
    same_items = a.get("n") == b.get("n")
    comparable = same_items and ("low" in a) == ("low" in b)
    if comparable and all(x == y for x, y in ends):
        return "same bytes", 0.0, "the same to the last bit"
    noise = max(SAME_NUMBER * max(abs(float(one)), abs(float(other))), NEAR_ZERO)
    if comparable and all(abs(x - y) <= max(SAME_NUMBER * max(abs(x), abs(y)), NEAR_ZERO) for x, y in ends):
        return "same number", noise, f"float noise, {SAME_NUMBER:g} of the larger"
    if timed:
        return "time", None, "depends on the machine"
    pairs = ((float(one), a, b), (float(other), b, a))
    lowest = min(float(one), float(other))  # equal values: the wider of both combinations
    bound = max(math.hypot(_half_width(x, "high"), _half_width(y, "low")) for value, x, y in pairs if value == lowest)
    bound, by = math.hypot(bound, scatter), "interval of the difference" + (" and scatter of seeds" if scatter else "")
    if abs(float(one) - float(other)) <= max(bound, noise):
        return "within tolerance", max(bound, noise), by
    return "not", bound, by


def seed_scatter(folder: Path) -> dict[str, float]:
    """How far two seeds may be apart: 95 % half-width of their difference, by MODEL/BENCHMARK METRIC.

    It is sqrt(2) s t, with the standard deviation s over the runs in FOLDER/metrics and Student's t for their number;
    numbers that fewer than two runs have are left out. {} without the folder. Raises AuditProblem as `read`.
    """
    from scipy import stats

    if not (folder / "metrics").is_dir():
        return {}
    values: dict[str, list[float]] = {}
    for source, content in read(folder).items():
        for name, number in flat(content).items():
            if number.get("value") is not None:
                values.setdefault(f"{source.partition('/')[2]} {name}", []).append(float(number["value"]))
    return {
        name: math.sqrt(2) * stdev(of_runs) * float(stats.t.ppf(0.975, len(of_runs) - 1))
        for name, of_runs in values.items()
        if len(of_runs) > 1
    }


def _half_width(number: Mapping[str, Any], end: str) -> float:
    """Half-width of the number's interval at one end; 0 without an interval."""
    other = number.get(end)
    return 0.0 if other is None else abs(float(number["value"]) - float(other))


def compare(
    a: Mapping[str, dict[str, Any]], b: Mapping[str, dict[str, Any]], scatter: Mapping[str, float] | None = None
) -> list[ComparedNumber]:
    """Every number of two sets of metrics files by EXPERIMENT/MODEL/BENCHMARK, sorted by name.

    scatter: of seeds, as `seed_scatter` gives it
    """
    compared = []
    for source in sorted(a.keys() | b.keys()):
        left, right = a.get(source, {}), b.get(source, {})
        numbers = flat(left), flat(right)
        benchmark = source.rpartition("/")[2]
        timed = benchmark in tasks.NAMES and tasks.about(benchmark).timed
        predictions = _predictions(left, right)
        note = _differing_protocol(left, right) if left and right else ""
        for name in sorted(numbers[0].keys() | numbers[1].keys()):
            one, other = (of.get(name) or {} for of in numbers)
            if one.get("value") is None and other.get("value") is None:
                continue
            seeds = (scatter or {}).get(f"{'/'.join(source.split('/')[-2:])} {name}", 0.0)
            found, bound, by = level(one, other, seeds, timed=timed)
            words = note or _missing(one, other)
            if not words and one.get("n") != other.get("n"):
                words = "numbers of items differ"
            compared.append(ComparedNumber(f"{source} {name}", found, one, other, bound, by, predictions, words))
    return compared


def _missing(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    for side, number in (("A", one), ("B", other)):
        if number.get("value") is None:
            return f"not in {side}" + (f": {number['reason']}" if number.get("reason") else "")
    return ""


def _differing_protocol(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    settings, precisions = (
        [content.get("protocol", {}).get(key) for content in (a, b)] for key in ("settings", "precision")
    )
    if a.get("split") != b.get("split") or settings[0] != settings[1]:
        return "settings differ"
    known = None not in precisions  # results of older versions do not say
    return f"precision differs: {precisions[0]}, {precisions[1]}" if known and precisions[0] != precisions[1] else ""


def _predictions(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """Whether two metrics have the same raw predictions: "same", "other", or "" if one side is missing."""
    digests = [content.get("answers") for content in (a, b)]
    return "" if None in digests else "same" if digests[0] == digests[1] else "other"


# ---- reading ---------------------------------------------------------------------------------------------------------


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Metrics files of a result folder by NAME/MODEL/BENCHMARK, or of results/metrics/NAME by MODEL/BENCHMARK.

    Each has the key `answers` with the digest of its raw predictions without their header (which names commit and
    versions), or None without a prediction file. Raises AuditProblem for a folder without metrics and for a malformed
    file, and BenchmarkProblem for damaged attention maps.
    """
    whole = path / "metrics"
    folders = sorted(one for one in whole.iterdir() if one.is_dir()) if whole.is_dir() else [path]
    found: dict[str, dict[str, Any]] = {}
    for folder in folders:
        before = f"{folder.name}/" if whole.is_dir() else ""
        for file in sorted(folder.rglob("*.json")) if folder.is_dir() else []:
            try:
                content = json.loads(file.read_text(encoding="utf-8"))
                source = f"{content['model']}/{content['benchmark']}"
                flat(content)
            except (ValueError, KeyError, TypeError) as error:
                raise AuditProblem(f"{file}: is not a metrics file ({type(error).__name__}: {error})") from None
            predictions = folder.parent.parent / "predictions" / folder.name / content["model"]
            found[before + source] = content | {"answers": answers(predictions, content["benchmark"])}
    if not found:
        raise AuditProblem(f"{path}: no metrics; give results/ of a checkout, or results/metrics/NAME")
    return found


def answers(folder: Path, benchmark: str) -> str | None:
    """Digest of a model's raw predictions on a benchmark without their header; None if there are none.

    Raises AuditProblem for a damaged archive, BenchmarkProblem for a damaged safetensors file.
    """
    digest = hashlib.sha256()
    if (lines := folder / f"{benchmark}.jsonl").is_file():
        with lines.open("rb") as file:
            file.readline()
            for line in file:
                digest.update(line)
        return digest.hexdigest()
    if (maps := folder / f"{benchmark}.safetensors").is_file():
        with open_tensors(maps) as file:  # the header is metadata, which is left out
            for name in sorted(file.keys()):
                tensor = file.get_tensor(name)
                digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode() + tensor.tobytes())
        return digest.hexdigest()
    if not (pictures := folder / f"{benchmark}.tar").is_file():
        return None
    try:
        with tarfile.open(pictures, "r:") as archive:
            for member in archive:
                content = archive.extractfile(member)
                if content is None:
                    continue
                if member.name == "index.jsonl":
                    content.readline()
                digest.update(member.name.encode() + b"\0" + content.read())
    except tarfile.TarError as error:
        raise AuditProblem(f"{pictures}: is not a complete tar archive ({error})") from None
    return digest.hexdigest()


def tensors(a: Path, b: Path) -> list[tuple[str, str]]:
    """The files of trained tensors in both result folders, each "same" (bytes) or "other"."""
    names = [
        {file.relative_to(folder).as_posix() for file in (folder / "checkpoints").rglob("*.safetensors")}
        for folder in (a, b)
    ]
    return [
        (name, "same" if sha256_of_file(a / name) == sha256_of_file(b / name) else "other")
        for name in sorted(names[0] & names[1])
    ]


# ---- writing ---------------------------------------------------------------------------------------------------------


def to_csv(compared: Sequence[ComparedNumber]) -> str:
    """One number per line, in full precision."""
    lines = []
    for one in compared:
        sides = [side.get(key) for side in (one.a, one.b) for key in ("value", "low", "high")]
        items = [one.a.get("n"), one.b.get("n")]
        lines.append(
            [one.name, one.level, *sides, one.difference, one.bound, one.by, *items, one.predictions, one.note]
        )
    return csv_text(lines, COLUMNS)


def to_markdown(compared: Sequence[ComparedNumber], a: Path, b: Path, same: Sequence[tuple[str, str]]) -> str:
    """Counts, the meaning of the levels, and every number that is not identical."""
    text = ["# Two result folders compared", "", f"A: `{a}`. B: `{b}`. Written by `dreamllm compare`.", ""]
    counts = Counter(one.level for one in compared)
    text += ["| level | numbers |", "|---|--:|", *(f"| {name} | {counts[name]} |" for name in LEVELS), ""]
    if same:
        equal = sum(1 for _, word in same if word == "same")
        text += [f"Files of trained tensors with the same bytes: {equal} of {len(same)} that both have.", ""]
    text += [
        f"*Same bytes*: identical to the last bit. *Same number*: within {SAME_NUMBER:g} of the larger (floating point",
        "noise). *Within tolerance*: the 95 % interval of the difference contains 0; it is computed from the intervals",
        "of both numbers, treated as independent, and where known from the scatter between seeds. *Time*: depends on",
        "the machine. *Not*: none of these.",
        "",
    ]
    different = [one for one in compared if one.level != "same bytes"]
    if not different:
        return "\n".join([*text, "All numbers are the same bytes.", ""])
    text += ["| number | level | A | B | difference | bound | predictions | note |"]
    text += ["|---|---|--:|--:|--:|--:|---|---|"]
    for one in sorted(different, key=lambda one: (-LEVELS.index(one.level), one.name)):
        cells = [one.name, one.level, *_short(one), one.predictions or "–", one.note.replace("|", r"\|") or "–"]
        text.append(f"| {' | '.join(cells)} |")
    return "\n".join([*text, ""])


def _short(one: ComparedNumber) -> list[str]:
    """A, B, difference and bound with six digits."""
    numbers = (one.a.get("value"), one.b.get("value"), one.difference, one.bound)
    return ["–" if number is None else f"{number:.6g}" for number in numbers]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm compare`."""
    parser.add_argument("a", type=Path, metavar="A", help="results/ of one machine or commit, or results/metrics/NAME")
    parser.add_argument("b", type=Path, metavar="B", help="the same of the other side")
    words = "results with several seeds, from which the scatter between seeds is known (%(default)s)"
    parser.add_argument("--seeds", type=Path, default=STUDY, metavar="FOLDER", help=words)
    parser.add_argument(
        "--out", type=folder_to_write, help="folder for levels.csv and levels.md; an old one is replaced"
    )


def main(args: argparse.Namespace) -> None:
    """Print counts and differences, write the levels of all numbers; exit with 1 if a number is not reproduced."""
    compared = compare(read(args.a), read(args.b), seed_scatter(args.seeds))
    same = tensors(args.a, args.b)
    counts = Counter(one.level for one in compared)
    print(f"{len(compared)} numbers: " + ", ".join(f"{counts[name]} {name}" for name in LEVELS))
    if same:
        equal = sum(1 for _, word in same if word == "same")
        print(f"{equal} of {len(same)} files of trained tensors are the same bytes")
    different = sorted((one for one in compared if one.level != "same bytes"), key=lambda o: -LEVELS.index(o.level))
    width = max((len(one.name) for one in different[:WORST]), default=0)
    for one in different[:WORST]:
        a, b, difference, bound = _short(one)
        note = f"  {one.note}" if one.note else ""
        print(f"  {one.level:<16}  {one.name:<{width}}  {a} | {b}  difference {difference}, bound {bound}{note}")
    if len(different) > WORST:
        where = f" in {args.out}/levels.md" if args.out else "; --out writes all"
        print(f"  and {len(different) - WORST} more{where}")
    if args.out:
        with new_folder(args.out) as folder:
            (folder / "levels.csv").write_text(to_csv(compared), encoding="utf-8")
            (folder / "levels.md").write_text(to_markdown(compared, args.a, args.b, same), encoding="utf-8")
    if counts["not"]:
        sys.exit(1)
