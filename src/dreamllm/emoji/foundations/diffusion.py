"""Trains the mini Stable Diffusion: a UNet over the VAE's latents and the text encoder that conditions it."""

from __future__ import annotations

import copy
import random

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from dreamllm.config.foundations import SdRecipe
from dreamllm.emoji.foundations.scene_batches import scene_batches
from dreamllm.emoji.foundations.text import caption_tokenizer
from dreamllm.emoji.grammar import sample_caption
from dreamllm.emoji.scenes import NAMES, Names, Scene
from dreamllm.model.precision import default_device
from dreamllm.train.optimise import half_precision, optimise


def build(recipe: SdRecipe, vae: AutoencoderKL, tokenizer: PreTrainedTokenizerFast) -> StableDiffusionPipeline:
    """An untrained pipeline: a two-level UNet with cross-attention at the coarse level, and a text encoder."""
    unet = UNet2DConditionModel(
        sample_size=vae.config.sample_size // 2 ** (len(vae.config.block_out_channels) - 1),
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=tuple(recipe.channels),
        layers_per_block=1,
        attention_head_dim=tuple(
            max(1, size // 64) for size in recipe.channels
        ),  # diffusers' name for the number of heads
        norm_num_groups=16,
        cross_attention_dim=recipe.text_hidden,
        use_linear_projection=True,
    )
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.text_hidden,
        intermediate_size=4 * recipe.text_hidden,
        num_hidden_layers=recipe.text_layers,
        num_attention_heads=recipe.text_heads,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    # A cosine schedule ends in pure noise, where sampling starts; v-prediction is stable there.
    scheduler = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False, steps_offset=1
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
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


def train(
    recipe: SdRecipe, vae: AutoencoderKL, seed: int, names: Names = NAMES, workers: int = 0
) -> StableDiffusionPipeline:
    """Train UNet and text encoder with the diffusion loss, on latents of a trained VAE.

    Returns the exponential moving average of the weights (decay 0.999), as in the training of Stable Diffusion.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    device = default_device()
    pipeline = build(recipe, vae, caption_tokenizer(recipe.text_length, seed, names)).to(device)
    unet, text_encoder, tokenizer = pipeline.unet, pipeline.text_encoder, pipeline.tokenizer
    unet.set_attn_processor(AttnProcessor())  # faster than SDPA at 36 positions on a CPU
    latents, scenes = encode_pictures(vae.eval(), recipe.pictures, seed, names, workers)
    model = torch.nn.ModuleList([unet.train(), text_encoder.train()])
    average = copy.deepcopy(model).eval().requires_grad_(False)
    means: list[torch.Tensor] = list(average.parameters())
    weights = [parameter.detach() for parameter in model.parameters()]

    def loss_of_step(step: int) -> torch.Tensor:
        chosen = torch.randint(len(scenes), (recipe.batch_size,))
        captions = ["" if rng.random() < recipe.condition_dropout else sample_caption(scenes[i], rng) for i in chosen]
        ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device)
        clean = latents[chosen]  # (B, C, h, w)
        noise = torch.randn_like(clean)
        times = torch.randint(pipeline.scheduler.config.num_train_timesteps, (recipe.batch_size,), device=device)
        noisy = pipeline.scheduler.add_noise(clean, noise, times)
        with half_precision():
            predicted = unet(noisy, times, text_encoder(ids).last_hidden_state).sample
        return F.mse_loss(predicted.float(), pipeline.scheduler.get_velocity(clean, noise, times))

    def average_weights(step: int) -> None:
        decay = min(0.999, (1 + step) / (10 + step))
        torch._foreach_lerp_(means, weights, 1 - decay)

    optimise("sd", list(model.parameters()), loss_of_step, recipe.steps, recipe.learning_rate, average_weights)
    pipeline.unet.load_state_dict(average[0].state_dict())
    pipeline.text_encoder.load_state_dict(average[1].state_dict())
    pipeline.unet.eval(), pipeline.text_encoder.eval()
    return pipeline
