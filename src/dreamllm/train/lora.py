"""Low-rank adapters (LoRA, arXiv 2106.09685) on the language model: trained with peft, loaded without it.

An adapted weight W is trained as W + alpha / rank * B A. A checkpoint holds A (rank, in) as NAME.lora_A and
alpha / rank * B (out, rank) as NAME.lora_B, where NAME is W's module in the model. `merge` adds their product to W, so
the loaded model has no adapters left.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers.pytorch_utils import Conv1D

from dreamllm.config.stages import Lora
from dreamllm.model.dreamllm import DreamLLMForConditionalGeneration
from dreamllm.seeds import seed_of

A, B = ".lora_A", ".lora_B"
ADAPTER = ".default"  # peft's suffix


def add_adapters(model: DreamLLMForConditionalGeneration, lora: Lora, seed: int) -> None:
    """Add adapters to all linear layers of the language model except its head, and freeze the weights they adapt.

    Embeddings and head are still trained as a whole, because the special tokens start as random vectors. B starts at
    zero, so the model computes the same as before; A is random by `seed`. Shapes: see the module's docstring.
    """
    from peft import LoraConfig, inject_adapter_in_model  # slow to import, and only needed here

    options = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules="all-linear")
    options.fan_in_fan_out = any(isinstance(module, Conv1D) for module in model.language_model.modules())  # GPT-2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "lora"))
        inject_adapter_in_model(options, model.language_model)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        module.requires_grad_(True)


def checkpoint_tensors(trained: Mapping[str, torch.Tensor], lora: Lora) -> dict[str, torch.Tensor]:
    """Trained parameters as a checkpoint holds them: named without peft's suffixes, with alpha / rank included in B."""
    tensors = {}
    for name, tensor in trained.items():
        name = name.removesuffix(f"{ADAPTER}.weight")
        tensors[name] = tensor * (lora.alpha / lora.rank) if name.endswith(B) else tensor
    return tensors


def target_parameter(name: str) -> str:
    """The model's parameter that a tensor of a checkpoint is loaded into: of the same name, or the adapted weight."""
    return f"{name.removesuffix(A).removesuffix(B)}.weight" if name.endswith((A, B)) else name


def adapted_weight(model: DreamLLMForConditionalGeneration, name: str) -> torch.Tensor:
    """The parameter `name` as (out, in): a view of it where GPT-2's Conv1D stores it the other way round."""
    weight = model.get_parameter(name)
    return weight.T if isinstance(model.get_submodule(name.rpartition(".")[0]), Conv1D) else weight


@torch.no_grad()
def merge(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """Add the product of an adapter, A (rank, in) and scaled B (out, rank), to its weight (out, in), in place."""
    weight.add_(b.to(weight) @ a.to(weight))
