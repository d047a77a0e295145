"""Record in dvc.lock what a finished run has made, and push it. Usage: `make record`.

Metrics and item scores are also copied to results/recorded, for git: README's table is made of them, and a clone
compares its own run with them.

The foundations go to the store in this repository (data/store), everything else to your own remote if you named one
(`dvc remote add --default --local NAME URL`). Without one the files stay here, and dvc.lock has their digests.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from restore import default_remote

from dreamllm.atomic import new_folder
from dreamllm.config.reading import load
from dreamllm.masking import mask
from dreamllm.repro.audit.origins import RECORDED
from dreamllm.snakemake_records import refusal


def main() -> None:
    """Record the results in dvc.lock and push the files, if all of them are up to date and made by Snakemake."""
    plan = subprocess.run(
        ["snakemake", "--dry-run", "results/tables"],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if "Nothing to be done" not in plan.stdout:
        sys.exit(
            f"{mask(plan.stdout)[-2000:]}\nerror: results/tables is not up to date (`make tables`); nothing was "
            "recorded."
        )
    if reason := refusal("dvc.yaml"):
        sys.exit(f"error: {reason}. Not recorded.")
    subprocess.run(["dvc", "commit", "--quiet", "--force"], check=True)
    for part in ("metrics", "items"):
        with new_folder(f"{RECORDED}/{part}") as folder:
            for run in load("config/embedded.yaml").runs():
                shutil.copytree(f"results/{part}/{run}", folder / run)
    subprocess.run(["dvc", "push", *([] if default_remote() else ["foundations"])], check=True)


if __name__ == "__main__":
    main()
