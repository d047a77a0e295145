"""Writes the numbers of README.md and of results/study/README.md, between their markers, from committed results.

Usage: python workflow/readme_results.py      (after `make record`; tests/test_docs.py compares them)

README.md is about the default run as recorded (results/recorded), with the scatter between the seeds of results/study.
The study's page is about results/study/tables/claims.csv, and about the questions of paper/questions.yaml.
"""

from __future__ import annotations

import csv
import textwrap
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from statistics import stdev

from dreamllm.config.reading import load
from dreamllm.results import claims
from dreamllm.results.metrics_store import Runs, find, read_runs
from dreamllm.results.table_spec import read_published, read_tables

ROOT = Path(__file__).parent.parent
STUDY = ROOT / "results/study"
RUN = "embedded"
MODELS = {  # column: models, of which the first with a number is shown
    "foundation alone": ("sd", "llm"),
    "after alignment": ("alignment",),
    "after I-GPT": ("igpt",),
    "**final**": ("sft",),
    "only reads": ("comprehension_only",),
    "only generates": ("creation_only",),
}
ROWS = (  # label, benchmark, metric, group, what the number is multiplied by
    ("captions exactly right", "captions", "exact", "", 100),
    ("- held-out object-colour combinations", "captions", "exact", "held_out", 100),
    ("VQA accuracy", "vqa", "accuracy", "", 100),
    ("- is there an object?", "vqa", "accuracy", "type/presence", 100),
    ("- is there an object of this colour?", "vqa", "accuracy", "type/presence_coloured", 100),
    ("- relation: which object?", "vqa", "accuracy", "type/relation", 100),
    ("- relation: yes or no?", "vqa", "accuracy", "type/relation_yes_no", 100),
    ("VQA without the image (control)", "vqa_no_image", "accuracy", "", 100),
    ("VQA with another image (control)", "vqa_other_image", "accuracy", "", 100),
    ("VQA in context: no example", "fewshot", "accuracy", "shots/0", 100),
    ("VQA in context: four examples", "fewshot", "accuracy", "shots/4", 100),
    ("POPE accuracy, random objects", "pope", "accuracy", "random", 100),
    ("POPE accuracy, popular objects", "pope", "accuracy", "popular", 100),
    ("POPE accuracy, adversarial objects", "pope", "accuracy", "adversarial", 100),
    ("text-to-image from captions, scene exactly right", "draw", "all", "", 100),
    ("- one object", "draw", "all", "single", 100),
    ("- a group of one kind", "draw", "all", "group", 100),
    ("- two different objects", "draw", "all", "pair", 100),
    ("text-to-image from human sentences", "draw_human", "all", "", 100),
    ("text-to-image from narratives", "narratives", "all", "", 100),
    ("image from images and a sentence, exactly right", "in_context", "all", "", 100),
    ("images of a story, FID (lower is better)", "illustrations", "fid", "", 1),
    ("images of a free story, exactly right", "stories", "all", "", 100),
    ("`<dream>` where the story has an image", "stories", "placement", "", 100),
    ("language only (PIQA, BoolQ)", "language", "accuracy", "", 100),
)
SYNERGY = (  # tests of C12: first cell, what its difference is, the other arm
    ("table3.joint_learning.vqav2", "VQA accuracy changes by", "reads"),
    ("table3.creation_only_interleaved.ms_coco_fid", "FID improves by", "generates"),
)
EFFECTS = ("smallest_detectable", "expected_effect")


