"""Checks for NaN and infinite values, which would become a black picture, an empty answer or a wrong score."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import LogitsProcessor


class NonFiniteValues(ValueError):
    """NaN or infinite values in a model's results: names the item and the part of the model."""


def check_finite(values: torch.Tensor, names: Sequence[str], what: str) -> None:
    """Check the values (N, ...) of N named items. Raises NonFiniteValues for the first item with NaN or infinity.

    what: whose values they are, for the message
    """
    if not torch.isfinite(values).all():
        number = int((~torch.isfinite(values)).flatten(1).any(dim=1).nonzero()[0])
        raise NonFiniteValues(
            f"{names[number]}: {what} are NaN or infinite, so nothing is written; weights that are NaN or another "
            "precision than they were made for are the usual reasons"
        )


class FiniteLogits(LogitsProcessor):
    """Passes logits (B * beams, V) on. Raises NonFiniteValues for a row with NaN or +infinity; -infinity means "never".

    names: of the B prompts
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """The logits, unchanged."""
        beams = len(scores) // len(self.names)
        check_finite(scores.clamp(min=-1), [name for name in self.names for _ in range(beams)], "the logits")
        return scores
