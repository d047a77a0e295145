"""Reads files that anybody may have edited: what is missing, malformed or of a wrong type is None or empty."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dreamllm.safe_join import NameProblem, checked
from dreamllm.train.ancestors import OBJECTS


def read_json_or_none(path: Path) -> Any:
    """A JSON file's content; None if it is missing or malformed."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def read_checkpoint_json(path: Path) -> dict[str, Any] | None:
    """The content of a checkpoint.json; None if it is missing, malformed, or has a value of a wrong type."""
    content = read_json_or_none(path)
    if not isinstance(content, dict):
        return None
    init = content.get("init", [])
    sound = all(isinstance(content.get(key, {}), dict) for key in OBJECTS)
    sound = sound and all(isinstance(files, dict) for files in content.get("data", {}).values())
    return content if sound and isinstance(init, list) and all(isinstance(one, str) for one in init) else None


def as_object(value: Any) -> dict[str, Any]:
    """A value of a file that should be an object; {} if it is none."""
    return value if isinstance(value, dict) else {}


def is_inside(name: object) -> bool:
    """Whether a name that a result gives to what it was made from can be a path below a folder of the repository."""
    try:
        return bool(checked(name))
    except NameProblem:
        return False
