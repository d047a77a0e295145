"""Evaluation sets in their publishers' formats are converted to what the benchmark readers read, without loss."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

import formats
from dreamllm import cli
from dreamllm.evaluate import placing_writers as module
from dreamllm.evaluate import tasks
from dreamllm.evaluate.files import BenchmarkProblem, pictures_of
from dreamllm.evaluate.placing import WRITERS, place
from dreamllm.evaluate.tasks import pope
from dreamllm.sources.manifest import BENCHMARK_FORMATS, Source
from dreamllm.sources.records import RecordProblem


def source(format: str, **more: str) -> Source:
    about = {"title": "set", "format": format, "availability": "open", "source": "test", "obtain": "by hand"}
    return Source.model_validate(about | more)


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def val2014(tmp_path):
    """COCO's validation pictures, as (prefix, folder)."""
    names = {f"val2014/COCO_val2014_{n:012d}.jpg": formats.jpeg(n) for n in (10, 20, 30)}
    formats.archive(tmp_path / "coco/val2014.zip", names)
    return (("", tmp_path / "coco"),)


def shade(folder: Path, name: str) -> int:
    return pictures_of(folder, "test").read(name).getpixel((1, 1))[0]


def test_karpathys_test_split(tmp_path, val2014):
    images = [
        {"split": split, "filename": f"COCO_val2014_{n:012d}.jpg", "cocoid": n, "sentences": [{"raw": f"a {n} "}] * 2}
        for split, n in [("test", 20), ("val", 10), ("test", 30), ("restval", 99)]
    ]
    content = json.dumps({"images": images, "dataset": "coco"})
    formats.archive(
        tmp_path / "raw/caption_datasets.zip", {"dataset_coco.json": content, "dataset_flickr8k.json": "{}"}
    )
    place(source("coco_karpathy"), tmp_path / "raw", val2014, tmp_path / "out")
    items = tasks.load("captions", tmp_path / "out", "test")
    assert [(item.id, item.references) for item in items] == [("20", ("a 20", "a 20")), ("30", ("a 30", "a 30"))]
    assert shade(tmp_path / "out", items[0].picture) == 20
    assert (tmp_path / "out/images_test.zip").stat().st_nlink == 2, "the archive is linked, not copied"


def test_prompts_of_coco_fid_are_drawn_once_and_written_down(tmp_path, val2014, monkeypatch):
    monkeypatch.setattr(module, "FID_PICTURES", 2)
    images = [{"id": n, "file_name": f"COCO_val2014_{n:012d}.jpg"} for n in (10, 20, 30)]
    captions = [{"id": 100 * n + k, "image_id": n, "caption": f"{n} {k}\n"} for n in (10, 20, 30) for k in range(5)]
    content = json.dumps({"images": images, "annotations": captions})
    formats.archive(tmp_path / "raw/annotations.zip", {"annotations/captions_val2014.json": content})
    for out in ("out", "again"):
        place(source("coco_fid"), tmp_path / "raw", val2014, tmp_path / out)
    items = tasks.load("draw", tmp_path / "out", "test")
    assert len(items) == 2 and all(item.prompt.split()[0] == item.id for item in items)
    lines = (tmp_path / "out/draw_test.jsonl").read_text()
    assert lines == (tmp_path / "again/draw_test.jsonl").read_text() and "annotation_id" in lines


def test_localized_narratives(tmp_path):
    formats.archive(tmp_path / "coco/val2017.zip", {"val2017/000000000007.jpg": formats.jpeg(7)})
    lines = [{"dataset_id": "mscoco_val2017", "image_id": "7", "caption": f"In this {n}."} for n in range(2)]
    write(tmp_path / "raw/coco_val_localized_narratives.jsonl", formats.jsonl(lines))
    place(source("ln_coco"), tmp_path / "raw", (("", tmp_path / "coco"),), tmp_path / "out")
    items = tasks.load("draw", tmp_path / "out", "test")
    assert [(item.prompt, item.picture) for item in items] == [(f"In this {n}.", "000000000007.jpg") for n in range(2)]


