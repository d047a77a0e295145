"""Writes small files in the formats of public data sets."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

from PIL import Image


def jpeg(shade: int, size: tuple[int, int] = (32, 24)) -> bytes:
    """The bytes of a JPEG file of one shade of grey (0 to 255)."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade, shade, shade)).save(buffer, "JPEG")
    return buffer.getvalue()


def huge_png(side: int = 60_000) -> bytes:
    """The bytes of a PNG file below 1 KB whose header declares 60,000 x 60,000 pixels, 10 GB (a decompression bomb)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


def tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """Write an uncompressed tar file with these members, in this order and with repeated names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def img2dataset(path: Path, samples: list[tuple[str, str, str, bytes]]) -> Path:
    """Write a shard in the format of img2dataset 1.47. samples: (key, URL, caption, JPEG bytes)"""
    members = []
    for key, url, caption, picture in samples:
        about = {"caption": caption, "url": url, "key": key, "status": "success", "error_message": None, "exif": "{}"}
        members += [(f"{key}.jpg", picture), (f"{key}.json", json.dumps(about, indent=4).encode())]
        members += [(f"{key}.txt", caption.encode())]
    return tar(path, members)


def archive(path: Path, members: dict[str, bytes | str]) -> Path:
    """Write a zip file with these members, by name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return path


def jsonl(records: list[Any]) -> str:
    """The records as JSON Lines."""
    return "".join(json.dumps(record) + "\n" for record in records)


def mmc4(sentences: list[str], *pictures: tuple[str, int, float], **more: Any) -> dict[str, Any]:
    """A page of MMC4. pictures: (URL, index of the matched sentence, similarity)"""
    infos = [
        {
            "image_name": f"{number:012x}.jpg",
            "raw_url": url,
            "matched_text_index": index,
            "matched_sim": similarity,
            "face_detections": None,
        }
        for number, (url, index, similarity) in enumerate(pictures)
    ]
    return {"text_list": sentences, "url": "http://page", "image_info": infos, "could_have_url_duplicate": 0} | more
