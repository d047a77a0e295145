"""Kill the smoke run at random moments, resume it, and compare its results with those of an undisturbed run.

    python benchmarks/soak.py [--kills 20] [--seed 0] [--cores 2] [--folder scratch/soak] [--out FILE.md]

Both runs use the commit that is checked out, each in its own clone. A moment is a job of a phase and a random fraction
of the time that this job took undisturbed; then Snakemake and all its processes get SIGKILL at once, as in a power cut.
After that, the script does what docs/workflow.md tells a user to do: `snakemake --unlock`, and the same command again.
Exit status 1 means that a result file differs. docs/reliability.md shows the table that this script printed.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from dreamllm.atomic import new_file
from dreamllm.digests import content_files, sha256_of_file

ROOT = Path(__file__).parent.parent
COMMAND = ("snakemake", "--configfile=config/smoke.yaml", "results/tables", "--cores")
PHASES = {
    "data building": r"make_world|train_foundation",
    "training": r"train_(?!foundation)",
    "sampling": r"predict",
    "evaluation": r"score",
    "table making": r"tables|figures",
}
MADE = ("data/emoji_smoke", "data/foundations_smoke", "results")


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file that a run has made, by its path."""
    files = [path for made in MADE for path in content_files(folder / made)]
    return {str(path.relative_to(folder)): sha256_of_file(path) for path in files}


def start(folder: Path, cores: int, log: Path) -> subprocess.Popen:
    """Start Snakemake in its own process group."""
    with log.open("ab") as file:
        command = [*COMMAND, str(cores)]
        return subprocess.Popen(
            command, cwd=folder, env=environment(folder), stdout=file, stderr=file, start_new_session=True
        )


def environment(folder: Path) -> dict[str, str]:
    """This process's environment with the clone's code on PYTHONPATH."""
    return os.environ | {"PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1"}


def running(text: str) -> dict[str, str]:
    """The jobs that Snakemake's output shows as begun and not finished: log file (rule and wildcards) by job id."""
    begun = {}
    for block in re.split(r"(?m)^(?=(?:local)?rule \w+:$)", text)[1:]:
        log = re.search(r"(?m)^    log: logs/smoke/(\S+)\.log", block)
        number = re.search(r"(?m)^    jobid: (\d+)", block)
        if log and number:
            begun[number[1]] = log[1]
    return {number: job for number, job in begun.items() if not re.search(rf"Finished jobid: {number} ", text)}


def seconds(folder: Path) -> dict[str, float]:
    """Wall time of every job in seconds, from the timing files."""
    times = {}
    for path in (folder / "timings/smoke").glob("*.tsv"):
        with path.open(encoding="utf-8") as file:
            times[path.stem] = float(next(csv.DictReader(file, delimiter="\t"))["s"])
    return times


def kill_in(phase: str, share: float, times: dict[str, float], folder: Path, cores: int, log: Path) -> tuple | None:
    """Start the run and kill it when a job of the phase has run for `share` of its undisturbed time.

    Returns the jobs that were killed and the seconds since the start; None if no job of the phase was left to run.
    """
    log.write_bytes(b"")
    process, began, seen = start(folder, cores, log), time.monotonic(), None
    while process.poll() is None:
        jobs = running(log.read_text(encoding="utf-8", errors="replace"))
        if seen is None:
            chosen = [job for job in jobs.values() if re.match(PHASES[phase], job)]
            seen = (time.monotonic() + share * times[chosen[0]]) if chosen else None
        if seen is not None and time.monotonic() >= seen:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return sorted(jobs.values()), time.monotonic() - began
        time.sleep(0.05)
    if process.returncode:
        sys.exit(f"error: the run failed by itself after a kill:\n{log.read_text(encoding='utf-8')[-4000:]}")
    return None


def soak(kills: int, seed: int, cores: int, folder: Path) -> tuple[list[tuple], dict[str, str], dict[str, str]]:
    """Rows (number, phase, jobs killed, second), and the file digests of the undisturbed and of the killed run."""
    shutil.rmtree(folder, ignore_errors=True)
    quiet, killed = folder / "undisturbed", folder / "killed"
    for clone in (quiet, killed):
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    process = start(quiet, cores, folder / "undisturbed.log")
    if process.wait():
        sys.exit(f"error: the undisturbed run failed, see {folder / 'undisturbed.log'}")
    times = seconds(quiet)

    draw = random.Random(seed)
    phases = list(PHASES)
    rows = []
    for number in range(kills):
        phase = phases[number * len(phases) // kills]
        hit = kill_in(phase, draw.random(), times, killed, cores, folder / f"kill{number + 1:02}.log")
        if hit is None:
            sys.exit(f"error: no job of {phase} was left for kill {number + 1}: fewer kills, please")
        rows.append((number + 1, phase, ", ".join(hit[0]) or "between jobs", hit[1]))
        print(f"kill {number + 1}: {phase}, after {hit[1]:.1f} s, in {rows[-1][2]}", flush=True)
        subprocess.run([*COMMAND, str(cores), "--unlock"], cwd=killed, env=environment(killed), check=True)
    if start(killed, cores, folder / "last.log").wait():
        sys.exit(f"error: the run after the last kill failed, see {folder / 'last.log'}")
    return rows, digests(quiet), digests(killed)


def main() -> None:
    """Run the test, print its table and exit with 1 where a file differs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=ROOT / "scratch/soak")
    parser.add_argument("--out", type=Path, help="the table, in Markdown")
    arguments = parser.parse_args()
    rows, expected, found = soak(arguments.kills, arguments.seed, arguments.cores, arguments.folder.resolve())
    differing = sorted(path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path))
    lines = ["| kill | phase | jobs killed | after |", "|---:|---|---|---:|"]
    lines += [f"| {number} | {phase} | {jobs} | {second:.1f} s |" for number, phase, jobs, second in rows]
    table = "\n".join(lines) + f"\n\n{len(expected)} files compared, {len(differing)} differ.\n"
    if arguments.out:
        with new_file(arguments.out) as temporary:
            temporary.write_text(table, encoding="utf-8")
    print(table)
    for path in differing:
        print(f"differs: {path}, undisturbed {expected.get(path, 'absent')}, killed {found.get(path, 'absent')}")
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
