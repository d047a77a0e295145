"""Metrics over all items of a benchmark, and over the groups that they belong to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Metrics = dict[str, dict[str, Any]]
Measure = Callable[[Sequence[int]], Metrics]  # metrics of some of the items, given by their numbers


@dataclass(frozen=True)
class SceneRecord:
    """What a picture shows, and the groups under which results are reported."""

    scene: dict[str, Any]
    kind: str
    held_out: bool

    @property
    def groups(self) -> list[str]:
        """Names of the groups, kinds and held-out combinations crossed."""
        seen = "held_out" if self.held_out else "seen"
        return [self.kind, seen, f"{self.kind}/{seen}"]


def by_group(measure: Measure, groups: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Metrics of all items and of each group; groups: names of the groups that each item belongs to."""
    names = sorted({name for of_item in groups for name in of_item})
    members = {name: [i for i, of_item in enumerate(groups) if name in of_item] for name in names}
    return {"metrics": measure(range(len(groups))), "groups": {name: measure(members[name]) for name in names}}
