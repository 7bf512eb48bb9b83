"""Live runs: what MLflow holds in the end, whatever happens to the server on the way."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow_server import Server, history, runs

from dilm.artifacts.artifact import METRICS_FILE, Artifact
from dilm.tracking.mlflow import ONCE, PARENT, QUIET, LiveRun, Point, bring_in, connect

SCIENCE = {"stage": "match", "parent": "p0", "match": {"steps": 20, "optimizer": {"lr": 0.1}}}
POINTS = [Point("loss", 1 / step, 1_000 * step, step) for step in range(1, 2_501)]  # more than MLflow takes at once
EXPECTED = [(point.step, point.value) for point in POINTS]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"INTERVAL": 0.01, "LONGEST_PAUSE": 0.02}.items():
        monkeypatch.setattr(f"dilm.tracking.mlflow.{name}", value)
    for name, setting in (QUIET | ONCE).items():  # put here so that it is undone
        monkeypatch.setenv(name, setting)


def artifact(key: str = "a0", **science: Any) -> Artifact:
    return Artifact(Path(f"runs/toy/dilm-tiny-{key}"), key, SCIENCE | science, "python -m dilm.train")


def whole(uri: str, **named: Any) -> None:
    run = LiveRun(uri, artifact(**named))
    run.log(POINTS)
    run.end("FINISHED")


def losing(monkeypatch: pytest.MonkeyPatch, name: str, times: int, does_it: bool) -> None:
    """Have the first calls of a client's method fail, before it or behind it."""
    real: Callable[..., Any] = getattr(MlflowClient, name)
    left = [times]

    def call(*arguments: Any, **named: Any) -> Any:
        lost = left[0] > 0
        left[0] -= 1
        if lost and not does_it:
            raise ConnectionError("away")
        done = real(*arguments, **named)
        if lost:
            raise ConnectionError("the answer is lost")
        return done

    monkeypatch.setattr(MlflowClient, name, call)


def test_a_run_has_its_points_parameters_tags_and_parent(uri: str) -> None:
    whole(uri, key="p0", parent="none", stage="pretrain")
    whole(uri)
    found = runs(uri)
    run = found["a0"]
    assert history(uri, run, "loss") == EXPECTED
    assert run.data.params["match.optimizer.lr"] == "0.1"
    assert (run.info.status, run.info.run_name) == ("FINISHED", "toy/dilm-tiny-a0")
    assert (run.data.tags["stage"], run.data.tags["task"]) == ("match", "toy")
    assert run.data.tags[PARENT] == found["p0"].info.run_id and PARENT not in found["p0"].data.tags


def test_the_experiment_may_be_named(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "ours")
    whole(uri)
    assert [found.name for found in MlflowClient(uri).search_experiments() if found.name != "Default"] == ["ours"]


def test_points_are_there_while_the_stage_goes_on(uri: str) -> None:
    run = LiveRun(uri, artifact())
    for part in (POINTS[:10], POINTS[10:20]):
        run.log(part)
        deadline = time.monotonic() + 60
        while not (found := _tried(uri)) or len(found) < part[-1].step:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    run.end("FINISHED")
    assert history(uri, runs(uri)["a0"], "loss") == EXPECTED[:20]


def _tried(uri: str) -> list[tuple[int, float]]:
    experiment = MlflowClient(uri).get_experiment_by_name("dilm")
    return history(uri, runs(uri)["a0"], "loss") if experiment and "a0" in runs(uri) else []


def test_an_attempt_takes_the_place_of_those_before(uri: str) -> None:
    """A job that was killed has left its run under way; the next one goes on from a checkpoint."""
    client, experiment = connect(uri)
    client.create_run(experiment, tags={"dilm.key": "a0"})
    client.create_run(experiment, tags={"dilm.key": "another"})
    run = LiveRun(uri, artifact(), earlier=POINTS[:5])
    run.log(POINTS[5:])
    run.end("FINISHED")
    found = runs(uri)
    assert set(found) == {"a0", "another"}
    assert history(uri, found["a0"], "loss") == EXPECTED


@pytest.mark.parametrize("does_it", [False, True])
@pytest.mark.parametrize("call", ["create_experiment", "create_run", "log_batch", "set_terminated", "delete_run"])
def test_a_lost_call_or_a_lost_answer_loses_nothing_and_doubles_nothing(
    uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], call: str, does_it: bool
) -> None:
    if call == "delete_run":
        LiveRun(uri, artifact()).end("FAILED")
    losing(monkeypatch, call, 3, does_it)
    whole(uri)
    (run,) = runs(uri).values()
    assert history(uri, run, "loss") == EXPECTED
    assert run.info.status == "FINISHED"
    assert capsys.readouterr().err.count("did not answer as it should") == 1


def test_a_server_that_never_answers_is_told_once_and_costs_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dilm.tracking.mlflow.PATIENCE", 2.0)
    began = time.monotonic()
    run = LiveRun("http://127.0.0.1:9", artifact())  # the port that discards
    run.log(POINTS)
    assert time.monotonic() - began < 1  # nothing waits for it
    run.end("FINISHED")
    assert time.monotonic() - began < 10
    told = capsys.readouterr().err.splitlines()
    assert told[-1] == (
        "MLflow at http://127.0.0.1:9 has not taken all of toy/dilm-tiny-a0; later, "
        "`python tools/collect.py runs --mlflow http://127.0.0.1:9` brings it in"
    )
    assert [line[:38] for line in told[:-1]] in ([], ["MLflow at http://127.0.0.1:9 did not a"])


