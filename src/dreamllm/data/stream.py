"""The documents of a mixture as an endless stream of packed batches, which can be resumed after any batch.

Documents are drawn (`mixture.py`), laid out as token sequences, packed into rows and collated. Layout and collation are
passed in as functions, so this module knows no tokens. A sequence that does not fit into a batch is kept for a later
one: none is lost.
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

PACKING_BUFFER = 1.5  # batches worth of tokens to pack from: short sequences fill the space that long ones leave
MAX_SKIPPED, MAX_SKIPPED_FRACTION = 10, 0.01  # training stops when damaged documents exceed both

DocumentKey = tuple[str, int]  # a document of the stream: its shard set, and its draw number in that set


@dataclass(frozen=True)
class Position:
    """A place in the stream between two batches; small and JSON-serialisable.

    drawn: number of documents drawn so far, by shard set.  pending: sequences drawn but not yet in a batch, as (set,
    draw number, index of the sequence in its document).  skipped: number of damaged documents skipped so far.
    """

    drawn: dict[str, int]
    pending: tuple[tuple[str, int, int], ...] = ()
    skipped: int = 0

    def to_json(self) -> dict[str, Any]:
        """The position as plain dicts, lists and numbers."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Position:
        """The inverse of `to_json`, also after writing and reading a JSON file."""
        pending = tuple((name, draw, piece) for name, draw, piece in data["pending"])
        return cls(dict(data["drawn"]), pending, data["skipped"])


def start_position(mixture: Mixture) -> Position:
    """The position before the first batch."""
    return Position(dict.fromkeys(mixture.weights, 0))


@dataclass(frozen=True)
class StepBatch:
    """The batch of one training step, the position after it, and the damaged documents skipped since the last batch.

    collated: what `collate` made of this process's rows.  rows: all rows of the batch, equal in all processes; the
    pictures of their documents are placeholders.
    """

    collated: Any
    rows: list[Row]
    position: Position
    problems: tuple[ShardProblem, ...] = ()


@dataclass(frozen=True)
class _Pending:
    """A sequence that is not in a batch yet. place: (set, draw number, index of the sequence in its document)."""

    place: tuple[str, int, int]
    record: Record
    sequence: TokenSequence


def no_gather(damaged: dict[DocumentKey, ShardProblem]) -> dict[DocumentKey, ShardProblem]:
    """`Stream.all_gather` of a single process."""
    return damaged


