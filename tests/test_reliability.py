"""Failures around a run: full and read-only disks, two runs at once, a clock that jumps. docs/reliability.md.

Cut lines are in test_fetch_sources.py, killed trainings in test_train.py, kills of everything in benchmarks/soak.py.
"""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import repository
from dreamllm import cli
from dreamllm.atomic import new_file, new_folder
from dreamllm.train.resume import FolderInUse, locked
from repository import planned, run

SMOKE = str(repository.ROOT / "config/smoke.yaml")


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


def test_a_second_run_is_refused_and_the_first_one_finishes(checkout):
    """Also after the first one was killed: then `--unlock` and the same command again."""
    standin = checkout / "src/dreamllm/__main__.py"
    text = standin.read_text()
    wait = "import pathlib, time\nwhile not pathlib.Path('go').exists():\n    time.sleep(0.1)\n"
    standin.write_text(text.replace("\nmain()\n", "\n" + wait + "main()\n"))
    environment = os.environ | {"PYTHONPATH": str(checkout / "src")}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = ["snakemake", "--cores", "1", "data"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}

    def begin() -> subprocess.Popen:
        process = subprocess.Popen(command, cwd=checkout, env=environment, **quiet)
        deadline = time.monotonic() + 240
        while not list((checkout / ".snakemake/incomplete").glob("*")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        return process

    first = begin()
    second = run(checkout, *command, check=False)
    assert second.returncode != 0
    assert "cannot be locked" in second.stdout and "--unlock" in second.stdout
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert "cannot be locked" in run(checkout, *command, check=False).stdout
    assert not (checkout / "data/emoji/train").exists()
    run(checkout, "snakemake", "--unlock")
    third = subprocess.Popen(command, cwd=checkout, env=environment, **quiet)
    (checkout / "go").touch()
    assert third.wait(timeout=240) == 0
    standin.write_text(text)
    assert (checkout / "data/emoji/train/pairs-00000.tar").exists()


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
