"""Precision of a model's parameters: bfloat16 on a GPU; fp32 on a CPU, and for everything that is trained.

Buffers are never cast, because rotary frequencies rounded to bfloat16 would shift the positions of tokens.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch


def default_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def compute_dtype(device: torch.device | str) -> torch.dtype:
    """The dtype to compute in on a device: bfloat16 on a GPU, fp32 elsewhere."""
    return torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32


@torch.no_grad()
def cast(parameters: Iterable[torch.nn.Parameter], dtype: torch.dtype) -> None:
    """Cast parameters in place, so that tied ones stay tied."""
    for parameter in parameters:
        parameter.data = parameter.data.to(dtype)


def for_inference(model: torch.nn.Module, device: torch.device | str, dtype: torch.dtype | None = None) -> None:
    """Move a model to a device in evaluation mode and cast it to `dtype` (default: `compute_dtype`), except the VAE.

    The VAE stays in fp32: it is small, and rounding is visible in the pictures that it decodes.
    """
    vae = getattr(model, "vae", None)
    kept = set() if vae is None else set(vae.parameters())
    cast((parameter for parameter in model.parameters() if parameter not in kept), dtype or compute_dtype(device))
    model.to(device).eval()


def cast_unet(unet: torch.nn.Module, dtype: torch.dtype) -> None:
    """Cast a diffusers UNet to `dtype`; its inputs and outputs stay fp32, as in `DreamLLM...denoise`.

    For diffusers' pipelines, which otherwise round the latents at each step.
    """
    if dtype == torch.float32:
        return
    cast(unet.parameters(), dtype)
    unet.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(dtype), *inputs[1:]))
    unet.register_forward_hook(lambda _, inputs, outputs: (outputs[0].float(), *outputs[1:]))


def for_training(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Cast frozen parameters to `dtype`; trained ones stay fp32, for the optimiser."""
    cast([parameter for parameter in model.parameters() if not parameter.requires_grad], dtype)
