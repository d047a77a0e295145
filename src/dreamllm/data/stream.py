"""The documents of a mixture as an endless stream of packed batches, which can be resumed after any batch.

Documents are drawn (`mixture.py`), laid out as token sequences, packed into rows and collated. Layout and collation are
passed in as functions, so this module knows no tokens. A sequence that does not fit into a batch is kept for a later
one: none is lost.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from dreamllm.data import shards
from dreamllm.data.document import Document
from dreamllm.data.layout import IGNORE, TokenSequence
from dreamllm.data.mixture import Mixture, next_set
from dreamllm.data.packing import Row, check_fits, first_fit
from dreamllm.data.shards import Record, ShardProblem

PACKING_BUFFER = 1.5  # batches worth of tokens to pack from: short sequences fill the space that long ones leave
PLANNED_AHEAD = 1.1  # documents planned at once, of those that are needed on average: so that once suffices
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


class SequencePlan(NamedTuple):
    """What all processes know of a sequence: enough to pack it and to count what is in it.

    targets: of the language loss.  reads, draws: pictures
    """

    document_id: str
    tokens: int
    targets: int
    reads: int
    draws: int

    @classmethod
    def of(cls, sequence: TokenSequence) -> SequencePlan:
        """The plan of a sequence. Its first token follows nothing of its document, so it is never a target."""
        labels = sequence.labels
        targets = len(labels) - labels.count(IGNORE) - (labels[0] != IGNORE)
        document = sequence.document.id
        return cls(document, len(sequence), targets, len(sequence.read_slots), len(sequence.draw_slots))


@dataclass(frozen=True)
class StepBatch:
    """The batch of one training step, the position after it, and the damaged documents skipped since the last batch.

    collated: what `collate` made of this process's rows.  rows: the plan of all rows, equal in all processes.
    """

    collated: Any
    rows: list[list[SequencePlan]]
    position: Position
    problems: tuple[ShardProblem, ...] = ()


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A document that was drawn: its record, and the epoch of its set."""

    key: DocumentKey
    record: Record
    epoch: int


@dataclass(frozen=True, slots=True)
class _Pending:
    """A sequence that is not in a batch yet: number `piece` of its document."""

    document: _Drawn
    piece: int
    plan: SequencePlan

    @property
    def place(self) -> tuple[str, int, int]:
        return (*self.document.key, self.piece)


def no_gather(local: dict) -> dict:
    """`Stream.all_gather` of a single process."""
    return local


