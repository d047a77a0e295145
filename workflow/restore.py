"""Brings recorded files by DVC and makes Snakemake agree, to whom file times mean nothing after that.

From your own remote if you named one (`dvc remote add --default --local NAME URL`) come data, checkpoints and results;
without one the foundations alone, from the store in this repository. Only what DVC vouches for is accepted: stages
whose outputs, inputs, parameters and command are those of dvc.lock get their Snakemake jobs marked as done (`--touch`).
One stage with other content stops all; stages whose outputs are not here are left to run.
Usage: `make restore`, or `python workflow/restore.py --no-pull` for what is here already.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import yaml

from dreamllm.digests import content_files
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
    """All leaves (`modified`, `deleted`, `changed command` ...) of one stage's status."""
    if isinstance(entry, dict):
        return [mark for value in entry.values() for mark in _marks(value)]
    if isinstance(entry, list):
        return [mark for value in entry for mark in _marks(value)]
    return [entry]


def default_remote() -> str:
    """Name of the remote that data sets, checkpoints and results go to and come from; empty if there is none."""
    return _setting("core.remote")


def _setting(name: str) -> str:
    return subprocess.run(
        ["dvc", "config", name], check=False, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ).stdout.strip()


def touch(commands: list[str]) -> list[str]:
    """One Snakemake call that marks as done what these stages' commands make, with no other rules than theirs."""
    rules, targets = [], []
    for command in commands:
        words = command.split()
        begin, end = words.index("--allowed-rules"), words.index("--")
        rules += words[begin + 1 : end]
        targets += words[end + 1 :]
    call = ["snakemake", "--touch", "--forceall", "--quiet", "all", "--cores", "all"]
    return [*call, "--allowed-rules", *rules, "--", *targets]


def refuse_hard_links(stages: dict[str, dict]) -> None:
    """A hard link is the cache's own file: read-only, so that Snakemake takes it for protected, and what writes into it
    changes the cache for everyone. Raises SystemExit where DVC is told to make such links, or has made some."""
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
