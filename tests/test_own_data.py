"""People's own files: read in every format, named in an experiment, built again when a file changes, and audited."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest

import formats
import repository
import tiny
from dreamllm import cli
from dreamllm.config.reading import ConfigProblem, check_folders, load
from dreamllm.config.sources import OwnFormat, SourceSettings
from dreamllm.data import shards
from dreamllm.data.document import Document, Picture, Text
from dreamllm.evaluate import predict, prompts, tasks
from dreamllm.evaluate.files import BenchmarkProblem, pictures_of
from dreamllm.evaluate.placing import place
from dreamllm.repro.audit import check_dag, check_inputs
from dreamllm.sources import manifest, own
from dreamllm.sources.build import Counted, build
from dreamllm.sources.manifest import Source
from dreamllm.sources.records import BuildProblem, RecordProblem

OWN = {"title": "mine", "availability": "own", "source": "own files", "licence": "private"}


def source(format: str) -> Source:
    return Source.model_validate(OWN | {"format": format})


def write(folder: Path, files: dict[str, object]) -> Path:
    """Files by name: bytes as they are, texts, and anything else as JSON."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(content, bytes):
            content = (content if isinstance(content, str) else json.dumps(content)).encode()
        (folder / name).write_bytes(content)
    return folder


def built(tmp_path: Path, format: str, **settings: object) -> tuple[list[Document], Counted]:
    """The documents of the files in tmp_path/mine, and what was counted."""
    counted = build("mine", source(format), SourceSettings(**settings), tmp_path / "out", raw=tmp_path / "mine")
    return list(shards.read(shards.find(tmp_path / "out/mine"))), counted


def told(document: Document) -> list[str | int]:
    """Texts, and the shade of each picture."""
    return [part.text if isinstance(part, Text) else part.image.getpixel((1, 1))[0] for part in document.parts]


# ---- formats for training --------------------------------------------------------------------------------------------


def test_every_own_format_is_known_to_the_manifest():
    assert set(get_args(OwnFormat)) <= {*manifest.FORMATS}


def test_pictures_with_texts_beside_them(tmp_path):
    files = {"a/1.jpg": formats.jpeg(10), "a/1.txt": " one\n", "b/1.jpg": formats.jpeg(90), "b/1.txt": "another one"}
    files |= {"3.png": formats.jpeg(30), "4.jpg": formats.jpeg(4)[:99], "4.txt": "damaged", ".DS_Store": b"?"}
    write(tmp_path / "mine", files | {"5.jpg": formats.jpeg(5), "5.txt": b"\xff"})
    documents, counted = built(tmp_path, "image_folder")
    assert [told(document) for document in documents] == [[10, "one"], [90, "another one"]], "of two folders"
    assert counted.rejected == {
        "picture without a caption": 1,
        "picture or its data cannot be read": 1,
        "caption is not UTF-8": 1,
    }
    assert counted.examples["picture without a caption"][0].endswith("3.png: there is no 3.txt beside it")


@pytest.mark.parametrize("table", ["csv", "jsonl"])
def test_pictures_with_metadata_as_hugging_faces_image_folders(tmp_path, table):
    rows = [("1.jpg", "one, with a comma"), ("sub/2.jpg", "two"), ("none.jpg", "three"), ("1.jpg", " ")]
    text = "file_name,text\n" + "".join(f'{name},"{caption}"\n' for name, caption in rows)
    if table == "jsonl":
        text = formats.jsonl([{"file_name": name, "text": caption} for name, caption in rows])
    pictures = {"train/1.jpg": formats.jpeg(10), "train/sub/2.jpg": formats.jpeg(20), "train/7.jpg": formats.jpeg(70)}
    write(tmp_path / "mine", pictures | {f"train/metadata.{table}": text})
    documents, counted = built(tmp_path, "image_folder")
    assert [told(document) for document in documents] == [[10, "one, with a comma"], [20, "two"]]
    assert counted.rejected == {"picture is not there": 1, "caption is empty": 1, "picture without a caption": 1}
    line = 4 if table == "csv" else 3
    assert f"metadata.{table}, line {line}: ./train/none.jpg" in counted.examples["picture is not there"][0]


