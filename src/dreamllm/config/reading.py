"""Reads experiment files. A YAML file describes a whole experiment; `experiment.py` defines its keys.

    experiment = load("config/embedded.yaml")

Errors name the file and the key path, say what is wrong, and suggest near matches. Imports neither torch nor
transformers.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from dreamllm.config.base import Section, near
from dreamllm.config.experiment import Experiment


class ConfigProblem(ValueError):
    """An invalid configuration. The message names the file and the key path, says what is wrong, and suggests near
    matches."""


def load(path: str | Path, seed: int | None = None) -> Experiment:
    """Read and check an experiment file; with `seed`, as the run with that seed.

    Raises ConfigProblem, naming the file and every key path that is wrong, with near matches for unknown keys.
    """
    content = read_yaml(path)
    try:
        experiment = Experiment.model_validate(content)
        return experiment if seed is None else experiment.with_seed(seed)
    except ValidationError as error:
        problems = [line for detail in error.errors() for line in _explain(detail)]
        raise ConfigProblem("\n  ".join([f"{path}: {len(problems)} problem(s)", *problems])) from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file with a mapping. Raises ConfigProblem when it is missing, malformed or has a duplicate key."""
    path = Path(path)
    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_StrictLoader)
    except FileNotFoundError:
        others = ", ".join(str(p) for p in sorted(path.parent.glob("*.yaml"))) or "none"
        raise ConfigProblem(f"{path}: no such file; configurations there: {others}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigProblem(f"{path}: not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigProblem(f"{path}: a configuration is a mapping of keys to values, this is {type(content).__name__}")
    return content


def digest(*parts: Any) -> str:
    """Digest, 16 hex digits, of parts of a configuration (sections or plain values) that a result depends on."""
    plain = [part.model_dump(mode="json") if isinstance(part, Section) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


class _StrictLoader(yaml.SafeLoader):
    """YAML without duplicate keys, of which the last would win silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"duplicate key {twice[0]!r}", node.start_mark)
        return super().construct_mapping(node, deep)


def _explain(detail: Any) -> list[str]:
    """One pydantic error as lines `key.path: what is wrong; near matches`."""
    location = [step for step in detail["loc"] if step != "[key]"]
    if location[:1] == ["foundations"]:
        location[1:2] = []  # pydantic puts the value of `source` there
    where = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location).lstrip(".")
    if detail["type"] == "extra_forbidden":
        known = sorted({key for model in _sections_at(detail["loc"][:-1]) for key in model.model_fields})
        return [f"{where}: unknown key{near(str(location[-1]), known)}"]
    if detail["type"] == "value_error":
        prefix = f"{where}: " if where else ""
        return [prefix + line for line in str(detail["ctx"]["error"]).splitlines()]
    if detail["type"] == "missing":
        return [f"{where}: missing"]
    if detail["type"] == "union_tag_invalid":
        choices = detail["ctx"]["expected_tags"].replace("'", "")
        return [f"{where}.source: {detail['ctx']['tag']!r} is none of {choices}"]
    if detail["type"] == "literal_error" and isinstance(detail["input"], str):
        choices = [choice.strip(" '") for choice in detail["ctx"]["expected"].replace(" or ", ",").split(",")]
        return [f"{where}: {detail['input']!r} is none of {', '.join(choices)}"]
    return [f"{where or 'file'}: {detail['msg']} (it is {detail['input']!r})"]


def _sections_at(location: tuple) -> list[type[Section]]:
    """The section classes possible at the location of a pydantic error."""
    sections: list[type[Section]] = [Experiment]
    for step in location:
        tagged = [
            s for s in sections if "source" in s.model_fields and step in get_args(s.model_fields["source"].annotation)
        ]
        fields = [s.model_fields[step].annotation for s in sections if step in s.model_fields]
        if tagged:
            sections = tagged
        elif fields:
            sections = [section for annotation in fields for section in _sections_in(annotation)]
    return sections


def _sections_in(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for inner in get_args(annotation) for section in _sections_in(inner)]
