"""Write the file for an evaluation server, for sets whose answers are not public: `dreamllm submission`.

VQAv2     JSON, [{"question_id", "answer"}], all of test2015        EvalAI
VizWiz    JSON, [{"image", "answer"}]                               EvalAI
MMBench   xlsx, columns index, question, A to D (E), prediction     its own server
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dreamllm.evaluate import tasks
from dreamllm.evaluate.files import BenchmarkProblem
from dreamllm.evaluate.predictions import check_complete, read
from dreamllm.output_paths import file_to_write


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm submission`."""
    parser.add_argument("--predictions", required=True, type=Path, help="file written by `dreamllm predict`")
    parser.add_argument("--benchmarks", required=True, type=Path, help="folder of the benchmark files")
    parser.add_argument("--out", required=True, type=file_to_write, help=".json, for MMBench .xlsx")


def main(args: argparse.Namespace) -> None:
    """Entry point of `dreamllm submission`. Raises BenchmarkProblem unless each question has exactly one answer."""
    predictions = read(args.predictions)
    header = predictions.header
    name = header.get("task", header["benchmark"])
    if not tasks.about(name).submission:
        raise BenchmarkProblem(args.predictions, "header", f"is of the task {name!r}, which has no evaluation server")
    if header.get("limit"):
        raise BenchmarkProblem(args.predictions, "header", f"holds the first {header['limit']} questions only")
    items = tasks.load(name, args.benchmarks, header["split"])
    check_complete(predictions, [item.id for item in items])
    tasks.module(name).submission(items, predictions, args.out, args.benchmarks)
