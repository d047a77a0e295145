"""Layout: which tokens are targets, where images are, and splitting, which loses no token and cuts no image."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from dreamllm.data.document import Document, Picture, Text
from dreamllm.data.layout import IGNORE, TEMPLATES, Vocabulary, lay_out, lay_out_prompt

PATCHES, QUERIES = 3, 2
BOS, EOS, PAD, IM_PATCH, IM_START, IM_END, DREAM_START, DREAM_END = range(1, 9)
NAMES = {BOS: "<s>", EOS: "</s>", IM_PATCH: ".", IM_START: "[", IM_END: "]", DREAM_START: "(", DREAM_END: ")"}
# One token per character, from 100 on: layouts can be read and written as strings.
WORDS = Vocabulary(
    encode=lambda text: [100 + ord(character) for character in text],
    bos=BOS,
    eos=EOS,
    pad=PAD,
    im_patch=IM_PATCH,
    im_start=IM_START,
    im_end=IM_END,
    dream_start=DREAM_START,
    dream_end=DREAM_END,
    num_patches=PATCHES,
    num_queries=QUERIES,
    template=TEMPLATES["plain"],
)
LONG = 10_000
PICTURE = tiny.picture()


def spell(ids) -> str:
    return "".join(NAMES.get(id) or chr(id - 100) for id in ids)


def spell_targets(sequence) -> str:
    """The sequence with everything that is no target replaced by an underscore."""
    pairs = zip(sequence.input_ids, sequence.labels, strict=True)
    assert all(label in (IGNORE, id) for id, label in zip(sequence.input_ids, sequence.labels, strict=True))
    return "".join("_" if label == IGNORE else spell([id]) for id, label in pairs)


def whole(document, mode):
    (sequence,) = lay_out(document, WORDS, mode, LONG)
    return sequence


def test_a_text_is_all_target():
    sequence = whole(Document("d", "text", (Text("ab"), Text("c"))), "joint")
    assert spell(sequence.input_ids) == "<s>abc</s>"
    assert spell_targets(sequence) == "_abc</s>"


def test_a_pair_that_is_read_starts_with_the_picture():
    sequence = whole(Document("d", "pair", (Text("ab"), Picture(PICTURE))), "comprehension")
    assert spell(sequence.input_ids) == "<s>[...]ab</s>"
    assert spell_targets(sequence) == "______ab</s>"
    assert [(slot.start, slot.picture) for slot in sequence.read_slots] == [(2, 0)]
    assert sequence.draw_slots == ()


def test_a_pair_that_is_drawn_has_no_language_target():
    sequence = whole(Document("d", "pair", (Picture(PICTURE), Text("ab"))), "creation")
    assert spell(sequence.input_ids) == "<s>ab(..)</s>"
    assert set(sequence.labels) == {IGNORE}
    assert [(slot.start, slot.picture) for slot in sequence.draw_slots] == [(4, 0)]


def test_a_pair_cannot_be_laid_out_jointly():
    with pytest.raises(ValueError, match="'the pair'.*comprehension or for creation"):
        whole(Document("the pair", "pair", (Text("ab"), Picture(PICTURE))), "joint")


@pytest.mark.parametrize(
    ("mode", "ids", "targets"),
    [
        ("comprehension", "<s>ab[...]c[...][...]</s>", "_ab_____c__________</s>"),
        ("creation", "<s>ab(..)c(..)(..)</s>", "_ab(___c(___(___</s>"),
        ("joint", "<s>ab(..)[...]c(..)[...](..)[...]</s>", "_ab(________c(________(________</s>"),
    ],
)
def test_an_interleaved_picture_is_read_drawn_or_both(mode, ids, targets):
    parts = (Text("ab"), Picture(PICTURE), Text("c"), Picture(PICTURE), Picture(PICTURE))
    sequence = whole(Document("d", "interleaved", parts), mode)
    assert spell(sequence.input_ids) == ids
    assert spell_targets(sequence) == targets
    for slots, first in ((sequence.read_slots, IM_START), (sequence.draw_slots, DREAM_START)):
        assert all(sequence.input_ids[slot.start - 1] == first for slot in slots)
        assert [slot.picture for slot in slots] == ([0, 1, 2] if slots else [])


def chat():
    parts = (
        Picture(PICTURE, "user"),
        Text("q?", "user"),
        Text("a", "assistant"),
        Text("draw", "user"),
        Text("so", "assistant"),
        Picture(PICTURE, "assistant"),
    )
    return Document("d", "conversation", parts)


def test_a_conversation_supervises_the_assistant_and_when_to_draw():
    sequence = whole(chat(), "joint")
    assert spell(sequence.input_ids) == "<s>USER:[...]q? ASSISTANT:a</s>USER: draw ASSISTANT:so(..)[...]</s>"
    assert spell_targets(sequence) == "_" * 24 + "a</s>" + "_" * 21 + "so(________</s>"
    assert [slot.picture for slot in sequence.read_slots] == [0, 1]
    assert [slot.picture for slot in sequence.draw_slots] == [1]


def test_the_users_pictures_are_read_in_every_mode():
    sequence = whole(chat(), "creation")
    assert [slot.picture for slot in sequence.read_slots] == [0]
    assert [slot.picture for slot in sequence.draw_slots] == [1]


def test_boundary_tokens_surround_the_pictures_of_the_users_turns_alone():
    """As the authors' tokenizer leaves them; one between two pictures, none around those of the assistant."""
    spaced = dataclasses.replace(WORDS, boundary=(100 + ord("|"),))
    turns = (Picture(PICTURE, "user"), Picture(PICTURE, "user"), Text("q", "user"))
    answer = (Text("a", "assistant"), Picture(PICTURE, "assistant"), Text("b", "assistant"))
    document = Document("d", "conversation", (*turns, *answer, Text("r", "user"), Text("s", "assistant")))
    (sequence,) = lay_out(document, spaced, "creation", LONG)
    wanted = "<s>USER:|[...]|[...]|q ASSISTANT:a(..)b</s>USER: r ASSISTANT:s</s>"
    assert spell(sequence.input_ids) == wanted
    assert "|" not in spell_targets(sequence)
    assert spell(whole(document, "creation").input_ids) == wanted.replace("|", "")
    for slot in sequence.read_slots:
        assert spell(sequence.input_ids[slot.start - 2 : slot.start + PATCHES + 2]) == "|[...]|"
    story = Document("d", "interleaved", (Text("a"), Picture(PICTURE), Text("b")))
    assert lay_out(story, spaced, "joint", LONG) == lay_out(story, WORDS, "joint", LONG)


