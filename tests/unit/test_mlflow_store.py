"""Rows and metrics in a real MLflow store: each once, whole, and with every step."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from dilm import mlflow_store
from dilm.config import Config, TaskConfig
from dilm.files import TEMPORARY, write_json
from dilm.mlflow_store import LONGEST_PARAM, bring_in
from dilm.results import Row, rows_folder
from dilm.tracking import Tracker

ROW = Row(
    key="c0", task="toy", method="dilm", dpc=5, dataset=0, seed=1, evaluator="frozen", model="tiny",
    metric="accuracy_f1", value=81.5, status="done", source_key="s0", protocol="p0", data_hash="d0",
    metrics={"accuracy": 80.0, "f1": 83.0},
)  # fmt: skip
SCIENCE = {"stage": "match", "version": 1, "match": {"steps": 20, "optimizer": {"lr": 0.1}}, "long": "x" * 2_000}
STEPS = 2_500  # more than MLflow takes at once


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store's file with its tables and nothing in them."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def uri(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store of this test's own; whatever MLflow writes beside it stays with it."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A trained artifact, a folder of data sets without metrics, two done cells, and a failed one."""
    folder = put_artifact(tmp_path / "runs", "dilm-tiny-a0", "a0")
    (folder.parent / "dilm-dpc5-s0").mkdir()
    put_rows(
        tmp_path / "runs", ROW, replace(ROW, key="c1", seed=2), replace(ROW, key="c2", status="failed", value=None)
    )
    return tmp_path / "runs"


