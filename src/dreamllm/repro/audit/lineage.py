"""Trace a table's cell to the files it was computed from: cell, metric, predictions, checkpoint, data, commit.

    run = Run.at(Path("."), Path("config/embedded.yaml"))
    for cell in read_measured_cells(run):    every measured number in results/tables
        link = cell_link(run, cell)          a tree of links
        for one in walk(link): ...           each link of the tree once

Each link has the digest that its file has now, and the digest that the link above recorded when it was made. If they
differ, the file was changed or replaced. The checks are in `check_*.py`. Loads neither torch nor transformers.
"""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from safetensors import SafetensorError, safe_open

from dreamllm.config.experiment import Experiment
from dreamllm.config.reading import load
from dreamllm.digests import digest
from dreamllm.paths import TABLES, Paths
from dreamllm.repro.audit.untrusted import as_object, is_inside, read_checkpoint_json, read_json_or_none
from dreamllm.safe_join import NameProblem
from dreamllm.timings import TimingProblem, Usage, read_usage

Kind = Literal[
    "cell", "metric", "items", "judgements", "features", "predictions", "checkpoint", "configuration", "foundations",
    "data", "commit", "environment",
]  # fmt: skip
SUFFIXES = ("jsonl", "tar", "safetensors")  # of prediction files
OUTSIDE = "has a name that leads out of its folder"
LOCK, ENVIRONMENT = "dvc.lock", "requirements.lock"


