"""A real Slurm on this machine, for tests: munge, a controller, and nodes that share the host, without systemd."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "srun")
SEARCH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin:/sbin"
UP_SECONDS, DOWN_SECONDS = 60.0, 20.0


def missing() -> str:
    """Why no cluster can be started here, or nothing."""
    absent = [name for name in DAEMONS if shutil.which(name, path=SEARCH) is None]
    if absent:
        return f"{', '.join(absent)} not installed (make system-packages)"
    return "" if os.geteuid() == 0 else "Slurm's daemons for several nodes on one host need root"


def free_ports(n: int) -> int:
    """The first of `n` neighbouring ports that nobody listens on."""
    for first in range(16_800, 19_900, n):
        with suppress(OSError):
            for port in range(first, first + n):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return first
    raise RuntimeError("no free ports")


@contextmanager
def cluster(nodes: int = 4, gpus: int = 2, cpus: int = 8, max_array_size: int = 1001) -> Iterator[Path]:
    """The folder of a cluster that is up, with its `slurm.conf`."""
    folder = Path(tempfile.mkdtemp(prefix="dilm-slurm-", dir="/tmp"))  # short: a socket's path holds 100 characters
    folder.chmod(0o755)  # munge refuses a socket below a folder that others can't enter
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        _write_conf(folder, nodes, gpus, cpus, max_array_size)
        _start(folder, nodes, daemons)
        yield folder
    finally:
        _stop(folder, daemons)
        shutil.rmtree(folder, ignore_errors=True)


def variables(folder: Path) -> dict[str, str]:
    """What Slurm's commands find a cluster by."""
    return {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": SEARCH}


def _write_conf(folder: Path, nodes: int, gpus: int, cpus: int, max_array_size: int) -> None:
    host, first = socket.gethostname().partition(".")[0], free_ports(nodes + 2)
    for name in ("state", "munge", *(f"spool/n{number}" for number in range(1, nodes + 1))):
        (folder / name).mkdir(parents=True)
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    for number in range(gpus):
        os.mknod(folder / f"gpu{number}", 0o020666, os.makedev(1, 3))  # a GPU must be a device; this one is /dev/null
    settings = {
        "ClusterName": "tests",
        "SlurmctldHost": f"{host}(127.0.0.1)",
        "SlurmctldPort": first,
        "SlurmUser": "root",
        "SlurmdUser": "root",
        # Credentials that expire soon let a requeued job start soon.
        "AuthInfo": f"socket={folder}/munge/socket,cred_expire=5",
        "AuthType": "auth/munge",
        "CredType": "cred/munge",
        "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": folder / "spool" / "%n",
        "SlurmctldPidFile": folder / "slurmctld.pid",
        "SlurmdPidFile": folder / "slurmd.%n.pid",
        "SlurmctldLogFile": folder / "slurmctld.log",
        "SlurmdLogFile": folder / "slurmd.%n.log",
        "PlugStackConfig": "/dev/null",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "SwitchType": "switch/none",
        "MpiDefault": "none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core_Memory",
        "SchedulerType": "sched/backfill",
        "SchedulerParameters": "sched_interval=1,batch_sched_delay=0,bf_interval=1",
        "PriorityType": "priority/basic",
        "AccountingStorageType": "accounting_storage/none",
        "JobAcctGatherType": "jobacct_gather/none",
        "ReturnToService": 2,
        "KillWait": 5,
        "MinJobAge": 300,
        "SlurmdParameters": "config_overrides",
        "MaxArraySize": max_array_size,
        "GresTypes": "gpu",
        "DefMemPerCPU": 500,
    }
    lines = [f"{name}={value}" for name, value in settings.items()]
    lines += [
        f"NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first + 2}-{first + nodes + 1}] "
        f"CPUs={cpus} Boards=1 SocketsPerBoard=1 CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory=128000 "
        f"Gres=gpu:{gpus} State=UNKNOWN",
        "PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP",
    ]
    (folder / "slurm.conf").write_text("\n".join([*lines, ""]))
    (folder / "gres.conf").write_text(f"NodeName=n[1-{nodes}] Name=gpu File={folder}/gpu[0-{gpus - 1}]\n")


def _start(folder: Path, nodes: int, daemons: list[subprocess.Popen[bytes]]) -> None:
    munge = folder / "munge"
    commands = [
        ["munged", "-F", f"--key-file={munge}/key", f"--socket={munge}/socket", f"--pid-file={munge}/pid",
         f"--log-file={munge}/log", f"--seed-file={munge}/seed"],
        ["slurmctld", "-D"],
        *(["slurmd", "-D", "-N", f"n{number}"] for number in range(1, nodes + 1)),
    ]  # fmt: skip
    for command in commands:
        output = open(folder / f"{command[0]}.out", "ab")  # noqa: SIM115 (the daemon's own)
        with output:
            streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
            daemons.append(subprocess.Popen(command, env=os.environ | variables(folder), **streams))
        if command[0] == "munged":
            _until(lambda: (munge / "socket").exists(), "munged", daemons)
    _until(
        lambda: _asked(folder, "sinfo", "-h", "-N", "-o", "%T").split().count("idle") == nodes, "idle nodes", daemons
    )


def _asked(folder: Path, *command: str) -> str:
    environment = os.environ | variables(folder)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=10).stdout


def _until(holds, what: str, daemons: list[subprocess.Popen[bytes]]) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + UP_SECONDS
    while not holds():
        ended = [daemon.args for daemon in daemons if daemon.poll() is not None]
        if ended or time.monotonic() > deadline:
            raise RuntimeError(f"Slurm did not come up: no {what}; ended: {ended}")
        time.sleep(0.1)


def _stop(folder: Path, daemons: list[subprocess.Popen[bytes]]) -> None:
    """End the jobs, then the daemons, the last started first."""
    with suppress(FileNotFoundError, subprocess.TimeoutExpired):
        _asked(folder, "scancel", "--me")
        deadline = time.monotonic() + DOWN_SECONDS
        while _asked(folder, "squeue", "-h") and time.monotonic() < deadline:
            time.sleep(0.2)
    for daemon in reversed(daemons):
        daemon.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + DOWN_SECONDS
    for daemon in reversed(daemons):
        try:
            daemon.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
