"""Checks of the DAG: what makes a result, whether it is up to date, what it cost, and what nobody makes."""

from __future__ import annotations

from pathlib import Path

from dreamllm.config.reading import load
from dreamllm.digests import content_files
from dreamllm.paths import REPORT, Paths
from dreamllm.repro.audit.evidence import Evidence
from dreamllm.repro.audit.findings import Fault, Result, absent, judged
from dreamllm.snakemake_records import RecordProblem, Usage, read_usage

LONGEST_SMOKE = 600.0  # CPU seconds: what the end-to-end run may take
SMOKE = "config/smoke.yaml"
BY_VERBS = ("results/audit.json", "results/compare", "results/human/{name}", REPORT)
COMMITTED = ("results/README.md", "results/study")
APART = (*BY_VERBS, *COMMITTED)
"""Below results/, but not what results/tables needs: made by other verbs and rules, or kept in git."""


def commands(evidence: Evidence) -> Result:
    """A02: every result has a rule and a command that makes it, and Snakemake would not make it again."""
    there = [output for output in evidence.outputs if (evidence.root / output.path).exists()]
    results = [output for output in there if output.path.startswith("results/")]
    if not results:
        return absent(f"no result of {evidence.run.name} is there: {evidence.command}, or `make restore`")
    faults = []
    for output in there:
        if output.plan == "no update":
            continue
        why = output.status if output.status != "ok" else "what it is made from would be made again"
        what = f"is not up to date with its rule {output.rule}: {why}"
        fix = f"{evidence.command}; after dvc pull or dvc checkout: make restore"
        faults.append(Fault(what, output.path, fix))
    rules = len({output.rule for output in results})
    words = f"{len(results)} results of {rules} rules are up to date"
    return judged(faults, f"{words}; their commands: snakemake --detailed-summary")


def orphans(evidence: Evidence) -> Result:
    """A14: there is no file below results/ that no rule makes."""
    others = _other_experiments(evidence)
    made = [Path(output.path) for output in evidence.outputs]
    made += [Path(path.format(name=name)) for path in APART for name in evidence.run.runs]
    folder = evidence.root / "results"
    known = counted = 0
    faults = []
    for file in content_files(folder):
        path = file.relative_to(evidence.root)
        if any(part.startswith(".") for part in path.parts):
            continue  # .gitkeep and alike; unfinished writing, which the next run removes
        counted += 1
        if len(path.parts) > 3 and path.parts[2] in others:
            known += 1
        elif not any(one == path or one in path.parents for one in made):
            what = "is made by no rule of the experiment"
            faults.append(Fault(what, path.as_posix(), "remove it, or write the rule that makes it"))
    words = f"{counted - known} files below results/ have a rule"
    return judged(faults, words + (f"; {known} more are of other configurations" if known else ""))


def _other_experiments(evidence: Evidence) -> set[str]:
    """Names of the other experiments in config/, whose results may lie beside these."""
    files = sorted((evidence.root / "config").glob("*.yaml"))
    others = [file for file in files if file != evidence.root / evidence.run.config]
    names = {name for file in others for name in (load(file).name, *load(file).runs())}
    return names - {evidence.run.experiment.name, *evidence.run.runs}


def costs(evidence: Evidence) -> Result:
    """A11: every job that ran has its wall time, CPU time and peak memory written down."""
    run = evidence.run
    folder = evidence.root / run.paths.timings
    if not folder.is_dir():
        reason = f"{run.paths.timings} is not there: timings stay on the machine that ran ({evidence.command})"
        return absent(reason)
    faults, seconds, memory = [], 0.0, 0.0
    logs = {Path(output.log): output for output in evidence.outputs if output.log not in ("", "-")}
    jobs = {log.stem: output for log, output in logs.items() if log.parent.name == run.name}
    for job, output in jobs.items():
        if not (evidence.root / output.path).exists():
            continue
        file = run.paths.timing(job)
        try:
            usage = read_usage(evidence.root / file)
            problem = "" if usage.seconds > 0 else "its time is not positive"
        except FileNotFoundError:
            usage, problem = Usage(0.0, None, None), "has no timing"
        except RecordProblem:
            usage, problem = Usage(0.0, None, None), "its timing cannot be read"
        if problem:
            faults.append(Fault(f"job {job}: {problem}", file, f"run it again: snakemake --forcerun {output.rule}"))
        seconds += usage.seconds
        memory = max(memory, usage.memory_mb or 0.0)
    words = f"{len(jobs)} jobs, {seconds / 3600:.2f} hours one after another, at most {memory:.0f} MB"
    return judged(faults, words)


def small_run(evidence: Evidence) -> Result:
    """A15: the whole DAG runs in miniature on a CPU in minutes, with the same tasks, stages and kinds of tables."""
    path = evidence.root / SMOKE
    if not path.is_file():
        return judged([Fault("is not there", SMOKE, f"git checkout {SMOKE}")], "")
    smoke, faults = load(path), []
    if evidence.run.config == "config/embedded.yaml":  # other experiments have tasks and stages of their own
        for stage in evidence.run.experiment.stages:
            if stage not in smoke.stages:
                faults.append(Fault(f"lacks the stage {stage} of {evidence.run.config}", SMOKE, "add it there"))
        asked = {name for e in smoke.evaluations for name in e.benchmarks}
        for name in {name for e in evidence.run.experiment.evaluations for name in e.benchmarks} - asked:
            faults.append(Fault(f"lacks the benchmark {name} of {evidence.run.config}", SMOKE, "add it there"))
    timings = Paths(smoke, smoke.name).timings
    folder = evidence.root / timings
    wanted = [f"score_{e.model}_{name}" for e in smoke.evaluations for name in e.benchmarks] + ["tables"]
    missing = [job for job in wanted if not (folder / f"{job}.tsv").is_file()]
    if missing and not faults:
        return absent(f"the small run was not made here: snakemake --cores all --configfile={SMOKE} results/tables")
    if missing:
        return judged(faults, "")
    usages = [read_usage(file) for file in sorted(folder.glob("*.tsv"))]
    seconds = sum(usage.seconds if usage.cpu_seconds is None else usage.cpu_seconds for usage in usages)
    if seconds > LONGEST_SMOKE:
        what = f"its jobs took {seconds:.0f} CPU seconds, more than {LONGEST_SMOKE:.0f}"
        fix = "make the smoke run smaller"
        faults.append(Fault(what, timings, fix))
    return judged(faults, f"{SMOKE} ran here, {len(wanted) - 1} evaluations and tables, in {seconds:.0f} CPU seconds")
