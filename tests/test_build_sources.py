"""Public formats become Documents: valid records are kept exactly, invalid ones are counted by reason."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

import formats
import repository
from dreamllm import cli
from dreamllm.config.sources import SourceSettings
from dreamllm.data import shards
from dreamllm.data.document import Document, Picture, Text
from dreamllm.sources import records
from dreamllm.sources.build import build
from dreamllm.sources.manifest import Source
from dreamllm.sources.readers import mmc4
from dreamllm.sources.records import BuildProblem, Member, RecordProblem, Rejected
from dreamllm.sources.urls import FILES, LIST, list_urls

U = "http://web/"


def source(format: str, **more) -> Source:
    about = {"title": "set", "availability": "open", "source": "test", "obtain": "by hand", "format": format}
    return Source.model_validate(about | more)


def content(document: Document) -> list[str | int]:
    """Texts, and the shade of each picture."""
    return [part.text if isinstance(part, Text) else part.image.getpixel((1, 1))[0] for part in document.parts]


def read(out: Path, name: str = "set") -> list[Document]:
    return list(shards.read(shards.find(out / name)))


def write_pages(folder: Path, *lines: object) -> None:
    formats.archive(folder / "raw/docs_0.jsonl.zip", {"docs_0.jsonl": formats.jsonl(list(lines))})


def build_pages(folder: Path, settings: SourceSettings, processes: int = 1):
    """list-urls and build-shards of MMC4 pages; pictures are those in folder/pictures."""
    list_urls(source("mmc4"), settings, folder / "raw", folder / "urls")
    places = {"raw": folder / "raw", "pictures": folder / "pictures", "urls": folder / "urls"}
    return build("set", source("mmc4"), settings, folder / "out", processes=processes, **places)


# ---- pairs ---------------------------------------------------------------------------------------------------------


def test_shards_of_img2dataset_become_pairs(tmp_path):
    pictures = [(f"{n:06d}", f"{U}{n}", f"  picture\n{n} ", formats.jpeg(10 * n)) for n in (2, 1, 3)]
    formats.img2dataset(tmp_path / "pictures/00000.tar", pictures)
    counted = build(
        "set", source("url_json"), SourceSettings(), tmp_path / "out", raw=tmp_path, pictures=tmp_path / "pictures"
    )
    documents = read(tmp_path / "out")
    assert [content(document) for document in documents] == [[10, "picture 1"], [20, "picture 2"], [30, "picture 3"]]
    assert {document.kind for document in documents} == {"pair"} and documents[0].meta["url"] == f"{U}1"
    assert (counted.documents, counted.pictures, dict(counted.rejected)) == (3, 3, {})


def test_every_defective_pair_is_left_out_and_counted(tmp_path, monkeypatch):
    good = formats.jpeg(200)
    members = [("000001.jpg", good), ("000001.txt", b"good"), ("000002.jpg", good), ("000002.txt", b" \n")]
    members += [("000003.txt", b"no picture"), ("000004.jpg", good[:200]), ("000004.txt", b"half a picture")]
    members += [("000005.png", formats.huge_png()), ("000005.txt", b"ten gigabytes")]
    members += [("../../evil.jpg", good), ("../../evil.txt", b"evil"), ("/abs.jpg", good), ("/abs.txt", b"evil")]
    members += [("000001.jpg", formats.jpeg(0)), ("000001.txt", b"key twice")]
    members += [("000006.jpg", formats.jpeg(1, (300, 5))), ("000006.txt", b"small")]
    members += [("000007.jpg", good), ("000007.txt", b"bad data"), ("000007.json", b'{"url": "a", "url": "b"}')]
    formats.tar(tmp_path / "pictures/00000.tar", members)
    assert len(formats.huge_png()) < 1024
    monkeypatch.chdir(tmp_path)
    settings = SourceSettings(smallest_picture=8)
    counted = build("set", source("url_json"), settings, tmp_path / "out", raw=tmp_path, pictures=tmp_path / "pictures")
    assert [content(document) for document in read(tmp_path / "out")] == [[200, "good"]]
    assert dict(counted.rejected) == {
        "caption is empty": 1,
        "no picture": 1,
        "picture or its data cannot be read": 3,
        "name leads out of its folder": 2,
        "duplicate key": 1,
        "picture is too small": 1,
    }
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["records left out"] == dict(counted.rejected)
    assert any("DecompressionBomb" in place for place in report["examples"]["picture or its data cannot be read"])
    assert not list(tmp_path.parent.glob("evil*")) and not Path("/abs.jpg").exists()


def test_a_truncated_shard_loses_only_its_end(tmp_path):
    pictures = [(f"{n:06d}", f"{U}{n}", f"picture {n}", formats.jpeg(10 * n)) for n in range(4)]
    path = formats.img2dataset(tmp_path / "pictures/00000.tar", pictures)
    path.write_bytes(path.read_bytes()[:9000])
    counted = build(
        "set", source("url_json"), SourceSettings(), tmp_path / "out", raw=tmp_path, pictures=tmp_path / "pictures"
    )
    assert 0 < counted.documents < 4 and counted.rejected["shard is damaged"] == 1


def test_large_pictures_are_shrunk_and_small_ones_kept(tmp_path):
    samples = [("000000", U, "big", formats.jpeg(9, (1200, 900))), ("000001", U, "small", formats.jpeg(9, (40, 30)))]
    formats.img2dataset(tmp_path / "pictures/00000.tar", samples)
    settings = SourceSettings(picture_side=300)
    build("set", source("url_json"), settings, tmp_path / "out", raw=tmp_path, pictures=tmp_path / "pictures")
    assert [document.pictures[0].size for document in read(tmp_path / "out")] == [(400, 300), (40, 30)]


def test_a_set_without_any_document_is_an_error_and_leaves_no_shards(tmp_path):
    formats.tar(tmp_path / "pictures/00000.tar", [("0.txt", b"no picture")])
    with pytest.raises(BuildProblem, match="no document could be made.*no picture"):
        build(
            "set", source("url_json"), SourceSettings(), tmp_path / "out", raw=tmp_path, pictures=tmp_path / "pictures"
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_limit_and_the_number_of_processes_change_nothing_else(tmp_path, processes):
    for shard in range(3):
        samples = [(f"{n:06d}", U, f"{shard}-{n}", formats.jpeg(n)) for n in range(4)]
        formats.img2dataset(tmp_path / f"pictures/{shard:05d}.tar", samples)
    settings = SourceSettings(documents=6)
    places = {"raw": tmp_path, "pictures": tmp_path / "pictures"}
    counted = build("set", source("url_json"), settings, tmp_path / "out", processes=processes, **places)
    captions = [document.parts[1].text for document in read(tmp_path / "out")]
    assert captions == ["0-0", "0-1", "0-2", "0-3", "1-0", "1-1"] and counted.documents == 6
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "report.json",
        "set-00000.tar",
        "set-00001.tar",
    ]


# ---- lists of addresses --------------------------------------------------------------------------------------------


def listed(folder: Path) -> list[dict]:
    import gzip

    return [json.loads(line) for line in gzip.open(folder / LIST)]


def test_addresses_of_a_json_list_and_what_is_left_out(tmp_path):
    rows = [{"url": f"{U}{n}", "caption": f"c{n}"} for n in range(5)] + [
        {"url": f"{U}x", "caption": " "},
        {"url": 3},
        7,
    ]
    (tmp_path / "raw").mkdir()
    text = json.dumps(rows)[:-1] + ', {"url": "a", "url": "b", "caption": "twice"}]'
    (tmp_path / "raw/list.json").write_text(text)
    counts = list_urls(source("url_json"), SourceSettings(), tmp_path / "raw", tmp_path / "urls")
    assert listed(tmp_path / "urls") == rows[:5]
    left_out = {key: count for key, count in counts.items() if key.startswith("left out")}
    assert left_out == {
        "left out: caption is empty": 1,
        "left out: no address": 1,
        "left out: not a JSON object": 1,
        "left out: duplicate key": 1,
    }
    list_urls(source("url_json"), SourceSettings(candidates=2), tmp_path / "raw", tmp_path / "urls")
    assert listed(tmp_path / "urls") == rows[:2]


def test_addresses_of_a_parquet_table_by_the_names_of_its_columns(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    (tmp_path / "raw").mkdir()
    table = pa.table({"URL": [f"{U}0", None], "TEXT": ["zero", "no address"], "NSFW": ["", ""]})
    pyarrow.parquet.write_table(table, tmp_path / "raw/part-0.parquet")
    laion = source("url_parquet", columns={"url": "URL", "caption": "TEXT"})
    counts = list_urls(laion, SourceSettings(), tmp_path / "raw", tmp_path / "urls")
    assert listed(tmp_path / "urls") == [{"url": f"{U}0", "caption": "zero"}]
    assert counts["left out: no address"] == 1


def test_a_truncated_list_is_an_error(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/list.json").write_text('[{"url": "a", "caption": "b"}, {"url"')
    with pytest.raises(RecordProblem, match="record 1"):
        list_urls(source("url_json"), SourceSettings(), tmp_path / "raw", tmp_path / "urls")
    assert not (tmp_path / "urls").exists()


@given(st.lists(st.dictionaries(st.text(max_size=3), st.one_of(st.text(max_size=5), st.integers(), st.none()))))
def test_big_lists_are_read_as_json_reads_them(values):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "list.json"
        path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(records, "BLOCK", 3)
            assert [record for _, record in records.read_list(Member(path))] == values


# ---- MMC4 ----------------------------------------------------------------------------------------------------------


def test_pictures_of_mmc4_follow_their_sentences():
    page = formats.mmc4([" One. ", "Two.", "Three.", "Four."], (f"{U}b", 2, 0.3), (f"{U}a", 0, 0.3), (f"{U}c", 2, 0.4))
    assert mmc4.page(page, 0.0) == [
        "One.",
        (f"{U}a", 0.3),
        "Two. Three.",
        (f"{U}b", 0.3),
        (f"{U}c", 0.4),
        "Four.",
    ]


def test_the_filter_keeps_similarities_from_its_threshold_on():
    page = formats.mmc4(["One.", "Two."], (f"{U}low", 0, 0.2499), (f"{U}edge", 1, 0.25))
    assert mmc4.page(page, 0.25) == ["One. Two.", (f"{U}edge", 0.25)]
    assert mmc4.page(page, 0.3) == Rejected("no picture with similarity >= 0.3", "")


@given(
    st.lists(st.text("ab .", max_size=4), min_size=1, max_size=6).flatmap(
        lambda sentences: st.tuples(
            st.just(sentences),
            st.lists(st.tuples(st.integers(0, len(sentences) - 1), st.floats(0, 1)), min_size=1, max_size=6),
        )
    ),
    st.floats(0, 1),
)
def test_no_sentence_and_no_kept_picture_of_mmc4_is_lost(page, threshold):
    sentences, matches = page
    record = formats.mmc4(sentences, *[(f"{U}{n}", index, sim) for n, (index, sim) in enumerate(matches)])
    made = mmc4.page(record, threshold)
    kept = {f"{U}{n}" for n, (_, sim) in enumerate(matches) if sim >= threshold}
    if not kept:
        assert isinstance(made, Rejected)
        return
    assert sorted(part[0] for part in made if not isinstance(part, str)) == sorted(kept)
    words = " ".join(part for part in made if isinstance(part, str))
    assert words == " ".join(sentence.strip() for sentence in sentences if sentence.strip())
    for n, (index, _) in enumerate(matches):
        if f"{U}{n}" in kept:
            place = next(i for i, part in enumerate(made) if part[0] == f"{U}{n}" and not isinstance(part, str))
            before = " ".join(part for part in made[:place] if isinstance(part, str))
            assert before == " ".join(text.strip() for text in sentences[: index + 1] if text.strip())


@pytest.mark.parametrize(
    "page",
    [
        {"text_list": "no list", "image_info": []},
        formats.mmc4(["One."], (f"{U}a", 1, 0.3)),
        formats.mmc4(["One."], (f"{U}a", -1, 0.3)),
        formats.mmc4(["One."], (f"{U}a", 0, float("nan"))),
        formats.mmc4(["One."], (None, 0, 0.3)),  # type: ignore[arg-type]
        {"text_list": ["One."]},
        formats.mmc4(["One."]),
    ],
)
def test_pages_that_do_not_fit_are_rejected(page):
    assert isinstance(mmc4.page(page, 0.25), Rejected)


def test_a_missing_picture_moves_no_other_and_is_counted(tmp_path):
    write_pages(
        tmp_path,
        formats.mmc4(["One.", "Two."], (f"{U}10", 0, 0.3), (f"{U}gone", 0, 0.3), (f"{U}20", 1, 0.3)),
        formats.mmc4(["All gone."], (f"{U}gone", 0, 0.3)),
        formats.mmc4(["Next.", "page."], (f"{U}30", 0, 0.3), (f"{U}40", 1, 0.3)),
        formats.mmc4(["Damaged."], (f"{U}bad", 0, 0.3), (f"{U}50", 0, 0.3)),
    )
    samples = [(f"{n:06d}", f"{U}{n}", "", formats.jpeg(n)) for n in (50, 40, 30, 20, 10)]
    samples += [("000099", f"{U}bad", "", b"no picture")]
    formats.img2dataset(tmp_path / "pictures/00000.tar", samples)
    counted = build_pages(tmp_path, SourceSettings(min_similarity=0.25))
    assert [content(document) for document in read(tmp_path / "out")] == [
        ["One.", 10, "Two.", 20],
        ["Next.", 30, "page.", 40],
        ["Damaged.", 50],
    ]
    assert dict(counted.pictures_left_out) == {
        "picture was not fetched": 2,
        "picture or its data cannot be read": 1,
    }
    assert dict(counted.rejected) == {"no picture is left": 1}


def test_malformed_lines_and_duplicate_keys_reject_one_page_each(tmp_path):
    good = formats.mmc4(["One."], (f"{U}10", 0, 0.3))
    twice = json.dumps(good)[:-1] + ', "text_list": ["Other."]}'
    lines = "\n".join([json.dumps(good), "{broken", twice, "[1]", "", json.dumps(good)])
    formats.archive(tmp_path / "raw/docs.zip", {"a/docs_0.jsonl": lines})
    formats.img2dataset(tmp_path / "pictures/00000.tar", [("000000", f"{U}10", "", formats.jpeg(10))])
    counted = build_pages(tmp_path, SourceSettings())
    assert counted.documents == 2
    assert dict(counted.rejected) == {"not valid JSON": 2, "not a JSON object": 1}


def test_nested_archives_are_read_and_a_damaged_one_is_an_error(tmp_path):
    inner = formats.archive(tmp_path / "x/docs_0.jsonl.zip", {"docs_0.jsonl": formats.jsonl([{"a": 1}])})
    outer = formats.archive(tmp_path / "raw/all.zip", {"docs/docs_0.jsonl.zip": inner.read_bytes()})
    (member,) = records.members(tmp_path / "raw", ".jsonl")
    assert [record for _, record in records.read_jsonl(member)] == [{"a": 1}]
    outer.write_bytes(outer.read_bytes()[:60])
    with pytest.raises(RecordProblem, match="all.zip"):
        records.members(tmp_path / "raw", ".jsonl")


def test_only_the_pages_whose_pictures_were_listed_are_built(tmp_path):
    write_pages(tmp_path, *[formats.mmc4([f"{n}."], (f"{U}{n}", 0, 0.3)) for n in range(5)])
    samples = [(f"{n:06d}", f"{U}{n}", "", formats.jpeg(n)) for n in range(5)]
    formats.img2dataset(tmp_path / "pictures/00000.tar", samples)
    counted = build_pages(tmp_path, SourceSettings(candidates=3))
    assert counted.documents == 3 and not counted.rejected
    assert list(json.loads((tmp_path / "urls" / FILES).read_text()).values()) == [3]


# ---- OBELICS -------------------------------------------------------------------------------------------------------


def test_pages_of_obelics_keep_their_order(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    (tmp_path / "raw").mkdir()
    images = [[f"{U}10", None, f"{U}20"], [f"{U}10"], [f"{U}10", None]]
    texts = [[None, " between ", None], ["both"], [None, "after"]]
    table = pa.table({"images": images, "texts": texts, "metadata": ["[]"] * 3})
    pyarrow.parquet.write_table(table, tmp_path / "raw/train-0.parquet")
    samples = [(f"{n:06d}", f"{U}{n}", "", formats.jpeg(n)) for n in (10, 20)]
    formats.img2dataset(tmp_path / "pictures/00000.tar", samples)
    list_urls(source("obelics"), SourceSettings(), tmp_path / "raw", tmp_path / "urls")
    assert listed(tmp_path / "urls") == [{"url": f"{U}10"}, {"url": f"{U}20"}]
    places = {"raw": tmp_path / "raw", "pictures": tmp_path / "pictures", "urls": tmp_path / "urls"}
    counted = build("set", source("obelics"), SourceSettings(), tmp_path / "out", **places)
    assert [content(document) for document in read(tmp_path / "out")] == [[10, "between", 20], [10, "after"]]
    assert dict(counted.rejected) == {"images and texts do not fit": 1}


# ---- LLaVA ---------------------------------------------------------------------------------------------------------


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]


def write_llava(folder: Path, *rows: dict) -> None:
    (folder / "raw").mkdir(exist_ok=True)
    (folder / "raw/list.json").write_text(json.dumps(rows))


def test_conversations_of_llava_with_pictures_of_other_sets(tmp_path):
    write_llava(
        tmp_path,
        {"id": "a", "image": "coco/train2017/1.jpg", "conversations": turns("<image>\nWhat?", "This.", "Why?", "So.")},
        {"id": "a", "image": "2.jpg", "conversations": turns("And this?\n<image>", "That.")},
        {"id": "text", "conversations": turns("Hello.", "Hi.")},
    )
    formats.archive(tmp_path / "coco/train2017.zip", {"train2017/1.jpg": formats.jpeg(10)})
    formats.archive(tmp_path / "raw/images.zip", {"deep/2.jpg": formats.jpeg(20)})
    others = (("coco", tmp_path / "coco"),)
    build("set", source("llava"), SourceSettings(), tmp_path / "out", raw=tmp_path / "raw", pictures_from=others)
    documents = read(tmp_path / "out")
    assert [content(document) for document in documents] == [
        [10, "What?", "This.", "Why?", "So."],
        ["And this?", 20, "That."],
        ["Hello.", "Hi."],
    ]
    assert [part.role for part in documents[0].parts] == ["user", "user", "assistant", "user", "assistant"]
    assert [document.meta["id"] for document in documents] == ["a", "a", "text"], "ids repeat in these files"


def test_every_defect_of_a_conversation_is_counted(tmp_path):
    there = {"image": "1.jpg"}
    write_llava(
        tmp_path,
        {**there, "conversations": turns("<image> Good?", "Yes.")},
        {**there, "conversations": turns("No placeholder.", "No.")},
        {**there, "conversations": turns("<image><image>", "Two.")},
        {"conversations": turns("<image> Without a picture?", "No.")},
        {"image": "../../../etc/hostname", "conversations": turns("<image> Out?", "No.")},
        {"image": "bad.jpg", "conversations": turns("<image> Bad?", "No.")},
        {**there, "conversations": turns("<image> No answer?")},
        {**there, "conversations": turns("<image> Empty?", " ")},
        {**there, "conversations": [{"from": "gpt", "value": "<image>"}]},
        {**there, "conversations": []},
    )
    formats.archive(tmp_path / "raw/images.zip", {"1.jpg": formats.jpeg(10), "bad.jpg": b"no picture"})
    counted = build("set", source("llava"), SourceSettings(), tmp_path / "out", raw=tmp_path / "raw")
    assert counted.documents == 1
    assert dict(counted.rejected) == {
        "number of <image> is not that of the pictures": 3,
        "picture is not there": 1,
        "picture or its data cannot be read": 1,
        "turns do not alternate": 2,
        "empty turn": 1,
        "no conversation": 1,
    }


def test_llava_pretrain_becomes_pairs(tmp_path):
    asked = turns("Give a brief description.\n<image>", "a red bus")
    write_llava(tmp_path, {"id": "1", "image": "00/1.jpg", "conversations": asked}, {"conversations": turns("a", "b")})
    formats.archive(tmp_path / "raw/images.zip", {"00/1.jpg": formats.jpeg(10)})
    counted = build("set", source("llava_pairs"), SourceSettings(), tmp_path / "out", raw=tmp_path / "raw")
    assert [(document.kind, content(document)) for document in read(tmp_path / "out")] == [("pair", [10, "a red bus"])]
    assert dict(counted.rejected) == {"not one picture with one caption": 1}


# ---- COCO, Localized Narratives, GQA -------------------------------------------------------------------------------


def test_coco_captions_become_pairs_of_the_training_split_alone(tmp_path):
    images = [{"id": 7, "file_name": "COCO_train2014_000000000007.jpg"}]
    captions = [
        {"id": n, "image_id": image, "caption": text} for n, image, text in [(1, 7, "a "), (2, 7, ""), (3, 8, "b")]
    ]
    train = json.dumps({"images": images, "annotations": captions})
    formats.archive(
        tmp_path / "raw/annotations.zip",
        {"annotations/captions_train2014.json": train, "annotations/captions_val2014.json": "{}"},
    )
    formats.archive(tmp_path / "raw/train2014.zip", {"train2014/COCO_train2014_000000000007.jpg": formats.jpeg(70)})
    counted = build("set", source("coco"), SourceSettings(), tmp_path / "out", raw=tmp_path / "raw")
    assert [content(document) for document in read(tmp_path / "out")] == [[70, "a"]]
    assert dict(counted.rejected) == {"caption is empty": 1, "caption of an unknown picture": 1}
    twice = json.dumps({"images": images * 2, "annotations": captions})
    formats.archive(tmp_path / "raw/annotations.zip", {"annotations/captions_train2014.json": twice})
    with pytest.raises(RecordProblem, match="duplicate image id"):
        build("set", source("coco"), SourceSettings(), tmp_path / "out2", raw=tmp_path / "raw")


def test_localized_narratives_become_pairs(tmp_path):
    lines = [
        {
            "dataset_id": "mscoco_train2017",
            "image_id": "42",
            "annotator_id": 1,
            "caption": "In this image there is a cat.",
        },
        {"dataset_id": "ade20k", "image_id": "ADE_1", "caption": "no COCO"},
        {"dataset_id": "mscoco_train2017", "image_id": "43", "caption": "not there"},
    ]
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/coco_train.jsonl").write_text(formats.jsonl(lines))
    formats.archive(tmp_path / "raw/train2017.zip", {"train2017/000000000042.jpg": formats.jpeg(42)})
    counted = build("set", source("narratives"), SourceSettings(), tmp_path / "out", raw=tmp_path / "raw")
    assert [content(document) for document in read(tmp_path / "out")] == [[42, "In this image there is a cat."]]
    assert dict(counted.rejected) == {"no COCO image id": 1, "picture is not there": 1}


def test_questions_of_gqa_become_conversations(tmp_path):
    asked = '{"1": {"imageId": "23", "question": "Is it red?", "answer": "yes", "fullAnswer": "Yes, it is red."},'
    asked += '"2": {"imageId": "23", "question": "What?"}, "1": {"imageId": "23", "question": "a", "answer": "b"},'
    asked += '"3": {"imageId": "24", "question": "Where?", "answer": "there"}}'
    formats.archive(
        tmp_path / "raw/questions.zip", {"train_balanced_questions.json": asked, "val_questions.json": "{}"}
    )
    formats.archive(tmp_path / "pictures/images.zip", {"images/23.jpg": formats.jpeg(23)})
    others = (("", tmp_path / "pictures"),)
    counted = build(
        "set", source("gqa"), SourceSettings(), tmp_path / "out", raw=tmp_path / "raw", pictures_from=others
    )
    (document,) = read(tmp_path / "out")
    assert content(document) == [23, "Is it red?", "yes"] and document.kind == "conversation"
    reasons = {"question is incomplete": 1, "duplicate key": 1, "picture is not there": 1}
    assert dict(counted.rejected) == reasons


# ---- the commands --------------------------------------------------------------------------------------------------


def test_the_commands_go_from_raw_files_to_shards(tmp_path, capsys):
    manifest = "mine: {title: t, format: mmc4, availability: gone, source: test, obtain: by hand, unknown: all}\n"
    (tmp_path / "sources.yaml").write_text(manifest)
    config = Path(__file__).parent.parent / "config/embedded.yaml"
    text = config.read_text().replace("name: embedded", "name: mine\nsources: {mine: {min_similarity: 0.25}}")
    (tmp_path / "mine.yaml").write_text(text)
    write_pages(tmp_path, formats.mmc4(["One."], (f"{U}10", 0, 0.3), (f"{U}20", 0, 0.2)))
    formats.img2dataset(tmp_path / "pictures/00000.tar", [("000000", f"{U}10", "", formats.jpeg(10))])
    common = ["--source", "mine", "--manifest", str(tmp_path / "sources.yaml"), "--config", str(tmp_path / "mine.yaml")]
    cli.main(["list-urls", *common, "--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "urls")])
    places = [
        "--pictures",
        str(tmp_path / "pictures"),
        "--urls",
        str(tmp_path / "urls"),
        "--raw",
        str(tmp_path / "raw"),
    ]
    cli.main(["build-shards", *common, *places, "--out", str(tmp_path / "out")])
    assert '"documents": 1' in capsys.readouterr().out
    assert [content(document) for document in read(tmp_path / "out", "mine")] == [["One.", 10]]
    (picture,) = [part for part in read(tmp_path / "out", "mine")[0].parts if isinstance(part, Picture)]
    assert picture.role == ""


def test_candidates_are_refused_for_sets_without_addresses(tmp_path):
    with pytest.raises(BuildProblem, match="use `documents` here"):
        build("set", source("llava"), SourceSettings(candidates=3), tmp_path / "out", raw=tmp_path)


# ---- a new format --------------------------------------------------------------------------------------------------

READER = """
from dreamllm.data.document import Document, Text
from dreamllm.sources.records import members