def test_a_table_without_the_columns_and_a_folder_without_pictures_are_errors(tmp_path):
    write(tmp_path / "mine", {"1.jpg": formats.jpeg(1), "metadata.csv": "file,text\n1.jpg,one\n"})
    with pytest.raises(RecordProblem, match=r"metadata\.csv, line 1: no column file_name; its columns are file, text"):
        built(tmp_path, "image_folder")
    with pytest.raises(BuildProblem, match=r"has no picture; names of pictures end in \.bmp"):
        build(
            "x", source("image_folder"), SourceSettings(), tmp_path / "o", raw=write(tmp_path / "empty", {"a.txt": ""})
        )


def test_llavas_records_one_on_each_line(tmp_path):
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
    lines = [{"id": 1, "image": "./pictures/1.jpg", "conversations": turns}, {"image": "2.jpg", "conversations": turns}]
    lines += [{"image": "1.jpg", "conversations": turns[:1]}]
    write(tmp_path / "mine", {"pictures/1.jpg": formats.jpeg(10), "chat.jsonl": formats.jsonl(lines) + "{\n"})
    documents, counted = built(tmp_path, "llava")
    assert [told(document) for document in documents] == [[10, "What?", "A cat."]]
    assert counted.rejected == {"picture is not there": 1, "turns do not alternate": 1, "not valid JSON": 1}
    assert "chat.jsonl, line 4" in counted.examples["not valid JSON"][0]


def test_interleaved_lines(tmp_path):
    lines = [
        {"images": [None, "a.jpg", None, "b.jpg"], "texts": ["First.", None, "Then.", None]},
        {"images": ["none.jpg", "a.jpg", None], "texts": [None, None, "Kept."]},
        {"images": ["none.jpg", None], "texts": [None, "Lost."]},
        {"images": ["a.jpg"], "texts": ["both"]},
    ]
    pictures = {"a.jpg": formats.jpeg(10), "b.jpg": formats.jpeg(20)}
    write(tmp_path / "mine", {"stories.jsonl": formats.jsonl(lines), **pictures})
    documents, counted = built(tmp_path, "interleaved_jsonl")
    assert [told(document) for document in documents] == [["First.", 10, "Then.", 20], [10, "Kept."]]
    assert counted.rejected == {"no picture is left": 1, "images and texts do not fit": 1}
    assert counted.pictures_left_out == {"picture is not there": 2}


def test_shards_of_pairs_and_of_documents(tmp_path):
    members = [("1.jpg", formats.jpeg(10)), ("1.txt", b"one"), ("2.jpg", formats.jpeg(20))]
    formats.tar(tmp_path / "mine/sub/000.tar", members)
    documents, counted = built(tmp_path, "webdataset")
    assert [told(document) for document in documents] == [[10, "one"]] and counted.rejected == {"caption is empty": 1}
    story = tiny.story()
    shards.write([story, tiny.conversation(), tiny.text()], tmp_path / "own/mine/set")
    counted = build(
        "mine", source("documents"), SourceSettings(picture_side=8), tmp_path / "o", raw=tmp_path / "own/mine"
    )
    kept = list(shards.read(shards.find(tmp_path / "o/mine")))
    assert [document.kind for document in kept] == ["interleaved", "conversation", "text"] and counted.documents == 3
    assert [p.text for p in kept[0].parts if isinstance(p, Text)] == [
        p.text for p in story.parts if isinstance(p, Text)
    ]
    assert {part.image.size for part in kept[0].parts if isinstance(part, Picture)} == {(8, 8)}


# ---- configuration ---------------------------------------------------------------------------------------------------


def experiment(tmp_path: Path, sources: str, more: str = "") -> Path:
    config = tmp_path / "own.yaml"
    digest = "00000000000000000000000000000000.dir"
    text = f"name: own\nfoundations: {{source: fetch, md5: {digest}, sha256: '{'0' * 64}'}}\nsources: {sources}\n{more}"
    config.write_text(text)
    return config


