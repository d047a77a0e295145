"""The job server: the same bytes, exit status and death as a plain process; today's code; nobody else's jobs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import yaml

import repository
import test_predict
import test_train
from dreamllm import job_server

predict_world, train_world = test_predict.world, test_train.world
PYTHON = [sys.executable, "-m", "dreamllm"]


@pytest.fixture(scope="module")
def server():
    """Variables of a process whose jobs a server takes."""
    patch = pytest.MonkeyPatch()
    patch.delenv(job_server.VARIABLE, raising=False)
    patch.delenv("PYTEST_CURRENT_TEST", raising=False)
    job_server.start()
    yield dict(os.environ)
    job_server.stop()
    patch.undo()


@pytest.fixture
def package(tmp_path, server) -> Path:
    """A package `dreamllm` whose verb is the program main.py in the folder that is returned."""
    folder = tmp_path / "dreamllm"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    for name in ("_auto_classes.py", "_import_hooks.py", "job_server.py"):
        (folder / name).write_text((repository.ROOT / "src/dreamllm" / name).read_text())
    main = "import sys\nfrom dreamllm.job_server import hand_over\nhand_over(sys.argv[1:])\nimport dreamllm.verb\n"
    (folder / "__main__.py").write_text(main)
    return folder


def environment(package: Path, server: dict[str, str], **more: str) -> dict[str, str]:
    return server | {"PYTHONPATH": str(package.parent)} | more


def run(package: Path, server: dict[str, str], program: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    """Run the program as a verb of the package, on the server if the variables are its own."""
    (package / "verb.py").write_text(textwrap.dedent(program))
    variables = environment(package, server, **options.pop("variables", {}))
    command = [*PYTHON, *arguments]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False, **options)


def test_a_job_has_its_callers_folder_files_arguments_variables_and_mask(package, server, tmp_path):
    program = """
        import os, sys
        print(sys.argv[1:], os.getcwd(), oct(os.umask(0)), os.environ["TMPDIR"], sys.stdin.read(), os.getppid())
        print("an error", file=sys.stderr)
        print(sys.path[:2], "DREAMLLM_JOB_SERVER" in os.environ)
    """
    done = run(
        package, server, program, "a b", "", cwd=tmp_path, input="said", umask=0o027, variables={"TMPDIR": "/there"}
    )
    first, second = done.stdout.splitlines()
    assert first.startswith(f"['a b', ''] {tmp_path} 0o27 /there said ")
    assert int(first.split()[-1]) not in (0, os.getpid()), "it is a child of the server"
    assert second == f"{[str(tmp_path), str(tmp_path)]} False"
    assert (done.stderr, done.returncode) == ("an error\n", 0)


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("raise SystemExit", 0),
        ("raise SystemExit(3)", 3),
        ("raise SystemExit('one line')", 1),
        ("1 / 0", 1),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL),
        ("import os; os.kill(os.getpid(), 6)", -signal.SIGABRT),
        ("raise KeyboardInterrupt", -signal.SIGINT),
        ("import os; os._exit(7)", 7),
    ],
)
def test_the_caller_ends_as_the_job_does(package, server, program, status):
    forked = run(package, server, program)
    plain = run(package, server, program, variables={job_server.VARIABLE: ""})
    assert forked.returncode == plain.returncode == status
    assert forked.stderr.splitlines()[-1:] == plain.stderr.splitlines()[-1:]


def test_what_is_registered_for_the_exit_and_threads_are_not_lost(package, server):
    program = """
        import atexit, threading, time
        atexit.register(print, "at exit")
        threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
    """
    assert run(package, server, program).stdout == "thread\nat exit\n"


def test_an_edit_of_the_code_counts_for_the_next_job_and_libraries_are_there(package, server):
    program = "import sys; early = 'torch' in sys.modules; import dreamllm.other; print(dreamllm.other.VALUE, early)"
    for value in (1, 2):
        (package / "other.py").write_text(f"VALUE = {value}")
        assert run(package, server, program).stdout == f"{value} True\n"


def test_random_numbers_differ_between_jobs_and_torchs_do_not(package, server):
    program = """
        import random, numpy, torch
        print(random.random(), numpy.random.rand()); print(torch.initial_seed(), torch.get_num_threads())
    """
    (first, one), (second, two) = (run(package, server, program).stdout.splitlines() for _ in range(2))
    assert first.split()[0] != second.split()[0] and first.split()[1] != second.split()[1] and one == two


@pytest.mark.parametrize("change", [{"OMP_NUM_THREADS": "2"}, {"HF_ENDPOINT": "http://x"}, {"SLURM_JOB_ID": "1"}])
def test_a_job_with_other_variables_runs_as_a_plain_process(package, server, change):
    program = "import sys; print('torch' in sys.modules)"
    assert run(package, server, program).stdout == "True\n"
    assert run(package, server, program, variables=change).stdout == "False\n"


def test_a_job_with_another_limit_runs_as_a_plain_process(package, server):
    program = "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    (package / "verb.py").write_text(program)
    command = ["bash", "-c", f"ulimit -n 99; {sys.executable} -m dreamllm"]
    told = subprocess.run(command, env=environment(package, server), capture_output=True, text=True, check=True)
    assert told.stdout == "99\n"


def test_without_a_server_that_answers_the_job_runs_as_a_plain_process(package, server, tmp_path):
    done = run(package, server, "print('done')", variables={job_server.VARIABLE: str(tmp_path / "nobody")})
    assert (done.stdout, done.stderr, done.returncode) == ("done\n", "", 0)


def test_only_the_user_may_enter_the_folder_of_the_socket(server):
    folder = Path(server[job_server.VARIABLE]).parent
    assert folder.stat().st_mode & 0o777 == 0o700 and folder.stat().st_uid == os.getuid()


def begin(package: Path, server: dict[str, str], program: str, started: Path) -> tuple[subprocess.Popen, int]:
    """A running job: its caller, and its own process."""
    (package / "verb.py").write_text(textwrap.dedent(program).replace("STARTED", repr(str(started))))
    caller = subprocess.Popen(PYTHON, env=environment(package, server), start_new_session=True)
    wait_for(lambda: started.exists() and started.read_text())
    return caller, int(started.read_text())


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


SLEEP = """
    import os, pathlib, subprocess, time
    child = subprocess.Popen(["sleep", "600"])
    path = pathlib.Path(STARTED)
    path.with_suffix(".child").write_text(str(child.pid))
    path.write_text(str(os.getpid()))
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_to_the_caller_ends_the_job(package, server, tmp_path, number):
    caller, job = begin(package, server, SLEEP, tmp_path / "started")
    os.killpg(caller.pid, number)
    assert caller.wait(60) == -number
    wait_for(lambda: not is_running(job))
    child = int((tmp_path / "started.child").read_text())
    if number == signal.SIGKILL:
        wait_for(lambda: not is_running(child))
    else:
        os.kill(child, signal.SIGKILL)


