"""The baseline of the paper's Table 2: Stable Diffusion's UNet fine-tuned on the same pairs, with its own text encoder.

    python -m dreamllm finetune-sd --config FILE --foundations data/foundations --data data/emoji/train --out DIR

It trains on the same pairs as stage I. VAE and text encoder are frozen, so each picture is encoded once. The output
folder has unet/, losses.csv and, like a stage's checkpoint, a checkpoint.json that records what it was made from.
"""

from __future__ import annotations

import argparse
import json
import random
from itertools import chain
from pathlib import Path

from dreamllm.atomic import new_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm finetune-sd`."""
    parser.add_argument("--config", type=Path, required=True, help="experiment; its section sd_finetuned is the recipe")
    parser.add_argument("--seed", type=int, help="that of the run, where the experiment has several (its `seeds`)")
    parser.add_argument("--foundations", type=Path, required=True, help="folder that holds sd/")
    parser.add_argument("--data", type=Path, required=True, help="folder with the shards pairs-*.tar")
    parser.add_argument("--out", type=Path, required=True, help="folder for unet/, replaced when it exists")


def main(args: argparse.Namespace) -> None:
    """Fine-tune the UNet and write the folder `out` atomically."""
    import torch
    import torch.nn.functional as F
    from diffusers import DDPMScheduler, StableDiffusionPipeline
    from diffusers.models.attention_processor import AttnProcessor

    from dreamllm import provenance
    from dreamllm.config.reading import load
    from dreamllm.data import shards
    from dreamllm.data.document import Text
    from dreamllm.digests import digest
    from dreamllm.model.finite import check_finite
    from dreamllm.model.precision import default_device
    from dreamllm.model.weights import load_weights
    from dreamllm.seeds import seed_of
    from dreamllm.train.optimise import optimise, to_tensor

    experiment = load(args.config, args.seed)
    recipe = experiment.sd_finetuned
    if recipe is None:
        raise SystemExit(f"{args.config}: has no section sd_finetuned; add it to fine-tune Stable Diffusion")
    if not (files := shards.find(args.data / "pairs")):
        raise SystemExit(f"{args.data}: no shards pairs-*.tar; make them with `dreamllm make-world`")
    device = default_device()
    pipeline = load_weights(StableDiffusionPipeline, args.foundations / "sd", dtype=torch.float32).to(device)
    unet, tokenizer, text_encoder = pipeline.unet.train(), pipeline.tokenizer, pipeline.text_encoder.eval()
    unet.set_attn_processor(AttnProcessor())
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    side = unet.config.sample_size * pipeline.vae_scale_factor

    pairs = list(shards.read(files))
    seed = seed_of(experiment.seed, "sd_finetuned") % 2**32
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    batches = [[rng.randrange(len(pairs)) for _ in range(recipe.batch_size)] for _ in range(recipe.steps)]
    captions = [next(part.text for part in pair.parts if isinstance(part, Text)) for pair in pairs]
    latents: dict[int, torch.Tensor] = {}
    with torch.no_grad():
        for number in sorted(set(chain.from_iterable(batches))):
            picture = pairs[number].pictures[0].resize((side, side))
            mean = pipeline.vae.encode(to_tensor([picture]).to(device)).latent_dist.mean  # (1, C, h, w)
            check_finite(mean, [pairs[number].id], "latents of the VAE")
            latents[number] = mean * pipeline.vae.config.scaling_factor

    def loss_of_step(step: int) -> torch.Tensor:
        chosen = batches[step]
        words = ["" if rng.random() < recipe.condition_dropout else captions[i] for i in chosen]
        ids = tokenizer(words, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device)
        with torch.no_grad():
            condition = text_encoder(ids).last_hidden_state  # (B, L, D)
        clean = torch.cat([latents[number] for number in chosen])  # (B, C, h, w)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        times = torch.randint(scheduler.config.num_train_timesteps, (len(chosen),), generator=generator).to(device)
        predicted = unet(scheduler.add_noise(clean, noise, times), times, condition).sample
        velocity = scheduler.config.prediction_type == "v_prediction"
        return F.mse_loss(predicted, scheduler.get_velocity(clean, noise, times) if velocity else noise)

    losses = optimise("sd_finetuned", list(unet.parameters()), loss_of_step, recipe.steps, recipe.learning_rate)
    rows = "".join(f"{step},{loss}\n" for step, loss in enumerate(losses, 1))
    with new_folder(args.out) as folder:
        unet.eval().save_pretrained(folder / "unet")
        (folder / "losses.csv").write_text("step,diffusion_loss\n" + rows)
        about = {
            "stage": "sd_finetuned",
            "seed": experiment.seed,
            "config": recipe.model_dump(mode="json"),
            "foundations": {"sd": digest(args.foundations / "sd")},
            "data": {"pairs": {file.name: digest(file) for file in files}},
            "code": provenance.code_digest(__name__),
            "versions": provenance.versions(),
            "commit": provenance.commit(),
            "machine": provenance.machine(),
            "tensors": digest(folder / "unet"),
        }
        text = json.dumps(about, indent=2, sort_keys=True) + "\n"
        (folder / "checkpoint.json").write_text(text, encoding="utf-8")
