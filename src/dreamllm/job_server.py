"""A fork server for jobs: torch, transformers and diffusers are imported once for all jobs of a run, not once for each.

`start` starts the server, and DREAMLLM_JOB_SERVER then names its socket. `python -m dreamllm VERB ...` connects to it
and hands its command over: the server forks, and the child takes the caller's folder, files and variables, imports the
code as it is then and runs the verb. The caller waits, passes signals on, and ends as the child does. The server itself
imports libraries only, no module of this package, so that an edit of the code counts from the next job on.

The same job gives the same bytes as in a process of its own: the server takes a job only if its interpreter, limits and
environment variables (except VARYING) are the server's. Any other job runs as a plain process, and so does every job
where no server is named. The server ends when the process that started it does, and a job ends when its caller does.
Linux only.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import io
import json
import os
import random
import resource
import runpy
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, NoReturn

from dreamllm import _auto_classes

VARIABLE = "DREAMLLM_JOB_SERVER"
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "GOTO", "OPENBLAS", "MKL", "NUMEXPR")}
ONE_THREAD["VECLIB_MAXIMUM_THREADS"] = "1"
"""What Snakemake sets for a job of one thread."""
VARYING = {VARIABLE, "PYTHONPATH", "PWD", "OLDPWD", "SHLVL", "_", "TMPDIR", "TMP", "TEMP", "TEMPDIR"}
"""Variables in which jobs may differ: no library reads them while it is imported."""
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PRELOADED = (
    "accelerate",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "matplotlib.pyplot",
    "peft",
    "PIL.Image",
    "pydantic",
    "safetensors.torch",
    "scipy.stats",
    "torch.utils.tensorboard",
    "torchvision",
    "tqdm",
    "transformers.models.auto.modeling_auto",
    "transformers.models.clip.modeling_clip",
    "transformers.models.llama.modeling_llama",
    "webdataset",
    "yaml",
)
"""Not pandas: pyarrow starts a thread, and only a process with a single thread may be forked."""

SET_BY_LIBRARIES: dict[str, str] = {}
"""Variables that libraries set when they are imported."""

_started: list[subprocess.Popen[bytes]] = []  # a server ends when its standard input is closed: with this process


def start(**variables: str) -> None:
    """Start a server for jobs with this environment and `variables`, and name it in os.environ, unless one is named.

    Elsewhere than on Linux it does nothing, and every job is a process of its own. The server imports nothing before
    the first job comes, and ends with this process, or when `stop` is called.
    """
    if VARIABLE in os.environ or sys.platform != "linux":
        return
    folder = tempfile.mkdtemp(prefix="dreamllm-jobs-")  # only its owner may enter
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/socket")
        listener.listen(100)
        environment = {key: value for key, value in os.environ.items() if key != VARIABLE} | variables
        server = subprocess.Popen(
            [sys.executable, "-m", "dreamllm.job_server", str(listener.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
            env=environment,
            start_new_session=True,  # a signal to the group of this process reaches a job once, through its caller
        )
    _started.append(server)
    os.environ[VARIABLE] = f"{folder}/socket"


def stop() -> None:
    """End the server that `start` started, with the jobs that it runs."""
    server = _started.pop()
    del os.environ[VARIABLE]
    server.communicate()


def hand_over(arguments: list[str]) -> str:
    """Run `dreamllm` with these arguments on the job server, and end this process as the job ends.

    Returns why the job has to run in this process, where it does.
    """
    path = os.environ.get(VARIABLE)
    if not path or "SLURM_JOB_ID" in os.environ:  # Slurm counts what its own processes use
        return "no job server is named"
    umask = os.umask(0)
    os.umask(umask)
    job = {"arguments": arguments, "folder": str(Path.cwd()), "umask": umask, "variables": dict(os.environ)}
    content = json.dumps(job | {"surroundings": _surroundings()}).encode()
    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.connect(path)
            socket.send_fds(server, [struct.pack("!I", len(content))], [0, 1, 2])
            server.sendall(content)
            if server.recv(1) != b"+":
                return "the job server's surroundings are others"
        except OSError as error:
            return f"the job server cannot be reached: {error}"
        for number in PASSED_ON:
            signal.signal(number, lambda received, frame: server.sendall(bytes([received])))
        ended = server.recv(4)
    if len(ended) < 4:
        sys.exit("dreamllm: the job server was killed, and this job with it; run the same command again")
    (status,) = struct.unpack("!i", ended)
    if status < 0:  # minus the signal that killed the job
        if -status not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


def serve(listener: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Fork a child for every job until standard input ends. Returns None then, and in a child the job and its files."""
    surroundings = json.loads(json.dumps(_surroundings()))
    preloaded = False
    children: dict[int, tuple[int, socket.socket]] = {}  # process and caller, by the file that tells of its end
    callers: dict[socket.socket, int] = {}
    while True:
        files: list[Any] = [0, listener, *children, *callers]
        ready = select.select(files, [], [])[0]
        if 0 in ready:
            for child, _ in children.values():
                os.killpg(child, signal.SIGKILL)
            return None
        for ended in children.keys() & set(ready):
            child, caller = children.pop(ended)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            with contextlib.suppress(OSError):
                caller.sendall(struct.pack("!i", status))
            callers.pop(caller, None)
            caller.close()
            os.close(ended)
        for caller in callers.keys() & set(ready):
            numbers = caller.recv(100)
            for number in numbers:
                os.kill(callers[caller], number)
            if not numbers:  # the caller is dead
                os.killpg(callers.pop(caller), signal.SIGKILL)
        if listener in ready:
            caller, _ = listener.accept()
            job, files = _receive(caller)
            if not job or job["surroundings"] != surroundings:
                caller.close()
            else:
                if not preloaded:
                    _preload()
                    preloaded = True
                caller.sendall(b"+")
                child = _fork()
                if not child:
                    for one in (listener, caller, *callers):
                        one.close()
                    for ended in children:
                        os.close(ended)
                    return job, files
                ended = os.pidfd_open(child)
                children[ended], callers[caller] = (child, caller), child
            for file in files:
                os.close(file)


