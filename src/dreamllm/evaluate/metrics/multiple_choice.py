"""Multiple choice by log-likelihood: the option that the language model finds likeliest after the question.

As in the official code (`language_eval`): the options' summed token log-likelihoods are compared, for HellaSwag divided
by the ending's number of characters. Dividing by the number of options, as the official BoolQ and PIQA scripts do, is
the same for every option and changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Rule = Literal["sum", "per_character"]

RULES: dict[str, Rule] = {"piqa": "sum", "boolq": "sum", "hellaswag": "per_character"}


def choose(loglikelihoods: Sequence[float], options: Sequence[str], rule: Rule) -> int:
    """Index of the chosen option; the first of equals.

    Raises ValueError for lists of different length, options without characters where these divide, NaN and infinity.
    """
    if len(loglikelihoods) != len(options) or not options:
        raise ValueError(f"{len(loglikelihoods)} log-likelihoods for {len(options)} options")
    if not all(math.isfinite(value) for value in loglikelihoods):
        raise ValueError(f"log-likelihoods {list(loglikelihoods)} hold NaN or infinity")
    if rule == "sum":
        return max(range(len(options)), key=lambda index: loglikelihoods[index])
    if not all(options):
        raise ValueError(f"options {list(options)}: an empty one has no log-likelihood per character")
    return max(range(len(options)), key=lambda index: loglikelihoods[index] / len(options[index]))
