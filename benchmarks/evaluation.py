"""CPU time of a prediction in one, two and four processes: how much dividing a benchmark costs.

    python benchmarks/evaluation.py --config FILE --benchmark draw [--processes 1 2 4] FLAGS

FLAGS are the others of `dreamllm predict`: --model, --split, --foundations, --checkpoints, --benchmarks. Each number of
processes predicts the whole benchmark through workflow/launch.sh, in turn, `--repeats` times. Prints the CPU-seconds of
all processes together, their ratio to one process, and the same without what a process costs before its first batch
(imports and loading the model: measured with one item). Fails if the files differ.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent


def cpu_seconds(number: int, out: Path, flags: list[str]) -> float:
    """CPU-seconds of a prediction in `number` processes, with the launcher that starts them."""
    command = ["bash", str(ROOT / "workflow/launch.sh"), "1", str(number), "predict", *flags]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"OMP_NUM_THREADS": str(number), "CUDA_VISIBLE_DEVICES": ""}  # launch.sh: one each
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    work = out.with_suffix(".work")
    subprocess.run([*command, "--out", str(out), "--work", str(work)], check=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--benchmark", required=True)
    parser.add_argument("--suffix", default="tar", choices=["tar", "jsonl"])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--repeats", type=int, default=2)
    args, flags = parser.parse_known_args()
    flags = ["--benchmark", args.benchmark, *flags]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        content = yaml.safe_load(args.config.read_text(encoding="utf-8"))
        content.setdefault("evaluation", {})["limit"] = 1
        (folder / "one.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        whole = [*flags, "--config", str(args.config)]
        first = [*flags, "--config", str(folder / "one.yaml")]
        print("| processes | CPU-s | to one process | CPU-s of one item | CPU-s of the items | to one process |")
        print("|--:|--:|--:|--:|--:|--:|")
        for _ in range(args.repeats):
            alone: tuple[float, float] | None = None
            for number in args.processes:
                out = folder / f"{number}.{args.suffix}"
                used = cpu_seconds(number, out, whole)
                start = cpu_seconds(number, folder / f"start.{args.suffix}", first)
                alone = alone or (used, used - start)
                if out.read_bytes() != (folder / f"{args.processes[0]}.{args.suffix}").read_bytes():
                    sys.exit(f"{number} processes wrote other bytes than {args.processes[0]}")
                ratios = used / alone[0], (used - start) / alone[1]
                print(
                    f"| {number} | {used:.1f} | {ratios[0]:.2f} | {start:.1f} | {used - start:.1f} | {ratios[1]:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