def _surroundings() -> dict[str, Any]:
    """What a process has from its parent and may compute by."""
    limits = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    return {
        "python": [sys.prefix, sys.version, list(sys.flags), sys.warnoptions],
        "variables": {key: value for key, value in os.environ.items() if key not in VARYING},
        "limits": {name: resource.getrlimit(getattr(resource, name)) for name in limits},
        "niceness": os.nice(0),
    }


def _receive(caller: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The job that a caller hands over, and its three files; an empty job for what is none of this user's."""
    _, user, _ = struct.unpack("3i", caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if user != os.getuid():
        return {}, []
    length, files, _, _ = socket.recv_fds(caller, 4, 3)
    content = b""
    while len(length) == 4 and len(content) < struct.unpack("!I", length)[0]:
        part = caller.recv(1 << 20)
        if not part:
            return {}, files
        content += part
    return json.loads(content or "{}"), files


def _preload() -> None:
    """Import the libraries, and forget this package, so that every job imports it anew."""
    _auto_classes.uninstall()  # they would import modules of this package
    before = dict(os.environ)
    for name in PRELOADED:
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.partition(".")[0] == "dreamllm"]:
        del sys.modules[name]
    added = {key: value for key, value in os.environ.items() if before.get(key) != value}
    SET_BY_LIBRARIES.update(added)
    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threads == 1, f"{threads} threads: a forked child would have one of them, and the locks of all"
    gc.freeze()  # memory that is shared with the children is not touched by their garbage collections


def _fork() -> int:
    """Fork; the child leads a process group and dies with this process."""
    parent = os.getpid()
    child = os.fork()
    with contextlib.suppress(OSError):  # both do it, so that neither is too late
        os.setpgid(child, child)
    if not child:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)
    return child


def _become(job: dict[str, Any], files: list[int], search_path: list[str]) -> None:
    """Make this process what `python -m dreamllm` is when it begins."""
    for place, file in enumerate(files):
        os.dup2(file, place)
        os.close(file)
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(line_buffering=sys.stdout.isatty())
    os.chdir(job["folder"])
    os.umask(job["umask"])
    os.environ.clear()
    os.environ.update(job["variables"] | SET_BY_LIBRARIES)
    del os.environ[VARIABLE]
    sys.argv = ["-m", *job["arguments"]]
    own = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    sys.path[:] = [job["folder"], *own, *search_path]
    importlib.invalidate_caches()
    tempfile.tempdir = None
    random.seed()
    sys.modules["numpy"].random.seed()


def _run() -> NoReturn:
    """Run `python -m dreamllm` and exit as the interpreter does, but leave its memory to the system (0.3 seconds)."""
    status: Any = 0
    try:
        runpy.run_module("dreamllm", run_name="__main__", alter_sys=True)
    except SystemExit as stopped:
        status = stopped.code
        if not isinstance(status, int | None):
            print(status, file=sys.stderr)
            status = 1
    except KeyboardInterrupt:
        sys.excepthook(*sys.exc_info())
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads and for pools of processes
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit((status or 0) & 0xFF)


def main() -> None:
    """`python -m dreamllm.job_server SOCKET`, where SOCKET is the number of an open file, which listens."""
    own = {str(Path(entry).absolute()) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep)}
    search_path = [entry for entry in sys.path[1:] if entry not in own]
    listener = socket.socket(fileno=int(sys.argv[1]))
    path = Path(listener.getsockname())
    server, taken = os.getpid(), None
    try:
        taken = serve(listener)
    finally:
        if os.getpid() == server:
            shutil.rmtree(path.parent, ignore_errors=True)
    if taken:
        _become(*taken, search_path)
        _run()


if __name__ == "__main__":
    main()
