"""A Slurm cluster on this machine for tests, from Debian's packages; everything it writes is in one temporary folder.

slurm.missing()       why no cluster can be started here, or ""
slurm.cluster(nodes)  context manager: the environment variables with which Slurm's programs find the cluster

The nodes are daemons on this machine, each with the same fake GPUs. There is no accounting (slurmdbd).
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
PROGRAMS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo", "sacct")
PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin"])
GPUS = ("/dev/null", "/dev/zero")  # of each node; Slurm checks that the device files exist
WAIT = 30  # seconds for the daemons to come up

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
MinJobAge=3600
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
GresTypes=gpu
PartitionName=other Nodes=ALL State=UP
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory={memory} "
    "Gres=gpu:{gpus} State=UNKNOWN\n"
)


def missing() -> str:
    """Why no cluster can be started here; "" if one can."""
    if absent := [name for name in (*DAEMONS, *PROGRAMS) if not shutil.which(name, path=PATH)]:
        return f"{', '.join(absent)} not found (Debian: slurmctld slurmd slurm-client munge)"
    return ""


@contextmanager
def cluster(nodes: int = 1) -> Iterator[dict[str, str]]:
    """Start the daemons and end them afterwards; yields the environment variables of this cluster.

    Raises RuntimeError with the ends of their logs if they do not come up.
    """
    with ExitStack() as stack:
        # sockets have paths of 108 characters at most, fewer than some folders of tests
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm")))
        environment = configure(folder, nodes)

        def start(*command: str) -> None:
            log = stack.enter_context((folder / f"{Path(command[0]).name}.out").open("a"))
            path = shutil.which(command[0], path=PATH)
            process = subprocess.Popen([path, *command[1:]], env=environment, stdout=log, stderr=log)
            stack.callback(stop, process)

        start("munged", "--foreground", "--force", *munge_files(folder))
        start("slurmctld", "-D", "-f", environment["SLURM_CONF"])
        for number in range(nodes):
            start("slurmd", "-D", "-f", environment["SLURM_CONF"], "-N", f"node{number}")
        end = time.monotonic() + WAIT
        while idle(environment) < nodes:
            if time.monotonic() > end:
                logs = (f"{path.name}: {path.read_text()[-2000:]}" for path in folder.glob("*.[lo][ou][gt]"))
                raise RuntimeError("Slurm did not come up\n" + "\n".join(logs))
            time.sleep(0.2)
        stack.callback(subprocess.run, ["scancel", "--partition=main,other"], env=environment, check=False)
        yield environment


def configure(folder: Path, nodes: int) -> dict[str, str]:
    """Write Slurm's configuration and programs that use it; returns the environment to call them in.

    The programs are wrapped because SLURM_CONF alone does not reach them all: Snakemake's plugin drops it within jobs.
    """
    host = socket.gethostname().split(".")[0]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 * 9 // 10
    ports = free_ports(nodes + 1)
    text = CONFIGURATION.format(host=host, ctld_port=ports[0], user=getpass.getuser(), folder=folder)
    for number, port in enumerate(ports[1:]):
        details = {"cpus": os.cpu_count(), "memory": memory, "gpus": len(GPUS)}
        text += NODE.format(name=f"node{number}", host=host, port=port, **details)
    (folder / "slurm.conf").write_text(text)
    (folder / "gres.conf").write_text("".join(f"NodeName=node[0-{nodes - 1}] Name=gpu File={d}\n" for d in GPUS))
    (folder / "state").mkdir()
    (folder / "bin").mkdir()
    for name in PROGRAMS:
        program = folder / "bin" / name
        program.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which(name, path=PATH)} "$@"\n')
        program.chmod(0o755)
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_", "SRUN_"))},
        "PATH": os.pathsep.join([str(folder / "bin"), PATH]),
        "SLURM_CONF": f"{folder}/slurm.conf",
    }


def munge_files(folder: Path) -> list[str]:
    """munged's options for a key and a socket of its own."""
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    names = {"key-file": key, "socket": "munge.socket", "pid-file": "munged.pid", "seed-file": "munge.seed"}
    return [f"--{name}={folder / file}" for name, file in (names | {"log-file": "munged.log"}).items()]


def free_ports(number: int) -> list[int]:
    """Ports on which nothing listens now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def idle(environment: dict[str, str]) -> int:
    """Number of idle nodes."""
    command = ["sinfo", "--noheader", "--Node", "--partition=main", "--format=%t"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return result.stdout.split().count("idle")


def stop(process: subprocess.Popen) -> None:
    """Terminate a daemon; kill it if it has not ended after 10 seconds."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
