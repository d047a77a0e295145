"""Failures around a run: full and read-only disks, two runs at once, a clock that jumps. docs/reliability.md.

Cut lines are in test_fetch_sources.py, killed trainings in test_train.py, kills of everything in benchmarks/soak.py.
"""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from webdataset import TarWriter

import repository
from dreamllm import cli
from dreamllm.atomic import new_file, new_folder
from dreamllm.evaluate.image_predictions import ImageFolder
from dreamllm.train import checkpoint
from dreamllm.train.resume import FolderInUse, locked
from repository import planned, run

SMOKE = str(repository.ROOT / "config/smoke.yaml")
TO_DATA = ("snakemake", "--cores", "1", "data")


@pytest.fixture
def mounted(tmp_path):
    """Make a file system of its own on a folder; skips where that is not allowed."""
    made = []

    def mount(name: str, options: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        try:
            if subprocess.run(command, check=False, capture_output=True).returncode:
                pytest.skip("file systems cannot be mounted here (needs root)")
        except FileNotFoundError:
            pytest.skip("there is no mount command here")
        made.append(folder)
        return folder

    yield mount
    for folder in made:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remains(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def make_world(out: Path) -> str:
    """What `dreamllm make-world` says when it fails."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(["make-world", "--config", SMOKE, "--out", str(out)])
    return str(stopped.value)


def test_a_full_disk_is_told_and_leaves_nothing_half_written(mounted):
    disk = mounted("disk", "size=64k")
    assert "No space left on device" in (said := make_world(disk / "world"))
    assert "make room or give access, and run the same command again" in said
    assert not [name for name in remains(disk) if name != "world"]


def test_a_read_only_folder_is_told(mounted):
    disk = mounted("disk", "ro")
    assert "Read-only file system" in make_world(disk / "world")


def test_a_file_that_grows_too_big_is_told_and_leaves_nothing_half_written(tmp_path):
    """The same on any machine: a limit of the size of files instead of a full disk."""

    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    command = [sys.executable, "-m", "dreamllm", "make-world", "--config", SMOKE, "--out", str(tmp_path / "world")]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(
        command, check=False, preexec_fn=small_files, capture_output=True, text=True, env=environment
    )
    assert result.returncode == 1
    assert "File too large" in result.stderr and "Traceback" not in result.stderr
    assert not [name for name in remains(tmp_path) if name != "world"]


@pytest.mark.parametrize("writer", [new_file, new_folder])
def test_the_former_result_stays_when_the_new_one_fails(tmp_path, writer):
    def write(path: Path, text: str) -> None:
        (path / "part" if writer is new_folder else path).write_text(text)

    with writer(tmp_path / "result") as temporary:
        write(temporary, "former")
    with pytest.raises(OSError), writer(tmp_path / "result") as temporary:
        write(temporary, "half of the n")
        raise OSError(28, "No space left on device")
    kept = tmp_path / "result/part" if writer is new_folder else tmp_path / "result"
    assert kept.read_text() == "former"
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {kept}


# ---- what libraries write ------------------------------------------------------------------------------------------


def write_png(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (700, 700, 3), np.uint8)).save(path, "png")


def write_tar(path: Path) -> None:
    with path.open("wb") as file, TarWriter(file, encoder=False) as tar:
        tar.write({"__key__": "0", "bin": bytes(1 << 20)})


def write_tokenizer(path: Path) -> None:
    Tokenizer(models.WordLevel({str(number): number for number in range(50_000)}, "0")).save(str(path))


LARGE = torch.zeros(1 << 18)  # 1 MiB
WRITERS = {
    "safetensors": lambda path: save_file({"a": LARGE}, path),
    "torch": lambda path: torch.save(LARGE, path),
    "numpy": lambda path: np.save(path.open("wb"), LARGE.numpy()),
    "parquet": lambda path: pd.DataFrame({"a": np.random.default_rng(0).random(1 << 17)}).to_parquet(path),
    "png": write_png,
    "tar": write_tar,
    "tokenizer": write_tokenizer,
}


@pytest.mark.parametrize("place", [".", "..", "home", "repository"])
def test_a_folder_that_holds_more_than_results_is_never_replaced(place, tmp_path, monkeypatch):
    for name in ("home/inside", "repository/.git"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home/inside"))
    monkeypatch.chdir(tmp_path / "repository")
    name = place if place.startswith(".") else tmp_path / place
    with pytest.raises(FileExistsError, match="name a folder for the output alone"), new_folder(name) as folder:
        (folder / "part").write_text("new")
    assert (tmp_path / "home/inside").is_dir() and (tmp_path / "repository/.git").is_dir()


@pytest.mark.parametrize("place", [new_file, new_folder])
@pytest.mark.parametrize("library", WRITERS)
def test_a_full_disk_is_one_error_whichever_library_writes(mounted, library, place):
    disk = mounted("disk", "size=256k")
    with pytest.raises(OSError) as raised, place(disk / "out") as temporary:
        WRITERS[library](temporary / "part" if place is new_folder else temporary)
    assert raised.value.errno == errno.ENOSPC
    assert not remains(disk)


def test_a_full_disk_is_one_line_when_a_checkpoint_is_saved(mounted, monkeypatch):
    disk = mounted("disk", "size=256k")
    verb = ModuleType("saving", "A verb that saves a checkpoint.")
    verb.add_arguments = lambda parser: None
    verb.main = lambda arguments: checkpoint.save_trained(disk / "sft", {"a": LARGE}, {}, "step\n")
    monkeypatch.setitem(sys.modules, "saving", verb)
    monkeypatch.setitem(cli.VERBS, "train", ("saving", ""))
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train"])
    assert str(stopped.value).startswith("dreamllm train: cannot write or read: [Errno 28] No space left on device: '")
    assert not remains(disk)


def test_another_error_while_writing_stays_what_it_is(tmp_path):
    for error in (ValueError("No space left on device"), RuntimeError("shapes differ"), KeyError("x")):
        with pytest.raises(type(error)) as raised, new_file(tmp_path / "out"):
            raise error
        assert raised.value is error


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
def test_files_have_the_permissions_of_the_umask_whoever_wrote_them(tmp_path, umask):
    """safetensors makes its files readable by their owner only."""
    before = os.umask(umask)
    try:
        with new_file(tmp_path / "file") as file:
            save_file({"a": LARGE}, file)
        with new_folder(tmp_path / "folder") as folder:
            (folder / "unet").mkdir()
            save_file({"a": LARGE}, folder / "unet" / "weights")
            save_file({"a": LARGE}, folder / "weights")
            (folder / "text").write_text("")
    finally:
        os.umask(before)
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask, path


def test_links_in_a_folder_leave_the_files_behind_them_as_they_are(tmp_path):
    (tmp_path / "raw").write_text("")
    (tmp_path / "raw").chmod(0o440)
    with new_folder(tmp_path / "folder") as folder:
        os.link(tmp_path / "raw", folder / "hard")
        (folder / "soft").symlink_to(tmp_path / "raw")
    assert (tmp_path / "raw").stat().st_mode & 0o777 == 0o440


@pytest.mark.parametrize("place", [new_file, new_folder])
def test_contents_are_on_the_disk_before_they_get_their_name_and_the_name_after_it(tmp_path, monkeypatch, place):
    """Otherwise a power cut can leave an empty file under the final name."""
    events: list[tuple[str, int]] = []
    fsync, replace = os.fsync, Path.replace

    def logged_fsync(number: int) -> None:
        events.append(("flush", os.fstat(number).st_ino))
        fsync(number)

    def logged_replace(path: Path, target: Path) -> Path:
        events.append(("rename", path.stat().st_ino))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(Path, "replace", logged_replace)
    with place(tmp_path / "out") as temporary:
        for path in [temporary] if place is new_file else [temporary / "a", temporary / "b"]:
            path.write_text("x")
    out = tmp_path / "out"
    contents = {path.stat().st_ino for path in (out, *out.rglob("*"))}
    renamed = events.index(("rename", out.stat().st_ino))
    assert {inode for _, inode in events[:renamed]} == contents
    assert events[renamed + 1 :] == [("flush", tmp_path.stat().st_ino)]


def test_a_stored_image_that_a_power_cut_has_damaged_is_generated_again(tmp_path):
    images = ImageFolder(tmp_path, {})
    images.add("a.png", Image.new("RGB", (8, 8)))
    assert "a.png" in images and "b.png" not in images
    (images.folder / "a.png").write_bytes((images.folder / "a.png").read_bytes()[:40])
    assert "a.png" not in images
    (images.folder / "a.png").write_bytes(b"")
    assert "a.png" not in images


def test_two_trainings_never_share_a_work_folder(tmp_path):
    with (
        locked(tmp_path),
        pytest.raises(FolderInUse, match="another training is running in this folder"),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):  # free again
        pass


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    return repository.copy_with_stub_verbs(tmp_path_factory.mktemp("reliability") / "checkout")


@pytest.fixture
def begun(checkout):
    """Start Snakemake in a process group of its own; its job `make-world` waits until there is a file `go`."""
    standin = checkout / "src/dreamllm/__main__.py"
    text = standin.read_text()
    wait = "import pathlib, time\nwhile not pathlib.Path('go').exists():\n    time.sleep(0.1)\n"
    standin.write_text(text.replace("\nmain()\n", "\n" + wait + "main()\n"))
    environment = os.environ | {"PYTHONPATH": str(checkout / "src")}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    processes = []

    def begin() -> subprocess.Popen:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
        processes.append(subprocess.Popen(TO_DATA, cwd=checkout, env=environment, **quiet))
        deadline = time.monotonic() + 240
        while not list((checkout / ".snakemake/incomplete").glob("*")):
            assert processes[-1].poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        return processes[-1]

    yield begin
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    standin.write_text(text)
    (checkout / "go").unlink(missing_ok=True)
    shutil.rmtree(checkout / "data/emoji", ignore_errors=True)


def test_a_second_run_is_refused_and_the_first_one_finishes(checkout, begun):
    """Also after the first one was killed: then `--unlock` and the same command again."""
    first = begun()
    second = run(checkout, *TO_DATA, check=False)
    assert second.returncode != 0
    assert "cannot be locked" in second.stdout and "--unlock" in second.stdout
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert "cannot be locked" in run(checkout, *TO_DATA, check=False).stdout
    assert not (checkout / "data/emoji/train").exists()
    run(checkout, "snakemake", "--unlock")
    shutil.rmtree(checkout / ".snakemake/incomplete")
    third = begun()
    (checkout / "go").touch()
    assert third.wait(timeout=240) == 0
    assert (checkout / "data/emoji/train/pairs-00000.tar").exists()


def test_sigterm_lets_snakemake_finish_the_running_jobs_and_give_the_lock_back(checkout, begun):
    first = begun()
    time.sleep(1)
    first.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        first.wait(timeout=3)
    (checkout / "go").touch()
    first.wait(timeout=240)
    assert (checkout / "data/emoji/train/pairs-00000.tar").exists()
    assert planned(checkout, "data") == {}, "no lock is left"


def test_a_clock_that_was_ahead_costs_time_but_no_result(checkout):
    """Outputs of the future are newer than all that was made of them, so that is made again, from the same inputs."""
    run(checkout, "snakemake", "--cores", "2", "results/tables")
    before = {path: path.read_bytes() for path in (checkout / "results").rglob("*") if path.is_file()}
    ahead = time.time() + 3600
    world = checkout / "data/emoji/benchmarks"
    for path in (world, *world.rglob("*"), world / ".snakemake_timestamp"):
        os.utime(path, (ahead, ahead))
    jobs = planned(checkout, "results/tables")
    assert jobs and not [rule for rule in jobs if rule.startswith("train")]
    run(checkout, "snakemake", "--touch", "--forceall", "--cores", "2", "results/tables")  # as the page says
    assert planned(checkout, "results/tables") == {}
    assert {path: path.read_bytes() for path in before} == before


def test_times_of_day_decide_nothing():
    """The code asks the clock only for how long something took, which a jump does not change."""
    for path in (repository.ROOT / "src").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "time.time(" not in text and "datetime.now" not in text and "utcnow" not in text, path
