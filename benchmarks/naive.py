"""A naive implementation of DreamLLM's losses and decoding: the baseline of speed.py.

It is written from a description of the authors' released code, not copied from it, and has the same costs: one document
per row, padded on the right; eager attention; all layers of CLIP, on a blank picture where a batch has none, and again
for every decoded token; logits at all positions in fp32; a copy of the embeddings for each picture; AdamW without fused
or foreach kernels. `tests/test_speed.py` compares its losses with the model's and with the authors' recorded ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F

from dreamllm.data.layout import IGNORE
from dreamllm.data.packing import Batch
from dreamllm.model import diffusion
from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration


def image_embeddings(model: DreamLLMForConditionalGeneration, pixels: torch.Tensor | None) -> torch.Tensor:
    """Embeddings (N, P, D) of pictures (N, 3, H, W), or of one blank picture."""
    side = model.config.vision_config.image_size
    blank = torch.zeros(1, 3, side, side)
    outputs = model.vision_model(blank if pixels is None else pixels, output_hidden_states=True)
    return model.visual_projector(outputs.hidden_states[model.config.vision_feature_layer][:, 1:])


def fill_slots(embeds: torch.Tensor, slots: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Embeddings (B, T, D) with values (N, L, D) in the slots (N, 2), written one picture after the other."""
    rows = list(embeds)
    for (row, start), value in zip(slots.tolist(), values, strict=True):
        rows[row] = torch.cat([rows[row][:start], value, rows[row][start + len(value) :]])
    return torch.stack(rows)


def loss(
    model: DreamLLMForConditionalGeneration, batch: Batch, noise: diffusion.DiffusionNoise | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Total, language and diffusion loss of a batch with one document per row. The model's attention must be eager."""
    config = model.config
    embeds = model.get_input_embeddings()(batch.input_ids)
    if len(batch.draw_slots):
        embeds = fill_slots(embeds, batch.draw_slots, model.dream_queries.expand(len(batch.draw_slots), -1, -1))
    patches = image_embeddings(model, batch.read_pixels)
    # a blank picture contributes nothing to the loss, but its gradient is computed
    embeds = fill_slots(embeds, batch.read_slots, patches) if len(batch.read_slots) else embeds + 0 * patches.sum()
    mask = (batch.input_ids != config.pad_token_id).long()
    hidden = model.language_model.base_model(
        inputs_embeds=embeds, attention_mask=mask, use_cache=False
    ).last_hidden_state
    logits = model.get_output_embeddings()(hidden).float()  # (B, T, V)
    targets = batch.labels[:, 1:].flatten()
    language = F.cross_entropy(logits[:, :-1].contiguous().flatten(0, 1), targets, ignore_index=IGNORE)
    if not config.language_loss_weight or not (targets != IGNORE).any():
        language = 0 * logits.sum()  # computed all the same, as in the authors' code
    drawn = torch.zeros(())
    if batch.draw_pixels is not None:
        queries = config.num_dream_queries
        states = torch.stack([hidden[row, start : start + queries] for row, start in batch.draw_slots.tolist()])
        posterior = model.vae.encode(batch.draw_pixels).latent_dist
        latents = (posterior.mean + posterior.std * noise.posterior) * model.vae.config.scaling_factor
        noisy, _ = model.decoder.noisy_and_target(model.config, latents, noise)
        conditions = model.condition_projector(states)
        predicted = model.unet(noisy, noise.timesteps, encoder_hidden_states=conditions).sample
        drawn = F.mse_loss(predicted.float(), noise.noise)
    return config.language_loss_weight * language + config.diffusion_loss_weight * drawn, language, drawn


@contextmanager
def clip_at_every_token(model: DreamLLMForConditionalGeneration) -> Iterator[None]:
    """Context in which CLIP encodes a blank picture before every forward pass of the language model."""

    def blank(*_: object) -> None:
        image_embeddings(model, None)

    hook = model.language_model.base_model.register_forward_pre_hook(blank)
    try:
        yield
    finally:
        hook.remove()


def adamw(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW without fused or foreach kernels: one parameter after the other."""
    return torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.0, foreach=False, fused=False)
