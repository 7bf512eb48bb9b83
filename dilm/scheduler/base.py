"""The interface to a batch system: what is asked of it, and what it answers.

A batch system is one module of this package, whose class derives from `Scheduler` and is decorated with `register`.
Jobs are named `<prefix>-<id>`, or `<prefix>-<array>_<task>` in an array; by its prefix a name finds its scheduler
(`dilm.scheduler.job`). Torch-free.
"""

import os
import re
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from dilm.core.errors import ConfigError, SchedulerError

PENDING, RUNNING, ENDED, UNKNOWN = "pending", "running", "ended", "unknown"
PORTS = range(20_000, 32_000)  # below those that Linux hands out to outgoing connections


def process_start(pid: int) -> str | None:
    """When a process of this host started, in clock ticks since boot; None once it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]


@dataclass(frozen=True)
class Process:
    """A process of some host. Its start tells it from a later process of equal id."""

    host: str
    pid: int
    start: str | None
    user: int | None = None  # numeric id; None: one whose processes this user sees

    def has_ended(self) -> bool | None:
        """Whether it has ended; None for another host's, and for another user's, which a host may hide."""
        if self.host != socket.gethostname() or self.user not in (None, os.getuid()):
            return None
        start = process_start(self.pid)
        return start is None or start != self.start


@dataclass(frozen=True)
class JobRef:
    """What a record or a lock knows of a job."""

    name: str
    user: str = ""  # who submitted it
    process: Process | None = None  # the last that was seen of it
    restarts: int = 0  # times that the job had been queued again when that process started


@dataclass(frozen=True)
class JobStatus:
    """What a scheduler says of a job."""

    state: str  # PENDING, RUNNING, ENDED or UNKNOWN
    reason: str = ""  # why it waits, how it ended, or why nothing is known
    seconds: int = 0  # it has run, in all attempts; only the accounting tells
    ended_well: bool | None = None  # None where the scheduler doesn't tell

    @property
    def alive(self) -> bool:
        """Whether it waits or runs."""
        return self.state in (PENDING, RUNNING)


@dataclass(frozen=True)
class CurrentJob:
    """The job that this process is of."""

    name: str
    restarts: int = 0  # times that the scheduler has queued it again
    node: str = ""  # the scheduler's name of this host
    gpus: int = 0  # that the job has, on all its nodes


@dataclass(frozen=True)
class Submission:
    """Jobs that are submitted at once: one function, called with other arguments in each job."""

    name: str  # for messages
    folder: Path  # each job has its folder of logs below
    function: Callable[..., Any]
    arguments: Sequence[tuple[Any, ...]]  # of each job
    asked: Mapping[str, Any]  # what a job asks for: parameters of `hydra.launcher`
    after: tuple[str, ...] = ()  # names of jobs, or of whole arrays, that must have ended well first


class Scheduler(ABC):
    """What the project needs of a batch system.

    A question about many jobs is one call of the system's commands, since its controller is shared with everybody.
    """

    prefix: ClassVar[str]
    title: ClassVar[str]  # for messages
    job_variable: ClassVar[str]  # of the environment: set in every process of its jobs, and nowhere else
    # Whether jobs are known on every host of the cluster, can wait for others, and can be queued again.
    batch: ClassVar[bool] = True
    independent_ranks: ClassVar[str] = ""  # a shell line after which a rank that fails doesn't end the job's others

    # Names

    def owns(self, name: str) -> bool:
        """Whether a job of this name is this scheduler's."""
        return re.fullmatch(rf"{self.prefix}-\d+(_\d+)?", name) is not None

    def bare_id(self, name: str) -> str:
        """The id that the scheduler's own commands take."""
        return name.removeprefix(f"{self.prefix}-")

    # The job that this process is of

    @abstractmethod
    def current_job(self, environment: Mapping[str, str]) -> CurrentJob | None:
        """The job whose process has this environment, or None where it is not one of this scheduler's."""

    @abstractmethod
    def rank_variables(self, environment: Mapping[str, str]) -> dict[str, str]:
        """RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT; nothing for a process alone or one that has them.

        Raises ConfigError where some of what they are read from is not set.
        """

    # Other jobs

    @abstractmethod
    def status(self, jobs: Collection[JobRef]) -> dict[str, JobStatus]:
        """How jobs stand, by name. UNKNOWN where that can't be told from here; absent: never known, or forgotten."""

    def accounting(self, names: Collection[str]) -> dict[str, JobStatus]:
        """How jobs ended and how long they ran, in all attempts; nothing where there is no accounting."""
        return {}

    @abstractmethod
    def has_ended(self, job: JobRef) -> bool | None:
        """Whether this attempt of a job has ended. None, not True, where there is no evidence."""

    # Requests

    @abstractmethod
    def submit(self, submission: Submission) -> list[str]:
        """Queue jobs; their names, in the order of their arguments. Raises ConfigError or SchedulerError."""

    def check(self, submission: Submission) -> None:  # noqa: B027 (a system that can't be asked takes all)
        """Ask whether the jobs would be taken, without their dependencies. Raises ConfigError, in one line."""

    def script(self, submission: Submission) -> str:
        """The text that the batch system would be given."""
        return ""

    def max_array_size(self) -> int:
        """The number of jobs that can be submitted at once. Raises SchedulerError where the system doesn't tell."""
        return 1

    def requeue(self, name: str) -> None:
        """Put a running job back into the queue. Raises SchedulerError."""
        raise SchedulerError(f"{self.title} does not queue {name} again.")

    @abstractmethod
    def cancel_command(self, names: Collection[str]) -> str:
        """What a user types to end these jobs and the arrays that they are of."""


SCHEDULERS: dict[str, Scheduler] = {}  # by prefix
S = TypeVar("S", bound=Scheduler)


def register(scheduler: type[S]) -> type[S]:
    """Make a scheduler known by its prefix."""
    SCHEDULERS[scheduler.prefix] = scheduler()
    return scheduler


def array_name(job: str) -> str:
    """The array that a job is of: what a dependency on all its jobs names."""
    return job.partition("_")[0]


def ranks_from(environment: Mapping[str, str], names: Mapping[str, str], advice: str) -> dict[str, str]:
    """RANK, WORLD_SIZE and LOCAL_RANK from the variables that a scheduler sets; nothing for one process.

    Nothing either where torchrun has set them. Raises ConfigError where the size is set and another one is not.
    """
    size = environment.get(names["WORLD_SIZE"], "1")
    if environment.get("WORLD_SIZE") or environment.get("RANK") or size == "1":
        return {}
    missing = [name for name in names.values() if not environment.get(name)]
    if missing:
        raise ConfigError(f"{names['WORLD_SIZE']} is {size}, but {', '.join(missing)} not set; {advice}.")
    return {name: environment[source] for name, source in names.items()}


def port(job: str, step: str) -> int:
    """Where ranks meet: another port for each job and step that may share a node."""
    return PORTS[(int(job) + 997 * int(step)) % len(PORTS)]