def put_artifact(root: Path, name: str, key: str, steps: int = 3) -> Path:
    folder = root / "toy" / name
    folder.mkdir(parents=True)
    lines = [json.dumps({"step": step, "loss": step / 2, "gradient_norm": 1.0}) + "\n" for step in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("".join([*lines, json.dumps({"step": steps, "valid_nll": 2.5}) + "\n"]))
    write_json(folder / "provenance.json", {"key": key, "science": SCIENCE})
    return folder


def put_rows(root: Path, *rows: Row) -> None:
    rows_folder(root).mkdir(parents=True, exist_ok=True)
    with open(rows_folder(root) / "rows-job.jsonl", "a") as stream:
        stream.writelines(json.dumps(asdict(row)) + "\n" for row in rows)


def runs(uri: str) -> dict[str, Run]:
    """The store's runs by key."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("dilm")
    found = client.search_runs([experiment.experiment_id])
    by_key = {run.data.tags["dilm.key"]: run for run in found}
    assert len(by_key) == len(found), "a key twice"
    return by_key


def history(uri: str, run: Run, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in MlflowClient(uri).get_metric_history(run.info.run_id, name)]


def test_every_artifact_and_every_done_cell_becomes_a_run(root: Path, uri: str) -> None:
    assert bring_in(root, uri) == f"MLflow at {uri}: 1 runs and 2 cells added, 0 known before"
    found = runs(uri)
    assert set(found) == {"a0", "c0", "c1"}
    assert {run.info.status for run in found.values()} == {"FINISHED"}


def test_a_trained_artifact_has_its_steps_parameters_and_tags(root: Path, uri: str) -> None:
    bring_in(root, uri)
    run = runs(uri)["a0"]
    assert history(uri, run, "loss") == [(1, 0.5), (2, 1.0), (3, 1.5)]
    assert history(uri, run, "valid_nll") == [(3, 2.5)]
    assert run.data.params["match.optimizer.lr"] == "0.1"
    assert run.data.params["long"] == "x" * LONGEST_PARAM
    assert run.info.run_name == "toy/dilm-tiny-a0"
    assert run.data.tags["stage"] == "match" and run.data.tags["task"] == "toy"


def test_more_steps_than_mlflow_takes_at_once_are_all_there(tmp_path: Path, uri: str) -> None:
    put_artifact(tmp_path / "runs", "lm-tiny-a1", "a1", steps=STEPS)
    bring_in(tmp_path / "runs", uri)
    run = runs(uri)["a1"]
    assert history(uri, run, "loss") == [(step, step / 2) for step in range(1, STEPS + 1)]
    assert history(uri, run, "gradient_norm") == [(step, 1.0) for step in range(1, STEPS + 1)]


def test_a_cell_has_its_metrics_parameters_and_tags(root: Path, uri: str) -> None:
    bring_in(root, uri)
    run = runs(uri)["c0"]
    assert run.data.metrics == {"accuracy": 80.0, "f1": 83.0, "value": 81.5}
    expected = {"method": "dilm", "dpc": "5", "dataset": "0", "seed": "1", "evaluator": "frozen", "source_key": "s0"}
    assert expected.items() <= run.data.params.items()
    assert run.info.run_name == "toy/dilm-dpc5/tiny-frozen/0-1"
    assert run.data.tags["stage"] == "evaluate"


def test_bringing_in_again_adds_nothing(root: Path, uri: str) -> None:
    bring_in(root, uri)
    before = {key: run.info.run_id for key, run in runs(uri).items()}
    assert bring_in(root, uri).endswith("0 runs and 0 cells added, 3 known before")
    assert {key: run.info.run_id for key, run in runs(uri).items()} == before


def test_only_what_is_new_is_added(root: Path, uri: str) -> None:
    bring_in(root, uri)
    put_rows(root, replace(ROW, key="c2"), replace(ROW, key="c3"))
    assert bring_in(root, uri).endswith("0 runs and 2 cells added, 3 known before")
    assert set(runs(uri)) == {"a0", "c0", "c1", "c2", "c3"}


def test_training_that_is_under_way_is_left_out(root: Path, uri: str) -> None:
    under_way = root / "toy" / f"lm-tiny-a9{TEMPORARY}host-7-abcd"
    under_way.mkdir()
    (under_way / "metrics.jsonl").write_text('{"step": 1, "lo')
    bring_in(root, uri)
    assert set(runs(uri)) == {"a0", "c0", "c1"}


def test_a_root_without_anything_is_no_error(tmp_path: Path, uri: str) -> None:
    assert bring_in(tmp_path / "runs", uri).endswith("0 runs and 0 cells added, 0 known before")


def test_a_run_that_was_cut_short_is_replaced(root: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The collector dies between the metrics of a cell and its end."""

    def die(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MlflowClient, "log_metric", die)
        bring_in(root, uri)
    left = {key: run.info.status for key, run in runs(uri).items()}
    assert left == {"a0": "FINISHED", "c0": "RUNNING"}
    assert bring_in(root, uri).endswith("0 runs and 2 cells added, 1 known before")
    assert {key: run.info.status for key, run in runs(uri).items()} == dict.fromkeys(("a0", "c0", "c1"), "FINISHED")
    assert runs(uri)["c0"].data.metrics["value"] == 81.5


def test_runs_cut_short_among_many_do_not_hide_others(root: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known runs are read page by page, and deleting must not shift the pages."""
    monkeypatch.setattr(mlflow_store, "PAGE", 2)
    put_rows(root, *(replace(ROW, key=f"d{number}") for number in range(6)))
    bring_in(root, uri)
    client = MlflowClient(uri)
    newest = sorted(runs(uri).values(), key=lambda run: run.info.start_time)[-2:]
    for run in newest:
        client.update_run(run.info.run_id, status="RUNNING")
    assert bring_in(root, uri).endswith("0 runs and 2 cells added, 7 known before")
    assert len(runs(uri)) == 9


def test_a_run_that_another_program_has_under_way_is_left_alone(root: Path, uri: str) -> None:
    bring_in(root, uri)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("dilm").experiment_id
    live = client.create_run(experiment, tags={"dilm.key": "live"}).info.run_id
    bring_in(root, uri)
    assert client.get_run(live).info.lifecycle_stage == "active"


def test_nothing_is_written_beside_the_store(root: Path, uri: str, tmp_path: Path) -> None:
    bring_in(root, uri)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "runs"]


# A real server


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path / 'mlflow.db'}"]
    command += ["--default-artifact-root", str(tmp_path / "artifacts")]
    with open(tmp_path / "server.log", "wb") as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}", process, tmp_path / "server.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until_healthy(uri: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 180
    while True:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        try:
            with urllib.request.urlopen(f"{uri}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)


@pytest.mark.slow
def test_live_logging_to_a_server_and_bringing_in_what_it_has_not(root: Path, server: str) -> None:
    config = Config(task=TaskConfig(name="toy"), tracking="mlflow", tracking_uri=server)
    live: dict[str, Any] = {"key": "b0", "name": "match"}
    folder = root / "toy" / "dilm-tiny-b0"
    folder.mkdir()
    with Tracker(folder, config, **live) as tracker:
        tracker.log(1, loss=0.5)
        tracker.log(2, loss=0.25, gradient_norm=3.0)
    write_json(folder / "provenance.json", {"key": "b0", "science": SCIENCE})
    with pytest.raises(ValueError), Tracker(folder, config, "b1", "match"):
        raise ValueError

    found = runs(server)
    assert {key: run.info.status for key, run in found.items()} == {"b0": "FINISHED", "b1": "FAILED"}
    assert history(server, found["b0"], "loss") == [(1, 0.5), (2, 0.25)]
    assert found["b0"].info.run_name == "toy/match-b0"
    assert (folder / "metrics.jsonl").read_text().count("\n") == 2

    assert bring_in(root, server).endswith("1 runs and 2 cells added, 1 known before")
    assert set(runs(server)) == {"a0", "b0", "b1", "c0", "c1"}
