"""Convert a Document to tokens, labels and picture slots. All templates and label masks are here.

A picture that is read is IMG = <im_start> <im_patch>*P <im_end>, one that is drawn DREAM = <dream_start> <im_patch>*Q
<dream_end>. In joint mode a picture is DREAM followed by IMG: it is drawn from the text before it, then read by the
text after it (paper section 3.2; official code, builder_dreamllm.py).

    text           <s> text </s>
    pair           comprehension: <s> IMG text </s>       creation: <s> text DREAM </s>, without any language target
    interleaved    <s> text picture text picture ... </s>, a picture being IMG, DREAM or DREAM IMG by mode
    conversation   <s> system USER: ... ASSISTANT: answer </s> USER: ... ; user pictures are only read; or what the
                   tokenizer's chat template renders, with the token that ends an answer in place of </s>

Targets of the language loss are text, </s> and <dream_start>; the user's words, patches, queries and the other picture
tokens are masked. Unlike in the official code, <dream_start> is a target in conversations too, so that they teach when
to draw; documents longer than the context are split instead of truncated; text that spells a special token stays text.

`packing.py` packs the sequences. This module imports neither torch nor a tokenizer library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

from dreamllm.data.document import Document, Picture, Role, Text

IGNORE = -100  # label of a position without a target, as in torch and transformers
Mode = Literal["comprehension", "creation", "joint"]


class LayoutProblem(ValueError):
    """A document that cannot be laid out: names the document and the reason."""


@dataclass(frozen=True)
class Template:
    """The system prompt and the role markers of a conversation."""

    system: str
    user: str
    assistant: str


TEMPLATES = {
    "vicuna_v1.1": Template(
        system="A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions.",
        user="USER:",
        assistant="ASSISTANT:",
    ),
    "plain": Template(system="", user="USER:", assistant="ASSISTANT:"),
}


@dataclass(frozen=True)
class Words:
    """Consecutive text tokens of a rendered conversation; is_target: whether each of them is a target."""

    ids: tuple[int, ...]
    is_target: tuple[bool, ...]


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of a tokenizer.

    render(turns, closed): the tokens of the turns, (role, contents) in alternation from the user's, with None for a
    picture among the contents. Targets are the assistant's contents and the end of its turns. `closed`: with the end of
    the last turn, if it is the assistant's; after the user's last turn, the beginning of an answer follows
    end: the token that ends an answer
    """

    render: Callable[[Sequence[tuple[Role, Sequence[str | None]]], bool], list[Words | None]]
    end: int


@dataclass(frozen=True)
class Vocabulary:
    """What the layout needs to know of a tokenizer and a model; `DreamLLMProcessor.vocabulary` builds it.

    encode: text -> token ids, without <s> and without special tokens
    """

    encode: Callable[[str], list[int]]
    bos: int
    eos: int
    pad: int
    im_patch: int
    im_start: int
    im_end: int
    dream_start: int
    dream_end: int
    num_patches: int  # P, patches of a picture that is read
    num_queries: int  # Q, dream queries of a picture that is drawn
    template: Template = TEMPLATES["vicuna_v1.1"]
    boundary: tuple[int, ...] = ()  # tokens before and after each picture of a user's turn
    chat: ChatTemplate | None = None  # lays out conversations in place of `template`

    @property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end what the model writes."""
        return (self.eos,) if self.chat is None or self.chat.end == self.eos else (self.eos, self.chat.end)


@dataclass(frozen=True)
class Slot:
    """Position of a picture: its first patch or query is at `start`; `picture` is an index of document.pictures."""

    start: int
    picture: int


@dataclass(frozen=True)
class TokenSequence:
    """A document, or a part of a long one, as tokens. `labels` are aligned with `input_ids`, not shifted."""

    document: Document
    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    read_slots: tuple[Slot, ...] = ()
    draw_slots: tuple[Slot, ...] = ()

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class _Piece:
    """Consecutive tokens; slot positions are relative to the piece. Only text may be split."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    read_slots: tuple[Slot, ...] = ()
    draw_slots: tuple[Slot, ...] = ()
    is_text: bool = False

    def __len__(self) -> int:
        return len(self.input_ids)

    def split(self, length: int) -> tuple[_Piece, _Piece]:
        """The first `length` tokens of a text and the rest."""
        head = _Piece(self.input_ids[:length], self.labels[:length], is_text=True)
        return head, _Piece(self.input_ids[length:], self.labels[length:], is_text=True)


