"""Questions about images of public sets: prompts with and without the authors' mistakes, two passes, examples."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
import yaml
from PIL import Image

import formats
import tiny
from dreamllm.config.benchmarks import BenchmarkUse
from dreamllm.config.experiment import Experiment
from dreamllm.config.reading import ConfigProblem, load
from dreamllm.data.document import Document, Text
from dreamllm.evaluate import (
    few_shot,
    predict,
    predictions,
    prompts,
    score,
    tasks,
)
from dreamllm.evaluate.files import BenchmarkProblem, pictures_of
from dreamllm.evaluate.job import PredictionJob
from dreamllm.evaluate.tasks import mmbench as exams
from dreamllm.evaluate.tasks import vqa
from dreamllm.evaluate.tasks.mmbench import MmbenchItem
from dreamllm.evaluate.tasks.vqa import VqaItem
from dreamllm.model import generate
from dreamllm.train import checkpoint

QUESTION = "What is it?"


def words_of(document: Document) -> list[str]:
    return [part.text if isinstance(part, Text) else "<image>" for part in document.parts]


def vqa_item(id_: str, answers: tuple[str, ...] = ("cat",) * 10, picture: str = "") -> VqaItem:
    return VqaItem(id_, picture or f"{id_}.jpg", f"{QUESTION} {id_}", answers, "", None)


def exam(hint: str = "") -> MmbenchItem:
    return MmbenchItem("1", "1", "1.jpg", "Which?", hint, {"A": "cat", "B": "dog"}, "A", "c", "")


# ---- prompts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "source", "beginning", "end"),
    [
        ("captions", "coco_karpathy", "Based on the image, give the image caption briefly.", "The image depicts"),
        (
            "captions",
            "image_paragraphs",
            "Based on the image, please describe the image in detail.",
            "The image depicts",
        ),
        ("captions", "nocaps", "", ""),
        ("vqa", "vqav2_test", "Based on the image, please answer the question.", "The short answer (one word) is:"),
        ("vqa", "okvqa", "", "The short answer (one word) is:"),
        ("vqa", "textvqa", "Based on the image, please answer the question.", "The answer is:"),
        ("vqa", "vizwiz_test", "Based on the image, please answer the question.", "The answer is:"),
        (
            "vqa",
            "a_set_of_ones_own",
            "Based on the image, please answer the question.",
            "The short answer (one word) is:",
        ),
    ],
)
def test_sources_have_their_own_words_where_the_official_code_has_them(task, source, beginning, end) -> None:
    wording = tasks.about(task).wording_of(source, "official")
    assert (wording.system, wording.answer) == (beginning, end)
    assert tasks.about(task).wording_of(source, "emoji") == prompts.Wording()
    assert bool(wording.first) == source.startswith("vizwiz")


def test_the_corrected_prompts_put_a_space_before_the_instruction() -> None:
    wording = vqa.TASK.wording_of("okvqa", "official")
    for variant, glue in (("official", ""), ("corrected", " ")):
        words = words_of(prompts.about_picture("1", tiny.picture(), QUESTION, wording, variant))
        assert words[1] == f"{QUESTION}{glue}Please provide an accurate and brief answer within one word."


@pytest.mark.parametrize(
    ("reply", "vizwiz", "mmbench", "corrected"),
    [
        ("No", True, True, True),
        ("no, it cannot.", True, True, True),
        ("Yes, the answer can be known.", True, False, False),  # "known" holds "no"
        ("Not sure", True, True, False),
        ("Nothing special", True, True, False),
        ("Yes", False, False, False),
        ("", False, False, False),
    ],
)
def test_a_no_is_looked_for_as_in_the_official_code_or_as_a_word(reply, vizwiz, mmbench, corrected) -> None:
    assert vqa.says_unknown(reply, "official") == vizwiz
    assert exams.says_unknown(reply, "official") == mmbench
    for task in (vqa, exams):
        assert task.says_unknown(reply, "corrected") == corrected


def test_the_exam_has_the_slips_of_the_official_code_or_none() -> None:
    official = exams.question(exam(), "official", with_options=True)
    assert official == "Hint:nanQuestion:Which?Options: (0). cat (0). dog "
    assert exams.question(exam(), "official", with_options=False) == "Hint:nanQuestion:Which?"
    assert exams.question(exam(), "corrected", with_options=True) == "Which? Options: A. cat B. dog"
    assert exams.question(exam("Look."), "corrected", with_options=False) == "Hint: Look. Question: Which?"


def test_worked_examples_are_turns_worded_alike() -> None:
    wording = vqa.TASK.wording_of("okvqa", "corrected")
    before = [(tiny.picture(1), "Who?", "a dog")]
    document = prompts.about_picture("1", tiny.picture(), QUESTION, wording, "corrected", before)
    assert [part.role for part in document.parts] == ["user", "user", "assistant"] * 2
    assert words_of(document)[1:3] == [f"Who? {wording.instruction}", "The short answer (one word) is: a dog"]
    bare = prompts.about_picture("1", tiny.picture(), QUESTION, prompts.Wording(), "emoji", before)
    assert words_of(bare) == ["<image>", "Who?", "a dog", "<image>", QUESTION]


# ---- examples ------------------------------------------------------------------------------------------------------


def test_random_examples_depend_on_the_seed_and_the_question_alone() -> None:
    pool, questions = [vqa_item(f"p{n}") for n in range(20)], [vqa_item(f"q{n}") for n in range(5)]
    chosen = few_shot.random_examples(questions, pool, 4, seed=1)
    assert all(len({item.id for item in row}) == 4 for row in chosen)
    assert few_shot.random_examples(questions[::-1], pool, 4, seed=1) == chosen[::-1]
    assert few_shot.random_examples(questions, pool, 4, seed=2) != chosen
    assert chosen[0] != chosen[1]


def test_the_most_similar_example_is_last() -> None:
    pool = [vqa_item(f"p{n}") for n in range(4)]
    similarity = np.array([[0.1, 0.9, 0.5, 0.5], [0.4, 0.3, 0.2, 0.1]])
    chosen = few_shot.nearest_examples([vqa_item("a"), vqa_item("b")], pool, 3, similarity)
    assert [[item.id for item in row] for row in chosen] == [["p3", "p2", "p1"], ["p2", "p1", "p0"]]


def test_an_example_has_its_most_common_answer() -> None:
    assert few_shot.most_common_answer(vqa_item("1", ("dog", "cat", "cat"))) == "cat"
    assert few_shot.most_common_answer(vqa_item("1", ("dog", "cat"))) == "dog"


def test_too_few_examples_and_examples_without_answers_are_errors(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkProblem, match="4 examples are asked for, there are 1"):
        few_shot.check_pool([vqa_item("1")], 4, tmp_path)
    with pytest.raises(BenchmarkProblem, match="question 2: has no public answer"):
        few_shot.check_pool([vqa_item("1"), vqa_item("2", ())], 2, tmp_path)


# ---- the way of an answer, with a model that says what it is told to ----------------------------------------------


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict]]:
    """Runs `predict` of a benchmark on some items with a model that is never called; returns the records."""
    (tmp_path / "images_test").mkdir()
    for number in range(1, 5):
        Image.new("RGB", (8, 8), (60 * number, 0, 0)).save(tmp_path / f"images_test/{number}.jpg")
    monkeypatch.setattr(PredictionJob, "load", lambda self: (None, None))

    def run(use: BenchmarkUse, items: list, variant: str = "official") -> list[dict]:
        foundations = {"source": "fetch", "md5": "0" * 32 + ".dir", "sha256": "0" * 64}
        evaluation = {"prompts": variant, "text": {"batch_size": 2}}
        experiment = Experiment.model_validate({"name": "x", "foundations": foundations, "evaluation": evaluation})
        module, out = tasks.module(use.task), tmp_path / "out.jsonl"
        one = PredictionJob(
            experiment, use, module.TASK, "sft", tmp_path, [], tmp_path, "test", out, Path(mkdtemp(dir=tmp_path))
        )
        module.predict(one, items, {"model": "sft", "benchmark": use.task, "split": "test"})
        return list(predictions.read(out).records.values())

    return run


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What a model was asked; it answers "No" to questions with a 2 or about an exam's knowledge, else "a cat"."""
    seen: list[list[str]] = []

    def write(model, processor, documents, **options):
        seen.extend(words_of(document) for document in documents)
        return [
            ("No" if "2Is" in words_of(d)[1] else "Yes") if words_of(d)[-1].endswith("known?") else "a cat"
            for d in documents
        ]

    monkeypatch.setattr(generate, "write", write)
    return seen


