"""Metrics over all items of a benchmark and over groups of items; the scenes of the emoji world's images.

scenes_SPLIT.jsonl     {"image_id", "scene", "kind", "held_out"}; public sets have none, and no results by kind
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamllm.emoji.scenes import Scene, SceneProblem
from dreamllm.evaluate.files import BenchmarkProblem, field, keyed, read_jsonl

Metrics = dict[str, dict[str, Any]]
Measure = Callable[[Sequence[int]], Metrics]  # metrics of some of the items, given by their numbers


@dataclass(frozen=True)
class SceneRecord:
    """The scene of an image, and the groups under which results are reported."""

    scene: dict[str, Any]
    kind: str
    held_out: bool

    @property
    def groups(self) -> list[str]:
        """Names of the groups, kinds and held-out combinations crossed."""
        seen = "held_out" if self.held_out else "seen"
        return [self.kind, seen, f"{self.kind}/{seen}"]


@dataclass(frozen=True)
class SceneRecords:
    """The scenes of a split by image id; none of a public set."""

    path: Path
    records: dict[int, SceneRecord]

    def of(self, image_id: int, picture: str, item: str) -> SceneRecord | None:
        """The scene of an item's image; None in a set without scenes. Raises BenchmarkProblem for a missing one."""
        if self.records and image_id not in self.records:
            raise BenchmarkProblem(self.path, "", f"has no record of picture {picture}, which item {item} needs")
        return self.records.get(image_id)


def checked_scene(scene: Any, path: Path, place: str) -> dict[str, Any]:
    """The scene itself if the emoji world has such a one. Raises BenchmarkProblem."""
    try:
        Scene.from_json(scene)
    except SceneProblem as problem:
        raise BenchmarkProblem(path, place, str(problem)) from None
    return scene


def scenes_of(folder: Path, split: str) -> SceneRecords:
    """Read the scenes of a split's images."""
    path = folder / f"scenes_{split}.jsonl"
    records = []
    for place, record in read_jsonl(path) if path.exists() else []:
        image_id = field(record, "image_id", int, path, place)
        kind, held_out = field(record, "kind", str, path, place), field(record, "held_out", bool, path, place)
        scene = checked_scene(field(record, "scene", dict, path, place), path, place)
        records.append((image_id, SceneRecord(scene, kind, held_out)))
    return SceneRecords(path, keyed(records, path, "image_id"))


def by_group(measure: Measure, items: Sequence[Any]) -> dict[str, Any]:
    """Metrics of all items and of each group. items: each has `groups`, the names of the groups that it belongs to."""
    groups = [item.groups for item in items]
    names = sorted({name for of_item in groups for name in of_item})
    members = {name: [i for i, of_item in enumerate(groups) if name in of_item] for name in names}
    return {"metrics": measure(range(len(groups))), "groups": {name: measure(members[name]) for name in names}}