def test_image_paragraphs(tmp_path):
    formats.archive(tmp_path / "vg/images.zip", {"VG_100K/5.jpg": formats.jpeg(5)})
    formats.archive(tmp_path / "vg/images2.zip", {"VG_100K_2/6.jpg": formats.jpeg(6)})
    paragraphs = [{"image_id": n, "paragraph": f"A {n}.  It is.", "url": ""} for n in (4, 5, 6)]
    write(tmp_path / "raw/paragraphs_v1.json", paragraphs)
    write(tmp_path / "raw/test_split.json", [5, 6])
    place(source("image_paragraphs"), tmp_path / "raw", (("", tmp_path / "vg"),), tmp_path / "out")
    items = tasks.load("captions", tmp_path / "out", "test")
    assert [item.references for item in items] == [("A 5. It is.",), ("A 6. It is.",)]
    assert [shade(tmp_path / "out", item.picture) for item in items] == [5, 6]


def test_vqav2_and_okvqa(tmp_path, val2014):
    questions = {"questions": [{"question_id": 101, "image_id": 10, "question": "What?"}]}
    answers = [{"answer_id": n, "answer": "cat", "raw_answer": "cats", "answer_confidence": "yes"} for n in range(10)]
    annotations = {"annotations": [{"question_id": 101, "image_id": 10, "question_type": "what", "answers": answers}]}
    name = "v2_OpenEnded_mscoco_val2014_questions.json"
    formats.archive(tmp_path / "raw/q.zip", {name: json.dumps(questions)})
    formats.archive(tmp_path / "raw/a.zip", {"v2_mscoco_val2014_annotations.json": json.dumps(annotations)})
    place(source("vqav2"), tmp_path / "raw", val2014, tmp_path / "out")
    (item,) = tasks.load("vqa", tmp_path / "out", "test")
    assert (item.question, item.answers, shade(tmp_path / "out", item.picture)) == ("What?", ("cat",) * 10, 10)


def test_vizwiz(tmp_path):
    answers = [{"answer": "unanswerable", "answer_confidence": "no"}] * 10
    record = {
        "image": "VizWiz_val_00000042.jpg",
        "question": "What?",
        "answers": answers,
        "answer_type": "unanswerable",
    }
    formats.archive(tmp_path / "raw/Annotations.zip", {"val.json": json.dumps([record]), "train.json": "[]"})
    formats.archive(tmp_path / "raw/val.zip", {"val/VizWiz_val_00000042.jpg": formats.jpeg(42)})
    place(source("vizwiz"), tmp_path / "raw", (), tmp_path / "out")
    (item,) = tasks.load("vqa", tmp_path / "out", "test")
    assert item.answers == ("unanswerable",) * 10 and item.question_type == "unanswerable"
    assert shade(tmp_path / "out", item.picture) == 42


def test_textvqa_gets_numbers_for_its_hexadecimal_names(tmp_path):
    rows = [
        {"question_id": 3 + n, "image_id": name, "question": f"q{n}", "answers": [f"a{n}"] * 10}
        for n, name in enumerate(["003a8ae2ef43b901", "ff00000000000901", "003a8ae2ef43b901"])
    ]
    write(tmp_path / "raw/TextVQA_0.5.1_val.json", {"data": rows})
    pictures = {f"train_images/{name}.jpg": formats.jpeg(n) for n, name in [(50, rows[0]["image_id"])]}
    pictures[f"train_images/{rows[1]['image_id']}.jpg"] = formats.jpeg(90)
    formats.archive(tmp_path / "raw/train_val_images.zip", pictures)
    place(source("textvqa"), tmp_path / "raw", (), tmp_path / "out")
    items = tasks.load("vqa", tmp_path / "out", "test")
    assert [shade(tmp_path / "out", item.picture) for item in items] == [50, 90, 50]
    assert [item.answers[0] for item in items] == ["a0", "a1", "a2"]


def test_pope(tmp_path, val2014):
    for subset in pope.SUBSETS:
        line = {"question_id": 1, "image": "COCO_val2014_000000000010.jpg", "text": "Is there a cat?", "label": "no"}
        write(tmp_path / f"raw/coco_pope_{subset}.json", formats.jsonl([line]))
    place(source("pope"), tmp_path / "raw", val2014, tmp_path / "out")
    assert [item.subset for item in tasks.load("pope", tmp_path / "out", "test")] == list(pope.SUBSETS)


