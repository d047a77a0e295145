"""Fetch recorded files with DVC and mark their jobs as done in Snakemake, which cannot know it from file times.

Usage: `make restore`, or `python workflow/restore.py --no-pull` for files that are here already.

Data, checkpoints and results come from your own remote if you named one (`dvc remote add --default --local NAME URL`);
without one only the foundations come, from the store in this repository. Jobs are marked as done (`snakemake --touch`)
for stages whose outputs, inputs, parameters and command are those of dvc.lock. If one stage has other contents, nothing
is marked. Stages without outputs here are left to run.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import yaml

from dreamllm.digests import content_files
from dreamllm.masking import mask
from dreamllm.snakemake_records import outputs


def judge(stages: dict[str, dict], status: dict[str, list]) -> tuple[list[str], list[str], list[str]]:
    """Sort stages, in pipeline order, into (as recorded, absent, changed) by the answer of `dvc status --json`."""
    recorded, absent, changed = [], [], []
    for name, stage in stages.items():
        marks = set(_marks(status.get(name, [])))
        if not any(Path(out).exists() for out in outputs(stage)):
            absent.append(name)
        elif marks:
            changed.append(name)
        else:
            recorded.append(name)
    return recorded, absent, changed


def _marks(entry) -> list[str]:
    """All values (`modified`, `deleted`, `changed command` ...) in the nested status of one stage."""
    if isinstance(entry, dict):
        return [mark for value in entry.values() for mark in _marks(value)]
    if isinstance(entry, list):
        return [mark for value in entry for mark in _marks(value)]
    return [entry]


def default_remote() -> str:
    """Name of your own DVC remote, for data sets, checkpoints and results; empty if there is none.

    Raises SystemExit when its address holds a password or a key, which DVC would show in its messages.
    """
    name = _setting("core.remote")
    if name and mask(url := _setting(f"remote.{name}.url")) != url:
        sys.exit(
            f"error: the address of the DVC remote {name} holds a secret, {mask(url)}: take it out of the address "
            f"(`dvc remote modify --local {name} url ...`), and write user and password into .dvc/config.local by "
            f"`dvc remote modify --local {name} user ...` and `password ...`, or the keys of its service"
        )
    return name


def _setting(name: str) -> str:
    return subprocess.run(
        ["dvc", "config", name], check=False, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ).stdout.strip()


def touch(commands: list[str]) -> list[str]:
    """A Snakemake call that marks as done what the commands of these stages make, using only their rules."""
    rules, targets = [], []
    for command in commands:
        words = command.split()
        begin, end = words.index("--allowed-rules"), words.index("--")
        rules += words[begin + 1 : end]
        targets += words[end + 1 :]
    call = ["snakemake", "--touch", "--forceall", "--quiet", "all", "--cores", "all"]
    return [*call, "--allowed-rules", *rules, "--", *targets]


def refuse_hard_links(stages: dict[str, dict]) -> None:
    """Raises SystemExit if DVC is configured to make hard links, or has made some.

    A hard link is the file in DVC's cache itself. It is read-only, so that Snakemake treats it as protected, and a
    program that writes into it changes the cache.
    """
    relink = "`dvc config --local cache.type reflink,symlink,copy`, then `dvc checkout --relink`"
    if "hardlink" in _setting("cache.type").split(","):
        sys.exit(f"error: cache.type names hardlink, which this workflow cannot use: {relink}")
    for out in (out for stage in stages.values() for out in outputs(stage)):
        for path in content_files(out):
            if not path.is_symlink() and path.stat().st_nlink > 1:
                sys.exit(f"error: {path} is a hard link, which this workflow cannot use: {relink}")


def main() -> None:
    """Pull the recorded files, check them against dvc.lock, and mark them as up to date for Snakemake."""
    stages = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]
    refuse_hard_links(stages)
    if "--no-pull" not in sys.argv:
        pull = ["dvc", "pull", *([] if default_remote() else ["foundations"])]
        if subprocess.run(pull, check=False).returncode:
            sys.exit(
                f"error: `{' '.join(pull)}` failed, see above; nothing was marked as done. If files were changed here, "
                "`dvc checkout --force` brings the recorded ones back, and the changes are lost. If the remote lacks "
                "some: `dvc pull --allow-missing`, then `python workflow/restore.py --no-pull`."
            )
    status = subprocess.run(["dvc", "status", "--json"], check=True, capture_output=True, text=True).stdout
    recorded, absent, changed = judge(stages, json.loads(status))
    if changed:
        sys.exit(
            f"error: not what dvc.lock says: {', '.join(changed)} (see `dvc status`); nothing was marked as done. "
            f"Bring back the recorded files (`dvc checkout --force {' '.join(changed)}`) or the recorded configuration "
            "and code (git stash), then `make restore` again. What you change after that is noticed."
        )
    if recorded:
        subprocess.run(touch([stages[name]["cmd"] for name in recorded]), check=True, stderr=subprocess.DEVNULL)
    print(f"as recorded: {', '.join(recorded) or 'nothing'}; left to run: {', '.join(absent) or 'nothing'}")


if __name__ == "__main__":
    main()