def test_a_server_that_hangs_holds_nobody_up(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    released, real = threading.Event(), MlflowClient.log_batch

    def hang(*arguments: Any, **named: Any) -> Any:
        released.wait(60)
        return real(*arguments, **named)

    monkeypatch.setattr(MlflowClient, "log_batch", hang)
    run = LiveRun(uri, artifact())
    began = time.monotonic()
    for point in POINTS:
        run.log([point])
    assert time.monotonic() - began < 1
    released.set()
    run.end("FINISHED")
    assert history(uri, runs(uri)["a0"], "loss") == EXPECTED


def test_a_run_that_was_given_up_is_left_to_others(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is back when the stage has ended, and what `bring_in` has brought in since must stay."""
    monkeypatch.setattr("dilm.tracking.mlflow.PATIENCE", 0.1)
    client, experiment = connect(uri)
    answers, real = threading.Event(), MlflowClient.get_experiment_by_name

    def late(*arguments: Any) -> Any:
        answers.wait(60)
        return real(*arguments)

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", late)
    run = LiveRun(uri, artifact())
    run.end("FINISHED")
    brought = client.create_run(experiment, tags={"dilm.key": "a0"}).info.run_id
    answers.set()
    run._thread.join(30)
    assert not run._thread.is_alive()
    assert [found.info.run_id for found in runs(uri).values()] == [brought]


def test_a_run_that_was_deleted_is_not_tried_for_ever(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = LiveRun(uri, artifact())
    run.log(POINTS[:1])
    deadline = time.monotonic() + 60
    while not _tried(uri):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    MlflowClient(uri).delete_run(runs(uri)["a0"].info.run_id)
    run.log(POINTS[1:])
    run._thread.join(30)
    assert not run._thread.is_alive()
    run.end("FINISHED")
    assert "has not taken all of toy/dilm-tiny-a0" in capsys.readouterr().err


def test_a_stopped_stage_waits_for_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its job is about to be killed, and goes on from its checkpoint later."""
    monkeypatch.setattr("dilm.tracking.mlflow.NO_PATIENCE", 0.1)
    began = time.monotonic()
    LiveRun("http://127.0.0.1:9", artifact()).end("KILLED")
    assert time.monotonic() - began < 2
    assert "has not taken" not in capsys.readouterr().err


def test_what_is_no_number_is_logged_as_such(uri: str) -> None:
    run = LiveRun(uri, artifact())
    run.log([Point("loss", float("nan"), 1, 1), Point("loss", float("inf"), 2, 2), Point("loss", 0.5, 3, 3)])
    run.end("FINISHED")
    (first, second, third) = history(uri, runs(uri)["a0"], "loss")
    assert str(first[1]) == "nan" and second[1] > 1e300 and third == (3, 0.5)


# Real jobs and a real server


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server(tmp_path)
    yield server
    server.kill()


@pytest.mark.slow
def test_eight_jobs_a_killed_server_and_a_killed_job(tmp_path: Path, server: Server) -> None:
    """Every step that any job has logged is on the server in the end, once."""
    root = tmp_path / "runs"
    base = ["experiment=tiny", "stages=[pretrain]", "threads=1", f"root={root}", f"cache={tmp_path / 'cache'}"]
    base += ["pretrain.steps=600", "pretrain.log_every=1", "checkpoint.steps=100", "device=cpu"]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": server.uri, "OMP_NUM_THREADS": "1"}

    def start(seed: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "dilm.train", *base, f"seed={seed}"]
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def wait_for(done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 300
        while not done():
            assert time.monotonic() < deadline
            time.sleep(0.1)

    prefetch = [sys.executable, "-m", "dilm.prefetch", *(key for key in base if key.startswith(("exp", "cache")))]
    subprocess.run(prefetch, check=True, capture_output=True)
    jobs = [start(seed) for seed in range(8)]
    try:
        wait_for(lambda: len(list(root.glob("*/*.state/*"))) >= 3)  # checkpoints
        server.kill()
        jobs[0].kill()
        jobs[0].communicate()
        time.sleep(5)
        jobs[0] = start(0)
        server.start()
        told = [job.communicate(timeout=500)[1].decode() for job in jobs]
    finally:
        for job in jobs:
            job.kill()
            job.communicate()
    assert [job.returncode for job in jobs] == [0] * 8, told

    live = runs(server.uri)  # each once, also before anything is mended
    late = sum("has not taken all" in text for text in told)  # jobs that ended before the server was back
    assert sum(run.info.status == "FINISHED" for run in live.values()) >= 8 - late
    bring_in(root, server.uri)
    found = runs(server.uri)
    finished = sorted(root.glob(f"*/lm-*/{METRICS_FILE}"))
    assert len(found) == len(finished) == 8
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert "live" in {run.data.tags["dilm.writer"] for run in found.values()}
    for metrics in finished:
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
        run = found[json.loads((metrics.parent / "provenance.json").read_text())["key"]]
        for name in ("loss", "gradient_norm", "valid_nll"):
            assert history(server.uri, run, name) == [(line["step"], line[name]) for line in lines if name in line]
    assert bring_in(root, server.uri).endswith("0 runs and 0 cells added, 8 known before")
