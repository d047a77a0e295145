"""Patch features of CLIP, the input of the visual projector."""

from __future__ import annotations

import torch
from transformers import CLIPVisionModel


def patch_features(vision_model: CLIPVisionModel, pixels: torch.Tensor, layer: int) -> torch.Tensor:
    """Hidden states of one CLIP layer, without the class token and the final layer norm, in raster order.

    layer: index as in transformers' `hidden_states`: 0 is the embedding, -1 the last layer, -2 the one before (the
    official code's choice, modeling_plugins.py). Later layers are not computed.

    pixels (N, 3, H, W) normalised for CLIP -> (N, P, Dv)
    """
    layers = vision_model.encoder.layers
    depth = layer % (len(layers) + 1)
    hidden = vision_model.pre_layrnorm(vision_model.embeddings(pixels.to(vision_model.dtype)))  # (N, 1 + P, Dv)
    for block in layers[:depth]:
        hidden = block(hidden, attention_mask=None)
    return hidden[:, 1:]
