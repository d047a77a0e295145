"""The order of documents follows from seed and position; batches lose and repeat no document, and can be resumed."""

import itertools
import json
import pickle
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamllm.data import shards
from dreamllm.data.document import Document, Picture, Text
from dreamllm.data.layout import TokenSequence
from dreamllm.data.mixture import WINDOW, Mixture, epoch_blocks, next_set, pair_mode
from dreamllm.data.shards import ShardProblem
from dreamllm.data.stream import Position, Stream, prefetch, start_position
from dreamllm.seeds import seed_of

CONTEXT = 16


def epoch_order(shard_sizes: Sequence[int], seed: int, window: int = WINDOW) -> np.ndarray:
    """The document numbers of an epoch, in the order of its blocks."""
    return np.concatenate([order for _, order in epoch_blocks(shard_sizes, seed, window)])


def write_set(folder: Path, name: str, count: int, per_shard: int = 4) -> list[Path]:
    documents = (Document(f"{name}-{n}", "text", (Text(f"{name} {n}"),)) for n in range(count))
    return shards.write(documents, folder / name, per_shard)


@pytest.fixture
def mixture(tmp_path) -> Mixture:
    sets = {"pairs": write_set(tmp_path, "pairs", 10), "text": write_set(tmp_path, "text", 7)}
    return Mixture(sets, {"pairs": 2.0, "text": 1.0}, seed=3)


def lay_out(document: Document, epoch: int) -> list[TokenSequence]:
    """Sequences of 1 to 9 tokens; every third document is long and comes in two pieces."""
    number = int(document.id.split("-")[1])
    lengths = [1 + number % 9, 3] if number % 3 == 0 else [1 + number % 9]
    return [TokenSequence(document, (piece,) * length, (epoch,) * length) for piece, length in enumerate(lengths)]


def stream(mixture: Mixture, position: Position | None = None, rows: int = 3) -> Stream:
    """Batches here are their own rows: lists of (document id, piece, epoch)."""

    def collate(packed):
        assert all(sum(map(len, row)) <= CONTEXT for row in packed)
        return [[(s.document.id, s.input_ids[0], s.labels[0]) for s in row] for row in packed]

    return Stream(mixture, lay_out, collate, rows, CONTEXT, position or start_position(mixture))


def take(batches, count: int) -> list:
    return list(itertools.islice(batches, count))


# ---- order ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 20), min_size=1, max_size=8), st.integers(0, 99), st.integers(1, 40))
def test_an_epoch_holds_every_document_once(sizes, seed, window):
    if sum(sizes):
        assert sorted(epoch_order(sizes, seed, window)) == list(range(sum(sizes)))


def test_order_follows_from_the_seed_and_is_shuffled():
    first = epoch_order([50, 50], 1)
    assert np.array_equal(first, epoch_order([50, 50], 1))
    assert not np.array_equal(first, epoch_order([50, 50], 2))
    assert set(first[:50]) & set(range(50)) and set(first[:50]) & set(range(50, 100))  # across shards


def test_a_window_keeps_reading_within_some_shards():
    order = epoch_order([10] * 20, seed=0, window=20)
    for block in range(10):
        documents = order[20 * block : 20 * block + 20]
        assert len(set(documents // 10)) == 2
        assert list(documents) != sorted(documents)


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=4), st.integers(1, 300))
def test_shares_hold_at_every_length(weights, length):
    weights = {str(n): weight for n, weight in enumerate(weights)}
    drawn = dict.fromkeys(weights, 0)
    for count in range(1, length + 1):
        drawn[next_set(weights, drawn)] += 1
        for name, weight in weights.items():
            assert abs(drawn[name] - count * weight / sum(weights.values())) < len(weights)


@given(st.permutations(["a", "b", "c", "d"]))
def test_the_order_in_the_configuration_changes_nothing(names):
    weights = {"a": 1.0, "b": 1.0, "c": 1 / 3, "d": 0.1}
    drawn, reordered = dict.fromkeys(weights, 0), dict.fromkeys(names, 0)
    for _ in range(50):
        name = next_set(weights, drawn)
        assert name == next_set({name: weights[name] for name in names}, reordered)
        drawn[name] += 1
        reordered[name] += 1