@pytest.mark.parametrize(
    ("sources", "complaint"),
    [
        (
            "{mine: {path: a, licence: private}}",
            "sources.mine: your own data need a format, one of image_folder, llava",
        ),
        ("{mine: {path: a, format: llava}}", "sources.mine: your own data need a licence"),
        ("{mine: {format: llava, licence: private}}", "which need a path, too"),
        ("{mine: {path: a, format: llava_json, licence: private}}", "'llava_json' is none of image_folder, llava"),
        ("{mine: {path: ~/a, format: llava, licence: private}}", "write its path out, without ~"),
        ("{mine: {path: 'a{b}', format: llava, licence: private}}", "has a brace"),
    ],
)
def test_what_an_own_set_lacks_is_said(tmp_path, sources, complaint):
    with pytest.raises(ConfigProblem) as problem:
        load(experiment(tmp_path, sources))
    assert complaint in str(problem.value)


def test_own_files_may_not_lie_where_rules_write(tmp_path):
    for path in ("data/sources", "data/sources/mine/x", "data/emoji"):
        config = experiment(tmp_path, f"{{mine: {{path: {path}, format: llava, licence: private}}}}")
        with pytest.raises(ConfigProblem, match=r"sources\.mine\.path: .* lie in each other; put your files"):
            check_folders(load(config), tmp_path)


def test_a_name_of_a_public_set_is_refused(tmp_path):
    config = experiment(tmp_path, "{pope: {path: a, format: llava, licence: private}}")
    with pytest.raises(ConfigProblem, match=r"sources\.pope: .* has a public set of this name"):
        manifest.of_experiment(load(config), repository.ROOT / manifest.MANIFEST)


# ---- digests ---------------------------------------------------------------------------------------------------------


def test_contents_count_and_dates_do_not(tmp_path):
    folder, known = (
        write(tmp_path / "mine", {"1.jpg": b"one", "sub/2.jpg": b"two", ".hidden": b"?"}),
        tmp_path / "known",
    )
    before = own.remember(folder, known)
    os.utime(folder / "1.jpg", (1, 1))
    write(folder, {".hidden": b"other"})
    assert own.digest_of(folder, known) == own.digest_of(folder) == before
    write(tmp_path, {"new.jpg": b"new"})
    os.utime(tmp_path / "new.jpg", (2, 2))
    (tmp_path / "new.jpg").replace(folder / "1.jpg")  # older than all that was made, and of the same size
    changed = own.digest_of(folder, known)
    (folder / "sub/2.jpg").unlink()
    assert len({before, changed, own.digest_of(folder, known)}) == 3


def test_the_workflow_builds_a_changed_set_again(tmp_path):
    checkout = repository.copy(tmp_path / "checkout")
    write(
        checkout / "data/mine", {"1.jpg": formats.jpeg(10), "1.txt": "one", "2.jpg": formats.jpeg(20), "2.txt": "two"}
    )
    write(checkout / "data/mine_test", {"prompts.txt": "a cat\n"})
    more = """
benchmarks: {my_prompts: {task: draw, source: drawn}}
evaluations: [{model: tuned, benchmarks: [my_prompts]}]
stages:
  tuned:
    {trains: [visual_projector], mode: comprehension, mixture: {mine: 1}, steps: 2, rows_per_batch: 2, context: 64,
     learning_rate: 1.0e-3}
"""
    own_sets = "mine: {path: data/mine, format: image_folder, licence: private}"
    own_sets += ", drawn: {path: data/mine_test, format: prompts, licence: private}"
    config = experiment(checkout / "config", "{" + own_sets + "}", more)
    target = (f"--configfile={config.relative_to(checkout)}", "sources")

    def ran(*flags: str) -> str:
        return repository.run(checkout, "snakemake", "--cores", "1", *flags, *target).stdout

    jobs = {rule: (inputs, outputs) for rule, inputs, outputs in repository.jobs(checkout, target[0], "results/tables")}
    assert jobs["build_mine"] == (["data/mine"], ["data/sources/mine/shards"])
    assert jobs["place_benchmark"] == (["data/mine_test"], ["data/benchmarks/drawn"])
    assert "data/sources/mine/shards" in jobs["train_tuned"][0]
    assert "fetch_source" not in jobs
    ran()
    report = json.loads((checkout / "data/sources/mine/shards/report.json").read_text())
    assert report["documents"] == 2 and report["files"] == own.digest_of(checkout / "data/mine")
    os.utime(checkout / "data/mine/1.txt")
    assert "Nothing to be done" in ran()
    write(checkout, {"new.txt": "new"})
    os.utime(checkout / "new.txt", (1, 1))
    (checkout / "new.txt").replace(checkout / "data/mine/1.txt")
    write(checkout / "data/mine_test", {"prompts.txt": "a dog\n"})
    planned = repository.planned(checkout, *target)
    assert planned.keys() == {"build_mine", "place_benchmark", "sources"}
    shutil.rmtree(checkout / "data/mine")
    shutil.rmtree(checkout / "data/sources/mine")
    said = repository.run(checkout, "snakemake", "-n", *target, check=False).stdout
    assert "sources.mine.path: there is no folder" in said and "data/mine" in said


