"""A byte order mark, which Windows programs write before UTF-8, changes nothing in any file that a user gives."""

from __future__ import annotations

import codecs
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import formats
from dreamllm.config import reading
from dreamllm.config.sources import SourceSettings
from dreamllm.evaluate import files, placing, tasks
from dreamllm.evaluate.human import score as human
from dreamllm.evaluate.tasks import language, pope
from dreamllm.official import files as official
from dreamllm.results import csv_files
from dreamllm.sources import img2dataset, manifest, picture_index, records, released
from dreamllm.sources.records import Member
from dreamllm.train import checkpoint
from test_place_benchmarks import mmbench_row, mmbench_table, source

COLUMNS = "a,b\n1,2\n"
JUDGEMENTS = {"page": "p", "rater": "r", "judgements": [{"sample": "s", "supported": True}]}
ENTRY = {"released": {"repo": "o/n", "revision": "0" * 40, "patterns": [], "sha256": {}}}
SET = {"set": {"title": "t", "format": "gqa", "availability": "open", "source": "s", "obtain": "o", "unknown": "all"}}
LIST, LINES = [{"url": "a"}, {"url": "b"}], formats.jsonl([{"url": "a"}, {"url": "b"}])

READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "JSON": (json.dumps(LIST), lambda path: records.read_json(Member(path))),
    "JSON list": (json.dumps(LIST), lambda path: [one for _, one in records.read_list(Member(path))]),
    "JSON table": (json.dumps({"k": {"q": 1}}), lambda path: [one[1:] for one in records.read_table(Member(path))]),
    "JSON lines": (LINES, lambda path: [one for _, one in records.read_jsonl(Member(path))]),
    "blank first line": ("\n" + LINES, lambda path: [one for _, one in records.read_jsonl(Member(path))]),
    "benchmark's JSON": (json.dumps({"a": 1}), files.read_json),
    "benchmark's JSON lines": (LINES, files.read_jsonl),
    "labels": ("0\n1\n", lambda path: files.read_text(path).split()),
    "BoolQ": (formats.jsonl([{"passage": "p", "question": "q", "answer": True}]), language.read_boolq),
    "CSV": (COLUMNS, lambda path: csv_files.read_csv(path).to_dict()),
    "judgements": (json.dumps(JUDGEMENTS), lambda path: human.read_ratings(path, "p", ["s"])[0]),
    "configuration": ("name: x\nseed: 1\n", reading.read_yaml),
    "manifest of sources": (json.dumps(SET), lambda path: manifest.load(path)["set"]),
    "manifest of released checkpoints": (json.dumps(ENTRY), lambda path: released.read_entry(path, "released")),
    "official config.json": (json.dumps({"bos_token_id": 1}), official.read_json),
    "checkpoint.json": (json.dumps({"stage": "sft"}), lambda path: checkpoint.read_metadata(path.parent)),
}


@pytest.mark.parametrize("name", READERS)
def test_a_file_with_a_byte_order_mark_reads_like_one_without(name, tmp_path):
    text, read = READERS[name]
    path = tmp_path / "checkpoint.json"  # the only reader that looks for a name wants this one
    path.write_text(text)
    wanted = read(path)
    path.write_bytes(codecs.BOM_UTF8 + text.encode())
    assert read(path) == wanted and "\ufeff" not in str(wanted)


def test_a_compressed_file_may_have_a_byte_order_mark(tmp_path):
    path = tmp_path / "docs.jsonl.gz"
    path.write_bytes(gzip.compress(codecs.BOM_UTF8 + LINES.encode()))
    assert [one for _, one in records.read_jsonl(Member(path))] == LIST


def test_a_byte_order_mark_later_in_a_file_is_part_of_the_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": "\ufeffb"}\n', encoding="utf-8")
    assert [one for _, one in records.read_jsonl(Member(tmp_path / "a.jsonl"))] == [{"a": "\ufeffb"}]


def test_a_file_that_is_no_utf_8_is_named(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(json.dumps({"a": 1}).encode("utf-16"))
    with pytest.raises(files.BenchmarkProblem, match="a.json, byte 0: is not UTF-8 text"):
        files.read_json(path)
    with pytest.raises(records.RecordProblem, match=r"a\.json"):
        records.read_json(Member(path))


def test_metadata_and_captions_of_downloaded_pictures_may_have_a_byte_order_mark(tmp_path):
    members = [("0.jpg", formats.jpeg(9)), ("0.json", codecs.BOM_UTF8 + b'{"url": "http://web/0"}')]
    shard = formats.tar(tmp_path / "0.tar", [*members, ("0.txt", codecs.BOM_UTF8 + b"a cat")])
    (pair,) = img2dataset.documents(shard, SourceSettings())
    assert pair.parts[1].text == "a cat" and pair.meta == {"url": "http://web/0"}
    assert picture_index.write(tmp_path, tmp_path / "index")["pictures"] == 1


def test_pope_and_mmbench_are_placed_without_the_byte_order_mark(tmp_path):
    line = {"question_id": 1, "image": "COCO_val2014_000000000010.jpg", "text": "Is there a cat?", "label": "no"}
    (tmp_path / "pope").mkdir()
    for subset in pope.SUBSETS:
        (tmp_path / f"pope/coco_pope_{subset}.json").write_bytes(codecs.BOM_UTF8 + formats.jsonl([line]).encode())
    formats.archive(tmp_path / "coco/val2014.zip", {f"val2014/{line['image']}": formats.jpeg(10)})
    placing.place(source("pope"), tmp_path / "pope", (("", tmp_path / "coco"),), tmp_path / "placed-pope")
    assert [item.subset for item in tasks.load("pope", tmp_path / "placed-pope", "test")] == list(pope.SUBSETS)

    mmbench_table(tmp_path / "mmbench/mmbench_dev.tsv", [mmbench_row()])
    table = tmp_path / "mmbench/mmbench_dev.tsv"
    table.write_bytes(codecs.BOM_UTF8 + table.read_bytes())
    placing.place(source("mmbench"), tmp_path / "mmbench", (), tmp_path / "placed")
    placed = tmp_path / "placed/mmbench_test.tsv"
    wanted = tasks.load("mmbench", tmp_path / "placed", "test")
    placed.write_bytes(codecs.BOM_UTF8 + placed.read_bytes())
    assert tasks.load("mmbench", tmp_path / "placed", "test") == wanted
