"""MMC4: JSON lines {"text_list": sentences, "image_info": [{"raw_url", "matched_text_index", "matched_sim"}], ...}."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from dreamllm.config.sources import SourceSettings
from dreamllm.sources import interleaved
from dreamllm.sources.interleaved import Page, Unit
from dreamllm.sources.manifest import Source
from dreamllm.sources.readers import Inputs
from dreamllm.sources.records import Member, Rejected, read_jsonl

SUFFIX, CAPTIONS = ".jsonl", False
documents = interleaved.documents


def units(inputs: Inputs) -> Iterator[Unit]:
    """The files of pages."""
    return interleaved.units(inputs, SUFFIX, pages)


def addresses(member: Member, source: Source, settings: SourceSettings) -> Iterator[list[dict[str, str]] | Rejected]:
    """The addresses of the pictures of each page."""
    return interleaved.addresses(pages(member, settings))


def pages(file: Member, settings: SourceSettings) -> Iterator[tuple[str, Page | Rejected, dict[str, Any]]]:
    """The pages of a file as (place, page, meta)."""
    for where, record in read_jsonl(file):
        if isinstance(record, Rejected):
            yield where, record, {}
        else:
            url = record.get("url")
            meta = {"url": url if isinstance(url, str) else None}
            yield where, page(record, settings.min_similarity, where), meta


def page(record: dict[str, Any], min_similarity: float, where: str = "") -> Page | Rejected:
    """A page in reading order.

    A picture follows the sentence that MMC4 matched it with; pictures of one sentence keep their order. Sentences
    between two pictures are joined by single spaces; those after the last picture are kept (official code,
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
    parts: Page = []
    begin = 0
    for info in sorted(kept, key=lambda info: info["matched_text_index"]):  # stable: same sentence, same order
        end = info["matched_text_index"] + 1
        if text := _joined(sentences[begin:end]):
            parts.append(text)
        parts.append((info["raw_url"], info["matched_sim"]))
        begin = max(begin, end)
    if text := _joined(sentences[begin:]):
        parts.append(text)
    return parts


def _joined(sentences: list[str]) -> str:
    return " ".join(stripped for sentence in sentences if (stripped := sentence.strip()))


def _is_picture(info: Any, sentences: int) -> bool:
    if not isinstance(info, dict) or not isinstance(info.get("raw_url"), str):
        return False
    index, similarity = info.get("matched_text_index"), info.get("matched_sim")
    fits = isinstance(index, int) and not isinstance(index, bool) and 0 <= index < sentences
    return fits and isinstance(similarity, (int, float)) and abs(similarity) < math.inf
