"""Hydra's launchers on a real Slurm: arrays, ranks on several nodes, truthful ends, and what a relaunch does."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from asking import artifact, asked, jobs_of, ranks, rows_of, states, until
from conftest import CPUS, Run
from safetensors.torch import load_file

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm")]
SLURM = ["-m", "hydra/launcher=slurm"]
SHORT = ["match.outer_steps=1", "match.inner_steps=1", "match.monitor_every=0", "task.max_length=64",
         "match.synthetic_dpc=2", "pretrain.steps=100", "data.valid_rows=50"]  # fmt: skip


def test_three_tasks_are_one_array_and_their_rows_are_collected(run: Run, root: Path, keys: list[str]) -> None:
    tasks = ["task=sst2,qqp,mnli", *SHORT]
    said = run("train", *SLURM, *keys, *tasks).stderr
    assert "3 jobs: 0 done already, 0 running or queued, 3 new" in said
    trained = jobs_of(root)
    assert len({name.partition("_")[0] for name in trained}) == 1  # one array
    assert sorted(name.partition("_")[2] for name in trained) == ["0", "1", "2"]
    assert {job.state for job in trained.values()} == {"done"}
    until(lambda: {states()[name] for name in trained} == {"COMPLETED"})
    assert len(list(root.glob("*/dilm-tiny-*/model.safetensors"))) == 3
    again = run("train", *SLURM, *keys, *tasks).stderr
    assert "3 jobs: 3 done already, 0 running or queued, 0 new" in again

    run("generate", *SLURM, *keys, *tasks, "method=random")
    run("evaluate", *SLURM, *keys, *tasks, "method=random", "evaluator=words")
    rows = rows_of(root)
    assert sorted({str(row["task"]) for row in rows}) == ["mnli", "qqp", "sst2"]
    assert len(rows) == len({str(row["key"]) for row in rows}) == 3 * 2 * 2
    shown = run("tools/collect.py", str(root), "--out", str(root / "report")).stdout
    assert all(task in shown for task in ("sst2", "qqp", "mnli"))


def test_two_nodes_of_two_ranks_train_as_one_process(run: Run, root: Path, keys: list[str]) -> None:
    """The same global batch: weights apart by at most 1e-3 of the way that training went, in fp32."""
    short = ["pretrain.steps=15", "generator.dropout=0.0", "pretrain.optimizer.lr=1e-3", "stages=[pretrain]"]
    nodes = ["launcher.nodes=2", "launcher.tasks=2", "engine=zero1"]
    run("train", *SLURM, *keys, *short, *nodes)
    (record,) = jobs_of(root).values()
    assert record.attempts[0].node in ("n1", "n2", "n3", "n4")
    assert "n[1-2]" in asked("squeue", "-h", "-t", "all", "-j", record.name.removeprefix("slurm-"), "-o", "%N")
    logs = list((root / "jobs").glob("*/*_log.out"))
    assert len(logs) >= 4  # one a rank
    alone = root.parent / "alone"
    run("train", *CPUS, f"root={alone}", *short)
    start = root.parent / "start"
    run("train", *CPUS, f"root={start}", *short[1:2], "stages=[pretrain]", "pretrain.steps=1",
        "pretrain.optimizer.lr=1e-30")  # fmt: skip
    four, one, zero = (
        load_file(artifact(folder, "tiny/lm-tiny-*") / "model.safetensors") for folder in (root, alone, start)
    )
    apart = sum(float((four[name] - one[name]).square().sum()) for name in one) ** 0.5
    went = sum(float((one[name] - zero[name]).square().sum()) for name in one) ** 0.5
    assert 0 < apart <= 1e-3 * went
    assert all(torch.isfinite(tensor).all() for tensor in four.values())


def test_a_failure_is_failed_everywhere(run: Run, root: Path, keys: list[str]) -> None:
    done = run("generate", *SLURM, *keys, "method=random,lm", status=2)  # no generator was trained
    assert "1 of 2 jobs failed" in done.stderr and "lm-tiny-" in done.stderr
    assert "Traceback" not in done.stderr
    by_state = {job.state: (name, job) for name, job in jobs_of(root).items()}
    name, failed = by_state["failed"]
    assert failed.reason.startswith("MissingArtifactError: ")
    until(lambda: states()[name] == "FAILED")
    assert asked("scontrol", "-o", "show", "job", name).count("ExitCode=2:0") == 1
    until(lambda: states()[by_state["done"][0]] == "COMPLETED")


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_fails_the_job_on_all(run: Run, root: Path, keys: list[str], victim: int) -> None:
    """Nothing goes on for ever, and what depends on the job doesn't start."""
    process = start_training(root, keys, "launcher.tasks=2", "engine=zero1", "pretrain.steps=100000")
    (name,) = jobs_of(root)
    after = asked("sbatch", "--parsable", f"--dependency=afterok:{name}", "--kill-on-invalid-dep=yes",
                  "--output=/dev/null", "--wrap=true").strip()  # fmt: skip
    ranks(name)[victim].kill()
    assert process.wait(120) == 2
    until(lambda: states()[name] == "FAILED")
    assert jobs_of(root)[name].state == "failed"
    until(lambda: states()[after] == "CANCELLED")


