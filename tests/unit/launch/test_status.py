"""What the table and the costs say, from records, rows and artifacts alone."""

import os
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from dilm.artifacts.rows import NAMES, RowWriter, row_of
from dilm.core.errors import ConfigError
from dilm.core.io import write_json
from dilm.launch.status import costs, lines_of, log_of
from dilm.scheduler.records import Attempt, Call, Job, record_file
from dilm.scheduler.slurm import Slurm, status_from

TRAIN = Call("train", (), "sst2", {"pretrain": ["sst2/lm-g-0123"], "match": ["sst2/dilm-g-4567"]})
EVALUATE = Call("evaluate", (), "sst2", {"evaluate": ["k0", "k1", "k2"]})


def put(root: Path, job: Job) -> None:
    write_json(record_file(root, job.name), asdict(job))


def attempt(start: float, end: float | None, state: str) -> Attempt:
    return Attempt(start, "h", 1, "1", end=end, state=state, node="n7")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A training that was stopped once and is done, an evaluation that runs, and one that waits."""
    stopped, done = attempt(0, 3600, "preempted"), attempt(4000, 4000 + 1800, "done")
    put(tmp_path, Job("slurm-1", "done", (TRAIN,), gpus=2, log="jobs/1/1_0_log.err", attempts=(stopped, done)))
    for folder in ("sst2/lm-g-0123", "sst2/dilm-g-4567"):
        (tmp_path / folder).mkdir(parents=True)
    running = attempt(time.time() - 60, None, "running")
    put(tmp_path, Job("slurm-2_0", "running", (EVALUATE,), gpus=1, log="jobs/2_0/2_0_0_log.err", attempts=(running,)))
    queued = replace(EVALUATE, task="qqp", makes={"evaluate": ["k3"]})
    put(tmp_path, Job("slurm-2_1", "queued", (queued,), log="jobs/2_1/2_1_0_log.err"))
    for key, status in (("k0", "done"), ("k1", "failed")):
        blank = dict.fromkeys(NAMES, "") | {"dpc": 1, "dataset": 0, "seed": 0, "value": 1.0}
        wrong = "ValueError: x" if status == "failed" else None
        told = {"key": key, "task": "sst2", "status": status, "error": wrong, "schema": 1, "metrics": {}}
        RowWriter(tmp_path).write(row_of(blank | told))
    found = {"slurm-2_0": status_from("RUNNING"), "slurm-2_1": status_from("PENDING", "QOSMaxGRESPerUser")}
    monkeypatch.setattr(Slurm, "queue", lambda self, users: found)
    return tmp_path


def test_every_stage_and_task_has_its_line(root: Path) -> None:
    pretrain, match, qqp, sst2 = lines_of(root)
    assert (pretrain.stage, pretrain.task, pretrain.counts, pretrain.seconds) == ("pretrain", "sst2", {"done": 1}, 0)
    assert (match.stage, match.counts, match.seconds, match.nodes) == ("match", {"done": 1}, 5400, ["n7"])
    assert (qqp.task, qqp.counts, qqp.waits) == ("qqp", {"queued": 1}, "QOSMaxGRESPerUser")
    assert sst2.counts == {"done": 1, "running": 2} and sst2.seconds == pytest.approx(60, abs=20)


def test_what_is_gone_is_not_done(root: Path) -> None:
    (root / "sst2" / "dilm-g-4567").rmdir()
    assert lines_of(root)[1].counts == {"new": 1}


def test_a_killed_job_fails_what_it_left(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Slurm, "queue", lambda self, users: {"slurm-2_0": status_from("OUT_OF_MEMORY")})
    *_, sst2 = lines_of(root)
    assert sst2.counts == {"done": 1, "failed": 2} and sst2.error == "ended by Slurm: OUT_OF_MEMORY"


def test_costs_count_all_attempts_and_what_was_lost(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training, evaluation = costs(root)
    assert (training.stage, training.used, training.wasted) == ("match", 3.0, 0.0)
    assert evaluation.used == pytest.approx(60 / 3600, abs=0.01) and evaluation.wasted == 0
    monkeypatch.setattr(Slurm, "queue", lambda self, users: {})
    monkeypatch.setattr(Slurm, "accounting", lambda self, names: {"slurm-2_0": status_from("NODE_FAIL", "", 7200)})
    _, evaluation = costs(root)
    assert (evaluation.used, evaluation.wasted) == (2.0, 2.0)  # as Slurm counted it


@pytest.mark.parametrize("key", ["slurm-2_0", "2_0", "k2", "k"])
def test_a_log_is_found_by_job_and_by_key(root: Path, key: str) -> None:
    found = log_of(root, key)
    assert found == root / ("jobs/2_1/2_1_0_log.err" if key == "k" else "jobs/2_0/2_0_0_log.err")
    for name in ("4567", "dilm-g-4567", "sst2/dilm-g"):
        assert log_of(root, name) == root / "jobs/1/1_0_log.err"
    with pytest.raises(ConfigError, match="no job below"):
        log_of(root, "unheard")


def test_the_tools_load_no_torch_and_start_at_once() -> None:
    """Login nodes are shared."""
    import subprocess
    import sys

    tools = Path(__file__).resolve().parents[3] / "tools"
    for name in ("submit", "status"):
        code = f"import sys; sys.path.insert(0, {str(tools)!r}); import {name}; print('torch' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
        assert done.stdout == "False\n", done.stderr
