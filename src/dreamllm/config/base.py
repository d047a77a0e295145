"""Base class and field types of the sections of an experiment file (`experiment.py`)."""

from __future__ import annotations

import difflib
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
# Count: at least 1.  Number: at least 0.  Positive: greater than 0.  Share: between 0 and 1.
Count = Annotated[int, Field(ge=1)]
Number = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A section of a configuration. Unknown keys are errors, and nothing changes after loading.

    The docstrings of classes and fields become docs/configuration.md and the JSON schema.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


def near(word: str, known: list[str]) -> str:
    """The end of an error message: the known words that are most similar to an unknown one, or else all of them."""
    matches = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(matches)}?" if matches else f"; known: {', '.join(known) or 'none'}"
