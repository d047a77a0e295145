"""The stream of documents becomes a stream of packed batches that can be taken up again at any batch.

Documents are drawn (`mixture.py`), laid out as token sequences, packed into rows and collated; these last steps come in
as functions, so that no tokens are known here. What does not fit into a batch waits for the next one: nothing is lost.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from dreamllm.data import shards
from dreamllm.data.mixture import Mixture, next_set
from dreamllm.data.shards import ShardProblem
from dreamllm.document import Document
from dreamllm.layout import Sequence
from dreamllm.packing import Batch, pack

LOOKAHEAD = 1.5  # batches worth of tokens to choose from when packing: short sequences fill the gaps of long ones
SKIPS_ALLOWED, SKIP_SHARE_ALLOWED = 10, 0.01  # more damaged documents than both of these stop a training


@dataclass(frozen=True)
class Position:
    """A place in the stream between two batches; small, and JSON all through.

    drawn: documents drawn so far per set.  pending: sequences waiting, as (set, draw number, piece of the document).
    skipped: documents skipped so far because they were damaged.
    """

    drawn: dict[str, int]
    pending: tuple[tuple[str, int, int], ...] = ()
    skipped: int = 0

    def to_json(self) -> dict[str, Any]:
        """As plain dicts, lists and numbers."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Position:
        """Undo `to_json`, also after a way through a file."""
        pending = tuple((name, draw, piece) for name, draw, piece in data["pending"])
        return cls(dict(data["drawn"]), pending, data["skipped"])


@dataclass(frozen=True)
class Prepared:
    """A batch, the position just behind it, and the damaged documents met on the way to it."""

    batch: Batch
    position: Position
    problems: tuple[ShardProblem, ...] = ()


@dataclass(frozen=True)
class Stream:
    """Batches of `rows` rows of `context` tokens, from a position on, without end.

    lay_out: (document, epoch) -> its sequences, a pure function.  collate: rows of sequences -> Batch.
    Iterating raises ShardProblem when too many documents are damaged, and whatever `lay_out` raises.
    """

    mixture: Mixture
    lay_out: Callable[[Document, int], list[Sequence]]
    collate: Callable[[list[list[Sequence]]], Batch]
    rows: int
    context: int
    position: Position

    def __iter__(self) -> Iterator[Prepared]:
        drawn, skipped = dict(self.position.drawn), self.position.skipped
        pool: list[tuple[tuple[str, int, int], Sequence]] = []  # ((set, draw, piece), sequence), oldest first
        for (name, draw), pieces in groupby(self.position.pending, key=lambda pending: pending[:2]):
            sequences = self._sequences(name, draw)
            pool += [(pending, sequences[pending[2]]) for pending in pieces]
        while True:
            problems: list[ShardProblem] = []
            while sum(len(sequence) for _, sequence in pool) < LOOKAHEAD * self.rows * self.context:
                name = next_set(self.mixture.weights, drawn)
                draw = drawn[name]
                drawn[name] += 1
                try:
                    sequences = self._sequences(name, draw)
                except ShardProblem as problem:
                    problems.append(problem)
                    skipped += 1
                    if skipped > max(SKIPS_ALLOWED, SKIP_SHARE_ALLOWED * sum(drawn.values())):
                        raise _too_many(problem, skipped, sum(drawn.values())) from problem
                    continue
                pool += [((name, draw, piece), sequence) for piece, sequence in enumerate(sequences)]
            rows = pack([sequence for _, sequence in pool], self.context)[: self.rows]
            taken = {id(sequence) for row in rows for sequence in row}
            pool = [(key, sequence) for key, sequence in pool if id(sequence) not in taken]
            position = Position(dict(drawn), tuple(key for key, _ in pool), skipped)
            yield Prepared(self.collate(rows), position, tuple(problems))

    def _sequences(self, name: str, draw: int) -> list[Sequence]:
        record, epoch = self.mixture.record(name, draw)
        return self.lay_out(shards.load(record), epoch)


def _too_many(problem: ShardProblem, skipped: int, drawn: int) -> ShardProblem:
    what = f"{problem.what}; with it {skipped} of {drawn} documents are damaged, too many to go on: repair the shards"
    return ShardProblem(problem.file, problem.record, what)


def start(mixture: Mixture) -> Position:
    """The beginning of the stream."""
    return Position(dict.fromkeys(mixture.weights, 0))


def prefetch(stream: Iterable[Prepared], ahead: int = 2) -> Iterator[Prepared]:
    """Iterate over a stream with its next batches made ahead of time in another thread; the same batches, in order.

    A position counts when its batch is consumed: what was made ahead and never used is made again after a restart.
    A thread is enough: decoding and resizing pictures and nearly all of the training release Python's lock.
    """
    source = iter(stream)
    with ThreadPoolExecutor(1, "batches") as thread:
        waiting = deque(thread.submit(next, source) for _ in range(ahead))
        try:
            while True:
                yield waiting.popleft().result()
                waiting.append(thread.submit(next, source))
        finally:
            thread.shutdown(cancel_futures=True)
