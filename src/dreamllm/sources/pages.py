"""Web pages with pictures between their sentences: MMC4 (JSON lines) and OBELICS (parquet).

A picture is named by its address and joined to its own page alone, so one that is missing never moves another one: it
is left out and counted, and a page without any picture left is no interleaved document.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamllm.config.sources import SourceUse
from dreamllm.data.document import Document, Part, Picture, Text
from dreamllm.sources import fetched as pictures_by_url
from dreamllm.sources.pairs import reason
from dreamllm.sources.records import Folders, Member, Rejected, members, picture, read_jsonl


@dataclass(frozen=True)
class Unit:
    """A file of pages, and where its pictures are."""

    file: Member
    pictures: Path
    index: Path
    records: int  # taken from its beginning


Page = list[str | tuple[str, float | None]]
"""A page in reading order: texts, and pictures as (address, similarity or None)."""


def units(raw: Path, fetched: Path, folders: Folders, index: Path, used: dict[str, int]) -> Iterator[Unit]:
    """The files of the set, each of which can be read on its own. used: records taken per file (`list-urls`)."""
    for file in [*members(raw, ".jsonl"), *members(raw, ".parquet")]:
        if used.get(str(file)):
            yield Unit(file, fetched, index, used[str(file)])


def pages(file: Member, use: SourceUse) -> Iterator[tuple[str, Page | Rejected, dict[str, Any]]]:
    """The pages of a file as (place, page, meta)."""
    if file.name.endswith(".parquet"):
        yield from _obelics_pages(file)
    else:
        for where, record in read_jsonl(file):
            if isinstance(record, Rejected):
                yield where, record, {}
            else:
                yield where, mmc4_page(record, use.min_similarity, where), {"url": record.get("url")}


def documents(unit: Unit, use: SourceUse) -> Iterator[Document | Rejected]:
    """The interleaved documents of one file, and what had to be left out."""
    for number, (where, page, meta) in enumerate(itertools.islice(pages(unit.file, use), unit.records)):
        if isinstance(page, Rejected):
            yield page
            continue
        parts: list[Part] = []
        for part in page:
            if isinstance(part, str):
                if part:
                    parts.append(Text(part))
                continue
            url, _ = part
            data = pictures_by_url.read(url, unit.pictures, unit.index)
            if data is None:
                yield Rejected("picture was not fetched", f"{where}: {url}", whole=False)
                continue
            try:
                parts.append(Picture(picture(data, use.picture_side, use.smallest_picture)))
            except ValueError as error:
                yield Rejected(reason(error), f"{where}: {url} {error}", whole=False)
        parts = _join_texts(parts)
        if not any(isinstance(part, Picture) for part in parts):
            yield Rejected("no picture is left", where)
        elif not any(isinstance(part, Text) for part in parts):
            yield Rejected("no text", where)
        else:
            yield Document(f"{unit.file.name}-{number:08d}", "interleaved", tuple(parts), meta)


def _join_texts(parts: Sequence[Part]) -> list[Part]:
    """Texts between which a picture has fallen out become one."""
    joined: list[Part] = []
    for part in parts:
        if joined and isinstance(part, Text) and isinstance(joined[-1], Text):
            joined[-1] = Text(f"{joined[-1].text} {part.text}")
        else:
            joined.append(part)
    return joined


# ---- MMC4 ----------------------------------------------------------------------------------------------------------


def mmc4_page(record: dict[str, Any], min_similarity: float, where: str = "") -> Page | Rejected:
    """A page of MMC4 in reading order.

    record: {"text_list": sentences, "image_info": [{"raw_url", "matched_text_index", "matched_sim"}], ...}.
    A picture stands behind the sentence that MMC4 has matched it with; those of one sentence keep their order.
    Sentences between two pictures are joined by single spaces, those behind the last one stay (official code,
    builder_dreamllm.py, InterleavedImageText). Pictures with `matched_sim` < min_similarity are left out first (paper
    section 4: 0.25; in the official code these lines are commented out).
    """
    sentences, infos = record.get("text_list"), record.get("image_info")
    if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
        return Rejected("text_list is no list of sentences", where)
    if not isinstance(infos, list) or not all(_is_picture(info, len(sentences)) for info in infos):
        return Rejected("image_info does not fit the page", where)
    kept = [info for info in infos if info["matched_sim"] >= min_similarity]
    if not kept:
        return Rejected(f"no picture with similarity >= {min_similarity:g}" if infos else "no picture", where)
    page: Page = []
    begin = 0
    for info in sorted(kept, key=lambda info: info["matched_text_index"]):  # stable: same sentence, same order
        end = info["matched_text_index"] + 1
        if text := _joined(sentences[begin:end]):
            page.append(text)
        page.append((info["raw_url"], info["matched_sim"]))
        begin = max(begin, end)
    if text := _joined(sentences[begin:]):
        page.append(text)
    return page


def _joined(sentences: list[str]) -> str:
    return " ".join(stripped for sentence in sentences if (stripped := sentence.strip()))


def _is_picture(info: Any, sentences: int) -> bool:
    if not isinstance(info, dict) or not isinstance(info.get("raw_url"), str):
        return False
    index, similarity = info.get("matched_text_index"), info.get("matched_sim")
    fits = isinstance(index, int) and not isinstance(index, bool) and 0 <= index < sentences
    return fits and isinstance(similarity, (int, float)) and math.isfinite(similarity)


# ---- OBELICS -------------------------------------------------------------------------------------------------------


def _obelics_pages(file: Member) -> Iterator[tuple[str, Page | Rejected, dict[str, Any]]]:
    import pyarrow.parquet

    with file.open() as opened:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(opened).iter_batches(256, columns=["images", "texts"]):
            for record in batch.to_pylist():
                where = f"{file}, row {number}"
                yield where, obelics_page(record, where), {}
                number += 1


def obelics_page(record: dict[str, Any], where: str = "") -> Page | Rejected:
    """A page of OBELICS in reading order.

    record: {"images": addresses or None, "texts": texts or None}, two lists of one length, of which exactly one holds
    something at each place (the set's card on the Hub).
    """
    urls, texts = record.get("images"), record.get("texts")
    if not isinstance(urls, list) or not isinstance(texts, list) or len(urls) != len(texts):
        return Rejected("images and texts do not fit", where)
    page: Page = []
    for url, text in zip(urls, texts, strict=True):
        if (url is None) == (text is None):
            return Rejected("images and texts do not fit", where)
        if url is not None:
            page.append((url, None))
        elif text.strip():
            page.append(text.strip())
    return page
