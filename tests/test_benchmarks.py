"""Benchmark loaders on small files in the native formats, valid and damaged."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from dreamllm.config.reading import ConfigProblem
from dreamllm.data.images import encode_png
from dreamllm.evaluate import tasks
from dreamllm.evaluate.files import BenchmarkProblem, Pictures
from dreamllm.evaluate.tasks import pope


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


def write_jsonl(path: Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole benchmark folder: two pictures, a few items of each kind."""
    with zipfile.ZipFile(tmp_path / "images_test.zip", "w") as archive:
        for number in (1, 2):
            archive.writestr(f"{number:012d}.png", encode_png(Image.new("RGB", (4, 4), "red")))
    images = [{"id": n, "file_name": f"{n:012d}.png", "height": 4, "width": 4} for n in (1, 2)]
    notes = [{"id": n, "image_id": 1 + n % 2, "caption": f"caption {n}"} for n in range(4)]
    write_json(tmp_path / "captions_test.json", {"images": images, "annotations": notes})
    scene = {"background": "sky", "layout": "single", "objects": [["cat", "red"]], "count": 1}
    scenes = [{"image_id": n, "kind": "single", "held_out": n == 2, "caption": "", "scene": scene} for n in (1, 2)]
    write_jsonl(tmp_path / "scenes_test.jsonl", scenes)
    questions = [{"question_id": 10 + n, "image_id": n, "question": "what colour?"} for n in (1, 2)]
    write_json(tmp_path / "vqa_test_questions.json", {"questions": questions})
    answers = [{"answer": "red", "answer_id": n} for n in range(10)]
    notes = [{"question_id": 10 + n, "image_id": n, "question_type": "colour", "answers": answers} for n in (2, 1)]
    write_json(tmp_path / "vqa_test_annotations.json", {"annotations": notes})
    for subset in pope.SUBSETS:
        line = {"question_id": 1, "image": "000000000001.png", "text": "is there a cat?", "label": "yes"}
        write_jsonl(tmp_path / f"pope_{subset}_test.jsonl", [line])
    write_jsonl(tmp_path / "draw_test.jsonl", [{"id": "a", "prompt": "a red cat", "image_id": 2}])
    sentences = ["a red cat on sky.", "the cat leaves."]
    story = {"id": 5, "opening": sentences[0], "sentences": sentences, "scenes": [scene, scene]}
    write_jsonl(tmp_path / "stories_test.jsonl", [story])
    write_jsonl(tmp_path / "piqa_test.jsonl", [{"goal": "g", "sol1": "a", "sol2": "b"}] * 2)
    (tmp_path / "piqa_test-labels.lst").write_text("1\n0\n")
    write_jsonl(tmp_path / "boolq_test.jsonl", [{"question": "q", "passage": "p", "answer": True, "title": "t"}])
    return tmp_path


def broken(folder: Path, benchmark: str, *words: str) -> None:
    """Loading must fail with a message that holds all these words."""
    with pytest.raises(BenchmarkProblem) as problem:
        tasks.load(benchmark, folder, "test")
    for word in words:
        assert word in str(problem.value)


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_captions_keep_the_order_of_the_pictures_and_of_the_references(folder: Path) -> None:
    items = tasks.load("captions", folder, "test")
    assert [(item.id, item.picture) for item in items] == [("1", "000000000001.png"), ("2", "000000000002.png")]
    assert items[0].references == ("caption 0", "caption 2")
    assert items[1].scene.groups == ["single", "held_out", "single/held_out"]


def test_vqa_annotations_are_matched_by_question_and_not_by_order(folder: Path) -> None:
    items = tasks.load("vqa", folder, "test")
    assert [item.id for item in items] == ["11", "12"]
    assert items[0].answers == ("red",) * 10 and items[0].question_type == "colour"


def test_pope_ids_tell_the_subsets_apart(folder: Path) -> None:
    assert [item.id for item in tasks.load("pope", folder, "test")] == ["random-1", "popular-1", "adversarial-1"]


def test_language_reads_piqa_and_boolq(folder: Path) -> None:
    piqa, _, boolq = tasks.load("language", folder, "test")
    assert (piqa.options, piqa.answer, piqa.fields) == (("a", "b"), 1, {"goal": "g"})
    assert (boolq.options, boolq.answer) == (("No", "Yes"), 1)


