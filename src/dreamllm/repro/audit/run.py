"""Run sixteen reproducibility checks; each passes, fails or does not apply: `dreamllm audit`.

    dreamllm audit                                  the default configuration; writes results/audit.json
    dreamllm audit --config config/mine.yaml        another experiment
    dreamllm audit --pictures                       also scores generated pictures again with judge and CLIP (minutes)

Each check recomputes from the files what was recorded when a result was made. The exit code is 1 if a check fails.
docs/audit.md says what each check verifies. Run it in the root of a checkout, in its environment.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from dreamllm.atomic import new_file
from dreamllm.output_paths import file_to_write
from dreamllm.repro.audit import check_dag, check_inputs, check_numbers, check_runs, lineage
from dreamllm.repro.audit.audited_run import AuditedRun
from dreamllm.repro.audit.findings import AuditProblem, CheckResult, Fault, merge_runs, pass_or_fail

Check = Callable[[AuditedRun], CheckResult]
CHECKS: dict[str, tuple[str, Check]] = {
    "A01": ("tables and claims follow from metrics", check_numbers.tables),
    "A02": ("results have a rule and are up to date", check_dag.commands),
    "A03": ("commit and clean tree", check_runs.code),
    "A04": ("digests of inputs and outputs", check_runs.file_digests),
    "A05": ("environment as in the lock", check_inputs.environment),
    "A06": ("models pinned by revision or content", check_inputs.revisions),
    "A07": ("source, licence, availability of data", check_inputs.licences),
    "A08": ("seeds and number of runs", check_runs.seeds),
    "A09": ("configuration saved with the checkpoint", check_runs.configuration),
    "A10": ("deviations from the paper", check_inputs.deviations),
    "A11": ("wall time, hours, peak memory", check_dag.costs),
    "A12": ("raw predictions give the metrics", check_numbers.predictions),
    "A13": ("status of claims follows from numbers and tolerance", check_numbers.claims),
    "A14": ("no untracked outputs", check_dag.orphans),
    "A15": ("small run on a CPU", check_dag.small_run),
    "A16": ("no test item in the training data", check_inputs.contamination),
}
PER_RUN = ("A03", "A04", "A08", "A09", "A11", "A12")  # checked for every run of the experiment
SHOWN = 3  # faults of a check on the terminal; the JSON file has all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm audit`."""
    parser.add_argument("--config", type=Path, default=Path("config/embedded.yaml"), help="experiment (%(default)s)")
    parser.add_argument(
        "--out", type=file_to_write, default=Path("results/audit.json"), help="file to write (%(default)s)"
    )
    parser.add_argument("--pictures", action="store_true", help="score generated pictures again, with judge and CLIP")


def main(args: argparse.Namespace) -> None:
    """Run all checks, print a line for each and write all results to a file; exit with 1 if a check fails."""
    root = Path()
    if not (root / "workflow/Snakefile").is_file():
        raise AuditProblem(f"{root.resolve()} has no workflow/Snakefile: run the audit in the root of a checkout")
    audited = AuditedRun(lineage.Run.at(root, args.config))
    results = {}
    for id_, result in audit(audited, pictures=args.pictures):
        print("\n".join(lines(id_, result)), flush=True)
        results[id_] = result
    with new_file(args.out) as file:
        content = as_json(audited, results)
        file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    counts = content["counts"]
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()) + f"; details in {args.out}")
    if counts["fail"]:
        sys.exit(1)


def audit(audited: AuditedRun, *, pictures: bool = False) -> Any:
    """Yield the id and the result of every check; a check that cannot be carried out fails with the reason."""
    for id_, (_, check) in CHECKS.items():
        if id_ == "A12":
            check = partial(check_numbers.predictions, pictures=pictures)
        try:
            if id_ in PER_RUN:
                yield id_, merge_runs({run.run.name: check(run) for run in audited.runs})
            else:
                yield id_, check(audited)
        except ValueError as problem:
            if not type(problem).__module__.startswith("dreamllm."):
                raise  # a bug of the audit
            yield id_, pass_or_fail([Fault(str(problem), "", "correct the file that the message names")], "")


def lines(id_: str, result: CheckResult) -> list[str]:
    """A result for the terminal: one line, and the first faults with file and fix."""
    words = {"pass": "pass", "fail": "FAIL", "not applicable": "n/a "}[result.outcome]
    text = [f"{id_} {words} {CHECKS[id_][0]}: {result.reason}"]
    for fault in result.faults[:SHOWN]:
        text.append(f"         {fault.file + ': ' if fault.file else ''}{fault.what}; fix: {fault.fix}")
    if len(result.faults) > SHOWN:
        text.append(f"         and {len(result.faults) - SHOWN} more")
    return text


def as_json(audited: AuditedRun, results: dict[str, CheckResult]) -> dict[str, Any]:
    """The audit as JSON."""
    outcomes = [result.outcome for result in results.values()]
    return {
        "experiment": audited.run.experiment.name,
        "runs": list(audited.run.runs),
        "config": audited.run.config,
        "commit": (audited.run.git("rev-parse", "HEAD") or "").strip() or None,
        "environment": audited.run.digest(lineage.ENVIRONMENT),
        "counts": {name: outcomes.count(name) for name in ("pass", "fail", "not applicable")},
        "checks": {id_: {"title": CHECKS[id_][0]} | asdict(result) for id_, result in results.items()},
    }
