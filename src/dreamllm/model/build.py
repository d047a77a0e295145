"""Build a DreamLLM from its foundations: a language model, an eye and a diffusion model, in their usual layouts.

    llm/    config.json, model.safetensors, tokenizer files                       (transformers)
    clip/   config.json, model.safetensors, preprocessor_config.json              (transformers; `eyes.py`)
    sd/     vae/ unet/ (or transformer/) scheduler/, with config.json and weights (diffusers; `decoders/`)

Nothing is trained or downloaded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DDPMScheduler, ModelMixin
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForCausalLM
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.tokenization_utils_base import AddedToken, PreTrainedTokenizerBase

from dreamllm.model import decoders
from dreamllm.model.config import DreamLLMConfig
from dreamllm.model.connector import condition_projector
from dreamllm.model.diffusion import DecoderProblem
from dreamllm.model.dreamllm import UNFROZEN, DreamLLMForConditionalGeneration
from dreamllm.model.eyes import check_picture_size, make_projector, vision_tower
from dreamllm.model.packed import head_logits, packed_attention_mask
from dreamllm.model.processor import BOUNDARY, PAD, SPECIAL_TOKENS, DreamLLMProcessor
from dreamllm.model.weights import FoundationProblem, load_part, load_tokenizer, load_weights, read_config


def build_from_foundations(
    llm_dir: str | Path,
    clip_dir: str | Path,
    sd_dir: str | Path,
    *,
    num_dream_queries: int = 64,
    seed: int = 0,
    vision_feature_layer: int = -2,
    visual_projector_type: str = "linear",
    template: str = "vicuna_v1.1",
    boundary_tokens: bool = False,
    connector_layers: int = 0,
    weights: bool = True,
) -> tuple[DreamLLMForConditionalGeneration, DreamLLMProcessor]:
    """Combine the foundations in fp32. New parts (special tokens, dream queries, projectors) are random by `seed`.

    The same folders and seed give the same model, bit for bit. Without `weights` the model is on the meta device and
    takes no memory, for processes that receive the weights from another one (`train/distributed.py`).

    Raises FoundationProblem for a missing folder, for weights that are damaged, not finite or outside the folder, and
    for a language model that does not fit: its logits must be its head applied to its last hidden states, it must not
    mix packed documents, and its tokenizer must have an end-of-text token, and a lone "▁" for `boundary_tokens`.
    """
    for folder in (llm_dir, clip_dir, sd_dir):
        if not Path(folder).is_dir():
            raise FoundationProblem(f"{folder}: no such foundation folder")
    tokenizer = load_tokenizer(llm_dir)
    new_tokens = add_special_tokens(tokenizer)
    if boundary_tokens and BOUNDARY not in tokenizer.get_vocab():
        raise FoundationProblem(
            f"{llm_dir}: model.boundary_tokens is true, but the tokenizer has no token {BOUNDARY!r}"
        )
    language_model, clip, vae, denoiser = (_load_parts if weights else _parts_on_meta)(llm_dir, clip_dir, sd_dir)
    vision_model = vision_tower(clip)
    image_processor = load_part(AutoImageProcessor, clip_dir, backend="pil")
    blank = image_processor(images=Image.new("RGB", (64, 48)), return_tensors="pt")["pixel_values"]
    for part in (language_model, vision_model):
        part.config.name_or_path = ""  # no local paths in a saved model

    if tokenizer.bos_token is None:
        tokenizer.bos_token = first_token(tokenizer, language_model.config)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rows = language_model.get_input_embeddings().num_embeddings
        if len(tokenizer) > rows:
            language_model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        if weights:
            _initialise_rows(language_model, [token for token in new_tokens if token < rows])
        ids = dict(zip(SPECIAL_TOKENS, tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)), strict=True))
        config = DreamLLMConfig(
            text_config=language_model.config,
            vision_config=vision_model.config,
            vae_config=_plain(vae),
            **{f"{denoiser_folder(sd_dir)}_config": _plain(denoiser)},
            scheduler_config=DDPMScheduler.load_config(sd_dir, subfolder="scheduler"),
            num_dream_queries=num_dream_queries,
            connector_layers=connector_layers,
            vision_feature_layer=vision_feature_layer,
            visual_projector_type=visual_projector_type,
            read_size=check_picture_size(vision_model.config, blank),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=ids[PAD],
            **{f"{token[1:-1]}_token_id": id for token, id in ids.items() if "_" in token},
        )
        _check_decoder(config, sd_dir)
        with torch.device("meta"):
            model = DreamLLMForConditionalGeneration(config)
        model.language_model, model.vision_model, model.vae = language_model, vision_model, vae
        setattr(model, config.denoiser, denoiser)
        if weights:
            _materialise_new_parts(model)
    model.train_only(UNFROZEN)
    processor = DreamLLMProcessor(
        image_processor,
        tokenizer,
        num_patches=config.num_patches,
        num_dream_queries=num_dream_queries,
        draw_size=config.draw_size,
        context=getattr(language_model.config, "max_position_embeddings", 2048),
        template=template,
        boundary_tokens=boundary_tokens,
    )
    if len(ends := processor.vocabulary.ends) > 1:
        model.generation_config.eos_token_id = list(ends)
    return model.eval(), processor


def add_special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Add the missing SPECIAL_TOKENS in their order, and make [PAD] the padding token; returns the ids of the new ones.

    Raises FoundationProblem for a tokenizer without an end-of-text token.
    """
    if tokenizer.eos_token_id is None:
        raise FoundationProblem(f"{tokenizer.name_or_path}: the tokenizer has no end-of-text token (eos_token)")
    known = tokenizer.get_vocab()
    new = [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS if token not in known]
    tokenizer.add_tokens(new, special_tokens=True)
    tokenizer.pad_token = PAD
    return tokenizer.convert_tokens_to_ids([token.content for token in new])


