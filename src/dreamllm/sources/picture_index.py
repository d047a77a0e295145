"""An index of the pictures that img2dataset downloaded, by their address.

Documents of MMC4 and OBELICS name pictures by address. The index is an SQLite file with the place of each picture in
the tar shards and its recorded orientation; it is written once, and any number of processes reads pictures through it.
"""

from __future__ import annotations

import functools
import sqlite3
from pathlib import Path
from typing import Any, BinaryIO

from dreamllm.data import shards
from dreamllm.sources.img2dataset import PICTURE_SUFFIXES, metadata, orientation, tars


def write(downloaded: Path, index: Path) -> dict[str, int]:
    """Write the index of all shards in `downloaded`. Returns the numbers of pictures and of problems.

    Of several pictures with one address the first is indexed.
    """
    counts = {"pictures": 0, "unreadable samples": 0, "damaged shards": 0}
    index.unlink(missing_ok=True)
    with sqlite3.connect(index) as table:
        columns = "url TEXT PRIMARY KEY, tar TEXT, start INT, size INT, turned INT"
        table.execute(f"CREATE TABLE pictures ({columns}) WITHOUT ROWID")
        for tar in tars(downloaded):
            problems: list[shards.ShardProblem] = []
            rows = []
            with tar.open("rb") as file:
                for record in shards.index(tar, problems.append):
                    places = {suffix: (start, size) for suffix, start, size in record.members}
                    place = next((places[suffix] for suffix in PICTURE_SUFFIXES if suffix in places), None)
                    recorded = _metadata(file, places.get("json"))
                    if place is None or not isinstance(recorded.get("url"), str):
                        counts["unreadable samples"] += 1
                    else:
                        rows.append((recorded["url"], tar.name, *place, orientation(recorded)))
            inserted = table.executemany("INSERT OR IGNORE INTO pictures VALUES (?, ?, ?, ?, ?)", rows)
            counts["pictures"] += inserted.rowcount
            counts["damaged shards"] += len(problems)
    return counts


def _metadata(file: BinaryIO, place: tuple[int, int] | None) -> dict[str, Any]:
    if place is None:
        return {}
    file.seek(place[0])
    try:
        return metadata(file.read(place[1]))
    except ValueError:
        return {}


@functools.cache
def _opened(index: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{index}?mode=ro&immutable=1", uri=True)


def read(url: str, downloaded: Path, index: Path) -> tuple[bytes, int] | None:
    """The picture file that was downloaded from `url` and its recorded EXIF orientation (`images.decode`), or None."""
    row = _opened(index).execute("SELECT tar, start, size, turned FROM pictures WHERE url = ?", (url,)).fetchone()
    if row is None:
        return None
    tar, start, size, turned = row
    with (downloaded / tar).open("rb") as file:
        file.seek(start)
        return file.read(size), turned