# Pieces that stay together when a document is split: a text with the pictures after it, or a user and assistant turn.
_Group = list[_Piece]


def lay_out(document: Document, vocabulary: Vocabulary, mode: Mode, context: int) -> list[TokenSequence]:
    """Token sequences of a training document, in order: one, or several of at most `context` tokens if it is longer.

    mode: a pair needs "comprehension" or "creation" (`mixture.pair_mode` chooses).
    A text stays with its pictures where possible, and is split only if it exceeds the context on its own. Every
    sequence begins with <s>, the last one ends with </s>, and no token is lost or duplicated.

    Raises LayoutProblem for a pair in joint mode, and for a picture block that is longer than the context.
    """
    groups = _groups(document, vocabulary, mode, closed=True)
    if document.parts[-1].role != "user" and not _is_chat(document, vocabulary):  # no </s> after an unanswered user
        is_drawn_pair = document.kind == "pair" and mode == "creation"
        _close(groups[-1], vocabulary, target=not is_drawn_pair)
    sequences = _split(document, groups, context)
    return [_sequence(document, vocabulary, pieces, is_first=not n) for n, pieces in enumerate(sequences)]


def lay_out_prompt(
    document: Document, vocabulary: Vocabulary, mode: Mode, context: int, *, draw: bool = False
) -> TokenSequence:
    """Tokens of a document for the model to continue, without targets and without </s>.

    Of a pair, only the input is laid out: the picture to describe, or the text to draw. A conversation ends with the
    assistant's marker, or with the beginning of its answer. With `draw`, a DREAM block is appended, whose slot has the
    picture index len(document.pictures).

    Raises LayoutProblem for a prompt longer than `context` tokens: prompts are never truncated.
    """
    groups = _groups(document, vocabulary, mode, closed=False)
    pieces = [piece for group in groups for piece in group]
    if document.kind == "pair":
        pieces = pieces[:1]
    if draw:
        pieces.append(_picture(len(document.pictures), vocabulary, draw=True, read=False, target=False))
    sequence = _sequence(document, vocabulary, pieces)
    if (length := len(sequence)) > context:
        raise LayoutProblem(f"document {document.id!r}: the prompt has {length} tokens, the context holds {context}")
    return TokenSequence(document, sequence.input_ids, (IGNORE,) * length, sequence.read_slots, sequence.draw_slots)


def _is_chat(document: Document, vocabulary: Vocabulary) -> bool:
    """Whether the tokenizer's chat template lays the document out."""
    return document.kind == "conversation" and vocabulary.chat is not None


def _groups(document: Document, vocabulary: Vocabulary, mode: Mode, *, closed: bool) -> list[_Group]:
    """The document as pieces, without its first <s> and last </s>; a document without tokens gives one empty piece.

    closed: a conversation of a chat template ends with the end of the assistant's last turn
    """
    if _is_chat(document, vocabulary):
        return _chat(document, vocabulary, mode, closed=closed)
    lay_out_kind = {"pair": _pair, "conversation": _conversation}.get(document.kind, _interleaved)
    groups = [[piece for piece in group if len(piece)] for group in lay_out_kind(document, vocabulary, mode)]
    return [group for group in groups if group] or [[_Piece((), ())]]


