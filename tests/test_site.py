"""The report site: every number links to its origin, nothing is loaded from elsewhere, models' text is escaped."""

from __future__ import annotations

import argparse
import asyncio
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import browser
import finished_run
from dreamllm.config.reading import ConfigProblem
from dreamllm.repro.report import cost, gallery, site
from dreamllm.repro.report.report import Report, gather
from dreamllm.timings import TimingProblem


def build(root: Path, out: Path) -> Path:
    """Run the verb and return the folder."""
    paper, config = root / "paper", root / "config/smoke.yaml"
    site.main(
        argparse.Namespace(root=root, config=config, metrics=finished_run.metrics(root), items=[], paper=paper, out=out)
    )
    return out


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run.write(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def report(root: Path) -> Report:
    return gather(root, Path("config/smoke.yaml"), root / "paper", finished_run.metrics(root), [])


@pytest.fixture(scope="module")
def folder(root: Path) -> Path:
    return build(root, root / "results/report")


class Elements(HTMLParser):
    """All elements of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def elements(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    return Elements((folder / "index.html").read_text(encoding="utf-8")).found


# ---- what is on the page -------------------------------------------------------------------------------------------


def test_every_measured_number_of_the_tables_is_there_and_leads_to_its_way(report, elements) -> None:
    cells = {
        cell.id for _, blocks in report.tables for _, row in blocks[0].rows for cell in row if cell.text and cell.source
    }
    links = [about for _, about in elements if about.get("class") == "number"]
    assert {about["data-cell"] for about in links} == cells != set()
    ids = {about.get("id") for _, about in elements}
    assert {about["href"].removeprefix("#") for about in links} <= ids


def test_every_claim_is_there_with_its_computed_status(report, elements) -> None:
    shown = {about["id"]: about["data-status"] for tag, about in elements if about.get("class") == "claim"}
    assert shown == {claim.claim.id.lower(): claim.status for claim in report.claims}


def test_no_measured_number_of_the_emoji_world_is_in_a_row_with_a_published_one(folder) -> None:
    claims, tables = (
        (folder / "index.html")
        .read_text(encoding="utf-8")
        .split(f'<section id="{name}">')[1]
        .partition("</section>")[0]
        for name in ("claims", "tables")
    )
    rows = re.findall(r"<tr>.*?</tr>", claims, re.DOTALL)
    assert [row for row in rows if "<td>the paper</td>" in row] and [row for row in rows if "the emoji world" in row]
    assert not [row for row in rows if "<td>the paper</td>" in row and "the emoji world" in row]
    assert "data-cell" in tables and not re.findall(r'<button type="button">(?:ours|paper)</button>', tables)
    written = (folder / "REPORT.md").read_text(encoding="utf-8")
    assert not re.search(r"^\|.*\| the paper \|.*the emoji world", written, re.MULTILINE)


def test_an_empty_comparison_is_folded_away_and_says_why(report, folder) -> None:
    text = (folder / "index.html").read_text(encoding="utf-8")
    folded = re.findall(
        r'<details class="without"><summary>Paper and this repository: empty</summary><p class="quiet">(.*?)</p>', text
    )
    assert len(folded) == sum(bool(table.paper) for table, _ in report.tables) > 0
    assert all(why.startswith("Empty, because nothing was measured on the paper") for why in folded)
    assert "No numbers." not in text and "This repository: no numbers, " in text


def test_pictures_come_before_tables(elements) -> None:
    sections = [about["id"] for tag, about in elements if tag == "section"]
    assert sections[:5] == ["generated", "claims", "pictures", "stories", "figures"] and "tables" in sections[5:]


def test_pictures_stand_beside_the_real_one_and_stories_keep_their_order(folder) -> None:
    text = (folder / "index.html").read_text(encoding="utf-8")
    prompts = text.split('<article class="prompt">')[1:]
    assert len(prompts) == 6
    assert all(len(re.findall("<figcaption>", prompt.partition("</article>")[0])) == 3 for prompt in prompts)
    story = text.split('<article class="story">')[1].partition("</article>")[0]
    assert story.index("&lt;script&gt;") < story.index("<img src=") < story.index("the end")


def test_the_way_of_a_number_and_the_written_report_name_the_machines(folder) -> None:
    way = (
        (folder / "index.html").read_text(encoding="utf-8").split('id="lineage-sft-vqa"')[1].partition("</article>")[0]
    )
    assert '<span class="quiet">on &lt;/p&gt;&lt;script&gt;' in way, "that of the predictions, escaped"
    assert "on a processor, 1 of 2 cores" in way, "that of the checkpoint"
    assert "\nTrained on a processor, 1 of 2 cores.\n" in (folder / "REPORT.md").read_text(encoding="utf-8")


def test_a_digest_that_is_not_the_recorded_one_is_shown(tmp_path) -> None:
    root = finished_run.write(tmp_path / "run")
    path = root / "results/predictions/smoke/sft/vqa.jsonl"
    before = build(root, tmp_path / "before").joinpath("index.html").read_text(encoding="utf-8")
    path.write_text(path.read_text(encoding="utf-8") + '{"id": "2", "output": "no"}\n', encoding="utf-8")
    after = build(root, tmp_path / "after").joinpath("index.html").read_text(encoding="utf-8")
    assert "recorded was" not in before and "recorded was" in after


def test_numbers_of_another_run_have_no_way(root, report) -> None:
    other = root / "elsewhere/results/metrics/other/sft/vqa.json"
    other.parent.mkdir(parents=True)
    other.write_bytes((root / "results/metrics/smoke/sft/vqa.json").read_bytes())
    several = gather(root, Path("config/smoke.yaml"), root / "paper", [*finished_run.metrics(root), other], [])
    assert len(several.runs) == 2 and several.metrics == report.metrics


def test_the_first_prompts_of_every_kind_are_shown(root) -> None:
    folder = root / "data/emoji_smoke/benchmarks"
    items = gallery.tasks.load("draw", folder, "test")
    kinds = {(item.scene.kind, item.scene.held_out) for item in items}
    many = items * 20
    chosen = gallery.round_robin(many)
    assert len(chosen) == gallery.PROMPTS_SHOWN
    assert {(item.scene.kind, item.scene.held_out) for item in chosen} == kinds


# ---- safe and self-contained ---------------------------------------------------------------------------------------


def test_nothing_that_a_model_wrote_becomes_markup(folder, elements) -> None:
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert "alert(&#34;x&#34;)" in text
    assert [tag for tag, _ in elements].count("script") == 1
    assert not [name for _, about in elements for name in about if name.startswith("on")]
    assert {about["src"].split("/")[0] for tag, about in elements if tag == "img"} == {"pictures", "figures"}


def test_the_policy_lets_only_the_page_s_own_script_run(folder, elements) -> None:
    text = (folder / "index.html").read_text(encoding="utf-8")
    policy = next(about["content"] for _, about in elements if about.get("http-equiv") == "Content-Security-Policy")
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
    assert f"script-src '{site._hash(script)}'" in policy and "unsafe" not in policy
    assert not [about for _, about in elements if "style" in about]


def test_links_lead_somewhere_on_the_page_or_beside_it(folder, elements) -> None:
    ids = [about["id"] for _, about in elements if "id" in about]
    assert len(ids) == len(set(ids))
    for _, about in elements:
        for link in filter(None, (about.get("href"), about.get("src"))):
            assert "://" not in link
            assert link[1:] in ids if link.startswith("#") else (folder / link).is_file(), link


def test_the_same_results_give_the_same_bytes(root, folder, tmp_path) -> None:
    again = build(root, tmp_path / "again")
    files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert files == {path.relative_to(again): path.read_bytes() for path in again.rglob("*") if path.is_file()}
    assert len(files) > 20


def test_tables_and_pictures_can_be_read_without_seeing_them(elements) -> None:
    assert all(about.get("alt") for tag, about in elements if tag == "img")
    # with its size an image keeps its place before it is loaded, so that links lead to the right place
    assert all(about["width"] and about["height"] for tag, about in elements if tag == "img")
    tags = [tag for tag, _ in elements]
    assert tags.count("table") == tags.count("caption")
    assert all(about.get("scope") in ("row", "col", "rowgroup") for tag, about in elements if tag == "th")
    assert all(
        "tabindex" in about and about.get("aria-label") for _, about in elements if about.get("class") == "scroll"
    )


@given(st.text(alphabet=st.sampled_from('ab *`<>&"\n'), max_size=40))
def test_emphasis_adds_no_markup_but_its_own(text: str) -> None:
    shown = str(site.emphasis(text))
    assert not re.search(r"<(?!/?(em|strong|code)>)", shown)
    for tag in ("em", "strong", "code"):
        assert shown.count(f"<{tag}>") == shown.count(f"</{tag}>")


# ---- costs ---------------------------------------------------------------------------------------------------------


def test_costs_are_sums_of_what_snakemake_measured(report) -> None:
    whole = cost.total(report.timings)
    assert (whole.jobs, whole.unmeasured, whole.memory_mb) == (4, 1, 500)
    assert whole.hours == pytest.approx(3 + 0.4 / 3600) and whole.cpu_hours == pytest.approx(1.5)
    assert whole.kilowatt_hours == pytest.approx(1.5 * cost.WATTS_PER_CORE / 1000)
    assert sum(one.hours for one in cost.by_kind(report.timings).values()) == pytest.approx(whole.hours)


def test_gpu_hours_follow_what_the_rules_reserve(root, report) -> None:
    experiment = report.run.experiment
    machine = experiment.machine.model_copy(update={"gpus": 4, "nodes": 2})
    with_gpus = experiment.model_copy(update={"machine": machine})
    gpus = {one.job: one.gpus for one in cost.read_timings(root / "timings/smoke", with_gpus)}
    assert gpus == {"train_sft": 8, "predict_sft_draw": 1, "score_sft_draw": 0, "tables": 0}


def test_a_file_that_is_no_timing_is_refused(report, tmp_path) -> None:
    (tmp_path / "train_sft.tsv").write_text("step\tloss\n1\t2\n")
    with pytest.raises(TimingProblem, match="columns s, max_rss"):
        cost.read_timings(tmp_path, report.run.experiment)
    (tmp_path / "train_sft.tsv").write_text("s\tmax_rss\tcpu_time\nlong\t2\t3\n")
    with pytest.raises(TimingProblem, match="line 2: could not convert string to float: 'long'"):
        cost.read_timings(tmp_path, report.run.experiment)


def test_a_wrong_configuration_writes_nothing(root, tmp_path) -> None:
    (root / "config/wrong.yaml").write_text("name: wrong\n")
    arguments = {"metrics": [], "items": [], "paper": root / "paper", "out": tmp_path / "out"}
    with pytest.raises(ConfigProblem):
        site.main(argparse.Namespace(root=root, config=Path("config/wrong.yaml"), **arguments))
    assert not (tmp_path / "out").exists()


# ---- in a browser --------------------------------------------------------------------------------------------------

SORT = """(() => {
  const table = document.querySelector("#table-table2 table.sortable"), heading = [...table.tHead.rows[0].cells].find(
    cell => cell.textContent === "whole scene");
  const values = () => [...table.tBodies[0].rows].map(row => row.cells[heading.cellIndex].dataset.sort);
  const before = values();
  heading.querySelector("button").click();
  const falling = values(), first = heading.getAttribute("aria-sort");
  heading.querySelector("button").click();
  return { before, falling, rising: values(), first, second: heading.getAttribute("aria-sort") };
})()"""
LINEAGE = """(() => {
  document.querySelector("a.number").click();
  const dialog = document.querySelector("dialog");
  return { open: dialog.open, text: dialog.innerText };
})()"""


@pytest.mark.skipif(browser.PROGRAM is None, reason="no Chromium on this machine")
def test_in_a_browser(folder: Path) -> None:
    """One browser for all that needs one."""
    asyncio.run(_in_a_browser(folder / "index.html"))


async def _in_a_browser(page_file: Path) -> None:
    async with browser.chromium() as page:
        await page.open(page_file, 1360, 1000, "light")
        light = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        broken = "[...document.images].filter(one => (one.loading = 'eager', one.complete && !one.naturalWidth)).length"
        await page.evaluate("Promise.all([...document.images].map(one => (one.loading = 'eager', one.decode())))")
        assert await page.evaluate(broken) == 0

        order = await page.evaluate(SORT)
        numbers = [float(value) for value in order["before"] if value]
        assert len(numbers) >= 2
        assert [float(value) for value in order["falling"] if value] == sorted(numbers, reverse=True)
        assert [float(value) for value in order["rising"] if value] == sorted(numbers)
        assert not order["rising"][-1], "rows without a value come last"
        assert (order["first"], order["second"]) == ("descending", "ascending")

        lineage = await page.evaluate(LINEAGE)
        assert lineage["open"]
        for word in ("Predictions", "Checkpoints", "Data", "Commit", "Machine", "as recorded", finished_run.HOSTILE):
            assert word in lineage["text"]
        await page.call("Input.dispatchKeyEvent", type="keyDown", key="Escape", windowsVirtualKeyCode=27)
        assert not await page.evaluate("document.querySelector('dialog').open")

        hidden = "[...document.querySelectorAll('.claim')].filter(one => one.hidden).length"
        button = "document.querySelector('.filter button[data-status=\"not attempted\"]')"
        assert await page.evaluate(f"{button}.click(), {hidden}") > 0
        assert await page.evaluate(f"{button}.click(), {hidden}") == 0

        await page.open(page_file, 1360, 1000, "dark", "#checkpoint-sft")
        assert await page.evaluate("getComputedStyle(document.body).backgroundColor") != light
        assert await page.evaluate("document.getElementById('checkpoint-sft').open")

        for width in (390, 320):
            await page.open(page_file, width, 844)
            await page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
            assert await page.evaluate("document.documentElement.scrollWidth") <= width
        printed = await page.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)
        assert len(printed["data"]) > 10_000
        assert page.messages == []
