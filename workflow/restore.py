"""Makes Snakemake agree with DVC after `dvc pull` or `dvc checkout`, where file times mean nothing.

Only what DVC vouches for is accepted: a stage whose outputs, inputs, parameters and command are those of dvc.lock gets
its Snakemake jobs marked as done (`--touch`), in the order of the pipeline. One stage with other content stops all;
stages whose outputs are not here are left to run. Usage: `make restore`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import yaml

ABSENT = {"deleted", "not in cache"}


def judge(stages: dict[str, dict], status: dict[str, list]) -> tuple[list[str], list[str], list[str]]:
    """Sort stages, in pipeline order, into (as recorded, absent, changed) by the answer of `dvc status --json`."""
    recorded, absent, changed = [], [], []
    for name, stage in stages.items():
        marks = set(_marks(status.get(name, [])))
        outputs = [Path(next(iter(out)) if isinstance(out, dict) else out) for out in stage["outs"]]
        if not any(out.exists() for out in outputs):
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


def main() -> None:
    if "--no-pull" not in sys.argv:
        subprocess.run(["dvc", "pull"], check=True)
    stages = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]
    status = subprocess.run(["dvc", "status", "--json"], check=True, capture_output=True, text=True).stdout
    recorded, absent, changed = judge(stages, json.loads(status))
    if changed:
        sys.exit(
            f"error: not what dvc.lock says: {', '.join(changed)} (see `dvc status`); nothing was marked as done. "
            f"Bring the recorded files back (`dvc checkout {' '.join(changed)}`) or make new ones (`dvc repro`)."
        )
    for name in recorded:
        command = " ".join(stages[name]["cmd"].split()).replace(
            "snakemake ", "snakemake --touch --forceall --quiet all ", 1
        )
        subprocess.run(command, shell=True, check=True)
    print(f"as recorded: {', '.join(recorded) or 'nothing'}; left to run: {', '.join(absent) or 'nothing'}")


if __name__ == "__main__":
    main()
