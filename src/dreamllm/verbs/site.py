"""The report of a run as a static site: `dreamllm site`.

    index.html   claims, tables, pictures, stories, costs; a click on a number shows the way from it down to the data
    pictures/    what index.html shows, as PNG
    REPORT.md, cards/   the same in writing (report/written.py)

The folder needs nothing from elsewhere: it opens from the disk, and can be sent around. What models and data sets wrote
is escaped, and the page's own policy lets no other script run than the one it was made with. The same results give the
same bytes; times and memory are those that were recorded.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm site`."""
    parser.add_argument("--root", type=Path, default=Path(), help="the repository in which the run was made")
    parser.add_argument("--config", required=True, type=Path, help="the run's configuration")
    parser.add_argument("--metrics", nargs="*", default=[], type=Path, help="metrics files, as for `dreamllm tables`")
    parser.add_argument("--items", nargs="*", default=[], type=Path, help="folders of `dreamllm item-scores`")
    parser.add_argument("--paper", type=Path, default=Path("paper"), help="folder of what was published")
    parser.add_argument("--out", required=True, type=Path, help="folder to write; an old one is replaced")


def main(args: argparse.Namespace) -> None:
    """Entry point of `dreamllm site`."""
    from dreamllm.repro.report import site  # SciPy and others, only when it is needed

    site.main(args)