def first_token(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> str:
    """The token that begins a document: bos, else what the model's configuration calls so, else the end of a text.

    Qwen's tokenizers have none; their configuration names <|endoftext|>.
    """
    if tokenizer.bos_token is not None:
        return tokenizer.bos_token
    named = tokenizer.added_tokens_decoder.get(getattr(config, "bos_token_id", None))
    return named.content if named is not None and named.special else tokenizer.eos_token


Parts = tuple[PreTrainedModel, PreTrainedModel, ModelMixin, ModelMixin]


def _load_parts(llm_dir: str | Path, clip_dir: str | Path, sd_dir: str | Path) -> Parts:
    """Language model, CLIP, VAE and denoiser in fp32. Raises FoundationProblem for one that does not fit."""
    language_model = load_weights(AutoModelForCausalLM, llm_dir, dtype=torch.float32)
    _check_language_model(language_model)
    clip = load_weights(AutoModel, clip_dir, dtype=torch.float32)
    vae_class, denoiser_class, folder = _diffusion_classes(sd_dir)
    vae = load_weights(vae_class, sd_dir, subfolder="vae", torch_dtype=torch.float32)
    denoiser = load_weights(denoiser_class, sd_dir, subfolder=folder, torch_dtype=torch.float32)
    return language_model, clip, vae, denoiser


def _parts_on_meta(llm_dir: str | Path, clip_dir: str | Path, sd_dir: str | Path) -> Parts:
    """Language model, CLIP, VAE and denoiser on the meta device, from their configurations only."""
    with torch.device("meta"):
        language_model = AutoModelForCausalLM.from_config(load_part(AutoConfig, llm_dir), dtype=torch.float32)
        clip = AutoModel.from_config(load_part(AutoConfig, clip_dir), dtype=torch.float32)
        vae_class, denoiser_class, folder = _diffusion_classes(sd_dir)
        vae = vae_class.from_config(vae_class.load_config(sd_dir, subfolder="vae"))
        denoiser = denoiser_class.from_config(denoiser_class.load_config(sd_dir, subfolder=folder))
    return language_model, clip, vae, denoiser


def denoiser_folder(sd_dir: str | Path) -> str:
    """Where the denoiser is in a folder of diffusers: "unet" or "transformer"."""
    return "transformer" if (Path(sd_dir) / "transformer").is_dir() else "unet"


def check_is_stable_diffusion(sd_dir: str | Path) -> None:
    """Raises FoundationProblem for a folder of diffusers with another decoder than Stable Diffusion 1 or 2."""
    folder = denoiser_folder(sd_dir)
    kind = decoders.kind_of(read_config(Path(sd_dir) / folder))
    if folder != "unet" or decoders.DECODERS[kind] is not decoders.stable_diffusion:
        raise FoundationProblem(
            f"{sd_dir}: models sd and sd_finetuned are Stable Diffusion 1 or 2 with its text encoder, and this is a "
            f"{kind[0]}{' with a pooled condition' if kind[1] else ''}; leave them out"
        )


def _diffusion_classes(sd_dir: str | Path) -> tuple[Any, Any, str]:
    """The classes of VAE and denoiser, and the latter's folder. Raises FoundationProblem if no decoder has them."""
    folder = denoiser_folder(sd_dir)
    config = read_config(Path(sd_dir) / folder)
    try:
        decoder, (name, _) = decoders.decoder_of(config), decoders.kind_of(config)
    except DecoderProblem as problem:
        raise FoundationProblem(f"{Path(sd_dir) / folder}: {problem}") from None
    return getattr(diffusers, decoder.AUTOENCODER), getattr(diffusers, name), folder


def _check_decoder(config: DreamLLMConfig, sd_dir: str | Path) -> None:
    """Raises FoundationProblem for a noise schedule that is not the decoder's."""
    try:
        config.diffusion_decoder.check(config)
    except DecoderProblem as problem:
        raise FoundationProblem(f"{Path(sd_dir) / 'scheduler'}: {problem}") from None


def _plain(model: ModelMixin) -> dict[str, Any]:
    """The configuration of a diffusers model as plain JSON, without its local path."""
    return {key: value for key, value in json.loads(model.to_json_string()).items() if key != "_name_or_path"}


@torch.no_grad()
def _materialise_new_parts(model: DreamLLMForConditionalGeneration) -> None:
    """Initialise the dream queries and the projectors, which are on the meta device."""
    config, width = model.config, model.dream_queries.shape[-1]
    model.visual_projector = make_projector(config.visual_projector_type, config.vision_config.hidden_size, width)
    model.condition_projector = condition_projector(config, width)
    model.dream_queries = torch.nn.Parameter(torch.empty_like(model.dream_queries, device="cpu"))
    model.dream_queries.normal_(std=getattr(model.config.text_config, "initializer_range", 0.02))


@torch.no_grad()
def _initialise_rows(language_model: PreTrainedModel, tokens: list[int]) -> None:
    """Draw the embeddings of new tokens whose rows were there, unused, as in Qwen and Llama 3."""
    tensors = (language_model.get_input_embeddings().weight, language_model.get_output_embeddings().weight)
    for weight in {id(tensor): tensor for tensor in tensors}.values() if tokens else ():
        std = getattr(language_model.config, "initializer_range", 0.02)
        weight[tokens] = torch.empty(len(tokens), weight.shape[1]).normal_(std=std)


@torch.no_grad()
def _check_language_model(language_model: PreTrainedModel) -> None:
    """Check on a few tokens that logits come from the last hidden states, and that packing mixes no documents."""
    if language_model.config.get_text_config() is not language_model.config:
        raise FoundationProblem(
            f"{type(language_model).__name__} does not fit: it reads pictures itself; save its language model alone"
        )
    name, ids = type(language_model).__name__, torch.arange(4)[None]
    alone = language_model.base_model(ids, use_cache=False).last_hidden_state  # (1, 4, D)
    if not torch.allclose(language_model(ids).logits, head_logits(language_model, alone), atol=1e-4):
        raise FoundationProblem(f"{name} does not fit: its logits are not its head applied to its last hidden states")
    beginning = language_model.base_model(ids[:, :2], use_cache=False).last_hidden_state  # (1, 2, D)
    if not torch.allclose(beginning, alone[:, :2], atol=1e-4):
        raise FoundationProblem(f"{name} does not fit: its attention is not causal")
    embeds = language_model.get_input_embeddings()(ids.repeat(1, 2))
    positions = torch.arange(4).repeat(2)[None]
    mask = packed_attention_mask(language_model.config, embeds, positions)
    packed = language_model.base_model(
        inputs_embeds=embeds, position_ids=positions, attention_mask=mask, use_cache=False
    ).last_hidden_state
    if not torch.allclose(packed, alone.repeat(1, 2, 1), atol=1e-4):
        raise FoundationProblem(f"{name} does not fit: it mixes documents that are packed into one row")
