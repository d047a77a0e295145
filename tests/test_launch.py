"""workflow/launch.sh with stubs for the programs it starts; test_scale.py and test_slurm.py start the real ones."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import repository

VARIABLES = ("SLURM_JOB_ID", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")  # what the tests' own surroundings may set


def start(arguments: list, path: Path | None = None, **environment) -> subprocess.Popen:
    """workflow/launch.sh with the tests' Python, and the programs of `path`, first on the path."""
    first = [str(path)] if path else []
    variables = {key: value for key, value in os.environ.items() if key not in VARIABLES} | environment
    variables["PATH"] = os.pathsep.join([*first, str(Path(sys.executable).parent), os.environ["PATH"]])
    command = ["bash", repository.ROOT / "workflow" / "launch.sh", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(list(map(str, command)), text=True, env=variables, **pipes)


def launch(arguments: list, path: Path | None = None, **environment) -> subprocess.CompletedProcess:
    """The same, to its end."""
    with start(arguments, path, **environment) as process:
        out, error = process.communicate(timeout=300)
    return subprocess.CompletedProcess(arguments, process.returncode, out, error)


def write_programs(folder: Path, **programs: str) -> None:
    """Shell scripts by name, `_` for `-`."""
    for name, body in programs.items():
        path = folder / name.replace("_", "-")
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_one_process_is_the_program_itself(tmp_path):
    write_programs(tmp_path, python='printf "%s\\n" "$OMP_NUM_THREADS" "$@"')
    result = launch([1, 1, "predict", "--out", "a b"], tmp_path, OMP_NUM_THREADS="6", SLURM_JOB_ID="1")
    assert result.stdout.splitlines() == ["6", "-m", "dreamllm", "predict", "--out", "a b"]
    job = ["--job", "logs/run/job.log"]
    result = launch([1, 1, *job, "predict"], tmp_path, SLURM_JOB_ID="1")
    assert result.stdout.splitlines()[1:] == ["-m", "dreamllm", *job, "predict"], "it measures itself"


def test_the_threads_of_a_job_are_shared_out_to_its_processes(tmp_path):
    write_programs(tmp_path, accelerate='echo "$OMP_NUM_THREADS"')
    for threads, each in (("9", "4"), ("1", "1"), ("0", "1")):
        assert launch([1, 2, "train"], tmp_path, OMP_NUM_THREADS=threads, SLURM_JOB_ID="1").stdout.strip() == each


def test_on_several_nodes_slurm_starts_the_launchers(tmp_path):
    write_programs(
        tmp_path,
        scontrol="""[[ $2 = hostnames ]] && printf 'node7\\nnode8\\n' || echo "Name=$4 NodeAddr=10.0.0.7 Port=6818" """,
        srun="""echo "$*" > "$SEEN"
            while [[ $1 != bash ]]; do shift; done; SLURM_JOB_NODELIST="node[7-8]" SLURM_PROCID=1 "$@" """,
        accelerate='printf "%s\\n" "$@"',
    )
    arguments = [2, 8, "train", "--config", "a b.yaml"]
    # the job's number is all that Snakemake's plugin leaves of Slurm's variables to a job that starts its own tasks
    job = {"SLURM_JOB_ID": "41234", "OMP_NUM_THREADS": "16", "SEEN": str(tmp_path / "seen")}
    result = launch(arguments, tmp_path, **job)
    words = result.stdout.splitlines()
    options = dict(zip(words[1::2], words[2::2], strict=False))
    assert options["--num_machines"] == "2" and options["--num_processes"] == "16" and options["--machine_rank"] == "1"
    assert options["--main_process_ip"] == "10.0.0.7" and options["--main_process_port"] == "25234"
    assert words[-5:] == ["--module", "dreamllm", "train", "--config", "a b.yaml"], result.stderr
    assert "--nodes 2 --ntasks 2 --ntasks-per-node 1 --cpus-per-task 16 " in (tmp_path / "seen").read_text()
    result = launch(arguments, tmp_path)
    assert result.returncode != 0 and "needs a Slurm job" in result.stderr


def test_jobs_on_one_machine_take_different_gpus(tmp_path):
    """Of 3 GPUs one job takes 2 and another 1; a third one that wants 2 waits until the first has ended."""
    body = """name=${@: -1}; echo "$CUDA_VISIBLE_DEVICES" > $name.new; mv $name.new $name
        until [[ -e $name.end ]]; do sleep 0.1; done"""
    write_programs(tmp_path, nvidia_smi="printf '0\\n1\\n2\\n'", accelerate=body, python=body)
    files = [tmp_path / f"job{number}" for number in range(3)]
    jobs = []
    for gpus, file in zip((2, 1, 2), files, strict=True):
        jobs.append(start([1, gpus, "train", file], tmp_path, TMPDIR=str(tmp_path)))
        if gpus == 1 or not jobs[1:]:
            until(file.exists)
    assert [file.read_text().strip() for file in files[:2]] == ["0,1", "2"]
    time.sleep(0.5)
    assert not files[2].exists() and jobs[2].poll() is None
    (tmp_path / "job0.end").touch()
    until(files[2].exists)
    assert files[2].read_text().strip() == "0,1"
    for number, job in enumerate(jobs):
        (tmp_path / f"job{number}.end").touch()
        assert job.communicate(timeout=60) == ("", "") and job.returncode == 0


def test_jobs_that_may_share_a_gpu_fill_it_and_one_that_may_not_waits_for_an_empty_one(tmp_path):
    """Two jobs on each of two GPUs, the empty one first; a third pair of processes has to be of different GPUs."""
    body = """name=${@: -1}; echo "$CUDA_VISIBLE_DEVICES" > $name.new; mv $name.new $name
        until [[ -e $name.end ]]; do sleep 0.1; done"""
    write_programs(tmp_path, nvidia_smi="printf '0\\n1\\n'", python=body, accelerate=body)
    jobs = {}

    def begin(name: str, gpus: int, sharing: int) -> None:
        surroundings = {"TMPDIR": str(tmp_path), "JOBS_PER_GPU": str(sharing)}
        jobs[name] = start([1, gpus, "train", tmp_path / name], tmp_path, **surroundings)

    def gpus_of(name: str) -> str:
        until((tmp_path / name).exists)
        return (tmp_path / name).read_text().strip()

    def end(*names: str) -> None:
        for name in names:
            (tmp_path / f"{name}.end").touch()
            assert jobs[name].communicate(timeout=60) == ("", "") and jobs[name].returncode == 0

    for name, taken in (("a", "0"), ("b", "1"), ("c", "0"), ("d", "1")):
        begin(name, 1, sharing=2)
        assert gpus_of(name) == taken
    begin("alone", 1, sharing=1)
    end("a")
    begin("e", 1, sharing=2)
    assert gpus_of("e") == "0"
    time.sleep(0.5)
    assert jobs["alone"].poll() is None and not (tmp_path / "alone").exists()
    end("b", "d")
    assert gpus_of("alone") == "1"
    begin("both", 2, sharing=2)  # of GPU 0 there is no place, of GPU 1 none for others
    end("c", "e")
    time.sleep(0.5)
    assert not (tmp_path / "both").exists()
    end("alone")
    assert gpus_of("both") == "0,1"
    begin("f", 2, sharing=2)
    assert gpus_of("f") == "0,1"
    end("both", "f")


def test_gpus_are_those_that_may_be_seen_and_too_few_are_refused(tmp_path):
    write_programs(tmp_path, python='echo "$CUDA_VISIBLE_DEVICES"', nvidia_smi="exit 1")
    seen = {"CUDA_VISIBLE_DEVICES": "5,7", "TMPDIR": str(tmp_path)}
    assert launch([1, 1, "predict"], tmp_path, **seen).stdout.strip() == "5"
    result = launch([1, 4, "train"], tmp_path, **seen)
    assert result.returncode == 1 and "machine.gpus is 4, but here are 2: 5 7" in result.stderr


def test_slurm_gives_a_job_its_gpus_and_nothing_is_locked(tmp_path):
    write_programs(tmp_path, accelerate='echo "$CUDA_VISIBLE_DEVICES"')
    seen = {"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_JOB_ID": "7", "TMPDIR": str(tmp_path)}
    assert launch([1, 2, "train"], tmp_path, **seen).stdout.strip() == "0,1"
    assert not list(tmp_path.glob("*.lock"))
