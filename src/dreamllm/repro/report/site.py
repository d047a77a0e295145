"""Write the report of a run as a static site; `dreamllm.verbs.site` lists the content of the folder.

Text from models and data sets is escaped. The page's Content-Security-Policy allows only its own script.
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
from PIL import Image

import dreamllm
from dreamllm.atomic import new_folder
from dreamllm.evaluate.demo_page import STOPPED
from dreamllm.paths import FIGURES
from dreamllm.repro.audit.lineage import Link, walk
from dreamllm.repro.report import cost, documents, failures, gallery
from dreamllm.repro.report.report import Report, gather
from dreamllm.results import pictures, render
from dreamllm.results.render import Block, Cell
from dreamllm.results.table_spec import Table

TEMPLATES = Path(__file__).parent / "templates"
OPENING = 12  # generated images at the top of the first page, at most
SHOWN_AS_PICTURES = ("drawings", "stories")  # figures that the gallery replaces
MARKS = {"reproduced": "●", "partly": "◐", "not reproduced": "○", "external": "↗", "not attempted": "–"}
STEPS = {  # kinds of links, from the metric down to the environment
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
class BlockView:
    """A block of a table on the page. foot: the row with the numbers of items.  folded: it is the published table"""

    block: Block
    rows: list[tuple[str, list[Cell]]]
    foot: list[Cell] | None
    folded: bool


@dataclass(frozen=True)
class TableView:
    """A table on the page. empty_columns: columns without numbers, with the reason.  footnotes: marks by their text"""

    table: Table
    empty_columns: Mapping[str, str]
    blocks: list[BlockView]
    footnotes: dict[str, str]


def main(args: argparse.Namespace) -> None:
    """Write the folder, all or nothing."""
    report = gather(args.root, args.config, args.paper, args.metrics, args.items)
    with new_folder(args.out) as folder:
        for name, text in (pages(report, folder) | documents.documents(report)).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")


def pages(report: Report, folder: Path) -> dict[str, str]:
    """The pages by name, with failures.html if items have scores; writes their pictures below `folder`."""
    run = report.run
    benchmark_files = run.root / run.paths.benchmark_files("draw")
    models, prompts = gallery.drawings(report.predictions("draw"), benchmark_files, folder)
    stories = [gallery.stories(path, folder, place) for place, path in enumerate(report.predictions("stories"))]
    style, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("site.css", "site.js"))
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., Any]] = {
        "emphasis": emphasis,
        "anchor": anchor,
        "short": lambda digest: digest[:12],
        "size": cost.size,
        "duration": cost.duration,
    }
    environment.filters |= filters
    final, wrong = report.final_model, failures.failures(report, folder)
    environment.globals.update(
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
        bar=_bar(report.statuses),
        tables=[_table_view(table, blocks) for table, blocks in report.tables],
        models=[pictures.MODEL_LABELS.get(model, model.replace("_", " ")) for model in models],
        prompts=prompts,
        final=final,
        opening=[(p.text, p.drawn[models.index(final)]) for p in prompts[:OPENING] if final in models],
        story=next((found[0] for model, found in stories if model == final and found), None),
        failures=wrong,
        limit=failures.SHOWN,
        stories=stories,
        labels=pictures.MODEL_LABELS,
        stopped=STOPPED,
        plots=_plots(run.root / FIGURES, folder),
        lineages={source: _lineage(link) for source, link in report.links.items()},
        split=next((content["split"] for metrics in report.runs.values() for content in metrics.values()), "none"),
        cost=cost.total(report.timings),
        costs=cost.by_kind(report.timings),
        disk=cost.disk(run.root, run.experiment, list(report.runs)),
        assumption=cost.ASSUMPTION,
        sets=documents.data_sets(report),
    )
    templates = {"index.html": "site.html"} | ({"failures.html": "failures.html"} if wrong else {})
    return {name: environment.get_template(template).render() for name, template in templates.items()}


def emphasis(text: str) -> Markup:
    """Text with Markdown's **strong**, *emphasised* and `code` as HTML; everything else is escaped."""
    safe = str(escape(text))
    safe = re.sub(r"`([^`]+)`", r"<code>\1</code>", safe)
    safe = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", safe)
    return Markup(re.sub(r"(?<![\w*])\*([^*\s](?:[^*]*[^*\s])?)\*(?![\w*])", r"<em>\1</em>", safe))


def anchor(text: str) -> str:
    """A name as an HTML id."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower()


def _hash(text: str) -> str:
    """The hash of a script or style for the page's Content-Security-Policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _bar(statuses: Mapping[str, int]) -> list[tuple[str, int, float, float]]:
    """Segments of a bar of width 100: status, count, start and width."""
    total, start, segments = sum(statuses.values()), 0.0, []
    for status, count in statuses.items():
        width = 100 * count / total
        segments.append((status, count, round(start, 3), round(width, 3)))
        start += width
    return segments


def _table_view(table: Table, blocks: list[Block]) -> TableView:
    readable = [render.without_empty_columns(block) for block in blocks]
    views = []
    for block in readable:
        rows = render.with_item_counts(block)
        has_foot = len(rows) > len(block.rows)
        foot = rows[-1][1] if has_foot else None
        views.append(BlockView(block, rows[: len(block.rows)], foot, folded=block.source == "paper"))
    return TableView(table, blocks[0].empty_columns, views, render.footnotes(readable))


def _plots(source: Path, folder: Path) -> list[gallery.ImageFile]:
    """Copy the figures."""
    found = []
    for path in sorted(source.glob("*.png")):
        if path.stem not in SHOWN_AS_PICTURES:
            (folder / "figures").mkdir(exist_ok=True)
            shutil.copyfile(path, folder / "figures" / path.name)
            with Image.open(path) as image:
                found.append(gallery.ImageFile(f"figures/{path.name}", path.stem.replace("_", " "), *image.size))
    return found


def _lineage(link: Link) -> list[tuple[str, list[Link]]]:
    """A metric's links by kind, from the metric down to the environment."""
    links = _unique(walk(link))
    return [(title, [one for one in links if one.kind == kind]) for kind, title in STEPS.items()]


def _unique(links: Iterable[Link]) -> list[Link]:
    """One link for each file: one that disagrees if there is any, else one with a recorded digest."""
    kept: dict[tuple[Any, ...], Link] = {}
    for link in links:
        key = (link.kind, link.path, link.name)
        if key not in kept or (link.recorded and not kept[key].recorded) or not link.agrees:
            kept[key] = link
    return list(kept.values())
