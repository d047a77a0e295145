"""Reads experiment files. A YAML file describes a whole experiment; `experiment.py` defines its keys.

    experiment = load("config/embedded.yaml")

Errors name the file and the key path, say what is wrong, and suggest near matches. Imports neither torch nor
transformers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from dreamllm.config.base import Section, near
from dreamllm.config.experiment import Experiment
from dreamllm.config.machine import tracker_problem
from dreamllm.masking import mask

LARGEST_FILE = 10_000_000  # bytes of a YAML file
MOST_VALUES = 200_000  # keys and values, with those that aliases stand for
DEEPEST = 40  # levels of mappings and lists
MOST_SHOWN = 20  # problems in a message


class ConfigProblem(ValueError):
    """An invalid configuration. The message names the file and the key path, says what is wrong, and suggests near
    matches; secrets in it are masked."""

    def __init__(self, message: str) -> None:
        super().__init__(mask(message))


def load(path: str | Path, seed: int | None = None) -> Experiment:
    """Read and check an experiment file; with `seed`, as the run with that seed.

    Raises ConfigProblem, naming the file and every key path that is wrong, with near matches for unknown keys.
    """
    content = read_yaml(path)
    if seed is not None and not 0 <= seed < 2**31:
        raise ConfigProblem(f"{path}: --seed {seed} is not from 0 to 2^31 - 1")
    try:
        experiment = Experiment.model_validate(content)
        return experiment if seed is None else experiment.with_seed(seed)
    except ValidationError as error:
        problems = [mask(line)[:1000] for detail in error.errors() for line in _explain(detail)]
        more = [f"and {len(problems) - MOST_SHOWN} more"] if len(problems) > MOST_SHOWN else []
        shown = problems[:MOST_SHOWN] + more
        raise ConfigProblem("\n  ".join([f"{path}: {len(problems)} problem(s)", *shown])) from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file with a mapping. Raises ConfigProblem when it is missing, malformed or has a duplicate key."""
    path = Path(path)
    try:
        if (size := path.stat().st_size) > LARGEST_FILE:
            raise ConfigProblem(f"{path}: has {size} bytes, more than {LARGEST_FILE}")
        content = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_StrictLoader)
    except FileNotFoundError:
        others = ", ".join(str(p) for p in sorted(path.parent.glob("*.yaml"))) or "none"
        raise ConfigProblem(f"{path}: no such file; configurations there: {others}") from None
    except ConfigProblem:
        raise
    except OSError as error:
        raise ConfigProblem(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        words = " ".join(mask(str(error)).split())  # PyYAML raises others than its own for tags such as !!int
        raise ConfigProblem(f"{path}: not valid YAML: {words[:500] or type(error).__name__}") from None
    if not isinstance(content, dict):
        raise ConfigProblem(f"{path}: a configuration is a mapping of keys to values, this is {type(content).__name__}")
    return content


def check_folders(experiment: Experiment, root: Path = Path()) -> None:
    """Raises ConfigProblem for a folder that rules write, and may delete, if a symbolic link leads it out of data/, or
    if git tracks files in it. root: of the repository"""
    data = (root / "data").resolve()
    for key, folder in own_folders(experiment).items():
        path = root / folder
        inner = path.iterdir() if path.is_dir() else ()
        for one in [path, *(one for one in inner if one.is_symlink() and one.is_dir())]:
            if data not in (there := one.resolve()).parents:
                raise ConfigProblem(
                    f"{key}: {one} is or crosses a link to {there}, outside of {data}; mount it instead"
                )
        command = ["git", "-C", str(root), "ls-files", "--", folder]
        with contextlib.suppress(FileNotFoundError):  # no git
            if tracked := subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines():
                raise ConfigProblem(f"{key}: {folder} has files in git, such as {tracked[0]}; choose another folder")
    written = {*own_folders(experiment).values(), *(f"data/sources/{name}" for name in experiment.sources)}
    for name, use in experiment.sources.items():
        for folder in written if use.path else ():
            path, out = (root / str(use.path)).resolve(), (root / folder).resolve()
            if path == out or path in out.parents or out in path.parents:
                what = f"{use.path} and {folder}, which rules write and may delete, lie in each other"
                raise ConfigProblem(f"sources.{name}.path: {what}; put your files into a folder of their own")


def check_tracker(experiment: Experiment, path: str | Path) -> None:
    """Raises ConfigProblem for a tracker that is not installed. path: of the experiment file, for the message"""
    if problem := tracker_problem(experiment.machine):
        raise ConfigProblem(f"{path}: {problem}")


def own_folders(experiment: Experiment) -> dict[str, str]:
    """The folders that rules write, by their keys."""
    foundations = experiment.foundations
    folders = {"world.folder": experiment.world.folder, "foundations.folder": foundations.folder}
    if instruments := getattr(foundations, "instruments", None):
        folders["foundations.instruments.folder"] = instruments.folder
    chosen = {f"sources.{name}.folder": use.folder for name, use in experiment.sources.items()}
    return folders | {key: folder for key, folder in chosen.items() if folder}


def digest(*parts: Any) -> str:
    """Digest, 16 hex digits, of parts of a configuration (sections or plain values) that a result depends on."""
    plain = [part.model_dump(mode="json") if isinstance(part, Section) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


class _StrictLoader(yaml.SafeLoader):
    """YAML without duplicate keys, of which the last would win silently; and without what exhausts the memory.

    An alias stands for all that its anchor holds, so that a few lines can hold a value a billion times.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.depth = 0
        self.sizes: dict[int, int] = {}  # of the composed nodes, with all that is in them

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """A node of the document. Raises ComposerError for one that is too deep or too large."""
        mark = self.peek_event().start_mark
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.composer.ComposerError(None, None, f"more than {DEEPEST} levels", mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        if node is not None and id(node) not in self.sizes:
            inner = node.value if isinstance(node, yaml.CollectionNode) else []
            children = [child for one in inner for child in (one if isinstance(one, tuple) else [one])]
            if any(id(child) not in self.sizes for child in children):
                raise yaml.composer.ComposerError(None, None, "an alias inside of its own anchor", mark)
            self.sizes[id(node)] = size = 1 + sum(self.sizes[id(child)] for child in children)
            if size > MOST_VALUES:
                raise yaml.composer.ComposerError(None, None, f"more than {MOST_VALUES} values, aliases resolved", mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if twice := [key for key, count in counts.items() if count > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"duplicate key {twice[0][:80]!r}", node.start_mark)
        return super().construct_mapping(node, deep)


def _explain(detail: Any) -> list[str]:
    """One pydantic error as lines `key.path: what is wrong; near matches`."""
    location = [step for step in detail["loc"] if step != "[key]"]
    if location[:1] == ["foundations"]:
        location[1:2] = []  # pydantic puts the value of `source` there
    names = (f"[{step}]" if isinstance(step, int) else f".{step[:80]}" for step in location)
    where = "".join(names).lstrip(".")
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
    return [f"{where or 'file'}: {detail['msg']} (it is {shown(detail['input'])})"]


def shown(value: Any) -> str:
    """A value of a configuration as an error message has it: shortened, and computed in little memory."""
    if isinstance(value, (dict, list)):
        return f"a {'mapping' if isinstance(value, dict) else 'list'} of {len(value)}"
    if isinstance(value, int) and abs(value) > 10**40:
        return f"an integer of {value.bit_length()} bits"
    text = repr(mask(value) if isinstance(value, str) else value)
    return text if len(text) <= 80 else f"{text[:80]}..."


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
