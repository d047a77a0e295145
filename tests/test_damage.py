"""Damaged and malformed files of public data sets: what is wrong is counted or named, and moves no other record."""

from __future__ import annotations

import base64
import copy
import gzip
import io
import json
import pickle
import struct
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.json
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import formats
import tiny
from dreamllm.config.sources import SourceSettings
from dreamllm.data import images, shards
from dreamllm.data.damage import DEEPEST_JSON, damage_as, parse_json
from dreamllm.data.document import Document, Picture, Text
from dreamllm.evaluate import predictions, tasks
from dreamllm.evaluate.files import BenchmarkProblem, Pictures
from dreamllm.evaluate.placing import WRITERS, place
from dreamllm.evaluate.tasks import pope
from dreamllm.sources import picture_files, picture_index, records
from dreamllm.sources.build import Counted, build
from dreamllm.sources.instruct import TemplateWriter, write_instructions
from dreamllm.sources.manifest import TASKS, Source
from dreamllm.sources.readers import llava, mmc4, narratives, obelics
from dreamllm.sources.records import BuildProblem, Member, RecordProblem, Rejected
from dreamllm.sources.urls import LIST, list_urls

TOLD = (RecordProblem, BuildProblem, BenchmarkProblem)  # one line for the user, by the rule of cli.py
SHADES = range(20, 200, 30)  # one record each
DEEP = "[" * 100_000 + "]" * 100_000


def source(format: str, **more: Any) -> Source:
    about = {"title": "set", "availability": "open", "source": "test", "obtain": "by hand", "format": format}
    return Source.model_validate(about | more)


def content(document: Document) -> tuple[str | int, ...]:
    """Texts, and the shade of each picture."""
    return tuple(part.text if isinstance(part, Text) else part.image.getpixel((1, 1))[0] for part in document.parts)


def url(shade: int) -> str:
    return f"http://web.example/{shade}.jpg"


