"""Packing: no document is lost, no row overflows, and documents in one row do not attend to each other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from dreamllm.data.document import Document, Text
from dreamllm.data.layout import IGNORE, TokenSequence
from dreamllm.data.packing import first_fit, pack

CONTEXT = 128


def sequence(index: int, length: int) -> TokenSequence:
    return TokenSequence(Document(f"{index}", "text", (Text("a"),)), tuple(range(length)), (IGNORE,) * length)


@settings(deadline=None)
@given(st.lists(st.integers(1, 20), max_size=40), st.integers(20, 40))
def test_packing_loses_nothing_overflows_nothing_and_is_first_fit(lengths, context):
    sequences = [sequence(index, length) for index, length in enumerate(lengths)]
    rows = pack(sequences, context)
    assert sorted(id(one) for row in rows for one in row) == sorted(id(one) for one in sequences)
    assert all(sum(map(len, row)) <= context for row in rows)
    assert all([int(one.document.id) for one in row] == sorted(int(one.document.id) for one in row) for row in rows)
    for index, row in enumerate(rows):  # the first of a row found no room in any row before it
        for earlier in rows[:index]:
            before = [one for one in earlier if int(one.document.id) < int(row[0].document.id)]
            assert sum(map(len, before)) + len(row[0]) > context
    assert pack(sequences, context) == rows


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), max_size=80), st.integers(50, 90))
def test_first_fit_by_the_tree_is_first_fit_by_looking_at_every_row(lengths, context):
    rows: list[list[int]] = []
    for index, length in enumerate(lengths):
        fitting = (row for row in rows if sum(lengths[other] for other in row) + length <= context)
        row = next(fitting, None)
        if row is None:
            rows.append([index])
        else:
            row.append(index)
    assert first_fit(lengths, context) == rows


def test_a_sequence_longer_than_the_context_is_an_error():
    with pytest.raises(ValueError, match="'7'.*30 tokens.*context of 20"):
        pack([sequence(7, 30)], 20)


def test_a_batch_ties_pictures_to_rows_and_restarts_positions():
    _, processor = tiny.build()
    first = processor.lay_out(tiny.pair(1), "comprehension", CONTEXT)
    second = processor.lay_out(tiny.pair(2), "creation", CONTEXT)
    third = processor.lay_out(tiny.story(3), "joint", CONTEXT)
    batch = processor.collate([[*first, *second], third])
    assert batch.document_ids == [["pair 1", "pair 2"], ["story 3"]]
    length, patch = len(first[0]), processor.vocabulary.im_patch
    assert batch.position_ids[0, length - 1 : length + 1].tolist() == [length - 1, 0]
    assert batch.read_slots[:, 0].tolist() == [0, 1, 1]
    assert batch.draw_slots[:, 0].tolist() == [0, 1, 1]
    for slots, count in ((batch.read_slots, processor.num_patches), (batch.draw_slots, processor.num_dream_queries)):
        for row, start in slots.tolist():
            assert (batch.input_ids[row, start : start + count] == patch).all()
            assert (batch.input_ids[row, [start - 1, start + count]] != patch).all()
    pictures = [tiny.pair(1).pictures[0], *tiny.story(3).pictures]
    assert torch.equal(batch.read_pixels, processor.read_pixels(pictures))
    pictures = [tiny.pair(2).pictures[0], *tiny.story(3).pictures]
    assert torch.equal(batch.draw_pixels, processor.draw_pixels(pictures))


def test_padding_is_a_run_of_its_own_without_targets():
    _, processor = tiny.build()
    short = processor.lay_out(Document("short", "text", (Text("A ship."),)), "joint", CONTEXT)
    long = processor.lay_out(tiny.text(), "joint", CONTEXT)
    batch = processor.collate([short, long])
    padding = batch.input_ids[0, len(short[0]) :]
    assert (padding == processor.vocabulary.pad).all() and len(padding) == len(long[0]) - len(short[0])
    assert (batch.labels[0, len(short[0]) :] == IGNORE).all()
    assert batch.position_ids[0, len(short[0]) :].tolist() == list(range(len(padding)))
    assert batch.read_pixels is None and batch.draw_pixels is None and len(batch.read_slots) == 0
