"""Write the provenance of a run in machine-readable form: `dreamllm crate`.

    ro-crate-metadata.json   a Workflow Run RO-Crate of this repository: inputs, outputs, their digests, software, every
                             job with its command, times and memory (a Provenance Run Crate where Snakemake's records of
                             the jobs exist, otherwise a Workflow Run Crate without jobs)
    codecheck.yml            the CODECHECK manifest: every table and figure with its caption. The person who checks the
                             results fills in the rest

Both standards require these files at the root of the repository. The same files and the same records give the same
bytes; times are the recorded ones.
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
