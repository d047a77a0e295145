"""Builds a small repository with results for the tests of the audit.

Nothing is trained: the tensors of checkpoints are random and the answers of models are chosen here. The world, shards,
metrics, item scores and tables are made by the real code.
"""

from __future__ import annotations

import argparse
import base64
import json
from pathlib import Path

import torch
import yaml

import repository
from dreamllm import digests, provenance
from dreamllm.digests import content_files
from dreamllm.emoji import world
from dreamllm.evaluate import predict, predictions, score, tasks
from dreamllm.model import precision
from dreamllm.repro.audit.audited_run import AuditedRun, Output
from dreamllm.repro.audit.lineage import Run
from dreamllm.results import tables
from dreamllm.seeds import seed_of
from dreamllm.snakemake_records import record_digests
from dreamllm.train import checkpoint

CONFIG = "config/small.yaml"
RESULTS = "results/{}/small"
TENSORS = {
    "align": {"visual_projector.weight": (4, 3)},
    "sft": {"visual_projector.weight": (4, 3), "dream_queries": (1, 2, 4)},
}
EXPERIMENT = """
name: small
seed: 3
world:
  folder: data/emoji_small
  training: {pairs: 12, stories: 4, instructions: 4, text: 4}
  benchmarks: {pictures: 6, draw: 6, stories: 3, language: 4}
foundations:
  source: train
  folder: data/foundations_small
  llm: {steps: 4, batch_size: 4, learning_rate: 1.0e-3, hidden: 32, layers: 2, heads: 2}
  clip: {steps: 4, batch_size: 4, learning_rate: 1.0e-3, hidden: 32, layers: 3, text_layers: 1, heads: 2, patch: 16}
  vae: {steps: 4, batch_size: 4, learning_rate: 1.0e-3, channels: [8, 16, 16], latent_channels: 4}
  sd: {steps: 4, batch_size: 4, learning_rate: 1.0e-3, channels: [16, 32], pictures: 64}
  judge: {steps: 4, batch_size: 32, learning_rate: 1.0e-3, width: 4}
  judge2: {steps: 4, batch_size: 32, learning_rate: 1.0e-3, width: 4, architecture: residual}
model: {num_dream_queries: 2, template: plain}
stages:
  align: &stage
    trains: [visual_projector]
    mode: comprehension
    mixture: {pairs: 1}
    steps: 2
    rows_per_batch: 2
    context: 160
    learning_rate: 1.0e-3
  sft:
    <<: *stage
    init: [align]
    trains: [visual_projector, dream_queries]
    mode: joint
    mixture: {pairs: 1, stories: 1}
evaluations:
  - {model: align, benchmarks: [vqa]}
  - {model: sft, benchmarks: [vqa, pope]}
"""


def build(folder: Path) -> Path:
    """Build the repository in `folder`: everything is made, committed and recorded in dvc.lock."""
    repository.copy(folder)
    (folder / CONFIG).write_text(EXPERIMENT, encoding="utf-8")
    repository.run(folder, "git", "init", "--quiet")
    repository.commit(folder)
    run = Run.at(folder, Path(CONFIG))
    world.main(argparse.Namespace(config=folder / CONFIG, out=folder / run.experiment.world.folder))
    for part in ("llm", "clip", "sd", "judge", "judge2"):
        (folder / "data/foundations_small" / part).mkdir(parents=True)
        (folder / "data/foundations_small" / part / "model.safetensors").write_text(part)
    for stage in run.experiment.stages:
        write_checkpoint(run, stage)
    for model, benchmark in (("align", "vqa"), ("sft", "vqa"), ("sft", "pope")):
        write_predictions(run, model, benchmark)
    write_scores(run)
    write_timings(run)
    write_records(run)
    write_dvc_lock(run)
    repository.commit(folder)
    return folder


def write_checkpoint(run: Run, stage: str) -> None:
    """Write a checkpoint with random tensors in the format of `dreamllm train`."""
    experiment, settings = run.experiment, run.experiment.stages[stage]
    generator = torch.Generator().manual_seed(seed_of(experiment.seed, stage))
    shards = {name: sorted((run.root / run.paths.shards(name)).glob(f"{name}-*.tar")) for name in settings.mixture}
    above = [run.root / run.paths.checkpoint(parent) / checkpoint.TENSORS for parent in settings.init]
    metadata = {
        "stage": stage,
        "seed": experiment.seed,
        "config": settings.model_dump(mode="json"),
        "model": {**experiment.model.model_dump(mode="json"), "seed": seed_of(experiment.seed, "model")},
        "precision": precision.resolve(experiment.precision),
        "foundations": checkpoint.foundation_digests(run.root / experiment.foundations.folder),
        "init": [digests.digest(path) for path in above],
        "data": {name: {path.name: digests.digest(path) for path in paths} for name, paths in shards.items()},
        "code": provenance.code_digest("dreamllm.train.trainer"),
        "versions": provenance.versions(),
        "commit": repository.run(run.root, "git", "rev-parse", "HEAD").stdout.strip(),
    }
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in TENSORS[stage].items()}
    checkpoint.save_trained(run.root / run.paths.checkpoint(stage), tensors, metadata, "step\n")