# ---- benchmarks and prompts ------------------------------------------------------------------------------------------


def test_own_questions(tmp_path):
    questions = [{"question_id": 1, "image": "a cat.jpg", "question": "what?"}]
    questions += [{"question_id": 2, "image_id": 7, "question": "how many?"}]
    annotations = [{"question_id": 1, "answers": ["cat"]}]
    annotations += [{"question_id": 2, "answers": [{"answer": "two"}, {"answer": "2"}]}]
    files = {"questions.json": {"questions": questions}, "my_annotations.json": {"annotations": annotations}}
    raw = write(tmp_path / "raw", files | {"img/a cat.jpg": formats.jpeg(10), "img/x_7.jpg": formats.jpeg(70)})
    place(source("vqa"), raw, (), tmp_path / "out")
    items = tasks.load("vqa", tmp_path / "out", "test")
    shown = pictures_of(tmp_path / "out", "test")
    assert [shown.read(item.picture).getpixel((1, 1))[0] for item in items] == [10, 70]
    assert [item.answers for item in items] == [("cat",) * 10, ("two", "2")]
    write(raw, {"questions.json": {"questions": [{"question_id": 1, "image_id": 8, "question": "what?"}]}})
    with pytest.raises(BenchmarkProblem, match=r"questions\.json, questions\[0\]: picture 8 is not in"):
        place(source("vqa"), raw, (), tmp_path / "again")


def test_own_captions_and_own_pope(tmp_path):
    images, captions = [{"id": 5, "file_name": "img/five.jpg"}], [{"id": 1, "image_id": 5, "caption": "a five"}]
    content = {"images": images, "annotations": captions}
    raw = write(tmp_path / "captions", {"told.json": content, "img/five.jpg": formats.jpeg(50)})
    place(source("coco_captions"), raw, (), tmp_path / "out")
    (item,) = tasks.load("captions", tmp_path / "out", "test")
    assert (item.picture, item.references) == ("five.jpg", ("a five",))
    line = {"question_id": 1, "image": "five.jpg", "text": "is there a five?", "label": "yes"}
    subsets = ("random", "popular", "adversarial")
    raw = write(tmp_path / "pope", {f"pope_{one}.jsonl": formats.jsonl([line]) for one in subsets})
    write(raw, {"five.jpg": formats.jpeg(50)})
    place(source("pope"), raw, (), tmp_path / "placed")
    assert [item.id for item in tasks.load("pope", tmp_path / "placed", "test")] == [f"{one}-1" for one in subsets]


def test_own_prompts_have_no_images_to_compare_with(tmp_path):
    raw = write(tmp_path / "raw", {"prompts.txt": "a red cat\n\n  two   dogs\n"})
    place(source("prompts"), raw, (), tmp_path / "out")
    items = tasks.load("draw", tmp_path / "out", "test")
    assert [(item.id, item.prompt, item.picture) for item in items] == [("1", "a red cat", ""), ("3", "two dogs", "")]
    sets = "{drawn: {path: a, format: prompts, licence: private}}"
    more = "evaluation: {pictures: {}}\nbenchmarks: {mine: {task: draw, source: drawn}}\n"
    with pytest.raises(ConfigProblem, match=r"benchmarks\.mine: evaluation\.pictures compares with real images"):
        tasks.check(load(experiment(tmp_path, sets, more)), "own.yaml")
    with pytest.raises(RecordProblem, match=r"p\.txt"):
        place(source("prompts"), write(tmp_path / "odd", {"p.txt": b"\xff\xfe"}), (), tmp_path / "nothing")
    with pytest.raises(RecordProblem, match="has no prompt; write one on each line"):
        place(source("prompts"), write(tmp_path / "none", {"p.txt": "\n"}), (), tmp_path / "nothing")


