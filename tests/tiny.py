"""Tiny random foundations, models and documents for tests: milliseconds to build, deterministic.

tiny.foundations(folder)         llm/ clip/ sd/ in the layouts of the real foundations
tiny.build(...)                  (model, processor) on such foundations
tiny.picture(seed, side)         a picture of coloured noise
tiny.story(), tiny.pair(), ...   documents
"""

from __future__ import annotations

import dreamllm  # noqa: F401  mends torchvision beside CPU torch, so before transformers and diffusers

# isort: split
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from dreamllm.data.document import Document, Picture, Text
from dreamllm.model.build import build_from_foundations
from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration
from dreamllm.model.processor import DreamLLMProcessor

WORDS = """A small red fox walks across the snow. The river bends slowly. It ends at a clear blue lake. First chop the
onions. Then blend the soup until it is smooth and serve it with bread. A photo of a dog running on the
beach. A ship. USER: What is the colour of the cat? ASSISTANT: The cat is green. USER: Draw two dogs.
ASSISTANT: Here they are. A chat between a curious user and an artificial intelligence assistant."""


@lru_cache
def _tokenizer_json() -> str:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator([WORDS], trainers.BpeTrainer(vocab_size=400, special_tokens=special))
    return tokenizer.to_str()


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of 400 tokens, of which 256 are bytes; <unk> <s> </s> have ids 0, 1, 2 as in LLaMA."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_tokenizer_json()), unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def llm_config(**changes: Any) -> LlamaConfig:
    """The configuration of a LLaMA with two layers."""
    options = {
        "vocab_size": len(tokenizer()),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.1,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
    }
    return LlamaConfig(**options | changes)


def foundations(
    folder: str | Path,
    llm: PretrainedConfig | None = None,
    prediction_type: str = "epsilon",
    condition_width: int = 20,
    decoder: str = "stable_diffusion",
) -> Path:
    """Write random foundations into llm/, clip/ and sd/ of `folder`: CLIP with 16 patches, pictures drawn at 16 px.

    condition_width: of the decoder; CLIP's features have 24 numbers.  decoder: one of `write_decoder`
    """
    folder = Path(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(llm or llm_config()).save_pretrained(folder / "llm")
        tokenizer().save_pretrained(folder / "llm")
        tower = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
        clip = CLIPConfig(
            text_config=CLIPTextConfig(vocab_size=400, max_position_embeddings=32, projection_dim=16, **tower),
            vision_config=CLIPVisionConfig(image_size=16, patch_size=4, projection_dim=16, **tower),
            projection_dim=16,
        )
        CLIPModel(clip).save_pretrained(folder / "clip")
        CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(
            folder / "clip"
        )
        write_decoder(folder / "sd", decoder, prediction_type, condition_width)
    return folder


def write_decoder(folder: Path, kind: str, prediction_type: str, condition_width: int) -> None:
    """Write vae/, unet/ or transformer/, and scheduler/ of a decoder: stable_diffusion, sdxl, sd3 or sana.

    Pooled conditions have 12 numbers. prediction_type: of the former two
    """
    unet = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": (2, 2),
        "cross_attention_dim": condition_width,
    }
    transformer = {"in_channels": 4, "num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 8}
    if kind == "sana":
        levels = {"layers_per_block": (1, 1, 1), "block_out_channels": (8, 8, 8), "qkv_multiscales": ((), (), (3,))}
        types = {"block_types": ("ResBlock", "ResBlock", "EfficientViTBlock")}
        sides = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in (levels | types).items()}
        AutoencoderDC(latent_channels=4, attention_head_dim=4, scaling_factor=1.5, **sides).save_pretrained(
            folder / "vae"
        )
        SanaTransformer2DModel(
            **transformer,
            out_channels=4,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=condition_width,
            mlp_ratio=2.0,
            sample_size=4,
            qk_norm="rms_norm_across_heads",
            timestep_scale=0.5,
        ).save_pretrained(folder / "transformer")
        flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
        DPMSolverMultistepScheduler(**flow).save_pretrained(folder / "scheduler")
        return
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
        **({"scaling_factor": 1.5, "shift_factor": 0.1} if kind == "sd3" else {}),
    ).save_pretrained(folder / "vae")
    if kind == "sd3":
        SD3Transformer2DModel(
            **transformer,
            sample_size=8,
            patch_size=2,
            joint_attention_dim=condition_width,
            caption_projection_dim=16,
            pooled_projection_dim=12,
            out_channels=4,
            pos_embed_max_size=8,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        ).save_pretrained(folder / "transformer")
        FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
        return
    if kind == "sdxl":
        unet |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 12,
        }
    UNet2DConditionModel(**unet).save_pretrained(folder / "unet")
    DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction_type
    ).save_pretrained(folder / "scheduler")


def build(
    llm: PretrainedConfig | None = None,
    prediction_type: str = "epsilon",
    num_dream_queries: int = 4,
    template: str = "plain",
    condition_width: int = 20,
    decoder: str = "stable_diffusion",
    connector_layers: int = 0,
) -> tuple[DreamLLMForConditionalGeneration, DreamLLMProcessor]:
    """A model with random weights in eval mode, and its processor; each call builds its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = foundations(name, llm, prediction_type, condition_width, decoder)
        return build_from_foundations(
            folder / "llm",
            folder / "clip",
            folder / "sd",
            num_dream_queries=num_dream_queries,
            template=template,
            connector_layers=connector_layers,
        )


def picture(seed: int = 0, side: int = 20) -> Image.Image:
    """A picture (side x side pixels) of coloured noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def pair(seed: int = 0, text: str = "A photo of a dog running on the beach.") -> Document:
    """A document of a caption and its picture."""
    return Document(f"pair {seed}", "pair", (Text(text), Picture(picture(seed))))


def story(seed: int = 0) -> Document:
    """An interleaved document of three sentences with two pictures between them."""
    parts = (
        Text("A small red fox walks across the snow."),
        Picture(picture(10 * seed)),
        Text("The river bends slowly."),
        Picture(picture(10 * seed + 1)),
        Text("It ends at a clear blue lake."),
    )
    return Document(f"story {seed}", "interleaved", parts)


def conversation(seed: int = 0) -> Document:
    """A conversation: a question about a picture, its answer, a request, and the picture drawn for it."""
    parts = (
        Picture(picture(20 * seed), role="user"),
        Text("What is the colour of the cat?", role="user"),
        Text("The cat is green.", role="assistant"),
        Text("Draw two dogs.", role="user"),
        Text("Here they are.", role="assistant"),
        Picture(picture(20 * seed + 1), role="assistant"),
    )
    return Document(f"conversation {seed}", "conversation", parts)


def text(seed: int = 0) -> Document:
    """A document of text only."""
    return Document(f"text {seed}", "text", (Text("Then blend the soup until it is smooth and serve it with bread."),))
