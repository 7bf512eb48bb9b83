"""Which job this process is of, and which scheduler runs a job: by the name that records, locks and rows have.

Names are `slurm-123_4`, `local-123`, and `<host>-<pid>` for a process that no scheduler started. Torch-free.
"""

import os
import pkgutil
import socket
from collections.abc import Collection, Iterable
from functools import cache
from importlib import import_module
from pathlib import Path

from dilm.core.errors import ConfigError, did_you_mean
from dilm.scheduler.base import SCHEDULERS, CurrentJob, JobRef, JobStatus, Scheduler
from dilm.scheduler.local import Local


@cache
def _import_all() -> None:
    """Import every module of this folder, so that each batch system's has registered its scheduler."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        import_module(f"{__package__}.{module.name}")


def schedulers() -> list[Scheduler]:
    """One of each kind, this machine's first: its jobs may run inside another scheduler's, not the other way."""
    _import_all()
    return sorted(SCHEDULERS.values(), key=lambda scheduler: scheduler.batch)


def scheduler_named(prefix: str) -> Scheduler:
    """The scheduler whose jobs' names begin so. Raises ConfigError."""
    _import_all()
    if prefix not in SCHEDULERS:
        raise ConfigError(f"hydra.launcher.scheduler {prefix!r} is unknown.{did_you_mean(prefix, SCHEDULERS)}")
    return SCHEDULERS[prefix]


def scheduler_of(name: str) -> Scheduler:
    """The scheduler that runs the job of this name: this machine's for a process that none has started."""
    return next((scheduler for scheduler in schedulers() if scheduler.owns(name)), SCHEDULERS[Local.prefix])


def submitted_job() -> CurrentJob | None:
    """The job that this process is of; None where no scheduler started it, as in a terminal."""
    asked = (scheduler for scheduler in schedulers() if os.environ.get(scheduler.job_variable))
    return next(filter(None, (scheduler.current_job(os.environ) for scheduler in asked)), None)


def current_job() -> CurrentJob:
    """The job that this process is of: a scheduler's, or itself."""
    return submitted_job() or CurrentJob(f"{socket.gethostname()}-{os.getpid()}")


def job_id() -> str:
    """The name of the job that this process is of."""
    return current_job().name


def rank_id() -> str:
    """`job_id`, with the process's rank but the first."""
    rank = os.environ.get("RANK", "0")
    return job_id() if rank == "0" else f"{job_id()}-rank{rank}"


def restarts() -> int:
    """How many times this process's job has been queued again."""
    return current_job().restarts


def rank_variables() -> dict[str, str]:
    """RANK and its companions, as the scheduler tells this process; nothing for a process alone. Raises ConfigError."""
    job = submitted_job()
    return scheduler_of(job.name).rank_variables(os.environ) if job else {}


def status_of(jobs: Collection[JobRef]) -> dict[str, JobStatus]:
    """How jobs stand, by one question to each of their schedulers; absent: forgotten, or never known."""
    refs = {job.name: job for job in jobs}
    statuses: dict[str, JobStatus] = {}
    for scheduler, names in _by_scheduler(refs).items():
        statuses |= scheduler.status([refs[name] for name in names])
    return statuses


def accounting_of(names: Collection[str]) -> dict[str, JobStatus]:
    """How jobs ended and how long they ran, of those whose scheduler has accounting."""
    told: dict[str, JobStatus] = {}
    for scheduler, mine in _by_scheduler(names).items():
        told |= scheduler.accounting(mine)
    return told


def cancel_commands(names: Collection[str]) -> list[str]:
    """What a user types to end these jobs, a line for each of their schedulers."""
    return [scheduler.cancel_command(mine) for scheduler, mine in _by_scheduler(names).items()]


def _by_scheduler(names: Iterable[str]) -> dict[Scheduler, list[str]]:
    groups: dict[Scheduler, list[str]] = {}
    for name in names:
        groups.setdefault(scheduler_of(name), []).append(name)
    return groups
