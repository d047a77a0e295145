"""Copies of this repository, in which tests run the real Snakefile and dvc.yaml without touching the working tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

import foundation_card

ROOT = Path(__file__).parent.parent
CHECKED_OUT = ("Snakefile", "workflow", "profiles", "config", "paper", "src", "dvc.yaml", ".dvcignore", ".gitignore")
CHECKED_OUT += ("environment.yml", "pyproject.toml", "requirements.lock", "data/sources.yaml", "data/made.yaml")


def copy(folder: Path) -> Path:
    """Copy what the workflow needs into `folder`, without data, results and records."""
    for name in CHECKED_OUT:
        source = ROOT / name
        if source.is_dir() and not source.is_symlink():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(source, folder / name, ignore=ignored, symlinks=True)
        else:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, folder / name, follow_symlinks=False)
    (folder / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(ROOT / ".dvc" / name, folder / ".dvc" / name)
    return folder


def copy_with_stub_verbs(folder: Path) -> Path:
    """Copy the repository with the verbs of stub_verbs.py, and with stub foundations in its store and configuration."""
    copy(folder)
    shutil.copy(Path(__file__).parent / "stub_verbs.py", folder / "src/dreamllm/__main__.py")
    for part in ("llm", "clip", "sd/unet", "judge", "judge2"):
        (folder / "data/foundations" / part).mkdir(parents=True)
        (folder / "data/foundations" / part / "model.safetensors").write_text(part)
    foundation_card.write(folder / "data/foundations")
    described = run(folder, "python", "-m", "dreamllm", "fetch-foundations", "--describe", "data/foundations").stdout
    digests = yaml.safe_load(described)
    config = folder / "config/embedded.yaml"
    text = re.sub(r"(?m)^  md5: .*$", f"  md5: {digests['md5']}", config.read_text(encoding="utf-8"))
    config.write_text(re.sub(r"(?m)^  sha256: .*$", f'  sha256: "{digests["sha256"]}"', text), encoding="utf-8")
    run(folder, "git", "init", "--quiet")
    commit(folder)
    run(folder, "dvc", "commit", "--quiet", "--force", "foundations")
    run(folder, "dvc", "push", "--quiet", "foundations")
    commit(folder)
    shutil.rmtree(folder / "data/foundations")
    return folder


def clone(source: Path, folder: Path) -> Path:
    """Clone the repository in `source`, which brings what is committed only."""
    run(source, "git", "clone", "--quiet", str(source), str(folder))
    return folder


def commit(folder: Path) -> None:
    """Commit everything that git does not ignore."""
    run(folder, "git", "add", "--all")
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    run(folder, "git", *identity, "commit", "--quiet", "--allow-empty", "--message", "test")


def run(folder: Path, *command: str, check: bool = True) -> subprocess.CompletedProcess:
    """Run a command in a copy, with this environment's programs and the copy's code; its stderr goes to stdout.

    Raises AssertionError with the end of the output if the command fails, unless `check` is false.
    """
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "SNAKEMAKE", "DVC"))
    }
    environment |= {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(folder / "src"),
        "OMP_NUM_THREADS": "1",
        "DVC_NO_ANALYTICS": "1",
    }
    result = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert result.returncode == 0 or not check, f"{' '.join(command)}\n{result.stdout[-8000:]}"
    return result


def lint_findings(folder: Path, config: str) -> list[str]:
    """Findings of `snakemake --lint`, except that every rule should have an environment: here all rules share one."""
    output = run(folder, "snakemake", "--lint", "--configfile", config, check=False).stdout
    assert "Lints for" in output, output
    environment_per_rule = "* Specify a conda environment or container for each rule.:"
    return [line for line in output.splitlines() if re.match(r" +\* ", line) and line.strip() != environment_per_rule]


def planned(folder: Path, *arguments: str) -> dict[str, int]:
    """Number of jobs that Snakemake would run, by rule."""
    result = run(folder, "snakemake", "--dry-run", *arguments)
    stats = result.stdout.rpartition("Job stats:")[2].partition("total")[0]
    return {
        rule: int(count)
        for rule, count in re.findall(r"(?m)^(\w+) +(\d+)$", stats)
        if rule not in ("all", "tables_and_figures")
    }


def jobs(folder: Path, *arguments: str) -> list[tuple[str, list[str], list[str]]]:
    """All jobs of the DAG as (rule, inputs, outputs), finished or not."""
    result = run(folder, "snakemake", "--dry-run", "--forceall", *arguments)
    found = []
    for block in re.split(r"(?m)^(?=(?:local)?rule \w+:$)", result.stdout)[1:]:
        rule = re.match(r"(?:local)?rule (\w+):", block)[1]
        files = {key: re.search(rf"(?m)^    {key}: (.*)$", block) for key in ("input", "output")}
        found.append((rule, *(files[key][1].split(", ") if files[key] else [] for key in ("input", "output"))))
    return found
