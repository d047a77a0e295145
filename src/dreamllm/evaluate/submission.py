"""The file that an evaluation server takes, where it alone has the answers: `dreamllm submission`.

VQAv2     JSON, [{"question_id", "answer"}]                         EvalAI
VizWiz    JSON, [{"image", "answer"}]                               EvalAI
MMBench   xlsx, columns index, question, A to D (E), prediction     its own server
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from dreamllm.atomic import new_file
from dreamllm.evaluate import benchmarks, harness, vqa
from dreamllm.evaluate.files import BenchmarkProblem
from dreamllm.evaluate.predictions import Predictions, check_complete, read


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm submission`."""
    parser.add_argument("--predictions", required=True, type=Path, help="file written by `dreamllm predict`")
    parser.add_argument("--benchmarks", required=True, type=Path, help="folder of the benchmark files")
    parser.add_argument("--out", required=True, type=Path, help=".json, for MMBench .xlsx")


def main(args: argparse.Namespace) -> None:
    """Entry point of `dreamllm submission`. Raises BenchmarkProblem unless each question has exactly one answer."""
    predictions = read(args.predictions)
    header = predictions.header
    task = header.get("task", header["benchmark"])
    if task not in ("vqa", "mmbench"):
        raise BenchmarkProblem(args.predictions, "header", f"is of the task {task!r}, which no server scores")
    if header.get("limit"):
        raise BenchmarkProblem(args.predictions, "header", f"holds the first {header['limit']} questions only")
    items = benchmarks.load(task, args.benchmarks, header["split"])
    check_complete(predictions, [item.id for item in items])
    if task == "mmbench":
        write_xlsx(args.out, exam_rows(items, predictions))
    else:
        with new_file(args.out) as file:
            text = json.dumps(answers(items, predictions), ensure_ascii=False)
            file.write_text(text + "\n", encoding="utf-8")


def answers(items: list[benchmarks.VqaItem], predictions: Predictions) -> list[dict[str, Any]]:
    """Short answers by the number of the question, of VizWiz by the name of the picture."""
    records = []
    for item in items:
        own = {"image": item.picture} if item.picture.startswith("VizWiz") else {"question_id": int(item.id)}
        records.append(own | {"answer": vqa.clip(predictions.get(item.id, "output", str))})
    return records


def exam_rows(items: list[benchmarks.MmbenchItem], predictions: Predictions) -> list[list[Any]]:
    """MMBench's rows with the raw answers, a heading first."""
    letters = sorted({letter for item in items for letter in item.options} | set("ABCD"))
    rows: list[list[Any]] = [["index", "question", *letters, "prediction"]]
    for item in items:
        options = [item.options.get(letter) for letter in letters]
        rows.append([int(item.id), item.question, *options, predictions.get(item.id, "output", str)])
    return rows


def write_xlsx(path: Path, rows: list[list[Any]]) -> None:
    """A workbook of one sheet; text that begins with "=" stays text. Raises BenchmarkProblem without openpyxl."""
    try:
        from openpyxl import Workbook
        from openpyxl.cell import WriteOnlyCell
        from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
    except ModuleNotFoundError as error:
        raise BenchmarkProblem("openpyxl", "", f"{harness.INSTALL} ({error})") from None
    book = Workbook(write_only=True)
    sheet = book.create_sheet("Sheet1")
    for row in rows:
        cells = []
        for value in row:
            cell = WriteOnlyCell(sheet, ILLEGAL_CHARACTERS_RE.sub("", value) if isinstance(value, str) else value)
            if isinstance(value, str):
                cell.data_type = "s"
            cells.append(cell)
        sheet.append(cells)
    with new_file(path) as file:
        book.save(file)