def test_vizwiz_is_asked_twice_unless_the_answer_cannot_be_known(asked, job) -> None:
    records = job(BenchmarkUse(task="vqa", source="vizwiz"), [vqa_item(str(n)) for n in (1, 2, 3)])
    assert [record["output"] for record in records] == ["a cat", "unanswerable", "a cat"]
    assert [record["first"] for record in records] == ["Yes", "No", "Yes"]
    assert asked[0] == ["<image>", f"{QUESTION} 1Is the answer can be known?"]
    assert len(asked) == 5


def test_mmbench_is_shown_its_options_when_the_answer_cannot_be_known(asked, job) -> None:
    known, unknown = (MmbenchItem(n, n, f"{n}.jpg", n, "", {"A": "x", "B": "y"}, "A", "c", "") for n in "12")
    use = BenchmarkUse(task="mmbench", source="mmbench")
    assert ["Options" in record["prompt"] for record in job(use, [known, unknown])] == [False, True]
    (plain,) = job(use, [known], "emoji")
    assert plain["prompt"] == "<image> 1 Options: A. x B. y" and "first" not in plain


def test_examples_stand_before_each_question_and_in_its_record(asked, job, monkeypatch) -> None:
    use = BenchmarkUse(task="vqa", source="okvqa", shots=[1], shots_from="okvqa_train")

    def examples_by_shots(job: PredictionJob, items: list) -> list:
        return [(1, few_shot.Examples({"1": [vqa_item("4")], "2": [vqa_item("3")]}, job.pictures))]

    monkeypatch.setattr(few_shot, "examples_by_shots", examples_by_shots)
    records = job(use, [vqa_item("1"), vqa_item("2")])
    assert [(record["id"], record["shots"]) for record in records] == [("1-shot-1", ["4"]), ("1-shot-2", ["3"])]
    assert asked[1][1].startswith(f"{QUESTION} 3") and asked[1][2] == "The short answer (one word) is: cat"


