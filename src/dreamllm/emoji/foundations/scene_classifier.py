"""The scene classifier: a small CNN that predicts the Scene of a picture, to score generated pictures.

It is trained independently of the models that it scores, on all object-colour combinations, because it has to recognise
those that are held out from them. Its folder and its key in the configuration are called `judge`;
`judge2` is a second one.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import ResNetConfig, ResNetModel

from dreamllm.config.foundations import SceneClassifierRecipe
from dreamllm.data.images import upright_rgb
from dreamllm.emoji.foundations.scene_batches import Batch, make_batch, prefetch, render_batch
from dreamllm.emoji.scenes import (
    BACKGROUND_NAMES,
    COLOUR_NAMES,
    NAMES,
    Layout,
    Names,
    Scene,
    sample_scene,
)
from dreamllm.model.finite import check_finite
from dreamllm.model.precision import default_device
from dreamllm.model.weights import FoundationProblem, not_finite
from dreamllm.train.optimise import half_precision, optimise, to_tensor

ARRANGEMENTS: list[tuple[Layout, int]] = [
    ("single", 1),
    ("row", 2),
    ("column", 2),
    ("group", 2),
    ("group", 3),
    ("group", 4),
]


class SceneClassifier(nn.Module):
    """A CNN with six heads: arrangement, background, and object and colour of the first and the second place.

    architecture: "plain" convolutions, or "residual", transformers' `ResNetModel`, for an independent second judge
    """

    def __init__(
        self, side: int, width: int, names: Names = NAMES, architecture: Literal["plain", "residual"] = "plain"
    ):
        super().__init__()
        self.side, self.width, self.names, self.architecture = side, width, tuple(names), architecture
        things = [len(names), len(COLOUR_NAMES)]
        self.sizes = [len(ARRANGEMENTS), len(BACKGROUND_NAMES), *things, *things]
        if architecture == "residual":
            widths = [width, 2 * width, 4 * width]  # after the first layer a quarter of the side, then halved twice
            config = ResNetConfig(
                embedding_size=width, hidden_sizes=widths, depths=[1, 2, 2], layer_type="basic", return_dict=False
            )
            self.features: nn.Module = ResNetModel(config)
            places = math.ceil(side / 16) ** 2
        else:
            layers: list[nn.Module] = []
            for inputs, outputs in [(3, width), (width, 2 * width), (2 * width, 4 * width)]:
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
                layers += [nn.MaxPool2d(2)]
            layers += [nn.Conv2d(4 * width, 4 * width, 3, padding=1), nn.BatchNorm2d(4 * width), nn.ReLU()]
            self.features = nn.Sequential(*layers)
            places = (side // 8) ** 2
        self.heads = nn.Linear(4 * width * places, sum(self.sizes))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits of the six heads for pictures (N, 3, H, W) in [-1, 1]."""
        found = self.features(pixels)
        if self.architecture == "residual":
            found = found[0]  # before the mean over all places
        return self.heads(found.flatten(1)).split(self.sizes, dim=1)

    @torch.no_grad()
    def predict(self, pictures: list[Image.Image], names: Sequence[str] | None = None) -> list[Scene]:
        """The most likely scene of each picture; pictures of another size are resized.

        names: of the pictures, for error messages; their numbers if None. Raises NonFiniteValues for NaN or infinity.
        """
        names = [f"picture {number}" for number in range(len(pictures))] if names is None else names
        scenes: list[Scene] = []
        for start in range(0, len(pictures), 256):
            resized = [upright_rgb(p).resize((self.side, self.side)) for p in pictures[start : start + 256]]
            heads = self(to_tensor(resized).to(self.heads.weight.device))
            check_finite(torch.cat(heads, dim=1), names[start : start + 256], "the scene classifier's logits")
            best = [logits.argmax(1).tolist() for logits in heads]
            scenes += [_scene(self.names, *choice) for choice in zip(*best, strict=True)]
        return scenes


