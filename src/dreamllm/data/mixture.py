"""The order of a stage's documents: a function of seed and position only.

A stage draws from several shard sets by weight. In each set, every document comes once per epoch. The position is the
number of documents drawn from each set, which is enough to resume, with any number of processes. `stream.py` makes
batches.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dreamllm.data import shards
from dreamllm.data.document import Document
from dreamllm.data.layout import Mode
from dreamllm.data.shards import Record
from dreamllm.seeds import seed_of

WINDOW = 100_000  # documents shuffled together: all of a small set, some shards at a time of one of terabytes


def next_set(weights: Mapping[str, float], drawn: Mapping[str, int]) -> str:
    """The set to draw from next: the one furthest behind its share, so that shares hold at every length.

    weights: name -> weight, any positive scale, in any order.  drawn: name -> documents drawn so far.
    """
    names = sorted(weights)  # ties are broken by name, not by the order in the configuration
    total = sum(weights[name] for name in names)
    count = sum(drawn[name] for name in names) + 1
    return max(names, key=lambda name: weights[name] / total * count - drawn[name])


def epoch_order(shard_sizes: Sequence[int], seed: int, window: int = WINDOW) -> np.ndarray:
    """A shuffled order of all documents of a set, which reads from few shards at a time.

    Shards are shuffled and grouped until a group has `window` documents, which are then shuffled together.
    Returns document numbers (N,), each of 0 .. sum(shard_sizes) - 1 exactly once.
    """
    generator = np.random.default_rng(seed)
    ends = np.cumsum(shard_sizes, dtype=np.int64)
    order: list[np.ndarray] = []
    block: list[np.ndarray] = []
    for shard in generator.permutation(len(shard_sizes)):
        block.append(np.arange(ends[shard] - shard_sizes[shard], ends[shard]))
        if sum(map(len, block)) >= window:
            order.append(generator.permutation(np.concatenate(block)))
            block = []
    if block:
        order.append(generator.permutation(np.concatenate(block)))
    return np.concatenate(order)  # (N,)


class MixtureProblem(ValueError):
    """Shard sets that are missing, empty, or do not fit the weights of a mixture: names the set."""


class Mixture:
    """The endless stream of a stage's documents. Draw number `n` of a set is the same record in every process."""

    def __init__(
        self, sets: Mapping[str, Sequence[Path]], weights: Mapping[str, float], seed: int, window: int = WINDOW
    ) -> None:
        """Index the shards of all sets (tar headers only).

        sets: name -> shards.  weights: name -> share of the documents drawn, any positive scale.
        Raises ShardProblem for a damaged shard (how many documents it lost is unknown; a single damaged document is
        met later and costs only itself), MixtureProblem for a set without documents or without a positive weight.
        """
        if sets.keys() != weights.keys():
            raise MixtureProblem(f"shard sets {sorted(sets)} and mixture weights {sorted(weights)} do not match")
        self.weights, self.seed, self.window = dict(weights), seed, window
        self._records: dict[str, list[Record]] = {}
        self._shard_sizes: dict[str, list[int]] = {}
        self._orders: dict[str, tuple[int, np.ndarray]] = {}  # the current epoch of each set, and its order
        for name, paths in sets.items():
            indexes = [shards.index(path) for path in paths]
            self._records[name] = list(itertools.chain.from_iterable(indexes))
            self._shard_sizes[name] = [len(index) for index in indexes]
            if not self._records[name]:
                raise MixtureProblem(f"shard set {name!r} has no documents in {len(paths)} shards")
            if not weights[name] > 0:
                raise MixtureProblem(
                    f"shard set {name!r} has weight {weights[name]}; remove it or give it a positive one"
                )

    def sizes(self) -> dict[str, int]:
        """Documents per set."""
        return {name: len(records) for name, records in self._records.items()}

    def record(self, name: str, draw: int) -> tuple[Record, int]:
        """The record of draw number `draw` of a set, and the epoch of the set that it belongs to."""
        epoch, place = divmod(draw, len(self._records[name]))
        if self._orders.get(name, (None, None))[0] != epoch:
            seed = seed_of(self.seed, "document order", name, epoch)
            self._orders[name] = (epoch, epoch_order(self._shard_sizes[name], seed, self.window))
        return self._records[name][self._orders[name][1][place]], epoch


def pair_mode(mode: Mode, document: Document, epoch: int, seed: int, read_share: float = 0.5) -> Mode:
    """The mode to lay out a document in: that of the stage, but a pair in joint mode is read or drawn at random.

    It is read with probability `read_share` (official code, ImageTextPair: 0.5). The choice depends on seed, document
    and epoch, so that over the epochs a pair comes in both modes.
    """
    if document.kind != "pair" or mode != "joint":
        return mode
    coin = np.random.default_rng(seed_of(seed, "pair direction", document.id, epoch)).random()
    return "comprehension" if coin < read_share else "creation"
