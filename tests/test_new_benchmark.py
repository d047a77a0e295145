"""A new benchmark is one file and one line of configuration, as docs/evaluation.md shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import repository
from dreamllm.config.world import World
from dreamllm.emoji.world import write_benchmarks
from dreamllm.evaluate import predictions, score, tasks

PAGE = Path(__file__).parent.parent / "docs/evaluation.md"


@pytest.fixture
def module() -> str:
    """The example of the page."""
    return re.search(r'```python\n("""Object recall.*?)```', PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]


def planned(checkout: Path) -> set[str]:
    """All outputs of the jobs that predict and score."""
    jobs = repository.jobs(checkout, "--configfile=config/smoke.yaml", "evaluate")
    return {output for _, _, outputs in jobs for output in outputs}


def test_the_workflow_predicts_and_scores_it(module: str, tmp_path: Path) -> None:
    checkout = repository.copy(tmp_path / "checkout")
    before = planned(checkout)
    (checkout / "src/dreamllm/evaluate/tasks/object_recall.py").write_text(module)
    config = checkout / "config/smoke.yaml"
    text, count = re.subn(
        r"(model: sft\b.*?benchmarks: \[)", r"\1object_recall, ", config.read_text(), count=1, flags=re.DOTALL
    )
    assert count == 1
    config.write_text(text)
    assert planned(checkout) - before == {
        "results/predictions/smoke/sft/object_recall.jsonl",
        "results/metrics/smoke/sft/object_recall.json",
        "results/items/smoke/sft/object_recall.json",
    }


def test_it_is_scored(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/object_recall.py").write_text(module)
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path / "tasks")])
    monkeypatch.setattr(tasks, "NAMES", (*tasks.NAMES, "object_recall"))
    counts = {"pictures": 4, "draw": 2, "stories": 2, "language": 2}
    write_benchmarks(World(picture_side=48, benchmarks=counts), "test", tmp_path)
    captions = [
        item.references[0] if place else "?" for place, item in enumerate(tasks.load("captions", tmp_path, "test"))
    ]
    items = tasks.load("object_recall", tmp_path, "test")
    records = [{"id": item.id, "output": caption} for item, caption in zip(items, captions, strict=True)]
    header = {"model": "sft", "benchmark": "object_recall", "split": "test"}
    predictions.write(tmp_path / "answers.jsonl", header, records)
    metrics, of_items = score.score_items(
        predictions.read(tmp_path / "answers.jsonl"), "object_recall", tmp_path, tmp_path
    )
    assert metrics["metrics"]["recall"]["n"] == 4 and of_items["items"]["recall"][items[0].id] == 0.0
