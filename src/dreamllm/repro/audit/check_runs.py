"""Checks of a run's provenance: code, digests, seeds and configuration."""

from __future__ import annotations

import io
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from dreamllm import provenance
from dreamllm.config.evaluation import WITHOUT_EFFECT
from dreamllm.config.experiment import Model
from dreamllm.evaluate.predict import NOT_IN_PROTOCOL
from dreamllm.repro.audit import lineage, origins
from dreamllm.repro.audit.audited_run import AuditedRun
from dreamllm.repro.audit.findings import CheckResult, Fault, not_applicable, pass_or_fail
from dreamllm.safe_join import NameProblem
from dreamllm.seeds import seed_of
from dreamllm.train.tensor_files import TensorFiles

TRAINED_BY = {"sd_finetuned": "dreamllm.train.finetune_sd"}  # all other stages by dreamllm.train.trainer


# ---- A03: code -------------------------------------------------------------------------------------------------------


def code(audited: AuditedRun) -> CheckResult:
    """A03: every checkpoint names a commit of this history with the code that trained it; the working tree is clean."""
    run = audited.run
    if reason := provenance.commit(run.root / "src/dreamllm").get("no_commit"):
        fix = 'git config --global --add safe.directory "$PWD"' if "safe.directory" in reason else "git clone"
        return pass_or_fail([Fault(f"these files belong to no commit: {reason}", "", fix)], "")
    status = run.git("status", "--porcelain") or ""
    faults = []
    if status:
        changed = [line[3:] for line in status.splitlines()]
        what = f"the tree is dirty: {len(changed)} files differ from the commit"
        faults.append(Fault(what, changed[0], "git commit, or git stash; git status lists them"))
    known: dict[tuple[str, str], str] = {}
    for stage in audited.trained:
        file = f"{run.paths.checkpoint(stage)}/checkpoint.json"
        faults += _check_commit(audited, stage, audited.json(file), file, known)
    head = (run.git("rev-parse", "--short", "HEAD") or "no commit").strip()
    return pass_or_fail(
        faults, f"clean at {head}; the code of {len(audited.trained)} checkpoints is that of their commits"
    )


def _check_commit(
    audited: AuditedRun, stage: str, about: Mapping[str, Any], file: str, known: dict[tuple[str, str], str]
) -> Iterator[Fault]:
    recorded, again = str(about.get("commit") or ""), f"commit the code, then: {audited.command}"
    if not recorded:
        why = f": {about['no_commit']}" if about.get("no_commit") else ""
        yield Fault(f"stage {stage} does not record the commit that trained it{why}", file, again)
        return
    if recorded.endswith("-modified"):
        yield Fault(f"stage {stage} was trained by code that was not committed ({recorded[:12]}-modified)", file, again)
        return
    if not lineage.commit_link(audited.run, recorded).digest:
        what = f"stage {stage} was trained at commit {recorded[:12]}, which is not in this history"
        yield Fault(what, file, "git fetch --unshallow, or fetch the branch it is on")
        return
    if audited.run.git("merge-base", "--is-ancestor", recorded, "HEAD") is None:
        what = f"stage {stage} was trained at commit {recorded[:12]}, which is no ancestor of the one checked out"
        yield Fault(what, file, "check out a commit that comes after it, or train again")
        return
    if (digest := about.get("code")) is None:
        return  # imported, not trained
    module = TRAINED_BY.get(stage, "dreamllm.train.trainer")
    if (recorded, module) not in known:
        known[recorded, module] = _code_at(audited, recorded, module)
    if known[recorded, module] != digest:
        there = known[recorded, module] or "none that can be read"
        what = f"stage {stage} was trained by code {digest}, commit {recorded[:12]} has {there}"
        yield Fault(what, file, f"{again}; or audit at {recorded[:12]}, if the rule of the digest has changed since")


def _code_at(audited: AuditedRun, commit: str, module: str) -> str:
    """Digest of a module's code at a commit, by the rule of the code that runs: nothing of the commit is executed.

    Returns "" where it has no such module, or one that cannot be parsed.
    """
    command = ["git", "-C", str(audited.root), "archive", commit, "--", "src/dreamllm"]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        return ""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            archive.extractall(folder, filter="data")
        try:
            return provenance.code_digest(module, package=Path(folder) / "src/dreamllm")
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
            return ""  # no such module, or what stands in its file cannot be parsed


# ---- A04: digests ----------------------------------------------------------------------------------------------------


def file_digests(audited: AuditedRun) -> CheckResult:
    """A04: every file has the digest that was recorded when it was made, or when a number was made from it."""
    run = audited.run
    faults: list[Fault] = []
    for link in audited.of_kind("checkpoint", "foundations", "data", "features"):
        faults += _compare_digest(audited, link)
    for stage in audited.trained:
        faults += _compare_tensors(audited, stage)
    found, words = origins.check(audited)
    if not audited.links and not found and not words:
        return not_applicable(f"there are no outputs of {run.name}: {audited.command}, or `make restore`")
    count = sum(1 for link in audited.links if link.recorded)
    return pass_or_fail([*faults, *found], f"{count} files have their recorded digests{words}")


