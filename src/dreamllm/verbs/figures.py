"""Draw the figures of the results: `dreamllm figures`.

    learning_curves      losses of every training stage
    drawings             the real picture and each model's drawing, prompt by prompt
    figure3_documents    freely interleaved stories; the given first sentence is in bold
    figure4_questions    questions that two models answer differently
    figure5_in_context   pictures generated from context pictures and a sentence; Stable Diffusion gets the sentence
    figure6_attention    cross-attention of the UNet to each dream query, for two prompts
    figure8_subject      subject-driven pictures of a model that was trained on them

Figure numbers are the paper's. Each figure is a PNG and a PDF file, sized for a printed page. Equal data give equal
bytes: no dates, fixed metadata, embedded fonts. README.md has the caption of each figure, or the reason why it was not
drawn. The items shown are chosen by rule, never by hand (`results/pictures.py`).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dreamllm.output_paths import folder_to_write


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm figures`."""
    files: dict[str, Any] = {"nargs": "*", "default": [], "type": Path}
    parser.add_argument("--losses", nargs="*", default=[], metavar="STAGE=CSV", help="losses.csv of the stages")
    parser.add_argument("--drawings", **files, help="predictions on the benchmark draw")
    parser.add_argument("--stories", nargs="?", type=Path, help="predictions of one model on the benchmark stories")
    parser.add_argument("--answers", **files, help="predictions on the benchmark vqa")
    parser.add_argument("--in-context", **files, help="predictions on the benchmark in_context")
    parser.add_argument(
        "--trained", nargs="*", default=[], metavar="MODEL", help="models that were trained on contexts"
    )
    parser.add_argument("--attention", nargs="?", type=Path, help="attention maps of one model")
    parser.add_argument("--benchmarks", required=True, type=Path, help="folder of the benchmark files")
    parser.add_argument("--out", required=True, type=folder_to_write, help="folder to write; an old one is replaced")


def main(args: argparse.Namespace) -> None:
    """Entry point of `dreamllm figures`."""
    from dreamllm.results import figures  # Matplotlib, only when it is needed

    figures.main(args)
