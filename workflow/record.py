"""Record in dvc.lock what a finished run has made, and push it. Usage: `make record`.

Metrics and item scores are also copied to results/recorded, for git: README's table is made of them, and a clone
compares its own run with them. results/recorded/timings.csv has the CPU time of each job, by which the live view of a
run tells the time left.

The foundations and results/summary go to the store in this repository (data/store), everything else to your own remote
if you named one (`dvc remote add --default --local NAME URL`). Without one the files stay here, and dvc.lock has their
digests.
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
from dreamllm.paths import SUMMARY
from dreamllm.repro.audit.origins import RECORDED
from dreamllm.snakemake_records import read_records, refusal
from dreamllm.timings import RECORDED as TIMINGS
from dreamllm.timings import write_recorded


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
    runs = load("config/embedded.yaml").runs()
    made = {log: record["rule"] for record in read_records().values() for log in record["log"]}
    write_recorded(TIMINGS, {log: rule for log, rule in made.items() if Path(log).parent.name in runs})
    for part in ("metrics", "items"):
        with new_folder(f"{RECORDED}/{part}") as folder:
            for run in runs:
                shutil.copytree(f"results/{part}/{run}", folder / run)
    subprocess.run(["dvc", "push", "foundations"], check=True)
    subprocess.run(["dvc", "push", SUMMARY], check=True)  # a call of its own: named together, it was not pushed
    if default_remote():
        subprocess.run(["dvc", "push"], check=True)


if __name__ == "__main__":
    main()
