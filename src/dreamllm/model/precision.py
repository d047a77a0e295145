"""In which numbers a model is kept: bfloat16 on a GPU, but fp32 on a CPU and for everything that is trained.

Only parameters are cast. Buffers stay as they are: rotary frequencies that are rounded to 8 bits put words in wrong
places.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch


def compute_dtype(device: torch.device | str) -> torch.dtype:
    """What is computed in on this device: bfloat16 on a GPU, fp32 elsewhere."""
    return torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32


@torch.no_grad()
def cast(parameters: Iterable[torch.nn.Parameter], dtype: torch.dtype) -> None:
    """Keep these parameters, and what is tied to them, in `dtype` from now on; a frozen one is half as large then."""
    for parameter in parameters:
        parameter.data = parameter.data.to(dtype)


def for_inference(model: torch.nn.Module, device: torch.device | str, dtype: torch.dtype | None = None) -> None:
    """Put a model onto a device to be used there, in `dtype`, by default the device's; an autoencoder stays in fp32.

    The autoencoder is small, and rounding shows in the pictures that it decodes.
    """
    vae = getattr(model, "vae", None)
    kept = set() if vae is None else set(vae.parameters())
    cast((parameter for parameter in model.parameters() if parameter not in kept), dtype or compute_dtype(device))
    model.to(device).eval()


def cast_unet(unet: torch.nn.Module, dtype: torch.dtype) -> None:
    """Keep a diffusers UNet in `dtype` while latents go in and predictions come out in fp32, as in DreamLLM.denoise.

    For diffusers' pipelines, which would otherwise round the latents at each step.
    """
    if dtype == torch.float32:
        return
    cast(unet.parameters(), dtype)
    unet.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(dtype), *inputs[1:]))
    unet.register_forward_hook(lambda _, inputs, outputs: (outputs[0].float(), *outputs[1:]))


def for_training(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Keep what is frozen in `dtype`; what takes gradients stays in fp32, and is what the optimiser works on."""
    cast([parameter for parameter in model.parameters() if not parameter.requires_grad], dtype)