# ---- the whole way, with tiny models -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """config.yaml, placed/, train/ (a few questions each), foundations/ and stage/."""
    folder = tmp_path_factory.mktemp("checkout")
    for name, numbers in (("placed", (1, 2, 3)), ("train", (5, 6, 7, 8))):
        shades = {f"{n:012d}.jpg": formats.jpeg(30 * n) for n in numbers}
        formats.archive(folder / name / "images_test.zip", shades)
        asked = [{"question_id": n, "image_id": n, "question": "What?"} for n in numbers]
        notes = [{"question_id": n, "image_id": n, "answers": [{"answer": "cat"}]} for n in numbers]
        (folder / name / "vqa_test_questions.json").write_text(json.dumps({"questions": asked}))
        (folder / name / "vqa_test_annotations.json").write_text(json.dumps({"annotations": notes}))
    experiment = {
        "name": "tiny",
        "foundations": {"source": "fetch", "md5": "0" * 32 + ".dir", "sha256": "0" * 64},
        "model": {"num_dream_queries": 4, "template": "plain"},
        "evaluation": {"text": {"max_new_tokens": 4}, "prompts": "emoji"},
        "benchmarks": {
            "okvqa": {"task": "vqa", "source": "okvqa"},
            "okvqa_few": {
                "task": "vqa",
                "source": "okvqa",
                "shots": [0, 2],
                "shots_from": "okvqa_train",
                "shots_by": "similarity",
            },
            "fewshot": {"task": "vqa", "shots": [1]},
        },
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(experiment))
    foundations = tiny.foundations(folder / "foundations")
    options = {"num_dream_queries": 4, "seed": 0, "vision_feature_layer": -2, "template": "plain"}
    model, _ = checkpoint.build_from_foundations(*(foundations / part for part in ("llm", "clip", "sd")), **options)
    metadata = {"model": options, "foundations": checkpoint.foundation_digests(foundations)}
    checkpoint.save_trained(folder / "stage", {"dream_queries": model.dream_queries}, metadata, "")
    return folder


