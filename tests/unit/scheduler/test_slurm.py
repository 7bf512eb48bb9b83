"""What Slurm prints, read; and who a process is among those of its step."""

import os
import stat
from pathlib import Path

import pytest

from dilm.core.errors import ConfigError, SlurmError
from dilm.scheduler import slurm
from dilm.scheduler.base import ENDED, PORTS, RUNNING, CurrentJob, JobRef, JobStatus, Submission, port
from dilm.scheduler.base import PENDING as WAITS
from dilm.scheduler.slurm import Slurm, call, job_name, parse_accounting, parse_queue

SLURM = Slurm()
queue, accounting, rank_variables = SLURM.queue, SLURM.accounting, SLURM.rank_variables
STEP = {
    "SLURM_JOB_ID": "812",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "1",
    "SLURM_STEP_NODELIST": "n1",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}


def test_a_job_is_named_as_slurm_names_it() -> None:
    assert job_name("17") == "slurm-17"
    assert job_name("19", "17", "2") == "slurm-17_2"
    assert job_name("17", "17", "N/A") == "slurm-17"  # squeue's word outside arrays
    assert SLURM.bare_id("slurm-17_2") == "17_2"


def test_the_queue_is_read() -> None:
    found = parse_queue("17|N/A|17|RUNNING|None\n18|5|21|PENDING|Dependency\n19|0|22|FAILED|x\n")
    assert found == {
        "slurm-17": JobStatus(RUNNING, "None"),
        "slurm-18_5": JobStatus(WAITS, "Dependency"),
        "slurm-19_0": JobStatus(ENDED, "ended by Slurm: FAILED", ended_well=False),
    }
    assert [job.alive for job in found.values()] == [True, True, False]


def test_accounting_sums_the_attempts_of_a_requeued_job() -> None:
    found = parse_accounting("17|REQUEUED|100\n17|COMPLETED|50\n18_1|CANCELLED by 0|7\n19|PENDING|0\n")
    assert found["slurm-17"] == JobStatus(ENDED, "", 150, ended_well=True)
    assert found["slurm-18_1"] == JobStatus(ENDED, "ended by Slurm: CANCELLED", 7, ended_well=False)
    assert found["slurm-19"].alive


def command(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_without_an_answer_nothing_is_concluded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert queue({"ada"}) is None and accounting(["slurm-1"]) == {}
    with pytest.raises(SlurmError, match="squeue is not on this machine's PATH"):
        call("squeue")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}:/bin:/usr/bin")
    for name in ("squeue", "sacct", "scontrol"):
        command(tmp_path, name, "echo 'slurm: error: Unable to contact slurm controller' >&2; exit 1")
    assert queue({"ada"}) is None and accounting(["slurm-1"]) == {}
    slurm._has_ended.cache_clear()
    assert SLURM.has_ended(JobRef("slurm-1")) is None
    with pytest.raises(SlurmError, match="Unable to contact slurm controller"):
        SLURM.requeue("slurm-1")


def test_the_jobs_of_all_who_submitted_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command(tmp_path, "squeue", 'echo "1|N/A|1|RUNNING|$1 $2"')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    asked = [found["slurm-1"].reason for found in (queue({"bob", "ada"}), queue({""})) if found]
    assert asked == ["-u ada,bob", "--me -h"]


@pytest.mark.parametrize(
    ("shown", "restarts", "ended"),
    [
        ("JobId=1 JobState=RUNNING Restarts=0", 0, False),
        ("JobId=1 JobState=RUNNING Restarts=2", 1, True),  # a later attempt than the one that is asked about
        ("JobId=1 JobState=PENDING Restarts=1", 0, True),
        ("JobId=1 JobState=FAILED Restarts=0", 0, True),
    ],
)
def test_an_attempt_has_ended_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: str, restarts: int, ended: bool
) -> None:
    command(tmp_path, "scontrol", f"echo '{shown}'")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    slurm._has_ended.cache_clear()
    assert SLURM.has_ended(JobRef("slurm-1", restarts=restarts)) is ended


def test_a_job_that_slurm_forgot_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command(tmp_path, "scontrol", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    slurm._has_ended.cache_clear()
    assert SLURM.has_ended(JobRef("slurm-1")) is True


def test_a_task_of_a_step_has_its_rank() -> None:
    expected = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1"}
    assert rank_variables(STEP) == expected | {"MASTER_PORT": str(PORTS[812])}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"},  # a batch script that starts no step
        STEP | {"SLURM_STEP_NUM_TASKS": "1"},
        STEP | {"RANK": "0", "WORLD_SIZE": "2"},  # torchrun inside a job
    ],
)
def test_other_processes_have_none(environment: dict[str, str]) -> None:
    assert rank_variables(environment) == {}


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match="SLURM_STEP_NUM_TASKS is 4, but SLURM_LOCALID not set"):
        rank_variables({name: value for name, value in STEP.items() if name != "SLURM_LOCALID"})


def test_jobs_and_steps_that_share_a_node_have_ports_of_their_own() -> None:
    ports = {port(str(job), str(step)) for job in range(3000, 3400) for step in range(2)}
    assert len(ports) == 800 and all(20_000 <= number < 32_768 for number in ports)


def test_a_job_knows_its_restarts_its_node_and_its_gpus() -> None:
    environment = {"SLURM_JOB_ID": "45", "SLURM_ARRAY_JOB_ID": "42", "SLURM_ARRAY_TASK_ID": "3"}
    assert SLURM.current_job(environment) == CurrentJob("slurm-42_3")
    more = {"SLURM_RESTART_COUNT": "2", "SLURMD_NODENAME": "n7", "SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_NUM_NODES": "2"}
    assert SLURM.current_job(environment | more) == CurrentJob("slurm-42_3", restarts=2, node="n7", gpus=8)
    assert SLURM.current_job({}) is None


@pytest.mark.parametrize(("name", "owned"), [("slurm-7", True), ("slurm-7_0", True), ("slurm-login-7", False)])
def test_a_host_whose_name_begins_so_is_no_job_of_slurms(name: str, owned: bool) -> None:
    assert SLURM.owns(name) is owned


def test_an_array_waits_for_others_and_is_cancelled_as_a_whole(tmp_path: Path) -> None:
    asked = {
        "_target_": "x",
        "timeout_min": 5,
        "gres": "gpu:1",
        "qos": None,
        "additional_parameters": {"requeue": True},
    }
    submission = Submission("train", tmp_path, print, [("a",), ("b",)], asked, ("slurm-3", "slurm-4_1"))
    assert slurm._parameters(submission) == {
        "timeout_min": 5,
        "slurm_gres": "gpu:1",
        "slurm_additional_parameters": {
            "requeue": True,
            "dependency": "afterok:3:4_1",
            "kill-on-invalid-dep": "yes",
        },
    }
    assert SLURM.cancel_command(["slurm-9_1", "slurm-9_0", "slurm-12"]) == "scancel 12 9"