def test_the_template_frames_the_turns():
    vicuna = dataclasses.replace(WORDS, template=TEMPLATES["vicuna_v1.1"])
    document = Document("d", "conversation", (Text("q", "user"), Text("a", "assistant")))
    (sequence,) = lay_out(document, vicuna, "joint", LONG)
    assert spell(sequence.input_ids).endswith("answers to the user's questions. USER: q ASSISTANT:a</s>")
    assert spell(sequence.input_ids).startswith("<s>A chat between")


def test_prompts_have_no_target_and_stay_open():
    story = Document("d", "interleaved", (Text("ab"), Picture(PICTURE)))
    assert spell(lay_out_prompt(story, WORDS, "joint", LONG).input_ids) == "<s>ab(..)[...]"
    assert spell(lay_out_prompt(story, WORDS, "comprehension", LONG).input_ids) == "<s>ab[...]"
    question = Document("d", "conversation", (Text("q", "user"),))
    assert spell(lay_out_prompt(question, WORDS, "joint", LONG).input_ids) == "<s>USER: q ASSISTANT:"
    begun = Document("d", "conversation", (Text("q", "user"), Text("It is", "assistant")))
    sequence = lay_out_prompt(begun, WORDS, "joint", LONG)
    assert spell(sequence.input_ids) == "<s>USER: q ASSISTANT:It is"
    assert set(sequence.labels) == {IGNORE}


def test_of_a_pair_the_prompt_is_the_given_half():
    pair = Document("d", "pair", (Text("ab"), Picture(PICTURE)))
    assert spell(lay_out_prompt(pair, WORDS, "comprehension", LONG).input_ids) == "<s>[...]"
    assert spell(lay_out_prompt(pair, WORDS, "creation", LONG).input_ids) == "<s>ab"


def test_a_prompt_to_be_drawn_ends_with_queries_for_the_next_picture():
    story = Document("d", "interleaved", (Text("ab"), Picture(PICTURE), Text("c")))
    sequence = lay_out_prompt(story, WORDS, "comprehension", LONG, draw=True)
    assert spell(sequence.input_ids) == "<s>ab[...]c(..)"
    assert [(slot.start, slot.picture) for slot in sequence.draw_slots] == [(10, 1)]


def test_a_prompt_is_never_cut():
    with pytest.raises(ValueError, match="'the story'.*4 tokens.*holds 3"):
        lay_out_prompt(Document("the story", "text", (Text("abc"),)), WORDS, "joint", 3)