def default_run(recorded: Path = ROOT / "results/recorded", run: str = RUN, study: Path = STUDY) -> str:
    """README's block: the table of a run and the text below it, from its metrics and item scores and the study's."""
    runs, seeds = (read_runs(sorted(one.rglob("*.json"))) for one in (recorded / "metrics" / run, study / "metrics"))
    lines = [f"| per cent, unseen scenes | n | {' | '.join(MODELS)} |", f"|---|--:|{'--:|' * len(MODELS)}"]
    absent: dict[str, list[str]] = {}
    counts = set()
    for label, benchmark, metric, group, scale in ROWS:
        cells, n = [], 0
        for column, models in MODELS.items():
            model = next((one for one in models if find(runs, one, benchmark, metric, group).by_run), "")
            found = find(runs, model, benchmark, metric, group)
            number = f"{found.interval()[0] * scale:.1f}" if model else ""
            number = f"**{number}**" if number and column == "**final**" else number
            values = _of_seeds(seeds, runs, model, benchmark, metric, group)
            if len(values) > 1:
                number += f" ± {stdev(values) * scale:.1f}"
                counts.add(len(values))
            cells.append(number)
            n = max(n, found.n)
        if any(cells):
            lines.append(f"| {label} | {n} | {' | '.join(cells)} |")
        else:
            absent.setdefault(find(runs, "sft", benchmark, metric, group).reason, []).append(label.removeprefix("- "))
    left_out = "; ".join(f"{', '.join(labels)} ({reason})" for reason, labels in absent.items())
    told = [_scatter(counts), _machine(runs), f"Not measured by this run: {left_out}." if absent else ""]
    told.append(_synergy(runs, recorded / "items" / run))
    return "\n\n".join(["\n".join(lines), *(textwrap.fill(one, 118, break_on_hyphens=False) for one in told if one)])


def _of_seeds(seeds: Runs, runs: Runs, model: str, *number: str) -> list[float]:
    """The number in every run of the study; [] where the study lacks it, or has other foundations than the run."""
    key = model, number[0]
    used = {str(of[key]["protocol"].get("foundations")) for of in [*seeds.values(), *runs.values()] if key in of}
    return [one["value"] for one in find(seeds, model, *number).by_run.values()] if len(used) == 1 else []


def _scatter(counts: Collection[int]) -> str:
    """What stands behind ±, and where the study's stages are shorter than the default run's.

    counts: numbers of seeds that the cells have
    """
    if not counts:
        return "No scatter between seeds: results/study lacks these numbers, or has other foundations."
    seeds = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else f"{min(counts)}"
    study, default = (load(one).stages for one in (STUDY / "study.yaml", ROOT / f"config/{RUN}.yaml"))
    shorter: dict[str, list[str]] = {}
    for name in sorted(default.keys() & study.keys()):
        if study[name].steps < default[name].steps:
            shorter.setdefault(f"{study[name].steps} instead of {default[name].steps} in ", []).append(f"`{name}`")
    fewer = "; ".join(steps + ", ".join(names) for steps, names in shorter.items())
    return (
        f"±: standard deviation of the same number over {seeds} seeds (of training and of noise) in results/study; it "
        "is not the interval of the cell. Numbers without it are not in the study, or were measured there with other "
        "foundations."
    ) + (f" The study trains for fewer steps than config/{RUN}.yaml: {fewer}." if fewer else "")


def _machine(runs: Runs) -> str:
    """Processor, threads of a job, cores and precision, as the protocols of the metrics have them."""
    protocols = [metrics["protocol"] for of_run in runs.values() for metrics in of_run.values()]
    made = Counter((one.get("machine", "not recorded"), one.get("precision", "not recorded")) for one in protocols)
    places = [f"{machine}, precision {precision}" for (machine, precision), _ in made.most_common()]
    return f"Machine, as recorded with the predictions (the cores are those that one job used): {'; '.join(places)}."


def _synergy(runs: Runs, items: Path) -> str:
    """What learning both adds to learning one: the tests of claim C12, each as it stands in claims.md."""
    tables, published = read_tables(ROOT / "paper/tables.yaml"), read_published(ROOT / "paper")
    wanted = [claim for claim in claims.read_claims(ROOT / "paper/claims.yaml", tables, published) if claim.id == "C12"]
    numbers = claims.Numbers(tables, published, runs, claims.read_items([items]))
    [synergy] = claims.evaluate_claims(wanted, numbers)
    measured = {one.test.plus[0]: _interval(one.measured) for one in synergy.tests if one.measured}
    changes = [
        f"{how} {measured[cell]} against the arm that only {does}" for cell, how, does in SYNERGY if cell in measured
    ]
    if not changes:
        return ""
    words = f"Does learning both tasks help each (claim C12)? In this one seed {', and '.join(changes)}."
    return f"{words} All claims, one by one: `results/tables/claims.md`."


