"""Trains the mini VAE: 48 px pictures to 12 x 12 x 8 latents, diffusers' `AutoencoderKL`."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL

from dreamllm.config.foundations import VaeRecipe
from dreamllm.emoji.foundations.scene_batches import scene_batches
from dreamllm.emoji.scenes import NAMES, Names
from dreamllm.model.precision import default_device
from dreamllm.train.optimise import half_precision, optimise


def build(recipe: VaeRecipe, side: int) -> AutoencoderKL:
    """An untrained VAE, which halves the side once for each entry of `recipe.channels` except the first."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(recipe.channels),
        up_block_types=("UpDecoderBlock2D",) * len(recipe.channels),
        block_out_channels=tuple(recipe.channels),
        layers_per_block=1,
        latent_channels=recipe.latent_channels,
        norm_num_groups=8,
        sample_size=side,
        mid_block_add_attention=False,  # attention costs time and does not help at this size
        scaling_factor=1.0,
    )


def train(recipe: VaeRecipe, side: int, seed: int, names: Names = NAMES, workers: int = 0) -> AutoencoderKL:
    """Train on reconstruction (L1 + L2) with a small KL term to N(0, 1), then set the scaling factor.

    The scaling factor makes the latents' standard deviation 1, as in latent diffusion (Rombach et al., 2022).
    """
    torch.manual_seed(seed)
    device = default_device()
    vae = build(recipe, side).to(device)
    stream = scene_batches(seed, recipe.batch_size, side, names, workers)

    def loss_of_step(step: int) -> torch.Tensor:
        pixels = next(stream)[1].to(device)  # (B, 3, H, W)
        with half_precision():
            posterior = vae.encode(pixels).latent_dist
            decoded = vae.decode(posterior.sample()).sample
        error = decoded.float() - pixels
        return error.abs().mean() + 2.0 * error.square().mean() + 1e-6 * posterior.kl().mean()

    optimise("vae", list(vae.parameters()), loss_of_step, recipe.steps, recipe.learning_rate, weight_decay=0.0)
    vae.eval()
    with torch.no_grad():
        pixels = torch.cat([next(stream)[1] for _ in range(8)]).to(device)
        vae.register_to_config(scaling_factor=1.0 / vae.encode(pixels).latent_dist.sample().std().item())
    return vae
