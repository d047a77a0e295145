"""Write the JSON schema of experiment files and docs/configuration.md from the classes in src/dreamllm/config.

Usage: python workflow/describe.py      (tests/test_config.py fails when the two files are out of date)
"""

from __future__ import annotations

import json
import textwrap
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from dreamllm.config.base import Section
from dreamllm.config.experiment import Experiment

ROOT = Path(__file__).parent.parent
INTRODUCTION = """# Configuration

One YAML file is one whole experiment. `config/embedded.yaml` is the default; another file is run instead of it with
`snakemake --cores all --configfile=config/mine.yaml results/tables`. Nothing is merged and nothing is overridden on the
command line, so the file is the whole truth about a run. An unknown key, a wrong type or a name that does not exist is
an error that names the key and what may have been meant.

Change `name` in a copy: checkpoints, predictions and metrics of different names lie in different folders.
`results/tables` and `results/figures` always show the experiment that was run last.
Changing a value runs again exactly what depends on it; changing `machine` runs nothing again.

An editor checks a file while you write when its first line is
`# yaml-language-server: $schema=../workflow/schemas/config.schema.json`.

This page is written by `python workflow/describe.py` from the sections in `src/dreamllm/config`.
"""


def schema() -> str:
    """JSON schema of an experiment file."""
    return json.dumps(Experiment.model_json_schema(), indent=2) + "\n"


def documentation() -> str:
    """All keys with their kind, default and meaning, as Markdown."""
    return INTRODUCTION + "".join(_section(*item) for item in _sections(Experiment, ""))


def _sections(section: type[Section], path: str) -> list[tuple[type[Section], str]]:
    """A section and those below it, each with its key path, in the order of the file."""
    found = [(section, path)]
    for key, field in section.model_fields.items():
        suffix = {dict: ".NAME", list: "[]"}.get(get_origin(field.annotation), "")
        for inner in _sections_in(field.annotation):
            found += _sections(inner, f"{path}.{key}{suffix}".lstrip("."))
    return found


def _section(section: type[Section], path: str) -> str:
    description = textwrap.fill(" ".join((section.__doc__ or "").split()), 120, break_on_hyphens=False)
    lines = [f"\n## {f'`{path}`' if path else 'Top level'}\n\n{description}\n\n"]
    lines += ["| key | kind | default | meaning |\n", "|---|---|---|---|\n"]
    for key, field in section.model_fields.items():
        meaning = " ".join((field.description or "").split())
        if not meaning and (inner := _sections_in(field.annotation)):
            meaning = "see below" if len(inner) > 1 else " ".join((inner[0].__doc__ or "").split())
        lines.append(f"| `{key}` | {_kind(field.annotation)} | {_default(field)} | {meaning} |\n")
    return "".join(lines)


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if isinstance(field.default, Section):
        return ""
    return f"`{json.dumps(field.default)}`"


def _kind(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(inner[0])
    if origin is Literal:
        return ", ".join(map(str, inner))
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_kind(option) for option in inner))
    if origin in (list, tuple):
        return f"list of {_kind(inner[0])}"
    if origin is dict:
        return f"mapping of {_kind(inner[0])} to {_kind(inner[1])}"
    if annotation is types.NoneType:
        return "null"
    if issubclass(annotation, Section):
        return "section"
    return {str: "text", int: "integer", float: "number", bool: "true or false"}[annotation]


def _sections_in(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for inner in get_args(annotation) for section in _sections_in(inner)]


FILES = {ROOT / "workflow/schemas/config.schema.json": schema, ROOT / "docs/configuration.md": documentation}

if __name__ == "__main__":
    for path, content in FILES.items():
        path.write_text(content(), encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")
