"""What every scheduler must do, as tests that are run for each; and a batch system of one class, for tests."""

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from dilm.core.errors import ConfigError, SchedulerError
from dilm.scheduler.base import (
    ENDED,
    PENDING,
    RUNNING,
    UNKNOWN,
    CurrentJob,
    JobRef,
    JobStatus,
    Process,
    Scheduler,
    Submission,
    array_name,
    port,
    process_start,
    ranks_from,
    register,
)
from dilm.scheduler.job import current_job, rank_variables, scheduler_of
from dilm.scheduler.records import (
    DONE,
    FAILED,
    QUEUED,
    Call,
    Job,
    Verdict,
    begin,
    finish,
    judge,
    read_job,
    record_file,
    write_queued,
)
from dilm.scheduler.records import RUNNING as RECORDED_RUNNING

TESTS = Path(__file__).resolve().parent
CALLS = (Call("train", (), "tiny", {"pretrain": ["tiny/lm"]}),)
VANISH = -1  # in place of an exit status


def work(root: str, place: str, number: int, status: int) -> NoReturn:
    """A job's process: tell who it is, wait until it is let go, write the job's end, and end with this status."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # submitit ignores it, and leaves it to its jobs
    told = current_job()
    variables = rank_variables()
    if variables.get("RANK", "0") == "0":
        begin(Path(root), CALLS, restarts=told.restarts)
    file = Path(place) / f"{number}.{variables.get('RANK', '0')}.{told.restarts}"
    file.with_suffix(".new").write_text(json.dumps([told.name, told.restarts, os.getpid(), variables]))
    file.with_suffix(".new").rename(file)
    while not (Path(place) / f"{number}.go").exists():
        time.sleep(0.05)
    if status == VANISH:
        os.kill(os.getpid(), signal.SIGKILL)
    finish(Path(root), told.name, FAILED if status else DONE, "as told" if status else "")
    sys.exit(status)


@register
class Toy(Scheduler):
    """A batch system: each job is a Python process or several, begun when what it waits for has ended well."""

    prefix = "toy"
    title = "the toy"
    job_variable = "TOY_JOB"

    def __init__(self) -> None:
        self.waiting: dict[str, tuple[Submission, Path]] = {}
        self.processes: dict[str, list[subprocess.Popen[bytes]]] = {}
        self.restarts: dict[str, int] = {}
        self.commands: dict[str, tuple[Submission, Path]] = {}
        self.cancelled: set[str] = set()
        self.count = 0

    def current_job(self, environment: Mapping[str, str]) -> CurrentJob | None:
        name = environment.get("TOY_JOB")
        return CurrentJob(name, int(environment["TOY_RESTARTS"]), "toy1", gpus=0) if name else None

    def rank_variables(self, environment: Mapping[str, str]) -> dict[str, str]:
        names = {"RANK": "TOY_RANK", "WORLD_SIZE": "TOY_RANKS", "LOCAL_RANK": "TOY_RANK"}
        if not (ranks := ranks_from(environment, names, "start jobs by the toy")):
            return {}
        meeting = port(*self.bare_id(environment["TOY_JOB"]).split("_"))
        return ranks | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(meeting)}

    def status(self, jobs: Collection[JobRef]) -> dict[str, JobStatus]:
        self._advance()
        return {job.name: self._status(job.name) for job in jobs if job.name in self.commands}

    def _status(self, name: str) -> JobStatus:
        if name in self.cancelled:
            return JobStatus(ENDED, "what it waited for did not end well", ended_well=False)
        if name in self.waiting:
            return JobStatus(PENDING, "waits for others")
        ends = [process.poll() for process in self.processes[name]]
        if None in ends:
            return JobStatus(RUNNING)
        return JobStatus(ENDED, "" if not any(ends) else f"ended by the toy: {ends}", ended_well=not any(ends))

    def _advance(self) -> None:
        """Begin what has waited long enough."""
        for name, (submission, file) in list(self.waiting.items()):
            before = [job for job in self.commands for wanted in submission.after if wanted in (job, array_name(job))]
            states = [self._status(job) for job in before]
            if any(state.ended_well is False for state in states):
                self.cancelled.add(name)
            if not any(state.alive for state in states):
                del self.waiting[name]
                if name not in self.cancelled:
                    self._begin(name, submission, file)

    def _begin(self, name: str, submission: Submission, file: Path) -> None:
        n_ranks = int(submission.asked.get("tasks_per_node") or 1)
        code = "import pickle, sys, scheduling; job = pickle.load(open(sys.argv[1], 'rb')); job[0](*job[1])"
        variables = {"TOY_JOB": name, "TOY_RESTARTS": str(self.restarts.get(name, 0)), "TOY_RANKS": str(n_ranks)}
        command = [sys.executable, "-c", code, str(file)]
        with open(file.with_suffix(".log"), "ab") as log:
            self.processes[name] = [
                subprocess.Popen(
                    command, env=os.environ | variables | {"TOY_RANK": str(rank)}, stdout=log, stderr=subprocess.STDOUT
                )
                for rank in range(n_ranks)
            ]

    def has_ended(self, job: JobRef) -> bool | None:
        if job.name not in self.commands:
            return None
        return not self.status([job])[job.name].alive or self.restarts.get(job.name, 0) > job.restarts

    def submit(self, submission: Submission) -> list[str]:
        self.count += 1
        names = [f"toy-{self.count}_{task}" for task in range(len(submission.arguments))]
        submission.folder.mkdir(parents=True, exist_ok=True)
        for name, arguments in zip(names, submission.arguments, strict=True):
            file = submission.folder / f"{name}.pkl"
            file.write_bytes(pickle.dumps((submission.function, arguments)))
            self.commands[name] = self.waiting[name] = (submission, file)
        self._advance()
        return names

    def check(self, submission: Submission) -> None:
        if submission.asked.get("nodes", 1) > 1:
            raise ConfigError("launcher.nodes: the toy has one node.")

    def max_array_size(self) -> int:
        return 3

    def requeue(self, name: str) -> None:
        for process in self.processes[name]:
            process.kill()
            process.wait()
        self.restarts[name] = self.restarts.get(name, 0) + 1
        self.waiting[name] = self.commands[name]

    def cancel_command(self, names: Collection[str]) -> str:
        return f"kill {' '.join(str(process.pid) for name in names for process in self.processes[name])}"


def until(holds: Callable[[], object], seconds: float = 100.0) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


class Desk:
    """Submits jobs of `work` to a scheduler, and looks after them."""

    def __init__(self, scheduler: Scheduler, folder: Path, asked: Mapping[str, Any]) -> None:
        self.scheduler, self.asked = scheduler, asked
        self.root, self.place = folder / "runs", folder / "place"
        self.place.mkdir()
        self.numbers: dict[str, int] = {}

    def submission(self, *statuses: int, after: tuple[str, ...] = (), **asked: Any) -> Submission:
        """An array of a job for each exit status."""
        first = len(self.numbers)
        arguments = [(str(self.root), str(self.place), first + index, end) for index, end in enumerate(statuses)]
        return Submission("train", self.root / "jobs", work, arguments, {**self.asked, **asked}, after)

    def submit(self, *statuses: int, after: tuple[str, ...] = (), **asked: Any) -> list[str]:
        """Submit an array, and write its records as a submitter does."""
        names = self.scheduler.submit(self.submission(*statuses, after=after, **asked))
        for name in names:
            self.numbers[name] = len(self.numbers)
            write_queued(self.root, Job(name, QUEUED, CALLS, after=after, user="", submitted=time.time()))
        return names

    def told(self, name: str, rank: int = 0, restarts: int = 0) -> tuple[str, int, int, dict[str, str]]:
        """What a job's process told of itself, once it has started."""
        file = self.place / f"{self.numbers[name]}.{rank}.{restarts}"
        until(file.exists)
        job, again, pid, variables = json.loads(file.read_text())
        return job, again, pid, variables

    def let_go(self, *names: str) -> None:
        """Have jobs end, now or as soon as they have started."""
        for name in names:
            (self.place / f"{self.numbers[name]}.go").touch()

    def ref(self, name: str) -> JobRef:
        """What the job's record tells schedulers."""
        job = read_job(record_file(self.root, name))
        assert job is not None
        last = job.attempts[-1] if job.attempts else None
        process = Process(last.host, last.pid, last.process) if last else None
        return JobRef(name, process=process, restarts=last.restarts if last else 0)

    def status(self, name: str) -> JobStatus:
        """What the scheduler says."""
        return self.scheduler.status([self.ref(name)]).get(name, JobStatus(UNKNOWN))

    def end_of(self, name: str) -> JobStatus:
        """What the scheduler says once the job has ended."""
        until(lambda: self.status(name).state == ENDED)
        return self.status(name)

    def verdict(self, name: str) -> Verdict:
        """What is concluded from record and scheduler."""
        return judge(self.root, [name])[name]

    def close(self) -> None:
        """End what is left."""
        self.let_go(*self.numbers)
        for name in self.numbers:
            if self.status(name).alive:
                subprocess.run(self.scheduler.cancel_command([name]), shell=True, check=False)
        for name in self.numbers:
            with suppress(AssertionError):
                until(lambda name=name: not self.status(name).alive, 20)  # type: ignore[misc]


