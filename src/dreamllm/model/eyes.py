"""The eye, a frozen vision transformer of transformers (CLIP, SigLIP, DINOv2), and the visual projector on its patches.

An eye is read at one hidden layer. Position embeddings, CLIP's norm before the layers, class token and register tokens
take part in it; the tokens before the patches are removed afterwards, and no norm after the layers is applied, so that
what the projector gets is a hidden state as in `output_hidden_states`, for every eye.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import nn
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from dreamllm.model.config import num_patches
from dreamllm.model.weights import FoundationProblem

VISION_MODELS = ("clip_vision_model", "siglip_vision_model", "dinov2", "dinov2_with_registers")
"""Model types of transformers that can be the eye. SigLIP 2 of a fixed resolution is a siglip_vision_model."""
ANY_SIZE = ("dinov2", "dinov2_with_registers")
"""Of these, the ones that interpolate their position embeddings to the size of the picture."""

Projector = Literal["linear", "mlp"]


def vision_tower(model: PreTrainedModel) -> PreTrainedModel:
    """The eye of a loaded model: itself, or the vision tower of one that has a text tower, too.

    Raises FoundationProblem for a model that is none of VISION_MODELS.
    """
    tower = getattr(model, "vision_model", model)
    if (kind := tower.config.model_type) not in VISION_MODELS:
        reason = " (its pictures have no fixed size)" if kind.startswith("siglip2") else ""
        raise FoundationProblem(f"{kind} cannot be the eye{reason}; choose one of {', '.join(VISION_MODELS)}")
    return tower


def check_picture_size(config: PreTrainedConfig, pixels: torch.Tensor) -> int | None:
    """Side of the pictures (N, 3, H, W) of an image processor, where it is another than the eye's own; else None.

    Raises FoundationProblem for pictures that the eye cannot take.
    """
    own, patch = config.image_size, config.patch_size
    height, width = pixels.shape[-2:] if pixels.ndim == 4 else (0, 0)
    if height == width == own:
        return None
    if height != width or not height or height % patch or config.model_type not in ANY_SIZE:
        fits = f"squares of a multiple of {patch}" if config.model_type in ANY_SIZE else f"{own} x {own}"
        raise FoundationProblem(
            f"the image processor makes pictures of shape {list(pixels.shape[1:])}, but {config.model_type} takes "
            f"{fits} pixels; correct size and crop_size in its preprocessor_config.json"
        )
    return height


def patch_features(eye: PreTrainedModel, pixels: torch.Tensor, layer: int) -> torch.Tensor:
    """Hidden states of the patches at one layer, without class and register tokens and the final norm, in raster order.

    layer: index as in transformers' `hidden_states`: 0 is the embedding, -1 the last layer, -2 the one before (the
    official code's choice, modeling_plugins.py). Later layers are not computed.

    pixels (N, 3, H, W) normalised for the eye -> (N, P, Dv)
    """
    if hasattr(eye, "_hf_hook"):  # of offloading; as for methods of diffusers' models, which bypass `forward`, too
        eye._hf_hook.pre_forward(eye)
    layers = eye.encoder.layer if hasattr(eye.encoder, "layer") else eye.encoder.layers
    depth = layer % (len(layers) + 1)
    hidden = eye.embeddings(pixels.to(eye.dtype))  # (N, tokens + P, Dv)
    if hasattr(eye, "pre_layrnorm"):
        hidden = eye.pre_layrnorm(hidden)
    for block in layers[:depth]:
        hidden = block(hidden, attention_mask=None)
    return hidden[:, hidden.shape[1] - num_patches(eye.config, pixels.shape[-1]) :]


def make_projector(kind: str, inputs: int, outputs: int) -> nn.Module:
    """The visual projector from Dv = `inputs` to D = `outputs`: linear (the paper's), or mlp, that of LLaVA-1.5.

    The parameters of mlp are named as in LLaVA's mm_projector.bin: 0.weight, 0.bias, 2.weight, 2.bias.
    Raises ValueError for another kind.
    """
    if kind == "linear":
        return nn.Linear(inputs, outputs)
    if kind == "mlp":
        return nn.Sequential(nn.Linear(inputs, outputs), nn.GELU(), nn.Linear(outputs, outputs))
    raise ValueError(f"visual_projector_type is {kind!r}, expected {' or '.join(get_args(Projector))}")
