"""The manifest of public data sets, data/sources.yaml: what each is, where it is fetched from, what reads it.

Sets are named here once; an experiment names them under `sources` and in the mixtures of its stages. A fact that is not
known is left empty and `unknown` says why. Imports neither torch nor transformers.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from dreamllm.config.base import Section, near
from dreamllm.config.reading import ConfigProblem, read_yaml

MANIFEST = Path("data/sources.yaml")
PAIR_LISTS = ("url_json", "url_parquet")
INTERLEAVED = ("mmc4", "obelics")
BY_URL = (*PAIR_LISTS, *INTERLEAVED)
"""Formats that hold addresses instead of pictures: img2dataset fetches the pictures."""
TASKS = {
    "coco_karpathy": "captions",
    "nocaps": "captions",
    "image_paragraphs": "captions",
    "coco_fid": "draw",
    "ln_coco": "draw",
    "vqav2": "vqa",
    "vizwiz": "vqa",
    "textvqa": "vqa",
    "pope": "pope",
    "mmbench": "mmbench",
    "mm_vet": "mm_vet",
    "harness": "harness",
}
"""Formats of evaluation sets (`dreamllm.evaluate.placing`), and the task that a set becomes."""
BENCHMARK_FORMATS = (*TASKS, "as_is")


class SourceFile(Section):
    """A file, or several of them: from an address, or from a repository of the Hugging Face Hub."""

    url: str = ""
    """http(s) address. {0..9} stands for the numbers of a range."""
    hub: str = ""
    """datasets/OWNER/NAME or models/OWNER/NAME, instead of `url`."""
    path: str = ""
    """Path in the repository; * and ? stand for any characters."""
    revision: str = ""
    """Commit of the repository; "" = the newest one at the first fetch, which the lock file then holds fast."""
    to: str = ""
    """Folder below the set's own one that it is saved to."""
    sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    """Digest, when one is published; "" = written into the lock file at the first fetch and compared from then on."""
    missing: list[int] = []
    """Numbers of the range that the publisher says are not there."""

    @model_validator(mode="after")
    def _one_origin(self) -> SourceFile:
        if bool(self.url) == bool(self.hub):
            raise ValueError("a file has either url or hub")
        if self.hub and not (self.path and self.hub.startswith(("datasets/", "models/")) and self.hub.count("/") == 2):
            raise ValueError(f"hub: {self.hub!r} should be datasets/OWNER/NAME with a path")
        if Path(self.to).is_absolute() or ".." in Path(self.to).parts:
            raise ValueError(f"to: {self.to!r} leaves the set's folder")
        return self


class Source(Section):
    """One public data set."""

    title: str
    """Its name in the paper, or its own."""
    version: str = ""
    format: Literal[
        "url_json", "url_parquet", "mmc4", "obelics", "llava", "llava_pairs", "coco", "narratives", "gqa",
        "instructions", "pictures",
        "coco_karpathy", "nocaps", "image_paragraphs", "coco_fid", "ln_coco", "vqav2", "vizwiz", "textvqa", "pope",
        "mmbench", "mm_vet", "harness", "as_is",
    ]  # fmt: skip
    """Which builder reads it (docs/sources.md)."""
    files: list[SourceFile] = []
    """What is fetched; [] = nothing can be: see `obtain`."""
    columns: dict[Literal["url", "caption"], str] = {"url": "url", "caption": "caption"}
    """Names of the fields of formats url_json and url_parquet."""
    pictures_from: dict[str, str] = {}
    """Other sets that hold its pictures, and the folder that the pictures' names begin with, "" for none."""
    answers_on: str = ""
    """Server that alone has the answers: results are sent there, and are not scored here."""
    written_from: str = ""
    """Format instructions: the set whose documents instructions are written for."""
    documents: int | None = None
    """Documents in the whole set."""
    bytes: int | None = None
    """Size of `files` in bytes, as published."""
    licence: str = ""
    availability: Literal["open", "gated", "request", "gone", "never released"]
    """gated: conditions must be accepted by an account; request: asked for by a form; gone: no longer hosted."""
    obtain: str = ""
    """What a person has to do before it can be fetched."""
    substitute: str = ""
    """Set that stands in for it."""
    used_by: list[str] = []
    """Stages of the paper or of the released code, or the table."""
    source: str
    """Where these facts are written."""
    unknown: str = ""
    """Why something above is empty."""


def load(path: Path = MANIFEST) -> dict[str, Source]:
    """All sets by name. Raises ConfigProblem, naming the set and the key, for anything wrong."""
    content = read_yaml(path)
    sources: dict[str, Source] = {}
    problems = []
    for name, fields in content.items():
        try:
            sources[name] = Source.model_validate(fields)
        except ValidationError as error:
            problems += [
                f"{name}.{'.'.join(map(str, detail['loc']))}: {detail['msg']} (it is {detail['input']!r})"
                for detail in error.errors()
            ]
    for name, source in sources.items():
        for key in ("substitute", "written_from", "pictures_from"):
            others = getattr(source, key)
            for other in others if isinstance(others, dict) else [others]:
                if other and other not in content:
                    problems.append(f"{name}.{key}: no set {other!r}{near(other, list(content))}")
        if (source.format == "instructions") != bool(source.written_from):
            problems.append(f"{name}: format instructions and the key written_from go together")
        if not source.unknown and not (source.licence and source.bytes) and source.format != "instructions":
            problems.append(f"{name}: licence or bytes are empty, and `unknown` does not say why")
        if not source.files and source.format != "instructions" and not source.obtain:
            problems.append(f"{name}: without files, `obtain` has to say how one gets it")
    if problems:
        raise ConfigProblem("\n  ".join([f"{path}: {len(problems)} problem(s)", *problems]))
    return sources


def named(name: str, sources: dict[str, Source], path: Path = MANIFEST) -> Source:
    """The set called `name`. Raises ConfigProblem with near matches otherwise."""
    if name not in sources:
        raise ConfigProblem(f"{path}: no set {name!r}{near(name, list(sources))}")
    return sources[name]


# ---- command line: the flags of every verb that is about one set -----------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that `chosen` reads."""
    parser.add_argument("--source", required=True, help="name of a set in the manifest")
    parser.add_argument("--manifest", type=Path, default=MANIFEST, help="default: %(default)s")


def chosen(args: argparse.Namespace) -> Source:
    """The set that is asked for. Raises ConfigProblem for a malformed manifest and for a name that is not in it."""
    return named(args.source, load(args.manifest), args.manifest)
