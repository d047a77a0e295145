"""The section `foundations` of an experiment file (`experiment.py`): the pretrained models that DreamLLM joins."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dreamllm.config.base import Count, Folder, Name, Number, OwnFolder, Positive, Release, Section, Share


class Recipe(Section):
    """How a foundation model is trained."""

    steps: Count
    """Optimiser steps."""
    batch_size: Count
    """Examples per step."""
    learning_rate: Positive
    """Peak learning rate of AdamW; linear warm-up, then cosine decay to zero."""


class LanguageModelRecipe(Recipe):
    """Mini LLaMA or Qwen2 with its own tokenizer. Its matrices are trained with Muon at the same rate."""

    architecture: Literal["llama", "qwen2"] = "llama"
    """`LlamaForCausalLM`; or `Qwen2ForCausalLM`, as the small models of Qwen2.5: half as many heads of keys and values,
    and embeddings that are tied to the head."""
    first_steps: Number = 0
    """The first so many steps read short lists with questions about colours alone, from which a model learns soonest
    which colour belongs to which object."""
    vocabulary: Count = 600
    """Maximum size of the tokenizer's vocabulary, without byte pieces."""
    hidden: Count = 256
    layers: Count = 4
    heads: Count = 4
    context: Count = 512
    """Maximum sequence length in tokens."""


class ClipRecipe(Recipe):
    """Mini CLIP, with image and text encoder."""

    hidden: Count = 192
    layers: Count = 4
    text_layers: Count = 3
    heads: Count = 4
    patch: Count = 12
    """Side of a patch in pixels; the language model receives (picture_side / patch)^2 patches of each picture."""
    text_length: Count = 24
    """Maximum length of a caption in tokens."""


class VaeRecipe(Recipe):
    """Mini `AutoencoderKL` of Stable Diffusion."""

    channels: list[Count] = [32, 64, 96]
    """Channels of each level; each level except the last halves the side of the picture."""
    latent_channels: Count = 8


class SdRecipe(Recipe):
    """Mini `UNet2DConditionModel` of Stable Diffusion; its text encoder is CLIP's text tower, frozen."""

    channels: Annotated[list[Count], Field(min_length=2, max_length=2)] = [64, 192]
    """Channels of the fine level, and of the coarse level, which has cross-attention to the text."""
    pictures: Count = 60000
    """Number of training pictures; the VAE encodes each of them once."""
    condition_dropout: Share = 0.1
    """Fraction of captions replaced by the empty caption, for classifier-free guidance."""
    timestep_shift: Positive = 1.0
    """As in a stage: above 1, more of the timesteps are noisy."""


class FlowRecipe(Recipe):
    """Mini Stable Diffusion 3, with VAE and text encoder of the mini Stable Diffusion."""

    hidden: Count = 128
    layers: Count = 6
    heads: Count = 4
    patch: Count = 2
    """Side of a patch in latents."""
    pictures: Count = 60000
    """Number of training pictures; the VAE encodes each of them once."""
    condition_dropout: Share = 0.1
    """Fraction of captions replaced by the empty caption, for classifier-free guidance."""
    timestep_shift: Positive = 3.0
    """Shift of the schedule, in training and in sampling: above 1, more of the timesteps are noisy."""


class SceneClassifierRecipe(Recipe):
    """The scene classifier, which scores generated pictures; trained independently of all other models."""

    architecture: Literal["plain", "residual"] = "plain"
    """Convolutions one after the other, or transformers' `ResNetModel`."""
    width: Count = 24
    """Channels of the first layer."""


class FetchedFoundations(Section):
    """Foundations that were trained earlier and are fetched from a store by digest."""

    source: Literal["fetch"]
    folder: OwnFolder = "data/foundations"
    """Folder below data/ to fetch to: llm/, clip/, sd/, judge/ and judge2/ (scene classifiers) in the Hugging Face and
    diffusers layouts, and their card.json."""
    store: Folder = "data/store"
    """Folder below data/ that is a DVC remote."""
    md5: Annotated[str, Field(pattern=r"^[0-9a-f]{32}\.dir$")]
    """DVC's digest of the content, as in dvc.lock; names it in the store."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Digest of all files and their names, checked after fetching (`dreamllm fetch-foundations --describe` prints
    both)."""
    others: list[Name] = []
    """More folders in the store, for stages with a `language_model` or a `decoder` of their own."""


class TrainedFoundations(Section):
    """Foundations trained from scratch on the world of this experiment."""

    source: Literal["train"]
    folder: OwnFolder = "data/foundations"
    """Folder below data/ to write to."""
    llm: LanguageModelRecipe
    clip: ClipRecipe
    vae: VaeRecipe
    sd: SdRecipe
    judge: SceneClassifierRecipe
    judge2: SceneClassifierRecipe
    """A second scene classifier, of another architecture and with another seed, so that no model is chosen by the
    judge that scores it."""
    qwen: LanguageModelRecipe | None = None
    """A second language model, for stages with `language_model: qwen`."""
    flow: FlowRecipe | None = None
    """A second decoder, for stages with `decoder: flow`."""

    @property
    def others(self) -> list[str]:
        """Folders of the foundations that not every experiment has."""
        return [name for name in ("qwen", "flow") if getattr(self, name)]


class HubFoundations(Section):
    """Public models, downloaded at pinned revisions; the names are those of paper/released.yaml."""

    source: Literal["hub"]
    folder: OwnFolder
    """Folder below data/ for llm/, clip/ and sd/. Experiments with the same models may share it."""
    llm: Release
    """Causal language model, with its tokenizer (paper: vicuna-7b-v1.1; docs/parts.md has others)."""
    clip: Release
    """The eye: CLIP, SigLIP or DINOv2 (paper: clip-vit-large-patch14)."""
    sd: Release
    """Stable Diffusion, with the weights of VAE and UNet (paper: stable-diffusion-2-1-base-weights)."""
    instruments: FetchedFoundations
    """Foundations of the emoji world used in evaluation: the scene classifier, and CLIP for the features of FID."""


class ImportedFoundations(Section):
    """A checkpoint released by the authors, converted to foundations and a checkpoint called `released`."""

    source: Literal["import"]
    folder: OwnFolder = "data/foundations_released"
    """Folder below data/ for llm/, clip/ and sd/."""
    checkpoint: Release = "dreamllm-7b-chat-v1.0"
    """The released checkpoint: a name in paper/released.yaml, downloaded to data/released unless it is there."""
    clip: Release = "clip-vit-large-patch14"
    """The CLIP it was trained with."""
    sd: Release = "stable-diffusion-2-1-base"
    """The Stable Diffusion it was trained with."""
    instruments: FetchedFoundations
    """Foundations of the emoji world used in evaluation: the scene classifier, and CLIP for the features of FID."""
