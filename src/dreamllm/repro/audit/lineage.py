"""From a table's cell down to the bytes it came from: cell, metric, predictions, checkpoint, data, commit.

    run = Run.at(Path("."), Path("config/embedded.yaml"))
    for cell in read_cells(run):           every number of ours in results/tables
        link = follow(run, cell)           a tree of links
        for one in walk(link): ...           each link of it once

Each link has the digest of what is there now, and what the link above it wrote down when it was made: where the two
differ, something was exchanged. The modules `check_*.py` judge, this one does not. Loads
neither torch nor transformers.
"""

from __future__ import annotations

import csv
import io
import json
import subprocess
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
from dreamllm.snakemake_records import RecordProblem, Usage, read_usage

Kind = Literal[
    "cell", "metric", "items", "judgements", "features", "predictions", "checkpoint", "configuration", "foundations",
    "data", "commit", "environment",
]  # fmt: skip
FORMS = ("jsonl", "tar", "safetensors")  # of prediction files
LOCK, ENVIRONMENT = "dvc.lock", "requirements.lock"


@dataclass(frozen=True)
class Link:
    """One step of the way from a cell to the data.

    path: relative to the repository, "" where it is no file.  name: CELL, MODEL/BENCHMARK, STAGE, ...
    digest: of what is there now (sha256; a commit's is its own), "" where nothing is there
    recorded: the digest that the link above wrote down, "" where it wrote none
    facts: what its file says of it.  problem: why it cannot be read
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
        """Whether it is there, readable, and what the link above says it was."""
        return bool(self.digest) and not self.problem and self.recorded in ("", self.digest)


@dataclass(frozen=True)
class CellLine:
    """A cell of ours as a line of results/tables/TABLE.csv. place: file and line; source: MODEL/BENCHMARK."""

    id: str
    table: str
    place: str
    source: str
    columns: Mapping[str, str]


@dataclass(frozen=True)
class Run:
    """A checkout of the repository, and a run of the experiment that is looked at. Digests are computed once.

    experiment: with the seed of this run.  name: the run's, which its folders below results/ have
    runs: all runs of the experiment by name; one called like the experiment where it has one seed
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
        """sha256 of a file or a folder, as `dreamllm.digests.digest`; "" where there is none."""
        if path not in self._digests:
            there = path and (self.root / path).exists()
            self._digests[path] = digest(self.root / path) if there else ""
        return self._digests[path]

    def git(self, *arguments: str) -> str | None:
        """What git says, None where it fails or there is no git."""
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
        """The prediction file of a model on a benchmark that is there, whatever its form; "" where there is none."""
        files = (self.paths.predictions(model, benchmark, form) for form in FORMS)
        return next((file for file in files if (self.root / file).exists()), "")


# ---- cells and metrics -----------------------------------------------------------------------------------------------


def read_cells(run: Run) -> list[CellLine]:
    """All measured cells of ours in results/tables, in the order of the files; none where there are no tables."""
    cells = []
    for path in sorted((run.root / TABLES).glob("*.csv")):  # claims.csv has no column `source`
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
        for line in reader:
            if line.get("source") == "ours" and line.get("from"):
                place = f"{TABLES}/{path.name}, line {reader.line_num}"
                cells.append(CellLine(line["id"], path.stem, place, line["from"], line))
    return cells


def metrics_files(run: Run) -> dict[str, str]:
    """The experiment's metrics files by MODEL/BENCHMARK as they say of themselves, malformed ones left out."""
    found = {}
    for path in sorted((run.root / run.paths.results("metrics")).rglob("*.json")):
        content = _json(path)
        if isinstance(content, dict) and {"model", "benchmark"} <= content.keys():
            found[f"{content['model']}/{content['benchmark']}"] = path.relative_to(run.root).as_posix()
    return found


def follow(run: Run, cell: CellLine) -> Link:
    """The whole way below a cell: to the metrics of every run behind it, and on from there."""
    metrics = []
    for other in run.runs.values():
        known = ("metric", cell.source) in other._links
        path = "" if known else metrics_files(other).get(cell.source, "")
        metrics.append(metric_link(other, cell.source, path))
    file = cell.place.partition(",")[0]
    facts = {key: cell.columns[key] for key in ("value", "low", "high", "n", "seeds", "world", "protocol")}
    return Link("cell", file, cell.id, run.digest(file), made_from=tuple(metrics), facts=facts)


