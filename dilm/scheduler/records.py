"""Job records: what each job does, and how it stands or ended, in `<root>/jobs/<job>.json`.

The job itself writes its record, atomically; before it starts its submitter does. Whether a job that never wrote its
end is still alive, its scheduler is asked. Torch-free.
"""

import getpass
import json
import os
import socket
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from dilm.core.io import TEMPORARY, write_bytes, write_json
from dilm.scheduler import base
from dilm.scheduler.base import JobRef, JobStatus, Process, process_start
from dilm.scheduler.job import current_job, job_id, scheduler_of, status_of

SCHEMA = 1
QUEUED, RUNNING, DONE, FAILED, PREEMPTED = ("queued", "running", "done", "failed", "preempted")
ENDED = (DONE, FAILED)


@dataclass(frozen=True)
class Call:
    """One command of a job: its keys, and what it makes."""

    command: str  # train, generate, evaluate, collect
    overrides: tuple[str, ...]
    task: str = ""
    makes: dict[str, list[str]] = field(default_factory=dict)  # stage: folders of artifacts below root, keys of cells

    @property
    def made(self) -> list[tuple[str, str]]:
        """Stage and key of everything that it makes."""
        return [(stage, key) for stage, keys in self.makes.items() for key in keys]


@dataclass(frozen=True)
class Attempt:
    """One time that a job ran."""

    start: float  # seconds since the epoch
    host: str
    pid: int
    process: str | None  # when the process started, which tells it from a later one of equal id
    restarts: int = 0  # times that the job had been queued again
    node: str = ""  # the scheduler's name of the host
    end: float | None = None
    state: str = RUNNING


@dataclass(frozen=True)
class Job:
    """A job's record."""

    name: str
    state: str
    calls: tuple[Call, ...]
    reason: str = ""  # why it failed, in one line
    log: str = ""  # its log file, relative to root
    after: tuple[str, ...] = ()  # jobs that must be done first
    gpus: int = 0
    user: str = ""  # who submitted it
    submitted: float = 0.0
    attempts: tuple[Attempt, ...] = ()
    schema: int = SCHEMA

    @property
    def host(self) -> str:
        """The host of its last attempt."""
        return self.attempts[-1].host if self.attempts else ""

    @property
    def node(self) -> str:
        """Where it ran last."""
        last = self.attempts[-1] if self.attempts else None
        return (last.node or last.host) if last else ""

    @property
    def seconds(self) -> float:
        """That it has run, in all attempts whose end is known."""
        return sum(attempt.end - attempt.start for attempt in self.attempts if attempt.end is not None)

    @property
    def made(self) -> list[tuple[str, str]]:
        """Stage and key of everything that it makes."""
        return [pair for call in self.calls for pair in call.made]


def record_file(root: Path, name: str) -> Path:
    """Where a job's record stands."""
    return root / "jobs" / f"{name}.json"


def read_job(path: Path) -> Job | None:
    """A record, or None where there is none, or one of another schema."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    if values.get("schema") != SCHEMA:
        return None
    calls = [Call(**{**call, "overrides": tuple(call["overrides"])}) for call in values["calls"]]
    attempts = [Attempt(**attempt) for attempt in values["attempts"]]
    return Job(**{**values, "calls": tuple(calls), "attempts": tuple(attempts), "after": tuple(values["after"])})


def read_jobs(root: Path) -> list[Job]:
    """All records, oldest first."""
    found = filter(None, map(read_job, (root / "jobs").glob("*.json")))
    return sorted(found, key=lambda job: (job.submitted, job.name))


def write_queued(root: Path, job: Job) -> None:
    """Record a job that was submitted; one that has started meanwhile has its own record already."""
    path = record_file(root, job.name)
    temporary = path.with_name(f"{path.name}{TEMPORARY}{os.getpid()}")
    write_json(temporary, asdict(job))
    try:
        os.link(temporary, path)
    except FileExistsError:
        known = read_job(path)
        if known is None or known.submitted < job.submitted - 60:  # a cluster that counts its jobs anew
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def begin(
    root: Path,
    calls: tuple[Call, ...],
    *,
    name: str = "",
    log: str = "",
    after: tuple[str, ...] = (),
    gpus: int = 0,
    restarts: int = 0,
) -> Job:
    """Record that this process's job has started (once more)."""
    name = name or job_id()
    pid = os.getpid()
    attempt = Attempt(time.time(), socket.gethostname(), pid, process_start(pid), restarts, current_job().node)
    known = read_job(record_file(root, name))
    if known is None or (known.calls != calls and not restarts):  # a process or job id that has come again
        known = Job(name, QUEUED, calls, log=log, after=after, user=getpass.getuser(), submitted=attempt.start)
    job = replace(known, state=RUNNING, reason="", gpus=gpus or known.gpus, attempts=(*known.attempts, attempt))
    _write(root, job)
    return job


