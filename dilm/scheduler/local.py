"""Jobs without a batch system: processes of this host, which only its process table knows. Torch-free.

`local-<pid>` is a job that submitit's controller of that process id runs. Every other process that no batch system
started is a job `<host>-<pid>` of its own.
"""

import os
import re
from collections.abc import Collection, Mapping
from typing import Any

from dilm.core.errors import ConfigError
from dilm.scheduler.base import (
    ENDED,
    RUNNING,
    UNKNOWN,
    CurrentJob,
    JobRef,
    JobStatus,
    Scheduler,
    Submission,
    port,
    ranks_from,
    register,
)

VARIABLES = {
    "RANK": "SUBMITIT_LOCAL_GLOBALID",
    "WORLD_SIZE": "SUBMITIT_LOCAL_NTASKS",
    "LOCAL_RANK": "SUBMITIT_LOCAL_LOCALID",
}
PARAMETERS = ("nodes", "tasks_per_node", "gpus_per_node", "timeout_min")  # of `hydra.launcher`, that submitit takes


@register
class Local(Scheduler):
    """This host's processes."""

    prefix = "local"
    title = "this machine"
    job_variable = "SUBMITIT_LOCAL_JOB_ID"
    batch = False

    def __init__(self) -> None:
        self._started: dict[str, Any] = {}  # submitit's jobs that this process has submitted and that run, by name
        self._ended: set[str] = set()  # those that have ended: submitit's are let go, else they complain at exit

    def current_job(self, environment: Mapping[str, str]) -> CurrentJob | None:
        """The job of submitit's controller on this machine, also where that runs inside a job of a batch system."""
        if environment.get("SUBMITIT_EXECUTOR") != "local" or not environment.get("SUBMITIT_LOCAL_JOB_ID"):
            return None
        return CurrentJob(f"local-{environment['SUBMITIT_LOCAL_JOB_ID']}")

    def rank_variables(self, environment: Mapping[str, str]) -> dict[str, str]:
        """RANK and its companions for one of several processes that submitit's controller has started."""
        ranks = ranks_from(environment, VARIABLES, "start jobs with hydra/launcher=local")
        if not ranks:
            return {}
        meeting = str(port(environment["SUBMITIT_LOCAL_JOB_ID"], "0"))
        return ranks | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": meeting}

    def status(self, jobs: Collection[JobRef]) -> dict[str, JobStatus]:
        """By this process's children, else by the process table. How a job ended only its record tells."""
        return {job.name: self._status(job) for job in jobs}

    def _status(self, job: JobRef) -> JobStatus:
        ended: bool | None
        if job.name in self._started and self._started[job.name].done():
            del self._started[job.name]
            self._ended.add(job.name)
        if job.name in self._started or job.name in self._ended:
            ended = job.name in self._ended
        elif job.process is None:
            return JobStatus(UNKNOWN)
        else:
            ended = job.process.has_ended()
            if ended is None:
                return JobStatus(UNKNOWN, f"on {job.process.host}, as far as its record tells")
        return JobStatus(ENDED, "killed") if ended else JobStatus(RUNNING)

    def has_ended(self, job: JobRef) -> bool | None:
        """By the process table; None for a process of another host or user."""
        return job.process.has_ended() if job.process else None

    def submit(self, submission: Submission) -> list[str]:
        """Start every job's processes at once. Raises ConfigError."""
        import submitit  # a quarter of a second that a plan doesn't need

        if submission.after:
            raise ConfigError(f"{submission.name}: jobs on this machine can't wait for {', '.join(submission.after)}.")
        executor = submitit.LocalExecutor(folder=str(submission.folder / "%j"))
        asked = {name: submission.asked[name] for name in PARAMETERS if name in submission.asked}
        try:
            executor.update_parameters(**asked, visible_gpus=visible_gpus())
        except (ValueError, TypeError) as error:
            raise ConfigError(f"hydra.launcher: {str(error).splitlines()[0]}") from error
        jobs = [executor.submit(submission.function, *arguments) for arguments in submission.arguments]
        started = {f"local-{job.job_id}": job for job in jobs}
        self._started |= started
        return list(started)

    def cancel_command(self, names: Collection[str]) -> str:
        """`kill` of the processes; submitit's controllers hand the signal on."""
        return f"kill {' '.join(sorted(name.rpartition('-')[2] for name in names))}"


def visible_gpus() -> tuple[int, ...]:
    """The GPUs that the user left in sight, where they are given by number."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return tuple(map(int, given.split(","))) if re.fullmatch(r"\d+(,\d+)*", given) else ()
