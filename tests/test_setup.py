"""Every list of versions says the same, and the licence of the pictures is told."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]


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


def test_the_pictures_are_credited():
    for name in ("README.md", "NOTICE"):
        assert "All emojis designed by OpenMoji" in " ".join((ROOT / name).read_text(encoding="utf-8").split())