class Contract:
    """Tests of a scheduler. A subclass has the fixture `scheduler`."""

    @pytest.fixture
    def desk(self, scheduler: Scheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
        """A desk that submits jobs of one CPU process to the scheduler."""
        paths = [str(TESTS), str(TESTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        monkeypatch.setenv("PYTHONPATH", ":".join(paths))
        asked = {"nodes": 1, "tasks_per_node": 1, "timeout_min": 5}
        if scheduler.batch:
            asked |= {"cpus_per_task": 1, "mem_gb": 1}
        desk = Desk(scheduler, tmp_path, asked)
        yield desk
        desk.close()

    def test_a_job_is_alive_while_it_runs_and_has_ended_well(self, desk: Desk) -> None:
        (name,) = desk.submit(0)
        assert scheduler_of(name) is desk.scheduler
        desk.told(name)
        assert desk.status(name).state == RUNNING
        assert desk.scheduler.has_ended(desk.ref(name)) is False
        one = desk.verdict(name)
        assert (one.state, one.live) == (RECORDED_RUNNING, True)
        desk.let_go(name)
        end = desk.end_of(name)
        assert end.ended_well is (True if desk.scheduler.batch else None)
        assert desk.scheduler.has_ended(desk.ref(name)) is True
        one = desk.verdict(name)
        assert (one.state, one.live) == (DONE, False)

    def test_a_job_that_fails_has_ended_badly(self, desk: Desk) -> None:
        (name,) = desk.submit(3)
        desk.let_go(name)
        desk.told(name)
        end = desk.end_of(name)
        assert end.ended_well is (False if desk.scheduler.batch else None)
        one = desk.verdict(name)
        assert (one.state, one.reason, one.live) == (FAILED, "as told", False)

    def test_a_job_that_is_killed_has_failed_though_its_record_says_that_it_runs(self, desk: Desk) -> None:
        (name,) = desk.submit(VANISH)
        desk.told(name)
        desk.let_go(name)
        end = desk.end_of(name)
        assert end.ended_well is (False if desk.scheduler.batch else None) and end.reason
        record = read_job(record_file(desk.root, name))
        assert record is not None and record.state == RECORDED_RUNNING
        one = desk.verdict(name)
        assert (one.state, one.reason, one.live) == (FAILED, end.reason, False)

    def test_of_a_job_that_was_never_heard_of_nothing_is_known(self, desk: Desk) -> None:
        process = Process("elsewhere", 1, "1")
        job = JobRef(f"{desk.scheduler.prefix}-3999999", process=process)
        assert scheduler_of(job.name) is desk.scheduler
        assert desk.scheduler.status([job]).get(job.name, JobStatus(UNKNOWN)).state == UNKNOWN
        assert desk.scheduler.accounting([job.name]) == {}

    def test_jobs_of_an_array_are_told_apart(self, desk: Desk) -> None:
        names = desk.submit(0, 3, 0)
        assert len(set(names)) == 3 and all(map(desk.scheduler.owns, names))
        assert len({array_name(name) for name in names}) == (1 if desk.scheduler.batch else 3)
        for name in names:
            desk.told(name)
        desk.let_go(*names[:2])
        ends = [desk.end_of(name) for name in names[:2]]
        assert [desk.verdict(name).state for name in names] == [DONE, FAILED, RECORDED_RUNNING]
        if desk.scheduler.batch:
            assert [end.ended_well for end in ends] == [True, False]

    def test_a_job_knows_its_name_and_its_ranks(self, desk: Desk) -> None:
        single, several = *desk.submit(0), *desk.submit(0, tasks_per_node=2)
        assert desk.told(single)[::3] == (single, {})
        ranks = [desk.told(several, rank) for rank in range(2)]
        assert [(name, restarts) for name, restarts, _, _ in ranks] == [(several, 0)] * 2
        variables = [variables for *_, variables in ranks]
        assert [(one["RANK"], one["WORLD_SIZE"], one["LOCAL_RANK"]) for one in variables] == [
            ("0", "2", "0"),
            ("1", "2", "1"),
        ]
        assert variables[0]["MASTER_ADDR"] and variables[0]["MASTER_PORT"] == variables[1]["MASTER_PORT"]

    def test_this_process_is_of_no_job_of_the_schedulers(self, desk: Desk) -> None:
        assert desk.scheduler.current_job({}) is None and desk.scheduler.rank_variables({}) == {}
        plain = f"{socket.gethostname()}-{os.getpid()}"
        assert current_job() == CurrentJob(plain) and not desk.scheduler.owns(plain)

    def test_a_job_waits_for_those_that_it_needs(self, desk: Desk) -> None:
        if not desk.scheduler.batch:
            with pytest.raises(ConfigError, match="can't wait for slurm-1"):
                desk.submit(0, after=("slurm-1",))
            return
        first = desk.submit(0, 0)
        (second,) = desk.submit(0, after=(array_name(first[0]),))
        desk.told(first[0])
        desk.let_go(first[0])
        desk.end_of(first[0])
        assert desk.status(second).state == PENDING and desk.verdict(second).state == QUEUED
        desk.let_go(*first[1:], second)
        assert desk.end_of(second).ended_well is True and desk.verdict(second).state == DONE

    def test_a_job_whose_need_fails_never_starts(self, desk: Desk) -> None:
        if not desk.scheduler.batch:
            return  # its jobs wait for none
        (first,) = desk.submit(3)
        (second,) = desk.submit(0, after=(first,))
        desk.let_go(first, second)
        assert desk.end_of(second).ended_well is False
        one = desk.verdict(second)
        assert (one.state, one.reason) == (FAILED, f"never started: {first} did not end well")

    def test_a_job_that_is_queued_again_knows_it(self, desk: Desk) -> None:
        (name,) = desk.submit(0)
        desk.told(name)
        if not desk.scheduler.batch:
            with pytest.raises(SchedulerError, match="does not queue"):
                desk.scheduler.requeue(name)
            return
        before = desk.ref(name)
        desk.scheduler.requeue(name)
        until(lambda: desk.scheduler.has_ended(before))
        assert desk.verdict(name).live
        assert desk.told(name, restarts=1)[:2] == (name, 1)
        until(lambda: desk.ref(name).restarts == 1)
        assert desk.scheduler.has_ended(before) is True and desk.scheduler.has_ended(desk.ref(name)) is False
        desk.let_go(name)
        desk.end_of(name)
        record = read_job(record_file(desk.root, name))
        assert record is not None and [attempt.restarts for attempt in record.attempts] == [0, 1]

    def test_users_are_told_what_ends_a_job(self, desk: Desk) -> None:
        (name,) = desk.submit(0)
        *_, pid, _ = desk.told(name)
        subprocess.run(desk.scheduler.cancel_command([name]), shell=True, check=True)
        desk.end_of(name)
        until(lambda: process_start(pid) is None)
        assert desk.verdict(name).state == FAILED

    def test_a_scheduler_says_what_it_would_take(self, desk: Desk) -> None:
        submission = desk.submission(0, 0)
        desk.scheduler.check(submission)
        desk.scheduler.check(replace(submission, after=(f"{desk.scheduler.prefix}-3999999",)))
        assert isinstance(desk.scheduler.script(submission), str)
        assert desk.scheduler.max_array_size() >= 1
        assert not desk.numbers and not desk.root.exists()
