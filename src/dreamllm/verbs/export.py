"""Write a trained DreamLLM as one Hugging Face folder, model, processor and model card: `dreamllm export ...`.

`AutoModel.from_pretrained` and `AutoProcessor.from_pretrained` load the folder after `import dreamllm`, and
`DreamLLMPipeline.from_pretrained` of `dreamllm.model.pipeline` loads it as a pipeline of diffusers. `hf upload`
publishes it; it contains no code. With --adapter the last checkpoint, of a LoRA stage, is written alone, in peft's
format.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dreamllm.atomic import new_folder


def export(foundations: Path, checkpoints: Sequence[Path], out: Path) -> None:
    """Write the model of foundations and checkpoints to the folder `out` atomically, replacing an existing one.

    checkpoints: folders in loading order.  Raises CheckpointProblem where they do not fit.
    """
    from dreamllm.model.pipeline import DreamLLMPipeline
    from dreamllm.repro.report.hub_card import card
    from dreamllm.train.checkpoint import load_model  # torch, only when it is needed

    model, processor = load_model(foundations, checkpoints)
    with new_folder(out) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        pipeline = DreamLLMPipeline.from_model(model, processor)  # finds model and processor in the folder itself
        pipeline.save_config(folder)
        pipeline.scheduler.save_pretrained(folder / "scheduler")
        (folder / "README.md").write_text(card(checkpoints), encoding="utf-8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `dreamllm export`."""
    parser.add_argument("--foundations", required=True, type=Path, help="folder with llm/, clip/ and sd/")
    parser.add_argument("--checkpoints", required=True, type=Path, nargs="+", help="in loading order")
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    parser.add_argument("--adapter", action="store_true", help="write the last checkpoint, of LoRA, in peft's format")


def main(arguments: argparse.Namespace) -> None:
    """Run `dreamllm export`."""
    if arguments.adapter:
        from dreamllm.train.peft_adapter import export_adapter  # torch, only when it is needed

        return export_adapter(arguments.checkpoints[-1], arguments.out)
    export(arguments.foundations, arguments.checkpoints, arguments.out)