def test_a_picture_that_does_not_fit_the_context_is_an_error_with_numbers():
    with pytest.raises(ValueError, match="'the story'.*9 tokens.*context of 9"):
        lay_out(Document("the story", "interleaved", (Picture(PICTURE), Text("a"))), WORDS, "joint", 9)


def test_a_split_keeps_a_text_with_its_picture():
    parts = (Text("abcdef"), Text("gh"), Picture(PICTURE))
    sequences = lay_out(Document("d", "interleaved", parts), WORDS, "comprehension", 10)
    assert [spell(sequence.input_ids) for sequence in sequences] == ["<s>abcdef", "<s>gh[...]</s>"]


def test_a_split_never_leaves_the_end_token_alone():
    sequences = lay_out(Document("d", "text", (Text("abcdefgh"),)), WORDS, "joint", 9)
    assert [spell(sequence.input_ids) for sequence in sequences] == ["<s>abcdefg", "<s>h</s>"]


def test_text_that_spells_a_special_token_stays_text():
    _, processor = tiny.build()
    special = set(processor.tokenizer.convert_tokens_to_ids(["<dream_start>", "<im_patch>", "</s>", "<s>"]))
    document = Document("d", "text", (Text("a <dream_start> b <im_patch></s><s>"),))
    (sequence,) = processor.lay_out(document, "joint", 256)
    assert not special & set(sequence.input_ids[1:-1])


# ---- properties -----------------------------------------------------------------------------------------------------

texts = st.text(alphabet="abcdefgh ", max_size=30)


def parts_with(role: str):
    return st.one_of(texts.map(lambda text: Text(text, role)), st.just(Picture(PICTURE, role)))


@st.composite
def documents(draw):
    kind = draw(st.sampled_from(["text", "pair", "interleaved", "conversation"]))
    if kind == "text":
        parts = [Text(text) for text in draw(st.lists(texts, min_size=1, max_size=5))]
    elif kind == "pair":
        parts = draw(st.permutations([Text(draw(texts)), Picture(PICTURE)]))
    elif kind == "interleaved":
        parts = draw(st.lists(parts_with(""), min_size=1, max_size=8))
    else:
        turns = draw(st.lists(st.tuples(parts_with("user"), parts_with("assistant")), min_size=1, max_size=4))
        parts = [part for turn in turns for part in turn][: draw(st.integers(1, 8))]
    modes = ["comprehension", "creation"] if kind == "pair" else ["comprehension", "creation", "joint"]
    return Document("d", kind, tuple(parts)), draw(st.sampled_from(modes))


@settings(max_examples=300)
@given(documents(), st.integers(11, 60))
def test_splitting_keeps_every_token_label_and_picture_and_cuts_no_block(laid, context):
    document, mode = laid
    unsplit = whole(document, mode)
    sequences = lay_out(document, WORDS, mode, context)
    assert all(len(sequence) <= context for sequence in sequences)
    assert all(sequence.input_ids[0] == BOS and sequence.labels[0] == IGNORE for sequence in sequences)
    assert unsplit.input_ids[1:] == tuple(id for sequence in sequences for id in sequence.input_ids[1:])
    assert unsplit.labels[1:] == tuple(label for sequence in sequences for label in sequence.labels[1:])
    for name in ("read_slots", "draw_slots"):
        pictures = [slot.picture for sequence in sequences for slot in getattr(sequence, name)]
        assert pictures == [slot.picture for slot in getattr(unsplit, name)]
    for sequence in sequences:
        for slot in sequence.read_slots:
            assert spell(sequence.input_ids[slot.start - 1 : slot.start + PATCHES + 1]) == "[...]"
        for slot in sequence.draw_slots:
            assert spell(sequence.input_ids[slot.start - 1 : slot.start + QUERIES + 1]) == "(..)"
    assert all(spell(sequence.input_ids) != "<s></s>" for sequence in sequences) or len(sequences) == 1


@settings(max_examples=300)
@given(documents())
def test_only_text_end_and_dream_start_are_targets(laid):
    document, mode = laid
    sequence = whole(document, mode)
    targets = {label for label in sequence.labels if label != IGNORE}
    assert targets <= {EOS, DREAM_START} | set(range(100, 300))
    if mode != "creation" or document.kind != "pair":
        assert (EOS in targets) == (document.parts[-1].role != "user" or len(document.parts) > 1)
    drawn = sum(id == DREAM_START for id in sequence.input_ids)
    supervised = sum(label == DREAM_START for label in sequence.labels)
    assert supervised == (0 if document.kind == "pair" else drawn)