def test_every_epoch_of_a_set_is_complete_and_in_another_order(mixture):
    epochs = [[mixture.record("pairs", 10 * epoch + n) for n in range(10)] for epoch in range(3)]
    keys = [[record.key for record, _ in epoch] for epoch in epochs]
    assert all(len(set(epoch)) == 10 for epoch in keys)
    assert len({tuple(epoch) for epoch in keys}) == 3
    assert [{number for _, number in epoch} for epoch in epochs] == [{0}, {1}, {2}]


def test_a_draw_is_the_same_wherever_one_starts(mixture, tmp_path):
    other = Mixture({n: shards.find(tmp_path / n) for n in ("pairs", "text")}, mixture.weights, seed=3)
    assert other.record("text", 17) == [mixture.record("text", n) for n in range(18)][17]
    assert other.record("text", 2) == mixture.record("text", 2)  # and back


def test_bad_mixtures_are_refused(tmp_path):
    pairs = write_set(tmp_path, "pairs", 5)
    with pytest.raises(ValueError, match="do not match"):
        Mixture({"pairs": pairs}, {"pears": 1.0}, seed=0)
    with pytest.raises(ValueError, match="no documents"):
        Mixture({"pairs": []}, {"pairs": 1.0}, seed=0)
    with pytest.raises(ValueError, match="positive"):
        Mixture({"pairs": pairs}, {"pairs": 0.0}, seed=0)
    pairs[0].write_bytes(pairs[0].read_bytes()[:1300])
    with pytest.raises(ShardProblem, match="lost"):
        Mixture({"pairs": pairs}, {"pairs": 1.0}, seed=0)


def test_pairs_in_joint_mode_are_read_and_drawn_by_a_fair_coin(mixture):
    from PIL import Image

    def pair(n):
        return Document(str(n), "pair", (Text("x"), Picture(Image.new("RGB", (1, 1)))))

    modes = [pair_mode("joint", pair(n), epoch=0, seed=1) for n in range(400)]
    assert set(modes) == {"comprehension", "creation"}
    assert 160 < modes.count("creation") < 240
    assert modes == [pair_mode("joint", pair(n), epoch=0, seed=1) for n in range(400)]
    assert modes != [pair_mode("joint", pair(n), epoch=1, seed=1) for n in range(400)]
    mostly_read = [pair_mode("joint", pair(n), 0, 1, read_share=0.8) for n in range(400)]
    assert 290 < mostly_read.count("comprehension") < 350
    assert pair_mode("creation", pair(1), 0, 1) == "creation"
    assert pair_mode("joint", Document("t", "text", (Text("x"),)), 0, 1) == "joint"


# ---- batches -------------------------------------------------------------------------------------------------------


def test_batches_hold_every_sequence_once_in_every_epoch(mixture):
    batches = take(stream(mixture), 60)
    last = batches[-1].position
    seen = Counter(sequence for item in batches for row in item.collated for sequence in row)
    assert set(seen.values()) == {1}
    waiting = Counter()
    for name, draw, piece in last.pending:
        record, epoch = mixture.record(name, draw)
        waiting[(shards.load(record).id, piece, epoch)] += 1
    wanted = Counter()
    for name, drawn in last.drawn.items():
        for draw in range(drawn):
            record, epoch = mixture.record(name, draw)
            document = shards.load(record)
            wanted.update((document.id, piece, epoch) for piece in range(len(lay_out(document, epoch))))
    assert seen + waiting == wanted
    assert last.drawn["pairs"] > 30 and abs(last.drawn["pairs"] - 2 * last.drawn["text"]) <= 2


