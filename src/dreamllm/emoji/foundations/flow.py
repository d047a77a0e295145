"""Trains the mini Stable Diffusion 3: a transformer over the VAE's latents, by rectified flow (arXiv 2403.03206).

Its conditions are the hidden states of CLIP's frozen text tower; the pooled condition is the tower's pooled output.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from PIL import Image
from transformers import AutoTokenizer, CLIPTextModel, PreTrainedTokenizerBase

from dreamllm.config.evaluation import Drawing
from dreamllm.config.foundations import FlowRecipe
from dreamllm.config.world import AltText
from dreamllm.emoji.foundations.diffusion import encode_pictures, examples, optimise_average
from dreamllm.emoji.registers import ALT_TEXT
from dreamllm.emoji.scenes import NAMES, Names
from dreamllm.model.decoders.flow import make_scheduler, shift_sigmas
from dreamllm.model.precision import default_device
from dreamllm.model.sampling import initial_noise, to_pictures
from dreamllm.model.weights import load_weights
from dreamllm.train.optimise import half_precision


@dataclass(frozen=True)
class Flow:
    """The parts of a mini Stable Diffusion 3, in the folders of its diffusers pipeline."""

    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: PreTrainedTokenizerBase
    transformer: SD3Transformer2DModel
    scheduler: FlowMatchEulerDiscreteScheduler

    def save(self, folder: Path) -> None:
        """Save all parts in half precision."""
        for name, part in vars(self).items():
            (part.half() if isinstance(part, torch.nn.Module) else part).save_pretrained(folder / name)  # type: ignore[operator]


def build(recipe: FlowRecipe, vae: Path, clip: Path, start: Path | None = None) -> Flow:
    """A trained VAE, the text tower of a trained CLIP, and a transformer to be trained.

    start: folder of a mini Stable Diffusion 3 whose transformer is where training starts; an untrained one if None
    """
    autoencoder = load_weights(AutoencoderKL, vae).float().eval()
    text_encoder, tokenizer = load_weights(CLIPTextModel, clip).float().eval(), AutoTokenizer.from_pretrained(clip)
    side = autoencoder.config.sample_size // 2 ** (len(autoencoder.config.block_out_channels) - 1)
    if start:
        transformer = load_weights(SD3Transformer2DModel, start, subfolder="transformer").float()
    else:
        transformer = SD3Transformer2DModel(
            sample_size=side,
            patch_size=recipe.patch,
            in_channels=autoencoder.config.latent_channels,
            out_channels=autoencoder.config.latent_channels,
            num_layers=recipe.layers,
            attention_head_dim=recipe.hidden // recipe.heads,
            num_attention_heads=recipe.heads,
            joint_attention_dim=text_encoder.config.hidden_size,
            caption_projection_dim=recipe.hidden,
            pooled_projection_dim=text_encoder.config.hidden_size,
            pos_embed_max_size=side // recipe.patch,
            qk_norm="rms_norm",  # as in Stable Diffusion 3.5
        )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=recipe.timestep_shift)
    return Flow(autoencoder, text_encoder, tokenizer, transformer, scheduler)


def train(
    flow: Flow,
    recipe: FlowRecipe,
    seed: int,
    names: Names = NAMES,
    workers: int = 0,
    forms: Mapping[AltText, float] = ALT_TEXT,
    text_encoder_too: bool = False,
) -> None:
    """Train the transformer with the flow-matching loss on alt texts; VAE and text encoder stay as they are.

    What is trained becomes the exponential moving average of its weights (decay 0.999).
    forms: shares of the forms of alt texts, or of captions and human sentences alone.  text_encoder_too: train it as
    well
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    device = default_device()
    for part in (flow.vae, flow.text_encoder, flow.transformer):
        part.to(device)
    transformer = flow.transformer.train()
    latents, scenes = encode_pictures(flow.vae, recipe.pictures, seed, names, workers)
    trained = [*transformer.parameters(), *(flow.text_encoder.parameters() if text_encoder_too else ())]

    def loss_of_step(step: int) -> torch.Tensor:
        clean, ids = examples(latents, scenes, recipe, flow.tokenizer, rng, forms)  # (B, C, h, w), (B, L)
        noise = torch.randn_like(clean)
        sigmas = shift_sigmas(torch.randn(recipe.batch_size, device=device).sigmoid(), recipe.timestep_shift)  # (B,)
        noisy = torch.lerp(clean, noise, sigmas[:, None, None, None])
        with half_precision():
            with torch.set_grad_enabled(text_encoder_too):
                text = flow.text_encoder(ids)
            predicted = transformer(
                hidden_states=noisy,
                timestep=sigmas * flow.scheduler.config.num_train_timesteps,
                encoder_hidden_states=text.last_hidden_state,  # (B, L, D)
                pooled_projections=text.pooler_output,  # (B, D)
            ).sample
        return F.mse_loss(predicted.float(), noise - clean)

    optimise_average("flow", trained, loss_of_step, recipe)
    transformer.eval()


@torch.no_grad()
def draw(flow: Flow, texts: Sequence[str], settings: Drawing, batch_size: int = 40) -> list[Image.Image]:
    """Generate an image of each text, with noise by its number. settings: scheduler, steps and guidance"""
    device = default_device()
    for part in (flow.vae, flow.text_encoder, flow.transformer):
        part.to(device)
    config, scale, images = flow.transformer.config, flow.vae.config.scaling_factor, []
    for start in range(0, len(texts), batch_size):
        batch = [*texts[start : start + batch_size]]
        ids = flow.tokenizer(batch + [""] * len(batch), padding="max_length", truncation=True, return_tensors="pt")
        text = flow.text_encoder(ids.input_ids.to(device))
        seeds = range(start, start + len(batch))
        noise, _ = initial_noise(seeds, config.in_channels, config.sample_size, config.sample_size)
        latents = noise.to(device)  # (B, C, h, w)
        scheduler = make_scheduler(settings.scheduler, flow.scheduler.config)
        scheduler.set_timesteps(settings.steps)
        for time in scheduler.timesteps:
            both = flow.transformer(
                hidden_states=torch.cat([latents, latents]),
                timestep=time.expand(2 * len(batch)).to(device),
                encoder_hidden_states=text.last_hidden_state,
                pooled_projections=text.pooler_output,
            ).sample
            with_text, without = both.float().chunk(2)
            latents = scheduler.step(without + settings.guidance * (with_text - without), time, latents).prev_sample
        images += to_pictures(flow.vae.decode(latents / scale).sample.float())  # of (B, 3, H, W)
    return images
