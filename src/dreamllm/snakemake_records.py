"""Read what Snakemake wrote about its jobs, and find result files that it did not make.

    .snakemake/metadata      a JSON record of every output: rule, inputs, command, start and end
    .snakemake/incomplete    an empty file for every output of a job that has begun and not ended

Snakemake notices a result that was edited by hand only if its time became newer than that of what was made from it, and
then makes the latter again, never the edited file. Therefore the Snakefile adds, at the end of every run,

    .snakemake/digests.json  {OUTPUT: {"endtime": of Snakemake's record, "touched": whether by `snakemake --touch`,
                             "files": {name in the folder, or "": sha256}}}

DVC runs a stage when its configuration or code changed, and records whatever the stage leaves as its result. Snakemake
decides by its own records. For a file that has no record (it came by `dvc pull`) or that was edited later, Snakemake
only compares times and may call it up to date. The two together would then record an old file as the result of new
settings. Therefore a stage does not start (Snakefile) and nothing is recorded (workflow/record.py) while the stage's
folders hold such files.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from dreamllm.atomic import new_file, unfinished
from dreamllm.digests import content_files, sha256_of_file

DIGESTS = "digests.json"
SLACK = 0.01  # seconds; a record has the output's own time, as a float


class DigestProblem(ValueError):
    """A file of recorded digests that cannot be read: which file, and what is wrong."""


def read_records(state: str | Path = ".snakemake") -> dict[str, dict[str, Any]]:
    """Snakemake's record of every output by the output's path; files that are no records are passed over."""
    found = {}
    for output, file in _record_files(Path(state) / "metadata"):
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            continue
        if isinstance(record, dict) and {"rule", "input", "log", "shellcmd", "starttime", "endtime"} <= record.keys():
            found[output] = record
    return found


def read_digests(state: str | Path = ".snakemake") -> dict[str, dict[str, Any]]:
    """What `record_digests` wrote, by output; {} without it. Raises DigestProblem for a file of another form."""
    path = Path(state) / DIGESTS
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise DigestProblem(f"{path}: is not JSON ({error}); remove it if you do not know why") from None
    if not isinstance(content, dict) or not all(isinstance(one, dict) and "files" in one for one in content.values()):
        raise DigestProblem(f"{path}: is not what the workflow writes; remove it if you do not know why")
    return content


def record_digests(root: str | Path = ".", *, touched: bool = False) -> None:
    """Write the digests of what Snakemake made below results/ since the last call.

    An output that was recorded before keeps its digests until a job makes it again, whatever the files are now.
    touched: no job ran, `snakemake --touch` gave the outputs new times; what was not recorded before gets this mark
    """
    root = Path(root)
    state = root / ".snakemake"
    before, after = read_digests(state), {}
    for output, record in read_records(state).items():
        if not output.startswith("results/"):
            continue
        known = before.get(output)
        if known and (touched or known["endtime"] == record["endtime"]):
            after[output] = known | {"endtime": record["endtime"]}
        elif (root / output).exists() and not changed_after(root / output, record):
            after[output] = {"endtime": record["endtime"], "touched": touched, "files": digests_of(root / output)}
    with new_file(state / DIGESTS) as file:
        file.write_text(json.dumps(before | after, indent=1) + "\n", encoding="utf-8")


def digests_of(path: Path) -> dict[str, str]:
    """sha256 of each content file of a folder by its name there; of a file by ""; {} if there is neither."""
    if path.is_file():
        return {"": sha256_of_file(path)}
    return {file.relative_to(path).as_posix(): sha256_of_file(file) for file in content_files(path)}


def changed_by_hand(root: str | Path = ".") -> dict[str, str]:
    """Existing results of Snakemake's jobs that are not as they were made: path -> "changed", "added" or "removed"."""
    found: dict[str, str] = {}
    for output, record in read_digests(Path(root) / ".snakemake").items():
        if (Path(root) / output).exists():
            found |= {f"{output}/{name}".rstrip("/"): how for name, how in differences(root, output, record).items()}
    return found


def differences(root: str | Path, output: str, record: Mapping[str, Any]) -> dict[str, str]:
    """Files of an output that differ from its recorded digests: name -> "changed", "added" or "removed"."""
    now, then = digests_of(Path(root) / output), record["files"]
    names = [*then, *(name for name in now if name not in then)]
    how = {name: "removed" if name not in now else "changed" if name in then else "added" for name in names}
    return {name: word for name, word in how.items() if now.get(name) != then.get(name)}


def changed_after(path: Path, record: Mapping[str, Any]) -> bool:
    """Whether an output, or a file in it, has a later time than its record."""
    files = content_files(path) or [path]
    return any(file.stat().st_mtime > (record["endtime"] or 0) + SLACK for file in files)


def outputs(stage: Mapping) -> list[str]:
    """Paths that a stage of dvc.yaml makes."""
    return [next(iter(out)) if isinstance(out, Mapping) else out for out in stage["outs"]]


def untracked_outputs(folders: Iterable[str | Path], state: str | Path = ".snakemake") -> dict[str, str]:
    """Files below `folders` that no finished or begun job of Snakemake made, each with the reason.

    state: the folder of Snakemake's records
    """
    ended = read_records(state)
    begun = {name for name, _ in _record_files(Path(state) / "incomplete")}  # Snakemake makes these again by itself
    found = {}
    for path in (path for folder in folders for path in content_files(folder)):
        names = [str(name) for name in (path, *path.parents)]
        if begun & set(names):
            continue
        record = next((ended[name] for name in names if name in ended), None)
        if record is None:
            found[str(path)] = "not made here"
        elif max(path.stat().st_mtime, path.lstat().st_mtime) > (record["endtime"] or 0) + SLACK:
            found[str(path)] = "changed after it was made"
    return found


def refusal(pipeline: str | Path, stages: Iterable[str] | None = None) -> str | None:
    """Why the outputs of these stages of a dvc.yaml (default: all) must not be recorded; None if they may be."""
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
    """`refusal` for the stage that DVC is running, which it names in DVC_STAGE; None outside of DVC."""
    stage = os.environ.get("DVC_STAGE", "").rpartition(":")[2]
    return refusal(pipeline, [stage]) if stage else None


def sweep(folder: str | Path) -> list[Path]:
    """Remove the temporary files and folders that `atomic` leaves after a SIGKILL; return their paths.

    Those of living processes stay: jobs of another experiment, for which another Snakemake runs in the same folder.
    """
    left = unfinished(folder)
    for path in left:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return left


def _record_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Output and file of every record, sorted by file; files whose names are not base64 are passed over.

    A file is named by its output's path in URL-safe base64; a name that is too long for the file system is cut, and all
    parts but the last are folders that begin with @.
    """
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = "".join(part.removeprefix("@") for part in file.relative_to(folder).parts)
        try:
            yield base64.urlsafe_b64decode(name).decode(), file
        except ValueError:  # binascii.Error and UnicodeDecodeError
            continue
