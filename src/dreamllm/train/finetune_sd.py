"""The baseline of the paper's Table 2: Stable Diffusion's UNet fine-tuned on the same pairs, with its own text encoder.

    python -m dreamllm finetune-sd --config FILE --foundations data/foundations --data data/emoji/train --out DIR

It trains on the same pairs as stage I. VAE and text encoder are frozen, so each picture of the emoji world is encoded
once; pairs of public sets (`sd_finetuned.mixture`) are read and encoded step by step. The output folder has unet/,
losses.csv and, like a stage's checkpoint, a checkpoint.json that records what it was made from.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from pathlib import Path

from dreamllm.atomic import new_folder, refuse_file
from dreamllm.output_paths import folder_to_write


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm finetune-sd`."""
    parser.add_argument("--config", type=Path, required=True, help="experiment; its section sd_finetuned is the recipe")
    parser.add_argument("--seed", type=int, help="that of the run, where the experiment has several (its `seeds`)")
    parser.add_argument("--foundations", type=Path, required=True, help="folder that holds sd/")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders with the shards of the pairs")
    parser.add_argument("--out", type=folder_to_write, required=True, help="folder for unet/, replaced when it exists")


def main(args: argparse.Namespace) -> None:
    """Fine-tune the UNet and write the folder `out` atomically.

    Raises NonFiniteValues, with the pair's id, where the text encoder, the VAE or the UNet give NaN; then nothing is
    written.
    """
    import torch
    import torch.nn.functional as F
    from diffusers import DDPMScheduler, StableDiffusionPipeline
    from diffusers.models.attention_processor import AttnProcessor
    from diffusers.training_utils import EMAModel
    from PIL import Image, ImageOps

    from dreamllm import provenance
    from dreamllm.config.reading import load
    from dreamllm.data import shards
    from dreamllm.data.document import Document, Text
    from dreamllm.data.mixture import Mixture, next_set
    from dreamllm.digests import digest
    from dreamllm.model import precision
    from dreamllm.model.build import check_is_stable_diffusion
    from dreamllm.model.finite import check_finite
    from dreamllm.model.weights import load_weights
    from dreamllm.seeds import seed_of
    from dreamllm.train.optimise import optimise, to_tensor
    from dreamllm.train.trainer import find_shard_sets, shard_cache

    refuse_file(args.out)
    experiment = load(args.config, args.seed)
    recipe = experiment.sd_finetuned
    if recipe is None:
        raise SystemExit(f"{args.config}: has no section sd_finetuned; add it to fine-tune Stable Diffusion")
    sets = find_shard_sets(recipe.mixture or {"pairs": 1.0}, args.data)
    check_is_stable_diffusion(args.foundations / "sd")
    device, used = precision.default_device(), precision.resolve(experiment.precision)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=used == "bf16")
    pipeline = load_weights(StableDiffusionPipeline, args.foundations / "sd", dtype=torch.float32).to(device)
    unet, tokenizer, text_encoder = pipeline.unet.train(), pipeline.tokenizer, pipeline.text_encoder.eval()
    unet.set_attn_processor(AttnProcessor())
    precision.cast(pipeline.text_encoder.parameters(), precision.DTYPES[used])
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    side = unet.config.sample_size * pipeline.vae_scale_factor

    seed = seed_of(experiment.seed, "sd_finetuned") % 2**32
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    if recipe.mixture:
        mixture, drawn = Mixture(sets, recipe.mixture, seed, cache=shard_cache(experiment.machine)), Counter[str]()
    else:
        pairs = list(shards.read(sets["pairs"]))
        number_of_batches = recipe.steps * recipe.accumulation
        batches = [[rng.randrange(len(pairs)) for _ in range(recipe.batch_size)] for _ in range(number_of_batches)]
    encoded: dict[tuple[int, bool], torch.Tensor] = {}  # latents of the world's pairs, by their number and mirroring

    def next_pairs(batch: int) -> list[tuple[int, Document]]:
        if not recipe.mixture:
            return [(number, pairs[number]) for number in batches[batch]]
        found = []
        for number in range(recipe.batch_size):
            name = next_set(mixture.weights, drawn)
            found.append((number, shards.load(mixture.record(name, drawn[name])[0])))
            drawn[name] += 1
        return found

    @torch.no_grad()
    def encode(number: int, pair: Document, flip: bool) -> torch.Tensor:
        if (number, flip) in encoded:
            return encoded[number, flip]
        picture = pair.pictures[0]
        if recipe.mixture:
            picture = ImageOps.fit(picture, (side, side), Image.Resampling.BILINEAR)
        else:
            picture = picture.resize((side, side))
        picture = ImageOps.mirror(picture) if flip else picture
        mean = pipeline.vae.encode(to_tensor([picture]).to(device)).latent_dist.mean.float()  # (1, C, h, w)
        check_finite(mean, [pair.id], "latents of the VAE")
        latents = mean * pipeline.vae.config.scaling_factor
        if not recipe.mixture:
            encoded[number, flip] = latents
        return latents

    @autocast
    def loss_of_batch(batch: int) -> torch.Tensor:
        chosen = next_pairs(batch)
        captions = [next(part.text for part in pair.parts if isinstance(part, Text)) for _, pair in chosen]
        words = ["" if rng.random() < recipe.condition_dropout else caption for caption in captions]
        ids = tokenizer(words, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device)
        with torch.no_grad():
            condition = text_encoder(ids).last_hidden_state  # (B, L, D)
        check_finite(condition, [pair.id for _, pair in chosen], "hidden states of the text encoder")
        flips = [recipe.flip and rng.random() < 0.5 for _ in chosen]
        clean = torch.cat([encode(*pair, flip) for pair, flip in zip(chosen, flips, strict=True)])  # (B, C, h, w)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        times = torch.randint(scheduler.config.num_train_timesteps, (len(chosen),), generator=generator).to(device)
        predicted = unet(scheduler.add_noise(clean, noise, times), times, condition).sample
        check_finite(predicted, [pair.id for _, pair in chosen], "predictions of the UNet")
        velocity = scheduler.config.prediction_type == "v_prediction"
        return F.mse_loss(predicted, scheduler.get_velocity(clean, noise, times) if velocity else noise)

    parameters = list(unet.parameters())
    average = EMAModel(parameters, decay=recipe.ema) if recipe.ema else None
    losses = optimise(
        "sd_finetuned",
        parameters,
        loss_of_batch,
        recipe.steps,
        recipe.learning_rate,
        lambda step: average.step(parameters) if average else None,
        weight_decay=recipe.weight_decay,
        betas=recipe.betas,
        schedule=recipe.schedule,
        accumulation=recipe.accumulation,
    )
    if average:
        average.copy_to(parameters)
    rows = "".join(f"{step},{loss}\n" for step, loss in enumerate(losses, 1))
    with new_folder(args.out) as folder:
        unet.eval().save_pretrained(folder / "unet")
        (folder / "losses.csv").write_text("step,diffusion_loss\n" + rows)
        about = {
            "stage": "sd_finetuned",
            "seed": experiment.seed,
            "config": recipe.model_dump(mode="json"),
            "precision": used,
            "foundations": {"sd": digest(args.foundations / "sd")},
            "data": {name: {file.name: digest(file) for file in files} for name, files in sets.items()},
            "code": provenance.code_digest(__name__),
            "versions": provenance.versions(),
            **provenance.commit(),
            "machine": provenance.machine(),
            "tensors": digest(folder / "unet"),
        }
        text = json.dumps(about, indent=2, sort_keys=True) + "\n"
        (folder / "checkpoint.json").write_text(text, encoding="utf-8")