def _pair(document: Document, vocabulary: Vocabulary, mode: Mode) -> list[_Group]:
    if mode == "joint":
        raise LayoutProblem(
            f"document {document.id!r}: a pair is laid out for comprehension or for creation, not jointly"
        )
    text = next(part.text for part in document.parts if isinstance(part, Text))
    if mode == "comprehension":
        picture = _picture(0, vocabulary, draw=False, read=True, target=False)
        return [[picture, _text(text, vocabulary, target=True)]]
    picture = _picture(0, vocabulary, draw=True, read=False, target=False)
    return [[_text(text, vocabulary, target=False), picture]]


def _interleaved(document: Document, vocabulary: Vocabulary, mode: Mode) -> list[_Group]:
    groups: list[_Group] = []
    pictures = 0
    for part in document.parts:
        if isinstance(part, Text):
            groups.append([_text(part.text, vocabulary, target=True)])
        else:
            piece = _picture_by_mode(pictures, vocabulary, mode)
            pictures += 1
            if groups:
                groups[-1].append(piece)
            else:
                groups.append([piece])
    return groups


def _conversation(document: Document, vocabulary: Vocabulary, mode: Mode) -> list[_Group]:
    template = vocabulary.template
    groups: list[_Group] = []
    pictures = 0
    for role, parts in groupby(document.parts, key=lambda part: part.role):
        if role == "user":
            opening = template.user if groups else f"{template.system} {template.user}".strip()
            if groups:
                _close(groups[-1], vocabulary, target=True)
            group: _Group = []
            boundary = _Piece(vocabulary.boundary, (IGNORE,) * len(vocabulary.boundary), is_text=True)
            for number, (words, picture) in enumerate(_runs([Text(opening), *parts, Text(template.assistant)])):
                if number:
                    group.append(boundary)  # after the picture of the run before
                if words:
                    group.append(_text(words, vocabulary, target=False))
                if picture is not None:
                    if words:  # one boundary between two pictures
                        group.append(boundary)
                    group.append(_picture(pictures, vocabulary, draw=False, read=True, target=False))
                    pictures += 1
            groups.append(group)
        else:
            for part in parts:
                if isinstance(part, Picture):
                    groups[-1].append(_picture_by_mode(pictures, vocabulary, mode))
                    pictures += 1
                elif len(piece := _text(part.text, vocabulary, target=True)):
                    groups[-1].append(piece)
    return groups


def _chat(document: Document, vocabulary: Vocabulary, mode: Mode, *, closed: bool) -> list[_Group]:
    """A conversation by the tokenizer's chat template. A group ends with the end of an answer."""
    assert vocabulary.chat is not None
    turns: list[tuple[Role, list[str | None]]] = []
    by_user = []  # of each picture
    for role, parts in groupby(document.parts, key=lambda part: part.role):
        turns.append((role, []))
        for words, picture in _runs(parts):
            turns[-1][1].extend([words] if words else [])
            if picture is not None:
                turns[-1][1].append(None)
                by_user.append(role == "user")
    groups: list[_Group] = [[]]
    pictures = 0
    for words in vocabulary.chat.render(turns, closed):
        group = groups[-1]
        if words is None:
            read_only: Mode = "comprehension" if by_user[pictures] else mode
            group.append(_picture_by_mode(pictures, vocabulary, read_only))
            pictures += 1
            continue
        labels = tuple(id_ if target else IGNORE for id_, target in zip(words.ids, words.is_target, strict=True))
        is_end = words.ids == (vocabulary.chat.end,) and words.is_target[0]
        if group and (group[-1].is_text or is_end):  # no sequence of an end alone
            last = group[-1]
            group[-1] = replace(last, input_ids=(*last.input_ids, *words.ids), labels=(*last.labels, *labels))
        else:
            group.append(_Piece(words.ids, labels, is_text=True))
        if is_end:
            groups.append([])
    return [group for group in groups if group]


