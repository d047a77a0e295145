"""MMBench, MM-Vet and the files for their servers: worked examples, properties, and invalid answers of the judge."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import openpyxl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import loopback
from dreamllm.config.benchmarks import AnswerJudge
from dreamllm.evaluate import placing
from dreamllm.evaluate.job import ScoringJob
from dreamllm.evaluate.metrics import mm_vet_judge, mmbench_answers
from dreamllm.evaluate.predictions import Predictions
from dreamllm.evaluate.tasks import mm_vet, mmbench, vqa
from dreamllm.evaluate.tasks.vqa import VqaItem
from dreamllm.sources.services import http
from dreamllm.sources.services.chat import Chat
from dreamllm.sources.services.http import FetchProblem

OPTIONS = {"A": "teddy bear", "B": "rabbit", "C": "cat"}


def rotations(question: str, options: list[str], right: int, category: str = "c") -> list[mmbench.MmbenchItem]:
    items = []
    for by in range(len(options)):
        moved, place = mmbench.rotated(options, right, by)
        letters = dict(zip(mmbench.LETTERS, moved, strict=False))
        id_ = str(int(question) + by * mmbench.ROTATION)
        answer = mmbench.LETTERS[place]
        items.append(
            mmbench.MmbenchItem(
                id_, question, f"{question}.jpg", "Which?", "", letters, answer, category, "logic_reasoning"
            )
        )
    return items


def answered(items: list[Any], outputs: list[str], **header: Any) -> Predictions:
    records = {item.id: {"id": item.id, "output": output} for item, output in zip(items, outputs, strict=True)}
    return Predictions(Path("answers.jsonl"), {"split": "test", **header}, records, {})


def score(task: ModuleType, items: list[Any], predictions: Predictions, chat: Any, judgings: int = 1) -> dict[str, Any]:
    return task.score(ScoringJob(predictions.header, Path(), Path(), chat, judgings), items, predictions)


# ---- MMBench -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("C", "C"),
        ("(B).", "B"),
        ("The answer is A", "A"),
        ("A teddy bear is what one can see", "A"),  # by its text: the letter is far from the end
        ("It is a CAT.", "C"),
        ("a rabbit and a cat", None),
        ("A or B", None),
        ("Spider", None),
        ("Z", "Z"),
        ("I can't process this file.", "Z"),
        ("cat " + "is what somebody would say who looks at it " * 3, None),  # longer than twice all options
        ("", None),
        ("选项 C", "C"),
        ("Это кошка", None),
        # VLMEvalKit's third rule, of 2026, is not applied: it would read the three as B, B and A
        ("The answer is B, since one can see its two long ears", None),
        ("The answer is blue.", None),
        ("The answer is a dog.", None),
    ],
)
def test_free_answers_are_read_by_two_rules(answer: str, letter: str | None) -> None:
    assert mmbench_answers.read_answer(answer, OPTIONS) == letter


@given(st.integers(2, 5).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1))))
def test_rotations_show_every_option_at_every_place_and_keep_the_right_one(case: tuple[int, int]) -> None:
    options, right = [f"option {n}" for n in range(case[0])], case[1]
    seen = [mmbench.rotated(options, right, by) for by in range(len(options))]
    assert all(moved[place] == options[right] for moved, place in seen)
    assert all({moved[place] for moved, _ in seen} == {*options} for place in range(len(options)))
    assert sorted(place for _, place in seen) == list(range(len(options)))
    assert mmbench.rotated(options, right, len(options)) == (options, right)


@given(st.lists(st.lists(st.booleans(), min_size=2, max_size=4), min_size=1, max_size=6), st.randoms())
def test_circular_evaluation_wants_every_rotation_and_no_order(hits: list[list[bool]], rng) -> None:
    items, letters = [], []
    for number, of_question in enumerate(hits):
        of_items = rotations(str(number), [f"option {n}" for n in range(len(of_question))], 0)
        items += of_items
        letters += [item.answer if hit else "Z" for item, hit in zip(of_items, of_question, strict=True)]
    right = mmbench_answers.circular(items, letters)
    assert right == {str(number): all(of_question) for number, of_question in enumerate(hits)}
    order = rng.sample(range(len(items)), len(items))
    assert mmbench_answers.circular([items[i] for i in order], [letters[i] for i in order]) == right
    plain = sum(letter == item.answer for item, letter in zip(items, letters, strict=True)) / len(items)
    assert all(right.values()) == (plain == 1)


@given(st.sampled_from("ABCD"), st.integers(2, 4))
def test_a_model_that_always_says_one_letter_gets_nothing(letter: str, options: int) -> None:
    items = rotations("1", [f"option {n}" for n in range(options)], 0)
    assert mmbench_answers.circular(items, [letter] * len(items)) == {"1": False}


def test_mmbench_by_a_worked_example() -> None:
    first, second = rotations("1", ["red", "green"], 0, "colour"), rotations("2", ["one", "two", "three"], 1, "count")
    outputs = ["A", "It is red", "B", "A", "I do not know"]
    result = score(mmbench, [*first, *second], answered([*first, *second], outputs), None)
    values = {name: (metric["value"], metric["n"]) for name, metric in result["metrics"].items()}
    assert values == {"accuracy": (0.5, 2), "accuracy_plain": (0.8, 5), "unread": (0.2, 5)}
    assert result["groups"]["colour"]["accuracy"]["value"] == 1 and result["groups"]["count"]["accuracy"]["n"] == 1
    assert result["groups"]["LR"]["accuracy"]["n"] == 2


def test_without_public_answers_the_cell_is_external() -> None:
    items = [mmbench.MmbenchItem("1", "1", "1.jpg", "Which?", "", OPTIONS, None, "c", "")]
    result = score(mmbench, items, answered(items, ["A"]), None)
    assert result["metrics"]["accuracy"]["value"] is None
    assert result["metrics"]["accuracy"]["reason"].startswith("external")


# ---- judges --------------------------------------------------------------------------------------------------------


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """judge(answer) -> Chat of a service that answers so; .asked holds the requests."""
    monkeypatch.setattr(http, "BACKOFF", 0.01)
    with loopback.serve() as server:

        def start(answer: Callable[[str, dict], Any]) -> Chat:
            def respond(body: dict, headers: dict) -> tuple[int, dict, bytes]:
                text = answer(body["messages"][0]["content"], body)
                said = {"model": "judge-0613", "choices": [{"message": {"content": text}}], "usage": {}}
                return 200, {"Content-Type": "application/json"}, json.dumps(said).encode()

            server.answers["/v1/chat/completions"] = respond
            return Chat(AnswerJudge(endpoint=f"{server.url}/v1", model="judge", parallel=2), tmp_path / "kept", "")

        yield SimpleNamespace(start=start, server=server)


def test_a_judge_reads_what_the_rules_cannot_and_only_that(judge) -> None:
    first, second = rotations("1", ["red", "green"], 0), rotations("2", ["one", "two"], 1)
    prompts = []
    chat = judge.start(lambda prompt, body: prompts.append(prompt) or "A")
    outputs = ["scarlet", "red", "one", "deux"]
    result = score(mmbench, [*first, *second], answered([*first, *second], outputs), chat)
    assert result["metrics"]["accuracy"]["value"] == 0.5
    assert len(prompts) == 1, "question 2 is wrong already by its first rotation"
    assert prompts[0].endswith("Question: Which?\nOptions: A. red B. green\nAnswer: scarlet\nYour output: ")


def test_a_judge_that_answers_prose_makes_no_answer_right(judge) -> None:
    items = rotations("1", ["red", "green"], 0)
    asked = []
    chat = judge.start(lambda prompt, body: asked.append(prompt) or "Well, that depends on what one calls a colour.")
    result = score(mmbench, items, answered(items, ["A", "scarlet"]), chat)
    assert result["metrics"]["accuracy"]["value"] == 0 and result["metrics"]["unread"]["value"] == 0.5
    assert len(asked) == mmbench_answers.TRIES


def test_a_judge_that_fails_is_an_error_and_no_score(judge) -> None:
    items = rotations("1", ["red", "green"], 0)
    chat = judge.start(lambda prompt, body: "A")
    judge.server.answers["/v1/chat/completions"] = lambda body, headers: (403, {}, b"no")
    with pytest.raises(FetchProblem, match="answers 403"):
        score(mmbench, items, answered(items, ["A", "scarlet"]), chat)


NEWER = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."


def picky(judge, refusal: Callable[[dict], str], answer: Callable[[dict], str]) -> tuple[Chat, list[dict]]:
    """A judge that refuses a request for a reason, and the requests that it got."""
    chat, got = judge.start(lambda prompt, body: ""), []

    def respond(body: dict, headers: dict) -> tuple[int, dict, bytes]:
        got.append({key: value for key, value in body.items() if key not in ("model", "messages")})
        if why := refusal(body):
            return 400, {}, json.dumps({"error": {"message": why}}).encode()
        text = answer(body)
        choice = {"message": {"content": text}, "finish_reason": "stop" if text else "length"}
        return 200, {}, json.dumps({"model": "newer", "choices": [choice]}).encode()

    judge.server.answers["/v1/chat/completions"] = respond
    return chat, got


def newer_rules(body: dict, named: bool) -> str:
    if "max_tokens" in body:
        return NEWER if named else "unsupported_parameter"
    return ("temperature does not support 0" if named else "unsupported_value") if "temperature" in body else ""


@pytest.mark.parametrize("named", [True, False])
def test_a_service_is_asked_by_what_it_accepts_which_is_learnt_once(judge, named: bool) -> None:
    chat, got = picky(judge, lambda body: newer_rules(body, named), lambda body: "1.0")
    assert mm_vet_judge.judge(chat, VET[0], "x = -1", 0) == 1.0
    assert got == [
        {"temperature": 0, "max_tokens": 3},
        {"temperature": 0, "max_completion_tokens": 3},
        {"max_completion_tokens": 3},
    ]
    assert mm_vet_judge.judge(chat, VET[1], "somebody", 0) == 1.0
    assert got[3:] == [{"max_completion_tokens": 3}], "no refusal is asked for twice"
    assert chat.sent == {'{"max_completion_tokens": 3}'}
    again = Chat(chat.settings, chat.cache, "")
    assert mm_vet_judge.judge(again, VET[0], "x = -1", 0) == 1.0 and len(got) == 4, "from the cache"
    assert again.sent == chat.sent


def test_a_model_that_spends_its_tokens_on_reasoning_gets_no_limit(judge) -> None:
    chat, got = picky(
        judge,
        lambda body: newer_rules(body, True),
        lambda body: "" if "max_completion_tokens" in body else "0.5",
    )
    assert mm_vet_judge.judge(chat, VET[0], "x = -1", 0) == 0.5
    assert got[-1] == {} and chat.sent == {"{}"}


def test_a_request_that_is_refused_whatever_its_options_is_an_error_and_teaches_nothing(judge) -> None:
    chat, got = picky(judge, lambda body: f"your prompt is flagged, {len(body)}", lambda body: "")
    with pytest.raises(FetchProblem, match="answers 400: .*your prompt is flagged, 4"):
        mm_vet_judge.judge(chat, VET[0], "x = -1", 0)
    assert chat.refused == [] and len(got) > 1


# ---- MM-Vet --------------------------------------------------------------------------------------------------------

VET = [
    mm_vet.MmVetItem("v1_0", "v1_0.png", "What is x?", "-1<AND>-5", ("ocr", "math")),
    mm_vet.MmVetItem("v1_1", "v1_1.png", "Who?", "a<OR>b", ("rec",)),
]


def test_the_judges_prompt_is_the_official_table() -> None:
    prompt = mm_vet_judge.judge_prompt(VET[0], "x = -1")
    assert prompt.startswith("Compare the ground truth and prediction from AI models, to give a correctness score")
    assert "\n\nQuestion | Ground truth | Prediction | Correctness\n--- | --- | --- | ---\nWhat is x in" in prompt
    assert prompt.endswith("physical characteristics. | 1.0\n\nWhat is x? | -1 <AND> -5 | x = -1 | ")


@pytest.mark.parametrize(
    ("text", "score"),
    [("0.5", 0.5), ("1.0 ", 1.0), ("0.3 because", 0.3), ("1.1", None), ("-0.1", None), ("nan", None), ("", None)]
    + [("The score is 0.5", None), ("０．５", None)],
)
def test_only_a_number_from_0_to_1_is_a_score(text: str, score: float | None) -> None:
    assert mm_vet_judge.read_score(text) == score


def test_mm_vet_by_a_worked_example(judge) -> None:
    seen: dict[str, int] = {}

    def answer(prompt: str, body: dict) -> str:
        assert body["max_tokens"] == 3 and body["temperature"] == 0
        seen[prompt] = seen.get(prompt, 0) + 1
        if "Who?" in prompt:
            return "0.2"
        return "1.0" if seen[prompt] == 1 else "0.0"  # judges change their minds

    chat = judge.start(answer)
    predictions = answered(VET, ["x = -1", "c"])
    result = score(mm_vet, VET, predictions, chat, 2)
    total = result["metrics"]["total"]
    assert total["value"] == pytest.approx(0.35) and total["n"] == 2
    assert sorted(total["judgings"]) == pytest.approx([0.1, 0.6]) and total["std"] == pytest.approx(0.25)
    values = {name: metric["value"] for name, metric in result["metrics"].items() if metric["n"]}
    assert values == pytest.approx({"total": 0.35, "math": 0.5, "ocr": 0.5, "recognition": 0.2})
    assert result["metrics"]["spatial"]["reason"] == "no question wants this capability"
    assert score(mm_vet, VET, predictions, chat, 2) == result, "what is kept is not asked again"
    assert sum(seen.values()) == 4 and chat.models == {"judge-0613"}


def test_a_judge_is_asked_again_as_in_the_official_evaluator(judge) -> None:
    asked = []

    def answer(prompt: str, body: dict) -> str:
        asked.append((prompt.endswith(mm_vet_judge.AGAIN), body["temperature"]))
        return "0.7" if len(asked) == 4 else "Sure!"

    assert mm_vet_judge.judge(judge.start(answer), VET[0], "x", 0) == 0.7
    assert asked == [(False, 0), (True, 0), (True, 0.5), (True, 1.0)]


def test_without_numbers_or_without_a_judge_the_cells_are_empty_and_say_why(judge) -> None:
    predictions = answered(VET, ["x", ""])
    result = score(mm_vet, VET, predictions, judge.start(lambda prompt, body: "good answer"), 1)
    assert result["metrics"]["total"]["value"] is None
    assert "no number in 2 of 2 judgings, first for v1_0" in result["metrics"]["ocr"]["reason"]
    alone = score(mm_vet, VET, predictions, None, 5)
    assert {*alone["metrics"]} == {"total", *mm_vet.CAPABILITIES.values()}
    assert all(metric["reason"] == mm_vet.NO_JUDGE for metric in alone["metrics"].values())


# ---- what servers are sent -----------------------------------------------------------------------------------------


def test_submissions_in_the_servers_forms(tmp_path: Path) -> None:
    item = VqaItem("7", "COCO_test2015_000000000001.jpg", "What?", (), "", None)
    blind = VqaItem("0", "VizWiz_test_00000000.jpg", "What?", (), "", None)
    for question, output, wanted in (
        (item, "Red.", {"question_id": 7, "answer": "red"}),
        (blind, "狗", {"image": blind.picture, "answer": "狗"}),
    ):
        vqa.submission([question], answered([question], [output]), tmp_path / "out.json", tmp_path)
        assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == [wanted]
    items = rotations("3", ["red", "green"], 0)
    rows = mmbench.submission_rows(items, answered(items, "AB"))
    assert rows[0] == ["index", "question", "A", "B", "C", "D", "prediction"]
    assert rows[2] == [1000003, "Which?", "green", "red", None, None, "B"]


def test_a_submission_of_test_dev_has_all_questions_of_test2015(tmp_path: Path) -> None:
    """Those that were not asked with an empty answer; placed from the archive that holds both splits."""

    def questions(split: str, ids: list[int]) -> bytes:
        records = [{"question_id": id_, "image_id": id_ // 1000, "question": "What?"} for id_ in ids]
        return json.dumps({"data_subtype": split, "questions": records}).encode()

    (tmp_path / "raw").mkdir()
    with zipfile.ZipFile(tmp_path / "raw/q.zip", "w") as archive:
        archive.writestr("v2_OpenEnded_mscoco_test2015_questions.json", questions("test2015", [1000, 1001, 2000]))
        archive.writestr("v2_OpenEnded_mscoco_test-dev2015_questions.json", questions("test-dev2015", [1001]))
    assert placing.WRITERS["vqav2"](tmp_path / "raw", tmp_path).keys() == {"COCO_test2015_000000000001.jpg"}
    item = VqaItem("1001", "COCO_test2015_000000000001.jpg", "What?", (), "", None)
    vqa.submission([item], answered([item], ["Red."]), tmp_path / "out.json", tmp_path)
    sent = {record["question_id"]: record["answer"] for record in json.loads((tmp_path / "out.json").read_text())}
    assert sent == {1000: "", 1001: "red", 2000: ""}


def test_a_workbook_keeps_formulas_as_text_and_drops_control_characters(tmp_path: Path) -> None:
    mmbench.write_xlsx(
        tmp_path / "m.xlsx",
        [["index", "prediction"], [1, "=1+1"], [2, "a\x07b\ufffe\uffff\ud83d"], [3, "猫\U0001f600"]],
    )
    sheet = openpyxl.load_workbook(tmp_path / "m.xlsx").active
    assert [row[1].value for row in sheet.iter_rows()] == ["prediction", "=1+1", "ab", "猫\U0001f600"]
    assert sheet["B2"].data_type == "s"