def predicted(checkout: Path, benchmark: str, out: Path, *more: str) -> predictions.Predictions:
    parser = argparse.ArgumentParser()
    predict.add_arguments(parser)
    flags = f"--config {checkout}/config.yaml --model stage --benchmark {benchmark} --split test --out {out}"
    flags += f" --benchmarks {checkout}/placed --foundations {checkout}/foundations --checkpoints {checkout}/stage"
    predict.main(parser.parse_args([*flags.split(), *more]))
    return predictions.read(out)


def test_few_shot_questions_are_asked_and_scored_with_each_number_of_examples(checkout: Path, tmp_path: Path) -> None:
    answers = predicted(checkout, "okvqa_few", tmp_path / "o.jsonl", "--shots", str(checkout / "train"))
    assert answers.header["task"] == "vqa" and answers.header["protocol"]["benchmark"]["source"] == "okvqa"
    chosen = {id_: record["shots"] for id_, record in answers.records.items()}
    assert [*chosen] == [f"{number}-shot-{id_}" for number in (0, 2) for id_ in (1, 2, 3)]
    assert all(len({*ids} & {"5", "6", "7", "8"}) == int(id_[0]) for id_, ids in chosen.items())
    result = score.score(answers, "okvqa_few", checkout / "placed", checkout / "foundations")
    assert result["benchmark"] == "okvqa_few" and result["metrics"] == {}
    assert {name: group["accuracy"]["n"] for name, group in result["groups"].items()} == {"shots/0": 3, "shots/2": 3}
    assert result["protocol"]["benchmark"]["shots_from"] == "okvqa_train"
    lost = dict(list(answers.records.items())[:-1])
    with pytest.raises(BenchmarkProblem, match="2-shot-3: 1 of 6 items have no prediction"):
        score.score(replace(answers, records=lost), "okvqa_few", checkout / "placed", checkout / "foundations")


def test_the_world_gives_examples_from_its_other_split(checkout: Path, tmp_path: Path) -> None:
    for file in (checkout / "train").iterdir():
        (checkout / "placed" / file.name.replace("test", "dev")).write_bytes(file.read_bytes())
    answers = predicted(checkout, "fewshot", tmp_path / "o.jsonl")
    assert all({*record["shots"]} <= {"5", "6", "7", "8"} for record in answers.records.values())


def test_what_a_server_scores_is_marked_and_not_scored(checkout: Path, tmp_path: Path) -> None:
    answers = predicted(checkout, "okvqa", tmp_path / "o.jsonl")
    folder = tmp_path / "external"
    folder.mkdir()
    for name in ("images_test.zip", "vqa_test_questions.json"):
        (folder / name).write_bytes((checkout / "placed" / name).read_bytes())
    (folder / "vqa_test_annotations.json").write_text('{"external": "https://eval.example"}')
    result = score.score(answers, "okvqa", folder, checkout / "foundations")
    assert result["metrics"]["accuracy"]["value"] is None
    assert result["metrics"]["accuracy"]["reason"].startswith("external")


def test_an_unknown_benchmark_is_told_with_near_matches(checkout: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigProblem, match="no benchmark 'okvqa_3'; did you mean okvqa"):
        predicted(checkout, "okvqa_3", tmp_path / "o.jsonl")


def test_the_likest_picture_is_the_same_picture(checkout: Path) -> None:
    items, pool = (tasks.load("vqa", checkout / name, "test") for name in ("placed", "train"))
    shown, shown_pool = (pictures_of(checkout / name, "test") for name in ("placed", "train"))
    clip = checkout / "foundations/clip"
    similarity = few_shot.image_similarities(items, shown, [*pool, *pool], shown_pool, clip)
    assert similarity.shape == (3, 8) and (similarity <= 1 + 1e-5).all()
    itself = few_shot.image_similarities(pool, shown_pool, pool, shown_pool, clip)
    assert np.diag(itself) == pytest.approx(np.ones(4), abs=1e-5)


