"""The report of a run as a static site; `dreamllm.verbs.site` lists what is in the folder.

What models and data sets wrote is escaped. The page's Content-Security-Policy allows only its own script.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

import dreamllm
from dreamllm.atomic import new_folder
from dreamllm.evaluate.demo_page import STOPPED
from dreamllm.repro.audit.lineage import Link, walk
from dreamllm.repro.report import cost, gallery, written
from dreamllm.repro.report.evidence import Report, gather
from dreamllm.results import pictures, render
from dreamllm.results.render import Block, Cell
from dreamllm.results.table_spec import Table

TEMPLATES = Path(__file__).parent / "templates"
SHOWN_AS_PICTURES = ("drawings", "stories")  # figures whose content the site shows itself
MARKS = {"reproduced": "●", "partly": "◐", "not reproduced": "○", "external": "↗", "not attempted": "–"}
STEPS = {  # kinds of links, in the order of the way down
    "metric": "Metric",
    "items": "Items",
    "judgements": "Judgements",
    "features": "Features",
    "predictions": "Predictions",
    "checkpoint": "Checkpoints",
    "data": "Data",
    "foundations": "Foundations",
    "configuration": "Configuration",
    "commit": "Commit",
    "environment": "Environment",
}


@dataclass(frozen=True)
class Lines:
    """A block of a table for the page. foot: the row with the numbers of items.  folded: nothing in it is ours"""

    block: Block
    rows: list[tuple[str, list[Cell]]]
    foot: list[Cell] | None
    folded: bool


@dataclass(frozen=True)
class Shelf:
    """A table for the page: its blocks, columns that no run fills and why, and marks of why cells are empty."""

    table: Table
    title: str
    left_out: Mapping[str, str]
    lines: list[Lines]
    notes: dict[str, str]


def main(args: argparse.Namespace) -> None:
    """Write the folder, whole or not at all."""
    report = gather(args.root, args.config, args.paper, args.metrics, args.items)
    with new_folder(args.out) as folder:
        (folder / "index.html").write_text(page(report, folder), encoding="utf-8")
        for name, text in written.documents(report).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")


def page(report: Report, folder: Path) -> str:
    """The page; its pictures are written below `folder`."""
    run = report.run
    benchmark_files = run.root / run.paths.benchmark_files("draw")
    models, prompts = gallery.drawings(report.predictions("draw"), benchmark_files, folder)
    told = [gallery.stories(path, folder, place) for place, path in enumerate(report.predictions("stories"))]
    style, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("site.css", "site.js"))
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., Any]] = {
        "words": words,
        "anchor": anchor,
        "short": lambda digest: digest[:12],
        "size": cost.size,
        "duration": cost.duration,
    }
    environment.filters |= filters
    return environment.get_template("site.html").render(
        report=report,
        name=run.name,
        experiment=run.experiment,
        version=dreamllm.__version__,
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        marks=MARKS,
        world=render.WORLD,
        shares=_shares(report.statuses),
        shelves=[_shelf(table, blocks) for table, blocks in report.tables],
        models=[pictures.NAMES.get(model, model.replace("_", " ")) for model in models],
        prompts=prompts,
        told=told,
        names=pictures.NAMES,
        stopped=STOPPED,
        plots=_plots(run.root / "results/figures", folder),
        ways={source: _way(link) for source, link in report.links.items()},
        split=next((content["split"] for metrics in report.runs.values() for content in metrics.values()), "none"),
        cost=cost.total(report.timings),
        costs=cost.by_kind(report.timings),
        disk=cost.disk(run.root, run.experiment, list(report.runs)),
        assumption=cost.ASSUMPTION,
        sets=written.data_sets(report),
    )


def words(text: str) -> Markup:
    """Text with the emphasis of our own files: **strong**, *emphasised*, `code`. Everything else is escaped."""
    safe = str(escape(text))
    safe = re.sub(r"`([^`]+)`", r"<code>\1</code>", safe)
    safe = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", safe)
    return Markup(re.sub(r"(?<![\w*])\*([^*\s](?:[^*]*[^*\s])?)\*(?![\w*])", r"<em>\1</em>", safe))


def anchor(text: str) -> str:
    """A name as part of the page's address."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower()


def _hash(text: str) -> str:
    """A script or style as the page's policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _shares(statuses: Mapping[str, int]) -> list[tuple[str, int, float, float]]:
    """Statuses with their count, and where their part of a bar of width 100 begins and how wide it is."""
    whole, start, shares = sum(statuses.values()), 0.0, []
    for status, count in statuses.items():
        width = 100 * count / whole
        shares.append((status, count, round(start, 3), round(width, 3)))
        start += width
    return shares


def _shelf(table: Table, blocks: list[Block]) -> Shelf:
    readable = [render.for_readers(block) for block in blocks]
    lines = []
    for block in readable:
        rows = render.with_counts(block)
        has_foot = len(rows) > len(block.rows)
        ours = block.source == "ours" or (block.source == "beside" and any(cells[1].text for _, cells in rows))
        lines.append(Lines(block, rows[: len(block.rows)], rows[-1][1] if has_foot else None, not ours))
    return Shelf(table, render.caption_of(table), blocks[0].left_out, lines, render.notes_of(readable))


def _plots(source: Path, folder: Path) -> list[tuple[str, str]]:
    """Figures that are copied as they are: names and files."""
    found = []
    for path in sorted(source.glob("*.png")):
        if path.stem not in SHOWN_AS_PICTURES:
            (folder / "figures").mkdir(exist_ok=True)
            shutil.copyfile(path, folder / "figures" / path.name)
            found.append((path.stem.replace("_", " "), f"figures/{path.name}"))
    return found


def _way(link: Link) -> list[tuple[str, list[Link]]]:
    """The links below a number by their kinds, in the order of the way down."""
    every = _unlike(walk(link))
    return [(title, [one for one in every if one.kind == kind]) for kind, title in STEPS.items()]


def _unlike(links: Iterable[Link]) -> list[Link]:
    """Links without those that say the same: of one file, the one with a recorded digest is kept."""
    kept: dict[tuple[Any, ...], Link] = {}
    for link in links:
        key = (link.kind, link.path, link.name)
        if key not in kept or (link.recorded and not kept[key].recorded) or not link.agrees:
            kept[key] = link
    return list(kept.values())
