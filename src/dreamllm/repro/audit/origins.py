"""Where the existing outputs of a run come from: made by Snakemake's jobs here, or recorded in dvc.lock.

Snakemake's jobs and dvc.lock both recorded digests, and an output has to be as one of the two says. One that was made
here may differ from dvc.lock: training on another machine, or at another commit, gives other bytes. That is a level of
reproduction (`compare.py`), no fault. An output that neither record explains is one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from dreamllm import digests
from dreamllm.paths import FIGURES, SUMMARY, TABLES
from dreamllm.repro.audit import compare, lineage, study
from dreamllm.repro.audit.audited_run import AuditedRun, Output
from dreamllm.repro.audit.findings import Fault
from dreamllm.snakemake_records import changed_after, differences

RECORDED = "results/recorded"  # metrics and item scores of the run in dvc.lock, written by `make record`


def check(audited: AuditedRun) -> tuple[list[Fault], str]:
    """Faults of the run's outputs; and how many are as recorded, with the level at which it reproduces dvc.lock."""
    same = dict(_dvc_lock(audited))
    outputs = [output for output in audited.outputs if _belongs(audited, output.path) and _exists(audited, output.path)]
    faults, counts = [], Counter[str]()
    for output in outputs:
        found = list(_differing(audited, output, same))
        counts["made here" if audited.was_made_here(output.path) else "recorded"] += not found
        faults += found
    faults += [*_shared_data(audited, same), *study.check(audited.root)]
    words = "".join(f"; {number} outputs are as {how}" for how, number in counts.items() if number)
    return faults, words + _level(audited, same)


def _differing(audited: AuditedRun, output: Output, same: dict[str, bool]) -> Iterator[Fault]:
    """Faults of an output that is neither as it was made here nor as in dvc.lock.

    same: for each path in dvc.lock whether it has these contents
    """
    path = output.path
    locked = next((one for one in same if Path(one) == Path(path) or Path(one) in Path(path).parents), "")
    if locked and same[locked]:
        return
    again = f"delete it, then: {audited.command}"
    made, record = audited.made.get(path), audited.records.get(path)
    if made and not made["touched"]:
        for name, how in differences(audited.root, path, made).items():
            yield Fault(
                f"was {how} by hand after Snakemake made it ({output.rule})", f"{path}/{name}".rstrip("/"), again
            )
    elif record and not made:  # made before digests were recorded
        if changed_after(audited.root / path, record):
            yield Fault(f"was changed after Snakemake made it ({output.rule})", path, again)
    elif locked:
        yield _differs(audited, locked)
    else:
        what = f"has an unknown origin: no job made it here, and {lineage.LOCK} does not have it"
        yield Fault(what, path, f"{again}; or copy .snakemake/ together with the results")


def _differs(audited: AuditedRun, path: str) -> Fault:
    stage, md5 = lineage.recorded_outputs(audited.run)[path]
    what = f"differs from {lineage.LOCK} (stage {stage}): recorded is md5 {md5[:12]}, "
    what += f"the file is {digests.md5(audited.root / path)[:12]}, and it was not made here"
    return Fault(what, path, f"dvc checkout {stage} restores the recorded one; or delete it, then: {audited.command}")


def _shared_data(audited: AuditedRun, same: dict[str, bool]) -> Iterator[Fault]:
    """Faults of data and foundations: neither as in dvc.lock nor as Snakemake made them."""
    for path, equal in same.items():
        if path.startswith("results/") or equal:
            continue
        made = [output for output in audited.records if Path(path) in (Path(output), *Path(output).parents)]
        if not made:
            yield _differs(audited, path)
        for output in made:
            if _exists(audited, output) and changed_after(audited.root / output, audited.records[output]):
                yield Fault("was changed after Snakemake made it", output, f"delete it, then: {audited.command}")


def _dvc_lock(audited: AuditedRun) -> Iterator[tuple[str, bool]]:
    """The existing outputs of this run in dvc.lock, and whether they have the recorded contents."""
    experiment = audited.run.experiment
    shared = {experiment.foundations.folder, *(audited.run.paths.world(part) for part in ("train", "benchmarks"))}
    for path, (_, md5) in lineage.recorded_outputs(audited.run).items():
        if (path in shared or _belongs(audited, path)) and _exists(audited, path):
            yield path, digests.md5(audited.root / path) == md5


def _belongs(audited: AuditedRun, path: str) -> bool:
    """Whether an output below results/ is this run's."""
    if path in (TABLES, FIGURES, SUMMARY):
        return audited.tables_show_this_run
    names = {audited.run.name, audited.run.experiment.name}
    return path.startswith("results/") and bool(names & set(Path(path).parts[2:]))


def _exists(audited: AuditedRun, path: str) -> bool:
    return (audited.root / path).exists()


def _level(audited: AuditedRun, same: dict[str, bool]) -> str:
    """How well this run reproduces the recorded one: outputs with the same bytes, and the levels of its numbers."""
    results = [equal for path, equal in same.items() if path.startswith("results/")]
    if not results:
        return ""
    words = f"; beside the recorded run: {sum(results)} of {len(results)} outputs in {lineage.LOCK} are the same bytes"
    recorded = audited.root / RECORDED / "metrics" / audited.run.name
    metrics = audited.root / audited.run.paths.results("metrics")
    if not (recorded.is_dir() and metrics.is_dir()):
        return words
    scatter = compare.seed_scatter(audited.root / study.STUDY)
    levels = Counter(one.level for one in compare.compare(compare.read(recorded), compare.read(metrics), scatter))
    return words + ", numbers: " + ", ".join(f"{levels[name]} {name}" for name in compare.LEVELS if levels[name])
