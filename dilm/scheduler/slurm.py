"""Slurm: which jobs are alive, how others ended, which rank this process is. Torch-free.

Every question is one call for all jobs at once, since controllers are shared with everybody. A job's name is
`slurm-<id>`, or `slurm-<array>_<task>` in an array.
"""

import shutil
import socket
import subprocess
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache

from dilm.core.errors import ConfigError, SlurmError

PENDING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "CONFIGURING")
RUNNING = ("RUNNING", "COMPLETING", "SUSPENDED", "SIGNALING", "STOPPED", "STAGE_OUT", "RESIZING")
PORTS = range(20_000, 32_000)  # below those that Linux hands out to outgoing connections
SQUEUE_FORMAT = "%F|%K|%A|%T|%r"
SACCT_FORMAT = "JobID,State,ElapsedRaw"
CALL_SECONDS = 60.0
ANSWER_SECONDS = 30  # how long an answer about one job is good


@dataclass(frozen=True)
class SlurmJob:
    """What Slurm says of a job."""

    state: str  # one of Slurm's words, such as PENDING or OUT_OF_MEMORY
    reason: str = ""  # why it waits
    seconds: int = 0  # it has run, in all attempts; only the accounting tells

    @property
    def alive(self) -> bool:
        """Whether it waits or runs."""
        return self.state in PENDING or self.state in RUNNING


def call(*command: str) -> str:
    """What a command of Slurm prints. Raises SlurmError with its own last line."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CALL_SECONDS, stdin=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise SlurmError(f"{command[0]} is not on this machine's PATH; run on a login node of the cluster.") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{command[0]} did not answer within {CALL_SECONDS:.0f} s.") from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("Try ")]
        last = lines[-1] if lines else f"exit status {done.returncode}"
        raise SlurmError(f"{command[0]}: {last.removeprefix(f'{command[0]}: ').removeprefix('error: ')}")
    return done.stdout


def job_name(job: str, array: str = "", task: str = "") -> str:
    """The name of a job, as records, claims and rows have it."""
    return f"slurm-{array}_{task}" if task.isdecimal() else f"slurm-{job}"


def bare_id(name: str) -> str:
    """The id that Slurm's commands take."""
    return name.removeprefix("slurm-")


def queue(users: Collection[str]) -> dict[str, SlurmJob] | None:
    """These users' jobs that are alive or ended some minutes ago, by one call; None where Slurm doesn't answer."""
    whose = ["-u", ",".join(sorted(users))] if all(users) else ["--me"]
    try:
        printed = call("squeue", *whose, "-h", "-r", "-t", "all", "-o", SQUEUE_FORMAT)
    except SlurmError:
        return None
    return parse_queue(printed)


def parse_queue(printed: str) -> dict[str, SlurmJob]:
    """Jobs of squeue's lines, in SQUEUE_FORMAT."""
    found = {}
    for line in printed.splitlines():
        array, task, job, state, reason = line.split("|")
        found[job_name(job, array, task)] = SlurmJob(state, reason)
    return found


def accounting(names: Collection[str]) -> dict[str, SlurmJob]:
    """How jobs ended, by one call of sacct; nothing where the site has no accounting.

    `seconds` are summed over the attempts of a requeued job.
    """
    arrays = sorted({bare_id(name).partition("_")[0] for name in names})
    if not arrays or shutil.which("sacct") is None:
        return {}
    try:
        return parse_accounting(
            call("sacct", "-X", "-P", "-n", "--duplicates", "-j", ",".join(arrays), "-o", SACCT_FORMAT)
        )
    except SlurmError:
        return {}


def parse_accounting(printed: str) -> dict[str, SlurmJob]:
    """Jobs of sacct's lines, in SACCT_FORMAT; of a requeued one the last attempt's state and all attempts' time."""
    found: dict[str, SlurmJob] = {}
    for line in printed.splitlines():
        job, state, elapsed = line.split("|")
        name = f"slurm-{job}"
        before = found[name].seconds if name in found else 0
        state = (state.split() or ["UNKNOWN"])[0]  # CANCELLED by <user>
        found[name] = SlurmJob(state, "", before + int(elapsed or 0))
    return found


def has_ended(name: str, restarts: int) -> bool | None:
    """Whether an attempt of a job (its `restarts`-th) has ended; None where Slurm doesn't answer."""
    return _has_ended(name, restarts, int(time.monotonic() / ANSWER_SECONDS))


@lru_cache(maxsize=1024)
def _has_ended(name: str, restarts: int, moment: int) -> bool | None:
    try:
        printed = call("scontrol", "-o", "show", "job", bare_id(name))
    except SlurmError as error:
        return True if "Invalid job id" in str(error) else None
    values = dict(part.partition("=")[::2] for part in printed.split())
    return values.get("JobState") not in RUNNING or int(values.get("Restarts", 0)) > restarts


def requeue(name: str) -> None:
    """Put a job back into the queue. Raises SlurmError."""
    call("scontrol", "requeue", bare_id(name))


def max_array_size() -> int:
    """The number of jobs that this cluster takes in one array. Raises SlurmError."""
    for line in call("scontrol", "show", "config").splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "MaxArraySize":
            return int(value)
    raise SlurmError("scontrol show config has no MaxArraySize; set site.max_array_size.")


def rank_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """RANK and its companions for a task of srun's, or of submitit's on one machine; nothing where there are none.

    A batch script that starts no step is one process, whatever the job asked for: only srun sets the step's size.
    """
    if environment.get("WORLD_SIZE") or environment.get("RANK"):
        return {}
    local = environment.get("SUBMITIT_EXECUTOR") == "local"
    names = LOCAL_VARIABLES if local else STEP_VARIABLES
    size = environment.get(names["WORLD_SIZE"], "1")
    if size == "1":
        return {}
    missing = [name for name in names.values() if not environment.get(name)]
    if missing:
        raise ConfigError(f"{names['WORLD_SIZE']} is {size}, but {', '.join(missing)} not set; start tasks with srun.")
    ranks = {name: environment[source] for name, source in names.items()}
    if local:
        return ranks | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port(environment["SUBMITIT_LOCAL_JOB_ID"], "0"))}
    single = environment.get("SLURM_STEP_NUM_NODES") == "1"
    return ranks | {
        "MASTER_ADDR": "127.0.0.1" if single else _first_host(environment["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": str(port(environment["SLURM_JOB_ID"], environment["SLURM_STEP_ID"])),
    }


def _first_host(nodes: str) -> str:
    """The address of the first of a step's nodes, where rank 0 runs."""
    name = call("scontrol", "show", "hostnames", nodes).split()[0]
    try:
        socket.getaddrinfo(name, None)
        return name
    except OSError:  # Slurm's names are not always the network's
        values = dict(part.partition("=")[::2] for part in call("scontrol", "-o", "show", "node", name).split())
        return values["NodeAddr"]


STEP_VARIABLES = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_STEP_NUM_TASKS", "LOCAL_RANK": "SLURM_LOCALID"}
LOCAL_VARIABLES = {
    "RANK": "SUBMITIT_LOCAL_GLOBALID",
    "WORLD_SIZE": "SUBMITIT_LOCAL_NTASKS",
    "LOCAL_RANK": "SUBMITIT_LOCAL_LOCALID",
}


def port(job: str, step: str) -> int:
    """Where a step's ranks meet: another port for each job and step that may share a node."""
    return PORTS[(int(job) + 997 * int(step)) % len(PORTS)]
