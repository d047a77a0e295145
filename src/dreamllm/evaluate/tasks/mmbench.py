"""MMBench (arXiv 2307.06281): a choice question counts as right only if it is answered rightly in every rotation of its
options. Free answers are read by rules, and where these cannot read them by a language model.

    mmbench_SPLIT.tsv     MMBench's own table: index, question, hint, A to E, answer, category, l2-category. Row
                          `index` + k * 1,000,000 is the k-th rotation of row `index`. The test split has no answers.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamllm.atomic import new_file
from dreamllm.evaluate import tasks
from dreamllm.evaluate.answering import answer
from dreamllm.evaluate.files import BenchmarkProblem, keyed, pictures_of
from dreamllm.evaluate.groups import Metrics, by_group
from dreamllm.evaluate.job import PredictionJob, ScoringJob
from dreamllm.evaluate.predictions import Predictions
from dreamllm.evaluate.prompts import PromptSet, Wording, first_word_is_no
from dreamllm.evaluate.tasks import Task

ABILITIES = {  # second level of the categories, and its name in published tables
    "logic_reasoning": "LR",
    "attribute_reasoning": "AR",
    "relation_reasoning": "RR",
    "finegrained_perception (instance-level)": "FP-S",
    "finegrained_perception (cross-instance)": "FP-C",
    "coarse_perception": "CP",
}
ROTATION = 1_000_000
LETTERS = "ABCDE"
INDEX = re.compile(r"[0-9]{1,18}")
NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0, and so a workbook, cannot hold; openpyxl's own list lacks U+FFFE, U+FFFF and lone surrogates."""

TASK = Task(
    files=("mmbench_{split}.tsv",),
    in_world=False,
    keys=("picture", "wording"),
    judged=True,
    submission="xlsx",
    wording={
        "": Wording(
            system="This is an exam, please answer according to the image, hint and question.",
            instruction="Please provide an accurate and detailed answer.",
            first="Is the answer can be known?",
        )
    },
)


@dataclass(frozen=True)
class MmbenchItem:
    """One rotation of a question. options: text by letter; answer: the right letter, None where the server has it."""

    id: str
    question_id: str
    picture: str
    question: str
    hint: str
    options: Mapping[str, str]
    answer: str | None
    category: str
    ability: str

    @property
    def groups(self) -> list[str]:
        """Groups under which the question is reported: its category, and the published name of its ability."""
        return [self.category, *filter(None, [ABILITIES.get(self.ability, self.ability)])]


def rotated(options: Sequence[str], answer: int, by: int) -> tuple[list[str], int]:
    """Options moved up by `by` places, the first ones to the end, and where the right one is then."""
    n = len(options)
    return [options[(place + by) % n] for place in range(n)], (answer - by) % n


def read(folder: Path, split: str) -> list[list[MmbenchItem]]:
    """The rotations of each question side by side, questions in the order of the file.

    Read as text: pandas, which the official code uses, takes an option that reads "None" or "NA" for a missing one.
    Raises BenchmarkProblem for a doubled index, an answer that is no option, and a question without all its rotations.
    """
    path, shown = folder / f"mmbench_{split}.tsv", pictures_of(folder, split)
    items = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
    except FileNotFoundError:
        raise BenchmarkProblem(path, "", "no such file") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise BenchmarkProblem(path, "", f"is no table ({error})") from None
    for number, row in enumerate(rows, 2):
        place = f"row {number}"
        if missing := [name for name in ("index", "question", "A", "B", "category") if not row.get(name)]:
            raise BenchmarkProblem(path, place, f"has no {missing[0]}")
        if not INDEX.fullmatch(row["index"]):
            raise BenchmarkProblem(path, place, f"index {row['index']!r} is no number")
        index = int(row["index"])
        options = {letter: row[letter] for letter in LETTERS if row.get(letter)}
        answer = row.get("answer") or None
        if answer and answer not in options:
            raise BenchmarkProblem(path, f"question {index}", f"answer {answer!r} is none of {', '.join(options)}")
        question = str(index % ROTATION)
        name = shown.check(f"{question}.jpg", path, f"question {index}")
        hint, ability = row.get("hint") or "", row.get("l2-category") or ""
        items.append((str(index), MmbenchItem(
            str(index), question, name, row["question"], hint, options, answer, row["category"], ability
        )))  # fmt: skip
    by_question: dict[str, list[MmbenchItem]] = {}
    for item in keyed(items, path, "question").values():
        by_question.setdefault(item.question_id, []).append(item)
    for question, rotations in by_question.items():
        if len(rotations) != len(rotations[0].options):
            what = f"has {len(rotations)} rotations for {len(rotations[0].options)} options"
            raise BenchmarkProblem(path, f"question {question}", what)
        texts = {tuple(sorted(item.options.values())) for item in rotations}
        right = {item.options[item.answer] if item.answer else "" for item in rotations}
        if len(texts) > 1 or len(right) > 1:
            raise BenchmarkProblem(path, f"question {question}", "its rotations differ in more than the order")
    return [[item for rotations in by_question.values() for item in rotations]]


