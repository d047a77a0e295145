"""What a run was made from, for machines: `dreamllm crate`.

    ro-crate-metadata.json   a Workflow Run RO-Crate of this repository: inputs, outputs, their digests, software, every
                             job with its command, times and memory (Provenance Run Crate, where Snakemake's own record
                             of the jobs is here; otherwise the run alone, Workflow Run Crate)
    codecheck.yml            the CODECHECK manifest: every table and figure with what it shows. Who checks fills in the
                             rest; nobody is named here who has not

Both lie at the root of the repository, because both standards ask for it: paths are those of the repository, and the
crate's workflow is part of it. The same files and the same records give the same bytes; times are those recorded.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm crate`."""
    parser.add_argument("--root", type=Path, default=Path(), help="the repository in which the run was made")
    parser.add_argument("--config", required=True, type=Path, help="the run's configuration")


def main(args: argparse.Namespace) -> None:
    """Entry point of `dreamllm crate`."""
    from dreamllm.repro.report import crate  # rocrate and others, only when it is needed

    crate.main(args)
