"""Trains one foundation model from scratch and saves it in half precision, in the folder layout of the real one.

    python -m dreamllm train-foundation --part clip --config config/foundations.yaml --out data/foundations/clip

Scenes are sampled during training, from the training scenes of the experiment's world; the documents are not read. `sd`
and `flow`, a mini Stable Diffusion 3, need the trained VAE and CLIP, and include the VAE and CLIP's text tower. `qwen`
is a second language model. `judge` is the scene classifier, `judge2` an independent one. `training.json` in the folder
records recipe, seed, language, CPU time and processor; the foundations' card (`gates.py`) repeats it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from dreamllm.atomic import new_folder
from dreamllm.output_paths import folder_to_write

PARTS = ("llm", "qwen", "clip", "vae", "sd", "flow", "judge", "judge2")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm train-foundation`."""
    parser.add_argument("--part", choices=PARTS, required=True, help="which foundation model to train")
    parser.add_argument("--config", type=Path, required=True, help="experiment with the recipe foundations.PART")
    parser.add_argument("--inputs", type=Path, nargs="*", default=[], help="for sd and flow: the folders vae and clip")
    start = "for all but vae and judges: folder whose language model, image tower or denoiser to start from"
    parser.add_argument("--start", type=Path, help=start)
    parser.add_argument("--out", type=folder_to_write, required=True, help="folder to save to, replaced when it exists")


def main(args: argparse.Namespace) -> None:
    """Entry point of `dreamllm train-foundation`."""
    import torch

    from dreamllm import provenance
    from dreamllm.config.reading import load
    from dreamllm.digests import digest
    from dreamllm.emoji.foundations import clip, diffusion, flow, gates, language, scene_classifier, vae
    from dreamllm.emoji.scenes import names_of
    from dreamllm.seeds import seed_of

    experiment = load(args.config)
    forms = experiment.world.registers.alt_text
    side, seed = experiment.world.picture_side, seed_of(experiment.seed, "foundation", args.part) % 2**32
    names, workers = names_of(experiment.world.pictograms), experiment.machine.threads - 1
    recipe = getattr(experiment.foundations, args.part, None)
    if recipe is None or experiment.foundations.source != "train":
        raise SystemExit(f"{args.config}: foundations.{args.part} has no recipe; set foundations.source to train")
    torch.manual_seed(seed)  # of new weights; the trainings seed what they draw themselves
    with new_folder(args.out) as folder:
        if args.part in ("llm", "qwen"):
            model, tokenizer = language.train(recipe, seed, names, experiment.world.registers, args.start)
            model.half().save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        elif args.part == "clip":
            model, tokenizer = clip.train(recipe, side, seed, names, workers, forms, args.start)
            model.half().save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            clip.image_processor(side).save_pretrained(folder)
        elif args.part == "vae":
            vae.train(recipe, side, seed, names, workers).half().save_pretrained(folder)
        elif args.part in ("sd", "flow"):
            inputs = {folder.name: folder for folder in args.inputs}
            if inputs.keys() != {"vae", "clip"}:
                raise SystemExit(f"train-foundation --part {args.part} needs --inputs with the folders vae and clip")
            if args.part == "flow":
                parts = flow.build(recipe, inputs["vae"], inputs["clip"], args.start)
                flow.train(parts, recipe, seed, names, workers, forms)
                parts.save(folder)
            else:
                pipeline = diffusion.build(recipe, inputs["vae"], inputs["clip"], args.start)
                diffusion.train(pipeline, recipe, seed, names, workers, forms)
                pipeline.to(dtype=torch.float16).save_pretrained(folder)
        else:
            scene_classifier.save(scene_classifier.train(recipe, side, seed, names, workers).half(), folder)
        forget_paths(folder)
        record = {
            "recipe": recipe.model_dump(mode="json"),
            "seed": experiment.seed,
            "language": gates.language_of(args.part, experiment.world),
            "started_from": digest(args.start) if args.start else None,
            "inputs": {folder.name: digest(folder) for folder in args.inputs},
            "cpu_seconds": round(time.process_time()),
            "processor": provenance.machine(),
            "code": provenance.code_digest(__name__),
        }
        (folder / gates.TRAINING).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def forget_paths(folder: Path) -> None:
    """Remove `_name_or_path` from the configurations below a folder: it is a path of the machine that saved them."""
    for file in sorted(folder.rglob("*.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
