"""Jobs that are stopped, killed and queued again, in every way, end with what an undisturbed run ends with."""

import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from asking import all_ended, artifact, asked, jobs_of, ranks, rows_of, states, until
from conftest import CPUS, Run

from dilm.core.io import sha256_file

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm")]
TRAIN = ["pretrain.steps=400", "match.outer_steps=6", "match.monitor_every=0", "checkpoint.steps=10"]


def weights(root: Path) -> dict[str, str]:
    """Digests of the generators, and of the data sets."""
    files = [artifact(root, f"tiny/{name}-tiny-*") / "model.safetensors" for name in ("lm", "dilm")]
    files += sorted(root.glob("tiny/*-dpc*/shard-*.h5"))
    return {str(file.relative_to(root)): sha256_file(file) for file in files}


def stop(kind: str, name: str) -> None:
    """Disturb a running job: by a signal before its limit, by an administrator, by its user, or without a word."""
    if kind == "signal":
        asked("scancel", "--signal=USR2", name)
    elif kind == "requeue":
        asked("scontrol", "requeue", name)
    elif kind == "cancel":
        asked("scancel", name)
    else:
        raw = asked("squeue", "-h", "-j", name, "-o", "%A").split()[0]
        for process in ranks(raw).values():
            process.kill()


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where an undisturbed run writes."""
    return tmp_path_factory.mktemp("calm") / "runs"


@pytest.mark.parametrize("kind", ["signal", pytest.param("requeue", marks=pytest.mark.slow)])
def test_a_job_goes_on_where_it_was(run: Run, root: Path, keys: list[str], calm: Path, kind: str) -> None:
    """Both stages of a training, stopped in the first: the same bytes on one CPU process, and the same metrics."""
    run("train", *CPUS, f"root={calm}", *TRAIN)
    run("tools/submit.py", "train", *keys, *TRAIN)
    until(lambda: list(root.glob("tiny/lm-*.state/step-*")))
    name = min(jobs_of(root), key=int)
    stop(kind, name)
    until(all_ended)
    assert {states()[job] for job in jobs_of(root)} == {"COMPLETED"}
    record = jobs_of(root)[name]
    assert [attempt.restarts for attempt in record.attempts] == [0, 1]
    if kind == "signal":
        assert record.attempts[0].state == "preempted"
    assert "going on from" in (root / record.log).with_suffix(".out").read_text()
    assert weights(root) == weights(calm)
    for stage in ("lm", "dilm"):
        ours, theirs = (artifact(one, f"tiny/{stage}-tiny-*") / "metrics.jsonl" for one in (root, calm))
        assert ours.read_text() == theirs.read_text()


def test_a_job_is_not_queued_again_for_ever(run: Run, root: Path, keys: list[str]) -> None:
    long = ["pretrain.steps=100000", "checkpoint.steps=50", "launcher.max_requeues=1"]
    run("tools/submit.py", "pretrain", *keys, *long)
    (name,) = jobs_of(root)
    for attempt in (1, 2):
        until(lambda attempt=attempt: len(jobs_of(root)[name].attempts) == attempt)  # type: ignore[misc]
        until(lambda: states()[name] == "RUNNING" and list(root.glob("tiny/lm-*.state/step-*")))
        time.sleep(3)
        stop("signal", name)
        until(lambda attempt=attempt: jobs_of(root)[name].attempts[attempt - 1].end is not None)  # type: ignore[misc]
    until(lambda: states()[name] == "FAILED")
    assert "queued again 1 times already; raise launcher.max_requeues" in jobs_of(root)[name].reason
    assert "raise launcher.max_requeues" in run("tools/status.py", str(root)).stdout


def test_ranks_on_two_nodes_agree_when_to_stop(run: Run, root: Path, keys: list[str]) -> None:
    nodes = ["launcher.nodes=2", "launcher.tasks=1", "engine=zero1", "pretrain.steps=300"]
    run("tools/submit.py", "pretrain", *keys, *nodes, "checkpoint.steps=null", "checkpoint.minutes=null")
    (name,) = jobs_of(root)
    until(lambda: len(ranks(name)) == 2)
    until(lambda: "all_gather" in (root / jobs_of(root)[name].log).read_text())  # it trains
    ranks(name)[1].send_signal(signal.SIGUSR2)  # one rank alone is told
    until(all_ended)
    record = jobs_of(root)[name]
    assert [attempt.state for attempt in record.attempts] == ["preempted", "done"]
    assert states()[name] == "COMPLETED"
    assert "going on from" in (root / record.log).with_suffix(".out").read_text()


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_twenty_kills_lose_nothing(run: Run, root: Path, keys: list[str], tmp_path: Path) -> None:
    """Training, writing and evaluating under random kills; whatever was cut off is submitted again by the same line."""
    study = ["pretrain.steps=3000", "match.outer_steps=30", "match.monitor_every=0", "checkpoint.steps=10",
             "checkpoint.minutes=null", "dpc=4", "n_datasets=3", "n_seeds=3", "evaluate.steps=300",
             "launcher.cells_per_job=3"]  # fmt: skip
    calm = tmp_path / "calm"
    run("train", *CPUS, f"root={calm}", *study)
    for command in ("generate", "evaluate"):
        run(command, "-m", *CPUS, f"root={calm}", *study, "method=random,dilm")

    seed = random.randrange(1 << 32)
    print(f"random.Random({seed})")
    draw, kills = random.Random(seed), Counter[str]()
    submissions = 0
    while True:
        if all_ended():
            said = run("tools/submit.py", "train,generate,evaluate", *keys, "method=random,dilm", *study).stdout
            if "nothing to submit" in said:
                break
            submissions += 1
        time.sleep(draw.uniform(0, 9))
        running = [name for name, state in states().items() if state == "RUNNING" and name in jobs_of(root)]
        if running and kills.total() < 20:
            kind, name = draw.choice(["signal", "requeue", "cancel", "kill"]), draw.choice(running)
            stop(kind, name)
            kills[kind] += 1
    print(f"{dict(kills)}, {submissions} submissions, {len(jobs_of(root))} jobs")

    assert kills.total() == 20, "the study was done before it could be killed twenty times"
    assert weights(root) == weights(calm)
    ours, theirs = ([row for row in rows_of(one) if row["status"] == "done"] for one in (root, calm))
    assert len(ours) == len({row["key"] for row in ours}) == len(theirs) == 18  # none lost, none doubled
    values = [{row["key"]: (row["value"], row["metrics"]) for row in rows} for rows in (ours, theirs)]
    assert values[0] == values[1]
    left = [path for path in root.rglob("*") if ".tmp-" in path.name or path.name.endswith(".state")]
    assert not left and not [path for path in root.glob("claims/**/*") if path.is_file()]
