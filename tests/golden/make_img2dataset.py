"""Write the golden shards of img2dataset 1.47.0, from small pictures that a local server hands out.

    python tests/golden/make_img2dataset.py .img2dataset/bin/img2dataset

writes img2dataset_kept.tar.gz, with the flags of workflow/fetch_pictures.sh, and img2dataset_encoded.tar.gz, which
img2dataset decoded and encoded again, as it does by default.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

HERE = Path(__file__).parent
COMMON = "--input_format jsonl.gz --url_col url --caption_col caption --output_format webdataset --processes_count 1"
FLAGS = {"kept": "--disable_all_reencoding True", "encoded": "--resize_mode keep_ratio --resize_only_if_bigger True"}


def originals() -> dict[str, bytes]:
    """Picture files by name: all EXIF orientations, and the modes that OpenCV and Pillow decode differently."""
    quarters = np.zeros((32, 64, 3), np.uint8)
    quarters[:16, :32], quarters[16:, :32], quarters[:16, 32:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    scene = Image.fromarray(quarters)
    files = {f"turned{number}.jpg": _encoded(scene, "JPEG", number, subsampling=0) for number in range(1, 9)}
    for kind in ("png", "webp", "tiff"):
        files[f"turned6.{kind}"] = _encoded(scene, kind.upper(), 6)
    files["plain.png"] = _encoded(scene, "PNG")
    files["cmyk.jpg"] = _encoded(scene.convert("CMYK"), "JPEG")
    files["grey16.png"] = _encoded(Image.fromarray((np.arange(32 * 64).reshape(32, 64) * 32).astype(np.uint16)), "PNG")
    files["transparent.png"] = _encoded(Image.new("RGBA", (64, 32), (255, 0, 0, 0)), "PNG")
    return files


def _encoded(image: Image.Image, kind: str, orientation: int | None = None, **options: int) -> bytes:
    buffer, exif = io.BytesIO(), Image.Exif()
    if orientation:
        exif[ExifTags.Base.Orientation] = orientation
        options["exif"] = exif
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def main(program: str) -> None:
    """Run img2dataset on `originals` with both sets of flags."""
    sys.path.insert(0, str(HERE.parent))
    import loopback

    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with loopback.serve() as server, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, content in originals().items():
            server.files[f"/{file}"] = content
        rows = [{"url": f"{server.url}/{file}", "caption": file} for file in originals()]
        (folder / "urls.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
        for kind, flags in FLAGS.items():
            places = ["--url_list", folder / "urls.jsonl.gz", "--output_folder", folder / kind]
            subprocess.run([program, *places, *COMMON.split(), *flags.split()], check=True, env=variables)
            shard = (folder / kind / "00000.tar").read_bytes()
            (HERE / f"img2dataset_{kind}.tar.gz").write_bytes(gzip.compress(shard, mtime=0))


if __name__ == "__main__":
    main(sys.argv[1])
