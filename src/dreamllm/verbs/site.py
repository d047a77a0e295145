"""Write the report of a run as a static site: `dreamllm site`.

    index.html   generated images first, then claims, tables, stories, costs; click a number to trace it to the data
    failures.html   the first items of each benchmark that the final model got wrong
    pictures/    the pictures on the page, as PNG
    REPORT.md    the report in the form of the ML Reproducibility Challenge
    cards/       a model card for every checkpoint, a data card for every training set

The folder is self-contained: open index.html from the disk, or send the folder to others. Text from models and data
sets is escaped, and the page's Content-Security-Policy allows only its own script. The same results give the same
bytes; times and memory are the recorded ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dreamllm.output_paths import folder_to_write


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm site`."""
    parser.add_argument("--root", type=Path, default=Path(), help="the repository in which the run was made")
    parser.add_argument("--config", required=True, type=Path, help="the run's configuration")
    parser.add_argument("--metrics", nargs="*", default=[], type=Path, help="metrics files, as for `dreamllm tables`")
    parser.add_argument("--items", nargs="*", default=[], type=Path, help="folders of item scores (results/items/RUN)")
    parser.add_argument("--paper", type=Path, default=Path("paper"), help="folder of what was published")
    parser.add_argument("--out", required=True, type=folder_to_write, help="folder to write; an old one is replaced")


def main(args: argparse.Namespace) -> None:
    """Entry point of `dreamllm site`."""
    from dreamllm.repro.report import site  # SciPy and others, only when it is needed

    site.main(args)
