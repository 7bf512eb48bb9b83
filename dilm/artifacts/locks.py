"""Claims: who is making an artifact or a cell, so that two processes never make the same one.

A claim is a file made with O_EXCL semantics (a hard link, so that it is complete when it appears) and numbered by
attempt. Attempt n+1 may only be made when attempt n's process has ended, so two takers can't both win.
"""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dilm.core.io import disk_full_named, temporary_name
from dilm.scheduler.base import JobRef, Process, process_start
from dilm.scheduler.job import job_id, restarts, scheduler_of


def _owner() -> dict[str, object]:
    pid = os.getpid()
    owner = {"job": job_id(), "host": socket.gethostname(), "pid": pid, "start": process_start(pid)}
    return owner | {"restarts": restarts(), "user": os.getuid()}


def is_stale(claim: Path) -> bool:
    """Whether the claim's process has ended: by the process table, or else by the scheduler of its job.

    Where neither can tell, it counts as alive. A claim that can't be read is stale: it was whole when it appeared, so
    the machine crashed since.
    """
    try:
        owner = json.loads(claim.read_text())
    except (FileNotFoundError, ValueError):
        return True
    process = Process(owner["host"], owner["pid"], owner["start"], owner.get("user"))
    if (ended := process.has_ended()) is not None:
        return ended
    job = JobRef(str(owner["job"]), process=process, restarts=owner.get("restarts", 0))
    return scheduler_of(job.name).has_ended(job) is True


def _attempts(claim: Path) -> list[Path]:
    start = len(claim.name) + 1
    found = [path for path in claim.parent.glob(f"{claim.name}.[0-9]*") if path.name[start:].isdecimal()]
    return sorted(found, key=lambda path: int(path.suffix[1:]))


def take(claim: Path) -> Path | None:
    """Take the claim; the file that holds it, or None where a live process has it."""
    attempts = _attempts(claim)
    if attempts and not is_stale(attempts[-1]):
        return None
    number = int(attempts[-1].suffix[1:]) + 1 if attempts else 0
    held = claim.with_name(f"{claim.name}.{number}")
    temporary = temporary_name(claim)
    with disk_full_named(claim):
        claim.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(json.dumps(_owner()))
            os.link(temporary, held)
        except FileExistsError:
            if os.stat(temporary).st_nlink != 2:  # over NFS a link that was made may be reported as one that failed
                return None
        finally:
            temporary.unlink(missing_ok=True)
    if attempts and not (attempts[-1].exists() and is_stale(attempts[-1])):
        held.unlink()  # since this process looked, another one took over and gave back: numbers began anew
        return None
    return held


def release(claim: Path) -> None:
    """Give the claim back, and remove what earlier attempts left."""
    for attempt in reversed(_attempts(claim)):
        attempt.unlink(missing_ok=True)


def holder(claim: Path) -> str:
    """Who has the claim, for a message."""
    attempts = _attempts(claim)
    try:
        owner = json.loads(attempts[-1].read_text())
    except (IndexError, FileNotFoundError, ValueError):
        return "another process"
    return f"job {owner['job']} (process {owner['pid']} on {owner['host']}; its claim is {attempts[-1]})"


@contextmanager
def held(claim: Path) -> Iterator[bool]:
    """Hold a claim for the block; yields whether it was won."""
    won = take(claim) is not None
    try:
        yield won
    finally:
        if won:
            release(claim)
