"""The study in git, results/study: its files and the raw answers behind them have the digests recorded with them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from dreamllm.digests import content_files, sha256_of_file
from dreamllm.repro.audit.findings import Fault

STUDY = Path("results/study")


def results(folder: Path) -> dict[str, str]:
    """sha256 of each file in metrics/ and items/, by its path in the study's folder."""
    files = [file for part in ("items", "metrics") for file in content_files(folder / part)]
    return {file.relative_to(folder).as_posix(): sha256_of_file(file) for file in files}


def answers(folder: Path) -> dict[str, str]:
    """sha256 of the raw predictions behind each metric, as the metrics name them, by path.

    Raises ValueError or KeyError for a malformed metrics file.
    """
    found = {}
    for file in content_files(folder / "metrics"):
        content = json.loads(file.read_text(encoding="utf-8"))
        run, model = file.relative_to(folder / "metrics").parts[:2]
        for name, digest in content["protocol"]["inputs"].items():
            if name.partition(".")[0] == content["benchmark"]:
                found[f"results/predictions/{run}/{model}/{name}"] = digest
    return found


def check(root: Path) -> Iterator[Fault]:
    """Faults of the study's files; none where there is no study."""
    folder, fix = root / STUDY, f"git checkout {STUDY}; after copying new results: python workflow/study_digests.py"
    if not (folder / "metrics").is_dir():
        return
    for name, now_of in (("results.sha256", results), ("answers.sha256", answers)):
        try:
            lines = (folder / name).read_text(encoding="utf-8").splitlines()
            then = {path: digest for digest, _, path in (line.partition("  ") for line in lines)}
            now = now_of(folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            yield Fault(f"cannot be compared with the study ({type(error).__name__}: {error})", f"{STUDY}/{name}", fix)
            continue
        for path in sorted(then.keys() | now.keys()):
            if now.get(path) != then.get(path):
                how = "is missing" if path not in now else "is not listed" if path not in then else "is another"
                file = f"{STUDY}/{path}" if now_of is results else path
                yield Fault(f"{how}, by {STUDY}/{name}", file, fix)
