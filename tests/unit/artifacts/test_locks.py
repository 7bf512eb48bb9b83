"""Claims among real processes: one winner, and a takeover only where the holder has ended."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dilm.artifacts import locks
from dilm.artifacts.locks import held, holder, is_stale, release, take
from dilm.core.errors import DiskFullError
from dilm.scheduler import base
from dilm.scheduler.base import process_start
from dilm.scheduler.job import job_id
from dilm.scheduler.slurm import Slurm


@pytest.fixture(autouse=True)
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Slurm answers, also where one is up."""
    monkeypatch.setattr(Slurm, "has_ended", lambda self, job: None)


# Reads names of claims, tries to take each, and tells whether it won; what it took it holds until its end.
TAKER = """
import sys
from pathlib import Path
from dilm.artifacts.locks import take
print("ready", flush=True)
for line in sys.stdin:
    print(take(Path(line.strip())) is not None, flush=True)
"""

Taker = subprocess.Popen[str]


@contextmanager
def takers(count: int) -> Iterator[list[Taker]]:
    """So many processes, ready to take claims; ended afterwards."""
    started = [
        subprocess.Popen([sys.executable, "-c", TAKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    try:
        for taker in started:
            assert answer(taker) == "ready"
        yield started
    finally:
        for taker in started:
            taker.kill()
            taker.communicate()


def ask(taker: Taker, claim: Path) -> None:
    assert taker.stdin is not None
    taker.stdin.write(f"{claim}\n")
    taker.stdin.flush()


def answer(taker: Taker) -> str:
    assert taker.stdout is not None
    return taker.stdout.readline().strip()


def wins(processes: list[Taker], claim: Path) -> int:
    """How many of the processes win the claim, all asked at the same time."""
    for taker in processes:
        ask(taker, claim)
    return sum(answer(taker) == "True" for taker in processes)


def write_claim(claim: Path, number: int = 0, **owner: object) -> None:
    """A claim file of another process; by default of one that has ended."""
    whole = {"job": "slurm-7", "host": socket.gethostname(), "pid": 2**22 + 1, "start": "1", **owner}
    claim.with_name(f"{claim.name}.{number}").write_text(json.dumps(whole))


def test_one_of_many_processes_wins(tmp_path: Path) -> None:
    with takers(8) as processes:
        assert [wins(processes, tmp_path / f"cell{number}") for number in range(40)] == [1] * 40


def test_one_of_many_processes_takes_over(tmp_path: Path) -> None:
    for number in range(40):
        write_claim(tmp_path / f"cell{number}")
    with takers(8) as processes:
        assert [wins(processes, tmp_path / f"cell{number}") for number in range(40)] == [1] * 40
    assert {path.suffix for path in tmp_path.iterdir()} == {".0", ".1"}


def test_a_claim_is_held_while_its_process_lives_and_taken_over_when_it_was_killed(tmp_path: Path) -> None:
    claim = tmp_path / "cell"
    with takers(1) as (process,):
        assert wins([process], claim) == 1
        assert take(claim) is None
        owner = f"job {socket.gethostname()}-{process.pid} (process {process.pid} on {socket.gethostname()}; "
        assert holder(claim) == f"{owner}its claim is {claim}.0)"
        os.kill(process.pid, signal.SIGKILL)
        wait_for_end(process.pid)  # nobody has waited for it: it is still in the process table
        assert take(claim) == tmp_path / "cell.1"


def wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + 20
    while process_start(pid) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_process_has_one_start_and_an_ended_one_none() -> None:
    with takers(1) as (process,):
        start = process_start(process.pid)
        assert start is not None
        assert process_start(process.pid) == start
    assert process_start(process.pid) is None
    assert int(start) >= int(process_start(os.getpid()) or 0)


def test_a_released_claim_can_be_taken_again(tmp_path: Path) -> None:
    claim = tmp_path / "below" / "cell"
    assert take(claim) == tmp_path / "below" / "cell.0"
    assert take(claim) is None
    release(claim)
    assert list(claim.parent.iterdir()) == []
    assert take(claim) == tmp_path / "below" / "cell.0"


def test_releasing_removes_what_earlier_attempts_left(tmp_path: Path) -> None:
    for number in (0, 1, 9):
        write_claim(tmp_path / "cell", number)
    assert take(tmp_path / "cell") == tmp_path / "cell.10"
    release(tmp_path / "cell")
    assert list(tmp_path.iterdir()) == []


def test_claims_whose_names_begin_alike_are_apart(tmp_path: Path) -> None:
    assert take(tmp_path / "cell") is not None
    assert take(tmp_path / "cell.1x") is not None
    assert take(tmp_path / "cel") is not None
    release(tmp_path / "cell")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cel.0", "cell.1x.0"]


def test_a_claim_is_held_for_a_block_and_given_back_when_it_fails(tmp_path: Path) -> None:
    claim = tmp_path / "cell"
    with pytest.raises(ValueError), held(claim) as won:
        assert won
        with held(claim) as again:
            assert not again
        assert take(claim) is None, "the one that lost must not release it"
        raise ValueError
    assert list(tmp_path.iterdir()) == []


def test_a_claim_of_another_host_counts_as_alive(tmp_path: Path) -> None:
    write_claim(tmp_path / "cell", host="elsewhere")
    assert not is_stale(tmp_path / "cell.0")
    assert take(tmp_path / "cell") is None
    assert holder(tmp_path / "cell") == (
        f"job slurm-7 (process {2**22 + 1} on elsewhere; its claim is {tmp_path / 'cell.0'})"
    )


@pytest.mark.parametrize(
    ("start", "stale"), [pytest.param(process_start(os.getpid()), False, id="own-False"), ("12345", True)]
)
def test_a_later_process_with_the_same_number_is_told_apart(tmp_path: Path, start: str, stale: bool) -> None:
    write_claim(tmp_path / "cell", pid=os.getpid(), start=start)
    assert is_stale(tmp_path / "cell.0") == stale
    assert (take(tmp_path / "cell") is not None) == stale


@pytest.mark.parametrize("content", ["", '{"host": "el'])
def test_a_claim_that_a_crash_of_the_machine_emptied_is_stale(tmp_path: Path, content: str) -> None:
    (tmp_path / "cell.0").write_text(content)
    assert holder(tmp_path / "cell") == "another process"
    assert take(tmp_path / "cell") == tmp_path / "cell.1"


@pytest.mark.parametrize(("ended", "stale"), [(True, True), (False, False), (None, False)])
def test_of_a_job_elsewhere_slurm_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: bool | None, stale: bool
) -> None:
    asked: list[tuple[str, int]] = []
    monkeypatch.setattr(Slurm, "has_ended", lambda self, job: asked.append((job.name, job.restarts)) or ended)
    write_claim(tmp_path / "cell", host="elsewhere")
    assert is_stale(tmp_path / "cell.0") is stale
    assert asked == [("slurm-7", 0)]


def test_of_another_users_process_slurm_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose processes this host may hide."""
    assert take(tmp_path / "cell")
    monkeypatch.setattr(locks.os, "getuid", lambda: 4711)
    monkeypatch.setattr(base, "process_start", lambda pid: None)
    assert not is_stale(tmp_path / "cell.0")


def test_a_link_that_nfs_reports_as_failed_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def made(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError

    monkeypatch.setattr(locks.os, "link", made)
    assert take(tmp_path / "cell") == tmp_path / "cell.0"


def test_a_claim_that_vanished_is_stale(tmp_path: Path) -> None:
    assert is_stale(tmp_path / "cell.0")
    assert holder(tmp_path / "cell") == "another process"


def test_a_taker_that_was_overtaken_does_not_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between this process's look and its link, another one takes the claim over."""
    claim = tmp_path / "cell"
    write_claim(claim)
    link = os.link

    def overtaken(source: Path, target: Path) -> None:
        write_claim(claim, 1, host="elsewhere")
        link(source, target)

    monkeypatch.setattr(locks.os, "link", overtaken)
    assert take(claim) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cell.0", "cell.1"]


@pytest.mark.parametrize("taken_anew", [True, False])
def test_a_taker_that_slept_through_a_takeover_and_its_release_does_not_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken_anew: bool
) -> None:
    """The number that it is about to link is free again, though another process may hold a smaller one."""
    claim = tmp_path / "cell"
    write_claim(claim)
    link = os.link

    def slept(source: Path, target: Path) -> None:
        release(claim)
        if taken_anew:
            write_claim(claim, 0, host="elsewhere")
        link(source, target)

    monkeypatch.setattr(locks.os, "link", slept)
    assert take(claim) is None
    assert [path.name for path in tmp_path.iterdir()] == (["cell.0"] if taken_anew else [])


def test_a_full_disk_leaves_no_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(locks.os, "link", full)
    with pytest.raises(DiskFullError, match="cell: no space is left"):
        take(tmp_path / "cell")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"SLURM_JOB_ID": "41"}, "slurm-41"),
        ({"SLURM_JOB_ID": "45", "SLURM_ARRAY_JOB_ID": "42", "SLURM_ARRAY_TASK_ID": "3"}, "slurm-42_3"),
        pytest.param({}, f"{socket.gethostname()}-{os.getpid()}", id="none-process"),
    ],
)
def test_a_job_is_named_by_slurm_or_by_its_process(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str
) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert job_id() == expected
