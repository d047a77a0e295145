"""The stream of documents becomes a stream of packed batches that can be taken up again at any batch.

Documents are drawn (`mixture.py`), laid out as token sequences, packed into rows and collated; these last steps come in
as functions, so that no tokens are known here. What does not fit into a batch waits for the next one: nothing is lost.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from dreamllm.data import shards
from dreamllm.data.document import Document
from dreamllm.data.layout import TokenSequence
from dreamllm.data.mixture import Mixture, next_set
from dreamllm.data.packing import Row, pack
from dreamllm.data.shards import Record, ShardProblem

LOOKAHEAD = 1.5  # batches worth of tokens to choose from when packing: short sequences fill the gaps of long ones
SKIPS_ALLOWED, SKIP_SHARE_ALLOWED = 10, 0.01  # more damaged documents than both of these stop a training


Draw = tuple[str, int]  # a document of the stream: its set, and the number of its draw from it


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
    """A batch, the position just behind it, and the damaged documents met on the way to it.

    batch: what `collate` made of this process's share of the rows.  rows: the plan of the whole batch, the same in all
    processes; its documents have stand-ins for pictures.
    """

    batch: Any
    rows: list[Row]
    position: Position
    problems: tuple[ShardProblem, ...] = ()


@dataclass(frozen=True)
class _Waiting:
    """A sequence that is not in a batch yet. place: set, draw number, piece of the document."""

    place: tuple[str, int, int]
    record: Record
    sequence: TokenSequence


def alone(damaged: dict[Draw, ShardProblem]) -> dict[Draw, ShardProblem]:
    """`Stream.agree` of a single process."""
    return damaged


@dataclass(frozen=True)
class Stream:
    """Batches of `rows` rows of `context` tokens, from a position on, without end.

    Batches are planned from texts alone, equally in all processes; pictures are decoded by the process whose rows hold
    them, which tells the others of damaged ones, so that all of them plan without these.

    lay_out: (document, epoch) -> its sequences, a pure function; it sees stand-ins for pictures.
    collate: this process's rows of sequences -> batch.  share: which rows are this process's.
    agree: damaged documents that this process met -> those that any process met; called once per attempt at a batch.
    load: a record -> its document with pictures.
    Iterating raises ShardProblem when too many documents are damaged, and whatever `lay_out` raises.
    """

    mixture: Mixture
    lay_out: Callable[[Document, int], list[TokenSequence]]
    collate: Callable[[list[Row]], Any]
    rows: int
    context: int
    position: Position
    share: slice = field(default_factory=lambda: slice(None))
    agree: Callable[[dict[Draw, ShardProblem]], dict[Draw, ShardProblem]] = alone
    load: Callable[[Record], Document] = shards.load

    def __iter__(self) -> Iterator[Prepared]:
        drawn, skipped = dict(self.position.drawn), self.position.skipped
        pool: list[_Waiting] = []  # oldest first
        for (name, draw), pieces in groupby(self.position.pending, key=lambda pending: pending[:2]):
            waiting = self._lay_out(name, draw)
            pool += [waiting[piece] for _, _, piece in pieces]
        problems: list[ShardProblem] = []

        def skip(problem: ShardProblem) -> None:
            nonlocal skipped
            problems.append(problem)
            skipped += 1
            if skipped > max(SKIPS_ALLOWED, SKIP_SHARE_ALLOWED * sum(drawn.values())):
                raise _too_many(problem, skipped, sum(drawn.values())) from problem

        while True:
            while sum(len(waiting.sequence) for waiting in pool) < LOOKAHEAD * self.rows * self.context:
                name = next_set(self.mixture.weights, drawn)
                draw = drawn[name]
                drawn[name] += 1
                try:
                    pool += self._lay_out(name, draw)
                except ShardProblem as problem:
                    skip(problem)
            rows = pack([waiting.sequence for waiting in pool], self.context)[: self.rows]
            mine, damaged = with_pictures(
                rows[self.share], {id(waiting.sequence): waiting for waiting in pool}, self.load
            )
            damaged = self.agree(damaged)
            if damaged:  # plan again without them
                for _, problem in sorted(damaged.items()):
                    skip(problem)
                pool = [waiting for waiting in pool if waiting.place[:2] not in damaged]
                continue
            taken = {id(sequence) for row in rows for sequence in row}
            pool = [waiting for waiting in pool if id(waiting.sequence) not in taken]
            position = Position(dict(drawn), tuple(waiting.place for waiting in pool), skipped)
            yield Prepared(self.collate(mine), rows, position, tuple(problems))
            problems.clear()

    def _lay_out(self, name: str, draw: int) -> list[_Waiting]:
        record, epoch = self.mixture.record(name, draw)
        sequences = self.lay_out(shards.load(record, decode=False), epoch)
        return [_Waiting((name, draw, piece), record, sequence) for piece, sequence in enumerate(sequences)]


def with_pictures(
    rows: list[Row], pool: dict[int, _Waiting], load: Callable[[Record], Document]
) -> tuple[list[Row], dict[Draw, ShardProblem]]:
    """The rows with their documents' pictures decoded, and the documents that are damaged; no rows where there are any.

    pool: where each sequence of the rows comes from, by the identity of the sequence.  load: a record -> its document.
    """
    documents: dict[Draw, Document] = {}
    damaged: dict[Draw, ShardProblem] = {}
    for waiting in (pool[id(sequence)] for row in rows for sequence in row if sequence.document.pictures):
        draw = waiting.place[:2]
        if draw not in documents and draw not in damaged:
            try:
                documents[draw] = load(waiting.record)
            except ShardProblem as problem:
                damaged[draw] = problem
    if damaged:
        return [], damaged

    def decoded(sequence: TokenSequence) -> TokenSequence:
        return replace(sequence, document=documents.get(pool[id(sequence)].place[:2], sequence.document))

    return [[decoded(sequence) for sequence in row] for row in rows], {}


def _too_many(problem: ShardProblem, skipped: int, drawn: int) -> ShardProblem:
    what = f"{problem.what}; with it {skipped} of {drawn} documents are damaged, too many to go on: repair the shards"
    return ShardProblem(problem.file, problem.record, what)


def start(mixture: Mixture) -> Position:
    """The beginning of the stream."""
    return Position(dict.fromkeys(mixture.weights, 0))


def prefetch(stream: Iterable[Prepared], ahead: int = 2) -> Generator[Prepared]:
    """Iterate over a stream with its next batches made ahead of time in another thread; the same batches, in order.

    A position counts when its batch is consumed: what was made ahead and never used is made again after a restart. In
    several processes the stream must end with the training (`islice`): a batch ahead waits for the other processes.
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
