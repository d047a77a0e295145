"""Documents are read from shards as they were written, and damage loses only the damaged document."""

import hashlib
import io
import json
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from dreamllm.data import images, shards
from dreamllm.data.document import Document, Picture, Text
from dreamllm.data.shards import ShardProblem


def picture(seed: int, size: tuple[int, int] = (9, 7)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def documents(count: int = 6) -> list[Document]:
    """Stories of two pictures each, every picture different."""
    return [
        Document(
            f"story-{n}",
            "interleaved",
            (Text(f"Größe {n}"), Picture(picture(2 * n)), Text("then"), Picture(picture(2 * n + 1))),
            {"scene": n},
        )
        for n in range(count)
    ]


def pixels(document: Document) -> list[list]:
    return [np.asarray(image).tolist() for image in document.pictures]


def rewrite(path, change) -> None:
    """Rewrite a shard with its list of (name, bytes) changed."""
    with tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(path, "w") as tar:
        for name, data in change(members):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def replace_member(path, name: str, data: bytes) -> None:
    rewrite(path, lambda members: [(n, data if n == name else old) for n, old in members])


@pytest.fixture
def shard(tmp_path):
    [path] = shards.write(documents(), tmp_path / "stories", per_shard=6)
    return path


def read_with_problems(*paths) -> tuple[list[Document], list[ShardProblem]]:
    problems: list[ShardProblem] = []
    return list(shards.read(paths, problems.append)), problems


def assert_only_lost(path, lost: set[int], *words: str) -> None:
    """Reading skips exactly the lost documents, says why in these words, and shifts no picture."""
    found, problems = read_with_problems(path)
    kept = [document for n, document in enumerate(documents()) if n not in lost]
    assert [document.id for document in found] == [document.id for document in kept]
    assert [pixels(document) for document in found] == [pixels(document) for document in kept]
    assert problems
    assert all(word in str(problems[0]) for word in (path.name, *words)), problems[0]
    with pytest.raises(ShardProblem):
        list(shards.read([path]))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["a", "b/" + "long" * 60, "ünï", "c.d"])
def test_every_kind_of_tar_header_is_indexed_as_tarfile_reads_it(tmp_path, form, name):
    path = tmp_path / "x-00000.tar"
    if form == tarfile.USTAR_FORMAT and len(name) > 100:
        name = "e" * 90 + "/" + "f" * 90
    with tarfile.open(path, "w", format=form) as tar:
        for key in ("first", name):
            for suffix, content in (("json", b"{}"), ("0.png", b"p" * 700)):
                about = tarfile.TarInfo(f"{key}.{suffix}")
                about.size = len(content)
                tar.addfile(about, io.BytesIO(content))
        tar.addfile(tarfile.TarInfo("empty.json"))
    wanted: dict = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, suffix = member.name.rpartition("/")[2].partition(".")
            prefix = member.name[: len(member.name) - len(member.name.rpartition("/")[2])]
            wanted.setdefault(prefix + key, []).append((suffix, member.offset_data, member.size))
    assert {record.key: list(record.members) for record in shards.index(path)} == wanted


def test_documents_survive_writing_and_reading(tmp_path):
    chat = Document(
        "chat",
        "conversation",
        (Text("What is this?", "user"), Picture(picture(99), "user"), Text("A fish.", "assistant")),
    )
    written = [*documents(), Document("plain", "text", (Text("only words\n"),)), chat]
    paths = shards.write(written, tmp_path / "set" / "all", per_shard=3)
    assert [path.name for path in paths] == ["all-00000.tar", "all-00001.tar", "all-00002.tar"]
    assert paths == shards.find(tmp_path / "set" / "all")
    found = list(shards.read(paths))
    assert [(d.id, d.kind, d.meta) for d in found] == [(d.id, d.kind, d.meta) for d in written]
    assert [pixels(d) for d in found] == [pixels(d) for d in written]
    assert [[p for p in d.parts if isinstance(p, Text)] for d in found] == [
        [p for p in d.parts if isinstance(p, Text)] for d in written
    ]
    assert [part.role for part in found[-1].parts] == ["user", "user", "assistant"]


