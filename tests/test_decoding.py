"""A picture becomes the same pixels wherever it comes from: from img2dataset's shards or the processor."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoProcessor

import formats
import loopback
import repository
import tiny
from dreamllm.config.sources import SourceSettings
from dreamllm.data import images
from dreamllm.sources import img2dataset, picture_index
from golden.make_img2dataset import FLAGS, originals

ORIGINALS = originals()
LOST = {"turned6.png", "cmyk.jpg", "grey16.png"}
"""What img2dataset's own encoding changes for good."""


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    """The shard that img2dataset 1.47 wrote, by kind."""

    def unpack(kind: str) -> Path:
        path = tmp_path_factory.mktemp(kind) / "00000.tar"
        packed = Path(__file__).parent / "golden" / f"img2dataset_{kind}.tar.gz"
        path.write_bytes(gzip.decompress(packed.read_bytes()))
        return path

    return unpack


def pictures(tar: Path) -> dict[str, Image.Image]:
    """Pictures of the pairs by caption, which is the name of the original file."""
    pairs = list(img2dataset.documents(tar, SourceSettings()))
    return {pair.parts[1].text: pair.parts[0].image for pair in pairs}


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference of two pictures; 255 for different sizes."""
    if one.size != other.size:
        return 255.0
    return float(np.abs(np.asarray(one, np.float32) - np.asarray(other, np.float32)).mean())


# ---- img2dataset ---------------------------------------------------------------------------------------------------


def test_pictures_that_img2dataset_kept_are_the_original_ones_to_the_last_bit(shard):
    found = pictures(shard("kept"))
    assert {name: difference(found[name], images.decode(data)) for name, data in ORIGINALS.items()} == dict.fromkeys(
        ORIGINALS, 0.0
    )


def test_pictures_that_img2dataset_encoded_again_are_turned_by_its_metadata(shard):
    found = pictures(shard("encoded"))
    off = {name: difference(found[name], images.decode(ORIGINALS[name])) for name in ORIGINALS.keys() - LOST}
    assert max(off.values()) < 6, off
    assert difference(found["grey16.png"], images.decode(ORIGINALS["grey16.png"])) > 60, "so the bytes must be kept"


@pytest.mark.parametrize("kind", FLAGS)
def test_pictures_of_pages_are_turned_too(kind, shard, tmp_path):
    tar = shard(kind)
    assert picture_index.write(tar.parent, tmp_path / "index")["pictures"] == len(ORIGINALS)
    for url in [pair.meta["url"] for pair in img2dataset.documents(tar, SourceSettings())]:
        name = url.rpartition("/")[2]
        if kind == "kept" or name not in LOST:
            picture = images.decode(*picture_index.read(url, tar.parent, tmp_path / "index"))
            assert difference(picture, images.decode(ORIGINALS[name])) < 6, name


@pytest.mark.parametrize(
    "exif", [None, "", "null", "[]", "7", "{", {}, '{"Image Orientation": 6}', '{"Image Orientation": "Upside down"}']
)
def test_metadata_without_a_known_orientation_turn_nothing(exif, tmp_path):
    about = json.dumps({"url": "http://web/0", "exif": exif}).encode()
    members = [("0.jpg", formats.jpeg(9)), ("0.json", about), ("0.txt", b"a cat")]
    (pair,) = img2dataset.documents(formats.tar(tmp_path / "0.tar", members), SourceSettings())
    assert pair.parts[0].image.size == (32, 24) and pair.meta == {"url": "http://web/0"}


def test_the_script_tells_img2dataset_to_keep_the_files():
    script = repository.ROOT / "workflow/fetch_pictures.sh"
    assert FLAGS["kept"] in script.read_text() and "resize" not in script.read_text()


@pytest.mark.skipif(
    not (repository.ROOT / ".img2dataset/bin/img2dataset").exists(), reason="img2dataset is not installed"
)
def test_img2dataset_itself_keeps_the_files(tmp_path):
    with loopback.serve() as server:
        for name, content in ORIGINALS.items():
            server.files[f"/{name}"] = content
        rows = [{"url": f"{server.url}/{name}", "caption": name} for name in ORIGINALS]
        (tmp_path / "urls.jsonl.gz").write_bytes(gzip.compress(formats.jsonl(rows).encode()))
        flags = "--processes_count 1 --distributor multiprocessing --caption_col caption"
        command = ["sh", "workflow/fetch_pictures.sh", tmp_path / "urls.jsonl.gz", tmp_path / "part", tmp_path / "out"]
        subprocess.run([*command, *flags.split()], check=True, cwd=repository.ROOT, env=os.environ)
    found = pictures(tmp_path / "out/00000.tar")
    assert all(difference(found[name], images.decode(data)) == 0 for name, data in ORIGINALS.items())


# ---- the processor -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    """A processor as somebody loads it who was given the exported model."""
    folder = tmp_path_factory.mktemp("exported")
    tiny.build()[1].save_pretrained(folder)
    return AutoProcessor.from_pretrained(folder)


@pytest.mark.parametrize("name", ORIGINALS)
def test_the_exported_processor_sees_the_pixels_of_training(name, processor):
    opened, decoded = Image.open(io.BytesIO(ORIGINALS[name])), images.decode(ORIGINALS[name])
    assert processor.read_pixels([opened]).equal(processor.read_pixels([decoded]))
    opened = Image.open(io.BytesIO(ORIGINALS[name]))
    assert processor.draw_pixels([opened]).equal(processor.draw_pixels([decoded]))
    asked = processor(images=Image.open(io.BytesIO(ORIGINALS[name])), text="<image>")
    assert asked["pixel_values"].equal(processor.read_pixels([decoded]))
