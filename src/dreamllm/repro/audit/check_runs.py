"""Checks of where numbers come from: code, digests, seeds and configuration of every run behind them."""

from __future__ import annotations

import importlib.util
import io
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from dreamllm import digests, provenance
from dreamllm.paths import FIGURES, TABLES
from dreamllm.repro.audit import lineage
from dreamllm.repro.audit.evidence import Evidence
from dreamllm.repro.audit.findings import Fault, Result, absent, judged
from dreamllm.seeds import seed_of

NOT_IN_A_HEADER = {"split", "limit", "pictures", "latency", "attention"}  # of `evaluation`; predict.py leaves them out
RUN_BY = {"sd_finetuned": "dreamllm.train.finetune_sd"}  # all other stages by train.stage


# ---- A03: code -------------------------------------------------------------------------------------------------------


def code(evidence: Evidence) -> Result:
    """A03: every checkpoint names a commit of this history whose code is the code that made it; the tree is clean."""
    run = evidence.run
    status = run.git("status", "--porcelain")
    if status is None:
        return judged([Fault("is no git checkout: nothing ties these files to a commit", "", "git clone")], "")
    faults = []
    if status:
        changed = [line[3:] for line in status.splitlines()]
        what = f"the tree is dirty: {len(changed)} files differ from the commit"
        faults.append(Fault(what, changed[0], "git commit, or git stash; git status lists them"))
    known: dict[tuple[str, str], str] = {}
    for stage in evidence.trained:
        file = f"{run.paths.checkpoint(stage)}/checkpoint.json"
        faults += _made_by(evidence, stage, evidence.json(file), file, known)
    head = (run.git("rev-parse", "--short", "HEAD") or "no commit").strip()
    return judged(faults, f"clean at {head}; the code of {len(evidence.trained)} checkpoints is that of their commits")


def _made_by(
    evidence: Evidence, stage: str, about: Mapping[str, Any], file: str, known: dict[tuple[str, str], str]
) -> Iterator[Fault]:
    recorded, again = str(about.get("commit") or ""), f"commit the code, then: {evidence.command}"
    if not recorded:
        yield Fault(f"stage {stage} does not say by which commit it was made", file, again)
        return
    if recorded.endswith("-modified"):
        yield Fault(f"stage {stage} was made by code that was not committed ({recorded[:12]}-modified)", file, again)
        return
    if not lineage.commit_link(evidence.run, recorded).digest:
        what = f"stage {stage} was made by commit {recorded[:12]}, which this history does not have"
        yield Fault(what, file, "git fetch --unshallow, or fetch the branch it is on")
        return
    if (said := about.get("code")) is None:
        return  # imported, not trained
    module = RUN_BY.get(stage, "dreamllm.train.trainer")
    if (recorded, module) not in known:
        here = provenance.code_digest(module)  # of the code that runs: spares unpacking the commit where it is the same
        known[recorded, module] = here if here == said else _code_at(evidence, recorded, module)
    if known[recorded, module] != said:
        what = f"stage {stage} was made by code {said}, commit {recorded[:12]} has {known[recorded, module]}"
        yield Fault(what, file, again)


def _code_at(evidence: Evidence, commit: str, module: str) -> str:
    """Digest of a module's code at a commit, by the rule that the commit itself has for that; "" where it has none."""
    command = ["git", "-C", str(evidence.root), "archive", commit, "src/dreamllm"]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        return ""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            archive.extractall(folder, filter="data")
        package = Path(folder) / "src/dreamllm"
        spec = importlib.util.spec_from_file_location("provenance_of_commit", package / "provenance.py")
        if spec is None or spec.loader is None or not (package / "provenance.py").is_file():
            return ""
        of_commit = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(of_commit)
        try:
            return of_commit.code_digest(module, package=package)
        except FileNotFoundError:
            return ""


# ---- A04: digests ----------------------------------------------------------------------------------------------------


def identity(evidence: Evidence) -> Result:
    """A04: every file behind a number is the one that was recorded when the number was made, and in dvc.lock."""
    run = evidence.run
    faults: list[Fault] = []
    for link in evidence.of_kind("checkpoint", "foundations", "data", "features"):
        faults += _exchanged(evidence, link)
    for stage in evidence.trained:
        faults += _whole(evidence, stage)
    recorded, words = list(_recorded(evidence)), ""
    if recorded:
        differing = [fault for fault in recorded if isinstance(fault, Fault)]
        faults += differing
        words = f"; {len(recorded)} outputs are as in {lineage.LOCK}"
    if not evidence.links and not recorded:
        return absent(f"no output of {run.name} is there: {evidence.command}, or `make restore`")
    count = sum(1 for link in evidence.links if link.recorded)
    return judged(faults, f"{count} recorded digests are those of the files that are there{words}")


