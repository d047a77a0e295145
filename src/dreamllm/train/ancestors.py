"""Checks that checkpoints are loaded on top of those that they were trained from.

A checkpoint holds only what its stage trained. Those that it was trained from, its ancestors, must be loaded before it,
unless all that they hold is replaced by it or by a checkpoint loaded later. Without them the model runs and answers
nonsense: adapters (LoRA) are added to another language model, queries are read by one that does not know them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

OBJECTS = ("config", "data", "foundations", "model", "totals", "versions")  # keys of checkpoint.json with objects


class CheckpointProblem(ValueError):
    """A checkpoint that is damaged or does not fit the model or its foundations: names the folder and the mismatch."""


@dataclass(frozen=True)
class Ancestor:
    """A checkpoint that another one was trained from. parts: of the model, which it holds; folder: where it lies."""

    tensors: str
    stage: str
    parts: frozenset[str]
    folder: Path | None = None


@dataclass(frozen=True)
class Contents:
    """What matters of a checkpoint. tensors: digest of its file; whole, adapted: parts that it replaces, or adapts."""

    folder: Path
    tensors: str
    whole: frozenset[str]
    adapted: frozenset[str] = frozenset()
    ancestors: tuple[Ancestor, ...] = ()


def check(checkpoints: Sequence[Contents]) -> None:
    """Check checkpoints in loading order.

    Raises CheckpointProblem, naming the checkpoint, for an ancestor that is missing or comes too late (and where it
    lies, if that is known), and for another checkpoint's weights in the place of an ancestor's.
    """
    for number, one in enumerate(checkpoints):
        before, after = checkpoints[:number], checkpoints[number + 1 :]
        replaced = frozenset[str]().union(*(other.whole for other in after))
        inherited, known = one.adapted - replaced, {ancestor.tensors for ancestor in one.ancestors}
        for ancestor in one.ancestors:
            missing = ancestor.parts - one.whole - replaced
            if ancestor.tensors in {other.tensors for other in before}:
                inherited |= missing
            elif ancestor.tensors in {other.tensors for other in after}:
                raise CheckpointProblem(
                    f"{one.folder}: was trained from the checkpoint {ancestor.stage}, which is given after it; give "
                    "the checkpoints in the order in which they were trained"
                )
            elif missing:
                raise CheckpointProblem(_missing(one, ancestor, missing))
        for part in sorted(inherited):
            for other in reversed(before):
                if part in other.whole | other.adapted and other.tensors not in known:
                    raise CheckpointProblem(
                        f"{one.folder}: was not trained from {other.folder}, whose {part} it would be loaded onto; "
                        "give the checkpoints that it was trained from, and no others before it"
                    )
                if part in other.whole:
                    break


def _missing(one: Contents, ancestor: Ancestor, parts: frozenset[str]) -> str:
    what = (
        f"{one.folder}: was trained from the checkpoint {ancestor.stage or 'of an earlier stage'} (sha256 "
        f"{ancestor.tensors[:12]}), which holds its {', '.join(sorted(parts))} and is not given before it"
    )
    if ancestor.folder:
        return f"{what}; it lies in {ancestor.folder}: give {ancestor.folder} {one.folder}, in this order"
    return f"{what}; it is not beside it either: get it from where this checkpoint comes from"
