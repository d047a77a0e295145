"""Lists of versions and of linters agree, a clone has the same bytes everywhere, and pictures are credited."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import yaml

import dreamllm

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINS = [*PROJECT["dependencies"], *EXTRAS["test"], *EXTRAS["demo"]]


def test_versions_are_exact_and_equal_everywhere():
    assert all("==" in pin for pin in PINS)
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == dreamllm.__version__
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


def test_the_hooks_before_a_commit_are_the_commands_of_make_lint():
    target = re.search(r"(?m)^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    assert [hook["entry"] for hook in hooks] == target[1].replace("\t", "").splitlines()


def test_a_clone_with_autocrlf_has_the_same_bytes(tmp_path):
    files = {
        "data/store/files/md5/00/11": b"a\r\nb\n",
        "weights.safetensors": b"a\nb\n",
        "picture.png": b"\x89PNG\r\n\n",
    }
    files |= {name: (ROOT / name).read_bytes() for name in ("requirements.lock", "dvc.lock", "paper/claims.yaml")}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    shutil.copy(ROOT / ".gitattributes", tmp_path)

    def git(*command: str) -> None:
        options = ("-c", "core.autocrlf=true", "-c", "user.name=test", "-c", "user.email=test@example.org")
        subprocess.run(["git", *options, *command], cwd=tmp_path, check=True)

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "files")
    for name in files:
        (tmp_path / name).unlink()
    git("checkout", "--quiet", "--", ".")
    assert {name: (tmp_path / name).read_bytes() for name in files} == files
