"""Train one stage (paper section 3.2: alignment, I-GPT, supervised fine-tuning): `dreamllm train --stage NAME ...`.

    OUT/trained.safetensors   what the stage trained
    OUT/checkpoint.json       what it was made from
    OUT/losses.csv            losses of every step
    WORK/                     TensorBoard logs, and the state from which the same command continues after a kill

The stage's section of the configuration says what is trained, on what and how. `accelerate launch` starts it on several
GPUs (workflow/launch.sh).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dreamllm.config.reading import load
from dreamllm.output_paths import folder_to_write

ENCODED_PICTURES = Path("scratch/encoded")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `dreamllm train`."""
    parser.add_argument("--stage", required=True, help="a name below `stages` in the configuration")
    parser.add_argument("--config", required=True, type=Path, help="experiment file")
    parser.add_argument("--seed", type=int, help="seed of this run, for experiments with several `seeds`")
    parser.add_argument("--foundations", required=True, type=Path, help="folder with llm/, clip/ and sd/")
    parser.add_argument("--data", required=True, type=Path, nargs="+", help="folders with shard sets")
    parser.add_argument("--init", type=Path, nargs="*", default=[], help="checkpoints to start from, in loading order")
    parser.add_argument("--out", required=True, type=folder_to_write, help="checkpoint folder to write")
    parser.add_argument(
        "--work", required=True, type=folder_to_write, help="folder for resume state and TensorBoard logs"
    )
    parser.add_argument("--save-every", type=float, default=60.0, help="seconds between saves of the resume state")
    parser.add_argument(
        "--encoded-pictures",
        type=Path,
        default=ENCODED_PICTURES,
        help="folder of the feature cache of stages with `precompute`; may be shared, and deleted (%(default)s)",
    )


def main(arguments: argparse.Namespace) -> None:
    """Run `dreamllm train`."""
    experiment = load(arguments.config, arguments.seed)
    if arguments.stage not in experiment.stages:
        raise SystemExit(f"{arguments.config}: no stage {arguments.stage!r}; stages: {', '.join(experiment.stages)}")

    from dreamllm.train.trainer import train  # torch, only when it is needed

    train(
        experiment,
        arguments.stage,
        foundations=arguments.foundations,
        data=arguments.data,
        init=arguments.init,
        out=arguments.out,
        work=arguments.work,
        save_every=arguments.save_every,
        encoded_pictures=arguments.encoded_pictures,
    )