def metric_link(run: Run, source: str, path: str) -> Link:
    """A metrics file (path "" = there is none) and everything below it."""
    if (known := run._links.get(("metric", source))) is not None:
        return known
    model, _, benchmark = source.partition("/")
    content = _json(run.root / path) if path else None
    if not path:
        problem = f"no metrics file of {source} below {run.paths.results('metrics')}"
        link = Link("metric", "", source, "", problem=problem)
    elif not isinstance(content, dict):
        link = Link("metric", path, source, run.digest(path), problem="malformed JSON")
    else:
        inputs = content.get("protocol", {}).get("inputs", {})
        below = [_input(run, model, benchmark, name, recorded) for name, recorded in inputs.items()]
        instruments = content.get("protocol", {}).get("instruments", {})
        below += [foundation_link(run, name, recorded, measures=True) for name, recorded in instruments.items()]
        facts = {"benchmark": benchmark, "split": content.get("split"), "protocol": content.get("protocol", {})}
        problem = "" if inputs else "protocol.inputs is missing: it does not say what it was made from"
        link = Link("metric", path, source, run.digest(path), "", tuple(below), facts, problem)
    run._links["metric", source] = link
    return link


def _input(run: Run, model: str, benchmark: str, name: str, recorded: str) -> Link:
    """A file that a metric was made from, by the name and the digest in the metric's protocol."""
    predicted = f"{run.paths.results('predictions')}/{model}/{name}"
    if name.rpartition(".")[2] in FORMS and (run.root / predicted).exists():
        return prediction_link(run, predicted, recorded)
    if name.endswith(".safetensors"):
        folder = run.paths.results("features") + ("" if name.startswith("real_") else f"/{model}")
        return _features(run, model, f"{folder}/{name}", recorded)
    if benchmark == "human":
        page, said = f"{run.paths.rating_form(model)}/{name}", f"{run.paths.ratings(model)}/{name}"
        path = page if (run.root / page).exists() else said
        return Link("judgements", path, name, run.digest(path), recorded)
    if name in (f"{benchmark}.jsonl", f"{benchmark}.tar"):
        return prediction_link(run, predicted, recorded)
    path = f"{run.paths.benchmark_files(benchmark)}/{name}"
    return Link("data", path, name, run.digest(path), recorded)


def _features(run: Run, model: str, path: str, recorded: str) -> Link:
    """Stored features of pictures; those of drawn ones come from the predictions of that sample."""
    name = Path(path).stem
    below: tuple[Link, ...] = ()
    if not name.startswith("real_"):
        benchmark, _, sample = name.rpartition("-")
        below = (prediction_link(run, run.paths.sample(model, benchmark, sample), ""),)
    return Link("features", path, name, run.digest(path), recorded, below)


# ---- predictions and checkpoints -------------------------------------------------------------------------------------


def prediction_link(run: Run, path: str, recorded: str) -> Link:
    """A prediction file, and the checkpoints, foundations and settings that its header names."""
    key = ("predictions", path, recorded)
    if key in run._links:
        return run._links[key]
    name = Path(path).relative_to(run.paths.results("predictions")).with_suffix("").as_posix()
    header, problem = read_header(run.root / path)
    protocol = header.get("protocol", {})
    below = [checkpoint_link(run, stage, said) for stage, said in protocol.get("checkpoints", {}).items()]
    below += [foundation_link(run, part, said) for part, said in protocol.get("foundations", {}).items()]
    facts = {key: header.get(key) for key in ("model", "benchmark", "split", "limit")} | {
        "settings": protocol.get("settings"),
        "versions": protocol.get("libraries"),
        "machine": protocol.get("machine"),
        "usage": _usage(run, f"predict_{name.replace('/', '_')}"),
    }
    link = Link("predictions", path, name, run.digest(path), recorded, tuple(below), facts, problem)
    run._links[key] = link
    return link


def read_header(path: Path) -> tuple[dict[str, Any], str]:
    """The header of a prediction file of either form, and why it has none. Reads no more than the index."""
    import tarfile

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
        return json.loads(line)["header"], ""
    except FileNotFoundError:
        return {}, "is not there"
    except (OSError, tarfile.TarError, SafetensorError, ValueError, KeyError, TypeError) as error:
        return {}, f"has no header ({type(error).__name__})"


