"""The part of `dreamllm predict` that draws: tasks draw, illustrations, in_context, latency.

Pictures go to a folder as they are drawn, from which a run that was killed goes on: 30,000 pictures of 512 pixels fit
no memory and no patience.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from dreamllm.atomic import new_file
from dreamllm.config.experiment import Experiment
from dreamllm.config.reading import digest
from dreamllm.data.images import decode, encode_png
from dreamllm.evaluate import drawing, in_context, latency
from dreamllm.evaluate.predictions import write
from dreamllm.provenance import code_digest

if TYPE_CHECKING:
    from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration
    from dreamllm.model.processor import DreamLLMProcessor


def predict(
    args: argparse.Namespace, experiment: Experiment, task: str, items: Sequence[Any], header: dict[str, Any]
) -> None:
    """Write the predictions of one sample on a benchmark of pictures: the part of `dreamllm predict` that draws.

    header: of the prediction file, without what is told here
    """
    settings = experiment.evaluation
    sd = partial(drawing.draw_with_sd, args.foundations / "sd")
    texts = None
    if args.model in ("sd", "sd_finetuned"):
        draw_these: drawing.Draw = partial(sd, args.checkpoints[0] / "unet" if args.checkpoints else None)
    else:
        model, processor = _load(args)
        draw_these = partial(drawing.draw, model, processor)
        if any(evaluation.rewrite for evaluation in experiment.evaluations if evaluation.model == args.model):
            texts = drawing.rewrite(model, processor, items, settings.prompts, settings.text)
            header["protocol"]["rewritten"] = {"prompts": len(texts), "empty": sum(not text for text in texts)}
            draw_these = partial(sd, None)
        if task == "in_context":
            shown = in_context.context_pictures(args.benchmarks, args.split)
            draw_these = partial(draw_these, document=lambda one: in_context.document(one.item, shown))
    if texts is not None or args.model in ("sd", "sd_finetuned"):
        seen = [item.prompt for item in items] if texts is None else texts
        header["protocol"]["text_encoder"] = drawing.cut_off(args.foundations / "sd", seen)
    if task == "latency":
        return write(args.out, header, latency.measure(items, draw_these, settings))
    header["sample"] = args.sample
    wanted = drawing.plan(items, settings.seed, args.sample, texts)
    records = [one.record() for one in wanted]
    with tempfile.TemporaryDirectory() as temporary:
        identity = {"header": header, "records": records, "code": code_digest(drawing.__name__)}
        drawn = Drawn(args.work or Path(temporary), identity)
        due = [one for one in wanted if one.name not in drawn]
        if task == "illustrations" and args.model not in ("sd", "sd_finetuned"):
            pictures = drawing.illustrate(model, processor, wanted, settings.drawing, drawn)
        else:
            pictures = draw_these(due, settings.drawing)
        for one, picture in pictures:
            drawn.add(one.name, picture)
        write(args.out, header, records, {one.name: drawn.folder / one.name for one in wanted})
        shutil.rmtree(drawn.folder)


def _load(args: argparse.Namespace) -> tuple[DreamLLMForConditionalGeneration, DreamLLMProcessor]:
    import torch

    from dreamllm.model import precision
    from dreamllm.train.checkpoint import load_model

    model, processor = load_model(args.foundations, args.checkpoints)
    precision.for_inference(model, "cuda" if torch.cuda.is_available() else "cpu")
    return model, processor


class Drawn(Mapping[str, Image.Image]):
    """The pictures in a folder by name, each read when it is asked for; others are added as they are drawn.

    The folder is for one set of pictures: its name has the digest of `identity`, everything that they follow from.
    """

    def __init__(self, work: Path, identity: Mapping[str, Any]) -> None:
        self.folder = work / digest(dict(identity))
        self.folder.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, picture: Image.Image) -> None:
        """Store a picture; one that is cut off by a kill is never taken for whole."""
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