def first(items: Sequence[MmbenchItem], limit: int | None) -> list[MmbenchItem]:
    """All rotations of the first questions."""
    kept = list(dict.fromkeys(item.question_id for item in items))[:limit]
    return [item for item in items if item.question_id in set(kept)]


def predict(job: PredictionJob, items: Sequence[MmbenchItem], header: dict[str, Any]) -> None:
    """Write an answer to each question; one that cannot be answered from the image is asked with its options."""

    def ask(item: MmbenchItem, with_options: bool) -> str:
        return question(item, job.prompts, with_options=with_options)

    def unknown(reply: str) -> bool:
        return says_unknown(reply, job.prompts)

    job.write(header, answer(job, *job.load(), items, question_of=ask, says_unknown=unknown))


def question(item: MmbenchItem, prompts: PromptSet, *, with_options: bool) -> str:
    """A question of MMBench with its hint and, when they are to be seen, its options."""
    if prompts == "official":
        hint = item.hint or "nan"  # what pandas makes of an empty cell
        options = "".join(f"(0). {text} " for text in item.options.values())  # the counter never counts
        return f"Hint:{hint}Question:{item.question}" + (f"Options: {options}" if with_options else "")
    lines = [f"Hint: {item.hint}" if item.hint else "", f"Question: {item.question}" if item.hint else item.question]
    if with_options:
        lines.append("Options: " + " ".join(f"{letter}. {text}" for letter, text in item.options.items()))
    return " ".join(line for line in lines if line)


def says_unknown(reply: str, prompts: PromptSet) -> bool:
    """Whether a reply to "Is the answer can be known?" is a no.

    Official: it begins with "no", so that "not" and "nothing" count. Corrected: its first word is "no".
    """
    if prompts == "corrected":
        return first_word_is_no(reply)
    return reply.lower().startswith("no")


def score(job: ScoringJob, items: Sequence[MmbenchItem], predictions: Predictions) -> dict[str, Any]:
    """Circular accuracy over questions, by category and by the six abilities, and plain accuracy over all rotations.

    unread: share of the answers that neither the rules nor the judge could read, or that were not shown to the judge
    because another rotation of the question is wrong anyway. All of them count as wrong.
    """
    from dreamllm.evaluate.metrics.intervals import mean_share, undefined
    from dreamllm.evaluate.metrics.mmbench_answers import circular, judged_letter, read_answer

    if not all(item.answer for item in items):
        return {"metrics": dict.fromkeys(("accuracy", "accuracy_plain"), undefined(tasks.EXTERNAL)), "groups": {}}
    outputs = [predictions.get(item.id, "output", str) for item in items]
    letters = [read_answer(output, item.options) for item, output in zip(items, outputs, strict=True)]
    if chat := job.chat:
        lost = {
            item.question_id
            for item, letter in zip(items, letters, strict=True)
            if letter is not None and letter != item.answer
        }
        asked = [place for place, item in enumerate(items) if letters[place] is None and item.question_id not in lost]
        with ThreadPoolExecutor(chat.settings.parallel) as threads:
            judged = threads.map(lambda place: judged_letter(chat, items[place], outputs[place]), asked)
            for place, letter in zip(asked, judged, strict=True):
                letters[place] = letter
    right = circular(items, letters)
    rotations: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        rotations.setdefault(item.question_id, []).append(place)
    questions = list(rotations)

    def measure(chosen: Sequence[int]) -> Metrics:
        places = [place for number in chosen for place in rotations[questions[number]]]
        return {
            "accuracy": mean_share([right[questions[number]] for number in chosen]),
            "accuracy_plain": mean_share([letters[place] == items[place].answer for place in places]),
            "unread": mean_share([letters[place] is None for place in places]),
        }

    return by_group(measure, [items[places[0]] for places in rotations.values()])


def submission(items: Sequence[MmbenchItem], predictions: Predictions, out: Path, folder: Path) -> None:
    """The workbook that MMBench's server takes."""
    write_xlsx(out, submission_rows(items, predictions))


def submission_rows(items: Sequence[MmbenchItem], predictions: Predictions) -> list[list[Any]]:
    """Its rows, a heading first: columns index, question, A to D (E), prediction."""
    letters = sorted({letter for item in items for letter in item.options} | set("ABCD"))
    rows: list[list[Any]] = [["index", "question", *letters, "prediction"]]
    for item in items:
        options = [item.options.get(letter) for letter in letters]
        rows.append([int(item.id), item.question, *options, predictions.get(item.id, "output", str)])
    return rows


def write_xlsx(path: Path, rows: list[list[Any]]) -> None:
    """A workbook of one sheet; text that begins with "=" stays text, characters that XML cannot hold are left out."""
    from openpyxl import Workbook
    from openpyxl.cell import WriteOnlyCell

    book = Workbook(write_only=True)
    sheet = book.create_sheet("Sheet1")
    for row in rows:
        cells = []
        for value in row:
            cell = WriteOnlyCell(sheet, NOT_IN_XML.sub("", value) if isinstance(value, str) else value)
            if isinstance(value, str):
                cell.data_type = "s"
            cells.append(cell)
        sheet.append(cells)
    with new_file(path) as file:
        book.save(file)
