"""VQA: short answers to questions about images, in VQAv2's file format; with worked examples if `shots` says so.

vqa_SPLIT_questions.json      {"questions": [{"question_id", "image_id", "question"}]}
vqa_SPLIT_annotations.json    {"annotations": [{"question_id", "answers": [{"answer"}], "question_type"}]},
                              or {"external": server} when a server alone has the answers
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamllm.atomic import new_file
from dreamllm.config.benchmarks import BenchmarkUse
from dreamllm.evaluate import few_shot, tasks
from dreamllm.evaluate.answering import answer
from dreamllm.evaluate.files import BenchmarkProblem, field, keyed, pictures_of, read_json
from dreamllm.evaluate.groups import Metrics, SceneRecord, by_group, scenes_of
from dreamllm.evaluate.job import PredictionJob, ScoringJob
from dreamllm.evaluate.predictions import Predictions
from dreamllm.evaluate.prompts import PromptSet, Wording, first_word_is_no
from dreamllm.evaluate.tasks import Task

NOT_ASKED = "vqa_test_not_asked.json"  # ids of questions that the server wants in a submission besides those asked
UNANSWERABLE = "unanswerable"  # VizWiz's own word
_QUESTION = "Based on the image, please answer the question."
_ONE_WORD = "Please provide an accurate answer within one word."

TASK = Task(
    files=("vqa_{split}_questions.json", "vqa_{split}_annotations.json"),
    keys=("shots", "shots_from", "shots_by", "picture", "wording"),
    submission="json",
    wording={
        "": Wording(system=_QUESTION, instruction=_ONE_WORD, answer="The short answer (one word) is:"),
        "okvqa": Wording(
            instruction="Please provide an accurate and brief answer within one word.",
            answer="The short answer (one word) is:",
        ),
        "textvqa": Wording(system=_QUESTION, instruction=_ONE_WORD, answer="The answer is:"),
        "vizwiz": Wording(
            system=_QUESTION, instruction=_ONE_WORD, answer="The answer is:", first="Is the answer can be known?"
        ),
    },
)


@dataclass(frozen=True)
class VqaItem:
    """A question about an image, with the answers of its annotators; none where a server has them."""

    id: str
    picture: str
    question: str
    answers: tuple[str, ...]
    question_type: str
    scene: SceneRecord | None

    @property
    def groups(self) -> list[str]:
        """Groups under which the item is reported."""
        of_type = [f"type/{self.question_type}"] if self.question_type else []
        return of_type + (self.scene.groups if self.scene else [])


def check(use: BenchmarkUse) -> list[str]:
    """What is wrong with the section of a benchmark of this task, a line each."""
    problems = []
    if len(set(use.shots)) < len(use.shots):
        problems.append("shots: a number stands there twice")
    if use.shots and bool(use.source) != bool(use.shots_from):
        problems.append("shots_from: questions and examples are both of public sets, or both of the world")
    if use.shots_from and not use.shots:
        problems.append("shots_from: without examples before the questions it means nothing")
    return problems


def read(folder: Path, split: str) -> list[list[VqaItem]]:
    """Questions with their annotations, in the order of the questions.

    A question may have any number of answers from one on: OK-VQA, VizWiz and TextVQA files differ.
    """
    questions_path, annotations_path = tasks.files("vqa", folder, split)
    shown, scenes = pictures_of(folder, split), scenes_of(folder, split)
    annotations = []
    answers_file = read_json(annotations_path)
    external = "external" in answers_file
    of_file = [] if external else field(answers_file, "annotations", list, annotations_path, "")
    for number, annotation in enumerate(of_file):
        place = f"annotations[{number}]"
        id_ = str(field(annotation, "question_id", (int, str), annotations_path, place))
        answers = field(annotation, "answers", list, annotations_path, f"question {id_}")
        if not answers:
            raise BenchmarkProblem(annotations_path, f"question {id_}", "has an empty list of answers")
        texts = tuple(field(one, "answer", str, annotations_path, f"question {id_}") for one in answers)
        annotations.append((id_, (texts, str(annotation.get("question_type", "")))))
    answered = keyed(annotations, annotations_path, "question")
    items = []
    for number, question in enumerate(field(read_json(questions_path), "questions", list, questions_path, "")):
        place = f"questions[{number}]"
        id_ = str(field(question, "question_id", (int, str), questions_path, place))
        if id_ not in answered and not external:
            raise BenchmarkProblem(questions_path, f"question {id_}", f"has no annotation in {annotations_path}")
        image_id = field(question, "image_id", int, questions_path, place)
        name = shown.name_of(image_id, questions_path, place)
        text = field(question, "question", str, questions_path, place)
        answers, kind = answered.get(id_, ((), ""))
        items.append((id_, VqaItem(id_, name, text, answers, kind, scenes.of(image_id, name, id_))))
    asked = keyed(items, questions_path, "question")
    if surplus := next((id_ for id_ in answered if id_ not in asked), None):
        raise BenchmarkProblem(annotations_path, f"question {surplus}", f"is not asked in {questions_path}")
    return [list(asked.values())]


def predict(job: PredictionJob, items: Sequence[VqaItem], header: dict[str, Any]) -> None:
    """Write an answer to each question, with each number of worked examples.

    Where the wording asks first whether a question can be answered (VizWiz), a no gives "unanswerable".
    Raises BenchmarkProblem when there are too few examples, PromptProblem or LayoutProblem when so many images do not
    fit the model's context.
    """
    model, processor = job.load()

    def unknown(reply: str) -> bool:
        return says_unknown(reply, job.prompts)

    def answered(name: str, examples: few_shot.Examples | None = None) -> list[dict[str, Any]]:
        return answer(job, model, processor, items, examples, says_unknown=unknown, if_unknown=UNANSWERABLE, name=name)

    if not job.use.shots:
        return job.write(header, answered("answers"))
    records = []
    for shots, examples in few_shot.examples_by_shots(job, items):
        records += [one | {"id": few_shot.item_id(shots, one["id"])} for one in answered(f"shots_{shots}", examples)]
    job.write(header | {"shots": job.use.shots}, records)


def says_unknown(reply: str, prompts: PromptSet) -> bool:
    """Whether a reply to "Is the answer can be known?" is a no.

    Official: "no" anywhere in it, so that "known" and "not" count. Corrected: its first word is "no".
    """
    return first_word_is_no(reply) if prompts == "corrected" else "no" in reply.lower()


def score(job: ScoringJob, items: Sequence[VqaItem], predictions: Predictions) -> dict[str, Any]:
    """VQA accuracy by the challenge's rule and by EvalAI's, by type of question and by kind of scene.

    With worked examples: in a group shots/N for each number of them, since a mean over these means nothing.
    """
    from dreamllm.evaluate.metrics.intervals import mean_share, undefined
    from dreamllm.evaluate.metrics.vqa_accuracy import accuracy, clip

    def scored(items: Sequence[VqaItem]) -> dict[str, Any]:
        outputs = [clip(predictions.get(item.id, "output", str)) for item in items]
        if not all(item.answers for item in items):
            return {"metrics": dict.fromkeys(("accuracy", "accuracy_evalai"), undefined(tasks.EXTERNAL)), "groups": {}}
        pairs = list(zip(outputs, items, strict=True))
        official = [accuracy(output, item.answers, "official") for output, item in pairs]
        evalai = [accuracy(output, item.answers, "evalai") for output, item in pairs]

        def measure(chosen: Sequence[int]) -> Metrics:
            return {
                "accuracy": mean_share([official[i] for i in chosen]),
                "accuracy_evalai": mean_share([evalai[i] for i in chosen]),
            }

        return by_group(measure, items) | {"items": {"accuracy": official}}

    if "shots" not in job.header:
        return scored(items)
    numbers = job.header["shots"]
    size = len(items) // len(numbers)  # `items` are those with the first number of examples, then those with the next
    parts = [items[place * size : (place + 1) * size] for place in range(len(numbers))]
    groups = {f"shots/{number}": scored(part)["metrics"] for number, part in zip(numbers, parts, strict=True)}
    return {"metrics": {}, "groups": groups}


def submission(items: Sequence[VqaItem], predictions: Predictions, out: Path, folder: Path) -> None:
    """EvalAI's JSON: [{"question_id", "answer"}], of VizWiz [{"image", "answer"}].

    VQAv2's server wants an answer to every question of test2015, for its test-dev phase too: those that were not asked
    have the answer "".
    """
    from dreamllm.evaluate.metrics.vqa_accuracy import clip

    records = []
    for item in items:
        own = {"image": item.picture} if item.picture.startswith("VizWiz") else {"question_id": int(item.id)}
        records.append(own | {"answer": clip(predictions.get(item.id, "output", str))})
    if (not_asked := folder / NOT_ASKED).exists():
        records += [{"question_id": id_, "answer": ""} for id_ in read_json(not_asked)["question_ids"]]
    with new_file(out) as file:
        file.write_text(json.dumps(records) + "\n", encoding="utf-8")
