"""Job records: what is written when, and what is concluded about a job that never wrote its end."""

import getpass
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from dilm.scheduler.base import JobStatus, process_start
from dilm.scheduler.job import status_of
from dilm.scheduler.records import (
    Attempt,
    Call,
    Job,
    Verdict,
    begin,
    extend,
    finish,
    judge,
    read_job,
    read_jobs,
    record_file,
    reference,
    verdict,
    write_queued,
)
from dilm.scheduler.slurm import Slurm, status_from

CALL = Call("train", ("task=sst2",), "sst2", {"pretrain": ["sst2/lm-gpt2-0"], "match": ["sst2/dilm-gpt2-1"]})


def job(name: str = "slurm-7", state: str = "running", **values: object) -> Job:
    attempt = Attempt(100.0, "elsewhere", 1, "2")
    return replace(Job(name, state, (CALL,), attempts=(attempt,)), **values)  # type: ignore[arg-type]


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    begin(tmp_path, (CALL,), gpus=2, name="slurm-7")
    found = read_job(record_file(tmp_path, "slurm-7"))
    assert found is not None and (found.state, found.calls, found.gpus) == ("running", (CALL,), 2)
    assert found.attempts[0].pid == os.getpid() and found.attempts[0].end is None
    finish(tmp_path, "slurm-7", "done")
    (ended,) = read_jobs(tmp_path)
    assert ended.state == "done" and ended.attempts[0].end is not None and ended.seconds >= 0
    assert not list(tmp_path.glob("jobs/*tmp*"))


def test_every_attempt_is_kept(tmp_path: Path) -> None:
    for restarts in range(3):
        begin(tmp_path, (CALL,), name="slurm-7", restarts=restarts)
        finish(tmp_path, "slurm-7", "preempted", "stopped by SIGUSR2")
    (found,) = read_jobs(tmp_path)
    assert [attempt.restarts for attempt in found.attempts] == [0, 1, 2]
    assert {attempt.state for attempt in found.attempts} == {"preempted"}


def test_a_record_of_other_calls_is_another_job(tmp_path: Path) -> None:
    """A process id, or the job id of a cluster that counts anew, comes again."""
    begin(tmp_path, (CALL,), name="slurm-7")
    begin(tmp_path, (replace(CALL, task="qqp"),), name="slurm-7")
    (found,) = read_jobs(tmp_path)
    assert found.calls[0].task == "qqp" and len(found.attempts) == 1


def test_what_a_rank_recorded_as_failed_stays_so(tmp_path: Path) -> None:
    begin(tmp_path, (CALL,), name="slurm-7")
    finish(tmp_path, "slurm-7", "failed", "rank 1: ValueError: x")
    finish(tmp_path, "slurm-7", "failed", "rank 0: connection closed")
    finish(tmp_path, "slurm-7", "done")
    (found,) = read_jobs(tmp_path)
    assert (found.state, found.reason) == ("failed", "rank 1: ValueError: x")


def test_queued_does_not_overwrite_a_job_that_has_started(tmp_path: Path) -> None:
    queued = job(state="queued", attempts=(), submitted=1e9)
    write_queued(tmp_path, queued)
    assert read_jobs(tmp_path) == [queued]
    write_queued(tmp_path, job("slurm-8", "queued", attempts=(), submitted=1e9))
    begin(tmp_path, (CALL,), name="slurm-9")
    write_queued(tmp_path, job("slurm-9", "queued", attempts=()))
    assert {one.name: one.state for one in read_jobs(tmp_path)} == {
        "slurm-7": "queued",
        "slurm-8": "queued",
        "slurm-9": "running",
    }


def test_a_torn_or_foreign_record_is_no_record(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "slurm-1.json").write_text('{"name": "slurm-1", "sta')
    (tmp_path / "jobs" / "slurm-2.json").write_text('{"schema": 99}')
    assert read_jobs(tmp_path) == []


PENDING, RUNNING = status_from("PENDING", "Priority"), status_from("RUNNING")
Statuses = Mapping[str, JobStatus]
Concluded = Callable[..., Verdict]


@pytest.fixture
def concluded(monkeypatch: pytest.MonkeyPatch) -> Concluded:
    """The verdict on a record, where squeue and sacct know these jobs; None: squeue does not answer."""

    def conclude(record: Job, queue: Statuses | None, accounting: Statuses) -> Verdict:
        monkeypatch.setattr(Slurm, "queue", lambda self, users: queue)
        monkeypatch.setattr(Slurm, "accounting", lambda self, names: accounting)
        return verdict(record, status_of([reference(record)]).get(record.name))

    return conclude


