"""Pictures with captions in a folder, as the image folders of Hugging Face's `datasets`, or with a text beside each.

metadata.jsonl or metadata.csv in the folder, or in several folders below it, has a row for each caption:

    {"file_name": "cat.jpg", "text": "my cat on the sofa"}

`file_name` is relative to the file's own folder. Without any such file, the caption of cat.jpg is in cat.txt beside it.
"""

from __future__ import annotations

import csv
import io
import posixpath
from collections.abc import Iterator
from pathlib import Path

from dreamllm.data.images import PICTURE_SUFFIXES
from dreamllm.sources.annotated_pictures import Chunk, Records, chunks, pair_documents
from dreamllm.sources.readers import Inputs
from dreamllm.sources.records import BuildProblem, Member, RecordProblem, Rejected, files_below, read_jsonl

METADATA = ("metadata.jsonl", "metadata.csv")
COLUMNS = ("file_name", "text")

documents = pair_documents


def units(inputs: Inputs) -> Iterator[Chunk]:
    """Runs of captions. Raises BuildProblem for a folder without pictures."""
    below = files_below(inputs.raw)
    pictures = [path for path in below if path.suffix.lower() in PICTURE_SUFFIXES]
    if not pictures and not any(path.suffix == ".zip" for path in below):
        raise BuildProblem(
            f"{inputs.raw}: has no picture; names of pictures end in {', '.join(sorted(PICTURE_SUFFIXES))}"
        )
    if tables := [path for path in below if path.name in METADATA]:
        return chunks(_told(tables, pictures, inputs.raw), "pictures", inputs.folders)
    return chunks(_beside(pictures, inputs.raw), "pictures", inputs.folders)


def _told(tables: list[Path], pictures: list[Path], raw: Path) -> Records:
    """The captions of metadata files; and a Rejected for each picture in a folder that none of them names."""
    named = set()
    for table in tables:
        folder = table.parent.relative_to(raw).as_posix()
        for where, row in read_jsonl(Member(table)) if table.suffix == ".jsonl" else _read_csv(table):
            if isinstance(row, Rejected):
                yield where, row
                continue
            name = row.get("file_name")
            if not isinstance(name, str) or "text" not in row:
                columns = ", ".join(map(str, row)) or "none"
                yield where, Rejected("no file_name or no text", f"{where}, which has the fields {columns}")
                continue
            path = f"./{folder}/{name}"
            named.add(posixpath.normpath(path))
            yield where, {"picture": path, "caption": row["text"], "id": name}
    for picture in pictures:
        if picture.relative_to(raw).as_posix() not in named:
            yield str(picture), Rejected("picture without a caption", str(picture))


def _read_csv(table: Path) -> Records:
    """The rows of a table as (place, row). Raises RecordProblem for a table without the two columns."""
    try:
        text = table.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecordProblem(f"{table}: is not UTF-8 at byte {error.start}; save it as UTF-8") from None
    reader = csv.DictReader(io.StringIO(text, newline=""))
    there = reader.fieldnames or []
    if missing := [name for name in COLUMNS if name not in there]:
        raise RecordProblem(f"{table}, line 1: no column {', '.join(missing)}; its columns are {', '.join(there)}")
    for row in reader:
        where = f"{table}, line {reader.line_num}"
        if None in row or None in row.values():
            yield where, Rejected("row has more or fewer columns than the heading", where)
        else:
            yield where, row


def _beside(pictures: list[Path], raw: Path) -> Records:
    """Each picture with the text file beside it."""
    for picture in pictures:
        text, where = picture.with_suffix(".txt"), str(picture)
        if not text.is_file():
            yield where, Rejected("picture without a caption", f"{where}: there is no {text.name} beside it")
            continue
        try:
            caption = text.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            yield where, Rejected("caption is not UTF-8", f"{text}, byte {error.start}")
            continue
        name = picture.relative_to(raw).as_posix()
        yield where, {"picture": f"./{name}", "caption": caption, "id": name}