def _interval(ours: tuple[float, float, float]) -> str:
    value, low, high = (f"{one:.1f}" for one in ours)
    return f"{value} (95 % interval {low} to {high})"


def study() -> str:
    """The study's block: every claim that has numbers, with its status and tests."""
    tables, published = read_tables(ROOT / "paper/tables.yaml"), read_published(ROOT / "paper")
    statements = {one.id: one.statement for one in claims.read_claims(ROOT / "paper/claims.yaml", tables, published)}
    with (STUDY / "tables/claims.csv").open(encoding="utf-8", newline="") as file:
        tests = [line for line in csv.DictReader(file) if line["ours"]]
    lines = ["| claim | | status | tests: difference (interval) outcome | detectable? (smallest; expected) |"]
    lines.append("|---|---|---|---|---|")
    for id_ in dict.fromkeys(test["claim"] for test in tests):
        of_it = [test for test in tests if test["claim"] == id_]
        said = "; ".join(f"{_test(test)} {test['outcome']}" for test in of_it)
        power = "; ".join(_power(test) for test in of_it if test["outcome"] != "holds")
        link = f"[{id_}](tables/claims.md#{id_.lower()})"
        lines.append(f"| {link} | {statements[id_]} | {of_it[0]['status']} | {said} | {power} |")
    return "\n".join(lines)


def questions() -> str:
    """The study's block about other parts: every question, and the difference that each of its tests measured."""
    tables, published = read_tables(ROOT / "paper/tables.yaml"), read_published(ROOT / "paper")
    runs = read_runs(sorted((STUDY / "metrics").glob("*/*/*.json")))
    numbers = claims.Numbers(tables, published, runs, claims.read_items(sorted((STUDY / "items").iterdir())))
    asked = claims.read_claims(ROOT / "paper/questions.yaml", tables, published)
    lines = ["| | is it so? | difference (95 % interval) | outcome | seeds |", "|---|---|---|---|--:|"]
    for result in claims.evaluate_claims(asked, numbers):
        for n, one in enumerate(result.tests):
            head = f"{result.claim.id} | " + ("" if n else f"{result.claim.statement} ")
            what = one.test.plus[0].rpartition(".")[2].replace("_", " ")
            said = "{:.1f} ({:.1f} to {:.1f})".format(*one.measured) if one.measured else one.reason
            lines.append(f"| {head}| {what}: {said} | {one.outcome} | {one.seeds} |")
    return "\n".join(lines)


def _test(test: dict[str, str]) -> str:
    value, low, high = (_short(test[key]) for key in ("ours", "low", "high"))
    return f"{value} ({low} to {high})"


def _power(test: dict[str, str]) -> str:
    """Whether the expected effect is larger than the smallest detectable one, with both."""
    smallest, expected = (f"{float(one):.3g}" if one else "unknown" for one in (test[key] for key in EFFECTS))
    return f"{test['detectable'] or '?'} ({smallest}; {expected})"


def _short(number: str) -> str:
    return f"{float(number):.0f}" if abs(float(number)) >= 100 else f"{float(number):.1f}"


def between_markers(text: str, name: str, content: str | None = None) -> str:
    """What stands between <!-- NAME --> and <!-- /NAME -->, or the whole text with `content` there."""
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, _, rest = text.partition(start)
    old, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"the page has no {start.strip()} ... {end}")
    return old.strip("\n") if content is None else f"{before}{start}\n{content}\n\n{end}{after}"


BLOCKS = (
    (ROOT / "README.md", "results", default_run),
    (STUDY / "README.md", "claims", study),
    (STUDY / "README.md", "questions", questions),
)

if __name__ == "__main__":
    for page, name, content in BLOCKS:
        page.write_text(between_markers(page.read_text(encoding="utf-8"), name, content()), encoding="utf-8")
        print(f"wrote {name} of {page.relative_to(ROOT)}")
