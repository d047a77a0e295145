"""Stops transformers' `generate` where the model wants to draw, which `generate` cannot do."""

from __future__ import annotations

import torch
from transformers import LogitsProcessor


class PictureDue(ValueError):
    """The model has written <dream_start> where only text can be generated."""


class TextOnly(LogitsProcessor):
    """Passes logits on; raises PictureDue after <dream_start>, where queries and a picture would have to follow."""

    def __init__(self, dream_start: int) -> None:
        self.dream_start = dream_start

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """The logits (B, V), unchanged."""
        rows = (input_ids[:, -1] == self.dream_start).nonzero().flatten().tolist()
        if rows:
            raise PictureDue(
                f"row {rows[0]}: the model wrote <dream_start>, a picture is due, and text after it would be "
                "meaningless; use dreamllm.model.generate.interleave, which draws it, or generate.write, or pass "
                f"suppress_tokens=[{self.dream_start}] or the token as one of eos_token_id"
            )
        return scores
