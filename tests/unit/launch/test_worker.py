"""How processes end: exit status and record, whatever happened."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dilm.core.errors import ConfigError, DilmError
from dilm.core.io import TEMPORARY
from dilm.core.signals import Stopped
from dilm.launch.worker import Recorder, ending, user_error
from dilm.scheduler.records import Call, read_jobs

RUN_JOB = """
import json, sys
from dilm.scheduler.records import Call
from dilm.launch.worker import run_job
calls = json.loads(sys.argv[2])
run_job(sys.argv[1], tuple(Call(**{**call, "overrides": tuple(call["overrides"])}) for call in calls))
"""


def job(root: Path, cache: Path, *calls: tuple[str, list[str]], **environment: str) -> "subprocess.Popen[str]":
    """A job's process, as on a node."""
    given = [
        {
            "command": command,
            "overrides": ["experiment=tiny", "threads=1", f"root={root}", f"cache={cache}", *keys],
            "makes": {},
        }
        for command, keys in calls
    ]
    return subprocess.Popen(
        [sys.executable, "-c", RUN_JOB, str(root), json.dumps(given)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_call_that_fails_does_not_keep_the_next_from_running(tmp_path: Path, tiny_cache: Path) -> None:
    root = tmp_path / "runs"
    process = job(root, tiny_cache, ("evaluate", ["method=random"]), ("generate", ["method=random"]), SLURM_JOB_ID="7")
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 2 and errors.startswith("MissingArtifactError: ")
    assert list(root.glob("tiny/random-*"))
    (record,) = read_jobs(root)
    assert (record.name, record.state) == ("slurm-7", "failed")
    assert record.reason.startswith("MissingArtifactError: ")


def test_a_bug_has_its_traceback_and_one_line(tmp_path: Path, tiny_cache: Path) -> None:
    process = job(tmp_path, tiny_cache, ("nonsense", []), SLURM_JOB_ID="7")
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 1 and "Traceback" in errors
    (record,) = read_jobs(tmp_path)
    assert record.reason == "ModuleNotFoundError: No module named 'dilm.nonsense'"


@pytest.mark.parametrize(("sent", "state"), [(signal.SIGUSR2, "preempted"), (signal.SIGINT, "failed")])
def test_a_signal_ends_a_training_in_good_order(
    tmp_path: Path, tiny_cache: Path, sent: signal.Signals, state: str
) -> None:
    """Without Slurm nothing is queued again, and the same command goes on."""
    root, keys = tmp_path / "runs", ["stages=[pretrain]", "pretrain.steps=400", "checkpoint.steps=20"]
    process = job(root, tiny_cache, ("train", keys))
    while not [path for path in root.glob("tiny/*.state/step-*") if TEMPORARY not in path.name]:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == (75 if sent == signal.SIGUSR2 else 130), errors
    assert "the same command goes on" in errors
    (record,) = read_jobs(root)
    assert record.state == state and record.attempts[0].end is not None
    assert not [path for path in root.glob("tiny/*") if path.suffix != ".state"]  # no claim, nothing temporary
    process = job(root, tiny_cache, ("train", keys))
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 0 and "going on from" in said


def test_what_the_user_can_mend_is_told_apart_from_bugs() -> None:
    assert isinstance(user_error(ConfigError("x")), ConfigError)
    assert isinstance(user_error(OSError(28, "No space left on device", "f")), DilmError)
    denied = user_error(PermissionError(13, "Permission denied", "/others/runs"))
    assert str(denied) == "/others/runs: Permission denied; mend its permissions, or name another place."
    assert user_error(OSError(2, "No such file")) is None
    assert user_error(ValueError("x")) is None


@pytest.mark.parametrize(
    ("error", "status", "state"),
    [
        (ConfigError("x"), 2, "failed"),
        (ValueError("x"), 1, "failed"),
        (KeyboardInterrupt(), 130, "failed"),
        (SystemExit(0), 0, "done"),
        (SystemExit(3), 3, "failed"),
        (Stopped(again=True), 75, "preempted"),
    ],
)
def test_every_end_has_its_status(error: BaseException, status: int, state: str) -> None:
    end = ending(error, Recorder())
    assert (end.status, end.state) == (status, state)
    assert bool(end.reason) == (state != "done")


def test_other_ranks_leave_a_stopped_job_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exit status of theirs would end the step before the main rank has queued the job again."""
    monkeypatch.setenv("RANK", "1")
    assert ending(Stopped(again=True), Recorder()).status == 0


@pytest.mark.parametrize(("size", "status"), [("1", -signal.SIGABRT), ("2", 3)])
def test_one_of_several_ranks_leaves_without_pythons_shutdown(size: str, status: int) -> None:
    """Whatever libraries' threads do then, as abort here does, the status is the one that was meant."""
    code = "import atexit, os; from dilm.launch.worker import leave; atexit.register(os.abort); print('said'); leave(3)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "WORLD_SIZE": size}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (status, "said\n" if size == "2" else done.stdout)


def test_a_process_that_only_submits_chooses_no_device_for_its_jobs() -> None:
    """sbatch hands its environment on, from login nodes that have no GPU."""
    code = "import os; from dilm.launch import worker; worker.prepare(); print(os.environ.get('DS_ACCELERATOR'))"
    environment = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == "None\n"


def test_a_terminals_mistake_leaves_no_record(tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.begin(tmp_path, (Call("train", ()),))
    assert read_jobs(tmp_path)
    recorder.end(ending(ConfigError("x"), recorder))
    assert not list(tmp_path.iterdir())


def test_a_job_of_an_earlier_version_ends_in_one_line(tmp_path: Path) -> None:
    """What submitit kept for it names functions of modules that have moved."""
    code = (
        "import sys, types, submitit.core.utils as utils; sys.modules['dilm.runner'] = gone = types.ModuleType('gone');"
        "exec('def run_job(): pass', gone.__dict__); gone.run_job.__module__ = 'dilm.runner';"
        "utils.DelayedSubmission(gone.run_job).dump(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "7_submitted.pkl")], check=True)
    environment = os.environ | {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SUBMITIT_EXECUTOR": "slurm"}
    command = [sys.executable, "-m", "submitit.core._submit", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    told = [line for line in done.stderr.splitlines() if not line.startswith("submitit ")]
    assert done.returncode == 2 and len(told) == 1 and told[0].startswith("this job was queued by an earlier version")
