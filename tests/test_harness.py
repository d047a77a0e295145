"""lm-evaluation-harness on small files in the real sets' formats, with its own tasks, offline."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tiny
from dreamllm.config.benchmarks import BenchmarkUse
from dreamllm.config.evaluation import EvaluationSettings
from dreamllm.evaluate import predictions
from dreamllm.evaluate.files import BenchmarkProblem
from dreamllm.evaluate.job import ScoringJob
from dreamllm.evaluate.tasks import harness

ROWS: dict[str, tuple[str, str | None, list[dict[str, Any]]]] = {  # task: (name in the harness, configuration, rows)
    "piqa": (
        "piqa",
        None,
        [{"goal": f"Goal {n}", "sol1": "a cat", "sol2": "two dogs", "label": n % 2} for n in range(3)],
    ),
    "siqa": (
        "social_iqa",
        None,
        [
            {"context": "Ann ran.", "question": "Why?", "answerA": "a", "answerB": "b", "answerC": "c", "label": str(n)}
            for n in (1, 2, 3)
        ],
    ),
    "hellaswag": (
        "hellaswag",
        None,
        [
            {
                "ind": n, "activity_label": "Cooking", "ctx_a": "First chop the onions.", "ctx_b": "then", "ctx": "",
                "endings": ["blend the soup.", "a ship.", "sleeps", "runs"], "source_id": "s", "split": "val",
                "split_type": "indomain", "label": str(n),
            }
            for n in range(3)
        ],
    ),
    "winogrande": (
        "winogrande",
        "winogrande_xl",
        [
            {"sentence": "The cat ate; _ was red.", "option1": "cat", "option2": "dog", "answer": str(1 + n % 2)}
            for n in range(3)
        ],
    ),
    "boolq": (
        "boolq",
        "boolq",
        [{"passage": "A cat is red.", "question": "is it red", "idx": n, "label": n % 2} for n in range(3)],
    ),
}  # fmt: skip


def dataset(folder: Path, configurations: dict[str | None, dict[str, list[dict[str, Any]]]]) -> Path:
    """Parquet files of some configurations with their splits, and the README that names them."""
    named = []
    for name, splits in configurations.items():
        files = []
        for split, rows in splits.items():
            path = Path(name or "data") / f"{split}-00000-of-00001.parquet"
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows), folder / path)
            files.append({"split": split, "path": str(path)})
        named.append({"config_name": name or "default", "data_files": files})
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(named)}\n---\n")
    return folder


def run(folder: Path, use: BenchmarkUse, **settings: Any) -> predictions.Predictions:
    """What `dreamllm predict` writes for a tiny random model."""
    pytest.importorskip("lm_eval")
    model = tiny.build()[0].language_model
    records, about = harness.evaluate(model, tiny.tokenizer(), 256, use, folder, EvaluationSettings(**settings))
    header = {"model": "m", "benchmark": "b", "task": "harness", "split": "test", "limit": None, **about}
    predictions.write(folder / "p.jsonl", header, records)
    return predictions.read(folder / "p.jsonl")


@pytest.mark.parametrize("name", ROWS)
def test_the_harness_asks_its_own_questions_and_every_one_is_scored(tmp_path: Path, name: str) -> None:
    task, configuration, rows = ROWS[name]
    folder = dataset(tmp_path / "set", {configuration: {"train": rows, "validation": rows}})
    answers = run(folder, BenchmarkUse(task="harness", source=name, harness_task=task))
    assert answers.header["items"] == {task: 3} and len(answers.records) == 3
    result = harness.score(ScoringJob(answers.header, tmp_path, tmp_path), [], answers)
    right = []
    for record in answers.records.values():
        assert all(math.isfinite(value) for value in record["loglikelihoods"])
        right.append(record["metrics"]["acc"])
    assert result["metrics"]["accuracy"]["n"] == 3
    assert result["metrics"]["accuracy"]["value"] == pytest.approx(sum(right) / 3)
    assert ("accuracy_norm" in result["metrics"]) == (name in ("piqa", "hellaswag"))


def test_likelihoods_are_those_of_the_model(tmp_path: Path) -> None:
    from dreamllm.evaluate.likelihoods import loglikelihoods

    task, configuration, rows = ROWS["piqa"]
    folder = dataset(tmp_path / "set", {configuration: {"train": rows, "validation": rows}})
    answers = run(folder, BenchmarkUse(task="harness", source="piqa", harness_task=task))
    record = answers.records["piqa-0"]
    assert record["prompt"] == "Question: Goal 0\nAnswer:" and record["options"] == [" a cat", " two dogs"]
    tokenizer = tiny.tokenizer()
    asked = tokenizer(record["prompt"], add_special_tokens=False).input_ids
    whole = [tokenizer(record["prompt"] + option, add_special_tokens=False).input_ids for option in record["options"]]
    model = tiny.build()[0].language_model
    expected = loglikelihoods(model, [(ids, len(asked)) for ids in whole], 2)
    assert record["loglikelihoods"] == pytest.approx(expected, abs=1e-4), "no <s> stands before the question"


def test_mmlu_runs_all_subjects_with_five_examples(tmp_path: Path) -> None:
    lm_eval = pytest.importorskip("lm_eval")
    subjects = sorted(
        path.stem.removeprefix("mmlu_") for path in Path(lm_eval.__file__).parent.glob("tasks/mmlu/default/mmlu_*.yaml")
    )
    assert len(subjects) == 57

    def rows(subject: str, count: int) -> list[dict[str, Any]]:
        return [
            {"question": f"{n}?", "subject": subject, "choices": list("wxyz"), "answer": n % 4} for n in range(count)
        ]

    splits = {s: {"test": rows(s, 2 if s == "anatomy" else 1), "dev": rows(s, 5)} for s in subjects}
    folder = dataset(tmp_path / "set", splits)
    use = BenchmarkUse(task="harness", source="mmlu", harness_task="mmlu", shots=[5])
    answers = run(folder, use)
    assert len(answers.records) == 58 and answers.header["items"]["mmlu_anatomy"] == 2
    assert answers.records["mmlu_anatomy-0"]["prompt"].count("Answer:") == 6
    result = harness.score(ScoringJob(answers.header, tmp_path, tmp_path), [], answers)
    assert result["metrics"]["accuracy"]["n"] == 58, "the mean is over questions, not over subjects"
    assert result["groups"]["mmlu_anatomy"]["accuracy"]["n"] == 2 and len(result["groups"]) == 57


def test_a_lost_record_is_an_error(tmp_path: Path) -> None:
    records = [{"id": f"piqa-{n}", "task": "piqa", "metrics": {"acc": 1.0}} for n in range(3)]
    header = {"model": "m", "benchmark": "b", "split": "test", "items": {"piqa": 3}}

    def scored(lines: list[dict[str, Any]]) -> dict[str, Any]:
        predictions.write(tmp_path / "p.jsonl", header, lines)
        return harness.score(ScoringJob(header, tmp_path, tmp_path), [], predictions.read(tmp_path / "p.jsonl"))

    assert scored(records)["metrics"]["accuracy"]["n"] == 3
    with pytest.raises(BenchmarkProblem, match="has 2 records, by its header 3 in 1 tasks"):
        scored(records[:2])
    with pytest.raises(BenchmarkProblem, match="has 4 records, by its header 3"):
        scored([*records, {"id": "x-0", "task": "x", "metrics": {"acc": 1.0}}])
    with pytest.raises(BenchmarkProblem, match="no metric 'acc'"):
        scored([*records[:2], {"id": "piqa-2", "task": "piqa", "metrics": {}}])


def test_unknown_tasks_and_folders_without_data_are_told(tmp_path: Path) -> None:
    use = BenchmarkUse(task="harness", source="x", harness_task="no_such_task")
    with pytest.raises(BenchmarkProblem, match="holds no parquet files"):
        run(tmp_path, use)
    folder = dataset(tmp_path / "set", {None: {"validation": ROWS["piqa"][2]}})
    with pytest.raises(BenchmarkProblem, match="task no_such_task: is none of lm-eval"):
        run(folder, use)


def test_without_the_harness_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    use = BenchmarkUse(task="harness", source="piqa", harness_task="piqa")
    with pytest.raises(BenchmarkProblem, match="pip install -e"):
        harness.evaluate(None, None, 1, use, tmp_path, EvaluationSettings())