def test_more_than_ten_pictures_keep_their_order(tmp_path):
    many = Document("many", "interleaved", tuple(Picture(picture(n)) for n in range(12)))
    [path] = shards.write([many], tmp_path / "many")
    assert pixels(next(shards.read([path]))) == pixels(many)


def test_same_documents_give_the_same_bytes(tmp_path):
    def digests(name):
        paths = shards.write(documents(), tmp_path / name, per_shard=4)
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]

    assert digests("a") == digests("b")


def test_shards_of_an_earlier_longer_set_are_removed(tmp_path):
    other = shards.write(documents(1), tmp_path / "stories-b")
    shards.write(documents(6), tmp_path / "stories", per_shard=2)
    short = shards.write(documents(2), tmp_path / "stories", per_shard=2)
    assert sorted(tmp_path.iterdir()) == sorted(short + other)


def test_a_failed_write_leaves_no_partial_shard(tmp_path):
    with pytest.raises(TypeError):
        shards.write([Document("x", "text", (Text("x"),), {"not json": object()})], tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_two_documents_of_one_id_are_refused(tmp_path):
    with pytest.raises(ValueError, match="story-0"):
        shards.write(documents(1) * 2, tmp_path / "set")


def test_webdataset_reads_our_shards(shard):
    import webdataset

    samples = list(webdataset.WebDataset(str(shard), shardshuffle=False).decode("pil"))
    assert [sample["json"]["id"] for sample in samples] == [document.id for document in documents()]
    assert np.array_equal(np.asarray(samples[3]["1.png"]), np.asarray(picture(7)))


# ---- damaged shards ------------------------------------------------------------------------------------------------


def test_every_truncation_is_noticed_and_costs_only_documents_behind_it(shard):
    whole = shard.read_bytes()
    end = whole.rstrip(b"\0")  # the archive's own end: cutting less than this loses nothing but padding
    wanted = [pixels(document) for document in documents()]
    for cut in range(0, len(end), 700):
        shard.write_bytes(whole[:cut])
        found, problems = read_with_problems(shard)
        assert problems, f"cut at byte {cut} of {len(whole)} went unnoticed"
        assert [pixels(document) for document in found] == wanted[: len(found)]
        assert len(found) < 6 or cut > len(end) - 512


def test_a_cut_between_two_documents_is_noticed(shard):
    record = shards.index(shard)[3]
    start = min(offset for _, offset, _ in record.members) - 512
    shard.write_bytes(shard.read_bytes()[:start])
    assert_only_lost(shard, {3, 4, 5}, "00000002", f"byte {start}")


def test_a_damaged_header_is_noticed(shard):
    data = bytearray(shard.read_bytes())
    start = min(offset for _, offset, _ in shards.index(shard)[4].members) - 512
    data[start : start + 20] = b"\xff" * 20
    shard.write_bytes(data)
    assert_only_lost(shard, {4, 5}, "damaged", "00000003")


@pytest.mark.parametrize("content", [b"", b"not a tar", b"\x1f\x8b" + bytes(2000)])
def test_what_is_no_tar_is_a_problem_of_the_file(shard, content):
    shard.write_bytes(content)
    assert_only_lost(shard, set(range(6)), "tar")


def test_a_missing_shard_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        list(shards.read([tmp_path / "none-00000.tar"], [].append))


# ---- damaged documents ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b'{"id": "story-2", "kind"', b"\xff\xfe", b""])
def test_malformed_json_costs_its_document(shard, data):
    replace_member(shard, "00000002.json", data)
    assert_only_lost(shard, {2}, "00000002", "malformed JSON")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ([], "parts"),
        ({"id": "x", "kind": "interleaved"}, "parts"),
        ({"id": 3, "kind": "interleaved", "parts": []}, "strings"),
        ({"id": "x", "kind": "poem", "parts": [{"image": "0.png"}, {"image": "1.png"}]}, "poem"),
        ({"id": "x", "kind": "pair", "parts": [{"image": "0.png"}, {"image": "1.png"}]}, "pair"),
        ({"id": "x", "kind": "interleaved", "parts": [{"image": "0.png", "text": "both"}]}, "exactly one"),
        ({"id": "x", "kind": "interleaved", "parts": [{"text": 5}]}, "strings"),
        ({"id": "x", "kind": "interleaved", "parts": [{"image": "0.png"}, {"image": "2.png"}]}, "2.png is missing"),
        ({"id": "x", "kind": "interleaved", "parts": [{"image": "0.png"}]}, "no part names the files 1.png"),
        ({"id": "x", "kind": "text", "parts": [{"text": "hi"}], "meta": 5}, "meta"),
    ],
)
def test_json_that_is_no_document_costs_its_document(shard, header, words):
    replace_member(shard, "00000001.json", json.dumps(header).encode())
    assert_only_lost(shard, {1}, "00000001", words)


