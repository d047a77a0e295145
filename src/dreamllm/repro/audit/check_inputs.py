"""Checks of a run's inputs: environment, released models, licences, deviations from the paper, test items."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import Version

from dreamllm import digests
from dreamllm.config.reading import ConfigProblem, load, read_yaml
from dreamllm.config.world import WORLD_SETS
from dreamllm.data.images import PICTURE_SUFFIXES
from dreamllm.repro.audit import lineage
from dreamllm.repro.audit.audited_run import AuditedRun
from dreamllm.repro.audit.findings import CheckResult, Fault, not_applicable, pass_or_fail
from dreamllm.sources import own

MANIFEST, MADE, RELEASES, RECIPE = "data/sources.yaml", "data/made.yaml", "paper/released.yaml", "paper/recipe.yaml"
RECIPES = {"paper": "config/paper.yaml", "as released": "config/paper-as-released.yaml"}
VARIANTS = {  # stages that repeat the recipe of another stage, and the keys that they change
    "sft_665k": ("sft", {"mixture", "steps"}),
    "pretrain_creation": ("pretrain", {"init", "trains", "mode", "rows_per_batch", "context"}),
    "sft_creation": ("sft", {"init", "trains", "mode", "context"}),
    "pretrain_comprehension": ("pretrain", {"init", "trains", "mode", "context"}),
    "sft_comprehension": ("sft", {"init", "trains", "mode", "context"}),
    "align_creation_half": ("align_creation", {"num_dream_queries", "context"}),
    "align_creation_double": ("align_creation", {"num_dream_queries", "context"}),
    "pretrain_half": ("pretrain", {"num_dream_queries", "init", "context"}),
    "pretrain_double": ("pretrain", {"num_dream_queries", "init", "steps"}),
    "queries_half": ("sft", {"num_dream_queries", "init", "context"}),
    "queries_double": ("sft", {"num_dream_queries", "init", "steps"}),
}
SETUP = "make setup installs the locked versions into .venv; run the audit there"


# ---- A05: environment ------------------------------------------------------------------------------------------------


def environment(audited: AuditedRun) -> CheckResult:
    """A05: the installed packages are those of requirements.lock, now and when the numbers were made."""
    lock = audited.root / lineage.ENVIRONMENT
    if not lock.is_file():
        return pass_or_fail([Fault("is missing", lineage.ENVIRONMENT, f"git checkout {lineage.ENVIRONMENT}")], "")
    pins = read_lock(lock.read_text(encoding="utf-8")) | _torch(audited.root / "pyproject.toml")
    faults = []
    for name, wanted in pins.items():
        try:
            now = metadata.version(name)
        except metadata.PackageNotFoundError:
            faults.append(Fault(f"{name} {wanted} is not installed", lineage.ENVIRONMENT, SETUP))
            continue
        if Version(now).public != Version(wanted).public:  # torch 2.13.0+cpu is a build of 2.13.0
            faults.append(Fault(f"{name} {now} is installed, not {wanted}", lineage.ENVIRONMENT, SETUP))
    recorded = list(_recorded_versions(audited))
    for file, versions in recorded:
        for name, then in versions.items():
            if name in pins and Version(then).public != Version(pins[name]).public:
                what = f"was made with {name} {then}, the lock says {pins[name]}"
                faults.append(Fault(what, file, f"make it again: {audited.command}"))
    sha256 = audited.run.digest(lineage.ENVIRONMENT)
    words = f"{len(pins)} packages are as in {lineage.ENVIRONMENT} (sha256 {sha256[:12]})"
    return pass_or_fail(faults, words + f", also in {len(recorded)} trainings and predictions" * bool(recorded))


def read_lock(text: str) -> dict[str, str]:
    """Versions by package name in a lock file, without packages for other platforms."""
    pins = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith((" ", "#", "\t")):
            continue
        try:
            requirement = Requirement(line.rstrip("\\").strip())
        except InvalidRequirement:
            continue
        exact = [one.version for one in requirement.specifier if one.operator == "=="]
        if exact and (requirement.marker is None or requirement.marker.evaluate()):
            pins[requirement.name] = exact[0]
    return pins


def _torch(path: Path) -> dict[str, str]:
    """The version of torch, which only pyproject.toml pins: its CPU and CUDA builds have different hashes."""
    found = re.search(r'"torch==([^"]+)"', path.read_text(encoding="utf-8")) if path.is_file() else None
    return {"torch": found[1]} if found else {}


def _recorded_versions(audited: AuditedRun) -> Iterator[tuple[str, dict[str, str]]]:
    for stage in audited.trained:
        file = f"{audited.run.paths.checkpoint(stage)}/checkpoint.json"
        yield file, audited.json(file).get("versions") or {}
    for link in audited.of_kind("predictions"):
        if link.digest and not link.problem:
            yield link.path, link.facts.get("versions") or {}


# ---- A06: released models --------------------------------------------------------------------------------------------


def revisions(audited: AuditedRun) -> CheckResult:
    """A06: every model that was not trained here is pinned by its digest in the store or by a commit on the Hub."""
    foundations = audited.run.experiment.foundations
    instruments = audited.run.experiment.instruments
    faults, words = [], []
    for one in [foundations, *([instruments] if instruments is not foundations else [])]:
        if one.source == "fetch":
            if not (audited.root / one.folder).is_dir():
                words.append(f"{one.folder} is not here, pinned by sha256 {one.sha256[:12]}")
            elif (now := digests.digest(audited.root / one.folder)) == one.sha256:
                words.append(f"{one.folder} has the pinned sha256 {one.sha256[:12]}")
            else:
                what = f"has sha256 {now[:12]}, {audited.run.config} pins {one.sha256[:12]}"
                faults.append(Fault(what, one.folder, "snakemake --cores all --forcerun fetch_foundations foundations"))
        elif one.source == "train":
            words.append(f"{one.folder} is trained here")
        else:
            named = [getattr(one, key, None) for key in ("checkpoint", "llm", "clip", "sd")]
            names = [name for name in named if isinstance(name, str)]
            releases = read_yaml(audited.root / RELEASES)
            for name in names:
                revision = str((releases.get(name) or {}).get("revision") or "")
                if not re.fullmatch(r"[0-9a-f]{40}", revision):
                    what = f"{name} has no revision (the commit of its repository on the Hub)"
                    faults.append(Fault(what, RELEASES, "look the commit up and write it there before fetching"))
            words.append(f"{len(names)} models are pinned at a commit on the Hub")
    return pass_or_fail(faults, "; ".join(words))


# ---- A07: licences ---------------------------------------------------------------------------------------------------


def licences(audited: AuditedRun) -> CheckResult:
    """A07: source, licence and availability of every data set are given, or the reason why one is unknown."""
    from dreamllm.sources import manifest

    faults, unlicensed = [], []
    try:
        sources = manifest.load(audited.root / MANIFEST)
    except ConfigProblem as problem:
        fix = "add it there, or the reason why it is unknown"
        return pass_or_fail([Fault(line.strip(), MANIFEST, fix) for line in _lines(problem)], "")
    for name, source in sources.items():
        if source.licence or source.format == "instructions":
            continue
        if "licence" in source.unknown:
            unlicensed.append(name)
        else:
            what = f"{name} has no licence, and `unknown` gives no reason"
            faults.append(Fault(what, MANIFEST, "add the licence, or the reason in `unknown`"))
    made = read_yaml(audited.root / MADE) if (audited.root / MADE).is_file() else {}
    for name in ("emoji world", "foundations of the emoji world"):
        entry = made.get(name) or {}
        if missing := [key for key in ("licence", "source", "made_by") if not entry.get(key)]:
            faults.append(Fault(f"{name} has no {', no '.join(missing)}", MADE, "add it there"))
    used = audited.run.experiment.sources.keys() & set(unlicensed)
    words = f"{len(sources) - len(unlicensed)} public sets and {len(made)} made here have a licence"
    words += f"; {len(unlicensed)} give the reason why theirs is unknown" if unlicensed else ""
    words += f", of them used here: {', '.join(sorted(used))}" if used else ""
    own = [f"{name} ({use.licence})" for name, use in audited.run.experiment.sources.items() if use.path]
    return pass_or_fail(faults, words + (f"; own sets: {', '.join(own)}" if own else ""))


def _lines(problem: ConfigProblem) -> list[str]:
    lines = str(problem).splitlines()
    return lines[1:] or lines


# ---- A10: deviations -------------------------------------------------------------------------------------------------


def deviations(audited: AuditedRun) -> CheckResult:
    """A10: paper/recipe.yaml has every hyperparameter in paper, released code and configuration, with the reason."""
    if not (audited.root / RECIPE).is_file():
        return pass_or_fail([Fault("is missing", RECIPE, f"git checkout {RECIPE}")], "")
    entries = {
        f"{group}: {name}": entry
        for group, of in read_yaml(audited.root / RECIPE).items()
        for name, entry in of.items()
    }
    faults = []
    for name, entry in entries.items():
        if missing := [key for key in ("paper", "released", "why") if not entry.get(key)]:
            faults.append(Fault(f"{name} has no {', no '.join(missing)}", RECIPE, "add it there"))
    for which, config in RECIPES.items():
        content = load(audited.root / config).model_dump(mode="json")
        for what in recipe_differences(entries, which, content):
            faults.append(Fault(what, config, f"make {config} and {RECIPE} agree"))
    silent = sum(1 for entry in entries.values() if (entry.get("paper") or {}).get("value") is None)
    words = f"{len(entries)} entries of {RECIPE}, {silent} not given in the paper"
    return pass_or_fail(faults, f"{words}; {' and '.join(RECIPES.values())} agree")


def values_at(content: dict[str, Any], key: str) -> dict[str, Any]:
    """Values by full key path; * matches any key; a missing set or stage is None."""
    found = {"": content}
    for step in key.split("."):
        found = {
            f"{path}.{name}".lstrip("."): (value or {}).get(name)
            for path, value in found.items()
            for name in ((value or {}) if step == "*" else [step])
        }
    return found


def recipe_differences(entries: dict[str, Any], which: str, content: dict[str, Any]) -> list[str]:
    """Keys whose values differ from the recipe. which: "paper" or "as released" """

    def wanted(entry: dict[str, Any]) -> Any:
        return entry["ours"]["both"] if "both" in entry["ours"] else entry["ours"][which]

    return [
        f"{path} is {value!r}, the recipe ({name}) says {wanted(entry)!r}"
        for name, entry in entries.items()
        if "key" in entry
        for path, value in values_at(content, entry["key"]).items()
        if value != wanted(entry) and not _is_changed_by_a_variant(path)
    ]


def _is_changed_by_a_variant(path: str) -> bool:
    """Whether a stage of VARIANTS changes this key."""
    _, name, key = [*path.split("."), "", ""][:3]
    return key in VARIANTS.get(name, ("", set()))[1]


# ---- A16: contamination ----------------------------------------------------------------------------------------------


def contamination(audited: AuditedRun) -> CheckResult:
    """A16: no initial scene of a benchmark item is in the training documents; no data set is trained and tested on."""
    experiment = audited.run.experiment
    faults = []
    trained_on = {name for stage in experiment.stages.values() for name in stage.mixture}
    tested_on = {experiment.benchmark(name).source for e in experiment.evaluations for name in e.benchmarks} - {None}
    for name in sorted(trained_on & tested_on):
        what = f"{name} is used for training and for evaluation"
        faults.append(Fault(what, audited.run.config, "remove it from one of them"))
    words = [f"none of {len(tested_on)} public or own evaluation sets is trained on"] if tested_on else []
    for what in _files_of_both(audited, trained_on, {name for name in tested_on if name}):
        faults.append(Fault(what, audited.run.config, "test on files that are not trained on"))
    world = audited.root / experiment.world.folder
    if not trained_on & set(WORLD_SETS):
        words.append("no training on the emoji world")
    elif not (world / "train").is_dir() or not (world / "benchmarks").is_dir():
        if not faults and not tested_on:
            return not_applicable(f"{experiment.world.folder} does not exist: snakemake --cores all data")
        words.append(f"{experiment.world.folder} does not exist")
    else:
        trained = _training_scenes(world / "train")
        tested = list(_tested_scenes(world / "benchmarks", experiment.evaluation.split))
        for place, scene, later in tested:
            if scene in trained and not later:
                folder = f"{experiment.world.folder}/benchmarks"
                what = f"the scene of {place} is also in a training document"
                faults.append(Fault(what, folder, "make the world again: rule make_world"))
        first = sum(1 for _, _, later in tested if not later)
        again = sum(1 for _, scene, later in tested if later and scene in trained)
        words.append(f"none of {first} initial scenes of benchmarks is among {len(trained)} training scenes")
        words.append(
            f"{again} of {len(tested) - first} later scenes of test stories are (emoji/grammar.py gives the reason)"
        )
    return pass_or_fail(faults, "; ".join(words))


def _files_of_both(audited: AuditedRun, trained_on: set[str], tested_on: set[str]) -> Iterator[str]:
    """A line for each pair of people's own sets of which one is trained on, the other is tested on, and both have an
    image of the same bytes."""

    def images(name: str) -> dict[str, str]:
        use = audited.run.experiment.sources.get(name)
        folder = audited.root / str(use.path) if use and use.path else None
        if not folder or not folder.is_dir():
            return {}
        found = own.digests(folder, audited.root / own.KNOWN / f"{name}.json")
        return {sha256: file for file, sha256 in found.items() if Path(file).suffix.lower() in PICTURE_SUFFIXES}

    trained = {name: images(name) for name in sorted(trained_on)}
    for test in sorted(tested_on - trained_on):
        tested = images(test)
        for name, of_training in trained.items():
            if both := sorted(tested.keys() & of_training.keys()):
                first = f"{tested[both[0]]} is {of_training[both[0]]} of {name}"
                yield f"{len(both)} images of {test} are also in the training set {name}: {first}"


def _training_scenes(folder: Path) -> set[str]:
    """Every scene of the training documents, as JSON."""
    scenes: set[str] = set()
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                if member.name.endswith(".json") and (file := archive.extractfile(member)):
                    about = json.loads(file.read())
                    scenes.update(json.dumps(scene, sort_keys=True) for scene in _scenes_in(about))
    return scenes


def _scenes_in(content: Any) -> Iterator[Any]:
    """Scenes at any depth of a document's metadata: the values of `scene` and the elements of `scenes`."""
    if isinstance(content, dict):
        for key, value in content.items():
            if key == "scene":
                yield value
            elif key == "scenes":
                yield from value
            else:
                yield from _scenes_in(value)


def _tested_scenes(folder: Path, split: str) -> Iterator[tuple[str, str, bool]]:
    """File and line, scene, and whether it comes later in a story, for the benchmark items of a split."""
    for kind in ("scenes", "stories"):
        file = folder / f"{kind}_{split}.jsonl"
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines() if file.is_file() else [], 1):
            for place, scene in enumerate(_scenes_in(json.loads(line))):
                yield f"{file.name}, line {number}", json.dumps(scene, sort_keys=True), place > 0
