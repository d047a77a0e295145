"""Base class and field types of the sections of an experiment file (`experiment.py`)."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from dreamllm.masking import mask
from dreamllm.safe_join import checked

LONGEST_NAME = 60  # characters; several names and a seed make up the name of a file, which has at most 255 bytes
LARGEST = 10**12  # of a number of things
OF_PEOPLE = ("store", "by_hand", "human", "inception")  # folders below data/ whose files no rule makes


def _below_data(folder: str) -> str:
    """The folder in its shortest form. Raises ValueError unless it is a relative path below data/."""
    path = checked(folder)
    if len(path.parts) < 2 or path.parts[0] != "data":
        raise ValueError(f"{folder[:80]!r} is not below data/; a folder on another disk can be mounted there")
    return _without_braces(path.as_posix())


def _without_braces(path: str) -> str:
    """Raises ValueError for a path with a brace."""
    if set("{}") & set(path):
        raise ValueError(f"{path[:80]!r} has a brace, which Snakemake takes for a wildcard")
    return path


def _to_write(folder: str) -> str:
    """Raises ValueError for a folder below data/ whose files are people's own or in git: a rule may delete them."""
    if (first := PurePosixPath(folder).parts[1]) in OF_PEOPLE:
        raise ValueError(f"{folder[:80]!r} is in data/{first}, whose files no rule makes; choose another folder")
    return folder


def _to_read(folder: str) -> str:
    """The folder in its shortest form. Raises ValueError for "" and for a path that only a shell expands."""
    if not folder.strip() or folder.startswith("~") or "$" in folder:
        raise ValueError(f"{folder[:80]!r} is no folder; write its path out, without ~ and $")
    return _without_braces(PurePosixPath(folder).as_posix())


def _unique(values: Sequence[Any]) -> Sequence[Any]:
    """Raises ValueError when a list has a value twice."""
    if twice := [value for index, value in enumerate(values) if value in values[:index]]:
        raise ValueError(f"{str(twice[0])[:80]} is listed twice")
    return values


def _without_secrets(address: str) -> str:
    """Raises ValueError for an address with a password or a key, which would get into logs and records."""
    if (masked := mask(address)) != address:
        raise ValueError(f"{masked[:200]} holds a password or a key; keys belong into environment variables")
    return address


NAME = r"^[a-z][a-z0-9_]*$"
Name = Annotated[str, Field(pattern=NAME, max_length=LONGEST_NAME)]
# Path: of an input of a rule, anywhere.  InputFolder: the same, of a folder.  Folder: below data/.  OwnFolder: below
# data/, written, and perhaps deleted, by rules.
Path = Annotated[str, AfterValidator(_without_braces)]
InputFolder = Annotated[str, Field(max_length=1000), AfterValidator(_to_read)]
Folder = Annotated[str, Field(max_length=200), AfterValidator(_below_data)]
OwnFolder = Annotated[Folder, AfterValidator(_to_write)]
Release = Annotated[str, Field(pattern=r"^[A-Za-z0-9]+([._-][A-Za-z0-9]+)*$", max_length=LONGEST_NAME)]
Address = Annotated[str, AfterValidator(_without_secrets)]
Unique = AfterValidator(_unique)
# Count: at least 1.  Number: at least 0.  Positive: greater than 0.  Share: between 0 and 1.
Count = Annotated[int, Field(ge=1, le=LARGEST)]
Number = Annotated[int, Field(ge=0, le=LARGEST)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
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
