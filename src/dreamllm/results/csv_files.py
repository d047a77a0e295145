"""Read and write CSV with pandas; cells that are read are strings, "" where they are empty.

pandas is imported inside the functions, so that `dreamllm VERB --help` does not wait for it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dreamllm.evaluate.files import BenchmarkProblem, read_text

if TYPE_CHECKING:
    import pandas as pd


def read_csv(path: Path) -> pd.DataFrame:
    """A CSV file as a frame of strings. Raises BenchmarkProblem for a missing or malformed file."""
    return parse_csv(read_text(path), path)


def parse_csv(text: str, path: Path) -> pd.DataFrame:
    """`read_csv` for a text that was read from `path`."""
    import pandas as pd

    try:
        return pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise BenchmarkProblem(path, "", f"is not a CSV file ({error})") from None


def csv_text(lines: Sequence[Sequence[object]], columns: Sequence[str]) -> str:
    """Lines below a header; None is an empty cell, and floats are written in full precision."""
    import pandas as pd

    return pd.DataFrame(lines, columns=columns, dtype=object).to_csv(index=False, lineterminator="\n")


def files_by_stage(given: Sequence[str]) -> dict[str, Path]:
    """The values STAGE=FILE of the flag --losses. Raises BenchmarkProblem for a value without an equals sign."""
    if odd := next((one for one in given if "=" not in one), None):
        raise BenchmarkProblem("--losses", odd, "should be STAGE=FILE")
    return {stage: Path(path) for stage, path in (one.split("=", 1) for one in given)}
