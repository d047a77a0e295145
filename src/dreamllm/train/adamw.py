"""The optimiser of a training: torch's fused AdamW, or the 8-bit one of bitsandbytes."""

from __future__ import annotations

from typing import Any

import torch

from dreamllm.config.machine import Machine
from dreamllm.config.stages import Stage
from dreamllm.train.distributed import MachineProblem


def build(groups: list[dict[str, Any]], stage: Stage, machine: Machine) -> torch.optim.Optimizer:
    """AdamW for these parameter groups, with the stage's options, as `machine.optimizer` says.

    Raises MachineProblem where bitsandbytes is not installed, and for sharded parameters, which it cannot update.
    """
    if machine.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=stage.learning_rate, betas=stage.betas, fused=True)
    if machine.sharding != "none":
        raise MachineProblem("machine.optimizer: adamw_8bit cannot train sharded parameters; set sharding to none")
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise MachineProblem(f"machine.optimizer: adamw_8bit needs `pip install bitsandbytes` ({error})") from error

    class Resumable(AdamW8bit):
        """Keeps its step counts as tensors, as torch's optimisers do, so that a resume state can hold them."""

        def update_step(self, group: dict[str, Any], p: torch.Tensor, gindex: int, pindex: int) -> None:
            state = self.state[p]
            state["step"] = int(state["step"])
            super().update_step(group, p, gindex, pindex)
            state["step"] = torch.tensor(float(state["step"]))

    return Resumable(groups, lr=stage.learning_rate, betas=stage.betas)