def test_batches_are_full(mixture):
    documents = [Document(f"{name}-{n}", "text", (Text(""),)) for name in ("pairs", "text") for n in range(10)]
    lengths = {(d.id, piece): len(sequence) for d in documents for piece, sequence in enumerate(lay_out(d, 0))}
    batches = take(stream(mixture, rows=4), 40)
    assert all(len(item.collated) == 4 for item in batches)
    tokens = sum(lengths[sequence[:2]] for item in batches for row in item.collated for sequence in row)
    assert tokens > 0.9 * 40 * 4 * CONTEXT


def test_the_oldest_pending_sequence_is_always_packed_next(mixture):
    previous: tuple = ()
    for item in take(stream(mixture), 60):
        assert not previous or previous[0] not in item.position.pending  # the oldest is always served
        previous = item.position.pending


@settings(max_examples=10)
@given(stop=st.integers(1, 25))
def test_resuming_after_any_batch_gives_the_same_batches(tmp_path_factory, stop):
    folder = tmp_path_factory.mktemp("sets")
    sets = {"pairs": write_set(folder, "pairs", 10), "text": write_set(folder, "text", 7)}

    def fresh() -> Mixture:
        return Mixture(sets, {"pairs": 2.0, "text": 1.0}, seed=3)

    whole = take(stream(fresh()), 40)
    saved = json.loads(json.dumps(whole[stop - 1].position.to_json()))
    again = take(stream(fresh(), Position.from_json(saved)), 40 - stop)
    assert [item.collated for item in again] == [item.collated for item in whole[stop:]]
    assert again[-1].position == whole[-1].position


def test_prefetching_changes_nothing(mixture):
    plain = take(stream(mixture), 30)
    ahead = prefetch(stream(mixture), ahead=3)
    assert take(ahead, 30) == plain
    ahead.close()


def test_prefetching_raises_the_errors_of_the_stream(tmp_path):
    sets = {"text": write_set(tmp_path, "text", 5)}

    def failing(document, epoch):
        raise ValueError(f"document {document.id}: too long")

    bad = Stream(Mixture(sets, {"text": 1.0}, 0), failing, lambda rows: rows, 2, CONTEXT, Position({"text": 0}))
    with pytest.raises(ValueError, match="too long"):
        next(prefetch(bad))


# ---- several processes -----------------------------------------------------------------------------------------------


def in_step(whole: Stream, mixtures: list[Mixture], count: int) -> list[list]:
    """The first batches of some processes, which are threads here, each with its mixture; by process."""
    number = len(mixtures)
    sent: list[dict] = [{} for _ in range(number)]
    barrier = threading.Barrier(number, timeout=60)

    def work(rank: int) -> list:
        def all_gather(local: dict) -> dict:
            sent[rank] = pickle.loads(pickle.dumps(local))
            barrier.wait()
            joined = {key: value for one in sent for key, value in one.items()}
            barrier.wait()
            return joined

        rows = whole.rows // number
        local = slice(rank * rows, rank * rows + rows)
        stream = replace(whole, mixture=mixtures[rank], local_rows=local, all_gather=all_gather)
        try:
            return take(stream, count)
        except BaseException as error:
            errors.append(error)
            barrier.abort()
            raise

    errors: list[BaseException] = []
    with ThreadPoolExecutor(number) as pool:
        futures = [pool.submit(work, rank) for rank in range(number)]
    for error in errors[:1]:  # the others only waited for it
        raise error
    return [future.result() for future in futures]


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_that_share_the_planning_make_the_batches_of_one(tmp_path, processes):
    sets = {"pairs": write_set(tmp_path, "pairs", 40), "text": write_set(tmp_path, "text", 7)}
    damage(sets["pairs"][1], "00000005")
    laid_out = Counter()

    def counting(document: Document, epoch: int) -> list[TokenSequence]:
        laid_out[threading.current_thread()] += 1
        return lay_out(document, epoch)

    def fresh() -> Mixture:
        return Mixture(sets, {"pairs": 2.0, "text": 1.0}, seed=3)

    whole = replace(stream(fresh(), rows=8), lay_out=counting)
    alone = take(whole, 12)
    wanted = laid_out.total()
    laid_out.clear()
    shared = in_step(whole, [fresh() for _ in range(processes)], 12)
    for batches in shared:
        assert [one.rows for one in batches] == [one.rows for one in alone]
        assert [one.position for one in batches] == [one.position for one in alone]
        assert [list(map(str, one.problems)) for one in batches] == [list(map(str, one.problems)) for one in alone]
    for number, one in enumerate(alone):
        assert [row for batches in shared for row in batches[number].collated] == one.collated
    assert any(one.problems for one in alone)
    for laid in laid_out.values():  # a share of the planning, and the documents of its own rows
        assert laid < 1.25 * 2 * wanted / processes
    resumed = in_step(replace(whole, position=alone[4].position), [fresh() for _ in range(processes)], 7)
    for batches in resumed:
        assert [one.rows for one in batches] == [one.rows for one in alone[5:]]


