"""Replaces `python -m dreamllm` in tests of the workflow.

Every verb writes its outputs, with a digest of its flags and input files, and adds its name to logs/ran.txt. Only
`fetch-foundations` is the real one.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path


def digest(path: Path) -> str:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    content = [f.read_bytes() for f in files if f.name != ".snakemake_timestamp"]
    return hashlib.sha256(b"".join(content)).hexdigest()


def main() -> None:
    verb, *flags = sys.argv[3:] if sys.argv[1] == "--job" else sys.argv[1:]
    if "--describe" not in flags:
        Path("logs").mkdir(exist_ok=True)
        with Path("logs/ran.txt").open("a") as ran:
            ran.write(f"{verb}\n")
    if verb == "fetch-foundations":
        from dreamllm.emoji.foundations import fetch

        parser = argparse.ArgumentParser()
        fetch.add_arguments(parser)
        return fetch.main(parser.parse_args(flags))

    values: dict[str, list[str]] = {}
    for flag in flags:
        if flag.startswith("--"):
            values[flag] = current = []
        else:
            current.append(flag)
    ignored = {"--config", "--work", "--out", "--summary"} | ({"--items"} if verb == "score" else set())
    given = {
        flag: [digest(Path(v)) if Path(v).exists() else v for v in values[flag]]
        for flag in values
        if flag not in ignored
    }
    seal = hashlib.sha256(json.dumps([verb, given], sort_keys=True).encode()).hexdigest()

    out = Path(values["--out"][0])
    files = {
        "make-world": ["train/pairs-00000.tar", "benchmarks/captions_test.json"],
        "train-foundation": ["model.safetensors"],
        "train": ["trained.safetensors", "losses.csv"],
        "finetune-sd": ["trained.safetensors", "losses.csv"],
        "tables": ["table1.csv"],
        "figures": ["learning_curves.png"],
    }
    also = [Path(values["--items"][0])] if verb == "score" else []
    if verb == "tables":
        losses = [f"losses/{value.partition('=')[0]}.csv" for value in values["--losses"]]
        also += [Path(values["--summary"][0]) / name for name in ("metrics.json", *losses)]
    for path in [*(out / name for name in files[verb]), *also] if verb in files else [out, *also]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"seal": seal}))
    return None


main()