def start_training(root: Path, keys: list[str], *more: str) -> "subprocess.Popen[bytes]":
    """A training through the launcher, once it has taken some steps."""
    command = [sys.executable, "-m", "dilm.train", *SLURM, *keys, "checkpoint.steps=50", *more]
    process = subprocess.Popen(command, cwd=root.parent, stderr=subprocess.DEVNULL, env=dict(os.environ))
    until(lambda: list(root.glob("tiny/*.state/step-*")))
    return process


def test_the_driver_may_die_and_come_back(run: Run, root: Path, keys: list[str]) -> None:
    process = start_training(root, keys, "pretrain.steps=2500", "stages=[pretrain]")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    (name,) = jobs_of(root)
    assert states()[name] == "RUNNING"  # the job goes on
    again = subprocess.run(process.args, cwd=root.parent, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "0 done already, 1 running or queued, 0 new" in again.stderr
    assert list(jobs_of(root)) == [name]  # nothing else was submitted
    assert artifact(root, "tiny/lm-tiny-*")


def test_sigkill_is_not_running_for_ever(run: Run, root: Path, keys: list[str]) -> None:
    run("tools/submit.py", "pretrain", *keys, "pretrain.steps=100000", "checkpoint.steps=50")
    until(lambda: list(root.glob("tiny/*.state/step-*")))
    (name,) = jobs_of(root)
    assert "│ pretrain │ tiny │      │       1 │        │        │" in run("tools/status.py", str(root)).stdout
    ranks(name)[0].kill()
    until(lambda: states()[name] == "FAILED")
    assert jobs_of(root)[name].state == "running"  # as far as it could tell
    shown = run("tools/status.py", str(root)).stdout
    assert "│ pretrain │ tiny │      │         │        │      1 │" in shown
    assert "pretrain tiny: ended by Slurm: FAILED" in shown


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("site.partition=gpux", "site.partition 'gpux': Slurm says"),
        ("launcher.gpus=7", "gres=gpu:7"),
        ("site.gpu_type=h900", "gres=gpu:h900"),
        ("site.mem_gb=9000", "mem_gb=9000"),
        ("launcher.nodes=9", "nodes=9"),
        ("site.options={qqos: high}", "qqos"),
    ],
)
def test_bad_site_values_are_one_line_before_anything_is_queued(
    run: Run, root: Path, keys: list[str], wrong: str, message: str
) -> None:
    known = ("squeue", "-h", "-t", "all", "-o", "%i")  # which forgets jobs that ended a while ago
    before = asked(*known).split()
    keys = [key for key in keys if key != "launcher.gpus=0"] if "gpu" in wrong else keys
    for command in (["train", *SLURM], ["tools/submit.py", "train"]):
        done = run(*command, *keys, wrong, status=2)
        (line,) = done.stderr.strip().splitlines()[-1:]
        assert line.startswith("ConfigError: ") and message in line
        assert "Traceback" not in done.stderr
    assert set(asked(*known).split()) <= set(before)
    assert not list(root.glob("jobs/*.json"))


@pytest.mark.dist
def test_the_local_launcher_runs_ranks_on_this_machine(run: Run, root: Path, keys: list[str]) -> None:
    local = ["-m", "hydra/launcher=local", "launcher.tasks=2", "engine=zero1", "stages=[pretrain]", "pretrain.steps=10"]
    run("train", *local, *keys, "seed=0")
    assert {job.state for job in jobs_of(root).values()} == {"done"}
    assert len(list(root.glob("tiny/lm-tiny-*/model.safetensors"))) == 1
    assert "1 of 1 jobs failed" in run("generate", *local[:2], *keys, "method=dilm", status=2).stderr
    assert json.loads(next(root.glob("jobs/local-*.json")).read_text())["schema"] == 1
