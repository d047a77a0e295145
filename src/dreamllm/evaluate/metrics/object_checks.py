"""GenEval's checks of a generated image: the objects that its prompt names, their number, colour and position.

The rules and thresholds are those of GenEval's evaluate_images.py (arXiv 2310.11513, github.com/djghosh13/geneval).
This module knows neither detector nor CLIP: it gets what was detected, and a function that tells the colours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dreamllm.evaluate.metrics.intervals import bootstrap, measurement, undefined

OBJECTS_PER_CLASS = 16  # most that count, the surest first
POSITION_THRESHOLD = 0.1  # share of both objects' size by which they may overlap and still be beside each other
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


@dataclass(frozen=True)
class Found:
    """A detected object. mask: (H, W) bool, its pixels; None of a detector that gives boxes alone"""

    name: str
    score: float
    box: Box
    mask: np.ndarray | None = None


@dataclass(frozen=True)
class Wanted:
    """A condition on the objects of one class.

    include: there are at least `count`; exclude: there are fewer.  colour: of all of them, "" for any
    position: (relation, number of an earlier condition): how each of them lies to each object of the earlier one
    """

    name: str
    count: int
    colour: str = ""
    position: tuple[str, int] | None = None

    @classmethod
    def from_file(cls, condition: dict[str, Any]) -> Wanted:
        """A condition of GenEval's file, which `tasks.geneval` has checked."""
        position = condition.get("position")
        colour = condition.get("color", "")
        return cls(condition["class"], condition["count"], colour, tuple(position) if position else None)


def surest(found: Sequence[Found], threshold: float) -> dict[str, list[Found]]:
    """The objects above a threshold by class, the surest first."""
    kept: dict[str, list[Found]] = {}
    for one in sorted(found, key=lambda one: -one.score):
        if one.score > threshold and len(of_class := kept.setdefault(one.name, [])) < OBJECTS_PER_CLASS:
            of_class.append(one)
    return {name: objects for name, objects in kept.items() if objects}


def relations(box: Box, other: Box) -> set[str]:
    """Up to two of `tasks.geneval.RELATIONS` of a box to another; none where they overlap beyond the threshold."""
    ends = np.array([box, other], dtype=np.float64).reshape(2, 2, 2)  # (box, corner, x and y)
    (centre, other_centre), sizes = ends.mean(axis=1), np.abs(ends[:, 1] - ends[:, 0])
    offset = centre - other_centre
    apart = np.maximum(np.abs(offset) - POSITION_THRESHOLD * sizes.sum(axis=0), 0) * np.sign(offset)
    if np.all(np.abs(apart) < 1e-3):
        return set()
    x, y = apart / np.linalg.norm(offset)
    named = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {relation for relation, holds in named.items() if holds}


def wrong(
    objects: Mapping[str, Sequence[Found]],
    include: Sequence[Wanted],
    exclude: Sequence[Wanted],
    colours_of: Callable[[Sequence[Found], str], Sequence[str]],
) -> list[str]:
    """What is wrong with an image, a line for each condition that fails; [] for a right one.

    objects: detected ones by class, the surest first, of which each condition looks at the first `count`
    colours_of: the colour of each of some objects of a class, one of `tasks.geneval.COLOURS`
    """
    reasons: list[str] = []
    matched: list[Sequence[Found] | None] = []  # for each condition its objects, None where it failed
    for wanted in include:
        found = list(objects.get(wanted.name, []))[: wanted.count]
        reason = _wrong_with(wanted, found, matched, colours_of)
        reasons += [reason] if reason else []
        matched.append(None if reason else found)
    for wanted in exclude:
        if (number := len(objects.get(wanted.name, []))) >= wanted.count:
            reasons.append(f"expected {wanted.name}<{wanted.count}, found {number}")
    return reasons


def _wrong_with(
    wanted: Wanted,
    found: Sequence[Found],
    matched: Sequence[Sequence[Found] | None],
    colours_of: Callable[[Sequence[Found], str], Sequence[str]],
) -> str:
    """What is wrong with the objects of one condition, "" for nothing."""
    if len(found) < wanted.count:
        return f"expected {wanted.name}>={wanted.count}, found {len(found)}"
    if wanted.colour:
        colours = list(colours_of(found, wanted.name))
        if colours.count(wanted.colour) < wanted.count:
            return f"expected {wanted.colour} {wanted.name}>={wanted.count}, found {', '.join(colours)}"
    if wanted.position:
        relation, number = wanted.position
        targets = matched[number]
        if targets is None:
            return f"no target for {wanted.name} to be {relation}"
        for one in found:
            for target in targets:
                if relation not in (true := relations(one.box, target.box)):
                    return f"expected {wanted.name} {relation} target, found {' and '.join(sorted(true)) or 'neither'}"
    return ""


def overall(right: np.ndarray, tags: Sequence[str]) -> dict[str, Any]:
    """GenEval's overall score: the mean over the kinds of prompts of the share of right images, with an interval.

    right: of each prompt the share of its images that are right, (N,).  tags: kind of each prompt
    """
    if not len(right):
        return undefined("no items")
    names, kinds = np.unique(np.asarray(tags), return_inverse=True)

    def mean(prompts: np.ndarray) -> float:
        counts = np.bincount(kinds[prompts], minlength=len(names))
        sums = np.bincount(kinds[prompts], weights=right[prompts], minlength=len(names))
        return float((sums[counts > 0] / counts[counts > 0]).mean())

    low, high = bootstrap(mean, len(right))
    return measurement(mean(np.arange(len(right))), len(right), low, high)
