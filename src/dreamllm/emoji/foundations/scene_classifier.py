"""The judge: a small convolutional classifier that reads a Scene off a picture, to score drawn pictures.

A measuring instrument, trained apart from every model it judges. Unlike them it sees all object-colour combinations,
since it has to recognise those that were held out from them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from dreamllm.config.foundations import JudgeRecipe
from dreamllm.emoji.foundations.scene_batches import Batch, ahead, batch_of, pixels_of
from dreamllm.emoji.scenes import (
    BACKGROUND_NAMES,
    COLOUR_NAMES,
    NAMES,
    Layout,
    Names,
    Scene,
    sample_scene,
)
from dreamllm.train.optimise import device, half_precision, optimise, to_tensor

ARRANGEMENTS: list[tuple[Layout, int]] = [
    ("single", 1),
    ("row", 2),
    ("column", 2),
    ("group", 2),
    ("group", 3),
    ("group", 4),
]


class SceneClassifier(nn.Module):
    """Six heads on a plain CNN: arrangement, background, and object and colour in first and second place."""

    def __init__(self, side: int, width: int, names: Names = NAMES):
        super().__init__()
        self.side, self.width, self.names = side, width, tuple(names)
        things = [len(names), len(COLOUR_NAMES)]
        self.sizes = [len(ARRANGEMENTS), len(BACKGROUND_NAMES), *things, *things]
        layers: list[nn.Module] = []
        for inputs, outputs in [(3, width), (width, 2 * width), (2 * width, 4 * width)]:
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Conv2d(4 * width, 4 * width, 3, padding=1), nn.BatchNorm2d(4 * width), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.heads = nn.Linear(4 * width * (side // 8) ** 2, sum(self.sizes))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits of the six heads for pictures (N, 3, H, W) in [-1, 1]."""
        return self.heads(self.features(pixels).flatten(1)).split(self.sizes, dim=1)

    @torch.no_grad()
    def predict(self, pictures: list[Image.Image]) -> list[Scene]:
        """The scene each picture most likely shows; pictures of another size are resized."""
        scenes: list[Scene] = []
        for start in range(0, len(pictures), 256):
            resized = [p.convert("RGB").resize((self.side, self.side)) for p in pictures[start : start + 256]]
            best = [logits.argmax(1).tolist() for logits in self(to_tensor(resized).to(self.heads.weight.device))]
            scenes += [_scene(self.names, *choice) for choice in zip(*best, strict=True)]
        return scenes


def _scene(
    names: Names, arrangement: int, background: int, name_1: int, colour_1: int, name_2: int, colour_2: int
) -> Scene:
    layout, count = ARRANGEMENTS[arrangement]
    objects = ((names[name_1], COLOUR_NAMES[colour_1]), (names[name_2], COLOUR_NAMES[colour_2]))
    return Scene(BACKGROUND_NAMES[background], layout, objects if layout in ("row", "column") else objects[:1], count)


def _targets(scenes: list[Scene], names: Names) -> torch.Tensor:
    """Class of each head for each scene (N, 6); -100 where a head has nothing to say."""
    rows = []
    for scene in scenes:
        first, second = scene.objects[0], scene.objects[-1] if scene.kind == "pair" else None
        row = [ARRANGEMENTS.index((scene.layout, scene.count)), BACKGROUND_NAMES.index(scene.background)]
        row += [names.index(first[0]), COLOUR_NAMES.index(first[1])]
        row += [names.index(second[0]), COLOUR_NAMES.index(second[1])] if second else [-100, -100]
        rows.append(row)
    return torch.tensor(rows)


def train(recipe: JudgeRecipe, side: int, seed: int, names: Names = NAMES, workers: int = 0) -> SceneClassifier:
    """Train on all scenes with noise and blur, so that a decoder's softness does not count as another object."""
    torch.manual_seed(seed)
    judge = SceneClassifier(side, recipe.width, names).to(device()).train()
    batch = recipe.batch_size
    rng = random.Random(seed)

    def drawn() -> Iterator[Batch]:
        while True:
            yield batch_of([sample_scene(rng, names=names) for _ in range(batch)], side, rng)

    painted = ahead(drawn(), pixels_of, workers)

    def loss_of_step(step: int) -> torch.Tensor:
        scenes, array = next(painted)
        pixels = torch.from_numpy(array).to(device())
        blurred = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        mix = torch.rand(batch, 1, 1, 1, device=device())
        pixels = pixels + mix * (blurred - pixels)
        pixels = pixels + 0.15 * torch.rand(batch, 1, 1, 1, device=device()) * torch.randn_like(pixels)
        with half_precision():
            logits = judge(pixels)
        targets = _targets(scenes, names).to(device())
        losses = [  # summed, since a small batch may hold no pair and the mean over nothing is not a number
            F.cross_entropy(head.float(), targets[:, i], reduction="sum") for i, head in enumerate(logits)
        ]
        return torch.stack(losses).sum() / batch

    optimise("judge", list(judge.parameters()), loss_of_step, recipe.steps, recipe.learning_rate)
    return judge.eval()


def save(judge: SceneClassifier, folder: Path) -> None:
    """Write config.json, with the names of what it tells apart unless they are `emoji.NAMES`, and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {"names": judge.names} if judge.names != NAMES else {}
    (folder / "config.json").write_text(json.dumps({"side": judge.side, "width": judge.width} | named) + "\n")
    save_file({name: tensor.contiguous() for name, tensor in judge.state_dict().items()}, folder / "model.safetensors")


def load(folder: Path) -> SceneClassifier:
    """Read what `save` wrote, whatever its precision, as fp32 in evaluation mode."""
    judge = SceneClassifier(**json.loads((Path(folder) / "config.json").read_text()))
    judge.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return judge.float().eval()