def _exchanged(evidence: Evidence, link: lineage.Link) -> Iterator[Fault]:
    if link.problem and not link.digest:
        yield Fault(f"{link.kind} {link.name} {link.problem}", link.path, f"make restore, or {evidence.command}")
    elif not link.digest:
        what = f"{link.kind} {link.name} is not there, a result was made from it"
        yield Fault(what, link.path, f"make restore, or {evidence.command}")
    elif not link.agrees:
        what = f"{link.kind} {link.name} was exchanged or changed: results were made from "
        what += f"{link.recorded[:12]}, there is {link.digest[:12]}"
        yield Fault(
            what, link.path, f"bring the recorded one back (dvc checkout), or make it again: {evidence.command}"
        )


def _whole(evidence: Evidence, stage: str) -> Iterator[Fault]:
    """Whether a checkpoint's tensors are those that its checkpoint.json was written with."""
    folder = evidence.run.paths.checkpoint(stage)
    said = evidence.json(f"{folder}/checkpoint.json").get("tensors")
    name = "unet" if stage == "sd_finetuned" else "trained.safetensors"
    now = evidence.run.digest(f"{folder}/{name}")
    fix = f"bring the recorded one back (dvc checkout), or train it again: {evidence.command}"
    if not said:
        yield Fault(f"stage {stage} does not say what its tensors were", f"{folder}/checkpoint.json", fix)
    elif said != now:
        what = f"tensors of stage {stage} were exchanged or cut off: "
        what += f"written were {said[:12]}, there is {now[:12] or 'nothing'}"
        yield Fault(what, f"{folder}/{name}", fix)


def _recorded(evidence: Evidence) -> Iterator[Fault | str]:
    """For every output in dvc.lock of this experiment that is there: its path, or what is wrong with it."""
    for path, (stage, md5) in lineage.recorded_outputs(evidence.run).items():
        ours = f"/{evidence.run.name}" in f"{path}/" or path in _shared(evidence)
        if not ours or not (evidence.root / path).exists():
            continue
        if (now := digests.md5(evidence.root / path)) == md5:
            yield path
        else:
            what = f"differs from {lineage.LOCK} (stage {stage}): recorded is md5 {md5[:12]}, there is {now[:12]}"
            yield Fault(what, path, f"dvc checkout {stage} brings the recorded one back; make record records this one")


def _shared(evidence: Evidence) -> set[str]:
    """Paths in dvc.lock that do not carry the experiment's name, and are this experiment's all the same."""
    experiment = evidence.run.experiment
    world = {f"{experiment.world.folder}/{part}" for part in ("train", "benchmarks")}
    tables = {TABLES, FIGURES} if evidence.tables_are_of_this else set()
    return {experiment.foundations.folder, *world, *tables}


# ---- A08: seeds ------------------------------------------------------------------------------------------------------


def seeds(evidence: Evidence) -> Result:
    """A08: every training and every answer has its seed written down, and it is the configuration's."""
    run, experiment = evidence.run, evidence.run.experiment
    if not evidence.trained and not evidence.metrics:
        return absent(f"no run of {run.name} is there: {evidence.command}, or `make restore`")
    faults = []
    for stage in evidence.trained:
        file = f"{run.paths.checkpoint(stage)}/checkpoint.json"
        about = evidence.json(file)
        wanted = {"seed": (about.get("seed"), experiment.seed)}
        if "model" in about:
            wanted["model.seed"] = (about["model"].get("seed"), seed_of(experiment.seed, "model"))
        for name, (now, right) in wanted.items():
            if now != right:
                what = f"stage {stage}: {name} was not recorded" if now is None else f"stage {stage}: {name} is {now}"
                faults.append(Fault(f"{what}, the configuration makes it {right}", file, evidence.command))
    records = 0
    for link in evidence.of_kind("predictions"):
        if not link.digest or link.problem:
            continue  # A12 says so
        found, count = _of_answers(evidence, link)
        faults += found
        records += count
    runs = {line.columns["seeds"] for line in lineage.read_cells(run)} if evidence.tables_are_of_this else set()
    words = f"{len(evidence.trained)} trainings and {records} answers have their seeds"
    return judged(faults, f"{words}; runs behind a cell: {', '.join(sorted(runs)) or 'no tables'}")