def _close(group: _Group, vocabulary: Vocabulary, *, target: bool) -> None:
    """Append </s> to the last piece of a group, so that a split never makes a sequence of </s> alone."""
    last, eos = group[-1], vocabulary.eos
    group[-1] = replace(last, input_ids=(*last.input_ids, eos), labels=(*last.labels, eos if target else IGNORE))


def _runs(parts: Iterable[Text | Picture]) -> Iterable[tuple[str, Picture | None]]:
    """Join adjacent texts with spaces: yields (text, the picture after it), at the end (text, None)."""
    words: list[str] = []
    for part in parts:
        if isinstance(part, Text):
            words += [part.text] if part.text else []
        else:
            yield " ".join(words), part
            words = []
    yield " ".join(words), None


def _text(text: str, vocabulary: Vocabulary, *, target: bool) -> _Piece:
    ids = tuple(vocabulary.encode(text))
    return _Piece(ids, ids if target else (IGNORE,) * len(ids), is_text=True)


def _picture_by_mode(index: int, vocabulary: Vocabulary, mode: Mode) -> _Piece:
    return _picture(index, vocabulary, draw=mode != "comprehension", read=mode != "creation", target=True)


def _picture(index: int, vocabulary: Vocabulary, *, draw: bool, read: bool, target: bool) -> _Piece:
    """DREAM, IMG or DREAM IMG of a picture; with `target`, <dream_start> is a target."""
    ids: list[int] = []
    labels: list[int] = []
    draw_slots = (Slot(1, index),) if draw else ()
    if draw:
        ids += [vocabulary.dream_start, *[vocabulary.im_patch] * vocabulary.num_queries, vocabulary.dream_end]
        labels += [vocabulary.dream_start if target else IGNORE, *[IGNORE] * (vocabulary.num_queries + 1)]
    read_slots = (Slot(len(ids) + 1, index),) if read else ()
    if read:
        ids += [vocabulary.im_start, *[vocabulary.im_patch] * vocabulary.num_patches, vocabulary.im_end]
        labels += [IGNORE] * (vocabulary.num_patches + 2)
    return _Piece(tuple(ids), tuple(labels), read_slots, draw_slots)


def _split(document: Document, groups: list[_Group], context: int) -> list[list[_Piece]]:
    """Distribute groups over sequences of at most `context` tokens, with <s>; splits groups that are longer."""
    capacity = context - 1
    filled: list[list[_Piece]] = []
    room = 0  # tokens left in the last sequence

    def append(pieces: list[_Piece]) -> None:
        nonlocal room
        length = sum(map(len, pieces))
        if length > room or not filled:
            filled.append([])
            room = capacity
        filled[-1].extend(pieces)
        room -= length

    for group in groups:
        if sum(map(len, group)) <= capacity:
            append(group)
            continue
        for piece in group:
            while len(piece) > capacity:
                if not piece.is_text:
                    raise LayoutProblem(
                        f"document {document.id!r}: a picture takes {len(piece)} tokens, "
                        f"the context of {context} holds {capacity} after <s>"
                    )
                head, piece = piece.split(max(1, min(room or capacity, len(piece) - 2)))  # not before a last </s>
                append([head])
            append([piece])
    return filled


def _sequence(
    document: Document, vocabulary: Vocabulary, pieces: list[_Piece], *, is_first: bool = True
) -> TokenSequence:
    """Concatenate <s> and the pieces. A chat template writes the first <s> of a conversation, if it wants one."""
    ids = [] if is_first and _is_chat(document, vocabulary) else [vocabulary.bos]
    labels = [IGNORE] * len(ids)
    read_slots: list[Slot] = []
    draw_slots: list[Slot] = []
    for piece in pieces:
        read_slots += [Slot(len(ids) + slot.start, slot.picture) for slot in piece.read_slots]
        draw_slots += [Slot(len(ids) + slot.start, slot.picture) for slot in piece.draw_slots]
        ids += piece.input_ids
        labels += piece.labels
    return TokenSequence(document, tuple(ids), tuple(labels), tuple(read_slots), tuple(draw_slots))
