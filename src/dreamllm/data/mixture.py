"""The order of a stage's documents: a function of seed and position only.

A stage draws from several shard sets by weight. In each set, every document comes once per epoch. The position is the
number of documents drawn from each set, which is enough to resume, with any number of processes. `stream.py` makes
batches.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dreamllm.data import shards
from dreamllm.data.document import Document
from dreamllm.data.layout import Mode
from dreamllm.data.remote import RemoteShard, RemoteShardProblem, ShardCache, read_list
from dreamllm.data.shards import Record
from dreamllm.seeds import seed_of

LIST_SUFFIX = ".json"
WINDOW = 100_000  # documents shuffled together: all of a small set, some shards at a time of one of terabytes


def next_set(weights: Mapping[str, float], drawn: Mapping[str, int]) -> str:
    """The set to draw from next: the one furthest behind its share, so that shares hold at every length.

    weights: name -> weight, any positive scale, in any order.  drawn: name -> documents drawn so far.
    """
    names = sorted(weights)  # ties are broken by name, not by the order in the configuration
    total = sum(weights[name] for name in names)
    count = sum(drawn[name] for name in names) + 1
    return max(names, key=lambda name: weights[name] / total * count - drawn[name])


def epoch_blocks(shard_sizes: Sequence[int], seed: int, window: int = WINDOW) -> Iterator[tuple[list[int], np.ndarray]]:
    """The blocks of an epoch's order: shards are shuffled and grouped until a group has `window` documents.

    Yields the numbers of a block's shards, and its shuffled document numbers (B,), one block at a time.
    """
    generator = np.random.default_rng(seed)
    ends = np.cumsum(shard_sizes, dtype=np.int64)
    block: list[int] = []
    size = 0
    permutation = generator.permutation(len(shard_sizes)).tolist()
    for place, shard in enumerate(permutation, 1):
        block.append(shard)
        size += shard_sizes[shard]
        if size >= window or place == len(permutation):
            numbers = [np.arange(ends[shard] - shard_sizes[shard], ends[shard]) for shard in block]
            yield block, generator.permutation(np.concatenate(numbers))
            block, size = [], 0


class MixtureProblem(ValueError):
    """Shard sets that are missing, empty, or do not fit the weights of a mixture: names the set."""


@dataclass(frozen=True)
class _Block:
    """Documents of an epoch that are shuffled together. begin: place of the first one in the epoch

    shards: their numbers.  order: document numbers (B,)
    """

    epoch: int
    begin: int
    shards: list[int]
    order: np.ndarray

    def has(self, epoch: int, place: int) -> bool:
        return epoch == self.epoch and self.begin <= place < self.begin + len(self.order)


class _ShardSet:
    """One shard set. It holds the order and the records of one block of an epoch, whatever the size of the set.

    Draws are looked up in increasing order; an earlier one costs a pass through the blocks of its epoch.
    """

    def __init__(self, name: str, paths: Sequence[Path], cache: ShardCache | None) -> None:
        """Number the documents: from shard lists, or else by the tar headers of all shards."""
        self.name = name
        self.lists = [path for path in paths if path.suffix == LIST_SUFFIX]
        self.indexes: dict[int, list[Record]] = {}  # of the shards of the current block
        listed = [(shard, size) for path in self.lists for shard, size in read_list(path, cache)]
        self.shards: list[Path | RemoteShard] = [shard for shard, _ in listed]
        self.sizes = [size for _, size in listed]
        self.total = sum(self.sizes)
        for path in (path for path in paths if path.suffix != LIST_SUFFIX):
            index = shards.index(path)
            if self.total < WINDOW:  # the first ones are kept, so that small sets are indexed once
                self.indexes[len(self.shards)] = index
            self.shards.append(path)
            self.sizes.append(len(index))
            self.total += len(index)
        self.ends = np.cumsum(self.sizes, dtype=np.int64)  # (number of shards,)
        self.blocks: Iterator[_Block] = iter(())
        self.block = self.following = _Block(-1, 0, [], np.empty(0, np.int64))

    def find(self, draw: int, seed: int, window: int) -> bool:
        """Go to the block that has this draw; returns whether that is another one than before."""
        place = divmod(draw, self.total)  # (epoch, place in it)
        if self.block.has(*place):
            return False
        if place < (self.block.epoch, self.block.begin) or place[0] > self.following.epoch:
            self.blocks = self._blocks(place[0], seed, window)
            self.following = next(self.blocks)
        while not self.block.has(*place):
            self.block, self.following = self.following, next(self.blocks)
        kept = set(self.block.shards)
        self.indexes = {shard: index for shard, index in self.indexes.items() if shard in kept}
        return True

    def _blocks(self, first_epoch: int, seed: int, window: int) -> Iterator[_Block]:
        """All blocks from the first one of an epoch on, without end."""
        for epoch in itertools.count(first_epoch):
            begin = 0
            order_seed = seed_of(seed, "document order", self.name, epoch)
            for numbers, order in epoch_blocks(self.sizes, order_seed, window):
                yield _Block(epoch, begin, numbers, order)
                begin += len(order)

    def record(self, draw: int) -> Record:
        """The record of a draw of the current block."""
        number = int(self.block.order[draw % self.total - self.block.begin])
        shard = int(np.searchsorted(self.ends, number, side="right"))
        if shard not in self.indexes:
            self.indexes[shard] = index = shards.index(self.shards[shard])
            if len(index) != self.sizes[shard]:
                where = f" for {self.lists[0]}" if self.lists else ""
                raise MixtureProblem(
                    f"{self.shards[shard]} has {len(index)} documents, and had {self.sizes[shard]} when it was counted"
                    f"{where}; bring the former shard back, or write the list again by dreamllm list-shards (which "
                    "begins another training)"
                )
        return self.indexes[shard][number - int(self.ends[shard]) + self.sizes[shard]]

    def remote(self, block: _Block) -> list[RemoteShard]:
        """The remote shards of a block."""
        return [shard for number in block.shards if isinstance(shard := self.shards[number], RemoteShard)]


class Mixture:
    """The endless stream of a stage's documents. Draw number `n` of a set is the same record in every process."""

    def __init__(
        self,
        sets: Mapping[str, Sequence[Path]],
        weights: Mapping[str, float],
        seed: int,
        window: int = WINDOW,
        cache: ShardCache | None = None,
    ) -> None:
        """Index the shards of all sets (tar headers only), or read their shard lists.

        sets: name -> shards, or shard lists (*.json).  weights: name -> share of the documents drawn, any positive
        scale.  cache: for remote shards
        Raises ShardProblem for a damaged shard (how many documents it lost is unknown; a single damaged document is
        met later and costs only itself), RemoteShardProblem for a shard list that cannot be used, MixtureProblem for a
        set without documents or without a positive weight.
        """
        if sets.keys() != weights.keys():
            raise MixtureProblem(f"shard sets {sorted(sets)} and mixture weights {sorted(weights)} do not match")
        self.weights, self.seed, self.window, self.cache = dict(weights), seed, window, cache
        self._sets: dict[str, _ShardSet] = {}
        for name, paths in sets.items():
            self._sets[name] = _ShardSet(name, paths, cache)
            if not self._sets[name].total:
                raise MixtureProblem(f"shard set {name!r} has no documents in {len(paths)} shards")
            if not weights[name] > 0:
                raise MixtureProblem(
                    f"shard set {name!r} has weight {weights[name]}; remove it or give it a positive one"
                )

    def sizes(self) -> dict[str, int]:
        """Documents per set."""
        return {name: one.total for name, one in self._sets.items()}

    def record(self, name: str, draw: int) -> tuple[Record, int]:
        """The record of draw number `draw` of a set, and the epoch of the set that it belongs to.

        Remote shards are fetched where needed, those of the next `window` documents in advance. Raises
        RemoteShardProblem for one that cannot be had, MixtureProblem for one with another number of documents than its
        list says, ShardProblem for a damaged one.
        """
        one = self._sets[name]
        if one.find(draw, self.seed, self.window):
            self._fetch_ahead(one)
        return one.record(draw), one.block.epoch

    def _fetch_ahead(self, one: _ShardSet) -> None:
        """Begin to fetch the shards of a set's block, and then those of the next one if the cache holds both."""
        now = one.remote(one.block)
        if not now or self.cache is None:
            return
        missing = [shard for shard in now if not shard.touch()]
        needed = sum(shard.size for other in self._sets.values() for shard in other.remote(other.block))
        if needed > self.cache.limit:
            raise RemoteShardProblem(
                f"machine.shard_cache_gb: the shards from which documents are shuffled now have {needed / 1e9:.1f} GB, "
                f"the cache holds {self.cache.limit / 1e9:.1f} GB; raise it, best to more than twice as much"
            )
        following = one.remote(one.following)
        if needed + sum(shard.size for shard in following) > self.cache.limit:
            following = []
        self.cache.fetch_ahead([*missing, *(shard for shard in following if not shard.touch())])


def pair_mode(mode: Mode, document: Document, epoch: int, seed: int, read_share: float = 0.5) -> Mode:
    """The mode to lay out a document in: that of the stage, but a pair in joint mode is read or drawn at random.

    It is read with probability `read_share` (official code, ImageTextPair: 0.5). The choice depends on seed, document
    and epoch, so that over the epochs a pair comes in both modes.
    """
    if document.kind != "pair" or mode != "joint":
        return mode
    coin = np.random.default_rng(seed_of(seed, "pair direction", document.id, epoch)).random()
    return "comprehension" if coin < read_share else "creation"
