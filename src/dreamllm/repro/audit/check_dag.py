"""Checks of the workflow: results have rules, are up to date and have recorded costs; no file is untracked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dreamllm.config.reading import load
from dreamllm.digests import content_files, md5
from dreamllm.paths import REPORT, Paths
from dreamllm.repro.audit.audited_run import AuditedRun
from dreamllm.repro.audit.findings import CheckResult, Fault, not_applicable, pass_or_fail
from dreamllm.timings import TimingProblem, Usage, read_usage

SMOKE_LIMIT = 600.0  # CPU seconds of the end-to-end run
SMOKE = "config/smoke.yaml"
BY_VERBS = ("results/audit.json", "results/compare", "results/human/{name}", REPORT)
COMMITTED = ("results/README.md", "results/study", "results/recorded")
NOT_OF_TABLES = (*BY_VERBS, *COMMITTED)
"""Files below results/ that results/tables does not need: made by other verbs and rules, or kept in git."""


def commands(audited: AuditedRun) -> CheckResult:
    """A02: every result has a rule that makes it, and Snakemake calls it up to date."""
    existing = [output for output in audited.outputs if (audited.root / output.path).exists()]
    results = [output for output in existing if output.path.startswith("results/")]
    if not results:
        return not_applicable(f"there are no results of {audited.run.name}: {audited.command}, or `make restore`")
    faults = []
    for output in existing:
        if output.plan == "no update":
            continue
        why = output.status if output.status != "ok" else "its inputs would be made again"
        what = f"is not up to date with its rule {output.rule}: {why}"
        fix = f"{audited.command}; after dvc pull or dvc checkout: make restore"
        faults.append(Fault(what, output.path, fix))
    for output in audited.outputs:
        if output not in existing and output.path.startswith("results/") and output.path in audited.made:
            faults.append(Fault("was made here and is gone", output.path, f"{audited.command} makes it again"))
    rules = len({output.rule for output in results})
    words = f"{len(results)} results of {rules} rules are up to date"
    return pass_or_fail(faults, f"{words}; their commands: snakemake --detailed-summary")


def orphans(audited: AuditedRun) -> CheckResult:
    """A14: every file below results/ is the output of a rule."""
    others, elsewhere = _other_experiments(audited), _of_the_same_name(audited)
    made = {Path(output.path) for output in audited.outputs}
    made |= {Path(path.format(name=name)) for path in NOT_OF_TABLES for name in audited.run.runs}
    folder = audited.root / "results"
    foreign = counted = 0
    committed = set((audited.run.git("ls-files", "-z", *COMMITTED) or "").split("\0"))
    faults = list(_links(audited, folder))
    for file in content_files(folder):
        path = file.relative_to(audited.root)
        if any(Path(one) in (path, *path.parents) for one in COMMITTED):
            if path.as_posix() not in committed:
                what = "is in a committed folder, but not in git"
                faults.append(Fault(what, path.as_posix(), "remove it, or git add"))
            counted += 1
            continue
        if any(part.startswith(".") for part in path.parts):
            continue  # .gitkeep and the like; temporary files, which the next run removes
        counted += 1
        if len(path.parts) > 3 and path.parts[2] in others:
            foreign += 1
        elif not made.isdisjoint((path, *path.parents)):
            continue
        elif not elsewhere.isdisjoint((path, *path.parents)):
            foreign += 1
        else:
            what = "is not the output of any rule of the experiment"
            faults.append(Fault(what, path.as_posix(), "remove it, or write the rule that makes it"))
    words = f"{counted - foreign} files below results/ have a rule"
    return pass_or_fail(faults, words + (f"; {foreign} more belong to other configurations" if foreign else ""))


def _links(audited: AuditedRun, folder: Path) -> Iterator[Fault]:
    """Symbolic links in the results, except those of DVC into its cache, where a file is named by its own MD5."""
    for path in sorted(folder.rglob("*")):
        if not path.is_symlink():
            continue
        target = path.resolve()
        if not target.is_file() or md5(target) != "".join(target.parts[-2:]):
            file = path.relative_to(audited.root).as_posix()
            yield Fault("is a symbolic link", file, f"delete it, then: {audited.command}")


def _other_experiments(audited: AuditedRun) -> set[str]:
    """Names of the other experiments in config/; their results may also be below results/."""
    files = sorted((audited.root / "config").glob("*.yaml"))
    others = [load(file) for file in files if file != audited.root / audited.run.config]
    names = {name for other in others for name in (other.name, *other.runs())}
    return names - {audited.run.experiment.name, *audited.run.runs}


def _of_the_same_name(audited: AuditedRun) -> set[Path]:
    """Results of other configurations that continue this experiment under its name (config/own_data.yaml)."""
    found = set()
    for file in sorted((audited.root / "config").glob("*.yaml")):
        one = load(file)
        for run in set(audited.run.runs) & one.runs().keys():
            paths = Paths(one, run)
            found |= {Path(paths.checkpoint(stage)) for stage in one.stages}
            for model, benchmark in [(e.model, name) for e in one.evaluations for name in e.benchmarks]:
                found |= {
                    Path(paths.predictions(model, benchmark, suffix)) for suffix in ("jsonl", "tar", "safetensors")
                }
                found |= {Path(path) for path in (paths.metrics(model, benchmark), paths.items(model, benchmark))}
    return found


def costs(audited: AuditedRun) -> CheckResult:
    """A11: wall time, CPU time and peak memory of every job were recorded."""
    run = audited.run
    folder = audited.root / run.paths.timings
    jobs_here = any(audited.was_made_here(output.path) for output in audited.outputs)
    if not folder.is_dir() and not jobs_here:
        reason = (
            f"{run.paths.timings} does not exist: timings stay on the machine that ran the jobs ({audited.command})"
        )
        return not_applicable(reason)
    faults, seconds, memory = [], 0.0, 0.0
    logs = {Path(output.log): output for output in audited.outputs if output.log not in ("", "-")}
    jobs = {log.stem: output for log, output in logs.items() if log.parent.name == run.name}
    for job, output in jobs.items():
        if not (audited.root / output.path).exists():
            continue
        file = run.paths.timing(job)
        try:
            usage = read_usage(audited.root / file)
            problem = "" if usage.seconds > 0 else "its time is not positive"
        except FileNotFoundError:
            usage, problem = Usage(0.0, None, None), "has no timing"
        except TimingProblem:
            usage, problem = Usage(0.0, None, None), "its timing cannot be read"
        if problem:
            faults.append(Fault(f"job {job}: {problem}", file, f"run it again: snakemake --forcerun {output.rule}"))
        seconds += usage.seconds
        memory = max(memory, usage.memory_mb or 0.0)
    words = f"{len(jobs)} jobs, {seconds / 3600:.2f} hours in total, at most {memory:.0f} MB"
    return pass_or_fail(faults, words)


def small_run(audited: AuditedRun) -> CheckResult:
    """A15: a small configuration with the same stages, benchmarks and tables runs on a CPU in minutes."""
    path = audited.root / SMOKE
    if not path.is_file():
        return pass_or_fail([Fault("is missing", SMOKE, f"git checkout {SMOKE}")], "")
    smoke, faults = load(path), []
    if audited.run.config == "config/embedded.yaml":  # other experiments have their own stages and benchmarks
        for stage in audited.run.experiment.stages:
            if stage not in smoke.stages:
                faults.append(Fault(f"lacks the stage {stage} of {audited.run.config}", SMOKE, "add it there"))
        present = {name for e in smoke.evaluations for name in e.benchmarks}
        for name in {name for e in audited.run.experiment.evaluations for name in e.benchmarks} - present:
            faults.append(Fault(f"lacks the benchmark {name} of {audited.run.config}", SMOKE, "add it there"))
    timings = Paths(smoke, smoke.name).timings
    folder = audited.root / timings
    wanted = [f"score_{e.model}_{name}" for e in smoke.evaluations for name in e.benchmarks] + ["tables"]
    missing = [job for job in wanted if not (folder / f"{job}.tsv").is_file()]
    if missing and not faults:
        return not_applicable(
            f"the small run was not made here: snakemake --cores all --configfile={SMOKE} results/tables"
        )
    if missing:
        return pass_or_fail(faults, "")
    usages = [read_usage(file) for file in sorted(folder.glob("*.tsv"))]
    seconds = sum(usage.seconds if usage.cpu_seconds is None else usage.cpu_seconds for usage in usages)
    if seconds > SMOKE_LIMIT:
        what = f"its jobs took {seconds:.0f} CPU seconds, more than {SMOKE_LIMIT:.0f}"
        fix = "make the smoke run smaller"
        faults.append(Fault(what, timings, fix))
    return pass_or_fail(
        faults, f"{SMOKE} ran here, {len(wanted) - 1} evaluations and tables, in {seconds:.0f} CPU seconds"
    )
