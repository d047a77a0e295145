"""How much of a wanted scene a caption tells or a picture shows.

A scene classifier (`emoji/foundations/scene_classifier.py`) reads what a picture shows; the grammar reads what a
caption tells. No scene found at all (None) counts as wrong in every respect.
"""

from __future__ import annotations

from collections.abc import Sequence

from dreamllm.emoji.scenes import Scene

ATTRIBUTES = ("object", "colour", "bind", "all")


def compare(found: Scene | None, wanted: Scene) -> dict[str, bool]:
    """Which attributes are right.

    object   the objects, in whatever order and colour
    colour   the colours, on whatever objects
    bind     each object in its colour, in whatever place
    all      the whole scene: background, places and number too
    """
    if found is None:
        return dict.fromkeys(ATTRIBUTES, False)
    names, colours = (sorted(values) for values in zip(*found.objects, strict=True))
    wanted_names, wanted_colours = (sorted(values) for values in zip(*wanted.objects, strict=True))
    return {
        "object": names == wanted_names,
        "colour": colours == wanted_colours,
        "bind": sorted(found.objects) == sorted(wanted.objects),
        "all": found == wanted,
    }


def compare_each(found: Sequence[Scene | None], wanted: Sequence[Scene]) -> dict[str, list[bool]]:
    """`compare` for many, as one list per attribute."""
    results = [compare(one, other) for one, other in zip(found, wanted, strict=True)]
    return {attribute: [result[attribute] for result in results] for attribute in ATTRIBUTES}
