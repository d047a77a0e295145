"""Prediction files of generated images, drawn into a folder first, from which a killed run goes on.

30,000 images of 512 pixels fit no memory, and nobody wants to draw them twice.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from dreamllm.atomic import new_file
from dreamllm.config.reading import digest
from dreamllm.data.images import decode, encode_png
from dreamllm.evaluate import drawing
from dreamllm.evaluate.drawing import Wanted
from dreamllm.evaluate.job import PredictionJob
from dreamllm.evaluate.predictions import write
from dreamllm.provenance import code_digest

Draw = Callable[[Sequence[Wanted], Mapping[str, Image.Image]], Iterator[tuple[Wanted, Image.Image]]]
"""Draws images. Arguments: those that are still to be drawn; those that are there, by name."""


def write_drawn(
    job: PredictionJob, items: Sequence[Any], header: dict[str, Any], draw: Draw, texts: Sequence[str] | None = None
) -> None:
    """Draw one sample of a benchmark and write its prediction file.

    header: of the prediction file, without the sample's number.  texts: what to draw from in place of items' prompts
    """
    header["sample"] = job.sample
    wanted = drawing.plan(items, job.settings.seed, job.sample, texts)
    records = [one.record() for one in wanted]
    with tempfile.TemporaryDirectory() as temporary:
        identity = {"header": header, "records": records, "code": code_digest(drawing.__name__)}
        drawn = Drawn(job.work or Path(temporary), identity)
        for one, picture in draw([one for one in wanted if one.name not in drawn], drawn):
            drawn.add(one.name, picture)
        write(job.out, header, records, {one.name: drawn.folder / one.name for one in wanted})
        shutil.rmtree(drawn.folder)


class Drawn(Mapping[str, Image.Image]):
    """The images in a folder by name, each read when it is asked for; others are added as they are drawn.

    The folder is for one set of images: its name has the digest of `identity`, everything that they follow from.
    """

    def __init__(self, work: Path, identity: Mapping[str, Any]) -> None:
        self.folder = work / digest(dict(identity))
        self.folder.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, picture: Image.Image) -> None:
        """Store an image; one that is cut off by a kill is never taken for whole."""
        with new_file(self.folder / name) as file:
            file.write_bytes(encode_png(picture))

    def __getitem__(self, name: str) -> Image.Image:
        try:
            return decode((self.folder / name).read_bytes())
        except FileNotFoundError:
            raise KeyError(name) from None

    def __contains__(self, name: object) -> bool:
        return (self.folder / str(name)).is_file()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(path.name for path in self.folder.glob("[!.]*.png")))

    def __len__(self) -> int:
        return sum(1 for _ in self)
