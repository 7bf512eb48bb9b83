"""Job records: what each job does, and how it stands or ended, in `<root>/jobs/<job>.json`.

The job itself writes its record, atomically; before it starts its submitter does, and whether a job that never wrote
its end is still alive is asked of Slurm or the process table. Torch-free.
"""

import json
import os
import socket
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from dilm import slurm
from dilm.claims import job_id, process_start
from dilm.files import TEMPORARY, write_bytes, write_json
from dilm.slurm import PENDING, SlurmJob

SCHEMA = 1
QUEUED, RUNNING, DONE, FAILED, PREEMPTED = STATES = ("queued", "running", "done", "failed", "preempted")
ENDED = (DONE, FAILED)


@dataclass(frozen=True)
class Call:
    """One command of a job: its keys, and what it makes."""

    command: str  # train, generate, evaluate, collect
    overrides: tuple[str, ...]
    task: str = ""
    makes: dict[str, list[str]] = field(default_factory=dict)  # stage: folders of artifacts below root, keys of cells


@dataclass(frozen=True)
class Attempt:
    """One time that a job ran."""

    start: float  # seconds since the epoch
    host: str
    pid: int
    process: str | None  # when the process started, which tells it from a later one of equal id
    restarts: int = 0  # times that Slurm had queued the job again
    node: str = ""  # Slurm's name of the host
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
    submitted: float = 0.0
    attempts: tuple[Attempt, ...] = ()
    schema: int = SCHEMA

    @property
    def node(self) -> str:
        """Where it ran last."""
        last = self.attempts[-1] if self.attempts else None
        return (last.node or last.host) if last else ""

    @property
    def seconds(self) -> float:
        """That it has run, in all attempts whose end is known."""
        return sum(attempt.end - attempt.start for attempt in self.attempts if attempt.end is not None)

    def keys(self, stage: str) -> list[str]:
        """What it makes of one stage."""
        return [key for call in self.calls for key in call.makes.get(stage, [])]


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
    paths = [path for path in (root / "jobs").glob("*.json") if TEMPORARY not in path.name]
    return sorted(filter(None, map(read_job, paths)), key=lambda job: (job.submitted, job.name))


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


def begin(root: Path, calls: tuple[Call, ...], gpus: int = 0, name: str = "", restarts: int = 0) -> Job:
    """Record that this process's job has started (once more)."""
    name = name or job_id()
    pid = os.getpid()
    node = os.environ.get("SLURMD_NODENAME", "")
    attempt = Attempt(time.time(), socket.gethostname(), pid, process_start(pid), restarts, node)
    known = read_job(record_file(root, name))
    if known is None or known.calls != calls:
        known = Job(name, QUEUED, calls, gpus=gpus, submitted=attempt.start)
    job = replace(known, state=RUNNING, reason="", attempts=(*known.attempts, attempt))
    _write(root, job)
    return job


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


def verdict(job: Job, queue: Mapping[str, SlurmJob] | None, accounting: Mapping[str, SlurmJob]) -> tuple[str, str]:
    """How a job really stands: its state, and why it failed or waits.

    `queue` is None where Slurm doesn't answer: then the record is all there is.
    """
    if job.state in ENDED:
        return job.state, job.reason
    if not job.name.startswith("slurm-"):
        return _verdict_of_process(job)
    if queue is None:
        return job.state, "Slurm does not answer"
    found = queue.get(job.name) or accounting.get(job.name)
    if found is not None and found.alive:
        again = f", stopped {len(job.attempts)} times so far" if job.state == PREEMPTED else ""
        return (QUEUED, f"{found.reason}{again}") if found.state in PENDING else (RUNNING, "")
    before = f"{job.reason}, then " if job.state == PREEMPTED else ""
    return FAILED, before + _how_it_ended(job, found)


def _how_it_ended(job: Job, found: SlurmJob | None) -> str:
    if found is None and not job.attempts and job.after:
        return f"never started: {', '.join(job.after)} did not end well"
    if found is None:
        return "gone from the queue without a word"
    if found.state.startswith("CANCELLED") and not job.attempts and job.after:
        return f"cancelled: {', '.join(job.after)} did not end well"
    if found.state == "COMPLETED":
        return "ended without a word"
    return f"ended by Slurm: {found.state}"


def _verdict_of_process(job: Job) -> tuple[str, str]:
    """Of a job on a plain machine: only its own host can tell."""
    if not job.attempts:
        return job.state, ""
    last = job.attempts[-1]
    if last.host != socket.gethostname():
        return job.state, f"on {last.host}, as far as its record tells"
    alive = last.process is not None and process_start(last.pid) == last.process
    if alive:
        return RUNNING, ""
    return FAILED, "told to stop; the same command goes on" if job.state == PREEMPTED else "killed"


def judge(root: Path, names: Collection[str] | None = None) -> dict[str, tuple[str, str]]:
    """Verdict on some or all jobs, with at most one call of squeue, and one of sacct for what the queue has forgotten.

    Records are read again after Slurm was asked: a job may end between the two, and writes its end before it ends.
    """
    if names is None:
        names = [job.name for job in read_jobs(root)]
    open_names = [job.name for job in _read(root, names) if job.state not in ENDED and job.name.startswith("slurm-")]
    queue = slurm.queue() if open_names else {}
    gone = [name for name in open_names if queue is not None and name not in queue]
    accounting = slurm.accounting(gone) if gone else {}
    return {job.name: verdict(job, queue, accounting) for job in _read(root, names)}


def _read(root: Path, names: Collection[str]) -> list[Job]:
    return [job for name in names if (job := read_job(record_file(root, name)))]