def test_processes_that_read_different_files_are_stopped(tmp_path):
    mixtures = []
    for place in ("one", "other"):
        sets = {"text": write_set(tmp_path / place, "text", 9)}
        mixtures.append(Mixture(sets, {"text": 1.0}, seed=3))

    def by_place(document: Document, epoch: int) -> list[TokenSequence]:
        longer = threading.current_thread().name.endswith("_1")
        return [TokenSequence(document, (0,) * (4 + longer), (0,) * (4 + longer))]

    whole = replace(stream(mixtures[0], rows=4), lay_out=by_place)
    with pytest.raises(RuntimeError, match="text-0000.*tokens=[45].*another one.*need the same files"):
        in_step(whole, mixtures, 2)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 20), st.data())
@settings(max_examples=20, deadline=None)
def test_draws_are_those_of_the_whole_order_wherever_the_blocks_end(tmp_path_factory, sizes, window, data):
    folder = tmp_path_factory.mktemp("set")
    paths = []
    for number, size in enumerate(sizes):
        documents = (Document(f"{number}-{n}", "text", (Text("x"),)) for n in range(size))
        paths += shards.write(documents, folder / f"text{number}", per_shard=size)
    mixture = Mixture({"text": paths}, {"text": 1.0}, seed=5, window=window)
    records = [record for path in paths for record in shards.index(path)]
    wanted = []
    for epoch in range(2):
        order = epoch_order(sizes, seed_of(5, "document order", "text", epoch), window)
        wanted += [(records[number], epoch) for number in order]
    assert [mixture.record("text", draw) for draw in range(2 * sum(sizes))] == wanted
    draw = data.draw(st.integers(0, 2 * sum(sizes) - 1))
    assert mixture.record("text", draw) == wanted[draw]  # back


# ---- damaged documents ---------------------------------------------------------------------------------------------


def damage(path: Path, key: str) -> None:
    """Make the JSON of a record unreadable, in place."""
    [(_, offset, _)] = next(record.members for record in shards.index(path) if record.key == key)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"}")


def test_a_damaged_document_is_skipped_counted_and_named(mixture, tmp_path):
    damage(tmp_path / "pairs-00001.tar", "00000005")
    batches = take(stream(mixture), 12)
    problems = [problem for item in batches for problem in item.problems]
    last = batches[-1].position
    assert {(Path(p.file).name, p.record) for p in problems} == {("pairs-00001.tar", "00000005")}
    keys = [mixture.record("pairs", n)[0].key for n in range(last.drawn["pairs"])]
    assert last.skipped == len(problems) == keys.count("00000005") > 1
    seen = {sequence[0] for item in batches for row in item.collated for sequence in row}
    assert "pairs-5" not in seen and {"pairs-4", "pairs-6"} <= seen
    again = take(stream(mixture, batches[5].position), 6)
    assert again[-1].position == last  # the count goes on too


def test_too_many_damaged_documents_stop(mixture, tmp_path):
    for n in range(4):
        damage(tmp_path / "pairs-00000.tar", f"{n:08d}")
    with pytest.raises(ShardProblem, match=r"pairs-00000.tar, record 0000000\d: .*11 of \d+ documents are damaged"):
        take(stream(mixture), 100)
