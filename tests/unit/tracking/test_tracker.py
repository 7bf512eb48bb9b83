"""What a stage reports: lines of JSON always, a run on MLflow where there is a server, and progress."""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dilm.artifacts.artifact import METRICS_FILE, Artifact
from dilm.config.schema import Config, TaskConfig
from dilm.core.errors import ConfigError
from dilm.core.signals import Stopped
from dilm.tracking.mlflow import Point
from dilm.tracking.tracker import Progress, Tracker, tracking_uri

ARTIFACT = Artifact(Path("runs/toy/dilm-tiny-0123"), "0123", {"stage": "match"}, "python -m dilm.train")


def config(**changes: Any) -> Config:
    return Config(task=TaskConfig(name="toy"), **changes)


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def records(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]


def test_metrics_are_lines_of_json(tmp_path: Path) -> None:
    with Tracker(tmp_path, config(), ARTIFACT) as tracker:
        tracker.log(0, valid_nll=2.5)
        tracker.log(10, loss=0.25, gradient_norm=1.0)
    assert records(tmp_path) == [{"step": 0, "valid_nll": 2.5}, {"step": 10, "loss": 0.25, "gradient_norm": 1.0}]


def test_a_line_is_there_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    with Tracker(tmp_path, config(), ARTIFACT) as tracker:
        tracker.log(1, loss=0.5)
        assert records(tmp_path) == [{"step": 1, "loss": 0.5}]


def test_what_was_logged_before_stays(tmp_path: Path) -> None:
    for step in (1, 2):
        with Tracker(tmp_path, config(), ARTIFACT) as tracker:
            tracker.log(step, loss=0.5)
    assert [record["step"] for record in records(tmp_path)] == [1, 2]


def test_without_mlflow_it_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with Tracker(tmp_path, config(tracking="jsonl"), ARTIFACT) as tracker:
        tracker.log(1, loss=0.5)
    assert records(tmp_path) == [{"step": 1, "loss": 0.5}]


@pytest.mark.parametrize("uri", [None, "sqlite:///mlflow.db", "mlruns", "file:mlruns", "databricks"])
def test_only_a_server_may_be_logged_to_live(tmp_path: Path, uri: str | None) -> None:
    with pytest.raises(
        ConfigError, match=r"tracking_uri is '.*'; live logging needs an http\(s\) MLflow server"
    ) as caught:
        Tracker(tmp_path, config(tracking="mlflow", tracking_uri=uri), ARTIFACT)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tracking", "key", "environment", "expected"),
    [
        ("auto", None, "", None),
        ("auto", None, "http://environment", "http://environment"),
        ("auto", None, "sqlite:///mlflow.db", None),  # of other programs
        ("auto", "https://key", "http://environment", "https://key"),
        ("mlflow", None, "http://environment", "http://environment"),
        ("jsonl", "https://key", "http://environment", None),
    ],
)
def test_the_server_is_the_keys_or_else_the_environments(
    monkeypatch: pytest.MonkeyPatch, tracking: str, key: str | None, environment: str, expected: str | None
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", environment)
    assert tracking_uri(config(tracking=tracking, tracking_uri=key)) == expected


def watched(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What a live run is given."""
    run = SimpleNamespace(points=[], status="")

    def live(uri: str, artifact: Artifact, earlier: list[Point]) -> SimpleNamespace:
        run.points.extend(earlier)
        return SimpleNamespace(log=run.points.extend, end=lambda status: setattr(run, "status", status))

    monkeypatch.setattr("dilm.tracking.tracker.LiveRun", live)
    return run


def test_a_stage_is_a_run_on_the_server_from_its_first_step_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what stood in the file at its start, as after a checkpoint, is sent again."""
    (tmp_path / METRICS_FILE).write_text('{"step": 1, "loss": 0.5}\n')
    run = watched(monkeypatch)
    with Tracker(tmp_path, config(tracking_uri="http://server"), ARTIFACT) as tracker:
        tracker.log(2, loss=0.25, gradient_norm=1.0)
    assert [(point.name, point.value, point.step) for point in run.points] == [
        ("loss", 0.5, 1), ("loss", 0.25, 2), ("gradient_norm", 1.0, 2)
    ]  # fmt: skip
    assert run.status == "FINISHED"


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError(), "FAILED"), (Stopped(again=True), "KILLED"), (KeyboardInterrupt(), "KILLED")]
)
def test_a_run_ends_as_its_stage_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: str
) -> None:
    run = watched(monkeypatch)
    with pytest.raises(type(error)), Tracker(tmp_path, config(tracking_uri="http://server"), ARTIFACT):
        raise error
    assert run.status == status


def test_other_ranks_log_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = watched(monkeypatch)
    with Tracker(tmp_path, config(tracking_uri="http://server"), ARTIFACT, active=False) as tracker:
        tracker.log(1, loss=0.5)
    assert list(tmp_path.iterdir()) == [] and run.status == ""


def test_progress_without_a_terminal_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Progress(1000, "match") as bar:
        for _ in range(1000):
            bar.update()
    assert capsys.readouterr().err == ""  # over in less than half a minute
    monkeypatch.setattr("dilm.tracking.tracker.LOG_SECONDS", 0.0)
    with Progress(2000, "match", start=1000) as bar:
        time.sleep(0.01)
        bar.update(500, tokens=1000, loss=0.25)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("match: 1,500 of 2,000, loss 0.250, tokens/s ")
    assert line.endswith("00:00 left")
    with Progress(10, "match", active=False) as bar:
        bar.update(5)
    assert capsys.readouterr().err == ""