@pytest.mark.parametrize("set_", ["emoji", "corrected"])
def test_own_wording_stands_around_the_question(set_):
    wording = prompts.Wording(system="Look.", instruction="One word.", answer="It is")
    asked = prompts.about_picture("1", tiny.picture(), "what?", wording, set_)
    assert prompts.as_text(asked) == "Look. <image> what? One word. It is"
    assert (
        prompts.as_text(prompts.about_picture("1", tiny.picture(), "", wording, set_))
        == "Look. <image> One word. It is"
    )


def test_a_benchmark_with_its_own_wording_says_so_in_the_protocol(tmp_path):
    more = "benchmarks: {mine: {task: vqa, wording: {instruction: Briefly.}}, other: {task: draw, source: mm_vet}}"
    use = load(experiment(tmp_path, "{}", more)).benchmarks["mine"]
    assert predict._benchmark_settings(use)["benchmark"]["wording"]["instruction"] == "Briefly."
    wrong = "benchmarks: {mine: {task: draw, source: drawn, wording: {system: Draw.}}}"
    with pytest.raises(ConfigProblem, match=r"benchmarks\.mine\.wording: the task draw takes no wording"):
        tasks.check(load(experiment(tmp_path, "{}", wrong)), "own.yaml")


def test_place_benchmark_finds_own_sets_in_the_experiment(tmp_path, monkeypatch):
    monkeypatch.chdir(repository.ROOT)
    raw = write(tmp_path / "raw", {"prompts.txt": "a red cat\n"})
    config = experiment(tmp_path, f"{{drawn: {{path: {raw}, format: prompts, licence: private}}}}")
    flags = ["--source", "drawn", "--config", str(config), "--raw", str(raw), "--out", str(tmp_path / "out")]
    cli.main(["place-benchmark", *flags])
    assert (tmp_path / "out/draw_test.jsonl").is_file()


# ---- audit -----------------------------------------------------------------------------------------------------------


def test_the_audit_names_licences_and_images_that_are_trained_and_tested_on(tmp_path):
    root = write(tmp_path, {"data/mine/1.jpg": formats.jpeg(1), "data/mine/2.jpg": formats.jpeg(2)})
    write(root, {"test/other name.jpg": formats.jpeg(2), "test/3.jpg": formats.jpeg(3)})
    for name in ("data/sources.yaml", "data/made.yaml"):
        shutil.copy(repository.ROOT / name, root / name)
    sets = "{mine: {path: data/mine, format: image_folder, licence: CC BY 4.0}"
    sets += ", asked: {path: test, format: vqa, licence: private}}"
    stage = "{trains: [visual_projector], mode: comprehension, mixture: {mine: 1}, steps: 1, rows_per_batch: 1"
    more = "benchmarks: {asked: {task: vqa, source: asked}}\nevaluations: [{model: s, benchmarks: [asked]}]\n"
    config = experiment(tmp_path, sets, more + f"stages: {{s: {stage}, context: 64, learning_rate: 1.0e-3}}}}\n")
    run = SimpleNamespace(experiment=load(config), config="own.yaml")
    audited = SimpleNamespace(root=root, run=run)
    licences = check_inputs.licences(audited)
    assert licences.outcome == "pass" and "own sets: mine (CC BY 4.0), asked (private)" in licences.reason
    (fault,) = check_inputs.contamination(audited).faults
    assert fault.what == "1 images of asked are also in the training set mine: other name.jpg is 2.jpg of mine"
    (root / "test/other name.jpg").unlink()
    assert check_inputs.contamination(audited).outcome == "pass"


def test_results_of_a_configuration_that_continues_a_run_are_no_orphans(tmp_path):
    shutil.copytree(repository.ROOT / "config", tmp_path / "config")
    run = SimpleNamespace(runs=["embedded"])
    found = check_dag._of_the_same_name(SimpleNamespace(root=tmp_path, run=run))
    assert (
        Path("results/checkpoints/embedded/mine") in found and Path("results/metrics/embedded/mine/vqa.json") in found
    )
    assert not [path for path in found if "mine" in path.parts and path.parts[2] != "embedded"]