@dataclass(frozen=True)
class Stream:
    """An endless iterable of StepBatch: `rows` rows of at most `context` tokens each, from `position` on.

    The processes share the planning: each reads and lays out an equal share of the documents' texts and sends the
    others the `SequencePlan`s, from which all pack the same rows. It then lays out the documents of its own rows, with
    their pictures, and reports damaged pictures; all processes plan the batch again without these documents. The
    batches do not depend on the number of processes.

    lay_out: (document, epoch) -> its sequences; a pure function, which may see placeholders for pictures.
    collate: rows of this process -> batch.  local_rows: which rows of a batch belong to this process; as many as of
    every other, in the order of the processes.
    all_gather: dict of this process -> union of all processes' dicts; called several times for each batch.
    load: record -> document with its pictures.
    Iterating raises ShardProblem when too many documents are damaged, RuntimeError when processes lay out a document
    differently, and whatever `lay_out` raises.
    """

    mixture: Mixture
    lay_out: Callable[[Document, int], list[TokenSequence]]
    collate: Callable[[list[Row]], Any]
    rows: int
    context: int
    position: Position
    local_rows: slice = field(default_factory=lambda: slice(None))
    all_gather: Callable[[dict], dict] = no_gather
    load: Callable[[Record], Document] = shards.load

    def __iter__(self) -> Iterator[StepBatch]:
        drawn, skipped = dict(self.position.drawn), self.position.skipped
        own: dict[DocumentKey, list[TokenSequence]] = {}  # of documents that this process has laid out
        buffer = self._restore(own)  # oldest first
        ahead: deque[tuple[_Drawn, list[SequencePlan] | ShardProblem]] = deque()  # planned, not drawn yet
        ahead_drawn = dict(drawn)
        planned = planned_tokens = 0  # documents, and their tokens, for their mean length
        problems: list[ShardProblem] = []

        def skip(problem: ShardProblem) -> None:
            nonlocal skipped
            problems.append(problem)
            skipped += 1
            if skipped > max(MAX_SKIPPED, MAX_SKIPPED_FRACTION * sum(drawn.values())):
                raise _too_many_skipped(problem, skipped, sum(drawn.values())) from problem

        while True:
            missing = PACKING_BUFFER * self.rows * self.context - sum(pending.plan.tokens for pending in buffer)
            while missing > 0:
                if not ahead:
                    mean = planned_tokens / planned if planned_tokens else self.context
                    documents = self._draw(ahead_drawn, math.ceil(PLANNED_AHEAD * missing / mean))
                    plans = self._plan(documents, own)
                    ahead += [(document, plans[document.key]) for document in documents]
                    planned += len(documents)
                    planned_tokens += sum(_tokens(plans[document.key]) for document in documents)
                document, plan = ahead.popleft()
                drawn[document.key[0]] += 1
                if isinstance(plan, ShardProblem):
                    skip(plan)
                    continue
                buffer += [_Pending(document, piece, one) for piece, one in enumerate(plan)]
                missing -= _tokens(plan)
            packed = first_fit([pending.plan.tokens for pending in buffer], self.context)[: self.rows]
            rows = [[buffer[index] for index in row] for row in packed]
            local_rows, damaged = self._load_rows(rows[self.local_rows], own)
            damaged = self.all_gather(damaged)
            if damaged:  # plan the batch again without these documents
                for _, problem in sorted(damaged.items()):
                    skip(problem)
                buffer = [pending for pending in buffer if pending.document.key not in damaged]
                continue
            in_batch = {index for row in packed for index in row}
            buffer = [pending for index, pending in enumerate(buffer) if index not in in_batch]
            waiting = {pending.document.key for pending in buffer} | {document.key for document, _ in ahead}
            own = {key: sequences for key, sequences in own.items() if key in waiting}
            position = Position(dict(drawn), tuple(pending.place for pending in buffer), skipped)
            plan_of_rows = [[pending.plan for pending in row] for row in rows]
            yield StepBatch(self.collate(local_rows), plan_of_rows, position, tuple(problems))
            problems.clear()

    def _draw(self, drawn: dict[str, int], count: int) -> list[_Drawn]:
        """The next documents of the mixture. drawn: documents of each set before them; counted on."""
        documents = []
        for _ in range(count):
            name = next_set(self.mixture.weights, drawn)
            documents.append(_Drawn((name, drawn[name]), *self.mixture.record(name, drawn[name])))
            drawn[name] += 1
        return documents

    def _restore(self, own: dict[DocumentKey, list[TokenSequence]]) -> list[_Pending]:
        """The pending sequences of the position that the stream starts from."""
        keys = list(dict.fromkeys((name, draw) for name, draw, _ in self.position.pending))
        documents = {key: _Drawn(key, *self.mixture.record(*key)) for key in keys}
        plans: dict[DocumentKey, list[SequencePlan]] = {}
        for key, plan in self._plan(list(documents.values()), own).items():
            if isinstance(plan, ShardProblem):  # it was whole when its position was saved
                raise plan
            plans[key] = plan
        return [
            _Pending(documents[name, draw], piece, plans[name, draw][piece])
            for name, draw, piece in self.position.pending
        ]

    def _plan(
        self, documents: list[_Drawn], own: dict[DocumentKey, list[TokenSequence]]
    ) -> Mapping[DocumentKey, list[SequencePlan] | ShardProblem]:
        """The plans of some documents. This process lays out its share of them, and adds the sequences to `own`."""
        local = range(self.rows)[self.local_rows]
        processes, rank = self.rows // len(local), local.start // len(local)
        begin, end = (len(documents) * place // processes for place in (rank, rank + 1))
        found: dict[DocumentKey, list[SequencePlan] | ShardProblem] = {}
        for document in documents[begin:end]:
            try:
                sequences = self.lay_out(shards.load(document.record, decode=False), document.epoch)
            except ShardProblem as problem:
                found[document.key] = problem
                continue
            for sequence in sequences:
                check_fits(sequence, self.context)
            own[document.key] = sequences
            found[document.key] = [SequencePlan.of(sequence) for sequence in sequences]
        return self.all_gather(found)

    def _load_rows(
        self, rows: list[list[_Pending]], own: dict[DocumentKey, list[TokenSequence]]
    ) -> tuple[list[Row], dict[DocumentKey, ShardProblem]]:
        """The sequences of some rows with the pictures of their documents, and the damaged documents.

        There are no rows if a document is damaged. own: sequences without pictures; those that another process laid
        out are added.
        """
        loaded: dict[DocumentKey, Document] = {}
        damaged: dict[DocumentKey, ShardProblem] = {}
        for pending in (pending for row in rows for pending in row):
            document = pending.document
            if document.key in loaded or document.key in damaged:
                continue
            if document.key in own and not (text := own[document.key][0].document).pictures:
                loaded[document.key] = text
                continue
            try:
                loaded[document.key] = self.load(document.record)
            except ShardProblem as problem:
                damaged[document.key] = problem
                continue
            if document.key not in own:
                own[document.key] = self.lay_out(loaded[document.key], document.epoch)
        if damaged:
            return [], damaged
        for pending in (pending for row in rows for pending in row):
            sequences = own[pending.document.key]
            here = [SequencePlan.of(sequence) for sequence in sequences[pending.piece : pending.piece + 1]]
            if here != [pending.plan]:
                record = pending.document.record
                raise RuntimeError(
                    f"{record.file}, record {record.key}: this process makes {here} of it, another one {pending.plan}; "
                    "all processes need the same files, configuration and versions"
                )

        def decoded(pending: _Pending) -> TokenSequence:
            key = pending.document.key
            return replace(own[key][pending.piece], document=loaded[key])

        return [[decoded(pending) for pending in row] for row in rows], {}


def _tokens(plan: list[SequencePlan] | ShardProblem) -> int:
    return sum(one.tokens for one in plan) if isinstance(plan, list) else 0


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