def test_data_of_the_harness_are_placed_as_they_came(tmp_path):
    write(tmp_path / "raw/deep/train.parquet", "a\tb\n")
    place(source("harness"), tmp_path / "raw", (), tmp_path / "out")
    assert (tmp_path / "out/deep/train.parquet").read_text() == "a\tb\n"


def test_nocaps(tmp_path):
    images = [{"id": 0, "file_name": "0013ea2087020901.jpg", "coco_url": "http://x", "open_images_id": "0013ea"}]
    notes = [{"id": n, "image_id": 0, "caption": f"a baby {n}"} for n in range(2)]
    write(tmp_path / "raw/nocaps_val_4500_captions.json", {"images": images, "annotations": notes})
    formats.archive(tmp_path / "raw/val.zip", {"val/0013ea2087020901.jpg": formats.jpeg(5)})
    place(source("nocaps"), tmp_path / "raw", (), tmp_path / "out")
    (item,) = tasks.load("captions", tmp_path / "out", "test")
    assert item.references == ("a baby 0", "a baby 1") and shade(tmp_path / "out", item.picture) == 5


SERVER = {"answers_on": "https://eval.example"}


def test_vqav2_test_dev_has_no_answers_and_says_so(tmp_path):
    questions = {
        split: {"data_subtype": split, "questions": [{"question_id": n, "image_id": 7, "question": "What?"}]}
        for n, split in ((1, "test-dev2015"), (2, "test2015"))
    }
    named = {f"v2_OpenEnded_mscoco_{split}_questions.json": json.dumps(c) for split, c in questions.items()}
    formats.archive(tmp_path / "raw/v2_Questions_Test_mscoco.zip", named)
    formats.archive(tmp_path / "coco/test2015.zip", {"test2015/COCO_test2015_000000000007.jpg": formats.jpeg(7)})
    place(source("vqav2", **SERVER), tmp_path / "raw", (("", tmp_path / "coco"),), tmp_path / "out")
    (item,) = tasks.load("vqa", tmp_path / "out", "test")
    assert (item.id, item.answers, item.picture) == ("1", (), "COCO_test2015_000000000007.jpg")


def test_vqav2_train_finds_its_pictures_by_its_own_split(tmp_path):
    questions = [{"question_id": 1, "image_id": 7, "question": "What?"}]
    write(tmp_path / "raw/questions.json", {"data_subtype": "train2014", "questions": questions})
    write(
        tmp_path / "raw/annotations.json",
        {"annotations": [{"question_id": 1, "image_id": 7, "answers": [{"answer": "a"}]}]},
    )
    formats.archive(tmp_path / "coco/train2014.zip", {"train2014/COCO_train2014_000000000007.jpg": formats.jpeg(7)})
    place(source("vqav2"), tmp_path / "raw", (("", tmp_path / "coco"),), tmp_path / "out")
    assert tasks.load("vqa", tmp_path / "out", "test")[0].picture == "COCO_train2014_000000000007.jpg"


def test_a_lost_file_of_answers_is_no_external_set(tmp_path, val2014):
    questions = {"questions": [{"question_id": 1, "image_id": 10, "question": "What?"}]}
    write(tmp_path / "raw/questions.json", questions)
    with pytest.raises(RecordProblem, match="annotations.json"):
        place(source("vqav2"), tmp_path / "raw", val2014, tmp_path / "out")


def test_vizwiz_test(tmp_path):
    record = {"image": "VizWiz_test_00000042.jpg", "question": "What?"}
    formats.archive(tmp_path / "raw/Annotations.zip", {"val.json": "[]", "test.json": json.dumps([record])})
    formats.archive(tmp_path / "raw/test.zip", {"test/VizWiz_test_00000042.jpg": formats.jpeg(42)})
    place(source("vizwiz", **SERVER), tmp_path / "raw", (), tmp_path / "out")
    (item,) = tasks.load("vqa", tmp_path / "out", "test")
    assert item.answers == () and item.picture == "VizWiz_test_00000042.jpg"


