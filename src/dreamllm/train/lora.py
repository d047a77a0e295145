"""Low-rank adapters on the language model (arXiv 2106.09685), by peft; a checkpoint holds them without peft's help.

An adapted weight W is trained as W + alpha / rank * B A. A checkpoint holds A (rank, in) as NAME.lora_A and
alpha / rank * B (out, rank) as NAME.lora_B, NAME being W's name in the model: `merge` adds their product to W, and from
then on the model is one like any other.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from dreamllm.config.stages import Lora
from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration
from dreamllm.seeds import seed_of

A, B = ".lora_A", ".lora_B"
BASE, ADAPTER = ".base_layer", ".default"  # what peft adds to the names of parameters


def add(model: DreamLLMForConditionalGeneration, lora: Lora, seed: int) -> None:
    """Put adapters on all linear layers of the language model but its head, and freeze what they adapt.

    Embeddings and head keep taking gradients, whole: the special tokens begin as random numbers. B is zero at first, so
    that the model computes what it did before; A is random by `seed`. Their shapes are in the module's docstring.
    """
    from peft import LoraConfig, inject_adapter_in_model  # slow to import, and only needed here

    options = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules="all-linear")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "lora"))
        inject_adapter_in_model(options, model.language_model)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        module.requires_grad_(True)


def checkpoint_tensors(trained: Mapping[str, torch.Tensor], lora: Lora) -> dict[str, torch.Tensor]:
    """Trained parameters as a checkpoint holds them: under names without peft's additions, with the scale in B."""
    tensors = {}
    for name, tensor in trained.items():
        name = name.removesuffix(f"{ADAPTER}.weight")
        tensors[name] = tensor * (lora.alpha / lora.rank) if name.endswith(B) else tensor
    return tensors


def target(name: str) -> str:
    """The parameter of the model that a tensor of a checkpoint goes into: itself, or what an adapter adapts."""
    return f"{name.removesuffix(A).removesuffix(B)}.weight" if name.endswith((A, B)) else name


@torch.no_grad()
def merge(weight: torch.nn.Parameter, a: torch.Tensor, b: torch.Tensor) -> None:
    """Add an adapter, A (rank, in) and scaled B (out, rank), to the weight (out, in) that it was trained on."""
    weight.add_(b.to(weight) @ a.to(weight))
