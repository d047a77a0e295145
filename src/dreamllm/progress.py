"""Progress of a long loop: a bar on a terminal; in a log one line every 30 s, which `live_view.py` reads.

sft: step 120 of 180, 1.31 s/step, 0:01:19 left, loss 0.412, language_loss 0.31
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path

INTERVAL = 30.0  # seconds between two lines of a log
LINE = re.compile(r"^[^:\n]+: (\w+ (\d+) of (\d+)(?:,.*)?)$", re.MULTILINE)
TAIL = 4096  # bytes at the end of a log among which its last line of progress is looked for


class Progress:
    """Tells how far a loop of `total` steps is, on stderr; `first` of them were done before it."""

    def __init__(self, title: str, total: int, *, unit: str = "step", first: int = 0, disable: bool = False) -> None:
        from tqdm import tqdm

        self.title, self.total, self.unit, self.first, self.disable = title, total, unit, first, disable
        self.on_terminal = sys.stderr.isatty()
        hidden = disable or not self.on_terminal
        self.bar = tqdm(desc=title, total=total, unit=unit, initial=first, mininterval=1, disable=hidden)
        self.begin, self.last_line = time.monotonic(), -INTERVAL

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()

    def update(self, done: int, values: Mapping[str, float] | None = None) -> None:
        """Tell that `done` steps are done, with some values (a loss, ...). In a log the first and the last step have a
        line, and in between there is one every 30 s."""
        shown = {key: f"{value:.3g}" for key, value in (values or {}).items()}
        now = time.monotonic()
        if self.disable:
            return
        if self.on_terminal:
            self.bar.set_postfix(shown, refresh=False)
            self.bar.update(done - self.bar.n)
        elif now - self.last_line >= INTERVAL or done == self.total:
            seconds = (now - self.begin) / max(1, done - self.first)
            left = timedelta(seconds=round(seconds * (self.total - done)))
            rest = "".join(f", {key} {value}" for key, value in shown.items())
            line = f"{self.title}: {self.unit} {done} of {self.total}, {seconds:.3g} s/{self.unit}, {left} left{rest}"
            print(line, file=sys.stderr, flush=True)
            self.last_line = now


def counted(title: str, total: int, unit: str, *, disable: bool = False) -> Iterator[int]:
    """The numbers from 0 to total - 1, with their progress on stderr."""
    with Progress(title, total, unit=unit, disable=disable) as progress:
        for number in range(total):
            yield number
            progress.update(number + 1)


def read_last(log: Path) -> tuple[int, int, str] | None:
    """Of the last line of progress in a log: steps done, steps in all, and its text after the title; None without."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL))
            found = LINE.findall(file.read().decode(errors="replace"))
    except OSError:
        return None
    if not found:
        return None
    text, done, total = found[-1]
    return int(done), int(total), text
