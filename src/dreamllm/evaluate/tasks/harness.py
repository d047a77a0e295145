"""Questions in text alone by EleutherAI's lm-evaluation-harness, on data that lies in a folder: nothing is downloaded.

The folder is a copy of the repository that the harness would load (parquet files, and the README that names them); the
harness's own task runs on it, with `dataset_path` alone replaced. Its prompts are not those of DreamLLM's scripts in
all sets: SIQA and BoolQ are worded otherwise (docs/evaluation.md). No <s> stands before the text, as in those scripts.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dreamllm.config.benchmarks import BenchmarkUse
from dreamllm.config.evaluation import EvaluationSettings
from dreamllm.digests import content_files, sha256_of_file
from dreamllm.evaluate.files import BenchmarkProblem
from dreamllm.evaluate.job import PredictionJob, ScoringJob
from dreamllm.evaluate.predictions import Predictions, write
from dreamllm.evaluate.tasks import Task

TASK = Task(
    in_world=False,
    foundations=("llm",),
    parallel=False,
    keys=("shots", "harness_task"),
)
METRICS = {"accuracy": "acc", "accuracy_norm": "acc_norm"}  # ours: the harness's; norm: per character of the option


def check(use: BenchmarkUse) -> list[str]:
    """What is wrong with the section of a benchmark of this task, a line each."""
    problems = [] if use.harness_task else ["harness_task: missing; it names a task or group of lm-evaluation-harness"]
    if len(use.shots) > 1:
        problems.append("shots: the task harness takes one number, make a benchmark of each")
    return problems


def read(folder: Path, split: str) -> list[list[Any]]:
    """Nothing: the harness reads its questions itself."""
    return []


def predict(job: PredictionJob, items: Sequence[Any], header: dict[str, Any]) -> None:
    """Write the harness's records for the language model alone, or for that inside of a DreamLLM."""
    if job.model == "llm":
        from dreamllm.evaluate.likelihoods import language_model
        from dreamllm.model.weights import load_tokenizer

        model, _, context = language_model(job)
        tokenizer = load_tokenizer(job.foundations / "llm")
    else:
        whole, processor = job.load()
        model, tokenizer, context = whole.language_model, processor.tokenizer, processor.context
    records, about = evaluate(model, tokenizer, context, job.use, job.folder, job.settings)
    digests = {str(file.relative_to(job.folder)): sha256_of_file(file) for file in content_files(job.folder)}
    write(job.out, header | about | {"data": digests}, records)


def evaluate(
    model: Any, tokenizer: Any, context: int, use: BenchmarkUse, folder: Path, settings: EvaluationSettings
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A record for each question, and what the prediction file's header says of them: number by task, version.

    model, tokenizer: a causal language model of transformers and its tokenizer; context: its longest row in tokens
    Raises BenchmarkProblem when the harness is not installed, does not know the task, or cannot read the data,
    NonFiniteValues for a likelihood that is NaN.
    """
    import torch

    from dreamllm.model.finite import check_finite

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as error:
        raise BenchmarkProblem("lm-eval", "", f'is not installed: pip install -e ".[evaluation]" ({error})') from None

    task = use.harness_task or ""
    if not any(folder.rglob("*.parquet")):
        raise BenchmarkProblem(folder, f"task {task}", "holds no parquet files")
    with tempfile.TemporaryDirectory() as include:
        group = {"group": "placed", "task": [_named(task, folder.resolve(), Path(include, "cache"))]}
        Path(include, "placed.yaml").write_text(json.dumps(group), encoding="utf-8")  # JSON is YAML
        tasks = TaskManager(include_path=include)
        if task not in tasks.all_tasks:
            raise BenchmarkProblem(folder, f"task {task}", f"is none of lm-eval {version('lm-eval')}")
        results = simple_evaluate(
            model=HFLM(
                pretrained=model,
                tokenizer=tokenizer,
                backend="causal",
                batch_size=settings.text.batch_size,
                max_length=context,
                add_bos_token=False,
            ),
            tasks=["placed"],
            num_fewshot=next(iter(use.shots), 0),
            limit=settings.limit,
            task_manager=tasks,
            bootstrap_iters=0,
            log_samples=True,
        )
    records = []
    for name, samples in results["samples"].items():
        for sample in sorted(samples, key=lambda sample: sample["doc_id"]):
            prompts, id_ = list(sample["arguments"]), f"{name}-{sample['doc_id']}"
            likelihoods = [float(answer[0]) for answer in sample["filtered_resps"]]
            check_finite(torch.tensor([likelihoods]), [id_], "log-likelihoods")
            records.append(
                {
                    "id": id_,
                    "task": name,
                    "prompt": prompts[0][0],
                    "seed": settings.seed,
                    "options": [prompt[1] for prompt in prompts],
                    "loglikelihoods": likelihoods,
                    "metrics": {key: float(sample[key]) for key in METRICS.values() if key in sample},
                }
            )
    counts = {name: samples["effective"] for name, samples in results["n-samples"].items()}
    return records, {"items": counts, "lm_eval": version("lm-eval"), "versions": dict(results["versions"])}


def _named(task: str, folder: Path, cache: Path) -> dict[str, Any]:
    """The entry of a group that runs a task, or a whole group such as mmlu, on the data in a folder.

    With a cache of its own: `datasets` takes folders of the same name for the same data, whatever is in them.
    """
    kind = "group" if task == "mmlu" else "task"
    return {kind: task, "dataset_path": str(folder), "dataset_kwargs": {"cache_dir": str(cache)}}


def score(job: ScoringJob, items: Sequence[Any], predictions: Predictions) -> dict[str, Any]:
    """Accuracy over all questions and by task, of MMLU by subject. The mean is over questions, not over subjects.

    Raises BenchmarkProblem when a question has no record, or a record no metric.
    """
    from dreamllm.evaluate.metrics.intervals import mean_share

    counts = predictions.header.get("items") or {}
    records = predictions.records.values()
    found = {name: sum(record.get("task") == name for record in records) for name in counts}
    if not counts or found != counts or sum(counts.values()) != len(predictions.records):
        what = f"has {len(predictions.records)} records, by its header {sum(counts.values())} in {len(counts)} tasks"
        raise BenchmarkProblem(predictions.path, "", what)

    def measured(ids: list[str]) -> dict[str, Any]:
        metrics = [predictions.get(id_, "metrics", dict) for id_ in ids]
        shared = {ours: theirs for ours, theirs in METRICS.items() if all(theirs in of_item for of_item in metrics)}
        if "accuracy" not in shared:
            raise BenchmarkProblem(predictions.path, f"item {ids[0]}", "a record has no metric 'acc'")
        return {ours: mean_share([of_item[theirs] for of_item in metrics]) for ours, theirs in shared.items()}

    by_task = {name: [id_ for id_, record in predictions.records.items() if record["task"] == name] for name in counts}
    groups = {name: measured(ids) for name, ids in by_task.items()} if len(counts) > 1 else {}
    return {"metrics": measured(list(predictions.records)), "groups": groups}