def test_jobs_and_callers_end_with_the_server_and_the_server_with_its_starter(package, tmp_path, server):
    (tmp_path / "starter.py").write_text(
        "from dreamllm import job_server; import os\n"
        "job_server.start(); print(os.environ[job_server.VARIABLE], job_server._started[0].pid, flush=True); input()"
    )
    own = {key: value for key, value in server.items() if key != job_server.VARIABLE}
    command = [sys.executable, str(tmp_path / "starter.py")]
    starter = subprocess.Popen(command, env=own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    socket, process = starter.stdout.readline().split()
    caller, job = begin(package, own | {job_server.VARIABLE: socket}, SLEEP, tmp_path / "started")
    starter.kill()
    starter.communicate()
    wait_for(lambda: not is_running(int(process)) and not is_running(job))
    assert caller.wait(60) == 1
    assert not Path(socket).parent.exists()
    wait_for(lambda: not is_running(int((tmp_path / "started.child").read_text())))


def test_training_and_prediction_give_the_same_bytes_as_in_a_plain_process(
    predict_world, train_world, server, tmp_path
):
    """A server process loads the libraries in another order and at another time than the job would."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(test_train.experiment().model_dump(mode="json")))
    made = {}
    for kind, variables in (("forked", server), ("plain", server | {job_server.VARIABLE: ""})):
        out = tmp_path / kind
        variables = variables | {"PYTHONPATH": str(repository.ROOT / "src")}
        train = ["train", "--stage", "igpt", "--config", tmp_path / "config.yaml", "--out", out / "stage"]
        train += ["--foundations", train_world / "foundations", "--data", train_world / "data", "--work", out / "work"]
        predict = ["predict", "--config", predict_world / "config.yaml", "--model", "stage", "--benchmark", "draw"]
        predict += ["--split", "test", "--benchmarks", predict_world / "benchmarks", "--out", out / "draw.tar"]
        predict += ["--foundations", predict_world / "foundations", "--checkpoints", predict_world / "stage"]
        for arguments in (train, [*predict, "--work", out / "pictures"]):
            subprocess.run([*PYTHON, *map(str, arguments)], env=variables, check=True, cwd=repository.ROOT)
        files = [*sorted((out / "stage").iterdir()), out / "draw.tar"]
        made[kind] = {path.name: path.read_bytes() for path in files}
    assert {"trained.safetensors", "losses.csv", "checkpoint.json", "draw.tar"} <= made["plain"].keys()
    assert made["forked"] == made["plain"]