@dataclass(frozen=True)
class Stream:
    """An endless iterable of StepBatch: `rows` rows of at most `context` tokens each, from `position` on.

    Every process plans every batch, from the documents' texts. A process decodes the pictures of its own rows only and
    reports damaged ones to the others; all processes then plan the batch again without these documents.

    lay_out: (document, epoch) -> its sequences; a pure function, which sees placeholders for pictures.
    collate: rows of this process -> batch.  local_rows: which rows of a batch belong to this process.
    all_gather: damaged documents that this process met -> those that any process met; called once for each plan.
    load: record -> document with its pictures.
    Iterating raises ShardProblem when too many documents are damaged, and whatever `lay_out` raises.
    """

    mixture: Mixture
    lay_out: Callable[[Document, int], list[TokenSequence]]
    collate: Callable[[list[Row]], Any]
    rows: int
    context: int
    position: Position
    local_rows: slice = field(default_factory=lambda: slice(None))
    all_gather: Callable[[dict[DocumentKey, ShardProblem]], dict[DocumentKey, ShardProblem]] = no_gather
    load: Callable[[Record], Document] = shards.load

    def __iter__(self) -> Iterator[StepBatch]:
        drawn, skipped = dict(self.position.drawn), self.position.skipped
        buffer: list[_Pending] = []  # oldest first
        for (name, draw), places in groupby(self.position.pending, key=lambda place: place[:2]):
            sequences = self._lay_out(name, draw)
            buffer += [sequences[piece] for _, _, piece in places]
        problems: list[ShardProblem] = []

        def skip(problem: ShardProblem) -> None:
            nonlocal skipped
            problems.append(problem)
            skipped += 1
            if skipped > max(MAX_SKIPPED, MAX_SKIPPED_FRACTION * sum(drawn.values())):
                raise _too_many_skipped(problem, skipped, sum(drawn.values())) from problem

        while True:
            while sum(len(pending.sequence) for pending in buffer) < PACKING_BUFFER * self.rows * self.context:
                name = next_set(self.mixture.weights, drawn)
                draw = drawn[name]
                drawn[name] += 1
                try:
                    buffer += self._lay_out(name, draw)
                except ShardProblem as problem:
                    skip(problem)
            rows = pack([pending.sequence for pending in buffer], self.context)[: self.rows]
            by_sequence = {id(pending.sequence): pending for pending in buffer}
            local_rows, damaged = load_pictures(rows[self.local_rows], by_sequence, self.load)
            damaged = self.all_gather(damaged)
            if damaged:  # plan the batch again without these documents
                for _, problem in sorted(damaged.items()):
                    skip(problem)
                buffer = [pending for pending in buffer if pending.place[:2] not in damaged]
                continue
            packed = {id(sequence) for row in rows for sequence in row}
            buffer = [pending for pending in buffer if id(pending.sequence) not in packed]
            position = Position(dict(drawn), tuple(pending.place for pending in buffer), skipped)
            yield StepBatch(self.collate(local_rows), rows, position, tuple(problems))
            problems.clear()

    def _lay_out(self, name: str, draw: int) -> list[_Pending]:
        record, epoch = self.mixture.record(name, draw)
        sequences = self.lay_out(shards.load(record, decode=False), epoch)
        return [_Pending((name, draw, piece), record, sequence) for piece, sequence in enumerate(sequences)]


def load_pictures(
    rows: list[Row], by_sequence: dict[int, _Pending], load: Callable[[Record], Document]
) -> tuple[list[Row], dict[DocumentKey, ShardProblem]]:
    """The rows with the pictures of their documents decoded, and the damaged documents; no rows if there are any.

    by_sequence: `id` of a sequence -> its entry in the buffer.  load: record -> document with its pictures.
    """
    documents: dict[DocumentKey, Document] = {}
    damaged: dict[DocumentKey, ShardProblem] = {}
    for pending in (by_sequence[id(sequence)] for row in rows for sequence in row if sequence.document.pictures):
        key = pending.place[:2]
        if key not in documents and key not in damaged:
            try:
                documents[key] = load(pending.record)
            except ShardProblem as problem:
                damaged[key] = problem
    if damaged:
        return [], damaged

    def decoded(sequence: TokenSequence) -> TokenSequence:
        return replace(sequence, document=documents.get(by_sequence[id(sequence)].place[:2], sequence.document))

    return [[decoded(sequence) for sequence in row] for row in rows], {}


def _too_many_skipped(problem: ShardProblem, skipped: int, drawn: int) -> ShardProblem:
    what = (
        f"{problem.what}. With it, {skipped} of {drawn} documents are damaged, which is too many to continue: "
        "repair the shards"
    )
    return ShardProblem(problem.file, problem.record, what)


def prefetch(stream: Iterable[StepBatch], ahead: int = 2) -> Generator[StepBatch]:
    """Iterate over a stream while a thread prepares its next `ahead` batches; same batches, same order.

    A position counts once its batch is consumed: batches that were prepared but not used are prepared again after a
    restart. With several processes, end the stream where the training ends (`islice`): preparing a batch waits for the
    other processes. So closing it early waits for the batches that were begun, which are the same ones in all of them,
    and cancels none. A thread is enough, because decoding and resizing pictures and most of the training step release
    Python's global interpreter lock.
    """
    source = iter(stream)
    with ThreadPoolExecutor(1, "batches") as thread:
        futures = deque(thread.submit(next, source) for _ in range(ahead))
        while True:
            yield futures.popleft().result()
            futures.append(thread.submit(next, source))
