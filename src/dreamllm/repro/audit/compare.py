"""How well two result folders agree, said per number: `dreamllm compare A B`.

A and B are results/ of two machines or two commits, or results/metrics/NAME of each, whose names may then differ.
Every number of the metrics gets the first level that it reaches:

    same bytes          value, interval and number of items are the same to the last bit
    same number         they differ by 1e-6 of the larger at most (1e-9 where that is near 0): float noise
    within tolerance    the 95 % interval of the difference reaches 0; it comes from the intervals of the two numbers,
                        taken as independent, as for claims: the root of the sum of the squares of the two half-widths
                        that face each other. A number without an interval has the tolerance 0
    not                 none of these, or only one of the two has the number

A number that neither side could measure is no number and not counted. Times (latency) are of the machine: they have
their level as all others. Writes the levels as CSV and Markdown; exit code 1 when a number is `not`.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import math
import sys
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dreamllm.atomic import new_folder
from dreamllm.digests import sha256_of_file
from dreamllm.evaluate.predictions import open_tensors
from dreamllm.repro.audit.check_numbers import SAME_NUMBER, flat
from dreamllm.repro.audit.findings import AuditProblem

Level = Literal["same bytes", "same number", "within tolerance", "not"]
LEVELS: tuple[Level, ...] = ("same bytes", "same number", "within tolerance", "not")
NEAR_ZERO = 1e-9
COLUMNS = ["number", "level", "a", "a_low", "a_high", "b", "b_low", "b_high", "difference", "bound", "by", "n_a", "n_b"]
COLUMNS += ["predictions", "note"]
WORST = 20  # differences that the terminal and the page show


@dataclass(frozen=True)
class Compared:
    """A number on both sides and its level.

    bound: the largest difference that its level allows.  by: what the bound comes from
    predictions: whether both were made from the same bytes of raw predictions
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
        """b less a, None where one of them has no value."""
        a, b = self.a.get("value"), self.b.get("value")
        return None if a is None or b is None else float(b) - float(a)


