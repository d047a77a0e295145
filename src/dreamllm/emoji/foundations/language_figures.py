"""Measures what the foundation language model understands: greedy answers about unseen scenes told in words.

`gates.py` has the least share of right answers. All questions are about pairs of objects, in which the
model has to keep apart which colour and which place belong to which object.
"""

from __future__ import annotations

import random
from typing import cast

import torch
from transformers import PreTrainedTokenizerFast

from dreamllm.config.world import Register
from dreamllm.data.document import Document, Text
from dreamllm.emoji import human, registers
from dreamllm.emoji.foundations.language import LanguageModel, encode
from dreamllm.emoji.questions import ask
from dreamllm.emoji.scenes import NAMES, Names, sample_split
from dreamllm.seeds import seed_of

KINDS = ("colour", "presence_coloured", "relation", "relation_yes_no")
"""Questions that need colour or place of one of two objects. `nothing` is among the answers of relation."""
EXAMPLES = 4


Turn = tuple[str, str]  # a text with a question at its end, and the answer


@torch.no_grad()
def figures(
    model: LanguageModel, tokenizer: PreTrainedTokenizerFast, names: Names = NAMES, count: int = 300
) -> dict[str, float]:
    """Shares of right answers to `count` questions each, the same ones for every model.

    caption_KIND: after a clean caption.  human_KIND: after a human sentence, with synonyms, reversed relations and
    coreference.  narrative_KIND: after a human narrative.  examples_KIND: the questions of caption_KIND, after four
    other captions with a question of the same kind and its answer.  examples_gain: what these examples add, the mean of
    examples_KIND less the mean of caption_KIND
    """
    shares: dict[str, float] = {}
    for kind in KINDS:
        rng = random.Random(seed_of("language figures", kind))
        told: dict[str, list[list[Turn]]] = {
            register: [[turn(kind, register, rng, names)] for _ in range(count)]
            for register in ("caption", "human", "narrative")
        }
        told["examples"] = [
            [turn(kind, "caption", rng, names) for _ in range(EXAMPLES)] + one for one in told["caption"]
        ]
        shares |= {f"{name}_{kind}": share_right(model, tokenizer, turns) for name, turns in told.items()}
    gains = [shares[f"examples_{kind}"] - shares[f"caption_{kind}"] for kind in KINDS]
    return shares | {"examples_gain": sum(gains) / len(gains)}


def turn(kind: str, register: str, rng: random.Random, names: Names = NAMES) -> Turn:
    """An unseen pair of objects told in words, with a question of a kind, and its answer; for colours the objects
    differ in theirs.

    register: caption, human or narrative
    """
    while True:
        scene = sample_split(rng, "dev", "pair", names=names)
        if kind != "colour" or scene.objects[0][1] != scene.objects[1][1]:
            break
    asked = ask(scene, kind, rng, names)
    words = (
        human.narrative(scene, rng)
        if register == "narrative"
        else registers.describe(scene, cast(Register, register), rng)
    )
    return f"{words} {asked.question}", asked.answer


def share_right(
    model: LanguageModel, tokenizer: PreTrainedTokenizerFast, conversations: list[list[Turn]], batch_size: int = 50
) -> float:
    """Share of the conversations whose last answer the model gives in greedy decoding, to its end and no further.

    Every token of the answer is the most probable one after those before it, which is what greedy decoding picks.
    """
    right = 0
    for start in range(0, len(conversations), batch_size):
        rows = []
        for turns in conversations[start : start + batch_size]:
            parts = [part for words, answer in turns for part in (Text(words, "user"), Text(answer, "assistant"))]
            prompt = encode(Document("", "conversation", tuple(parts[:-1])), tokenizer)[0]
            rows.append((encode(Document("", "conversation", tuple(parts)), tokenizer)[0], len(prompt)))
        length = max(len(ids) for ids, _ in rows)
        padded = torch.tensor([ids + [0] * (length - len(ids)) for ids, _ in rows]).to(model.device)  # (B, T)
        likeliest = model(padded).logits.argmax(-1).tolist()  # (B, T)
        right += sum(
            best[asked - 1 : len(ids) - 1] == ids[asked:] for best, (ids, asked) in zip(likeliest, rows, strict=True)
        )
    return right / len(conversations)
