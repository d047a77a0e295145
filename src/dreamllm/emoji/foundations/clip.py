"""Trains the mini CLIP, transformers' `CLIPModel` with both towers, contrastively on alt texts.

As in the training of the real one there are no hard negatives: texts of a batch are about scenes sampled independently.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

from dreamllm.config.foundations import ClipRecipe
from dreamllm.config.world import AltText
from dreamllm.emoji.foundations.scene_batches import Batch, make_batch, prefetch
from dreamllm.emoji.foundations.text import caption_tokenizer
from dreamllm.emoji.registers import ALT_TEXT, describe
from dreamllm.emoji.scenes import NAMES, Names, sample_split
from dreamllm.model.precision import default_device
from dreamllm.model.weights import load_weights
from dreamllm.train.optimise import half_precision, optimise


@functools.lru_cache(maxsize=1)
def image_processor(side: int) -> CLIPImageProcessorPil:
    """CLIP's image processor for square pictures of `side` pixels."""
    return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def prepare(batch_and_captions: tuple[Batch, list[str]]) -> tuple[np.ndarray, list[str]]:
    """The pictures of a batch after CLIP's image processor, (N, 3, H, W), and their captions."""
    batch, captions = batch_and_captions
    return image_processor(batch.side)(batch.pictures(), return_tensors="np").pixel_values, captions


def train(
    recipe: ClipRecipe,
    side: int,
    seed: int,
    names: Names = NAMES,
    workers: int = 0,
    forms: Mapping[AltText, float] = ALT_TEXT,
    start: Path | None = None,
) -> tuple[CLIPModel, PreTrainedTokenizerFast]:
    """Symmetric contrastive loss over batches of training scenes and their alt texts.

    forms: shares of the forms of alt texts.  start: folder of a CLIP whose image tower is where training starts
    """
    torch.manual_seed(seed)
    tokenizer = caption_tokenizer(recipe.text_length, seed, names, forms)
    tower = {
        "hidden_size": recipe.hidden,
        "intermediate_size": 4 * recipe.hidden,
        "num_attention_heads": recipe.heads,
        "projection_dim": 128,  # here too, as in the released CLIP, for its single towers
    }
    config = CLIPConfig(
        vision_config={**tower, "num_hidden_layers": recipe.layers, "image_size": side, "patch_size": recipe.patch},
        text_config={
            **tower,
            "num_hidden_layers": recipe.text_layers,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": tokenizer.model_max_length,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        projection_dim=128,
        attn_implementation="eager",
    )
    device = default_device()
    model = CLIPModel(config)
    if start:
        trained = load_weights(CLIPModel, start).float()
        model.vision_model.load_state_dict(trained.vision_model.state_dict())
        model.visual_projection.load_state_dict(trained.visual_projection.state_dict())
    model = model.to(device).train()
    rng = random.Random(seed)

    def batches() -> Iterator[tuple[Batch, list[str]]]:
        while True:
            scenes = [sample_split(rng, "train", names=names) for _ in range(recipe.batch_size)]
            yield make_batch(scenes, side, rng), [describe(scene, "alt_text", rng, forms) for scene in scenes]

    prepared = prefetch(batches(), prepare, workers)

    def loss_of_step(_: int) -> torch.Tensor:
        pixels, captions = next(prepared)
        ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with half_precision():
            logits = model(
                input_ids=ids.to(device), pixel_values=torch.from_numpy(pixels).to(device)
            ).logits_per_text.float()
        own = torch.arange(len(captions), device=device)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2

    optimise("clip", list(model.parameters()), loss_of_step, recipe.steps, recipe.learning_rate)
    return model.eval(), tokenizer
