"""Write a LoRA checkpoint in peft's format, which `peft.PeftModel.from_pretrained(model, folder)` loads.

    FOLDER/adapter_config.json         LoraConfig
    FOLDER/adapter_model.safetensors   the adapters, and the parts that were trained as a whole

The model is the one that the stage started from. alpha / rank is included in B, as in our checkpoints, so peft's own
factor is 1. Parts that were trained as a whole (special tokens, dream queries, projectors) replace the model's when the
adapter is loaded, and stay when it is disabled; peft has no other place for parameters outside of modules.
"""

from __future__ import annotations

import re
from pathlib import Path

from safetensors.torch import save_file

from dreamllm.atomic import new_folder
from dreamllm.train import lora
from dreamllm.train.ancestors import CheckpointProblem
from dreamllm.train.checkpoint import TENSORS, read_contents
from dreamllm.train.tensor_files import TensorFiles

PREFIX = "base_model.model."


def export_adapter(checkpoint: str | Path, out: str | Path) -> None:
    """Write the LoRA checkpoint to the folder `out` atomically. Raises CheckpointProblem if it has no adapters."""
    from peft import LoraConfig  # slow to import, and only needed here

    read_contents(checkpoint)  # checks the digest
    with TensorFiles(Path(checkpoint) / TENSORS) as files:
        tensors = {name: files.get_tensor(name) for name in files.keys()}  # noqa: SIM118, it is no mapping
    modules = [name.removesuffix(lora.A) for name in tensors if name.endswith(lora.A)]
    if not modules:
        raise CheckpointProblem(f"{checkpoint}: has no low-rank adapters; export it without --adapter")
    rank = len(tensors[modules[0] + lora.A])
    targets = "|".join(map(re.escape, modules))  # a regular expression
    named = {
        PREFIX + (f"{name}.weight" if name.endswith((lora.A, lora.B)) else name): tensor
        for name, tensor in tensors.items()
    }
    with new_folder(out) as folder:
        save_file(named, folder / "adapter_model.safetensors", {"format": "pt"})
        LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, inference_mode=True).save_pretrained(folder)