@pytest.mark.parametrize(
    ("record", "found", "expected"),
    [
        (job(state="done"), None, ("done", "")),
        (job(state="failed", reason="x"), RUNNING, ("failed", "x")),
        (job(), RUNNING, ("running", "")),
        (job(), status_from("COMPLETING"), ("running", "")),
        (job(), PENDING, ("queued", "Priority")),  # a node failed, and Slurm queued it again
        (job(state="queued", attempts=()), RUNNING, ("running", "")),
        (job(state="preempted"), PENDING, ("queued", "Priority, stopped 1 times so far")),
        (job(), status_from("OUT_OF_MEMORY"), ("failed", "ended by Slurm: OUT_OF_MEMORY")),
        (job(), status_from("NODE_FAIL"), ("failed", "ended by Slurm: NODE_FAIL")),
        (job(), status_from("COMPLETED"), ("failed", "ended without a word")),
        (job(), None, ("failed", "gone from the queue without a word")),
        (job(state="preempted", reason="x"), None, ("failed", "x, then gone from the queue without a word")),
    ],
)
def test_verdicts(concluded: Concluded, record: Job, found: JobStatus | None, expected: tuple[str, str]) -> None:
    one = concluded(record, {} if found is None else {"slurm-7": found}, {})
    assert (one.state, one.reason) == expected
    assert one.live == (one.state in ("queued", "running"))
    if found is not None and not found.alive:  # the queue has forgotten it, the accounting has not
        assert concluded(record, {}, {"slurm-7": found}) == one


def test_a_silent_slurm_proves_nothing(concluded: Concluded) -> None:
    one = concluded(job(), None, {})
    assert (one.state, one.reason, one.live) == ("running", "Slurm does not answer", True)


@pytest.mark.parametrize(
    ("parent", "reason"),
    [
        ("failed", "never started: slurm-6 did not end well"),
        ("done", "never started: ended by Slurm: CANCELLED"),  # by its user
    ],
)
def test_why_a_job_never_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parent: str, reason: str) -> None:
    for name in ("slurm-6_0", "slurm-6_1"):
        begin(tmp_path, (CALL,), name=name)
    finish(tmp_path, "slurm-6_0", "done")
    finish(tmp_path, "slurm-6_1", parent)
    write_queued(tmp_path, job(state="queued", attempts=(), after=("slurm-6",)))
    monkeypatch.setattr(Slurm, "queue", lambda self, users: {"slurm-7": status_from("CANCELLED")})
    for names in (None, ["slurm-7"]):
        assert judge(tmp_path, names)["slurm-7"].reason == reason


def test_a_process_of_this_host_is_looked_up(concluded: Concluded) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    start = process_start(child.pid)
    mine = job("vm-1", attempts=(Attempt(1.0, socket.gethostname(), child.pid, start),))
    assert concluded(mine, {}, {}).live
    child.communicate()
    ended = concluded(mine, {}, {})
    assert (ended.state, ended.reason) == ("failed", "killed")
    there = concluded(job("there-1"), {}, {})
    assert there.state == "running" and "elsewhere" in there.reason and not there.live  # nobody can tell from here


def test_slurm_is_asked_once_and_records_are_read_again_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that ends between the two has written its end."""
    for name in ("slurm-1", "slurm-2"):
        begin(tmp_path, (CALL,), name=name)
    asked = []

    def answer(self: Slurm, users: set[str]) -> dict[str, JobStatus]:
        asked.append(users)
        finish(tmp_path, "slurm-1", "done")
        return {"slurm-1": status_from("COMPLETED"), "slurm-2": RUNNING}

    monkeypatch.setattr(Slurm, "queue", answer)
    assert {name: one.state for name, one in judge(tmp_path).items()} == {"slurm-1": "done", "slurm-2": "running"}
    assert asked == [{getpass.getuser()}]
    finish(tmp_path, "slurm-2", "done")
    judge(tmp_path)
    assert len(asked) == 1  # all records tell


def test_a_job_that_was_queued_again_keeps_what_its_first_attempt_recorded(tmp_path: Path) -> None:
    """The calls of a template's job become known one by one."""
    begin(tmp_path, (CALL,), name="slurm-7", log="l", gpus=2)
    second = replace(CALL, task="qqp")
    extend(tmp_path, "slurm-7", second)
    begin(tmp_path, (CALL,), name="slurm-7", restarts=1)
    (found,) = read_jobs(tmp_path)
    assert found.calls == (CALL, second) and len(found.attempts) == 2 and (found.log, found.gpus) == ("l", 2)
