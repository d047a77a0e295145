"""Trains one foundation model from scratch and saves it in half precision, in the folder layout of the real one.

    python -m dreamllm train-foundation --part clip --config config/foundations.yaml --out data/foundations/clip

Scenes are sampled during training, from the training scenes of the experiment's world; the documents are not read. `sd`
needs the trained VAE and includes it. `judge` is the scene classifier.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dreamllm.atomic import new_folder

PARTS = ("llm", "clip", "vae", "sd", "judge")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm train-foundation`."""
    parser.add_argument("--part", choices=PARTS, required=True, help="which foundation model to train")
    parser.add_argument("--config", type=Path, required=True, help="experiment with the recipe foundations.PART")
    parser.add_argument("--inputs", type=Path, nargs="*", default=[], help="for sd: the folder of the trained vae")
    parser.add_argument("--out", type=Path, required=True, help="folder to save to, replaced when it exists")


def main(args: argparse.Namespace) -> None:
    """Entry point of `dreamllm train-foundation`."""
    import torch
    from diffusers import AutoencoderKL

    from dreamllm.config.reading import load
    from dreamllm.emoji.foundations import clip, diffusion, language, scene_classifier, vae
    from dreamllm.emoji.scenes import names_of
    from dreamllm.model.weights import load_weights
    from dreamllm.seeds import seed_of

    experiment = load(args.config)
    side, seed = experiment.world.picture_side, seed_of(experiment.seed, "foundation", args.part) % 2**32
    names, workers = names_of(experiment.world.pictograms), experiment.machine.threads - 1
    recipe = getattr(experiment.foundations, args.part, None)
    if recipe is None or experiment.foundations.source != "train":
        raise SystemExit(f"{args.config}: foundations.{args.part} has no recipe; set foundations.source to train")
    with new_folder(args.out) as folder:
        if args.part == "llm":
            model, tokenizer = language.train(recipe, seed, names)
            model.half().save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        elif args.part == "clip":
            model, tokenizer = clip.train(recipe, side, seed, names, workers)
            model.half().save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            clip.image_processor(side).save_pretrained(folder)
        elif args.part == "vae":
            vae.train(recipe, side, seed, names, workers).half().save_pretrained(folder)
        elif args.part == "sd":
            if len(args.inputs) != 1:
                raise SystemExit("train-foundation --part sd needs --inputs with the folder of the trained vae")
            trained = load_weights(AutoencoderKL, args.inputs[0]).float()
            diffusion.train(recipe, trained, seed, names, workers).to(dtype=torch.float16).save_pretrained(folder)
        else:
            scene_classifier.save(scene_classifier.train(recipe, side, seed, names, workers).half(), folder)
