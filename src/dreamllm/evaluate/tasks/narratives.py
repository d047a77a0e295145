"""Text-to-image from narratives: as `draw`, with longer descriptions of the same images.

narratives_SPLIT.jsonl     as draw_SPLIT.jsonl
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dreamllm.evaluate.tasks import draw
from dreamllm.evaluate.tasks.draw import DrawItem

TASK = replace(draw.TASK, files=("narratives_{split}.jsonl",), in_public_sets=False)
predict, score = draw.predict, draw.score


def read(folder: Path, split: str) -> list[list[DrawItem]]:
    """Narratives to draw."""
    return draw.read(folder, split, TASK.files[0])
