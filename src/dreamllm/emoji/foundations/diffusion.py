"""Trains the mini Stable Diffusion: a UNet over the VAE's latents, conditioned by CLIP's frozen text tower."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import AutoTokenizer, CLIPTextModel, PreTrainedTokenizerBase

from dreamllm.config.foundations import FlowRecipe, SdRecipe
from dreamllm.config.world import AltText
from dreamllm.emoji.foundations.scene_batches import scene_batches
from dreamllm.emoji.registers import ALT_TEXT, describe
from dreamllm.emoji.scenes import NAMES, Names, Scene
from dreamllm.model.diffusion import shift_timesteps
from dreamllm.model.precision import default_device
from dreamllm.model.weights import load_weights
from dreamllm.train.optimise import half_precision, optimise


def build(recipe: SdRecipe, vae: Path, clip: Path, start: Path | None = None) -> StableDiffusionPipeline:
    """A pipeline of a trained VAE, the text tower of a trained CLIP, and a UNet to be trained.

    The UNet has two levels, with cross-attention at the coarse level.
    start: folder of a Stable Diffusion whose UNet is where training starts; an untrained one if None
    """
    autoencoder = load_weights(AutoencoderKL, vae).float()
    text_encoder, tokenizer = load_weights(CLIPTextModel, clip).float(), AutoTokenizer.from_pretrained(clip)
    if start:
        unet = load_weights(UNet2DConditionModel, start, subfolder="unet").float()
    else:
        unet = UNet2DConditionModel(
            sample_size=autoencoder.config.sample_size // 2 ** (len(autoencoder.config.block_out_channels) - 1),
            in_channels=autoencoder.config.latent_channels,
            out_channels=autoencoder.config.latent_channels,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=tuple(recipe.channels),
            layers_per_block=1,
            attention_head_dim=tuple(max(1, size // 64) for size in recipe.channels),  # the number of heads
            norm_num_groups=16,
            cross_attention_dim=text_encoder.config.hidden_size,
            use_linear_projection=True,
        )
    # A cosine schedule ends in pure noise, where sampling starts; v-prediction is stable there.
    scheduler = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False, steps_offset=1
    )
    return StableDiffusionPipeline(
        vae=autoencoder.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@torch.no_grad()
def encode_pictures(
    vae: AutoencoderKL, count: int, seed: int, names: Names = NAMES, workers: int = 0
) -> tuple[torch.Tensor, list[Scene]]:
    """Scaled latents (N, C, h, w) of `count` training pictures, and their scenes; the VAE encodes each picture once."""
    stream = scene_batches(seed, 64, vae.config.sample_size, names, workers)
    latents: list[torch.Tensor] = []
    encoded: list[Scene] = []
    device = default_device()
    while len(encoded) < count:
        scenes, pixels = next(stream)
        with half_precision():
            posterior = vae.encode(pixels.to(device)).latent_dist
        latents.append(posterior.sample().float() * vae.config.scaling_factor)
        encoded += scenes
    return torch.cat(latents)[:count], encoded[:count]


def examples(
    latents: torch.Tensor,
    scenes: Sequence[Scene],
    recipe: SdRecipe | FlowRecipe,
    tokenizer: PreTrainedTokenizerBase,
    rng: random.Random,
    forms: Mapping[AltText, float],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents (B, C, h, w) and token ids (B, L) of a batch drawn with replacement; some captions are empty."""
    chosen = torch.randint(len(scenes), (recipe.batch_size,))
    captions = [
        "" if rng.random() < recipe.condition_dropout else describe(scenes[i], "alt_text", rng, forms) for i in chosen
    ]
    ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return latents[chosen], ids.to(latents.device)


def optimise_average(
    title: str,
    trained: list[torch.nn.Parameter],
    loss_of_step: Callable[[int], torch.Tensor],
    recipe: SdRecipe | FlowRecipe,
) -> None:
    """Train parameters, which then become the exponential moving average of themselves (decay 0.999)."""
    weights = [parameter.detach() for parameter in trained]
    means = [weight.clone() for weight in weights]

    def average_weights(step: int) -> None:
        decay = min(0.999, (1 + step) / (10 + step))
        torch._foreach_lerp_(means, weights, 1 - decay)

    optimise(title, trained, loss_of_step, recipe.steps, recipe.learning_rate, average_weights)
    torch._foreach_copy_(weights, means)


def train(
    pipeline: StableDiffusionPipeline,
    recipe: SdRecipe,
    seed: int,
    names: Names = NAMES,
    workers: int = 0,
    forms: Mapping[AltText, float] = ALT_TEXT,
    text_encoder_too: bool = False,
) -> None:
    """Train the UNet of a pipeline with the diffusion loss on alt texts; VAE and text encoder stay as they are.

    What is trained becomes the exponential moving average of its weights (decay 0.999), as in the training of Stable
    Diffusion.
    forms: shares of the forms of alt texts, or of captions and human sentences alone.  text_encoder_too: train it as
    well
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    device = default_device()
    pipeline.to(device)
    unet, text_encoder, tokenizer = pipeline.unet.train(), pipeline.text_encoder, pipeline.tokenizer
    num_timesteps = pipeline.scheduler.config.num_train_timesteps
    unet.set_attn_processor(AttnProcessor())  # faster than SDPA at 36 positions on a CPU
    latents, scenes = encode_pictures(pipeline.vae, recipe.pictures, seed, names, workers)
    trained = [*unet.parameters(), *(text_encoder.parameters() if text_encoder_too else ())]

    def loss_of_step(step: int) -> torch.Tensor:
        clean, ids = examples(latents, scenes, recipe, tokenizer, rng, forms)  # (B, C, h, w), (B, L)
        noise = torch.randn_like(clean)
        times = torch.randint(num_timesteps, (recipe.batch_size,), device=device)
        times = shift_timesteps(times, num_timesteps, recipe.timestep_shift)
        noisy = pipeline.scheduler.add_noise(clean, noise, times)
        with half_precision():
            with torch.set_grad_enabled(text_encoder_too):
                condition = text_encoder(ids).last_hidden_state  # (B, L, D)
            predicted = unet(noisy, times, condition).sample
        return F.mse_loss(predicted.float(), pipeline.scheduler.get_velocity(clean, noise, times))

    optimise_average("sd", trained, loss_of_step, recipe)
    unet.eval()