def _of_answers(evidence: Evidence, link: lineage.Link) -> tuple[list[Fault], int]:
    from dreamllm.evaluate.predictions import read

    wanted, fix = evidence.run.experiment.evaluation.seed, f"predict again: {evidence.command}"
    now = (link.facts.get("settings") or {}).get("seed")
    faults = []
    if now != wanted:
        what = "the seed was not recorded" if now is None else f"was made with seed {now}"
        faults.append(Fault(f"{what}, the configuration says {wanted}", link.path, fix))
    try:
        records = read(evidence.root / link.path).records
    except ValueError as error:
        return [*faults, Fault(str(error), link.path, fix)], 0
    of_our_own = "task" not in (link.facts.get("settings") or {})
    missing = [id_ for id_, record in records.items() if not isinstance(record.get("seed"), int)] if of_our_own else []
    if missing:
        what = f"{len(missing)} of {len(records)} answers have no seed, first item {missing[0]}"
        faults.append(Fault(what, link.path, fix))
    return faults, len(records)


# ---- A09: configuration ----------------------------------------------------------------------------------------------


def configuration(evidence: Evidence) -> Result:
    """A09: the configuration saved with every checkpoint and prediction is the experiment's, and fits the tensors."""
    run, experiment = evidence.run, evidence.run.experiment
    if not evidence.trained and not evidence.metrics:
        return absent(f"no run of {run.name} is there: {evidence.command}, or `make restore`")
    faults: list[Fault] = []
    for stage in evidence.trained:
        file = f"{run.paths.checkpoint(stage)}/checkpoint.json"
        about = evidence.json(file)
        if stage == "sd_finetuned" and experiment.sd_finetuned:
            right = experiment.sd_finetuned.model_dump(mode="json")
        else:
            right = experiment.stages[stage].model_dump(mode="json")
            faults += _fits(evidence, stage, about)
            model = {**experiment.model.model_dump(mode="json"), "seed": seed_of(experiment.seed, "model")}
            if queries := experiment.stages[stage].num_dream_queries:
                model["num_dream_queries"] = queries
            faults += _other(about.get("model") or {}, model, f"stage {stage}: model.", file, evidence)
        faults += _other(about.get("config") or {}, right, f"stage {stage}: config.", file, evidence)
    settings = experiment.evaluation.model_dump(mode="json", exclude=NOT_IN_A_HEADER)
    answers = list(evidence.of_kind("predictions"))
    for link in answers:
        if link.digest and not link.problem:
            faults += _other(link.facts.get("settings") or {}, settings, "settings.", link.path, evidence)
            made = [one.name for one in link.made_from if one.kind == "checkpoint"]
            if made != (wanted := run.experiment.stages_of(str(link.facts["model"]))):
                what = f"was made with checkpoints {', '.join(made) or 'none'}, not {', '.join(wanted) or 'none'}"
                faults.append(Fault(what, link.path, f"predict again: {evidence.command}"))
    words = f"{len(evidence.trained)} checkpoints and {len(answers)} predictions"
    words += f" have the configuration of {run.config}"
    return judged(faults, words)


def _other(
    now: Mapping[str, Any], right: Mapping[str, Any], where: str, file: str, evidence: Evidence
) -> Iterator[Fault]:
    """Keys whose values differ from the experiment file's, nested ones by their paths."""
    for key in [*right, *(key for key in now if key not in right)]:
        a, b = now.get(key), right.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _other(a, b, f"{where}{key}.", file, evidence)
        elif a != b:
            what = f"{where}{key} is {a!r} there, {b!r} in {evidence.run.config}"
            yield Fault(what, file, f"put the configuration back, or make it again: {evidence.command}")


def _fits(evidence: Evidence, stage: str, about: Mapping[str, Any]) -> Iterator[Fault]:
    """Whether the tensors are those of the parts that the saved configuration trains, in its sizes."""
    file = f"{evidence.run.paths.checkpoint(stage)}/trained.safetensors"
    fix = f"bring the recorded one back (dvc checkout), or train it again: {evidence.command}"
    try:
        with safe_open(evidence.root / file, "numpy") as tensors:
            shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    except FileNotFoundError:
        yield Fault("is not there", file, fix)
        return
    except SafetensorError as error:
        yield Fault(f"is no whole safetensors file ({error})", file, fix)
        return
    parts = {name.partition(".")[0] for name in shapes}
    trains = set((about.get("config") or {}).get("trains", []))
    if parts != trains:
        what = f"has tensors of {', '.join(sorted(parts))}, checkpoint.json says it trains {', '.join(sorted(trains))}"
        yield Fault(what, file, fix)
    queries = (about.get("model") or {}).get("num_dream_queries")
    if "dream_queries" in shapes and queries not in shapes["dream_queries"]:
        yield Fault(f"has dream queries {shapes['dream_queries']}, checkpoint.json says {queries}", file, fix)
