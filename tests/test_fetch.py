"""Foundations are fetched from the DVC store exactly as they were pushed, or not at all."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dreamllm.digests import digest, md5
from dreamllm.emoji.foundations.fetch import StoreProblem, fetch

FILES = {
    "llm/config.json": b"{}",
    "llm/model.safetensors": b"weights",
    "sd/unet/model.safetensors": b"weights",
    "sd-x/file": b"sorts between sd and sd/",
    "clip/a": b"",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("made")
    for name, content in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


@pytest.fixture(scope="module")
def store(tmp_path_factory, folder) -> Path:
    """A store as `dvc push` writes it."""
    work, remote = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("store")
    shutil.copytree(folder, work / "made")
    for command in (
        ["init", "--no-scm", "--quiet"],
        ["config", "core.analytics", "false"],
        ["remote", "add", "--default", "--quiet", "store", str(remote)],
        ["add", "--quiet", "made"],
        ["push", "--quiet"],
    ):
        subprocess.run([sys.executable, "-m", "dvc", *command], cwd=work, check=True)
    return remote


def test_what_dvc_pushes_is_fetched(store, folder, tmp_path):
    fetch(store, md5(folder), digest(folder), tmp_path / "out")
    out = tmp_path / "out"
    found = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert found == FILES


def test_what_was_there_is_replaced_and_other_folders_stay(store, folder, tmp_path):
    for name in ("llm/old", "vae/mine"):
        path = tmp_path / "out" / name
        path.parent.mkdir(parents=True)
        path.touch()
    fetch(store, md5(folder), digest(folder), tmp_path / "out")
    assert not (tmp_path / "out/llm/old").exists()
    assert (tmp_path / "out/vae/mine").exists()


def test_a_wrong_digest_is_an_error_and_nothing_is_written(store, folder, tmp_path):
    with pytest.raises(StoreProblem, match=f"has sha256 {digest(folder)}, the configuration says 0000"):
        fetch(store, md5(folder), "0" * 64, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_corrupt_store_is_an_error(store, folder, tmp_path):
    corrupt = tmp_path / "corrupt"
    shutil.copytree(store, corrupt)
    victim = next(path for path in corrupt.rglob("*") if path.is_file() and path.read_bytes() == b"weights")
    victim.chmod(0o644)
    victim.write_bytes(b"weightz")
    with pytest.raises(StoreProblem, match="sha256"):
        fetch(corrupt, md5(folder), digest(folder), tmp_path / "out")


def test_marks_of_snakemake_are_not_content(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "llm/.snakemake_timestamp").touch()
    assert (md5(copy), digest(copy)) == (md5(folder), digest(folder))


def test_a_missing_object_is_named(store, folder, tmp_path):
    with pytest.raises(StoreProblem, match="not in the store"):
        fetch(store, "f" * 32 + ".dir", "0" * 64, tmp_path / "out")
