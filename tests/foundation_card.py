"""The card of stub foundations that reach every gate, so that they are fetched."""

from __future__ import annotations

import json
from pathlib import Path

from dreamllm.config.world import World
from dreamllm.emoji.foundations import gates


def write(folder: Path) -> None:
    """Write the card into the folder of the foundations; they know the default world."""
    card = {
        part: {"language": gates.language_of(part, World()), "figures": dict.fromkeys(gates.GATES.get(part, {}), 1.0)}
        for part in ("llm", "clip", "sd", "judge", "judge2")
    }
    (folder / gates.CARD).write_text(json.dumps(card), encoding="utf-8")
