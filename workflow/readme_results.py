"""Writes the numbers of README.md and of results/study/README.md, between their markers, from stored results.

Usage: python workflow/readme_results.py      (after a run was recorded; tests/test_docs.py compares them)

README.md is about the default run (results/metrics/embedded, results/items/embedded) and stays as it is where these are
missing. The study's page is about results/study/tables/claims.csv, which is committed.
"""

from __future__ import annotations

import csv
import textwrap
from pathlib import Path

from dreamllm.results import claims
from dreamllm.results.metrics_store import Runs, find, read_runs
from dreamllm.results.table_spec import read_published, read_tables

ROOT = Path(__file__).parent.parent
RUN = "embedded"
MODELS = {  # column: models, of which the first with a number is shown
    "foundation alone": ("sd", "llm"),
    "after alignment": ("alignment",),
    "after I-GPT": ("igpt",),
    "**final**": ("sft",),
    "only reads": ("comprehension_only",),
    "only generates": ("creation_only",),
}
ROWS = {  # label: benchmark, metric, group, what the number is multiplied by
    "captions exactly right": ("captions", "exact", "", 100),
    "VQA accuracy": ("vqa", "accuracy", "", 100),
    "text-to-image, scene exactly right": ("draw", "all", "", 100),
    "- one object": ("draw", "all", "single", 100),
    "- a group of one kind": ("draw", "all", "group", 100),
    "- two different objects": ("draw", "all", "pair", 100),
    "image from images and a sentence, exactly right": ("in_context", "all", "", 100),
    "images of a story, FID (lower is better)": ("illustrations", "fid", "", 1),
    "`<dream>` where the story has an image": ("stories", "placement", "", 100),
    "language only (PIQA, BoolQ)": ("language", "accuracy", "", 100),
}


def default_run(results: Path = ROOT / "results", run: str = RUN) -> str:
    """README's block: the table and its text, from the metrics and item scores of a run."""
    runs = read_runs(sorted((results / "metrics" / run).rglob("*.json")))
    lines = [f"| per cent, unseen scenes | n | {' | '.join(MODELS)} |", f"|---|--:|{'--:|' * len(MODELS)}"]
    for label, (benchmark, metric, group, scale) in ROWS.items():
        cells, n = [], 0
        for column, models in MODELS.items():
            found = next((one for model in models if (one := find(runs, model, benchmark, metric, group)).by_run), None)
            number = f"{found.interval()[0] * scale:.1f}" if found else ""
            cells.append(f"**{number}**" if number and column == "**final**" else number)
            n = max(n, found.n if found else 0)
        lines.append(f"| {label} | {n} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_limits(runs), "", _synergy(runs, results / "items" / run)])


def _limits(runs: Runs) -> list[str]:
    def share(benchmark: str, metric: str, group: str = "", model: str = "sft") -> str:
        return f"{find(runs, model, benchmark, metric, group).interval()[0] * 100:.1f} %"

    told = [
        f"**Two different objects in one image** come out right in {share('draw', 'all', 'pair')} of the images "
        f"(the foundation: {share('draw', 'all', 'pair', 'sd')}).",
        f"Captions of held-out object-colour combinations are right in {share('captions', 'exact', 'held_out')}, "
        f"of seen ones in {share('captions', 'exact', 'seen')}.",
        f"Questions whether an object is in the image (POPE) are answered right in {share('pope', 'accuracy')}; "
        "chance is 50 %.",
        f"Worked examples in the context do not help: VQA accuracy is {share('fewshot', 'accuracy', 'shots/4')} with "
        f"four, {share('fewshot', 'accuracy', 'shots/0')} without.",
    ]
    bullets = [textwrap.fill(words, 118, initial_indent="- ", subsequent_indent="  ") for words in told]
    return ["Known limits of this run:", "", *bullets]


def _synergy(runs: Runs, items: Path) -> str:
    """What learning both adds to learning one: the tests of claim C12, each as it stands in claims.md."""
    tables, published = read_tables(ROOT / "paper/tables.yaml"), read_published(ROOT / "paper")
    wanted = [claim for claim in claims.read_claims(ROOT / "paper/claims.yaml", tables, published) if claim.id == "C12"]
    numbers = claims.Numbers(tables, published, runs, claims.read_items([items]))
    [synergy] = claims.evaluate_claims(wanted, numbers)
    measured = {one.test.plus[0]: one.measured for one in synergy.tests if one.measured}
    words = (
        "Does learning both tasks help each (claim C12)? In this one seed VQA accuracy changes by "
        f"{_interval(measured['table3.joint_learning.vqav2'])} against the arm that only reads, and FID improves by "
        f"{_interval(measured['table3.creation_only_interleaved.ms_coco_fid'])} against the arm that only generates. "
        "All claims, one by one: `results/tables/claims.md`."
    )
    return textwrap.fill(words, 118, break_on_hyphens=False)


def _interval(ours: tuple[float, float, float]) -> str:
    value, low, high = (f"{one:.1f}" for one in ours)
    return f"{value} (95 % interval {low} to {high})"


def study() -> str:
    """The study's block: every claim that has numbers, with its status and tests."""
    tables, published = read_tables(ROOT / "paper/tables.yaml"), read_published(ROOT / "paper")
    statements = {one.id: one.statement for one in claims.read_claims(ROOT / "paper/claims.yaml", tables, published)}
    with (ROOT / "results/study/tables/claims.csv").open(encoding="utf-8", newline="") as file:
        tests = [line for line in csv.DictReader(file) if line["ours"]]
    lines = ["| claim | | status | tests: difference (interval) outcome |", "|---|---|---|---|"]
    for id_ in dict.fromkeys(test["claim"] for test in tests):
        of_it = [test for test in tests if test["claim"] == id_]
        said = "; ".join(f"{_test(test)} {test['outcome']}" for test in of_it)
        lines.append(f"| [{id_}](tables/claims.md#{id_.lower()}) | {statements[id_]} | {of_it[0]['status']} | {said} |")
    return "\n".join(lines)


def _test(test: dict[str, str]) -> str:
    value, low, high = (float(test[key]) for key in ("ours", "low", "high"))
    value, low, high = (f"{one:.0f}" if abs(one) >= 100 else f"{one:.1f}" for one in (value, low, high))
    return f"{value} ({low} to {high})"


def between_markers(text: str, name: str, content: str | None = None) -> str:
    """What stands between <!-- NAME --> and <!-- /NAME -->, or the whole text with `content` there."""
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, _, rest = text.partition(start)
    old, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"the page has no {start.strip()} ... {end}")
    return old.strip("\n") if content is None else f"{before}{start}\n{content}\n\n{end}{after}"


PAGES = {ROOT / "README.md": ("results", default_run), ROOT / "results/study/README.md": ("claims", study)}

if __name__ == "__main__":
    for page, (name, content) in PAGES.items():
        if name == "results" and not (ROOT / "results/metrics" / RUN).is_dir():
            print(f"{page.relative_to(ROOT)} left as it is: results/metrics/{RUN} is not there (make tables)")
            continue
        page.write_text(between_markers(page.read_text(encoding="utf-8"), name, content()), encoding="utf-8")
        print(f"wrote {page.relative_to(ROOT)}")
