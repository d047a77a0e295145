"""Pictures that img2dataset has fetched, found by their address.

Documents of MMC4 and OBELICS name pictures by address. The shards of img2dataset are listed once in a small SQLite
file, from which any number of processes reads; pictures are then read out of the tars by their place.
"""

from __future__ import annotations

import functools
import sqlite3
from pathlib import Path

from dreamllm.data import shards
from dreamllm.sources.pairs import PICTURE_SUFFIXES
from dreamllm.sources.records import parse

INDEX = "pictures.sqlite"


def write_index(fetched: Path, index: Path) -> dict[str, int]:
    """List the pictures of all shards in `fetched` in the file `index`. Returns how many, and how many problems.

    Of an address that stands twice the first picture counts.
    """
    counts = {"pictures": 0, "unreadable samples": 0, "damaged shards": 0}
    index.unlink(missing_ok=True)
    with sqlite3.connect(index) as table:
        table.execute("CREATE TABLE pictures (url TEXT PRIMARY KEY, tar TEXT, start INT, size INT) WITHOUT ROWID")
        for tar in sorted(fetched.glob("*.tar")):
            problems: list[shards.ShardProblem] = []
            rows = []
            with tar.open("rb") as file:
                for record in shards.index(tar, problems.append):
                    places = {suffix: (start, size) for suffix, start, size in record.members}
                    place = next((places[suffix] for suffix in PICTURE_SUFFIXES if suffix in places), None)
                    url = _url(file, places.get("json"))
                    if place is None or url is None:
                        counts["unreadable samples"] += 1
                    else:
                        rows.append((url, tar.name, *place))
            counts["pictures"] += table.executemany("INSERT OR IGNORE INTO pictures VALUES (?, ?, ?, ?)", rows).rowcount
            counts["damaged shards"] += len(problems)
    return counts


def _url(file, place: tuple[int, int] | None) -> str | None:
    if place is None:
        return None
    file.seek(place[0])
    try:
        return parse(file.read(place[1]).decode("utf-8"))["url"]
    except (ValueError, KeyError, TypeError):
        return None


@functools.cache
def _opened(index: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{index}?mode=ro&immutable=1", uri=True)


def read(url: str, fetched: Path, index: Path) -> bytes | None:
    """The picture file that was fetched from `url`, or None when it was not."""
    row = _opened(index).execute("SELECT tar, start, size FROM pictures WHERE url = ?", (url,)).fetchone()
    if row is None:
        return None
    tar, start, size = row
    with (fetched / tar).open("rb") as file:
        file.seek(start)
        return file.read(size)