def test_geneval(tmp_path):
    line = {
        "tag": "colors",
        "include": [{"class": "cat", "count": 1, "color": "red"}],
        "prompt": "a photo of a red cat",
    }
    write(tmp_path / "raw/evaluation_metadata.jsonl", formats.jsonl([line]))
    place(source("geneval"), tmp_path / "raw", (), tmp_path / "out")
    items = tasks.load("geneval", tmp_path / "out", "test")
    assert {item.prompt for item in items} == {"a photo of a red cat"} and len(items) == 4
    write(tmp_path / "raw/evaluation_metadata.jsonl", formats.jsonl([line | {"include": [{"class": "cat"}]}]))
    with pytest.raises(BenchmarkProblem, match=r"line 1, include\[0\]: has no field 'count'"):
        place(source("geneval"), tmp_path / "raw", (), tmp_path / "out")


def test_dpg_bench(tmp_path):
    texts = {"10": "A red\n cat, and a dog. ", "9": "A boat.", "whoops7": "A ship."}
    inside = {f"ELLA-1/dpg_bench/prompts/{name}.txt": text for name, text in texts.items()}
    formats.archive(tmp_path / "raw/1.zip", inside | {"ELLA-1/requirements.txt": "torch", "ELLA-1/README.md": "x"})
    place(source("dpg_bench"), tmp_path / "raw", (), tmp_path / "out")
    items = tasks.load("draw", tmp_path / "out", "test")
    assert [(item.id, item.prompt) for item in items] == [
        ("9", "A boat."), ("10", "A red cat, and a dog."), ("whoops7", "A ship.")
    ]  # fmt: skip
    write(tmp_path / "raw/prompts/11.txt", " \n")
    with pytest.raises(RecordProblem, match=r"prompts/11.txt: has no prompt"):
        place(source("dpg_bench"), tmp_path / "raw", (), tmp_path / "out")


def test_mjhq(tmp_path):
    about = {"b2": {"category": "food", "prompt": "a  pie "}, "a1": {"category": "animals", "prompt": "a cat"}}
    write(tmp_path / "raw/meta_data.json", about)
    shown = {"animals/a1.jpg": formats.jpeg(40), "food/b2.jpg": formats.jpeg(90)}
    formats.archive(tmp_path / "raw/mjhq30k_imgs.zip", shown)
    place(source("mjhq"), tmp_path / "raw", (), tmp_path / "out")
    items = tasks.load("draw", tmp_path / "out", "test")
    assert [(item.id, item.prompt, item.picture) for item in items] == [
        ("a1", "a cat", "000001.jpg"), ("b2", "a pie", "000002.jpg")
    ]  # fmt: skip
    assert [shade(tmp_path / "out", item.picture) for item in items] == [40, 90]
    write(tmp_path / "raw/meta_data.json", about | {"c3": {"category": "art"}})
    with pytest.raises(BenchmarkProblem, match="image c3: has no field 'prompt'"):
        place(source("mjhq"), tmp_path / "raw", (), tmp_path / "out")


def test_mm_vet(tmp_path):
    record = {"imagename": "v1_0.png", "question": "What is x?", "answer": "-1<AND>-5", "capability": ["ocr", "math"]}
    members = {"mm-vet/mm-vet.json": json.dumps({"v1_0": record}), "mm-vet/images/v1_0.png": formats.jpeg(9)}
    formats.archive(tmp_path / "raw/mm-vet.zip", members)
    place(source("mm_vet"), tmp_path / "raw", (), tmp_path / "out")
    (item,) = tasks.load("mm_vet", tmp_path / "out", "test")
    assert (item.id, item.answer, item.capabilities) == ("v1_0", "-1<AND>-5", ("ocr", "math"))
    assert shade(tmp_path / "out", item.picture) == 9


def mmbench_table(path: Path, rows: list[dict[str, str]]) -> None:
    names = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "l2-category", "split"]
    lines = [names, *([row.get(name, "") for name in names] for row in rows)]
    write(path, "".join("\t".join(line) + "\n" for line in lines))


def mmbench_row(**more: str) -> dict[str, str]:
    picture = base64.b64encode(formats.jpeg(11)).decode()
    row = {"index": "3", "question": "Which?", "A": "None", "B": "a cat", "C": "NA", "answer": "B", "image": picture}
    return row | {"category": "object_localization", "l2-category": "finegrained_perception", "split": "dev"} | more


