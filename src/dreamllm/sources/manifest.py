"""The manifest of public data sets, data/sources.yaml: what each is, where it is fetched from, what reads it.

An experiment refers to sets by their names in the manifest, under `sources` and in the mixtures of its stages. A fact
that is not known is left empty, and `unknown` says why. People's own sets have their entries in the experiment itself
(`of_experiment`). Imports neither torch nor transformers.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from dreamllm.config.base import Address, Section, near
from dreamllm.config.experiment import Experiment
from dreamllm.config.reading import ConfigProblem, read_yaml, shown
from dreamllm.config.reading import load as load_experiment
from dreamllm.sources import readers

MANIFEST = Path("data/sources.yaml")
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
    "coco_captions": "captions",
    "vqa": "vqa",
    "prompts": "draw",
    "geneval": "geneval",
    "dpg_bench": "draw",
    "mjhq": "draw",
}
"""Formats of evaluation sets (`dreamllm.evaluate.placing`), and the task that a set becomes."""
BENCHMARK_FORMATS = (*TASKS, "as_is")
FORMATS = (*readers.NAMES, "instructions", "pictures", *BENCHMARK_FORMATS)


class SourceFile(Section):
    """A file, or several of them: from an address, or from a repository of the Hugging Face Hub."""

    url: Address = ""
    """http(s) address, without keys. {0..9} stands for the numbers of a range."""
    hub: str = ""
    """datasets/OWNER/NAME or models/OWNER/NAME, instead of `url`."""
    path: str = ""
    """Path in the repository; * and ? stand for any characters."""
    revision: str = ""
    """Commit of the repository; "" = the newest one at the first fetch, which the lock file then pins."""
    to: str = ""
    """Folder to save it to, below the set's own; "" = the set's own."""
    sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    """Published digest; "" = none, the lock file has that of the first fetch, and later fetches must match it."""
    missing: list[int] = []
    """Numbers of the range for which there is no file, as the publisher says."""

    @model_validator(mode="after")
    def _one_origin(self) -> SourceFile:
        if bool(self.url) == bool(self.hub):
            raise ValueError("a file has either url or hub")
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url: {self.url[:80]!r} is no http(s) address")
        if self.hub and not (self.path and self.hub.startswith(("datasets/", "models/")) and self.hub.count("/") == 2):
            raise ValueError(f"hub: {self.hub!r} should be datasets/OWNER/NAME with a path")
        if Path(self.to).is_absolute() or ".." in Path(self.to).parts:
            raise ValueError(f"to: {self.to!r} leaves the set's folder")
        return self


class Source(Section):
    """One data set: a public one, or people's own (availability "own")."""

    title: str
    """Name in the paper, or else its own."""
    version: str = ""
    format: str
    """What reads it, one of FORMATS: a module of `dreamllm.sources.readers`, or a format of evaluation sets."""
    files: list[SourceFile] = []
    """What is fetched; [] = it cannot be fetched, see `obtain`."""
    columns: dict[Literal["url", "caption"], str] = {"url": "url", "caption": "caption"}
    """Formats url_json and url_parquet: names of the fields."""
    pictures_from: dict[str, str] = {}
    """Other sets that hold its pictures, each with the folder that names of its pictures start with, or ""."""
    answers_on: str = ""
    """Evaluation server to which results are sent, because the answers are not public."""
    written_from: str = ""
    """Format instructions: the set for whose documents instructions are written."""
    documents: int | None = None
    """Documents in the whole set."""
    bytes: int | None = None
    """Size of `files` in bytes, as published."""
    licence: str = ""
    availability: Literal["open", "gated", "request", "gone", "never released", "own"]
    """gated: an account must accept conditions; request: requested by a form; gone: no longer hosted; own: files of the
    person who runs the experiment, and no entry of the manifest."""
    obtain: str = ""
    """What a person must do to get it, or before it can be fetched."""
    substitute: str = ""
    """Set to use instead of it."""
    used_by: list[str] = []
    """Stages of the paper or of the released code, or the table."""
    source: str
    """Where these facts are documented."""
    unknown: str = ""
    """Why something above is empty."""

    @field_validator("format")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in FORMATS:
            raise ValueError(f"no format {name!r}{near(name, [*FORMATS])}")
        return name

    @property
    def holds_addresses(self) -> bool:
        """Whether its files hold addresses of pictures, which img2dataset downloads, instead of pictures."""
        return self.format in readers.NAMES and hasattr(readers.module(self.format), "addresses")

    @property
    def has_captions(self) -> bool:
        """Whether each address in its files has a caption."""
        return self.holds_addresses and readers.module(self.format).CAPTIONS


def load(path: Path = MANIFEST) -> dict[str, Source]:
    """All sets by name. Raises ConfigProblem, naming the set and the key of everything that is wrong."""
    content = read_yaml(path)
    sources: dict[str, Source] = {}
    problems = []
    for name, fields in content.items():
        try:
            sources[name] = Source.model_validate(fields)
        except ValidationError as error:
            problems += [
                f"{name}.{'.'.join(map(str, detail['loc']))}: {detail['msg']} (it is {shown(detail['input'])})"
                for detail in error.errors()
            ]
    for name, source in sources.items():
        for key in ("substitute", "written_from", "pictures_from"):
            others = getattr(source, key)
            for other in others if isinstance(others, dict) else [others]:
                if other and other not in content:
                    problems.append(f"{name}.{key}: no set {other!r}{near(other, list(content))}")
        if (source.format == "instructions") != bool(source.written_from):
            problems.append(f"{name}: format instructions and the key written_from need each other")
        if not source.unknown and not (source.licence and source.bytes) and source.format != "instructions":
            problems.append(f"{name}: licence or bytes is empty; say in `unknown` why")
        if not source.files and source.format != "instructions" and not source.obtain:
            problems.append(f"{name}: it has no files; say in `obtain` how to get it")
    if problems:
        raise ConfigProblem("\n  ".join([f"{path}: {len(problems)} problem(s)", *problems]))
    return sources


def named(name: str, sources: dict[str, Source], path: Path = MANIFEST) -> Source:
    """The set called `name`. Raises ConfigProblem with near matches for an unknown name."""
    if name not in sources:
        raise ConfigProblem(f"{path}: no set {name!r}{near(name, list(sources))}")
    return sources[name]


def of_experiment(experiment: Experiment, path: Path = MANIFEST) -> dict[str, Source]:
    """All public sets, and the experiment's own ones, by name.

    Raises ConfigProblem as `load`, and for an own set that is called like a public one.
    """
    public = load(path)
    own = {}
    for name, use in experiment.sources.items():
        if use.path:
            if name in public:
                raise ConfigProblem(f"sources.{name}: {path} has a public set of this name; give your own another one")
            about = {"title": name, "format": use.format, "licence": use.licence, "source": "own files"}
            own[name] = Source.model_validate({**about, "availability": "own", "unknown": ""})
    return public | own


# ---- command line: flags of all verbs for one set --------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that `chosen` reads."""
    parser.add_argument("--source", required=True, help="name of a set in the manifest, or of your own in --config")
    parser.add_argument("--manifest", type=Path, default=MANIFEST, help="default: %(default)s")


def chosen(args: argparse.Namespace) -> Source:
    """The set that --source names, of the manifest or of --config where a verb has it. Raises ConfigProblem for a
    malformed manifest and for an unknown name."""
    config = getattr(args, "config", None)
    sources = of_experiment(load_experiment(config), args.manifest) if config else load(args.manifest)
    return named(args.source, sources, args.manifest)
