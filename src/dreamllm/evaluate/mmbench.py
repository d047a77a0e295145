"""MMBench (arXiv 2307.06281): a choice question counts as right only if it is answered rightly in every rotation of its
options. Free answers are read by the rules of VLMEvalKit, and where these cannot read them by a language model.

The file is MMBench's own table: index, question, hint, A to E, answer, category, l2-category. Row `index` + k *
1,000,000 is the k-th rotation of row `index`. The test split has no answers.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dreamllm.evaluate.files import BenchmarkProblem, Pictures, keyed

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
UNREADABLE = "Z"  # the letter of an answer that is none of the options
REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
PUNCTUATION = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
NEAR_THE_END = 4  # words
JUDGE_PROMPT = (  # VLMEvalKit's, word for word
    "You are an AI assistant who will help me to match an answer with several options of a single-choice "
    "question. You are provided with a question, several options, and an answer, and you need to find which "
    "option is most similar to the answer. If the meaning of all options are significantly different from the "
    "answer, output Z. Your should output a single uppercase character in A, B, C, D (if they are valid "
    "options), and Z. \n"
    "Example 1: \n"
    "Question: What is the main object in image?\n"
    "Options: A. teddy bear B. rabbit C. cat D. dog\n"
    "Answer: a cute teddy bear\n"
    "Your output: A\n"
    "Example 2: \n"
    "Question: What is the main object in image?\n"
    "Options: A. teddy bear B. rabbit C. cat D. dog\n"
    "Answer: Spider\n"
    "Your output: Z\n"
    "Example 3: \n"
    "Question: {question}?\n"
    "Options: {options}\n"
    "Answer: {answer}\n"
    "Your output: "
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


def rotated(options: Sequence[str], answer: int, by: int) -> tuple[list[str], int]:
    """Options moved up by `by` places, the first ones to the end, and where the right one is then."""
    n = len(options)
    return [options[(place + by) % n] for place in range(n)], (answer - by) % n


def read_mmbench(path: Path, shown: Pictures) -> list[MmbenchItem]:
    """The rotations of each question side by side, questions in the order of the file.

    Read as text: pandas, which the official code uses, takes an option that reads "None" or "NA" for a missing one.
    Raises BenchmarkProblem for a doubled index, an answer that is no option, and a question without all its rotations.
    """
    items = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
    except FileNotFoundError:
        raise BenchmarkProblem(path, "", "no such file") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise BenchmarkProblem(path, "", f"is no table ({error})") from None
    for number, row in enumerate(rows, 2):
        place = f"row {number}"
        if missing := [name for name in ("index", "question", "A", "B", "category") if not row.get(name)]:
            raise BenchmarkProblem(path, place, f"has no {missing[0]}")
        if not row["index"].isdecimal():
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
    return [item for rotations in by_question.values() for item in rotations]


def first_questions(items: Sequence[MmbenchItem], limit: int | None) -> list[MmbenchItem]:
    """All rotations of the first questions."""
    kept = list(dict.fromkeys(item.question_id for item in items))[:limit]
    return [item for item in items if item.question_id in set(kept)]


def read_answer(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter that an answer means, Z for a refusal, None where the rules cannot tell.

    First rule: exactly one letter stands among the words, and among the last four of them. Second rule: exactly one
    option's text is part of the answer, which is not more than twice as long as all options.
    """
    if any(refusal in answer for refusal in REFUSALS):
        return UNREADABLE
    words = answer.translate(PUNCTUATION).split()
    named = [letter for letter in options if letter in words]
    if len(named) == 1 and words.index(named[0]) >= len(words) - NEAR_THE_END:
        return named[0]
    if not named and UNREADABLE in words:
        return UNREADABLE
    if len(answer) > 2 * sum(len(text) for text in options.values()):
        return None
    told = [letter for letter, text in options.items() if text.lower() in answer.lower()]
    return told[0] if len(told) == 1 else None


def judge_prompt(item: MmbenchItem, answer: str) -> str:
    """What a language model is asked about an answer that the rules cannot read."""
    options = " ".join(f"{letter}. {text}" for letter, text in item.options.items())
    return JUDGE_PROMPT.format(question=item.question.rstrip("?"), options=options, answer=answer)


def circular(items: Sequence[MmbenchItem], letters: Sequence[str | None]) -> dict[str, bool]:
    """Whether each question is right: every one of its rotations has the right letter.

    letters: what was read in the answer to each item. A question whose answers the server has does not belong here.
    """
    right: dict[str, bool] = {}
    for item, letter in zip(items, letters, strict=True):
        right[item.question_id] = right.get(item.question_id, True) and letter == item.answer
    return right
