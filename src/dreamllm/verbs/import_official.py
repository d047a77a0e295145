"""Imports a checkpoint that the authors released, as foundations and a checkpoint of ours: `dreamllm import-official`.

    FOUNDATIONS/{llm,clip,sd}        the language model with its vocabulary, CLIP and Stable Diffusion
    CHECKPOINT/trained.safetensors   visual projector, dream queries, condition projector
    CHECKPOINT/checkpoint.json       as every checkpoint has it
    CHECKPOINT/import.json           what became of every tensor of the official files; digests; their config.json

So whatever takes foundations and checkpoints takes an imported model: predict, generate, train, export. Nothing of the
released files is run, and nothing is left out silently.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dreamllm.config.reading import load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `dreamllm import-official`."""
    parser.add_argument("--source", required=True, type=Path, help="folder of the official checkpoint")
    parser.add_argument("--clip", required=True, type=Path, help="folder of the CLIP it was made with (CLIP ViT-L/14)")
    parser.add_argument(
        "--sd", required=True, type=Path, help="folder of the Stable Diffusion it was made with (2.1 base)"
    )
    parser.add_argument("--foundations", required=True, type=Path, help="folder to write llm/, clip/ and sd/ to")
    parser.add_argument("--out", required=True, type=Path, help="checkpoint folder to write")
    parser.add_argument("--config", type=Path, help="experiment that uses it; its section model must agree")


def main(arguments: argparse.Namespace) -> None:
    """Run `dreamllm import-official`."""
    from dreamllm.official.importer import import_official  # torch, only when it is needed

    experiment = load(arguments.config) if arguments.config else None
    print(
        import_official(
            arguments.source, arguments.clip, arguments.sd, arguments.foundations, arguments.out, experiment
        )
    )
