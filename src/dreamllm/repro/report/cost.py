"""Sum up what a run cost (time, memory, disk, estimated energy) from the timing files of its jobs.

Nothing is measured here. A job without such a file, for example because its outputs came by DVC, is not counted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dreamllm.config.experiment import Experiment
from dreamllm.digests import content_files
from dreamllm.paths import FIGURES, TABLES
from dreamllm.timings import Usage, read_usage

WATTS_PER_CORE, WATTS_PER_GPU = 10, 400
ASSUMPTION = (
    f"Energy is an estimate, not a measurement: {WATTS_PER_CORE} W per busy core, including memory and cooling, and "
    f"{WATTS_PER_GPU} W per GPU for as long as its job ran, busy or not."
)
REPORT_JOBS = ("site", "crate")  # they write the report and are not counted in it
KINDS = {  # how a job's name begins: its purpose
    "fetch": "data and foundations",
    "make": "data and foundations",
    "build": "data and foundations",
    "list": "data and foundations",
    "write": "data and foundations",
    "place": "data and foundations",
    "import": "data and foundations",
    "train_foundation": "foundations, trained here",
    "train": "training",
    "predict": "raw predictions",
    "features": "scores",
    "real": "scores",
    "score": "scores",
    "item": "scores",
    "human": "scores",
    "submission": "scores",
    "tables": "tables and figures",
    "figures": "tables and figures",
}


@dataclass(frozen=True)
class Timing(Usage):
    """Time and memory of a job. run: the folder of its file.  kind: its purpose.  gpus: reserved for it"""

    run: str
    job: str
    kind: str
    gpus: int


@dataclass(frozen=True)
class Cost:
    """Sums over jobs. memory_mb: the highest peak in MiB, 0 if none was measured.  unmeasured: jobs without CPU time"""

    jobs: int
    hours: float
    cpu_hours: float
    gpu_hours: float
    memory_mb: float
    unmeasured: int

    @property
    def kilowatt_hours(self) -> float:
        """Estimated energy, see ASSUMPTION."""
        return (self.cpu_hours * WATTS_PER_CORE + self.gpu_hours * WATTS_PER_GPU) / 1000


def read_timings(folder: Path, experiment: Experiment) -> list[Timing]:
    """The timing files of an experiment, timings/NAME/*.tsv, sorted by name; none without such a folder.

    Raises TimingProblem for a file of another form.
    """
    return [_read(path, experiment) for path in sorted(folder.glob("*.tsv")) if path.stem not in REPORT_JOBS]


def total(timings: Sequence[Timing]) -> Cost:
    """The sums over all jobs."""
    return Cost(
        jobs=len(timings),
        hours=sum(one.seconds for one in timings) / 3600,
        cpu_hours=sum(one.cpu_seconds or 0 for one in timings) / 3600,
        gpu_hours=sum(one.seconds * one.gpus for one in timings) / 3600,
        memory_mb=max((one.memory_mb or 0 for one in timings), default=0),
        unmeasured=sum(one.cpu_seconds is None for one in timings),
    )


def by_kind(timings: Sequence[Timing]) -> dict[str, Cost]:
    """The sums by the jobs' purpose, in the order of KINDS."""
    kinds = dict.fromkeys([*KINDS.values(), "other"])
    chosen = {kind: [one for one in timings if one.kind == kind] for kind in kinds}
    return {kind: total(those) for kind, those in chosen.items() if those}


def disk(root: Path, experiment: Experiment, runs: Sequence[str]) -> dict[str, int]:
    """Bytes of the existing folders of an experiment and its runs, by path relative to `root`."""
    results = ("checkpoints", "predictions", "features", "metrics", "items")
    folders = [experiment.world.folder, experiment.foundations.folder]
    folders += [f"results/{part}/{run}" for run in dict.fromkeys([experiment.name, *runs]) for part in results]
    folders += [TABLES, FIGURES]
    sizes = {folder: sum(path.stat().st_size for path in content_files(root / folder)) for folder in folders}
    return {folder: size for folder, size in sizes.items() if size}


def size(count: int) -> str:
    """Bytes for readers, in powers of 1000: 1.3 MB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.3g} {unit}" if unit != "B" else f"{count} B"
        count /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """A time for readers: 4.2 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _read(path: Path, experiment: Experiment) -> Timing:
    kind = next((KINDS[stem] for stem in sorted(KINDS, key=len, reverse=True) if _begins(path.stem, stem)), "other")
    gpus = _gpus(path.stem, kind, experiment)
    return Timing(**vars(read_usage(path)), run=path.parent.name, job=path.stem, kind=kind, gpus=gpus)


def _begins(name: str, stem: str) -> bool:
    return name == stem or name.startswith(f"{stem}_")


def _gpus(job: str, kind: str, experiment: Experiment) -> int:
    """GPUs that the job's rule reserves (workflow/rules)."""
    machine = experiment.machine
    if kind == "training" and job != "train_sd_finetuned":
        return machine.gpus * machine.nodes
    uses_one = kind in ("raw predictions", "foundations, trained here") or job == "train_sd_finetuned"
    return min(1, machine.gpus) if uses_one or re.match("features_|real_", job) else 0
