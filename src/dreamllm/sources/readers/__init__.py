"""Readers of public data sets: one module for each format that an entry of data/sources.yaml may name.

    units(inputs)                          parts of a set that several processes can read independently
    documents(unit, settings)              the Documents of a part, and a Rejected for each record without one
    SUFFIX, CAPTIONS, addresses(...)       only where the files hold addresses of pictures, which img2dataset downloads:
                                           names of the files that hold them, whether an address has a caption, and
                                           addresses(member, source, settings): for each record of a file a list of
                                           {"url", "caption"}, or a Rejected

A module is imported when a set needs it.
"""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

from dreamllm.config.reading import ConfigProblem

NAMES = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))
"""All formats that become Documents."""


@dataclass(frozen=True)
class Inputs:
    """What a set is read from.

    raw: the fetched files.  folders: where its pictures are, as (prefix of their names, folder).  downloaded: shards
    of img2dataset, for formats that hold addresses.  urls: what `list-urls` wrote, for interleaved documents.
    scratch: a folder for temporary files.
    """

    raw: Path
    folders: tuple[tuple[str, Path], ...]
    downloaded: Path | None
    urls: Path | None
    scratch: Path


def module(name: str) -> ModuleType:
    """The reader of a format. Raises ConfigProblem for a format without one, such as that of an evaluation set."""
    if name not in NAMES:
        raise ConfigProblem(f"format {name} is not made into documents; these are: {', '.join(NAMES)}")
    return import_module(f"{__name__}.{name}")
