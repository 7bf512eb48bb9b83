"""What a stage reports: lines of JSON always, and an MLflow server that may be away."""

import json
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dilm.config import Config, TaskConfig
from dilm.errors import ConfigError
from dilm.tracking import METRICS_FILE, Progress, Tracker, tracking_uri


def config(**changes: Any) -> Config:
    return Config(task=TaskConfig(name="toy"), **changes)


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    # What the tracker sets where nothing is set, put here so that it is undone; shorter for the test.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def records(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]


def test_metrics_are_lines_of_json(tmp_path: Path) -> None:
    with Tracker(tmp_path, config(), "0123", "match") as tracker:
        tracker.log(0, valid_nll=2.5)
        tracker.log(10, loss=0.25, gradient_norm=1.0)
    assert records(tmp_path) == [{"step": 0, "valid_nll": 2.5}, {"step": 10, "loss": 0.25, "gradient_norm": 1.0}]


def test_a_line_is_there_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    with Tracker(tmp_path, config(), "0123", "match") as tracker:
        tracker.log(1, loss=0.5)
        assert records(tmp_path) == [{"step": 1, "loss": 0.5}]


def test_what_was_logged_before_stays(tmp_path: Path) -> None:
    for step in (1, 2):
        with Tracker(tmp_path, config(), "0123", "match") as tracker:
            tracker.log(step, loss=0.5)
    assert [record["step"] for record in records(tmp_path)] == [1, 2]


def test_without_mlflow_it_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with Tracker(tmp_path, config(), "0123", "match") as tracker:
        tracker.log(1, loss=0.5)
    assert records(tmp_path) == [{"step": 1, "loss": 0.5}]


@pytest.mark.parametrize("uri", [None, "sqlite:///mlflow.db", "mlruns", "file:mlruns", "databricks"])
def test_only_a_server_may_be_logged_to_live(tmp_path: Path, uri: str | None) -> None:
    with pytest.raises(
        ConfigError, match=r"tracking_uri is '.*'; live logging needs an http\(s\) MLflow server"
    ) as caught:
        Tracker(tmp_path, config(tracking="mlflow", tracking_uri=uri), "0123", "match")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_server_is_the_keys_or_else_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://environment")
    assert tracking_uri(config()) is None
    assert tracking_uri(config(tracking="mlflow")) == "http://environment"
    assert tracking_uri(config(tracking="mlflow", tracking_uri="https://key")) == "https://key"


@pytest.fixture
def closed_uri() -> Iterator[str]:
    """A loopback port on which nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{unused.getsockname()[1]}"


def test_a_server_that_is_away_is_told_once_and_the_work_goes_on(tmp_path: Path, closed_uri: str) -> None:
    started = time.monotonic()
    with pytest.warns(UserWarning, match=rf"MLflow at {closed_uri} can't be reached .*going on without it"):
        tracker = Tracker(tmp_path, config(tracking="mlflow", tracking_uri=closed_uri), "0123", "match")
    with warnings.catch_warnings(), tracker:
        warnings.simplefilter("error")
        tracker.log(1, loss=0.5)
    assert records(tmp_path) == [{"step": 1, "loss": 0.5}]
    assert time.monotonic() - started < 60


class Client:
    """An MLflow client that notes what it is asked, and is lost at one call."""

    def __init__(self, lost_at: str = "") -> None:
        self.lost_at = lost_at
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            self.calls.append((name, *arguments, named))
            if name == self.lost_at:
                raise ConnectionError("gone")
            return {
                "get_experiment_by_name": None,
                "create_experiment": "7",
                "create_run": SimpleNamespace(info=SimpleNamespace(run_id="r1")),
            }.get(name)

        return call


def tracked(folder: Path, monkeypatch: pytest.MonkeyPatch, client: Client) -> Tracker:
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=lambda uri: client))
    return Tracker(folder, config(tracking="mlflow", tracking_uri="http://server"), "0123", "match")


def test_a_run_is_known_by_its_key_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client()
    with tracked(tmp_path, monkeypatch, client) as tracker:
        tracker.log(3, loss=0.5)
    tags = {"dilm.key": "0123", "task": "toy", "stage": "match"}
    assert client.calls == [
        ("get_experiment_by_name", "dilm", {}),
        ("create_experiment", "dilm", {}),
        ("create_run", "7", {"tags": tags, "run_name": "toy/match-0123"}),
        ("log_metric", "r1", "loss", 0.5, {"step": 3}),
        ("set_terminated", "r1", "FINISHED", {}),
    ]


def test_a_run_whose_stage_fails_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client()
    with pytest.raises(ValueError), tracked(tmp_path, monkeypatch, client):
        raise ValueError
    assert client.calls[-1] == ("set_terminated", "r1", "FAILED", {})


def test_a_server_that_is_lost_on_the_way_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(lost_at="log_metric")
    with tracked(tmp_path, monkeypatch, client) as tracker:
        with pytest.warns(UserWarning, match=r"MLflow was lost \(gone\); going on without it"):
            tracker.log(1, loss=0.5)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tracker.log(2, loss=0.25)
    assert [record["step"] for record in records(tmp_path)] == [1, 2]
    assert sum(call[0] == "log_metric" for call in client.calls) == 1


def test_progress_without_a_terminal_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Progress(1000, "match") as bar:
        for _ in range(1000):
            bar.update()
    assert capsys.readouterr().err == ""  # over in less than half a minute
    monkeypatch.setattr("dilm.tracking.LOG_SECONDS", 0.0)
    with Progress(2000, "match", start=1000) as bar:
        time.sleep(0.01)
        bar.update(500, tokens=1000, loss=0.25)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("match: 1,500 of 2,000, loss 0.250, tokens/s ")
    assert line.endswith("00:00 left")
    with Progress(10, "match", active=False) as bar:
        bar.update(5)
    assert capsys.readouterr().err == ""