# ---- the section ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"vqa": {"task": "vqa", "source": "okvqa"}}, "benchmarks.vqa: this name is taken by the emoji world"),
        ({"a": {"task": "mmbench"}}, "benchmarks.a.source: missing"),
        ({"a": {"task": "stories", "source": "okvqa"}}, "benchmarks.a.source: the task stories is of the emoji world"),
        ({"a": {"task": "captions", "shots": [2]}}, "benchmarks.a.shots: the task captions takes no shots"),
        ({"a": {"task": "vqa", "source": "okvqa", "shots": [4]}}, "benchmarks.a.shots_from: questions and examples"),
        ({"a": {"task": "vqa", "source": "okvqa", "shots_from": "b"}}, "without examples before the questions"),
        ({"a": {"task": "harness", "source": "piqa"}}, "benchmarks.a.harness_task: missing"),
        ({"a": {"task": "vqa", "shots": [4, 4]}}, "shots: 4 is listed twice"),
        ({"a": {"task": "harness", "source": "mmlu", "harness_task": "mmlu", "shots": [0, 5]}}, "takes one number"),
        ({"a": {"task": "vaq", "source": "okvqa"}}, "benchmarks.a.task: no benchmark 'vaq'; did you mean vqa"),
    ],
)
def test_what_does_not_fit_together_is_told(checkout: Path, tmp_path: Path, section: dict, words: str) -> None:
    content = yaml.safe_load((checkout / "config.yaml").read_text()) | {"benchmarks": section}
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigProblem, match=words):
        tasks.check(load(tmp_path / "wrong.yaml"), "wrong.yaml")


def test_public_sets_have_no_split_dev_and_evaluations_name_what_exists(checkout: Path, tmp_path: Path) -> None:
    content = yaml.safe_load((checkout / "config.yaml").read_text())
    content["evaluation"]["split"] = "dev"
    content["evaluations"] = [{"model": "llm", "benchmarks": ["language", "okvqa_9"]}]
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigProblem) as problem:
        tasks.check(load(tmp_path / "wrong.yaml"), "wrong.yaml")
    assert "benchmarks.okvqa: public sets are placed as split test" in str(problem.value)
    assert "evaluations[0].benchmarks: no benchmark 'okvqa_9'; did you mean okvqa" in str(problem.value)


# ---- controls: no image, another image -----------------------------------------------------------------------------


def test_a_question_without_its_image_is_asked_alone(asked, job) -> None:
    records = job(BenchmarkUse(task="vqa", picture="none"), [vqa_item(str(n)) for n in (1, 2, 3)], "emoji")
    assert asked == [[f"{QUESTION} {n}"] for n in (1, 2, 3)]
    assert [record["picture"] for record in records] == [None] * 3


def test_another_image_is_one_of_the_others_each_once_and_the_same_for_all_questions(job, monkeypatch) -> None:
    shown: dict[str, tuple[int, ...]] = {}

    def write(model, processor, documents, **options):
        shown.update({document.id: document.pictures[0].getpixel((4, 4)) for document in documents})
        return ["a cat"] * len(documents)

    monkeypatch.setattr(generate, "write", write)
    items = [vqa_item(str(n)) for n in (1, 2, 3, 4)] + [vqa_item("5", picture="1.jpg")]
    job(BenchmarkUse(task="vqa"), items, "emoji")
    own = dict(shown)
    records = {
        record["id"]: record["picture"] for record in job(BenchmarkUse(task="vqa", picture="other"), items, "emoji")
    }
    assert sorted(records[str(n)] for n in (1, 2, 3, 4)) == [f"{n}.jpg" for n in (1, 2, 3, 4)]
    assert all(records[str(n)] != f"{n}.jpg" for n in (1, 2, 3, 4)) and records["5"] == records["1"]
    assert all(shown[id_] == own[name.removesuffix(".jpg")] for id_, name in records.items())
    again = job(BenchmarkUse(task="vqa", picture="other"), items, "emoji")
    assert {record["id"]: record["picture"] for record in again} == records


def test_there_is_no_other_image_among_questions_about_one(asked, job) -> None:
    with pytest.raises(BenchmarkProblem, match="needs items about two images at least"):
        job(BenchmarkUse(task="vqa", picture="other"), [vqa_item("1"), vqa_item("2", picture="1.jpg")], "emoji")


@pytest.mark.parametrize("task", ["captions", "draw"])
def test_a_task_without_questions_has_no_controls(tmp_path, task) -> None:
    content = {"name": "x", "foundations": {"source": "fetch", "md5": "0" * 32 + ".dir", "sha256": "0" * 64}}
    content["benchmarks"] = {"control": {"task": task, "picture": "none"}}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigProblem, match=f"benchmarks.control.picture: the task {task} takes no picture"):
        tasks.check(load(tmp_path / "x.yaml"), "x.yaml")
