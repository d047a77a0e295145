"""Text-to-image from human sentences: as `draw`, with the same images described in the words of people.

draw_human_SPLIT.jsonl     as draw_SPLIT.jsonl
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dreamllm.evaluate.tasks import draw
from dreamllm.evaluate.tasks.draw import DrawItem

TASK = replace(draw.TASK, files=("draw_human_{split}.jsonl",), in_public_sets=False)
predict, score = draw.predict, draw.score


def read(folder: Path, split: str) -> list[list[DrawItem]]:
    """Sentences to draw."""
    return draw.read(folder, split, TASK.files[0])
