"""A batch system is one class and one file of `conf/hydra/launcher`: studies are planned for it, sent, waited for."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from scheduling import TESTS, Toy

from dilm.artifacts.rows import read_rows
from dilm.config import compose
from dilm.core.errors import ConfigError
from dilm.core.io import CONF_FOLDER
from dilm.launch import submit
from dilm.launch.plan import check_study, plan_study, send, stages_named
from dilm.launch.status import lines_of
from dilm.scheduler.job import scheduler_named
from dilm.scheduler.records import read_jobs

YAML = """
_target_: hydra_plugins.dilm.BatchLauncher
scheduler: toy
nodes: ${dilm_job:nodes}
tasks_per_node: ${dilm_job:tasks_per_node}
timeout_min: ${dilm_job:timeout_min}
"""
CPUS = ["experiment=tiny", "method=random", "evaluator=words", "threads=1", "launcher.gpus=0"]


@pytest.fixture
def keys(tmp_path: Path, tiny_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Keys of a small study, where the configuration has the toy's file; its jobs have ended afterwards."""
    conf = tmp_path / "conf"
    shutil.copytree(CONF_FOLDER, conf)
    (conf / "hydra" / "launcher" / "toy.yaml").write_text(YAML)
    monkeypatch.setattr(compose, "CONF_FOLDER", conf)
    monkeypatch.setenv("PYTHONPATH", f"{TESTS}:{TESTS.parent}")
    yield [*CPUS, f"root={tmp_path / 'runs'}", f"cache={tiny_cache}", "hydra/launcher=toy"]
    toy = scheduler_named("toy")
    assert isinstance(toy, Toy)
    for processes in toy.processes.values():
        for process in processes:
            process.wait(60)  # a job writes its end before it ends


def test_a_study_runs_by_it(tmp_path: Path, keys: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "QUEUE_SECONDS", 1.0)  # the toy begins what waits when it is asked
    monkeypatch.setattr(Toy, "max_array_size", lambda self: 1)
    root, arguments = tmp_path / "runs", [*keys, "n_datasets=2", "dpc=2,3"]
    study = plan_study(stages_named("generate,evaluate"), arguments)
    assert all(isinstance(planned.array.scheduler, Toy) for planned in study.arrays)
    check_study(study)
    sent = [names for _, names in send(study)]
    names = [name for array in sent for name in array]
    assert len(names) == 4 and all(name.startswith("toy-") for name in names)
    assert len({name.partition("_")[0] for name in sent[0]}) == 2  # the array was cut to what the toy takes
    ended = submit.wait(root, names)
    assert {name: end for name, end in ended.items() if end != ("done", "")} == {}
    assert [(line.stage, line.counts["done"]) for line in lines_of(root)] == [("generate", 2), ("evaluate", 8)]
    rows = read_rows(root)
    assert {row.job_id for row in rows} == set(names[2:])
    assert all(job.node == "toy1" and job.after for job in read_jobs(root) if job.calls[0].command == "evaluate")
    assert plan_study(stages_named("generate,evaluate"), arguments).arrays == []


def test_what_it_would_not_take_is_told_before_anything_is_queued(tmp_path: Path, keys: list[str]) -> None:
    study = plan_study(stages_named("generate"), [*keys, "launcher.nodes=2"])
    with pytest.raises(ConfigError, match=r"launcher\.nodes: the toy has one node"):
        check_study(study)
    assert not (tmp_path / "runs").exists()


def test_an_unknown_scheduler_is_named() -> None:
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.scheduler 'slrum' is unknown\. Did you mean 'slurm'"):
        scheduler_named("slrum")


def test_every_scheduler_of_the_package_is_found_by_a_jobs_name() -> None:
    """Also where nothing has imported it."""
    code = "from dilm.scheduler.job import scheduler_of; print([scheduler_of(name).title for name in %r])"
    names = ["slurm-7_1", "local-7", "slurm-login-7", "vm-7"]
    done = subprocess.run([sys.executable, "-c", code % names], capture_output=True, text=True, check=True)
    assert done.stdout == "['Slurm', 'this machine', 'this machine', 'this machine']\n"


def test_a_job_on_this_machine_inside_an_allocation_is_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    from dilm.scheduler.job import job_id, rank_variables, submitted_job

    for name in ("RANK", "WORLD_SIZE", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SUBMITIT_EXECUTOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    assert job_id() == "slurm-41"
    for name, value in (("JOB_ID", "123"), ("NTASKS", "2"), ("GLOBALID", "1"), ("LOCALID", "1")):
        monkeypatch.setenv(f"SUBMITIT_LOCAL_{name}", value)
    assert job_id() == "slurm-41"  # that the local job has submitted
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    assert job_id() == "local-123" and rank_variables()["RANK"] == "1"
    for name in ("SLURM_JOB_ID", "SUBMITIT_EXECUTOR"):
        monkeypatch.delenv(name)
    assert submitted_job() is None and job_id().endswith(f"-{os.getpid()}")