def _compare_digest(audited: AuditedRun, link: lineage.Link) -> Iterator[Fault]:
    if link.problem:
        yield Fault(f"{link.kind} {link.name} {link.problem}", link.path, f"make restore, or {audited.command}")
    elif not link.digest:
        what = f"{link.kind} {link.name} is missing, and a result was made from it"
        yield Fault(what, link.path, f"make restore, or {audited.command}")
    elif not link.agrees:
        what = f"{link.kind} {link.name} was changed or replaced: results were made from "
        what += f"{link.recorded[:12]}, the file is {link.digest[:12]}"
        yield Fault(what, link.path, f"restore the recorded file (dvc checkout), or make it again: {audited.command}")


def _compare_tensors(audited: AuditedRun, stage: str) -> Iterator[Fault]:
    """Compare a checkpoint's tensors with the digest in its checkpoint.json."""
    folder = audited.run.paths.checkpoint(stage)
    digest = audited.json(f"{folder}/checkpoint.json").get("tensors")
    name = "unet" if stage == "sd_finetuned" else "trained.safetensors"
    now = audited.run.digest(f"{folder}/{name}")
    fix = f"restore the recorded file (dvc checkout), or train again: {audited.command}"
    if not digest:
        yield Fault(f"stage {stage} does not record the digest of its tensors", f"{folder}/checkpoint.json", fix)
    elif digest != now:
        what = f"tensors of stage {stage} were replaced or truncated: "
        what += f"recorded is {digest[:12]}, the file is {now[:12] or 'missing'}"
        yield Fault(what, f"{folder}/{name}", fix)


# ---- A08: seeds ------------------------------------------------------------------------------------------------------


def seeds(audited: AuditedRun) -> CheckResult:
    """A08: every training and every prediction recorded its seed, and it is the configuration's."""
    run, experiment = audited.run, audited.run.experiment
    if not audited.trained and not audited.metrics:
        return not_applicable(f"there is no run of {run.name}: {audited.command}, or `make restore`")
    faults = []
    for stage in audited.trained:
        file = f"{run.paths.checkpoint(stage)}/checkpoint.json"
        about = audited.json(file)
        wanted = {"seed": (about.get("seed"), experiment.seed)}
        if "model" in about:
            wanted["model.seed"] = (about["model"].get("seed"), seed_of(experiment.seed, "model"))
        for name, (now, right) in wanted.items():
            if now != right:
                what = f"stage {stage}: {name} was not recorded" if now is None else f"stage {stage}: {name} is {now}"
                faults.append(Fault(f"{what}, the configuration makes it {right}", file, audited.command))
    records = 0
    for link in audited.of_kind("predictions"):
        if not link.digest or link.problem:
            continue  # A12 says so
        found, count = _prediction_seeds(audited, link)
        faults += found
        records += count
    runs = (
        {line.columns["seeds"] for line in lineage.read_measured_cells(run)} if audited.tables_show_this_run else set()
    )
    words = f"{len(audited.trained)} trainings and {records} predictions recorded their seeds"
    return pass_or_fail(faults, f"{words}; runs per cell: {', '.join(sorted(runs)) or 'no tables'}")


def _prediction_seeds(audited: AuditedRun, link: lineage.Link) -> tuple[list[Fault], int]:
    from dreamllm.evaluate.predictions import read

    wanted, fix = audited.run.experiment.evaluation.seed, f"predict again: {audited.command}"
    now = (link.facts.get("settings") or {}).get("seed")
    faults = []
    if now != wanted:
        what = "the seed was not recorded" if now is None else f"was made with seed {now}"
        faults.append(Fault(f"{what}, the configuration says {wanted}", link.path, fix))
    try:
        records = read(audited.root / link.path).records
    except ValueError as error:
        return [*faults, Fault(str(error), link.path, fix)], 0
    has_seeds = "task" not in (link.facts.get("settings") or {})
    missing = [id_ for id_, record in records.items() if not isinstance(record.get("seed"), int)] if has_seeds else []
    if missing:
        what = f"{len(missing)} of {len(records)} predictions have no seed, first item {missing[0]}"
        faults.append(Fault(what, link.path, fix))
    return faults, len(records)


# ---- A09: configuration ----------------------------------------------------------------------------------------------