@dataclass(frozen=True)
class Link:
    """One file or commit in the lineage of a cell.

    path: relative to the repository, "" if it is not a file.  name: CELL, MODEL/BENCHMARK, STAGE, ...
    digest: its present sha256 (for a commit its own hash), "" if it does not exist
    recorded: the digest that the link above recorded, "" if it recorded none
    facts: metadata from the file.  problem: why the file cannot be read
    """

    kind: Kind
    path: str
    name: str
    digest: str
    recorded: str = ""
    made_from: tuple[Link, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""

    @property
    def agrees(self) -> bool:
        """Whether it exists, can be read, and has the digest that the link above recorded."""
        return bool(self.digest) and not self.problem and self.recorded in ("", self.digest)


@dataclass(frozen=True)
class MeasuredCell:
    """A measured cell, a line of results/tables/TABLE.csv. place: file and line.  source: MODEL/BENCHMARK"""

    id: str
    place: str
    source: str
    columns: Mapping[str, str]


@dataclass(frozen=True)
class Run:
    """A run of an experiment in a checkout of the repository. Digests are computed once.

    experiment: with the seed of this run.  name: of the run and of its folders below results/
    runs: all runs of the experiment by name; with one seed a single run with the experiment's name
    """

    root: Path
    config: str
    experiment: Experiment
    name: str
    runs: dict[str, Run] = field(default_factory=dict, repr=False, compare=False)
    _digests: dict[str, str] = field(default_factory=dict, repr=False, compare=False)
    _links: dict[tuple[str, ...], Link] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def at(cls, root: Path, config: Path) -> Run:
        """The first run of the experiment `config`, a path relative to the checkout `root` or absolute.

        Raises ConfigProblem for a configuration that cannot be used.
        """
        here, there = root.resolve(), (root / config).resolve()
        path = (there.relative_to(here) if here in there.parents else config).as_posix()
        runs: dict[str, Run] = {}
        digests: dict[str, str] = {}
        for name, experiment in load(root / config).runs().items():
            runs[name] = cls(root, path, experiment, name, runs, digests)
        return next(iter(runs.values()))

    def digest(self, path: str) -> str:
        """sha256 of a file or a folder, as `dreamllm.digests.digest`; "" if it does not exist or is no whole one."""
        if path not in self._digests:
            try:
                self._digests[path] = digest(self.root / path) if path else ""
            except (FileNotFoundError, NameProblem):
                self._digests[path] = ""
        return self._digests[path]

    def git(self, *arguments: str) -> str | None:
        """The output of a git command; None if it fails or git is not installed."""
        command = ["git", "-C", str(self.root), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return None
        return None if done.returncode else done.stdout

    @property
    def paths(self) -> Paths:
        """Where the files of this run lie, relative to `root`."""
        return Paths(self.experiment, self.name)

    def predictions(self, model: str, benchmark: str) -> str:
        """The existing prediction file of a model on a benchmark, with any suffix; "" if there is none."""
        files = (self.paths.predictions(model, benchmark, suffix) for suffix in SUFFIXES)
        return next((file for file in files if (self.root / file).exists()), "")


# ---- cells and metrics -----------------------------------------------------------------------------------------------


def read_measured_cells(run: Run) -> list[MeasuredCell]:
    """All measured cells in results/tables, in the order of the files; none without tables.

    Raises BenchmarkProblem for a file that is not CSV.
    """
    from dreamllm.results.csv_files import read_csv

    cells = []
    for path in sorted((run.root / TABLES).glob("*.csv")):  # claims.csv has no column `source`
        for number, line in enumerate(read_csv(path).to_dict("records"), 2):
            if line.get("source") == "ours" and line.get("from"):
                place = f"{TABLES}/{path.name}, line {number}"
                cells.append(MeasuredCell(line["id"], place, line["from"], {str(key): line[key] for key in line}))
    return cells


def metrics_files(run: Run) -> dict[str, str]:
    """The run's metrics files by the MODEL/BENCHMARK that they name; malformed files are left out."""
    found = {}
    for path in sorted((run.root / run.paths.results("metrics")).rglob("*.json")):
        content = read_json_or_none(path)
        if isinstance(content, dict) and {"model", "benchmark"} <= content.keys():
            found[f"{content['model']}/{content['benchmark']}"] = path.relative_to(run.root).as_posix()
    return found


def cell_link(run: Run, cell: MeasuredCell) -> Link:
    """A cell with its lineage: the metrics of every run that it averages, and everything below them."""
    metrics = []
    for other in run.runs.values():
        known = ("metric", cell.source) in other._links
        path = "" if known else metrics_files(other).get(cell.source, "")
        metrics.append(metric_link(other, cell.source, path))
    file = cell.place.partition(",")[0]
    facts = {key: cell.columns[key] for key in ("value", "low", "high", "n", "seeds", "world", "protocol")}
    return Link("cell", file, cell.id, run.digest(file), made_from=tuple(metrics), facts=facts)


def metric_link(run: Run, source: str, path: str) -> Link:
    """A metrics file (path "" if there is none) and everything below it."""
    if (known := run._links.get(("metric", source))) is not None:
        return known
    model, _, benchmark = source.partition("/")
    content = read_json_or_none(run.root / path) if path else None
    if not path:
        problem = f"no metrics file of {source} below {run.paths.results('metrics')}"
        link = Link("metric", "", source, "", problem=problem)
    elif not isinstance(content, dict):
        link = Link("metric", path, source, run.digest(path), problem="malformed JSON")
    else:
        protocol = as_object(content.get("protocol"))
        inputs = as_object(protocol.get("inputs"))
        below = [_input(run, model, benchmark, name, recorded) for name, recorded in inputs.items()]
        instruments = as_object(protocol.get("instruments"))
        below += [foundation_link(run, name, recorded, measures=True) for name, recorded in instruments.items()]
        facts = {"benchmark": benchmark, "split": content.get("split"), "protocol": protocol}
        problem = "" if inputs else "protocol.inputs is missing: the file does not name its inputs"
        link = Link("metric", path, source, run.digest(path), "", tuple(below), facts, problem)
    run._links["metric", source] = link
    return link


def _input(run: Run, model: str, benchmark: str, name: str, recorded: str) -> Link:
    """A file that a metric was computed from, by the name and the digest in the metric's protocol."""
    if not is_inside(name) or not is_inside(model):
        return Link("data", "", name, "", recorded, problem=OUTSIDE)
    predicted = f"{run.paths.results('predictions')}/{model}/{name}"
    if name.rpartition(".")[2] in SUFFIXES and (run.root / predicted).exists():
        return prediction_link(run, predicted, recorded)
    if name.endswith(".safetensors"):
        folder = run.paths.results("features") + ("" if name.startswith("real_") else f"/{model}")
        return _features(run, model, f"{folder}/{name}", recorded)
    if benchmark == "human":
        key, rating = f"{run.paths.rating_form(model)}/{name}", f"{run.paths.ratings(model)}/{name}"
        path = key if (run.root / key).exists() else rating
        return Link("judgements", path, name, run.digest(path), recorded)
    if name in (f"{benchmark}.jsonl", f"{benchmark}.tar"):
        return prediction_link(run, predicted, recorded)
    path = f"{run.paths.benchmark_files(benchmark)}/{name}"
    return Link("data", path, name, run.digest(path), recorded)


def _features(run: Run, model: str, path: str, recorded: str) -> Link:
    """Stored features of pictures; those of generated pictures have the sample's predictions below them."""
    name = Path(path).stem
    below: tuple[Link, ...] = ()
    if not name.startswith("real_"):
        benchmark, _, sample = name.rpartition("-")
        below = (prediction_link(run, run.paths.sample(model, benchmark, sample), ""),)
    return Link("features", path, name, run.digest(path), recorded, below)


# ---- predictions and checkpoints -------------------------------------------------------------------------------------


def prediction_link(run: Run, path: str, recorded: str) -> Link:
    """A prediction file, with the checkpoints and foundations that its header names below it."""
    key = ("predictions", path, recorded)
    if key in run._links:
        return run._links[key]
    name = Path(path).relative_to(run.paths.results("predictions")).with_suffix("").as_posix()
    header, problem = read_header(run.root / path)
    protocol = as_object(header.get("protocol"))
    below = [checkpoint_link(run, stage, digest_) for stage, digest_ in as_object(protocol.get("checkpoints")).items()]
    below += [foundation_link(run, part, digest_) for part, digest_ in as_object(protocol.get("foundations")).items()]
    facts = {key: header.get(key) for key in ("model", "benchmark", "split", "limit")} | {
        "settings": protocol.get("settings"),
        "precision": protocol.get("precision"),
        "versions": protocol.get("libraries"),
        "machine": protocol.get("machine"),
        "usage": _usage(run, f"predict_{name.replace('/', '_')}"),
    }
    link = Link("predictions", path, name, run.digest(path), recorded, tuple(below), facts, problem)
    run._links[key] = link
    return link


def read_header(path: Path) -> tuple[dict[str, Any], str]:
    """The header of a prediction file, or {} and the reason why it has none. Reads only the file's index."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "numpy") as tensors:
                line = tensors.metadata()["index.jsonl"].partition("\n")[0].encode()
        elif path.suffix == ".tar":
            with tarfile.open(path, "r:") as archive:
                member = archive.next()
                file = archive.extractfile(member) if member and member.name == "index.jsonl" else None
                line = file.readline() if file else b""
        else:
            with path.open("rb") as file:
                line = file.readline()
        header = json.loads(line)["header"]
        return (header, "") if isinstance(header, dict) else ({}, "has no header")
    except FileNotFoundError:
        return {}, "does not exist"
    except (OSError, tarfile.TarError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        return {}, f"has no header ({type(error).__name__})"


def checkpoint_link(run: Run, stage: str, recorded: str) -> Link:
    """A stage's checkpoint, with the inputs that its checkpoint.json names below it."""
    key = ("checkpoint", stage, recorded)
    if key in run._links:
        return run._links[key]
    if not is_inside(stage):
        return Link("checkpoint", "", stage, "", recorded, problem=OUTSIDE)
    path = run.paths.checkpoint(stage)
    about = read_checkpoint_json(run.root / path / "checkpoint.json")
    there = run.digest(path)
    if about is None:
        problem = "has no readable checkpoint.json" if there else "does not exist"
        link = Link("checkpoint", path, stage, there, recorded, problem=problem)
    else:
        link = Link(
            "checkpoint", path, stage, there, recorded, tuple(_checkpoint_inputs(run, stage, about)), _facts(run, about)
        )
    run._links[key] = link
    return link


def _checkpoint_inputs(run: Run, stage: str, about: Mapping[str, Any]) -> Iterator[Link]:
    """Configuration, parent checkpoints, foundations, data and commit that a checkpoint.json names."""
    yield Link("configuration", run.config, stage, run.digest(run.config), facts=about.get("config", {}))
    known = run.experiment.stages.get(stage)
    parents = run.experiment.lineage(*known.init) if known else []
    recorded = list(about.get("init", []))
    recorded += [""] * (len(parents) - len(recorded))
    for parent, tensors in zip(parents, recorded, strict=False):
        link = checkpoint_link(run, parent, "")
        now = run.digest(f"{run.paths.checkpoint(parent)}/trained.safetensors")  # `init` has the digests of the tensors
        yield Link("checkpoint", link.path, parent, now, tensors, link.made_from, link.facts, link.problem)
    for part, digest_ in about.get("foundations", {}).items():
        yield foundation_link(run, part, digest_)
    for name, files in about.get("data", {}).items():
        for file, digest_ in files.items():
            if not is_inside(file) or not is_inside(name):
                yield Link("data", "", file, "", digest_, problem=OUTSIDE)
                continue
            path = f"{run.paths.shards(name)}/{file}"
            yield Link("data", path, name, run.digest(path), digest_)
    yield commit_link(run, about.get("commit") or "")


def _facts(run: Run, about: Mapping[str, Any]) -> dict[str, Any]:
    chosen = ("stage", "seed", "model", "precision", "code", "versions", "totals", "tensors", "machine")
    facts = {key: about[key] for key in chosen if key in about}
    return facts | {"usage": _usage(run, f"train_{about.get('stage', '')}")}


def foundation_link(run: Run, part: str, recorded: str, *, measures: bool = False) -> Link:
    """A foundation model (llm, clip, sd, judge): one that the model is built from, or one that measures it."""
    if not is_inside(part):
        return Link("foundations", "", part, "", recorded, problem=OUTSIDE)
    path = run.paths.instrument(part) if measures else run.paths.foundation(part)
    return Link("foundations", path, part, run.digest(path), recorded)


def commit_link(run: Run, recorded: str) -> Link:
    """The commit of the code, with its lock file below it. The suffix "-modified" means uncommitted changes."""
    sha = recorded.removesuffix("-modified")
    sha = sha if re.fullmatch(r"[0-9a-f]{40}([0-9a-f]{24})?", sha) else ""  # no name such as HEAD, no flag of git
    known = (run.git("rev-parse", "--verify", "--quiet", f"{sha}^{{commit}}") or "").strip() if sha else ""
    below: tuple[Link, ...] = ()
    if known and run.git("cat-file", "-e", f"{known}:{ENVIRONMENT}") is not None:
        blob = (run.git("rev-parse", f"{known}:{ENVIRONMENT}") or "").strip()
        below = (Link("environment", ENVIRONMENT, ENVIRONMENT, blob),)
    return Link("commit", "", sha or recorded, known, recorded, below, {"modified": recorded.endswith("-modified")})


# ---- other records ---------------------------------------------------------------------------------------------------


def _usage(run: Run, job: str) -> Usage | None:
    """Time and memory of a job; None without a readable file."""
    try:
        return read_usage(run.root / run.paths.timing(job))
    except (FileNotFoundError, TimingProblem):
        return None


def recorded_outputs(run: Run) -> dict[str, tuple[str, str]]:
    """Every output in dvc.lock: path -> (stage, md5); {} without a dvc.lock."""
    path = run.root / LOCK
    content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    stages = (content or {}).get("stages", {})
    return {out["path"]: (name, out["md5"]) for name, stage in stages.items() for out in stage.get("outs", [])}


def walk(link: Link) -> Iterator[Link]:
    """The link and all links below it in breadth-first order, each file once for each digest recorded of it."""
    seen, todo = set(), [link]
    while todo:
        one = todo.pop(0)
        key = (one.kind, one.path, one.name, one.recorded)
        if key not in seen:
            seen.add(key)
            yield one
            todo += one.made_from
