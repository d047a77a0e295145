"""Measures the miniature foundations on unseen scenes, for their gates and their card (`gates.py`).

    dreamllm measure-foundations --config config/foundations.yaml --foundations data/foundations \
        --out data/foundations/card.json

Prints the figures, shares of 1, and writes the card when all of them reach their gates; else it says which do not.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from dreamllm.config.experiment import Experiment
from dreamllm.config.foundations import FlowRecipe, SdRecipe
from dreamllm.config.reading import load
from dreamllm.emoji import grammar, human, registers
from dreamllm.emoji.foundations import gates
from dreamllm.emoji.scenes import NAMES, Names, Scene, names_of, render, sample_split
from dreamllm.output_paths import file_to_write

if TYPE_CHECKING:
    import torch
    from PIL import Image

KINDS = ["single", "pair", "group"]
SIZES = {"asked": 400, "pairs": 600, "fitted": 3000, "read": 1200, "drawn": 240}
"""Questions of each kind to the language model.
Scenes: tested and fitted in CLIP's probes, read by a scene classifier, drawn by Stable Diffusion in each way."""
TUNING = SdRecipe(steps=600, batch_size=64, learning_rate=1e-3, pictures=20000, timestep_shift=3)
"""How UNet and text encoder are tuned on clean captions before the UNet's ceiling is measured. With the text encoder
frozen, which hardly tells `a red cat left of a blue car` from `a blue cat left of a red car`, 80 steps gave .19."""
FLOW_TUNING = FlowRecipe(**TUNING.model_dump(include={"steps", "batch_size", "pictures"}), learning_rate=2.5e-3)
"""The same for the transformer of the mini Stable Diffusion 3: as many steps, at the best of three rates (pairs .925 at
1e-3, .938 at 1.5e-3, .988 at 2.5e-3)."""