def configuration(audited: AuditedRun) -> CheckResult:
    """A09: the configuration saved with checkpoints and predictions is the experiment's and matches the tensors."""
    run, experiment = audited.run, audited.run.experiment
    if not audited.trained and not audited.metrics:
        return not_applicable(f"there is no run of {run.name}: {audited.command}, or `make restore`")
    faults: list[Fault] = []
    precisions: dict[str, Any] = {}
    for stage in audited.trained:
        file = f"{run.paths.checkpoint(stage)}/checkpoint.json"
        if not (about := audited.json(file)):
            fix = f"restore the recorded file (dvc checkout), or train again: {audited.command}"
            faults.append(Fault(f"stage {stage}: is missing or cannot be read", file, fix))
            continue
        if stage == "sd_finetuned" and experiment.sd_finetuned:
            right = experiment.sd_finetuned.model_dump(mode="json")
        else:
            right = experiment.stages[stage].model_dump(mode="json")
            faults += _check_shapes(audited, stage, about)
            options = experiment.model_of(stage).model_dump(mode="json")
            model = {**options, "seed": seed_of(experiment.seed, "model")}
            recorded = Model().model_dump(mode="json") | (about.get("model") or {})  # older ones lack newer keys
            faults += _differing_keys(recorded, model, f"stage {stage}: model.", file, audited)
        faults += _differing_keys(about.get("config") or {}, right, f"stage {stage}: config.", file, audited)
        precisions[file] = about.get("precision")
    settings = experiment.evaluation.model_dump(mode="json", exclude=NOT_IN_PROTOCOL | WITHOUT_EFFECT)
    answers = list(audited.of_kind("predictions"))
    for link in answers:
        if link.digest and not link.problem:
            faults += _differing_keys(link.facts.get("settings") or {}, settings, "settings.", link.path, audited)
            precisions[link.path] = link.facts.get("precision")
            selection = {"split": experiment.evaluation.split, "limit": audited.limit(str(link.facts["benchmark"]))}
            now = {key: link.facts.get(key) for key in selection}
            faults += _differing_keys(now, selection, "", link.path, audited)
            made = [one.name for one in link.made_from if one.kind == "checkpoint"]
            if made != (wanted := run.experiment.stages_of(str(link.facts["model"]))):
                what = f"was made with checkpoints {', '.join(made) or 'none'}, not {', '.join(wanted) or 'none'}"
                faults.append(Fault(what, link.path, f"predict again: {audited.command}"))
    faults += _check_precision(precisions, audited)
    words = f"{len(audited.trained)} checkpoints and {len(answers)} predictions"
    words += f" have the configuration of {run.config}"
    return pass_or_fail(faults, words)


def _differing_keys(
    now: Mapping[str, Any], right: Mapping[str, Any], where: str, file: str, audited: AuditedRun
) -> Iterator[Fault]:
    """Keys whose values differ from the experiment file's, nested keys by path."""
    for key in [*right, *(key for key in now if key not in right)]:
        a, b = now.get(key), right.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _differing_keys(a, b, f"{where}{key}.", file, audited)
        elif a != b:
            what = f"{where}{key} is {a!r}, but {b!r} in {audited.run.config}"
            yield Fault(what, file, f"restore the configuration, or make it again: {audited.command}")


def _check_precision(recorded: Mapping[str, Any], audited: AuditedRun) -> Iterator[Fault]:
    """Check that checkpoints and predictions have the configured precision; with `auto`, that all have the same.

    recorded: precision by file
    """
    right, where = audited.run.experiment.precision, audited.run.config
    if right == "auto" and recorded:
        where, right = next(iter(recorded.items()))
    for file, precision in recorded.items():
        if precision not in ("fp32", "bf16") or precision != right:
            what = f"precision is {precision!r}, but {right!r} in {where}"
            yield Fault(what, file, f"set `precision` in {audited.run.config} and make it again: {audited.command}")


def _check_shapes(audited: AuditedRun, stage: str, about: Mapping[str, Any]) -> Iterator[Fault]:
    """Check that the tensors are those of the trained parts, with the configured number of dream queries."""
    file = f"{audited.run.paths.checkpoint(stage)}/trained.safetensors"
    fix = f"restore the recorded file (dvc checkout), or train again: {audited.command}"
    try:
        with TensorFiles(audited.root / file, "numpy") as tensors:
            shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    except FileNotFoundError:
        yield Fault("is missing", file, fix)
        return
    except (SafetensorError, NameProblem) as error:
        yield Fault(f"is not a complete safetensors file ({error})", file, fix)
        return
    parts = {name.partition(".")[0] for name in shapes}
    trains = set((about.get("config") or {}).get("trains", []))
    if parts != trains:
        what = f"has tensors of {', '.join(sorted(parts))}, checkpoint.json says it trains {', '.join(sorted(trains))}"
        yield Fault(what, file, fix)
    queries = (about.get("model") or {}).get("num_dream_queries")
    if "dream_queries" in shapes and queries not in shapes["dream_queries"]:
        yield Fault(f"has dream queries {shapes['dream_queries']}, checkpoint.json says {queries}", file, fix)