def test_mmbench_gets_the_rotations_it_lacks_and_loses_no_option(tmp_path):
    rows = [mmbench_row(), mmbench_row(index="4", C="", image="3", answer="A", hint="Look.")]
    mmbench_table(tmp_path / "raw/mmbench_dev.tsv", rows)
    place(source("mmbench"), tmp_path / "raw", (), tmp_path / "out")
    items = tasks.load("mmbench", tmp_path / "out", "test")
    assert [item.id for item in items] == ["3", "1000003", "2000003", "4", "1000004"]
    assert [item.options[item.answer] for item in items] == ["a cat"] * 3 + ["None"] * 2
    assert [[*item.options.values()] for item in items[:2]] == [["None", "a cat", "NA"], ["a cat", "NA", "None"]]
    assert {shade(tmp_path / "out", item.picture) for item in items} == {11}
    assert items[3].hint == "Look."
    assert [item.question_id for item in tasks.load("mmbench", tmp_path / "out", "test", limit=1)] == ["3"] * 3


def test_rotations_that_mmbench_has_are_kept_and_must_be_whole(tmp_path):
    rotation = mmbench_row(index="1000003", A="a cat", B="NA", C="None", answer="A", image="3")
    last = mmbench_row(index="2000003", A="NA", B="None", C="a cat", answer="C", image="3")
    mmbench_table(tmp_path / "raw/mmbench_dev.tsv", [mmbench_row(), rotation, last])
    place(source("mmbench"), tmp_path / "raw", (), tmp_path / "out")
    assert [item.answer for item in tasks.load("mmbench", tmp_path / "out", "test")] == ["B", "A", "C"]
    wrong = [
        ([mmbench_row(), rotation], "question 3: has 2 rotations for 3 options"),
        ([mmbench_row(), rotation, last | {"answer": "A"}], "question 3: its rotations differ"),
        ([mmbench_row(answer="D")], "question 3: answer 'D' is none of A, B, C"),
        ([mmbench_row(), mmbench_row()], "question 3: occurs twice"),
        ([mmbench_row(image="9")], "question 3: its picture '9' is neither base64 nor an earlier index"),
        ([mmbench_row(image="*" * 100)], "question 3: its picture is no base64"),
        ([mmbench_row(index="x")], "question x: its index is no number"),
    ]
    for rows, words in wrong:
        mmbench_table(tmp_path / "raw/mmbench_dev.tsv", rows)
        with pytest.raises((BenchmarkProblem, RecordProblem), match=words):
            place(source("mmbench"), tmp_path / "raw", (), tmp_path / "wrong")


def test_mmbench_test_has_no_answers(tmp_path):
    mmbench_table(tmp_path / "raw/mmbench_test.tsv", [mmbench_row(answer="")])
    place(source("mmbench", **SERVER), tmp_path / "raw", (), tmp_path / "out")
    assert {item.answer for item in tasks.load("mmbench", tmp_path / "out", "test")} == {None}


def test_missing_pictures_and_files_are_reported_and_nothing_is_placed(tmp_path, val2014):
    questions = {"questions": [{"question_id": 1, "image_id": 77, "question": "What?"}]}
    write(tmp_path / "raw/questions.json", questions)
    with pytest.raises(RecordProblem, match="0 files end in annotations.json"):
        place(source("vqav2"), tmp_path / "raw", val2014, tmp_path / "out")
    write(tmp_path / "raw/annotations.json", {"annotations": [{"question_id": 1, "answers": [{"answer": "a"}]}]})
    with pytest.raises(RecordProblem, match="1 of 1 pictures are missing, first COCO_val2014_000000000077.jpg"):
        place(source("vqav2"), tmp_path / "raw", val2014, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_evaluation_format_has_its_writer_and_the_command_wants_one(tmp_path):
    assert {*WRITERS, "as_is", "harness"} == set(BENCHMARK_FORMATS)
    write(
        tmp_path / "sources.yaml", "x: {title: x, format: gqa, availability: open, source: t, obtain: y, unknown: all}"
    )
    flags = ["--manifest", str(tmp_path / "sources.yaml"), "--raw", str(tmp_path), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="x .format gqa. is no evaluation set"):
        cli.main(["place-benchmark", "--source", "x", *flags])