def _scene(
    names: Names, arrangement: int, background: int, name_1: int, colour_1: int, name_2: int, colour_2: int
) -> Scene:
    layout, count = ARRANGEMENTS[arrangement]
    objects = ((names[name_1], COLOUR_NAMES[colour_1]), (names[name_2], COLOUR_NAMES[colour_2]))
    return Scene(BACKGROUND_NAMES[background], layout, objects if layout in ("row", "column") else objects[:1], count)


def _targets(scenes: list[Scene], names: Names) -> torch.Tensor:
    """Target class of each head for each scene (N, 6); -100 for heads that do not apply."""
    rows = []
    for scene in scenes:
        first, second = scene.objects[0], scene.objects[-1] if scene.kind == "pair" else None
        row = [ARRANGEMENTS.index((scene.layout, scene.count)), BACKGROUND_NAMES.index(scene.background)]
        row += [names.index(first[0]), COLOUR_NAMES.index(first[1])]
        row += [names.index(second[0]), COLOUR_NAMES.index(second[1])] if second else [-100, -100]
        rows.append(row)
    return torch.tensor(rows)


def train(
    recipe: SceneClassifierRecipe, side: int, seed: int, names: Names = NAMES, workers: int = 0
) -> SceneClassifier:
    """Train on scenes of all splits with noise and blur, for robustness to the blur of VAE decoders."""
    torch.manual_seed(seed)
    device = default_device()
    classifier = SceneClassifier(side, recipe.width, names, recipe.architecture).to(device).train()
    batch = recipe.batch_size
    rng = random.Random(seed)

    def batches() -> Iterator[Batch]:
        while True:
            yield make_batch([sample_scene(rng, names=names) for _ in range(batch)], side, rng)

    rendered = prefetch(batches(), render_batch, workers)

    def loss_of_step(step: int) -> torch.Tensor:
        scenes, array = next(rendered)
        pixels = torch.from_numpy(array).to(device)
        blurred = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        mix = torch.rand(batch, 1, 1, 1, device=device)
        pixels = pixels + mix * (blurred - pixels)
        pixels = pixels + 0.15 * torch.rand(batch, 1, 1, 1, device=device) * torch.randn_like(pixels)
        with half_precision():
            logits = classifier(pixels)
        targets = _targets(scenes, names).to(device)
        losses = [  # summed, since the mean is NaN for a batch without pairs
            F.cross_entropy(head.float(), targets[:, i], reduction="sum") for i, head in enumerate(logits)
        ]
        return torch.stack(losses).sum() / batch

    optimise("judge", list(classifier.parameters()), loss_of_step, recipe.steps, recipe.learning_rate)
    return classifier.eval()


def save(classifier: SceneClassifier, folder: Path) -> None:
    """Write model.safetensors and config.json: the arguments of `SceneClassifier`, without those at their default."""
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {"side": classifier.side, "width": classifier.width}
    config |= {"names": classifier.names} if classifier.names != NAMES else {}
    config |= {"architecture": classifier.architecture} if classifier.architecture != "plain" else {}
    (folder / "config.json").write_text(json.dumps(config) + "\n")
    save_file(
        {name: tensor.contiguous() for name, tensor in classifier.state_dict().items()}, folder / "model.safetensors"
    )


def load(folder: Path) -> SceneClassifier:
    """Read what `save` wrote, whatever its precision, as fp32 in evaluation mode.

    Raises FoundationProblem for files that `save` did not write, and for weights with NaN or infinity.
    """
    try:
        with torch.device("meta"):  # takes no memory, whatever sizes the file names
            classifier = SceneClassifier(**json.loads((Path(folder) / "config.json").read_text()))
        tensors = load_file(Path(folder) / "model.safetensors")
        classifier.load_state_dict(tensors, assign=True)
    except (ValueError, TypeError, ArithmeticError, RuntimeError, SafetensorError) as error:  # RecursionError, too
        words = " ".join(str(error).split())[:300]
        raise FoundationProblem(f"{folder}: is no scene classifier ({type(error).__name__}: {words})") from None
    if (bad := not_finite(tensors.items())) is not None:
        raise FoundationProblem(f"{folder}: weight {bad} holds NaN or infinity")
    return classifier.float().eval()
