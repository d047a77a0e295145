"""Each value of a benchmark file in turn is wrong or missing: it is named in one line, before anything is predicted."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

import formats
from dreamllm.emoji.scenes import Scene
from dreamllm.evaluate import tasks
from dreamllm.evaluate.files import BenchmarkProblem
from test_benchmarks import folder  # noqa: F401
from test_damage import DELETED, ODD, changed, paths

LOADED = {  # benchmark: its files of records
    "captions": ["captions_test.json", "scenes_test.jsonl"],
    "vqa": ["vqa_test_questions.json", "vqa_test_annotations.json", "scenes_test.jsonl"],
    "pope": ["pope_random_test.jsonl"],
    "draw": ["draw_test.jsonl", "scenes_test.jsonl"],
    "narratives": ["narratives_test.jsonl"],
    "illustrations": ["illustrations_test.jsonl"],
    "stories": ["stories_test.jsonl"],
    "language": ["piqa_test.jsonl", "boolq_test.jsonl"],
    "in_context": ["in_context_test.jsonl"],
    "mm_vet": ["mm_vet_test.json"],
}


def write(path: Path, content: str | bytes) -> None:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize(("benchmark", "file"), [(name, file) for name, files in LOADED.items() for file in files])
def test_every_value_of_a_benchmarks_file_may_be_wrong_and_is_named_in_one_line(benchmark, file, folder):  # noqa: F811
    """Also scenes, which are first used when answers are scored."""
    draw = json.loads((folder / "draw_test.jsonl").read_text())
    write(folder / "narratives_test.jsonl", formats.jsonl([draw]))
    story = {"id": "a", "sentences": ["a red cat", "a car"], "image_ids": [2, None]}
    write(folder / "illustrations_test.jsonl", formats.jsonl([story]))
    scene = {"background": "sky", "layout": "row", "objects": [["cat", "red"], ["car", "blue"]], "count": 2}
    about = {"id": "a", "kind": "swap", "held_out": False, "shown": ["1.jpg"], "sentence": "s", "picture": "1.jpg"}
    write(folder / "in_context_test.jsonl", formats.jsonl([about | {"scene": scene}]))
    with zipfile.ZipFile(folder / "in_context_test.zip", "w") as archive:
        archive.writestr("1.jpg", formats.jpeg(9))
    vet = {"v1_0": {"imagename": f"{1:012d}.png", "question": "Q", "answer": "A", "capability": ["ocr"]}}
    write(folder / "mm_vet_test.json", json.dumps(vet))
    assert tasks.load(benchmark, folder, "test")  # as it is, it can be read
    lines = file.endswith("jsonl")
    text = (folder / file).read_text()
    told = [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
    named = 0
    for path in paths(told):
        for new in (*ODD, DELETED):
            case = changed(told, path, new)
            write(folder / file, "".join(json.dumps(line) + "\n" for line in case) if lines else json.dumps(case))
            try:
                for item in tasks.load(benchmark, folder, "test"):
                    scenes = [item.scene.scene] if getattr(item, "scene", None) else getattr(item, "scenes", ())
                    assert all(Scene.from_json(scene).to_json() == scene for scene in scenes)
            except BenchmarkProblem as problem:
                named += 1
                assert str(folder) in str(problem) and "\n" not in str(problem)
                assert len(str(problem)) < 500
    assert named
