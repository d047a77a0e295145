"""Import a checkpoint that the authors released, as foundations and a checkpoint of ours: `dreamllm import-official`.

    FOUNDATIONS/{llm,clip,sd}        the language model with its vocabulary, CLIP and Stable Diffusion
    CHECKPOINT/trained.safetensors   visual projector, dream queries, condition projector
    CHECKPOINT/checkpoint.json       metadata, as in every checkpoint
    CHECKPOINT/import.json           how every tensor of the official files was used; their digests; their config.json

--source may also be the file of a visual projector that LLaVA released, mm_projector.bin: the checkpoint then holds the
projector, for the llm/, clip/ and sd/ that FOUNDATIONS has already.

Every command that takes foundations and checkpoints therefore takes an imported model: predict, generate, train,
export. No code in the released files is run, and every tensor that is not used is reported.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dreamllm.config.reading import load
from dreamllm.output_paths import folder_to_write


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `dreamllm import-official`."""
    source = "folder of the official checkpoint, or file of LLaVA's visual projector (mm_projector.bin)"
    parser.add_argument("--source", required=True, type=Path, help=source)
    parser.add_argument("--clip", type=Path, help="folder of the CLIP it was trained with (CLIP ViT-L/14)")
    parser.add_argument("--sd", type=Path, help="folder of the Stable Diffusion it was trained with (2.1 base)")
    foundations = "folder to write llm/, clip/ and sd/ to; of a projector, the folder that has them"
    parser.add_argument("--foundations", required=True, type=Path, help=foundations)
    parser.add_argument("--out", required=True, type=folder_to_write, help="checkpoint folder to write")
    parser.add_argument(
        "--config", type=Path, help="configuration of an experiment that uses it; its section model must agree"
    )


def main(arguments: argparse.Namespace) -> None:
    """Run `dreamllm import-official`."""
    from dreamllm.official.convert import OfficialProblem  # torch, only when it is needed
    from dreamllm.official.importer import import_official
    from dreamllm.official.llava import import_projector

    experiment = load(arguments.config) if arguments.config else None
    if arguments.source.is_file():
        print(import_projector(arguments.source, arguments.foundations, arguments.out, experiment))
        return
    if not (arguments.clip and arguments.sd):
        raise OfficialProblem("--clip and --sd are needed for an official checkpoint")
    print(
        import_official(
            arguments.source, arguments.clip, arguments.sd, arguments.foundations, arguments.out, experiment
        )
    )
