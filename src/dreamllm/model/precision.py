"""Precision of training and predictions: bf16 or fp32, for the configuration's key `precision`.

bf16: autocast in training, with frozen weights in bfloat16 and trained ones in fp32; in predictions all weights are in
bfloat16 except the VAE's. Buffers are never cast, because rotary frequencies rounded to bfloat16 would shift the
positions of tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")  # without them bfloat16 is emulated on a CPU, slower than fp32


def default_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve(precision: Literal["auto", "fp32", "bf16"]) -> Literal["fp32", "bf16"]:
    """The precision that is used on this machine: `auto` is bf16 where the default device has bfloat16 products."""
    if precision != "auto":
        return precision
    capabilities = torch.cpu.get_capabilities()
    on_cpu = any(capabilities.get(name) for name in BF16_INSTRUCTIONS)
    return "bf16" if default_device().type == "cuda" or on_cpu else "fp32"


@torch.no_grad()
def cast(parameters: Iterable[torch.nn.Parameter], dtype: torch.dtype) -> None:
    """Cast parameters in place, so that tied ones stay tied."""
    for parameter in parameters:
        parameter.data = parameter.data.to(dtype)


def for_inference(model: torch.nn.Module, device: torch.device | str, dtype: torch.dtype) -> None:
    """Move a model to a device in evaluation mode and cast it to `dtype`, except the VAE.

    The VAE stays in fp32: it is small, and rounding is visible in the pictures that it decodes.
    """
    vae = getattr(model, "vae", None)
    kept = set() if vae is None else set(vae.parameters())
    cast((parameter for parameter in model.parameters() if parameter not in kept), dtype)
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