def test_a_missing_picture_costs_its_document(shard):
    rewrite(shard, lambda members: [m for m in members if m[0] != "00000002.0.png"])
    assert_only_lost(shard, {2}, "00000002", "0.png is missing")


def test_a_missing_json_costs_its_document(shard):
    rewrite(shard, lambda members: [m for m in members if m[0] != "00000002.json"])
    assert_only_lost(shard, {2}, "00000002", "no 00000002.json")


def test_a_picture_too_many_costs_its_document(shard):
    extra = ("00000002.2.png", images.encode_png(picture(5)))
    rewrite(shard, lambda members: sorted([*members, extra]))
    assert_only_lost(shard, {2}, "2.png")


def test_a_doubled_member_costs_its_document(shard):
    rewrite(shard, lambda members: sorted(members + [m for m in members if m[0] == "00000002.0.png"]))
    assert_only_lost(shard, {2}, "two files are named 00000002.0.png")


@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "flipped"])
def test_a_corrupt_picture_costs_its_document(shard, damage):
    good = images.encode_png(picture(4, (64, 64)))
    middle = len(good) // 2
    bad = {
        "empty": b"",
        "cut": good[:middle],
        "noise": b"no picture",
        "flipped": good[:middle] + bytes(64) + good[middle + 64 :],
    }[damage]
    replace_member(shard, "00000002.0.png", bad)
    assert_only_lost(shard, {2}, "00000002", "part 1", "0.png cannot be decoded")


def test_problems_cross_process_borders():
    problem = ShardProblem("a.tar", "7", "broken")
    again = pickle.loads(pickle.dumps(problem))
    assert str(again) == str(problem) and again.record == "7"


# ---- colour modes --------------------------------------------------------------------------------------------------


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def first_pixel(data: bytes) -> tuple[int, ...]:
    image = images.decode(data)
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


def test_transparency_is_laid_over_white():
    assert first_pixel(encoded(Image.new("RGBA", (2, 2), (200, 0, 0, 0)))) == (255, 255, 255)
    assert first_pixel(encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 51)))) == (204, 204, 204)
    assert first_pixel(encoded(Image.new("LA", (2, 2), (0, 0)))) == (255, 255, 255)
    assert first_pixel(encoded(Image.new("RGB", (2, 2), (1, 2, 3)), transparency=(1, 2, 3))) == (255, 255, 255)


def test_palettes_with_and_without_transparency():
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert first_pixel(encoded(palette)) == (10, 20, 30)
    assert first_pixel(encoded(palette, transparency=1)) == (255, 255, 255)


def test_sixteen_bit_grey_is_scaled_not_clipped():
    grey = Image.fromarray(np.full((2, 2), 0x8000, np.uint16))
    assert first_pixel(encoded(grey)) == (128, 128, 128)
    assert images.to_rgb(Image.new("I", (1, 1), 65535)).getpixel((0, 0)) == (255, 255, 255)


def test_grey_without_a_range_is_refused():
    with pytest.raises(ValueError, match="70000"):
        images.to_rgb(Image.new("I", (1, 1), 70000))
    with pytest.raises(ValueError, match="range"):
        images.to_rgb(Image.new("F", (1, 1), 0.5))


def test_cmyk_grey_and_bilevel_become_rgb():
    red, green, blue = first_pixel(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    assert red > 240 and green < 15 and blue < 15
    assert first_pixel(encoded(Image.new("L", (2, 2), 77))) == (77, 77, 77)
    assert first_pixel(encoded(Image.new("1", (2, 2), 1))) == (255, 255, 255)


def test_pictures_are_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    assert images.decode(encoded(Image.new("RGB", (8, 4)), "JPEG", exif=exif)).size == (4, 8)