def test_drawing_prompts_and_stories(folder: Path) -> None:
    assert tasks.load("draw", folder, "test")[0].picture == "000000000002.png"
    assert tasks.load("stories", folder, "test")[0].id == "5"


def test_limit_keeps_the_first_items_of_each_set(folder: Path) -> None:
    assert [item.id for item in tasks.load("language", folder, "test", limit=1)] == ["piqa-0", "boolq-0"]
    assert len(tasks.load("captions", folder, "test", limit=1)) == 1


def test_sets_without_scenes_have_none(folder: Path) -> None:
    (folder / "scenes_test.jsonl").unlink()
    assert tasks.load("draw", folder, "test")[0].scene is None


def test_an_answer_list_with_one_entry_is_fine_and_an_empty_one_is_not(folder: Path) -> None:
    path = folder / "vqa_test_annotations.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["answers"] = [{"answer": "red"}]
    write_json(path, content)
    assert tasks.load("vqa", folder, "test")[1].answers == ("red",)
    content["annotations"][0]["answers"] = []
    write_json(path, content)
    broken(folder, "vqa", "vqa_test_annotations.json", "question 12", "empty list of answers")


def test_malformed_json_is_reported_with_its_line(folder: Path) -> None:
    (folder / "captions_test.json").write_text('{"images": [],\n "annotations": [}')
    broken(folder, "captions", "captions_test.json", "line 2, column 18", "malformed JSON")
    with (folder / "draw_test.jsonl").open("a") as file:
        file.write('{"id": "b", "prompt": \n')
    broken(folder, "draw", "draw_test.jsonl", "line 2", "malformed JSON")


def test_a_line_that_is_no_object_and_bytes_that_are_no_text(folder: Path) -> None:
    (folder / "stories_test.jsonl").write_text("[1]\n")
    broken(folder, "stories", "line 1", "expected a JSON object, found list")
    (folder / "stories_test.jsonl").write_bytes(b"\xff\xfe{}")
    broken(folder, "stories", "stories_test.jsonl", "not UTF-8")


def test_a_missing_file_and_an_unknown_benchmark(folder: Path) -> None:
    (folder / "draw_test.jsonl").unlink()
    broken(folder, "draw", "draw_test.jsonl", "no such file")
    with pytest.raises(ConfigProblem, match="no benchmark 'drawing'; did you mean draw"):
        tasks.load("drawing", folder, "test")


def test_an_empty_set_is_an_error(folder: Path) -> None:
    (folder / "boolq_test.jsonl").write_text("\n")
    broken(folder, "language", "no items")


def test_doubled_scenes(folder: Path) -> None:
    change(folder / "scenes_test.jsonl", '"image_id": 2', '"image_id": 1')
    broken(folder, "draw", "scenes_test.jsonl", "image_id 1", "twice")


def test_doubled_ids(folder: Path) -> None:
    path = folder / "draw_test.jsonl"
    path.write_text(path.read_text() * 2)
    broken(folder, "draw", "draw_test.jsonl", "id a", "twice")
    change(folder / "captions_test.json", '"id": 2, "file_name"', '"id": 1, "file_name"')
    broken(folder, "captions", "images[1], id 1", "twice")
    change(folder / "vqa_test_questions.json", '"question_id": 12', '"question_id": 11')
    broken(folder, "vqa", "question 11", "twice")


def test_dangling_records(folder: Path) -> None:
    change(folder / "captions_test.json", '"image_id": 2', '"image_id": 9')
    broken(folder, "captions", "annotations[1]", "picture 9")
    change(folder / "vqa_test_annotations.json", '"question_id": 12', '"question_id": 13')
    broken(folder, "vqa", "question 12", "no annotation")
    change(folder / "vqa_test_questions.json", '"question_id": 12', '"question_id": 13')
    content = json.loads((folder / "vqa_test_questions.json").read_text())
    write_json(folder / "vqa_test_questions.json", {"questions": content["questions"][:1]})
    broken(folder, "vqa", "question 13", "is not asked")


def test_a_picture_without_caption(folder: Path) -> None:
    content = json.loads((folder / "captions_test.json").read_text())
    write_json(folder / "captions_test.json", content | {"annotations": content["annotations"][::2]})
    broken(folder, "captions", "picture 2", "no caption")