def write_predictions(run: Run, model: str, benchmark: str, right: int = 2) -> Path:
    """Write a prediction file in the format of `dreamllm predict`, with `right` of every 3 answers right."""
    root, settings = run.root, run.experiment.evaluation
    folder = root / run.paths.benchmark_files(benchmark)
    stages = [root / run.paths.checkpoint(stage) for stage in run.experiment.stages_of(model)]
    arguments = {"model": model, "foundations": root / run.experiment.foundations.folder, "checkpoints": stages}
    header = {"model": model, "benchmark": benchmark, "task": benchmark, "split": settings.split, "limit": None}
    header["protocol"] = predict.protocol(argparse.Namespace(**arguments), run.experiment)
    asked = tasks.load(benchmark, folder, settings.split)
    known = [item.answers[0] if benchmark == "vqa" else item.label for item in asked]
    said = [word if number % 3 < right else "nothing" for number, word in enumerate(known)]
    records = [{"id": i.id, "prompt": "?", "seed": 42, "output": o} for i, o in zip(asked, said, strict=True)]
    path = root / RESULTS.format("predictions") / model / f"{benchmark}.jsonl"
    predictions.write(path, header, records)
    return path


def write_scores(run: Run) -> None:
    """Make metrics, item scores, tables and a figure from the predictions, with the code of the verbs."""
    root = run.root
    answered = [root / run.predictions(*pair) for pair in (("align", "vqa"), ("sft", "vqa"), ("sft", "pope"))]
    folder = root / run.paths.benchmark_files("vqa")
    metrics = []
    for path in answered:
        metrics.append(root / RESULTS.format("metrics") / path.parent.name / f"{path.stem}.json")
        flags = {"benchmark": path.stem, "predictions": path, "benchmarks": folder, "foundations": root / "none"}
        scored = root / RESULTS.format("items") / path.parent.name / f"{path.stem}.json"
        score.main(argparse.Namespace(**flags, config=None, judgements=None, out=metrics[-1], items=scored))
    items = [root / RESULTS.format("items")]
    tables.main(
        argparse.Namespace(
            metrics=metrics, items=items, paper=root / "paper", losses=[], summary=None, out=root / "results/tables"
        )
    )
    (root / "results/figures").mkdir(exist_ok=True)
    (root / "results/figures/curves.png").write_text("a figure")


def write_timings(run: Run) -> None:
    """Write the benchmark file of every job in Snakemake's format."""
    folder = run.root / "timings/small"
    folder.mkdir(parents=True)
    for output in dag_outputs(run.root):
        (folder / f"{Path(output.log).stem}.tsv").write_text("s\tmax_rss\tcpu_time\n2.5\t100.0\t2.0\n")


def write_records(run: Run, *, touched: bool = False) -> None:
    """Write Snakemake's records of all outputs, and their digests as the Snakefile does."""
    folder = run.root / ".snakemake/metadata"
    folder.mkdir(parents=True)
    for output in dag_outputs(run.root):
        files = [run.root / output.path, *content_files(run.root / output.path)]
        record = {"rule": output.rule, "input": [], "log": [output.log], "shellcmd": "...", "starttime": 0.0}
        record["endtime"] = max(file.stat().st_mtime for file in files)
        (folder / base64.urlsafe_b64encode(output.path.encode()).decode()).write_text(json.dumps(record))
    record_digests(run.root, touched=touched)


def write_dvc_lock(run: Run) -> None:
    """Write dvc.lock for the files as they are."""
    outs = [f"data/emoji_small/{part}" for part in ("train", "benchmarks")]
    outs += [run.paths.checkpoint(stage) for stage in TENSORS]
    outs += [RESULTS.format(kind) for kind in ("predictions", "metrics", "items")] + ["results/tables"]
    stages = {f"stage{i}": {"outs": [{"path": p, "md5": digests.md5(run.root / p)}]} for i, p in enumerate(outs)}
    (run.root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))


def dag_outputs(root: Path) -> list[Output]:
    """The outputs of the DAG as Snakemake's summary lists them: all exist and are up to date."""
    run = Run.at(root, Path(CONFIG))
    made = {"make_world": "data/emoji_small/train", "tables": "results/tables", "figures": "results/figures"}
    made |= {f"train_{stage}": run.paths.checkpoint(stage) for stage in TENSORS}
    items = []
    for name in ("align_vqa", "sft_vqa", "sft_pope"):
        path = name.replace("_", "/")
        made[f"predict_{name}"] = f"{RESULTS.format('predictions')}/{path}.jsonl"
        made[f"score_{name}"] = f"{RESULTS.format('metrics')}/{path}.json"
        items.append((f"score_{name}", f"{RESULTS.format('items')}/{path}.json"))
    pairs = [*made.items(), *items]
    return [Output(path, job, f"logs/small/{job}.log", "...", "ok", "no update") for job, path in pairs]


def audited_run(root: Path) -> AuditedRun:
    """What the audit reads of the repository, with `dag_outputs` instead of a call of Snakemake."""
    return AuditedRun(Run.at(root, Path(CONFIG)), dag_outputs(root))
