"""Feature networks for images: Inception for FID, by two protocols, and CLIP for FID, selection and score.

    paper   256 px by PIL's bilinear filter, square centre, then pytorch-fid's Inception (clean-fid's legacy_pytorch);
            the official code does the same in a copy of pytorch-fid
    clean   square centre, antialiased to 299 px without rounding, then the original Inception (arXiv 2104.11222)
    clip    image embeddings of CLIP, not normalised, as in clean-fid's own CLIP variant

Resizing and networks are clean-fid's, or transformers'; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from dreamllm.data.images import centre
from dreamllm.digests import sha256_of_file
from dreamllm.evaluate.files import BenchmarkProblem
from dreamllm.model.precision import default_device
from dreamllm.model.weights import load_part, load_weights

INCEPTION = {
    "paper": (
        "pt_inception-2015-12-05-6726825d.pth",
        "6726825d",  # torch's file names end in the first digits of the sha256
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights",
    ),
    "clean": (
        "inception-2015-12-05.pt",
        "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
        "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics",
    ),
}
"""File, sha256 (or its beginning) and address of the Inception weights of each protocol."""


@dataclass(frozen=True)
class Network:
    """A feature network.

    prepare: RGB picture -> (H, W, 3) float32 in 0..255.  embed: (B, 3, H, W) of these -> (B, D), both on `device`.
    weights: digest, by which stored features are told apart
    """

    name: str
    prepare: Callable[[Image.Image], np.ndarray]
    embed: Callable[[torch.Tensor], torch.Tensor]
    weights: str
    device: torch.device | str = "cpu"

    def features(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        """Features (B, D), float32, of prepared pictures."""
        pixels = torch.from_numpy(np.stack(prepared)).permute(0, 3, 1, 2).to(self.device)
        with torch.inference_mode():
            return self.embed(pixels).float().cpu().numpy()


def square(picture: Image.Image) -> Image.Image:
    """The centre of a picture, as wide as it is high; the models draw squares and were trained on such centres."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))


def inception(folder: Path) -> list[Network]:
    """Inception by the paper's protocol and by clean-fid's, from the two files that a person has put into `folder`.

    Raises BenchmarkProblem, saying what to put where, when one is missing or is another file.
    """
    from cleanfid import inception_pytorch
    from cleanfid.inception_torchscript import InceptionV3W
    from cleanfid.resize import build_resizer
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    staged = {name: _staged(folder, name) for name in INCEPTION}
    weights = torch.load(staged["paper"][0], map_location="cpu", weights_only=True)
    device = default_device()
    # clean-fid would download them; it has no argument for weights that are there.
    with mock.patch.object(inception_pytorch, "load_state_dict_from_url", lambda *_, **__: weights):
        legacy = inception_pytorch.InceptionV3(output_blocks=[3], resize_input=False).to(device).eval()
    original = InceptionV3W(str(folder), download=False).to(device).eval()
    crop = Compose([Resize(256, InterpolationMode.BILINEAR), CenterCrop(256)])
    to_299, to_299_clean = build_resizer("legacy_pytorch"), build_resizer("clean")
    return [
        Network(
            "paper",
            lambda picture: to_299(np.asarray(crop(centre(picture)))),
            lambda pixels: legacy(pixels / 255)[0].flatten(1),
            staged["paper"][1],
            device,
        ),
        Network(
            "clean", lambda picture: to_299_clean(np.asarray(square(picture))), original, staged["clean"][1], device
        ),
    ]


def _staged(folder: Path, protocol: str) -> tuple[Path, str]:
    """Path and sha256 of a protocol's weights."""
    name, known, address = INCEPTION[protocol]
    path = folder / name
    if not path.is_file():
        what = f"is missing; fetch it from {address}/{name} (sha256 {known}{'' if len(known) == 64 else '...'})"
        raise BenchmarkProblem(path, "", f"{what}, or name the folder that has it in evaluation.pictures.inception")
    if not (digest := sha256_of_file(path)).startswith(known):
        raise BenchmarkProblem(path, "", f"has sha256 {digest}, should have {known}: another file, or a broken one")
    return path, digest


def check_is_clip(folder: Path) -> None:
    """Raises BenchmarkProblem for another eye than CLIP, whose weights CLIP's classes would leave random."""
    from transformers import AutoConfig

    if (kind := load_part(AutoConfig, folder).model_type) not in ("clip", "clip_vision_model"):
        raise BenchmarkProblem(folder, "", f"holds {kind}, but CLIP is needed here")


class Clip:
    """Both towers of a CLIP in transformers' layout, and its image processor and tokenizer."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

        check_is_clip(folder)
        self.model = load_weights(CLIPModel, folder, dtype=torch.float32).to(default_device()).eval()
        self.processor = load_part(AutoImageProcessor, folder, backend="pil")
        self.tokenizer = load_part(AutoTokenizer, folder)
        self.length = self.model.config.text_config.max_position_embeddings

    def embed_pictures(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """Embeddings (N, D) of length one, prepared as in CLIP's training."""
        cut = [centre(picture) for picture in pictures]
        pixels = self.processor(images=cut, return_tensors="pt")["pixel_values"].to(self.model.device)
        with torch.inference_mode():
            return _unit(self.model.get_image_features(pixel_values=pixels).pooler_output)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings (N, D) of length one; what is longer than CLIP can read is cut off."""
        options: dict[str, Any] = {"padding": "max_length", "truncation": True, "max_length": self.length}
        tokens = self.tokenizer(list(texts), return_tensors="pt", **options).to(self.model.device)
        with torch.inference_mode():
            return _unit(self.model.get_text_features(input_ids=tokens["input_ids"]).pooler_output)

    def too_long(self, text: str) -> bool:
        """Whether CLIP does not read the text to its end."""
        return len(self.tokenizer(text)["input_ids"]) > self.length


def _unit(embeddings: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(embeddings.float(), dim=-1).cpu().numpy()


def clip_network(folder: Path) -> Network:
    """CLIP's image embeddings (before normalisation) as FID features."""
    from cleanfid.resize import make_resizer
    from transformers import AutoImageProcessor, CLIPVisionModelWithProjection

    from dreamllm.digests import digest

    device = default_device()
    model = load_weights(CLIPVisionModelWithProjection, folder, dtype=torch.float32).to(device).eval()
    processor = load_part(AutoImageProcessor, folder, backend="pil")
    mean, std = (torch.tensor(v).view(1, 3, 1, 1).to(device) for v in (processor.image_mean, processor.image_std))
    side = model.config.image_size
    resize = make_resizer("PIL", False, "bicubic", (side, side))
    return Network(
        "clip",
        lambda picture: resize(np.asarray(square(picture))),
        lambda pixels: model(pixel_values=(pixels / 255 - mean) / std).image_embeds,
        digest(folder),
        device,
    )