def written(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def deflated(path: Path, members: dict[str, bytes | str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def fetched(folder: Path) -> Path:
    samples = [(f"{shade:06d}", url(shade), f"shade {shade}", formats.jpeg(shade)) for shade in SHADES]
    return formats.img2dataset(folder / "pictures/00000.tar", samples)


# ---- a small set of each format ------------------------------------------------------------------------------------
# Each writes a set with one record per shade, whose text names the shade, and returns the files that may be damaged.


def pairs(folder: Path) -> list[Path]:
    return [fetched(folder)]


def mmc4_pages(folder: Path) -> list[Path]:
    pages = [formats.mmc4([f"shade {shade}"], (url(shade), 0, 0.3)) for shade in SHADES]
    return [deflated(folder / "raw/docs.zip", {"docs_0.jsonl": formats.jsonl(pages)}), fetched(folder)]


def obelics_pages(folder: Path) -> list[Path]:
    table = {"images": [[url(shade), None] for shade in SHADES], "texts": [[None, f"shade {s}"] for s in SHADES]}
    (folder / "raw").mkdir()
    pyarrow.parquet.write_table(pyarrow.table(table), folder / "raw/a.parquet", row_group_size=2)
    return [folder / "raw/a.parquet", fetched(folder)]


def zipped_pictures(folder: Path) -> Path:
    return deflated(folder / "raw/images.zip", {f"{shade:012d}.jpg": formats.jpeg(shade) for shade in SHADES})


def conversations(folder: Path) -> list[Path]:
    rows = [
        {
            "image": f"{shade:012d}.jpg",
            "conversations": [
                {"from": "human", "value": "<image>"},
                {"from": "gpt", "value": f"shade {shade}"},
            ],
        }
        for shade in SHADES
    ]
    return [written(folder / "raw/l.json", json.dumps(rows)), zipped_pictures(folder)]


def coco(folder: Path) -> list[Path]:
    pictures = [{"id": shade, "file_name": f"{shade:012d}.jpg"} for shade in SHADES]
    notes = [{"id": shade, "image_id": shade, "caption": f"shade {shade}"} for shade in SHADES]
    whole = gzip.compress(json.dumps({"images": pictures, "annotations": notes}).encode())
    return [written(folder / "raw/captions_train2014.json.gz", whole), zipped_pictures(folder)]


def told(folder: Path) -> list[Path]:
    lines = [{"image_id": str(shade), "caption": f"shade {shade}"} for shade in SHADES]
    return [written(folder / "raw/n.jsonl", formats.jsonl(lines)), zipped_pictures(folder)]


def gqa(folder: Path) -> list[Path]:
    asked = {f"q{s}": {"imageId": f"{s:012d}", "question": "Shade?", "answer": f"shade {s}"} for s in SHADES}
    return [deflated(folder / "raw/q.zip", {"train_q.json": json.dumps(asked)}), zipped_pictures(folder)]


SETS: dict[str, Callable[[Path], list[Path]]] = {
    "url_json": pairs,
    "mmc4": mmc4_pages,
    "obelics": obelics_pages,
    "llava": conversations,
    "llava_pairs": conversations,
    "coco": coco,
    "narratives": told,
    "gqa": gqa,
}


def built(format: str, folder: Path, out: str = "out") -> tuple[Counted, list[tuple]]:
    """Lists the addresses where there are any, builds the set, and reads what was built."""
    of_format, places = source(format), {"raw": folder / "raw", "pictures": folder / "pictures"}
    (folder / "raw").mkdir(exist_ok=True)
    if format in ("mmc4", "obelics"):
        list_urls(of_format, SourceSettings(), folder / "raw", folder / f"urls-{out}")
        places["urls"] = folder / f"urls-{out}"
    counted = build("set", of_format, SourceSettings(jpeg_quality=None), folder / out, **places)
    return counted, [content(document) for document in shards.read(shards.find(folder / out / "set"))]


@st.composite
def damages(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Another byte, a run of zeros, a cut, or bytes that are not there, at a random place."""
    where, kind = draw(st.floats(0, 1, exclude_max=True)), draw(st.sampled_from(["byte", "zeros", "cut", "lost"]))
    byte, length = draw(st.integers(1, 255)), draw(st.integers(1, 40))

    def damage(data: bytes) -> bytes:
        at = int(where * len(data))
        if kind == "byte":
            return data[:at] + bytes([data[at] ^ byte]) + data[at + 1 :]
        if kind == "zeros":
            return (data[:at] + bytes(length) + data[at + length :])[: len(data)]
        return data[:at] if kind == "cut" else data[:at] + data[at + length :]

    return damage


@pytest.mark.parametrize("format", SETS)
@settings(max_examples=30)
@given(damages(), st.integers(0, 1))
def test_random_damage_is_counted_or_named_and_moves_no_other_record(format, damage, which):
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = SETS[format](folder)
        _, whole = built(format, folder)
        assert len(whole) == len(SHADES)
        file = files[which % len(files)]
        file.write_bytes(damage(file.read_bytes()))
        try:
            counted, found = built(format, folder, "again")
        except TOLD as problem:
            assert str(problem)
            return
        kept = [whole.index(document) for document in found if document in whole]
        assert kept == sorted(set(kept)), "in their order, none twice"
        spoilt = len(found) - len(kept)
        compressed = file.suffix in (".zip", ".gz")
        assert spoilt <= (0 if compressed else 2), "damage of 40 bytes reaches two records; checksums leave none"
        lost = len(whole) - len(found)
        assert not lost or counted.rejected, "what is lost is counted"
        if not {"shard is damaged", "file is damaged"} & {*counted.rejected}:
            assert sum(counted.rejected.values()) >= lost - 1, "two records may have become one that is none"


# ---- each damage by itself -----------------------------------------------------------------------------------------


def spoil_member(path: Path, how: str) -> None:
    """Damage the first member of a zip archive, such that zipfile raises something else each time."""
    data = bytearray(path.read_bytes())
    begin = data.find(b".jpg") + 4
    if how == "deflate":
        data[begin + 1 : begin + 12] = b"\xff" * 11  # zlib.error
    for sign, method, flags in ((b"PK\3\4", 8, 6), (b"PK\1\2", 10, 8)):
        at = data.find(sign)
        if how == "method":
            data[at + method : at + method + 2] = (9).to_bytes(2, "little")  # NotImplementedError
        if how == "encrypted":
            data[at + flags] |= 1  # RuntimeError
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["deflate", "method", "encrypted"])
def test_a_member_that_cannot_be_decompressed_is_one_picture_less(tmp_path, how):
    _, archive = conversations(tmp_path)
    spoil_member(archive, how)
    counted, found = built("llava", tmp_path)
    assert [document[1] for document in found] == [f"shade {shade}" for shade in SHADES[1:]]
    assert dict(counted.rejected) == {"picture or its data cannot be read": 1}


@pytest.mark.parametrize("how", ["middle", "cut"])
def test_a_damaged_gzip_file_is_named(tmp_path, how):
    file, _ = coco(tmp_path)
    data = file.read_bytes()
    file.write_bytes(data[:40] + b"\xff" * 15 + data[55:] if how == "middle" else data[:60])
    with pytest.raises(RecordProblem, match=r"captions_train2014\.json\.gz"):
        built("coco", tmp_path)


def test_one_damaged_file_of_pages_costs_no_other_file(tmp_path):
    mmc4_pages(tmp_path)
    more = formats.jsonl([formats.mmc4(["more"], (url(20), 0, 0.3))] * 50)
    archive = deflated(tmp_path / "raw/a.zip", {"docs_1.jsonl": more})
    data = bytearray(archive.read_bytes())
    data[60:70] = b"\xff" * 10
    archive.write_bytes(data)
    counted, found = built("mmc4", tmp_path)
    assert len(found) == len(SHADES) and dict(counted.rejected) == {"file is damaged": 1}
    assert any("docs_1.jsonl" in place for place in counted.examples["file is damaged"])


@pytest.mark.parametrize(
    "record",
    [
        f'{{"image": {DEEP}}}',
        '{"image": "cut \\ud83d"}',
        '{"image": ' + "9" * 5000 + "}",
        '{"image": "a", "a": {"b": 1, "b": 2}, "conversations": [' + "1," * 600_000 + "1]}",
        '{"image": "a\x01b"}',
        b'{"image": "\xff"}',
        '{"image": 1 2}',
    ],
    ids=["nested", "surrogate", "number", "duplicate", "control", "byte", "malformed"],
)
def test_a_record_that_is_no_json_costs_no_other_one_of_a_list_or_of_lines(tmp_path, record):
    record = record if isinstance(record, bytes) else record.encode()
    file = written(tmp_path / "l.json", b'[{"a": 1},\n' + record + b',{"a": 2}]')
    first, wrong, last = (one for _, one in records.read_list(Member(file)))
    assert (first, last) == ({"a": 1}, {"a": 2}) and isinstance(wrong, Rejected)
    lines = written(tmp_path / "l.jsonl", b'{"a": 1}\n' + record + b'\n{"a": 2}\n')
    first, wrong, last = (one for _, one in records.read_jsonl(Member(lines)))
    assert (first, last) == ({"a": 1}, {"a": 2}) and isinstance(wrong, Rejected)
    table = written(tmp_path / "t.json", b'{"x": {"a": 1}, "y":' + record + b', "z": {"a": 2}}')
    found = {key: one for _, key, one in records.read_table(Member(table))}
    assert (found["x"], found["z"]) == ({"a": 1}, {"a": 2}) and isinstance(found["y"], Rejected)


@pytest.mark.parametrize(
    "text",
    [
        '[{"a": "x, "b": 1}, {"c": 2}]',  # a quote is missing: what looks like its end is none
        '[{"a": 1}]{"b": 2}]',
        '[{"a": 1}',
        '[{"a": "x',
    ],
)
def test_a_list_whose_records_cannot_be_told_apart_is_named(tmp_path, text):
    file = written(tmp_path / "l.json", text)
    with pytest.raises(RecordProblem, match=r"l\.json"):
        list(records.read_list(Member(file)))


def test_a_table_with_a_key_without_value_is_named(tmp_path):
    file = written(tmp_path / "t.json", '{"a": {"b": 1}, 3: {"b": 2}}')
    with pytest.raises(RecordProblem, match="expected a key, found 3"):
        list(records.read_table(Member(file)))


def test_no_record_is_read_from_a_file_with_a_wrong_checksum(tmp_path):
    data = bytearray(gzip.compress(b'{"a": 1}\n', mtime=0))
    data[-8] ^= 1
    file = written(tmp_path / "l.jsonl.gz", bytes(data))
    ((_, only),) = records.read_jsonl(Member(file))
    assert isinstance(only, Rejected) and only.why == "file is damaged"


def test_json_that_is_kept_can_be_copied_and_written_again():
    deep = "[" * DEEPEST_JSON + "]" * DEEPEST_JSON
    assert json.dumps(pickle.loads(pickle.dumps(parse_json(deep)))) == deep
    for text, words in ((f"[{deep}]", "nested"), (DEEP, "nested"), ('{"\\udc00": 1}', "surrogate")):
        with pytest.raises(ValueError, match=words):
            parse_json(text)
    assert parse_json('"\\ud83d\\ude00"') == "\U0001f600", "a whole pair is a character"


def test_errors_of_the_disk_are_not_taken_for_damage():
    with pytest.raises(PermissionError), damage_as(ValueError):
        raise PermissionError(13, "no access")
    with pytest.raises(ValueError, match="OSError"), damage_as(ValueError):
        raise OSError("broken data stream")


# ---- tar shards ----------------------------------------------------------------------------------------------------


def resized(path: Path, number: int, size: bytes) -> None:
    """Write another size, of 12 bytes, into the header of a member, with the right checksum."""
    with tarfile.open(path) as archive:
        at = archive.getmembers()[number].offset
    data = bytearray(path.read_bytes())
    data[at + 124 : at + 136] = size
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    path.write_bytes(data)


@pytest.mark.parametrize(
    "size",
    [b"\x80" + bytes(3) + struct.pack(">Q", 2**50), b"\x80" + b"\x7f" * 11, b"77777777777\0", b"\xff" * 10 + b"\xfe\0"],
    ids=["petabyte", "more than a file can have", "8 GB", "negative"],
)
def test_a_header_of_an_absurd_size_costs_what_is_behind_it(tmp_path, size):
    resized(fetched(tmp_path), 6, size)  # the picture of the third sample
    counted, found = built("url_json", tmp_path)
    assert found == [(shade, f"shade {shade}") for shade in SHADES[:2]]
    assert counted.rejected["shard is damaged"] == 1
    counts = picture_index.write(tmp_path / "pictures", tmp_path / "index")
    assert (counts["pictures"], counts["damaged shards"]) == (2, 1)
    archive = tmp_path / "p.tar"
    header = {"model": "m", "benchmark": "draw", "split": "test"}
    predictions.write(archive, header, [{"id": "a", "image": "0.png"}], {"0.png": Image.new("RGB", (8, 8))})
    resized(archive, 1, size)
    with pytest.raises(BenchmarkProblem, match=r"p\.tar.*no whole tar archive"):
        predictions.read(archive).image("0.png", "item a")


def test_deeply_nested_json_in_a_shard_costs_its_document(tmp_path):
    document = Document("a", "pair", (Text("words"), Picture(Image.new("RGB", (8, 8)))))
    (path,) = shards.write([document], tmp_path / "set")
    picture = images.encode_png(Image.new("RGB", (8, 8)))
    for text in (DEEP, '{"id": "a", "kind": "text", "parts": [{"text": "\\ud83d"}]}'):
        formats.tar(path, [("0.json", text.encode()), ("1.json", b"{}"), ("1.0.png", picture)])
        problems: list[shards.ShardProblem] = []
        assert list(shards.read([path], problems.append)) == []
        assert [problem.record for problem in problems] == ["0", "1"]


def test_captions_and_addresses_of_img2dataset_that_are_no_text_cost_their_sample(tmp_path):
    good = formats.jpeg(50)
    members = [("0.jpg", good), ("0.txt", b"caf\xe9"), ("1.jpg", good), ("1.txt", b"a"), ("1.json", DEEP.encode())]
    members += [("2.jpg", good), ("2.txt", b"kept"), ("2.json", b'{"url": ["no", "text"]}')]
    members += [("3.jpg", good), ("3.txt", b"b"), ("3.json", b'{"url": "\\ud83d"}')]
    formats.tar(tmp_path / "pictures/0.tar", members)
    formats.tar(tmp_path / "pictures/._0.tar", [("x", b"of macOS")])
    counted, found = built("url_json", tmp_path)
    assert found == [(50, "kept")]
    assert dict(counted.rejected) == {"caption is not UTF-8": 1, "picture or its data cannot be read": 2}
    counts = picture_index.write(tmp_path / "pictures", tmp_path / "index")
    assert counts == {"pictures": 0, "unreadable samples": 4, "damaged shards": 0}


def test_a_damaged_document_gets_no_instruction_and_stops_no_other(tmp_path):
    pairs = [Document(f"d{n}", "pair", (Text(f"a {n}"), Picture(Image.new("RGB", (8, 8))))) for n in range(3)]
    (path,) = shards.write(pairs, tmp_path / "base/set")
    middle = shards.index(path)[1]
    data = bytearray(path.read_bytes())
    at = next(offset for suffix, offset, _ in middle.members if suffix == "json")
    data[at] = 0
    path.write_bytes(data)
    where = {"settings": SourceSettings(), "seed": 0, "parallel": 1}
    counted = write_instructions("set", tmp_path / "base", TemplateWriter(0), tmp_path / "out", **where)
    assert counted.documents == 2 and dict(counted.rejected) == {"document is damaged": 1}


# ---- the list for img2dataset --------------------------------------------------------------------------------------


def test_pyarrow_reads_the_whole_list_of_addresses_whatever_the_set_holds(tmp_path):
    rows = [{"url": url(n), "caption": text} for n, text in enumerate(("cut \ud83d", "a cat", "x" * 3_000_000, "\0é"))]
    written(tmp_path / "raw/l.json", json.dumps(rows))
    counts = list_urls(source("url_json"), SourceSettings(), tmp_path / "raw", tmp_path / "urls")
    with gzip.open(tmp_path / "urls" / LIST) as file:
        assert pyarrow.json.read_json(io.BytesIO(file.read())).num_rows == 2
    assert (counts["left out: not valid JSON"], counts["left out: address or caption is too long"]) == (1, 1)


def test_text_of_a_parquet_file_that_is_no_utf8_costs_its_row(tmp_path):
    (tmp_path / "raw").mkdir()
    raw = pyarrow.array([b"one", b"\xff\xfe", b"three", b"four"]).view(pyarrow.string())
    table = pyarrow.table({"url": [url(n) for n in range(4)], "caption": raw})
    pyarrow.parquet.write_table(table, tmp_path / "raw/a.parquet")
    list_urls(source("url_parquet"), SourceSettings(), tmp_path / "raw", tmp_path / "urls")
    with gzip.open(tmp_path / "urls" / LIST) as file:
        assert [json.loads(line)["caption"] for line in file] == ["one", "three", "four"]


def test_odd_values_of_records_are_left_out(tmp_path):
    assert isinstance(obelics.page({"images": [3, None], "texts": [None, "a"]}), Rejected)
    assert isinstance(mmc4.page(formats.mmc4(["a"], ("u", 0, float("nan"))), 0.0), Rejected)
    assert not isinstance(mmc4.page(formats.mmc4(["a"], ("u", 0, 10**400)), 0.0), Rejected)
    file = Member(written(tmp_path / "n.jsonl", formats.jsonl([{"image_id": "²"}, {"image_id": "9" * 5000}])))
    assert [one.why for _, one in narratives.records(file)] == ["no COCO image id"] * 2
    assert isinstance(llava.conversation({"conversations": [{"from": ["human"], "value": "a"}]}, None), Rejected)


# ---- files beside the data, links, names ---------------------------------------------------------------------------


def test_what_macos_puts_beside_the_files_of_an_archive_is_no_data(tmp_path):
    lists, _ = conversations(tmp_path)
    fork = b"\x00\x05\x16\x07 of macOS"
    members = {f"{shade:012d}.jpg": formats.jpeg(shade) for shade in SHADES}
    forks = {f"__MACOSX/._{name}": fork for name in (*members, "l.json")}
    deflated(tmp_path / "raw/images.zip", members | forks)
    written(lists.parent / "._l.json", fork)
    counted, found = built("llava", tmp_path)
    assert len(found) == len(SHADES) and not counted.rejected
    shown = Pictures(tmp_path / "raw/images.zip")
    assert shown.name_of(20, tmp_path, "") == f"{20:012d}.jpg"


def test_links_are_followed_and_what_is_placed_stands_alone(tmp_path):
    data = written(tmp_path / "store/deep/a.parquet", "data")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/a.parquet").symlink_to("../store/deep/a.parquet")
    (tmp_path / "raw/more").symlink_to("../store/deep")
    place(source("harness"), tmp_path / "raw", (), tmp_path / "far/away/out")
    placed = [tmp_path / "far/away/out" / name for name in ("a.parquet", "more/a.parquet")]
    assert [path.read_text() for path in placed] == ["data"] * 2
    assert not any(path.is_symlink() for path in placed)
    data.unlink()
    with pytest.raises(RecordProblem, match=r"a\.parquet: is a symbolic link to .*, which is not there"):
        place(source("harness"), tmp_path / "raw", (), tmp_path / "out")
    (tmp_path / "raw/a.parquet").unlink()
    (tmp_path / "raw/round").symlink_to("..")
    with pytest.raises(RecordProblem, match="a folder that it lies in"):
        records.files_below(tmp_path / "raw")


def test_only_a_whole_number_of_a_name_is_an_id(tmp_path):
    for name in ("1a1b2c3d4e5f6ab7.jpg", "2a1b2c3d4e5f6ac7.jpg", "COCO_val2014_000000000042.jpg", "5.jpg"):
        written(tmp_path / name, formats.jpeg(9))
    shown = Pictures(tmp_path)
    assert [shown.name_of(id_, tmp_path, "") for id_ in (42, 5)] == ["COCO_val2014_000000000042.jpg", "5.jpg"]
    with pytest.raises(BenchmarkProblem, match="picture 7 is not in"):
        shown.name_of(7, tmp_path, "")


def test_a_picture_that_cannot_be_decompressed_is_named_by_its_benchmark(tmp_path):
    archive = deflated(tmp_path / "images_test.zip", {"1.jpg": formats.jpeg(9)})
    spoil_member(archive, "encrypted")
    with pytest.raises(BenchmarkProblem, match=r"picture 1\.jpg: RuntimeError"):
        Pictures(archive).read("1.jpg")


def test_two_different_pictures_of_one_name_are_never_taken_for_each_other(tmp_path):
    for folder, shade in (("a", 10), ("b", 20), ("c", 10)):
        written(tmp_path / folder / "1.jpg", formats.jpeg(shade))
    same = picture_files.PictureFiles((("", tmp_path / "a"), ("", tmp_path / "c")))
    assert same.read_by_name("1.jpg") == formats.jpeg(10)
    both = picture_files.PictureFiles((("", tmp_path / "a"), ("b", tmp_path / "b")))
    assert both.read("b/1.jpg") == formats.jpeg(20)
    with pytest.raises(ValueError, match=r"1\.jpg and b/1\.jpg have one name and differ"):
        both.read_by_name("1.jpg")


# ---- strips and specks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(20_000, 1), (1, 20_000), (20_001, 3)])
def test_a_strip_is_cut_before_it_is_resized(size, monkeypatch):
    sizes: list[tuple[int, int]] = []
    resize = Image.Image.resize

    def watched(image: Image.Image, to: Any, *more: Any, **options: Any) -> Image.Image:
        sizes.append(tuple(to))
        return resize(image, to, *more, **options)

    monkeypatch.setattr(Image.Image, "resize", watched)
    _, processor = tiny.build()
    strip = Image.new("RGB", size, "red")
    assert processor.read_pixels([strip]).shape[-1] == processor.read_pixels([Image.new("RGB", (9, 9))]).shape[-1]
    assert processor.draw_pixels([strip]).shape[-2:] == (processor.draw_size, processor.draw_size)
    side = max(processor.draw_size, processor.read_pixels([strip]).shape[-1])
    assert sizes and max(width * height for width, height in sizes) <= 4 * side * side


def test_the_middle_of_a_strip_stays_where_it_is():
    strip = Image.new("RGB", (101, 3))
    strip.putpixel((50, 1), (255, 0, 0))
    cut = images.centre(strip)
    assert cut.size == (11, 3) and cut.getpixel((5, 1)) == (255, 0, 0)
    banner = Image.new("RGB", (160, 10))
    assert images.centre(banner) is banner, "ordinary pictures are left alone"


def test_by_default_pictures_of_less_than_8_pixels_are_left_out(tmp_path):
    samples = [
        (f"{n:06d}", url(n), f"{size}", formats.jpeg(9, size)) for n, size in enumerate([(1, 1), (600, 7), (8, 8)])
    ]
    formats.img2dataset(tmp_path / "pictures/0.tar", samples)
    counted, found = built("url_json", tmp_path)
    assert [text for _, text in found] == ["(8, 8)"] and dict(counted.rejected) == {"picture is too small": 2}


def test_a_strip_too_long_for_jpeg_is_stored(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (70_000, 10), "white").save(buffer, "PNG")
    formats.tar(tmp_path / "pictures/0.tar", [("0.png", buffer.getvalue()), ("0.txt", b"a rule")])
    (tmp_path / "raw").mkdir()
    places = {"raw": tmp_path / "raw", "pictures": tmp_path / "pictures"}
    assert build("set", source("url_json"), SourceSettings(), tmp_path / "out", **places).documents == 1


# ---- evaluation sets -----------------------------------------------------------------------------------------------

NAME = "COCO_val2014_000000000010.jpg"
ASKED = {"question_id": 1, "image_id": 10, "question": "What?"}
ANSWERED = {"question_id": 1, "image_id": 10, "question_type": "", "answers": [{"answer": "a"}]}
CAPTIONED = {
    "images": [{"id": 10, "file_name": NAME}],
    "annotations": [{"id": 1, "image_id": 10, "caption": "a cat"}],
}
VIZWIZ = {"image": "VizWiz_val_00000010.jpg", "question": "What?", "answers": [{"answer": "a"}], "answer_type": "other"}
KARPATHY = {"split": "test", "filename": NAME, "cocoid": 10, "sentences": [{"raw": "a cat"}]}
TEXTVQA = {"question_id": 1, "image_id": "0a", "question": "What?", "answers": ["a"]}
PLACED: dict[str, dict[str, Any]] = {  # by format: the files of a small set; lists of *.jsonl and POPE are lines
    "coco_karpathy": {
        "dataset_coco.json": {
            "images": [{"split": "test", "filename": NAME, "cocoid": 10, "sentences": [{"raw": "a"}]}]
        }
    },
    "nocaps": {"nocaps_val_4500_captions.json": CAPTIONED},
    "image_paragraphs": {"paragraphs_v1.json": [{"image_id": 10, "paragraph": "A."}], "test_split.json": [10]},
    "coco_fid": {"captions_val2014.json": CAPTIONED},
    "ln_coco": {"coco_val_localized_narratives.jsonl": [{"image_id": "10", "caption": "A cat."}]},
    "vqav2": {"questions.json": {"questions": [ASKED]}, "annotations.json": {"annotations": [ANSWERED]}},
    "vizwiz": {"val.json": [VIZWIZ]},
    "textvqa": {"TextVQA_0.5.1_val.json": {"data": [TEXTVQA]}},
    "pope": {
        f"coco_pope_{subset}.json": [{"question_id": 1, "image": NAME, "text": "A cat?", "label": "no"}]
        for subset in pope.SUBSETS
    },
    "mm_vet": {"mm-vet.json": {"v1_0": {"imagename": NAME, "question": "Q", "answer": "A", "capability": ["ocr"]}}},
    "coco_captions": {"told.json": CAPTIONED},
    "vqa": {
        "questions.json": {"questions": [{"question_id": 1, "image": NAME, "question": "What?"}]},
        "annotations.json": {"annotations": [{"question_id": 1, "answers": ["cat"]}]},
    },
    "mjhq": {"meta_data.json": {"a1": {"category": "food", "prompt": "A pie."}}},
}
SEEN = {"class": "cat", "count": 1, "color": "red"}
BESIDE = {"class": "dog", "count": 1, "position": ["above", 0]}
GENEVAL = {"tag": "position", "include": [SEEN, BESIDE], "exclude": [{"class": "cat", "count": 2}], "prompt": "A cat."}
VALUES = PLACED | {"geneval": {"evaluation_metadata.jsonl": [GENEVAL]}}  # without pictures
PICTURES = {  # where the name is not NAME
    "ln_coco": "000000000010.jpg",
    "image_paragraphs": "10.jpg",
    "textvqa": "0a.jpg",
    "mjhq": "a1.jpg",
    "vizwiz": "VizWiz_val_00000010.jpg",
}
ODD = (None, True, 7, -1, 1.5, 10**30, "", "x", "²", "cut \ud83d", [], [[]], [None], {}, {"a": []})


def write_set(folder: Path, format: str, files: dict[str, Any]) -> None:
    for name, told in files.items():
        lines = isinstance(told, list) and ("pope" in name or name.endswith("jsonl"))
        written(folder / name, formats.jsonl(told) if lines else json.dumps(told))
    deflated(folder / "images.zip", {PICTURES.get(format, NAME): formats.jpeg(10)})


def paths(value: Any, path: tuple = ()) -> list[tuple]:
    """The places of all values inside of a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, one in inner for place in ((*path, key), *paths(one, (*path, key)))]


def changed(value: Any, path: tuple, new: Any) -> Any:
    """A copy with another value at a place; DELETED takes it away."""
    value = copy.deepcopy(value)
    *before, last = path
    at = value
    for key in before:
        at = at[key]
    if new is DELETED:
        del at[last]
    else:
        at[last] = new
    return value


DELETED = object()


@pytest.mark.parametrize("format", VALUES)
def test_every_value_of_an_evaluation_file_may_be_wrong_and_none_gives_a_traceback(format, tmp_path):
    assert {*VALUES, "mmbench", "prompts", "dpg_bench"} == {*WRITERS}
    write_set(tmp_path / "raw", format, VALUES[format])
    place(source(format), tmp_path / "raw", (), tmp_path / "out")  # as it is, it can be placed
    named = 0
    for file, told in list(VALUES[format].items())[:2]:  # POPE's third is read as the others
        cases = [VALUES[format] | {file: odd} for odd in (None, 7, "x", [], {}, [7])]
        cases += [VALUES[format] | {file: changed(told, path, new)} for path in paths(told) for new in (*ODD, DELETED)]
        for case in cases:
            write_set(tmp_path / "raw", format, case)
            try:
                place(source(format), tmp_path / "raw", (), tmp_path / "out")
            except TOLD as problem:
                named += 1
                assert str(problem)
    assert named


HEADING = "index\tquestion\tA\tB\tcategory\timage"
ROW = f"1\tWhich?\ta\tb\tc\t{base64.b64encode(formats.jpeg(9)).decode()}"


@pytest.mark.parametrize(
    "row",
    [
        "1\tWhich?\ta",
        f"{ROW}\tmore",
        ROW.replace("1", "²", 1),
        ROW.replace("1", "9" * 5000, 1),
        f"{ROW}\0",
        '1\t"open',
        "",
    ],
    ids=["short", "long", "superscript", "huge", "zero", "quote", "none"],
)
def test_a_malformed_row_of_mmbench_is_named(row, tmp_path):
    written(tmp_path / "raw/a.tsv", f"{HEADING}\n{ROW}\n")
    place(source("mmbench"), tmp_path / "raw", (), tmp_path / "out")
    written(tmp_path / "raw/a.tsv", f"{HEADING}\n{row}\n")
    with pytest.raises(TOLD):
        place(source("mmbench"), tmp_path / "raw", (), tmp_path / "out")


@settings(max_examples=15)
@given(damages(), st.sampled_from(sorted(PLACED)), st.booleans())
def test_random_damage_of_an_evaluation_set_is_named(damage, format, pictures):
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_set(folder / "raw", format, PLACED[format])
        file = folder / "raw" / ("images.zip" if pictures else next(iter(PLACED[format])))
        file.write_bytes(damage(file.read_bytes()))
        try:
            place(source(format), folder / "raw", (), folder / "out")
            shown = Pictures(folder / "out/images_test.zip")
            for item in tasks.load(TASKS[format], folder / "out", "test"):
                assert shown.read(item.picture).mode == "RGB"
        except TOLD as problem:
            assert str(problem)


@pytest.mark.parametrize("text", [DEEP, '{"id": "\\ud83d"}', '{"id": ' + "9" * 5000 + "}"])
def test_json_that_could_not_be_written_again_is_named_before_anything_is_predicted(text, tmp_path):
    written(tmp_path / "in_context_test.jsonl", text)
    deflated(tmp_path / "in_context_test.zip", {"1.jpg": formats.jpeg(9)})
    with pytest.raises(BenchmarkProblem, match="line 1.*malformed JSON"):
        tasks.load("in_context", tmp_path, "test")
