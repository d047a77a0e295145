"""Prediction files of generated images. Images are stored in a folder one by one, so that a killed job resumes, and
several processes generate the images of one file.

30,000 images of 512 pixels do not fit in memory, and take too long to generate twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from dreamllm.atomic import new_file
from dreamllm.config.reading import digest
from dreamllm.data.images import decode, encode_png
from dreamllm.evaluate import drawing
from dreamllm.evaluate.drawing import DrawRequest
from dreamllm.evaluate.job import PredictionJob

Draw = Callable[[Sequence[DrawRequest], Mapping[str, Image.Image]], Iterator[tuple[DrawRequest, Image.Image]]]
"""Generates images. Arguments: this process's requests, in whole batches; the images that exist already, by name."""


def write_images(
    job: PredictionJob, items: Sequence[Any], header: dict[str, Any], draw: Draw, texts: Sequence[str] | None = None
) -> None:
    """Generate one sample of each item's image and write the prediction file.

    header: of the prediction file, without the sample's number.  texts: prompts in place of the items' own
    """
    header["sample"] = job.sample
    requests = drawing.plan(items, job.settings.seed, job.sample, texts)
    records = [request.record() for request in requests]
    images = ImageFolder(job.work, {"records": records})
    pending = drawing.missing(requests, images, job.settings.drawing.batch_size, job.processes)
    for request, image in draw(pending, images):
        images.add(request.name, image)
    job.processes.wait()
    job.write(header, records, {request.name: images.folder / request.name for request in requests})


def write_sd_images(
    job: PredictionJob, items: Sequence[Any], header: dict[str, Any], texts: Sequence[str] | None = None
) -> None:
    """`write_images` with Stable Diffusion. The header's protocol gets the number of prompts that it reads in part."""
    sd, unet = drawing.sd_folders(job)
    prompts = [item.prompt for item in items] if texts is None else texts
    header["protocol"]["text_encoder"] = drawing.count_truncated(sd, prompts)

    def draw(pending: Sequence[DrawRequest], _: Mapping[str, Image.Image]) -> Iterator[tuple[DrawRequest, Image.Image]]:
        compiled = job.experiment.machine.compile
        return drawing.draw_with_sd(sd, unet, job.dtype, pending, job.settings.drawing, compiled=compiled)

    write_images(job, items, header, draw, texts)


class ImageFolder(Mapping[str, Image.Image]):
    """The images in a folder by name. Each is read when it is asked for; `add` stores another.

    The folder's name has the digest of `identity`, so that images made with other settings are not found in it.
    """

    def __init__(self, work: Path, identity: Mapping[str, Any]) -> None:
        self.folder = work / digest(dict(identity))
        self.folder.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, picture: Image.Image) -> None:
        """Store an image, whole or not at all: a kill in the middle leaves none, a power cut perhaps a damaged one."""
        with new_file(self.folder / name, sync=False) as file:
            file.write_bytes(encode_png(picture))

    def __getitem__(self, name: str) -> Image.Image:
        try:
            return decode((self.folder / name).read_bytes())
        except FileNotFoundError:
            raise KeyError(name) from None

    def __contains__(self, name: object) -> bool:
        try:
            self[str(name)]
        except (KeyError, ValueError):  # missing, or damaged by a power cut: it is generated again
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(path.name for path in self.folder.glob("[!.]*.png")))

    def __len__(self) -> int:
        return sum(1 for _ in self)
