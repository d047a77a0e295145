"""The audit: sixteen checks of what can be trusted, each pass, fail or not applicable: `dreamllm audit`.

    dreamllm audit                                  the default configuration; writes results/audit.json
    dreamllm audit --config config/mine.yaml        another experiment
    dreamllm audit --pictures                       also looks at drawn pictures again with judge and CLIP (minutes)

Every check computes from content what was written down when a result was made. Exit code 1 when one fails. What each
verifies is in docs/audit.md. Run it in the root of a checkout, in its environment.
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
from dreamllm.repro.audit import check_dag, check_inputs, check_numbers, check_runs, lineage
from dreamllm.repro.audit.evidence import Evidence
from dreamllm.repro.audit.findings import AuditProblem, Fault, Result, judged, merged

Check = Callable[[Evidence], Result]
CHECKS: dict[str, tuple[str, Check]] = {
    "A01": ("claims and cells lead to their numbers", check_numbers.tables),
    "A02": ("results have a command, and are up to date", check_dag.commands),
    "A03": ("commit and clean tree", check_runs.code),
    "A04": ("digests of inputs and outputs", check_runs.identity),
    "A05": ("environment as in the lock", check_inputs.environment),
    "A06": ("models pinned by revision or content", check_inputs.revisions),
    "A07": ("source, licence, availability of data", check_inputs.licences),
    "A08": ("seeds and number of runs", check_runs.seeds),
    "A09": ("configuration saved with the checkpoint", check_runs.configuration),
    "A10": ("deviations from the paper", check_inputs.deviations),
    "A11": ("wall time, hours, peak memory", check_dag.costs),
    "A12": ("raw predictions give the metrics", check_numbers.predictions),
    "A13": ("verdicts follow from numbers and tolerance", check_numbers.claims),
    "A14": ("no orphan outputs", check_dag.orphans),
    "A15": ("small run on a CPU", check_dag.small_run),
    "A16": ("no test item in the training data", check_inputs.contamination),
}
OF_A_RUN = ("A03", "A04", "A08", "A09", "A11", "A12")  # looked at in every run of the experiment
SHOWN = 3  # faults of a check that the terminal shows; the JSON file has all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dreamllm audit`."""
    parser.add_argument("--config", type=Path, default=Path("config/embedded.yaml"), help="experiment (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("results/audit.json"), help="file to write (%(default)s)")
    parser.add_argument("--pictures", action="store_true", help="look at drawn pictures again, with judge and CLIP")


def main(args: argparse.Namespace) -> None:
    """Run all checks, print a line for each, write them all to a file; exit code 1 when one of them fails."""
    root = Path()
    if not (root / "Snakefile").is_file():
        raise AuditProblem(f"{root.resolve()} has no Snakefile: run the audit in the root of a checkout")
    evidence = Evidence(lineage.Run.at(root, args.config))
    results = {}
    for id_, result in audit(evidence, pictures=args.pictures):
        print("\n".join(lines(id_, result)), flush=True)
        results[id_] = result
    with new_file(args.out) as file:
        content = as_json(evidence, results)
        file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    counts = content["counts"]
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()) + f"; all of it in {args.out}")
    if counts["fail"]:
        sys.exit(1)


def audit(evidence: Evidence, *, pictures: bool = False) -> Any:
    """Yield the id and the result of every check; one that cannot be carried out fails and says why."""
    for id_, (_, check) in CHECKS.items():
        if id_ == "A12":
            check = partial(check_numbers.predictions, pictures=pictures)
        try:
            if id_ in OF_A_RUN:
                yield id_, merged({run.run.name: check(run) for run in evidence.runs})
            else:
                yield id_, check(evidence)
        except ValueError as problem:
            if not type(problem).__module__.startswith("dreamllm."):
                raise  # a bug of the audit
            yield id_, judged([Fault(str(problem), "", "mend what the message names")], "")


def lines(id_: str, result: Result) -> list[str]:
    """A check for the terminal: one line, and for one that fails its first faults with file and fix."""
    words = {"pass": "pass", "fail": "FAIL", "not applicable": "n/a "}[result.outcome]
    text = [f"{id_} {words} {CHECKS[id_][0]}: {result.reason}"]
    for fault in result.faults[:SHOWN]:
        text.append(f"         {fault.file + ': ' if fault.file else ''}{fault.what}; fix: {fault.fix}")
    if len(result.faults) > SHOWN:
        text.append(f"         and {len(result.faults) - SHOWN} more")
    return text


def as_json(evidence: Evidence, results: dict[str, Result]) -> dict[str, Any]:
    """The audit for machines."""
    outcomes = [result.outcome for result in results.values()]
    return {
        "experiment": evidence.run.experiment.name,
        "runs": list(evidence.run.runs),
        "config": evidence.run.config,
        "commit": (evidence.run.git("rev-parse", "HEAD") or "").strip() or None,
        "environment": evidence.run.digest(lineage.ENVIRONMENT),
        "counts": {name: outcomes.count(name) for name in ("pass", "fail", "not applicable")},
        "checks": {id_: {"title": CHECKS[id_][0]} | asdict(result) for id_, result in results.items()},
    }
