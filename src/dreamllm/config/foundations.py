"""The section `foundations` of an experiment file (`experiment.py`): where the models come from that DreamLLM joins."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dreamllm.config.base import Count, Positive, Section, Share


class Recipe(Section):
    """How a foundation model is trained."""

    steps: Count
    """Optimiser steps."""
    batch_size: Count
    """Examples per step."""
    learning_rate: Positive
    """Peak learning rate of AdamW; linear warm-up, cosine to zero."""


class LanguageModelRecipe(Recipe):
    """Mini LLaMA (`LlamaForCausalLM` with its own tokenizer)."""

    vocabulary: Count = 600
    """Pieces of the tokenizer at most, its byte pieces not counted."""
    hidden: Count = 256
    layers: Count = 4
    heads: Count = 8
    context: Count = 512
    """Longest sequence in tokens."""


class ClipRecipe(Recipe):
    """Mini CLIP, both towers."""

    hidden: Count = 192
    layers: Count = 4
    text_layers: Count = 3
    heads: Count = 4
    patch: Count = 12
    """Side of a patch in pixels; (picture_side / patch)^2 patches are read by the language model."""
    text_length: Count = 24
    """Longest caption in tokens."""


class VaeRecipe(Recipe):
    """Mini `AutoencoderKL` of Stable Diffusion."""

    channels: list[Count] = [32, 64, 96]
    """Width of each level; each level but the last halves the picture's side."""
    latent_channels: Count = 8


class SdRecipe(Recipe):
    """Mini text-conditioned `UNet2DConditionModel` of Stable Diffusion, with a text encoder that is trained with it."""

    channels: Annotated[list[Count], Field(min_length=2, max_length=2)] = [64, 192]
    """Width of the fine level and of the coarse level, which attends to the text."""
    text_hidden: Count = 192
    """Width of the text encoder, the UNet's cross_attention_dim."""
    text_layers: Count = 3
    text_heads: Count = 4
    text_length: Count = 24
    """Longest caption in tokens; shorter ones are padded, as in Stable Diffusion."""
    pictures: Count = 60000
    """Pictures that are put through the VAE once and then drawn from."""
    condition_dropout: Share = 0.1
    """Share of training captions replaced by the empty caption, for classifier-free guidance."""


class SceneClassifierRecipe(Recipe):
    """The classifier that reads a scene off a picture, trained apart from all other models."""

    width: Count = 24
    """Channels of its first layer."""


class FetchedFoundations(Section):
    """Foundations that were made once and are fetched by digest, as the paper fetches its own."""

    source: Literal["fetch"]
    folder: str = "data/foundations"
    """Where they are put: llm/, clip/, sd/ and judge/ in the Hugging Face and diffusers layouts."""
    store: str = "data/store"
    """A DVC remote that is a folder."""
    md5: Annotated[str, Field(pattern=r"^[0-9a-f]{32}\.dir$")]
    """DVC's name of the folder's content, as in dvc.lock: what is looked up in the store."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Digest of all files and their names: what is checked after fetching (`dreamllm fetch-foundations --describe`)."""


class TrainedFoundations(Section):
    """Foundations trained from nothing on the world of this experiment."""

    source: Literal["train"]
    folder: str = "data/foundations"
    """Where they are put."""
    llm: LanguageModelRecipe
    clip: ClipRecipe
    vae: VaeRecipe
    sd: SdRecipe
    judge: SceneClassifierRecipe


class HubFoundations(Section):
    """Public models, fetched at a pinned revision; names are those of paper/released.yaml."""

    source: Literal["hub"]
    folder: str
    """Where llm/, clip/ and sd/ are put. Experiments with the same models may share it."""
    llm: str
    """Language model, with its tokenizer (paper: vicuna-7b-v1.1)."""
    clip: str
    """CLIP (paper: clip-vit-large-patch14)."""
    sd: str
    """Stable Diffusion, with the weights of VAE and UNet (paper: stable-diffusion-2-1-base-weights)."""
    instruments: FetchedFoundations
    """Foundations of the emoji world that measure: the judge of drawn pictures, and CLIP for FID's features."""


class ImportedFoundations(Section):
    """A released checkpoint of the authors: foundations, and a checkpoint `released` on them."""

    source: Literal["import"]
    folder: str = "data/foundations_released"
    """Where llm/, clip/ and sd/ are put."""
    checkpoint: str = "dreamllm-7b-chat-v1.0"
    """The released checkpoint: a name in paper/released.yaml, downloaded to data/released unless it is there."""
    clip: str = "clip-vit-large-patch14"
    """CLIP that it was built on."""
    sd: str = "stable-diffusion-2-1-base"
    """Stable Diffusion that it was built on."""
    instruments: FetchedFoundations
    """Foundations of the emoji world that measure: the judge of drawn pictures, and CLIP for FID's features."""
