"""What a newcomer types exists, and every list of versions says the same."""

import re
import tomllib
from pathlib import Path

import yaml

from dreamllm.cli import VERBS

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("*/README.md"))]
MADE = ("results/", "data/emoji", "data/foundations", "data/mine", "data/store", "scratch/", "logs/", "benchmarks/")
MADE += ("data/released",)
MADE += ("data/raw", "data/sources/", "data/benchmarks", "data/by_hand", "data/human", "data/inception")
MADE += (".venv", ".snakemake", "config/mine.yaml")


def test_versions_are_exact_and_equal_everywhere():
    assert all("==" in pin for pin in PINS)
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    assert next(entry for entry in conda if isinstance(entry, dict))["pip"] == PINS
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    for pin in PINS:
        locked = re.sub(r"\[.*]", "", pin)  # the lock lists what an extra needs by itself
        assert pin.startswith("torch==") or f"\n{locked} \\" in lock, f"{pin}: make lock"


def test_the_lock_has_hashes_for_everything_but_torch():
    entries = re.findall(r"(?m)^([\w.-]+)==\S+((?: \\\n    --hash=sha256:[0-9a-f]{64})+)", lock := lock_text())
    assert len(entries) == len(re.findall(r"(?m)^[\w.-]+==", lock))
    assert "torch" not in {name for name, _ in entries}
    assert not [name for name, _ in entries if name.startswith("nvidia")]


def lock_text() -> str:
    return (ROOT / "requirements.lock").read_text(encoding="utf-8")


def test_make_targets_in_the_pages_exist():
    targets = set(re.findall(r"(?m)^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8")))
    for page in PAGES:
        for target in re.findall(r"(?:`|^    )make ([a-z]+)\b", page.read_text(encoding="utf-8"), re.MULTILINE):
            assert target in targets, f"{page.name}: make {target}"


def test_verbs_in_the_pages_exist():
    for page in PAGES:
        for verb in re.findall(r"(?:`|^    )dreamllm ([a-z-]+)\b", page.read_text(encoding="utf-8"), re.MULTILINE):
            assert verb in VERBS, f"{page.name}: dreamllm {verb}"


def test_files_in_the_pages_exist():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        paths = re.findall(r"`((?:src|config|workflow|docs|tests|paper|data)/[\w./-]+)`", text)
        links = [link for link in re.findall(r"\]\(([\w./-]+)\)", text) if "://" not in link]
        for path in [*paths, *links]:
            if not path.startswith(MADE):
                assert (ROOT / path).exists() or (page.parent / path).exists(), f"{page.name}: {path}"


def test_the_pictures_are_credited():
    for name in ("README.md", "NOTICE"):
        assert "All emojis designed by OpenMoji" in " ".join((ROOT / name).read_text(encoding="utf-8").split())
