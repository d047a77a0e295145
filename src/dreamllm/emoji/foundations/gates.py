"""Gates of the miniature foundations: figures that each must reach, and the card that the store keeps of them.

`card.json` beside the foundations has, for each of them, its figures (`figures.py`), how it was trained and the
language that it was trained on. It is written only when every figure reaches its gate, and foundations without it are
not fetched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dreamllm.atomic import new_file
from dreamllm.config.world import World
from dreamllm.emoji import alt_text, grammar, human
from dreamllm.emoji.scenes import BACKGROUND_NAMES, COLOUR_NAMES, Names, Scene, names_of

CARD, TRAINING = "card.json", "training.json"

GATES: dict[str, dict[str, float]] = {
    "llm": {
        **dict.fromkeys(
            ("caption_colour", "caption_presence_coloured", "caption_relation", "caption_relation_yes_no"), 0.95
        ),
        **dict.fromkeys(("human_colour", "human_presence_coloured", "human_relation", "human_relation_yes_no"), 0.9),
        "examples_gain": 0.0,
    },
    "clip": {"retrieval_caption": 0.97, "probe_name": 0.95, "probe_colour": 0.95, "probe_position": 0.95},
    "sd": {"ceiling_pair": 0.95, "ceiling_other": 0.95},
    "judge": {"exact": 0.99},
    "judge2": {"exact": 0.99},
}
GATES |= {"qwen": GATES["llm"], "flow": GATES["sd"]}
"""Figures that a foundation must reach, shares of 1: `figures.py` and `language_figures.py` say of what. Retrieval: the
lower end of the 95 % interval of 120 of 120, which a CLIP trained on clean captions with hard negatives reached."""

REQUIRED = ("llm", "clip", "sd", "judge", "judge2")
"""Foundations that every store has."""


class GateProblem(ValueError):
    """A foundation that does not reach its gate, has no figures, or was trained on another world's language."""


def check(part: str, figures: Mapping[str, Any], where: str = "") -> None:
    """Raise GateProblem, naming the figure and its gate, unless a foundation reaches all its gates.

    where: begins the message
    """
    for name, gate in GATES.get(part, {}).items():
        value = figures.get(name)
        if not isinstance(value, int | float):
            raise GateProblem(f"{where}{part} has no figure {name}, whose gate is {gate}: {MEASURE}")
        if not value >= gate:
            raise GateProblem(f"{where}{part} has {name} {value:.3f}, below its gate {gate}: train it longer")


MEASURE = "run `dreamllm measure-foundations` and store the foundations with the card that it writes"


def write_card(path: Path, foundations: Path, figures: Mapping[str, Mapping[str, float]]) -> None:
    """Write the card of foundations that have been measured: figures, gates and training of every part.

    A part that is not among the figures keeps those of the card that is there, if it is of the same training.
    """
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    card = {}
    for file in sorted(foundations.glob(f"*/{TRAINING}")):
        part, training = file.parent.name, json.loads(file.read_text(encoding="utf-8"))
        old = before.get(part, {})
        kept = old.get("figures", {}) if training.items() <= old.items() else {}
        card[part] = training | {"figures": figures.get(part, kept), "gates": GATES.get(part, {})}
    with new_file(path) as file:
        file.write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")


def check_card(path: Path, world: World, where: str, others: Sequence[str] = ()) -> None:
    """Raise GateProblem unless the card shows that the foundations beside it reach their gates and know the world.

    where: begins the message.  others: foundations beside the REQUIRED ones
    """
    if not path.is_file():
        raise GateProblem(f"{where} has no {CARD} with the gates of its foundations: {MEASURE}")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        figures = {part: dict(entry["figures"]) for part, entry in card.items()}
        learnt = {
            part: (set(entry["language"]["words"]), entry["language"].get("registers")) for part, entry in card.items()
        }
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        what = f"{type(error).__name__}: {str(error)[:80]}"
        raise GateProblem(f"{where} has a {CARD} that is no card of foundations ({what}): {MEASURE}") from None
    for part in (*REQUIRED, *others):
        check(part, figures.get(part, {}), f"{where}: ")
    for part, (words, shares) in learnt.items():
        wanted = language_of(part, world)
        if lacking := sorted(set(wanted["words"]) - words):
            what = f"does not know {len(lacking)} words of this world ({', '.join(lacking[:5])}, ...)"
        elif shares != wanted.get("registers"):
            what = f"was trained on texts of {shares}, this world has {wanted.get('registers')}"
        else:
            continue
        raise GateProblem(
            f"{where}: {part} {what}: train foundations for this world (docs/data.md), or use the `world` of "
            "config/embedded.yaml"
        )


def language_of(part: str, world: World) -> dict[str, Any]:
    """What a foundation is to know of a world: its words, and the registers that it is trained on.

    part: llm, qwen, clip, vae, sd, flow, judge or judge2; those that see only pictures know the objects alone
    """
    names = names_of(world.pictograms)
    if part in ("vae", "judge", "judge2"):
        return {"words": sorted(names)}
    registers = world.registers.text if part in ("llm", "qwen") else world.registers.alt_text
    return {"words": vocabulary(names), "registers": dict(registers)}


def vocabulary(names: Names) -> list[str]:
    """All words of alt texts, captions and human sentences about these objects."""
    nouns = [*names, *(human.SYNONYMS[name] for name in names)]
    scenes = [
        Scene(
            BACKGROUND_NAMES[0], layout, ((names[0], "red"), (names[1], "red"))[: 1 + (layout in ("row", "column"))], 2
        )
        for layout in ("single", "row", "column", "group")
    ]
    forms = [text for scene in scenes for text in grammar.captions(scene)]
    forms += [form for table in (human.SENTENCES, human.OPENINGS) for kind in table.values() for form in kind]
    forms += [form for kind in human.DETAILS.values() for details in kind for form in details]
    texts = [*nouns, *map(grammar.plural, nouns), *COLOUR_NAMES, *human.COLOUR_SYNONYMS.values(), *BACKGROUND_NAMES]
    texts += [*human.PLACES.values(), *grammar.NUMBERS.values(), *grammar.RELATIONS, *human.HUMAN_RELATIONS]
    texts += [*human.BESIDE, *alt_text.FILLERS, *(re.sub(r"\{\w+\}", " ", form) for form in forms), "an"]
    return sorted({word for text in texts for word in re.findall("[a-z]+", text)})
