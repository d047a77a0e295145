"""POPE: does the model claim to see objects that are not there? "yes" is the positive class (Li et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dreamllm.evaluate.metrics.intervals import bootstrap, mean_share, measurement, undefined


def says_yes(output: str) -> bool:
    """Read an answer as POPE's own script does: "no" if No, no or not is a word of the first sentence, else "yes".

    So an empty answer counts as "yes", and so does "NO".
    """
    words = output.split(".")[0].replace(",", "").split(" ")
    return not {"No", "not", "no"} & set(words)


def score(outputs: Sequence[str], labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Accuracy, precision, recall, F1 and the share of "yes" of one split, as measurements.

    labels: "yes" or "no". Precision without a predicted "yes" and recall without a true one are undefined, not 0.
    """
    predicted = np.array([says_yes(output) for output in outputs], dtype=bool)
    true = np.array([label == "yes" for label in labels], dtype=bool)
    return {
        "accuracy": mean_share(predicted == true),
        "precision": mean_share(true[predicted], "no question was answered with yes"),
        "recall": mean_share(predicted[true], "no question has yes as its right answer"),
        "f1": _f1(predicted, true),
        "yes": mean_share(predicted),
    }


def _f1(predicted: np.ndarray, true: np.ndarray) -> dict[str, Any]:
    if not (predicted | true).any():
        return undefined("neither an answer nor a right answer is yes")

    def f1(items: np.ndarray) -> float:
        hits, claims = (predicted & true)[items].sum(), predicted[items].sum() + true[items].sum()
        return float(2 * hits / claims) if claims else 0.0

    n = len(true)
    return measurement(f1(np.arange(n)), n, *bootstrap(f1, n))
