"""Foundations are fetched from the DVC store exactly as they were pushed, or not at all."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import foundation_card
from dreamllm.config.world import Registers, World
from dreamllm.digests import content_files, digest, md5
from dreamllm.emoji.foundations.fetch import StoreProblem, fetch
from dreamllm.emoji.foundations.gates import GateProblem

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
    foundation_card.write(root)
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
    fetch(store, md5(folder), digest(folder), World(), tmp_path / "out")
    out = tmp_path / "out"
    found = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert found == FILES | {"card.json": (folder / "card.json").read_bytes()}


def test_what_was_there_is_replaced_and_other_folders_stay(store, folder, tmp_path):
    for name in ("llm/old", "vae/mine"):
        path = tmp_path / "out" / name
        path.parent.mkdir(parents=True)
        path.touch()
    fetch(store, md5(folder), digest(folder), World(), tmp_path / "out")
    assert not (tmp_path / "out/llm/old").exists()
    assert (tmp_path / "out/vae/mine").exists()


def test_a_wrong_digest_is_an_error_and_nothing_is_written(store, folder, tmp_path):
    with pytest.raises(StoreProblem, match=f"has sha256 {digest(folder)}, the configuration says 0000"):
        fetch(store, md5(folder), "0" * 64, World(), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_corrupt_store_is_an_error(store, folder, tmp_path):
    corrupt = tmp_path / "corrupt"
    shutil.copytree(store, corrupt)
    victim = next(path for path in corrupt.rglob("*") if path.is_file() and path.read_bytes() == b"weights")
    victim.chmod(0o644)
    victim.write_bytes(b"weightz")
    with pytest.raises(StoreProblem, match="sha256"):
        fetch(corrupt, md5(folder), digest(folder), World(), tmp_path / "out")


def test_marks_of_snakemake_are_not_content(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "llm/.snakemake_timestamp").touch()
    assert (md5(copy), digest(copy)) == (md5(folder), digest(folder))


def test_a_missing_object_is_named(store, folder, tmp_path):
    with pytest.raises(StoreProblem, match="not in the store"):
        fetch(store, "f" * 32 + ".dir", "0" * 64, World(), tmp_path / "out")


def put_in_store(folder: Path, store: Path) -> tuple[str, str]:
    """Put a folder into a store as `dvc push` does; returns its two digests."""
    listing = [{"md5": md5(file), "relpath": file.relative_to(folder).as_posix()} for file in content_files(folder)]
    for content, name in [
        *((file.read_bytes(), md5(file)) for file in content_files(folder)),
        (json.dumps(listing, sort_keys=True).encode(), md5(folder)),
    ]:
        path = store / "files/md5" / name[:2] / name[2:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return md5(folder), digest(folder)


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda card: card["clip"]["figures"].pop("probe_name"), "clip has no figure probe_name, whose gate is 0.95"),
        (lambda card: card["sd"]["figures"].update(ceiling_pair=0.9), "sd has ceiling_pair 0.900, below its gate 0.95"),
        (lambda card: card["judge"]["figures"].update(exact="1"), "judge has no figure exact"),
        (lambda card: card.pop("judge2"), "judge2 has no figure exact"),
        (lambda card: card["clip"]["language"]["words"].remove("kitten"), r"clip does not know 1 words .*\(kitten"),
        (lambda card: card["llm"].pop("language"), "is no card of foundations .KeyError"),
    ],
    ids=["no figure", "below its gate", "no number", "no part", "a word less", "no language"],
)
def test_foundations_whose_card_lacks_a_gate_or_the_worlds_words_are_not_fetched(folder, tmp_path, change, says):
    changed = tmp_path / "changed"
    shutil.copytree(folder, changed)
    card = json.loads((changed / "card.json").read_text())
    change(card)
    (changed / "card.json").write_text(json.dumps(card))
    digests = put_in_store(changed, tmp_path / "store")
    with pytest.raises(GateProblem, match=says) as raised:
        fetch(tmp_path / "store", *digests, World(), tmp_path / "out")
    assert "\n" not in str(raised.value) and not list((tmp_path / "out").iterdir())


def test_a_store_without_a_card_says_how_to_make_one(folder, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(folder, changed)
    (changed / "card.json").unlink()
    digests = put_in_store(changed, tmp_path / "store")
    with pytest.raises(GateProblem, match=r"has no card.json .* run `dreamllm measure-foundations`"):
        fetch(tmp_path / "store", *digests, World(), tmp_path / "out")


@pytest.mark.parametrize(
    "world, says",
    [
        (World(pictograms=20), "words of this world"),
        (World(registers=Registers(alt_text={"bag": 80, "caption": 0.1, "human": 20})), "clip was trained on texts of"),
        (World(registers=Registers(text={"caption": 1})), "llm was trained on texts of"),
    ],
    ids=["more objects", "other alt texts", "other texts"],
)
def test_foundations_of_another_worlds_language_are_not_fetched(store, folder, tmp_path, world, says):
    with pytest.raises(GateProblem, match=says):
        fetch(store, md5(folder), digest(folder), world, tmp_path / "out")