def units(inputs):
    return members(inputs.raw, ".txt")


def documents(unit, settings):
    for number, line in enumerate(unit.open().read().decode().splitlines()):
        yield Document(f"{unit.name}-{number}", "text", (Text(line),))
"""


def test_a_new_format_is_one_module_and_a_set_of_it_one_entry(tmp_path):
    shutil.copytree(repository.ROOT / "src/dreamllm", tmp_path / "src/dreamllm")
    (tmp_path / "src/dreamllm/sources/readers/lines.py").write_text(READER)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/a.txt").write_text("One.\nTwo.\n")
    about = "title: p, format: lines, availability: open, source: test, obtain: by hand, unknown: all"
    (tmp_path / "sources.yaml").write_text(f"mine: {{{about}}}\n")
    command = [sys.executable, "-m", "dreamllm", "build-shards", "--source", "mine", "--manifest", "sources.yaml"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "src")}
    subprocess.run([*command, "--raw", "raw", "--out", "out"], cwd=tmp_path, env=environment, check=True)
    assert [content(document) for document in read(tmp_path / "out", "mine")] == [["One."], ["Two."]]


def test_columns_that_are_not_there_are_named_with_those_that_are(tmp_path):
    (tmp_path / "raw").mkdir()
    pyarrow.parquet.write_table(
        pyarrow.table({"URL": ["http://x/a"], "caption": ["a cat"]}), tmp_path / "raw/a.parquet"
    )
    laion = source("url_parquet", columns={"url": "URL", "caption": "TEXT"})
    with pytest.raises(RecordProblem, match=r"a\.parquet: no column TEXT; its columns are URL, caption"):
        list_urls(laion, SourceSettings(), tmp_path / "raw", tmp_path / "urls")
    (tmp_path / "json").mkdir()
    (tmp_path / "json/a.json").write_text(json.dumps([{"image_url": "http://x/a", "caption": "a cat"}]))
    with pytest.raises(
        RecordProblem, match=r"no address, first in .*record 0, which has no field url, but image_url, caption"
    ):
        list_urls(source("url_json"), SourceSettings(), tmp_path / "json", tmp_path / "urls")