def test_scenes_must_cover_all_pictures_that_are_asked_about(folder: Path) -> None:
    change(folder / "scenes_test.jsonl", '"image_id": 2', '"image_id": 7')
    broken(folder, "draw", "scenes_test.jsonl", "000000000002.png", "item a")


def test_fields_that_are_missing_or_of_the_wrong_type(folder: Path) -> None:
    change(folder / "draw_test.jsonl", '"prompt"', '"text"')
    broken(folder, "draw", "line 1", "no field 'prompt'", "'text'")
    change(folder / "boolq_test.jsonl", "true", '"true"')
    broken(folder, "language", "boolq_test.jsonl", "'answer' should be bool, it is str")
    change(folder / "pope_popular_test.jsonl", '"yes"', '"maybe"')
    broken(folder, "pope", "pope_popular_test.jsonl", "line 1", "'maybe'")


def test_labels_must_fit_the_questions(folder: Path) -> None:
    (folder / "piqa_test-labels.lst").write_text("1\n")
    broken(folder, "language", "piqa_test-labels.lst", "1 labels for the 2 questions")
    (folder / "piqa_test-labels.lst").write_text("1\n2\n")
    broken(folder, "language", "label 2", "'2'")
    change(folder / "piqa_test.jsonl", '"sol2": "b"', '"sol2": " "')
    broken(folder, "language", "piqa_test.jsonl, line 1", "empty solution")


def test_stories_need_as_many_scenes_as_sentences_and_their_opening_first(folder: Path) -> None:
    change(folder / "stories_test.jsonl", '"opening": "a red', '"opening": "a blue')
    broken(folder, "stories", "line 1", "opening")


def test_missing_pictures_are_found_before_any_model_runs(folder: Path) -> None:
    with zipfile.ZipFile(folder / "images_test.zip", "w") as archive:
        archive.writestr("000000000001.png", encode_png(Image.new("RGB", (4, 4))))
    broken(folder, "captions", "images[1]", "000000000002.png", "images_test.zip")
    broken(folder, "vqa", "questions[1]", "picture 2", "images_test.zip")
    (folder / "images_test.zip").write_bytes(b"not a zip")
    broken(folder, "pope", "images_test.zip", "neither a folder nor a whole zip")
    (folder / "images_test.zip").unlink()
    broken(folder, "pope", "images_test", "no such folder or zip")


def test_pictures_come_from_a_folder_too_and_are_found_by_coco_id(tmp_path: Path) -> None:
    (tmp_path / "val2014").mkdir()
    Image.new("RGB", (2, 2), "blue").save(tmp_path / "val2014" / "COCO_val2014_000000000042.jpg")
    (tmp_path / "readme.txt").write_text("not a picture")
    shown = Pictures(tmp_path)
    assert shown.name_of(42, tmp_path, "") == "COCO_val2014_000000000042.jpg"
    assert shown.read("COCO_val2014_000000000042.jpg").size == (2, 2)


def test_two_pictures_with_one_id_are_ambiguous(tmp_path: Path) -> None:
    for name in ("a_1.png", "b_01.png"):
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    shown = Pictures(tmp_path)
    assert shown.check("b_01.png", tmp_path, "") == "b_01.png", "by name both can be told apart"
    with pytest.raises(BenchmarkProblem, match=r"picture b_01.png: has the same id as a_1.png"):
        shown.name_of(1, tmp_path, "")


def test_cmyk_and_transparent_pictures_become_rgb_and_damaged_ones_are_named(tmp_path: Path) -> None:
    Image.new("CMYK", (2, 2), (0, 255, 255, 0)).save(tmp_path / "cmyk_1.jpg")
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(tmp_path / "clear_2.png")
    (tmp_path / "damaged_3.png").write_bytes((tmp_path / "clear_2.png").read_bytes()[:40])
    shown = Pictures(tmp_path)
    red, green, blue = shown.read("cmyk_1.jpg").getpixel((0, 0))
    assert red > 240 and green < 15 and blue < 15
    assert shown.read("clear_2.png").getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(BenchmarkProblem, match="picture damaged_3.png: cannot be decoded"):
        shown.read("damaged_3.png")