def level(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[Level, float | None, str]:
    """Level of two measured numbers {"value", "low", "high", "n"}, the bound that it kept, and what that comes from.

    Does not depend on the order of the two. {} is a number that is not there.
    """
    one, other = a.get("value"), b.get("value")
    if one is None or other is None:
        return "not", None, "one side has no number"
    ends = [(float(one), float(other))]
    ends += [(float(a[end]), float(b[end])) for end in ("low", "high") if end in a and end in b]
    same_items = a.get("n") == b.get("n")
    alike = same_items and ("low" in a) == ("low" in b)
    if alike and all(x == y for x, y in ends):
        return "same bytes", 0.0, "the same to the last bit"
    noise = max(SAME_NUMBER * max(abs(float(one)), abs(float(other))), NEAR_ZERO)
    if alike and all(abs(x - y) <= max(SAME_NUMBER * max(abs(x), abs(y)), NEAR_ZERO) for x, y in ends):
        return "same number", noise, f"float noise, {SAME_NUMBER:g} of the larger"
    pairs = ((float(one), a, b), (float(other), b, a))
    lowest = min(float(one), float(other))  # the sides that face each other; any where the values are equal
    bound = max(math.hypot(_half(x, "high"), _half(y, "low")) for value, x, y in pairs if value == lowest)
    if abs(float(one) - float(other)) <= max(bound, noise):
        return "within tolerance", max(bound, noise), "interval of the difference"
    return "not", bound, "interval of the difference"


def _half(number: Mapping[str, Any], end: str) -> float:
    """Half-width of the number's interval on one side; 0 where it has none."""
    other = number.get(end)
    return 0.0 if other is None else abs(float(number["value"]) - float(other))


def compare(a: Mapping[str, dict[str, Any]], b: Mapping[str, dict[str, Any]]) -> list[Compared]:
    """Every number of two sets of metrics files by EXPERIMENT/MODEL/BENCHMARK, in the order of their names."""
    compared = []
    for source in sorted(a.keys() | b.keys()):
        left, right = a.get(source, {}), b.get(source, {})
        numbers = flat(left), flat(right)
        predictions = _predictions(left, right)
        note = "" if _settings(left) == _settings(right) or not (left and right) else "settings differ"
        for name in sorted(numbers[0].keys() | numbers[1].keys()):
            one, other = (of.get(name) or {} for of in numbers)
            if one.get("value") is None and other.get("value") is None:
                continue
            found, bound, by = level(one, other)
            words = note or _missing(one, other)
            if not words and one.get("n") != other.get("n"):
                words = "numbers of items differ"
            compared.append(Compared(f"{source} {name}", found, one, other, bound, by, predictions, words))
    return compared


def _missing(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    for side, number in (("A", one), ("B", other)):
        if number.get("value") is None:
            return f"not in {side}" + (f": {number['reason']}" if number.get("reason") else "")
    return ""


def _settings(content: Mapping[str, Any]) -> Any:
    return content.get("split"), content.get("protocol", {}).get("settings")


def _predictions(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """same, other, or "" where one side is missing: what the metrics wrote down of the answers they were made from."""
    digests = [content.get("answers") for content in (a, b)]
    return "" if None in digests else "same" if digests[0] == digests[1] else "other"


# ---- reading ---------------------------------------------------------------------------------------------------------


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Metrics files of a result folder, or of results/metrics/NAME, by where they are and what they are of.

    The digest of the raw answers, without their header (it names commit and versions), is added as `answers` where the
    prediction file is there. Raises AuditProblem for a folder without metrics and for a malformed file, and
    BenchmarkProblem for damaged maps of attention.
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
                raise AuditProblem(f"{file}: is no metrics file ({type(error).__name__}: {error})") from None
            predictions = folder.parent.parent / "predictions" / folder.name / content["model"]
            found[before + source] = content | {"answers": answers(predictions, content["benchmark"])}
    if not found:
        raise AuditProblem(f"{path}: no metrics; name results/ of a checkout, or results/metrics/NAME")
    return found


def answers(folder: Path, benchmark: str) -> str | None:
    """Digest of the raw answers of a model to a benchmark, header left out; None where they are not there.

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
        raise AuditProblem(f"{pictures}: is no whole tar archive ({error})") from None
    return digest.hexdigest()


def tensors(a: Path, b: Path) -> list[tuple[str, str]]:
    """Which files of trained tensors, of those in both result folders, have the same bytes: ("same" or "other")."""
    names = [
        {file.relative_to(folder).as_posix() for file in (folder / "checkpoints").rglob("*.safetensors")}
        for folder in (a, b)
    ]
    return [
        (name, "same" if sha256_of_file(a / name) == sha256_of_file(b / name) else "other")
        for name in sorted(names[0] & names[1])
    ]


# ---- writing ---------------------------------------------------------------------------------------------------------


def to_csv(compared: Sequence[Compared]) -> str:
    """One number per line, in full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in compared:
        sides = [side.get(key, "") for side in (one.a, one.b) for key in ("value", "low", "high")]
        sides = ["" if value is None else value for value in sides]
        about = ["" if value is None else value for value in (one.difference, one.bound)]
        items = [one.a.get("n", ""), one.b.get("n", "")]
        writer.writerow([one.name, one.level, *sides, *about, one.by, *items, one.predictions, one.note])
    return text.getvalue()


def to_markdown(compared: Sequence[Compared], a: Path, b: Path, same: Sequence[tuple[str, str]]) -> str:
    """Counts, what the levels mean, and every number that is not the same."""
    text = ["# Two result folders compared", "", f"A: `{a}`. B: `{b}`. Written by `dreamllm compare`.", ""]
    counts = Counter(one.level for one in compared)
    text += ["| level | numbers |", "|---|--:|", *(f"| {name} | {counts[name]} |" for name in LEVELS), ""]
    if same:
        equal = sum(1 for _, word in same if word == "same")
        text += [f"Files of trained tensors with the same bytes: {equal} of {len(same)} that both have.", ""]
    text += [
        f"*Same bytes*: to the last bit. *Same number*: to {SAME_NUMBER:g} of the larger, float noise. *Within",
        "tolerance*: the 95 % interval of the difference, from those of both numbers as independent ones, reaches 0.",
        "*Not*: else.",
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


def _short(one: Compared) -> list[str]:
    """A, B, difference and bound in six digits."""
    numbers = (one.a.get("value"), one.b.get("value"), one.difference, one.bound)
    return ["–" if number is None else f"{number:.6g}" for number in numbers]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm compare`."""
    parser.add_argument("a", type=Path, metavar="A", help="results/ of one machine or commit, or results/metrics/NAME")
    parser.add_argument("b", type=Path, metavar="B", help="the same of the other")
    parser.add_argument("--out", type=Path, help="folder for levels.csv and levels.md; an old one is replaced")


def main(args: argparse.Namespace) -> None:
    """Print counts and differences, write the levels of all numbers, exit with 1 when one is not reproduced."""
    compared = compare(read(args.a), read(args.b))
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
