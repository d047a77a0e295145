"""Write a trained model in the format of the authors' released checkpoints: `dreamllm export-official`.

The authors' code can then load it. An imported model that was not trained further is exported with bit-identical
tensors and its original config.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dreamllm.official import CLIP, SD
from dreamllm.output_paths import folder_to_write


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `dreamllm export-official`."""
    parser.add_argument("--foundations", required=True, type=Path, help="folder with llm/, clip/ and sd/")
    parser.add_argument(
        "--checkpoints", required=True, type=Path, nargs="+", help="checkpoint folders in loading order"
    )
    parser.add_argument("--out", required=True, type=folder_to_write, help="folder to write")
    parser.add_argument(
        "--clip",
        default=CLIP,
        help="hub name or folder that the official code loads CLIP from; ignored for an imported model",
    )
    parser.add_argument("--sd", default=SD, help="the same for Stable Diffusion")


def main(arguments: argparse.Namespace) -> None:
    """Run `dreamllm export-official`."""
    from dreamllm.official.exporter import export_official  # torch, only when it is needed

    print(
        export_official(
            arguments.foundations, arguments.checkpoints, arguments.out, clip=arguments.clip, sd=arguments.sd
        )
    )
