"""Trains the mini CLIP, transformers' `CLIPModel` with both towers, contrastively with hard negatives."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

from dreamllm.config.foundations import ClipRecipe
from dreamllm.emoji.foundations.scene_batches import Batch, make_batch, prefetch
from dreamllm.emoji.foundations.text import caption_tokenizer
from dreamllm.emoji.grammar import sample_caption, step
from dreamllm.emoji.scenes import NAMES, Names, Scene, sample_split, split_of
from dreamllm.model.precision import default_device
from dreamllm.train.optimise import half_precision, optimise


def hard_negative(scene: Scene, rng: random.Random, names: Names = NAMES) -> Scene:
    """A training scene that differs in one respect: places or colours are swapped, or one step of a story was made.

    Such negatives teach which colour and place belong to which object; random batches can be told apart without that.
    """
    while True:
        other = step(scene, rng, names)[1]
        if scene.kind == "pair" and rng.random() < 0.6:
            (name_1, colour_1), (name_2, colour_2) = scene.objects
            swapped = ((name_2, colour_2), (name_1, colour_1)), ((name_1, colour_2), (name_2, colour_1))
            other = replace(scene, objects=rng.choice(swapped))
        if other != scene and not other.held_out and split_of(other) == "train":
            return other


@functools.lru_cache(maxsize=1)
def image_processor(side: int) -> CLIPImageProcessorPil:
    """CLIP's image processor for square pictures of `side` pixels."""
    return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def prepare(batch_and_captions: tuple[Batch, list[str]]) -> tuple[np.ndarray, list[str]]:
    """The pictures of a batch after CLIP's image processor, (N, 3, H, W), and their captions."""
    batch, captions = batch_and_captions
    return image_processor(batch.side)(batch.pictures(), return_tensors="np").pixel_values, captions


def train(
    recipe: ClipRecipe, side: int, seed: int, names: Names = NAMES, workers: int = 0
) -> tuple[CLIPModel, PreTrainedTokenizerFast]:
    """Symmetric contrastive loss over batches of scenes, half of them hard negatives of the other half."""
    torch.manual_seed(seed)
    tokenizer = caption_tokenizer(recipe.text_length, seed, names)
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
    model = CLIPModel(config).to(device).train()
    rng = random.Random(seed)

    def batches() -> Iterator[tuple[Batch, list[str]]]:
        while True:
            scenes = [sample_split(rng, "train", names=names) for _ in range(recipe.batch_size // 2)]
            scenes += [hard_negative(scene, rng, names) for scene in scenes]
            yield make_batch(scenes, side, rng), [sample_caption(scene, rng) for scene in scenes]

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
