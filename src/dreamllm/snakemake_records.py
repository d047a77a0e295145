"""Snakemake's records of what it made, held against the files that are there.

DVC runs a stage when its configuration or code changed, and takes what the stage leaves for the result. Snakemake goes
by its own records; of a file without one (it came by `dvc pull`), or one that was edited since, it sees the time alone
and may call it up to date. Together they would record an old file as the result of new settings. So a stage is refused
(Snakefile), and nothing is recorded (workflow/record.py), while its folders hold such files.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from dreamllm.digests import content_files

SLACK = 0.01  # seconds; a record has the output's own time, as a float


def outputs(stage: Mapping) -> list[str]:
    """Paths that a stage of dvc.yaml makes."""
    return [next(iter(out)) if isinstance(out, Mapping) else out for out in stage["outs"]]


def untracked_outputs(folders: Iterable[str | Path], state: str | Path = ".snakemake") -> dict[str, str]:
    """Files below `folders` that no finished or begun job of Snakemake accounts for, each with the reason.

    `state`: where Snakemake keeps its records, one file for each output, named by the output's path in base64.
    """
    ended = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in _records(Path(state) / "metadata")}
    begun = {name for name, _ in _records(Path(state) / "incomplete")}  # Snakemake makes these again by itself
    found = {}
    for path in (path for folder in folders for path in content_files(folder)):
        names = [str(name) for name in (path, *path.parents)]
        if begun & set(names):
            continue
        record = next((ended[name] for name in names if name in ended), None)
        if record is None:
            found[str(path)] = "not made here"
        elif max(os.stat(path).st_mtime, os.lstat(path).st_mtime) > (record["endtime"] or 0) + SLACK:
            found[str(path)] = "changed after it was made"
    return found


def refusal(pipeline: str | Path, stages: Iterable[str] | None = None) -> str | None:
    """Why the outputs of these stages of a dvc.yaml (all, unless named) must not be recorded; None if they may be."""
    described = yaml.safe_load(Path(pipeline).read_text(encoding="utf-8"))["stages"]
    found = untracked_outputs(path for name in stages or described for path in outputs(described[name]))
    if not found:
        return None
    path, reason = next(iter(found.items()))
    return (
        f"{len(found)} files are not as Snakemake made them, such as {path}: {reason}. They may belong to other "
        "settings or code, and would be recorded as results of these. Either delete them, and they are made again; or "
        "`make restore` with configuration and code as recorded (git stash), and change these after it (git stash pop)"
    )


def refusal_under_dvc(pipeline: str | Path) -> str | None:
    """`refusal` of the stage that DVC runs just now, which it names in DVC_STAGE; None where nobody runs a stage."""
    stage = os.environ.get("DVC_STAGE", "").rpartition(":")[2]
    return refusal(pipeline, [stage]) if stage else None


def sweep(folder: str | Path) -> list[Path]:
    """Remove what `atomic` could not after a SIGKILL: files and folders named .NAME.PID. Returns those it removed.

    For the one who holds Snakemake's lock: then no job of this workflow is at work on such a file.
    """
    left = [path for path in sorted(Path(folder).rglob(".*")) if re.fullmatch(r"\..+\.\d+", path.name)]
    for path in left:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return left


def _records(folder: Path) -> Iterable[tuple[str, Path]]:
    """Path of the output and file of every record; long names are cut into folders whose names begin with @."""
    for file in folder.rglob("*"):
        if file.is_file():
            parts = [part.removeprefix("@") for part in file.relative_to(folder).parts]
            yield base64.urlsafe_b64decode("".join(parts)).decode(), file
