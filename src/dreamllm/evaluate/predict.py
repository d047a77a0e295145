"""Write a model's raw answers to a benchmark: `dreamllm predict`. Scoring is another step (`score.py`).

A model made of stage checkpoints can run every benchmark; `sd` and `sd_finetuned`, Stable Diffusion with its
own text encoder, draw; `llm`, the language model that DreamLLM starts from, takes the language-only questions. Each
benchmark is a module in `tasks/`; public sets are named in the experiment's `benchmarks`.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

from dreamllm.config import reading
from dreamllm.config.base import near
from dreamllm.config.benchmarks import BenchmarkUse
from dreamllm.config.evaluation import WITHOUT_EFFECT
from dreamllm.config.experiment import FOUNDATION_MODELS, Experiment
from dreamllm.config.reading import ConfigProblem, load
from dreamllm.digests import content_files, digest
from dreamllm.evaluate import parallel, tasks
from dreamllm.evaluate.files import BenchmarkProblem
from dreamllm.evaluate.job import PredictionJob
from dreamllm.output_paths import file_to_write, folder_to_write
from dreamllm.provenance import code_digest, machine, versions

NOT_IN_PROTOCOL: dict[str, Any] = dict.fromkeys(
    ("split", "limit", "pictures", "latency", "attention", "detection"), True
)
"""Keys of `evaluation` that stand elsewhere in a prediction file, or matter to some benchmarks alone."""
MOST_SAMPLES = 10_000  # images per prompt


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm predict`."""
    parser.add_argument("--config", required=True, type=Path, help="experiment whose `evaluation` section is used")
    parser.add_argument("--seed", type=int, help="seed of the run, for an experiment with several `seeds`")
    parser.add_argument("--model", required=True, help="name of the model; llm, sd and sd_finetuned are foundations")
    parser.add_argument("--benchmark", required=True, help="one of the emoji world, or of the section `benchmarks`")
    parser.add_argument("--split", required=True, choices=["dev", "test"])
    parser.add_argument("--foundations", required=True, type=Path, help="folder with llm/, clip/ and sd/")
    parser.add_argument("--checkpoints", nargs="*", default=[], type=Path, help="stage checkpoints, in loading order")
    parser.add_argument("--benchmarks", required=True, type=Path, help="folder of the benchmark files")
    parser.add_argument("--shots", type=Path, help="folder of the benchmark files with the worked examples")
    parser.add_argument("--sample", type=int, default=0, help="number of the image per prompt, from 0")
    parser.add_argument(
        "--work", type=folder_to_write, help="folder for finished batches; a killed run continues with the others"
    )
    parser.add_argument(
        "--out", required=True, type=file_to_write, help=".jsonl; images and stories .tar; attention .safetensors"
    )


def main(args: argparse.Namespace) -> None:
    """Run one model on one benchmark and write its prediction file; several processes divide its items (`parallel.py`).

    Raises ConfigProblem for an unknown benchmark, BenchmarkProblem for a model that cannot take it or a broken file.
    """
    experiment = load(args.config, args.seed)
    if not 0 <= args.sample < MOST_SAMPLES:
        raise BenchmarkProblem("--sample", str(args.sample), f"is not from 0 to {MOST_SAMPLES - 1}")
    tasks.check(experiment, args.config)
    if args.benchmark not in (*tasks.NAMES, *experiment.benchmarks):
        hint = near(args.benchmark, [*tasks.NAMES, *experiment.benchmarks])
        raise ConfigProblem(f"{args.config}: no benchmark {args.benchmark!r}{hint}")
    use = experiment.benchmark(args.benchmark)
    task = tasks.module(use.task)
    if args.model in FOUNDATION_MODELS and args.model not in task.TASK.foundations:
        able = [name for name in tasks.NAMES if args.model in tasks.about(name).foundations]
        raise BenchmarkProblem(
            args.config, f"model {args.model}", f"can run only the tasks {' and '.join(map(repr, able))}"
        )
    if (args.model in ("llm", "sd")) == bool(args.checkpoints):
        problem = "is a foundation model, give no" if args.checkpoints else "give its"
        raise BenchmarkProblem(args.config, f"model {args.model}", f"{problem} --checkpoints")
    if args.out.suffix != f".{task.TASK.predictions}":
        raise BenchmarkProblem("--out", str(args.out), f"should end in .{task.TASK.predictions}")
    processes = parallel.start()
    if processes.number > 1 and not (task.TASK.parallel and args.work):
        problem = "needs --work, a folder that they all see" if task.TASK.parallel else "is predicted by one process"
        raise BenchmarkProblem(args.config, f"task {use.task} in {processes.number} processes", problem)
    settings = experiment.evaluation
    limit = task.limit(settings) if hasattr(task, "limit") else settings.limit
    items = tasks.load(use.task, args.benchmarks, args.split, limit)
    header = {
        "model": args.model,
        "benchmark": args.benchmark,
        "task": use.task,
        "split": args.split,
        "limit": limit,
        "protocol": processes.from_first(lambda: protocol(args, experiment) | _benchmark_settings(use)),
    }
    identity = processes.from_first(lambda: identity_of(args, use.task, header, items))
    with tempfile.TemporaryDirectory() as temporary:
        work = (args.work or Path(temporary)) / identity
        job = PredictionJob(
            experiment,
            use,
            task.TASK,
            args.model,
            args.foundations,
            args.checkpoints,
            args.benchmarks,
            args.split,
            args.out,
            work,
            examples=args.shots,
            sample=args.sample,
            processes=processes,
        )
        task.predict(job, items, header)
        parallel.stop(processes)  # when all have read what they need of the folder
        if processes.is_first:
            shutil.rmtree(work, ignore_errors=True)


def identity_of(args: argparse.Namespace, task: str, header: dict[str, Any], items: list[Any]) -> str:
    """Digest of all that a batch depends on, whatever machine computes it: the name of the folder of finished batches.

    Of the benchmark's images the names, sizes and times count.
    """
    folders = [folder for folder in (args.benchmarks, args.shots) if folder]
    files = [path for folder in folders for path in content_files(folder)]
    return reading.digest(
        header | {"protocol": {**header["protocol"], "machine": None}},
        args.sample,
        repr(items),
        [[str(path), (about := path.stat()).st_size, about.st_mtime_ns] for path in files],
        code_digest(__name__, f"dreamllm.evaluate.tasks.{task}", without=tasks.SCORING),
    )


def protocol(args: argparse.Namespace, experiment: Experiment) -> dict[str, Any]:
    """How the predictions were made: settings, precision, digests of the models, versions. No paths and no time."""
    from dreamllm.model.precision import resolve
    from dreamllm.train.checkpoint import foundation_folders, options_of

    own = [args.model.removesuffix("_finetuned")]  # llm or sd
    folders = own if args.model in FOUNDATION_MODELS else foundation_folders(options_of(args.checkpoints))
    return {
        "settings": experiment.evaluation.model_dump(mode="json", exclude=NOT_IN_PROTOCOL | WITHOUT_EFFECT),
        "precision": resolve(experiment.precision),
        "foundations": {name: digest(args.foundations / name) for name in folders},
        "checkpoints": {folder.name: digest(folder) for folder in args.checkpoints},
        "libraries": versions(),
        "machine": machine(),
    } | ({"compiled": True} if experiment.machine.compile else {})


def _benchmark_settings(use: BenchmarkUse) -> dict[str, Any]:
    """The protocol's entry for a benchmark of a public set or with settings of its own."""
    special = use.source or use.shots or use.picture != "own" or use.wording
    return {"benchmark": use.model_dump(mode="json")} if special else {}