def unseen(count: int, seed: int, kinds: Sequence[str], names: Names = NAMES) -> list[Scene]:
    """Scenes of the split dev: kinds alternate, every fourth has a held-out combination. Few singles are different."""
    rng = random.Random(seed)
    return [sample_split(rng, "dev", kinds[n // 4 % len(kinds)], n % 4 == 3, names) for n in range(count)]


# ---- language model --------------------------------------------------------------------------------------------------


def llm_figures(part: str, foundations: Path, experiment: Experiment) -> dict[str, float]:
    """Shares of right answers about unseen scenes told in words: `language_figures.figures`."""
    from transformers import AutoModelForCausalLM

    from dreamllm.emoji.foundations import language_figures
    from dreamllm.model.weights import load_tokenizer, load_weights

    model = load_weights(AutoModelForCausalLM, foundations / part).float().eval()
    tokenizer = load_tokenizer(foundations / part)
    return language_figures.figures(model, tokenizer, names_of(experiment.world.pictograms), SIZES["asked"])


# ---- CLIP ------------------------------------------------------------------------------------------------------------


def clip_figures(foundations: Path, experiment: Experiment) -> dict[str, float]:
    """Retrieval, and linear probes of what DreamLLM reads: the patches of the last layer but one.

    retrieval_caption, retrieval_alt_text: share of texts about different unseen pairs of objects, a fifth of
    `SIZES["pairs"]`, that are nearest to their own picture.  probe_name, probe_colour: share of objects and colours of
    unseen pairs, at both places, that ridge regression finds, fitted to training pairs.  probe_position: row or column
    """
    import torch
    from transformers import AutoTokenizer, CLIPModel

    from dreamllm.emoji.foundations.clip import image_processor
    from dreamllm.model.weights import load_weights

    world, names = experiment.world, names_of(experiment.world.pictograms)
    model = load_weights(CLIPModel, foundations / "clip").float().eval()
    tokenizer = AutoTokenizer.from_pretrained(foundations / "clip")
    rng = random.Random(0)

    @torch.no_grad()
    def look(scenes: Sequence[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
        """Patches of the last layer but one (N, P * D), and embeddings (N, E)."""
        patches, embedded = [], []
        for start in range(0, len(scenes), 200):
            pictures = [render(scene, world.picture_side, rng) for scene in scenes[start : start + 200]]
            pixels = image_processor(world.picture_side)(pictures, return_tensors="pt").pixel_values
            seen = model.vision_model(pixels, output_hidden_states=True)
            patches.append(seen.hidden_states[-2][:, 1:].flatten(1))
            embedded.append(model.visual_projection(seen.pooler_output))
        return torch.cat(patches), torch.cat(embedded)

    figures = {}
    scenes = list(dict.fromkeys(unseen(SIZES["pairs"] // 4, 0, ["pair"], names)))[: SIZES["pairs"] // 5]
    pictures = torch.nn.functional.normalize(look(scenes)[1], dim=1)
    for register in ("caption", "alt_text"):
        texts = [registers.describe(scene, register, rng, world.registers.alt_text) for scene in scenes]
        tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            embedded = model.text_projection(model.text_model(tokens).pooler_output)
        nearest = (embedded @ pictures.T).argmax(1)
        figures[f"retrieval_{register}"] = float((nearest == torch.arange(len(scenes))).float().mean())

    known = [sample_split(rng, "train", "pair", names=names) for _ in range(SIZES["fitted"])]
    asked = unseen(SIZES["pairs"], 1, ["pair"], names)
    (fitted, _), (tested, _) = look(known), look(asked)
    of_scene: dict[str, list[Callable[[Scene], str]]] = {
        "name": [lambda scene: scene.objects[0][0], lambda scene: scene.objects[1][0]],
        "colour": [lambda scene: scene.objects[0][1], lambda scene: scene.objects[1][1]],
        "position": [lambda scene: scene.layout],
    }
    for what, facts in of_scene.items():
        right = [probe(fitted, [*map(fact, known)], tested, [*map(fact, asked)]) for fact in facts]
        figures[f"probe_{what}"] = sum(right) / len(right)
    return figures


def probe(fitted: torch.Tensor, known: Sequence[str], tested: torch.Tensor, wanted: Sequence[str]) -> float:
    """Share of right classes of ridge regression to one-hot classes, fitted to features (N, F), tested on (M, F)."""
    import torch

    classes = sorted({*known, *wanted})
    targets = torch.eye(len(classes), dtype=torch.float64)[[classes.index(one) for one in known]]
    mean, scale = fitted.mean(0), fitted.std(0) + 1e-6
    x, y = ((features - mean).div(scale).double() for features in (fitted, tested))
    weights = torch.linalg.solve(x.T @ x + 100 * torch.eye(x.shape[1]), x.T @ (targets - targets.mean(0)))
    found = (y @ weights + targets.mean(0)).argmax(1).tolist()
    return sum(classes[best] == one for best, one in zip(found, wanted, strict=True)) / len(wanted)


# ---- scene classifiers -----------------------------------------------------------------------------------------------


def judge_figures(part: str, foundations: Path, experiment: Experiment) -> dict[str, float]:
    """exact: share of real pictures of unseen scenes that a scene classifier reads without a mistake.

    agreement_real, of judge2: share of which both classifiers say the same, right or wrong.
    """
    from dreamllm.emoji.foundations import scene_classifier

    scenes = unseen(SIZES["read"], 2, KINDS, names_of(experiment.world.pictograms))
    rng = random.Random(2)
    pictures = [render(scene, experiment.world.picture_side, rng) for scene in scenes]
    found = scene_classifier.load(foundations / part).predict(pictures)
    figures = {"exact": share(found, scenes)}
    if part == "judge2":
        figures["agreement_real"] = share(found, scene_classifier.load(foundations / "judge").predict(pictures))
    return figures


def share(found: Sequence[Scene], wanted: Sequence[Scene]) -> float:
    """Share of scenes that are the same in every respect."""
    return sum(one == other for one, other in zip(found, wanted, strict=True)) / len(wanted)


# ---- Stable Diffusion ------------------------------------------------------------------------------------------------


Draw = Callable[[Sequence[str]], list["Image.Image"]]
"""Generates an image of each text."""


def drawn_figures(foundations: Path, experiment: Experiment, draw: Draw, tune: Callable[[], Draw]) -> dict[str, float]:
    """What a decoder makes of each way to tell unseen scenes; shares that are right in every respect.

    caption_pair, human_pair, narrative_other, ...: by the way and the kind of scene, as the first scene classifier sees
    it; other: single objects and groups.  ceiling_pair, ceiling_other: told in captions after denoiser and text encoder
    were tuned on captions.  ..._judge2: of all kinds, by the second.  agreement_drawn: both classifiers say the same

    tune: tunes the decoder, and returns how it then generates
    """
    from dreamllm.emoji.foundations import scene_classifier

    scenes = unseen(SIZES["drawn"], 3, KINDS, names_of(experiment.world.pictograms))
    judges = [scene_classifier.load(foundations / part) for part in ("judge", "judge2")]
    figures: dict[str, float] = {}
    agreed: list[bool] = []

    def measure(way: str, tell: Callable[[Scene], str], draw: Draw) -> None:
        pictures = draw([tell(scene) for scene in scenes])
        found, found2 = (judge.predict(pictures) for judge in judges)
        for kind in ("pair", "other"):
            chosen = [n for n, scene in enumerate(scenes) if (scene.kind == "pair") == (kind == "pair")]
            figures[f"{way}_{kind}"] = share([found[n] for n in chosen], [scenes[n] for n in chosen])
        figures[f"{way}_judge2"] = share(found2, scenes)
        agreed.extend(one == other for one, other in zip(found, found2, strict=True))

    rng = random.Random(3)
    measure("caption", grammar.caption, draw)
    measure("human", lambda scene: human.sentence(scene, rng), draw)
    measure("narrative", lambda scene: human.narrative(scene, rng), draw)
    measure("ceiling", grammar.caption, tune())
    figures["agreement_drawn"] = sum(agreed) / len(agreed)
    return figures


def sd_figures(foundations: Path, experiment: Experiment) -> dict[str, float]:
    """`drawn_figures` of the mini Stable Diffusion."""
    import torch
    from diffusers import StableDiffusionPipeline

    from dreamllm.emoji.foundations import diffusion
    from dreamllm.evaluate.drawing import draw_with_sd, plan
    from dreamllm.model.weights import load_weights

    def draw(texts: Sequence[str], folder: Path = foundations / "sd") -> list[Image.Image]:
        requests = plan([SimpleNamespace(id=str(n), prompt=text) for n, text in enumerate(texts)], 0, 0)
        drawn = draw_with_sd(folder, None, torch.float32, requests, experiment.evaluation.drawing)
        return [picture for _, picture in drawn]

    def tune() -> Draw:
        pipeline = load_weights(StableDiffusionPipeline, foundations / "sd").to(dtype=torch.float32)
        names = names_of(experiment.world.pictograms)
        diffusion.train(pipeline, TUNING, 0, names, forms={"caption": 1}, text_encoder_too=True)

        def draw_tuned(texts: Sequence[str]) -> list[Image.Image]:
            with tempfile.TemporaryDirectory() as folder:
                pipeline.save_pretrained(folder)
                return draw(texts, Path(folder))

        return draw_tuned

    return drawn_figures(foundations, experiment, draw, tune)


def flow_figures(foundations: Path, experiment: Experiment) -> dict[str, float]:
    """`drawn_figures` of the mini Stable Diffusion 3."""
    from dreamllm.emoji.foundations import flow

    parts = flow.build(FLOW_TUNING, foundations / "sd/vae", foundations / "clip", foundations / "flow")
    parts.transformer.eval()

    def draw(texts: Sequence[str]) -> list[Image.Image]:
        return flow.draw(parts, texts, experiment.evaluation.drawing)

    def tune() -> Draw:
        names = names_of(experiment.world.pictograms)
        flow.train(parts, FLOW_TUNING, 0, names, forms={"caption": 1}, text_encoder_too=True)
        return draw

    return drawn_figures(foundations, experiment, draw, tune)


MEASURES: dict[str, Callable[[Path, Experiment], dict[str, float]]] = {
    "llm": partial(llm_figures, "llm"),
    "clip": clip_figures,
    "sd": sd_figures,
    "flow": flow_figures,
    "qwen": partial(llm_figures, "qwen"),
    "judge": partial(judge_figures, "judge"),
    "judge2": partial(judge_figures, "judge2"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm measure-foundations`."""
    parser.add_argument("--config", type=Path, required=True, help="experiment whose world the foundations are of")
    parser.add_argument("--foundations", type=Path, required=True, help="folder with the foundations")
    parser.add_argument("--parts", choices=MEASURES, nargs="+", help="which ones; by default all of the experiment")
    parser.add_argument(
        "--out", type=file_to_write, help="card to write, of all parts; those left out keep their figures there"
    )


def main(args: argparse.Namespace) -> None:
    """Entry point of `dreamllm measure-foundations`."""
    experiment = load(args.config)
    figures = {}
    parts = args.parts or [*gates.REQUIRED, *experiment.instruments.others]
    for part in parts:
        figures[part] = MEASURES[part](args.foundations, experiment)
        print(part, json.dumps(figures[part]), flush=True)
    for part in parts:
        gates.check(part, figures[part])
    if args.out:
        gates.write_card(args.out, args.foundations, figures)
