"""Compare the scene that a caption states or an image shows with the expected one.

The scene classifier (`emoji/foundations/scene_classifier.py`) finds the scene of an image, the grammar that of a
caption. If none is found (None), every attribute is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

from dreamllm.emoji.scenes import Scene

ATTRIBUTES = ("object", "colour", "bind", "all")


def compare(found: Scene | None, expected: Scene) -> dict[str, bool]:
    """Which attributes are right.

    object   the objects, in whatever order and colour
    colour   the colours, on whatever objects
    bind     each object in its colour, in whatever place
    all      the whole scene: background, places and number too
    """
    if found is None:
        return dict.fromkeys(ATTRIBUTES, False)
    names, colours = (sorted(values) for values in zip(*found.objects, strict=True))
    expected_names, expected_colours = (sorted(values) for values in zip(*expected.objects, strict=True))
    return {
        "object": names == expected_names,
        "colour": colours == expected_colours,
        "bind": sorted(found.objects) == sorted(expected.objects),
        "all": found == expected,
    }


def compare_each(found: Sequence[Scene | None], expected: Sequence[Scene]) -> dict[str, list[bool]]:
    """`compare` for many, as one list per attribute."""
    results = [compare(one, other) for one, other in zip(found, expected, strict=True)]
    return {attribute: [result[attribute] for result in results] for attribute in ATTRIBUTES}