def checkpoint_link(run: Run, stage: str, recorded: str) -> Link:
    """A stage's checkpoint and what its checkpoint.json says it was made from."""
    key = ("checkpoint", stage, recorded)
    if key in run._links:
        return run._links[key]
    path = run.paths.checkpoint(stage)
    about = _json(run.root / path / "checkpoint.json")
    there = run.digest(path)
    if not isinstance(about, dict):
        problem = "has no readable checkpoint.json" if there else "is not there"
        link = Link("checkpoint", path, stage, there, recorded, problem=problem)
    else:
        link = Link("checkpoint", path, stage, there, recorded, tuple(_below(run, stage, about)), _facts(run, about))
    run._links[key] = link
    return link


def _below(run: Run, stage: str, about: Mapping[str, Any]) -> Iterator[Link]:
    """What a checkpoint.json names."""
    yield Link("configuration", run.config, stage, run.digest(run.config), facts=about.get("config", {}))
    known = run.experiment.stages.get(stage)
    parents = run.experiment.lineage(*known.init) if known else []
    said = list(about.get("init", []))
    said += [""] * (len(parents) - len(said))
    for parent, tensors in zip(parents, said, strict=False):
        above = checkpoint_link(run, parent, "")  # it wrote down the digest of the tensors alone
        now = run.digest(f"{run.paths.checkpoint(parent)}/trained.safetensors")
        yield Link("checkpoint", above.path, parent, now, tensors, above.made_from, above.facts, above.problem)
    for part, digest_ in about.get("foundations", {}).items():
        yield foundation_link(run, part, digest_)
    for name, files in about.get("data", {}).items():
        for file, digest_ in files.items():
            path = f"{run.paths.shards(name)}/{file}"
            yield Link("data", path, name, run.digest(path), digest_)
    yield commit_link(run, about.get("commit") or "")


def _facts(run: Run, about: Mapping[str, Any]) -> dict[str, Any]:
    chosen = ("stage", "seed", "model", "code", "versions", "totals", "tensors", "machine")
    facts = {key: about[key] for key in chosen if key in about}
    return facts | {"usage": _usage(run, f"train_{about.get('stage', '')}")}


def foundation_link(run: Run, part: str, recorded: str, *, measures: bool = False) -> Link:
    """One of the foundations, llm, clip, sd or judge: of the model, or those of the emoji world that measure it."""
    path = run.paths.instrument(part) if measures else run.paths.foundation(part)
    return Link("foundations", path, part, run.digest(path), recorded)


def commit_link(run: Run, recorded: str) -> Link:
    """The commit of the code, and the environment that it pins. "-modified" is no commit: the code was not in git."""
    sha = recorded.removesuffix("-modified")
    known = (run.git("rev-parse", "--verify", "--quiet", f"{sha}^{{commit}}") or "").strip() if sha else ""
    below: tuple[Link, ...] = ()
    if known and run.git("cat-file", "-e", f"{known}:{ENVIRONMENT}") is not None:
        blob = (run.git("rev-parse", f"{known}:{ENVIRONMENT}") or "").strip()
        below = (Link("environment", ENVIRONMENT, ENVIRONMENT, blob),)
    return Link("commit", "", sha, known, recorded, below, {"modified": recorded.endswith("-modified")})


# ---- what else is written down ---------------------------------------------------------------------------------------


def _usage(run: Run, job: str) -> Usage | None:
    """What Snakemake measured of a job; None where it left no file that can be read."""
    try:
        return read_usage(run.root / run.paths.timing(job))
    except (FileNotFoundError, RecordProblem):
        return None


def recorded_outputs(run: Run) -> dict[str, tuple[str, str]]:
    """What dvc.lock says of every output: path -> (stage, md5). Nothing where there is no dvc.lock."""
    path = run.root / LOCK
    content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    stages = (content or {}).get("stages", {})
    return {out["path"]: (name, out["md5"]) for name, stage in stages.items() for out in stage.get("outs", [])}


def walk(link: Link) -> Iterator[Link]:
    """The link and all below it, each file and what is recorded of it once, from the cell downwards."""
    seen, todo = set(), [link]
    while todo:
        one = todo.pop(0)
        key = (one.kind, one.path, one.name, one.recorded)
        if key not in seen:
            seen.add(key)
            yield one
            todo += one.made_from


def _json(path: Path) -> Any:
    """A JSON file's content, None where it is missing or malformed."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
