"""Checks of what is around the runs: environment, released models, licences, deviations from the paper, test items."""

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
from dreamllm.repro.audit import lineage
from dreamllm.repro.audit.evidence import Evidence
from dreamllm.repro.audit.findings import Fault, Result, absent, judged

MANIFEST, MADE, RELEASES, RECIPE = "data/sources.yaml", "data/made.yaml", "paper/released.yaml", "paper/recipe.yaml"
RECIPES = {"paper": "config/paper.yaml", "as released": "config/paper-as-released.yaml"}
ARMS = {  # stages that repeat the recipe of another one, and what of it they change
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
SETUP = "make setup makes .venv as the lock says; run the audit in it"


# ---- A05: environment ------------------------------------------------------------------------------------------------


def environment(evidence: Evidence) -> Result:
    """A05: what is installed is what requirements.lock pins, and so it was when the numbers were made."""
    lock = evidence.root / lineage.ENVIRONMENT
    if not lock.is_file():
        return judged([Fault("is not there", lineage.ENVIRONMENT, f"git checkout {lineage.ENVIRONMENT}")], "")
    pins = read_lock(lock.read_text(encoding="utf-8")) | _torch(evidence.root / "pyproject.toml")
    faults = []
    for name, wanted in pins.items():
        try:
            now = metadata.version(name)
        except metadata.PackageNotFoundError:
            faults.append(Fault(f"{name} {wanted} is not installed", lineage.ENVIRONMENT, SETUP))
            continue
        if Version(now).public != Version(wanted).public:  # torch 2.13.0+cpu is a build of 2.13.0
            faults.append(Fault(f"{name} {now} is installed, not {wanted}", lineage.ENVIRONMENT, SETUP))
    made_with = list(_made_with(evidence))
    for file, versions in made_with:
        for name, then in versions.items():
            if name in pins and Version(then).public != Version(pins[name]).public:
                what = f"was made with {name} {then}, the lock says {pins[name]}"
                faults.append(Fault(what, file, f"make it again: {evidence.command}"))
    sha256 = evidence.run.digest(lineage.ENVIRONMENT)
    words = f"{len(pins)} packages are as in {lineage.ENVIRONMENT} (sha256 {sha256[:12]})"
    return judged(faults, words + f", and so they were in {len(made_with)} runs" * bool(made_with))


def read_lock(text: str) -> dict[str, str]:
    """Versions by package name in a lock file, those for other machines left out."""
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
    """torch is in pyproject.toml alone: its builds for CPU and CUDA have different hashes."""
    found = re.search(r'"torch==([^"]+)"', path.read_text(encoding="utf-8")) if path.is_file() else None
    return {"torch": found[1]} if found else {}


def _made_with(evidence: Evidence) -> Iterator[tuple[str, dict[str, str]]]:
    for stage in evidence.trained:
        file = f"{evidence.run.paths.checkpoint(stage)}/checkpoint.json"
        yield file, evidence.json(file).get("versions") or {}
    for link in evidence.of_kind("predictions"):
        if link.digest and not link.problem:
            yield link.path, link.facts.get("versions") or {}


# ---- A06: released models --------------------------------------------------------------------------------------------


def revisions(evidence: Evidence) -> Result:
    """A06: every model that was not trained here is pinned: by content in the store, or by a commit of the hub."""
    foundations = evidence.run.experiment.foundations
    instruments = getattr(foundations, "instruments", None)
    faults, words = [], []
    for one in [foundations, *([instruments] if instruments else [])]:
        if one.source == "fetch":
            if not (evidence.root / one.folder).is_dir():
                words.append(f"{one.folder} is not there, pinned by sha256 {one.sha256[:12]}")
            elif (now := digests.digest(evidence.root / one.folder)) == one.sha256:
                words.append(f"{one.folder} is what sha256 {one.sha256[:12]} names")
            else:
                what = f"has sha256 {now[:12]}, {evidence.run.config} pins {one.sha256[:12]}"
                faults.append(Fault(what, one.folder, "snakemake --cores all --forcerun fetch_foundations foundations"))
        elif one.source == "train":
            words.append(f"{one.folder} is trained here")
        else:
            named = [getattr(one, key, None) for key in ("checkpoint", "llm", "clip", "sd")]
            names = [name for name in named if isinstance(name, str)]
            releases = read_yaml(evidence.root / RELEASES)
            for name in names:
                revision = str((releases.get(name) or {}).get("revision") or "")
                if not re.fullmatch(r"[0-9a-f]{40}", revision):
                    what = f"{name} has no revision (the commit of its repository on the hub)"
                    faults.append(Fault(what, RELEASES, "look the commit up and write it there before fetching"))
            words.append(f"{len(names)} models are pinned at a commit of the hub")
    return judged(faults, "; ".join(words))


# ---- A07: licences ---------------------------------------------------------------------------------------------------


def licences(evidence: Evidence) -> Result:
    """A07: every data set has its source, licence and availability, or says why one of them is not known."""
    from dreamllm.sources import manifest

    faults, unlicensed = [], []
    try:
        sources = manifest.load(evidence.root / MANIFEST)
    except ConfigProblem as problem:
        fix = "write it there, or why it is unknown"
        return judged([Fault(line.strip(), MANIFEST, fix) for line in _lines(problem)], "")
    for name, source in sources.items():
        if source.licence or source.format == "instructions":
            continue
        if "licence" in source.unknown:
            unlicensed.append(name)
        else:
            what = f"{name} has no licence, and `unknown` does not say why"
            faults.append(Fault(what, MANIFEST, "write the licence there, or in `unknown` why it is not known"))
    made = read_yaml(evidence.root / MADE) if (evidence.root / MADE).is_file() else {}
    foundations = evidence.run.experiment.foundations
    own = getattr(foundations, "instruments", foundations)
    wanted = ["emoji world", *(["foundations of the emoji world"] if own.source in ("fetch", "train") else [])]
    for name in wanted:
        entry = made.get(name) or {}
        if missing := [key for key in ("licence", "source", "made_by") if not entry.get(key)]:
            faults.append(Fault(f"{name} has no {', no '.join(missing)}", MADE, "write it there"))
    used = evidence.run.experiment.sources.keys() & set(unlicensed)
    words = f"{len(sources) - len(unlicensed)} public sets and {len(made)} of our own have a licence"
    words += f"; {len(unlicensed)} say why theirs is not known" if unlicensed else ""
    return judged(faults, words + (f", of them used here: {', '.join(sorted(used))}" if used else ""))


def _lines(problem: ConfigProblem) -> list[str]:
    lines = str(problem).splitlines()
    return lines[1:] or lines


# ---- A10: deviations -------------------------------------------------------------------------------------------------


def deviations(evidence: Evidence) -> Result:
    """A10: every hyper-parameter has the paper's value, the released code's, ours and why; the configurations agree."""
    if not (evidence.root / RECIPE).is_file():
        return judged([Fault("is not there", RECIPE, f"git checkout {RECIPE}")], "")
    entries = {
        f"{group}: {name}": entry
        for group, of in read_yaml(evidence.root / RECIPE).items()
        for name, entry in of.items()
    }
    faults = []
    for name, entry in entries.items():
        if missing := [key for key in ("paper", "released", "why") if not entry.get(key)]:
            faults.append(Fault(f"{name} has no {', no '.join(missing)}", RECIPE, "write it there"))
    for which, config in RECIPES.items():
        content = load(evidence.root / config).model_dump(mode="json")
        for what in drift(entries, which, content):
            faults.append(Fault(what, config, f"make {config} and {RECIPE} agree"))
    unlike = sum(1 for entry in entries.values() if (entry.get("paper") or {}).get("value") is None)
    words = f"{len(entries)} entries of {RECIPE}, {unlike} on which the paper is silent"
    return judged(faults, f"{words}; {' and '.join(RECIPES.values())} agree")


def find(content: dict[str, Any], key: str) -> dict[str, Any]:
    """Values by full key path; * stands for any key; a set or a stage that is not there is null."""
    found = {"": content}
    for step in key.split("."):
        found = {
            f"{path}.{name}".lstrip("."): (value or {}).get(name)
            for path, value in found.items()
            for name in ((value or {}) if step == "*" else [step])
        }
    return found


def drift(entries: dict[str, Any], which: str, content: dict[str, Any]) -> list[str]:
    """What a configuration has otherwise than the recipe says. which: "paper" or "as released"."""

    def wanted(entry: dict[str, Any]) -> Any:
        return entry["ours"]["both"] if "both" in entry["ours"] else entry["ours"][which]

    return [
        f"{path} is {value!r}, the recipe ({name}) says {wanted(entry)!r}"
        for name, entry in entries.items()
        if "key" in entry
        for path, value in find(content, entry["key"]).items()
        if value != wanted(entry) and not _is_an_arms(path)
    ]


def _is_an_arms(path: str) -> bool:
    """Whether a key is one that a stage of ARMS changes."""
    _, name, key = [*path.split("."), "", ""][:3]
    return key in ARMS.get(name, ("", set()))[1]


# ---- A16: contamination ----------------------------------------------------------------------------------------------


def contamination(evidence: Evidence) -> Result:
    """A16: no scene that a benchmark of the emoji world begins with is in its training documents; no set is in both."""
    experiment = evidence.run.experiment
    faults = []
    trained_on = {name for stage in experiment.stages.values() for name in stage.mixture}
    asked = {experiment.benchmark(name).source for e in experiment.evaluations for name in e.benchmarks} - {None}
    for name in sorted(trained_on & asked):
        what = f"{name} is trained on and evaluated on"
        faults.append(Fault(what, evidence.run.config, "take it out of one of them"))
    words = [f"of {len(asked)} public sets that are evaluated on none is trained on"] if asked else []
    world = evidence.root / experiment.world.folder
    if not trained_on & set(WORLD_SETS):
        words.append("no training on the emoji world")
    elif not (world / "train").is_dir() or not (world / "benchmarks").is_dir():
        if not faults and not asked:
            return absent(f"{experiment.world.folder} is not there: snakemake --cores all data")
        words.append(f"{experiment.world.folder} is not there")
    else:
        trained = _training_scenes(world / "train")
        tested = list(_tested_scenes(world / "benchmarks", experiment.evaluation.split))
        for place, scene, later in tested:
            if scene in trained and not later:
                folder = f"{experiment.world.folder}/benchmarks"
                what = f"the scene of {place} is in a training document too"
                faults.append(Fault(what, folder, "make the world again: rule make_world"))
        first = sum(1 for _, _, later in tested if not later)
        again = sum(1 for _, scene, later in tested if later and scene in trained)
        words.append(f"none of {first} scenes that benchmarks begin with is among {len(trained)} of training")
        words.append(
            f"{again} of {len(tested) - first} scenes that test stories come to are (emoji/grammar.py says why)"
        )
    return judged(faults, "; ".join(words))


def _training_scenes(folder: Path) -> set[str]:
    """Every scene that a training document holds, as its JSON."""
    scenes: set[str] = set()
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                if member.name.endswith(".json") and (file := archive.extractfile(member)):
                    about = json.loads(file.read())
                    scenes.update(json.dumps(scene, sort_keys=True) for scene in _scenes_in(about))
    return scenes


def _scenes_in(content: Any) -> Iterator[Any]:
    """Scenes at any depth of a document's metadata: the values of `scene`, and those of `scenes` one by one."""
    if isinstance(content, dict):
        for key, value in content.items():
            if key == "scene":
                yield value
            elif key == "scenes":
                yield from value
            else:
                yield from _scenes_in(value)


def _tested_scenes(folder: Path, split: str) -> Iterator[tuple[str, str, bool]]:
    """File and line, scene, and whether a story comes to it later, of what benchmarks of a split show or tell."""
    for kind in ("scenes", "stories"):
        file = folder / f"{kind}_{split}.jsonl"
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines() if file.is_file() else [], 1):
            for place, scene in enumerate(_scenes_in(json.loads(line))):
                yield f"{file.name}, line {number}", json.dumps(scene, sort_keys=True), place > 0