def log_file(name: str) -> str:
    """The log of a job that submitit started, relative to root."""
    bare = name.partition("-")[2]
    return f"jobs/{bare}/{bare}_0_log.err"


def extend(root: Path, name: str, call: Call) -> None:
    """Record one more call of a job that is running."""
    if job := read_job(record_file(root, name)):
        _write(root, replace(job, calls=(*job.calls, call)))


def forget(root: Path, name: str) -> None:
    """Remove a record, and its folder where it was the only one."""
    path = record_file(root, name)
    path.unlink(missing_ok=True)
    with suppress(OSError):
        path.parent.rmdir()


def finish(root: Path, name: str, state: str, reason: str = "") -> None:
    """Record how this attempt ended. What one rank has recorded as failed stays so."""
    job = read_job(record_file(root, name))
    if job is None or (job.state == FAILED and state != FAILED):
        return
    last = tuple(replace(attempt, end=time.time(), state=state) for attempt in job.attempts[-1:])
    kept = job.reason if job.state == FAILED else reason
    _write(root, replace(job, state=state, reason=kept, attempts=(*job.attempts[:-1], *last)))


def _write(root: Path, job: Job) -> None:
    content = json.dumps(asdict(job), ensure_ascii=False) + "\n"
    write_bytes(record_file(root, job.name), content.encode())


@dataclass(frozen=True)
class Verdict:
    """How a job really stands."""

    job: Job
    state: str
    reason: str = ""  # why it failed, or waits

    @property
    def live(self) -> bool:
        """Whether it waits or runs, as far as can be known here."""
        can_tell = scheduler_of(self.job.name).batch or self.job.host == socket.gethostname()
        return self.state in (QUEUED, RUNNING) and can_tell


def verdict(job: Job, status: JobStatus | None) -> Verdict:
    """Conclude how a job stands. `status` is what its scheduler says; None: it answers, and doesn't know the job."""
    if job.state in ENDED:
        return Verdict(job, job.state, job.reason)
    if status is not None and status.state == base.UNKNOWN:  # then the record is all there is
        return Verdict(job, job.state, status.reason)
    stopped = job.state == PREEMPTED
    if status is not None and status.alive:
        again = f", stopped {len(job.attempts)} times so far" if stopped else ""
        waits = status.state == base.PENDING
        return Verdict(job, QUEUED, status.reason + again) if waits else Verdict(job, RUNNING)
    if stopped and not scheduler_of(job.name).batch:
        return Verdict(job, FAILED, "told to stop; the same command goes on")
    before = f"{job.reason}, then " if stopped else ""
    how = "gone from the queue without a word" if status is None else status.reason or "ended without a word"
    return Verdict(job, FAILED, before + how)


def reference(job: Job) -> JobRef:
    """What schedulers are asked about a job by."""
    last = job.attempts[-1] if job.attempts else None
    process = Process(last.host, last.pid, last.process) if last else None
    return JobRef(job.name, job.user, process, last.restarts if last else 0)


def judge(root: Path, names: Collection[str] | None = None) -> dict[str, Verdict]:
    """Verdicts on some or all jobs, oldest first, with one question to each of their schedulers.

    Records that tell no end are read again after that: a job writes its end before it ends.
    """
    jobs = read_jobs(root) if names is None else _read(root, names)
    unsettled = [job for job in jobs if job.state not in ENDED]
    statuses = status_of([reference(job) for job in unsettled])
    again = {job.name: job for job in _read(root, [job.name for job in unsettled])}
    verdicts = {job.name: verdict(again.get(job.name, job), statuses.get(job.name)) for job in jobs}
    return {name: _with_its_parents(root, one, verdicts) for name, one in verdicts.items()}


def _with_its_parents(root: Path, one: Verdict, verdicts: Mapping[str, Verdict]) -> Verdict:
    """Of a job that never started: whether it waited in vain."""
    if one.state != FAILED or one.job.attempts or not one.job.after:
        return one
    failed = [name for name in one.job.after if _has_failed(root, name, verdicts)]
    if not failed:
        return replace(one, reason=f"never started: {one.reason}")
    return replace(one, reason=f"never started: {', '.join(failed)} did not end well")


def _has_failed(root: Path, array: str, verdicts: Mapping[str, Verdict]) -> bool:
    members = [one for name, one in verdicts.items() if name == array or name.startswith(f"{array}_")]
    if not members:
        paths = [record_file(root, array), *(root / "jobs").glob(f"{array}_*.json")]
        return any(job is not None and job.state == FAILED for job in map(read_job, paths))
    return any(member.state == FAILED for member in members)


def _read(root: Path, names: Collection[str]) -> list[Job]:
    return [job for name in names if (job := read_job(record_file(root, name)))]
