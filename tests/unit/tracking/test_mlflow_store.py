"""Rows and metrics in a real MLflow store: each once, whole, and with every step."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow_server import Server, history, runs
from outcomes import changed, make_row

from dilm.artifacts import locks
from dilm.artifacts.artifact import Artifact
from dilm.artifacts.rows import Row, rows_folder
from dilm.core.errors import ConfigError
from dilm.core.io import TEMPORARY, write_json
from dilm.tracking import mlflow as mlflow_module
from dilm.tracking.mlflow import LONGEST_PARAM, PARENT, LiveRun, Point, bring_in, connect, runs_of

ROW = make_row(
    key="c0", task="toy", method="dilm", dpc=5, dataset=0, seed=1, evaluator="frozen", model="tiny",
    metric="accuracy_f1", value=81.5, status="done", source_key="s0", protocol="p0", data_hash="d0",
    metrics={"accuracy": 80.0, "f1": 83.0}, seconds=30.0, time="2026-01-02T03:04:05Z",
)  # fmt: skip
END = 1_767_323_045_000  # that time in milliseconds
SCIENCE = {"stage": "match", "version": 1, "match": {"steps": 20, "optimizer": {"lr": 0.1}}, "long": "x" * 7_000}
KEYS = {"a0", "s0", "c0", "c1"}
STEPS = 2_500  # more than MLflow takes at once


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A trained artifact, data sets that were made from it, two done cells of theirs, and a failed one."""
    folder = put_artifact(tmp_path / "runs", "dilm-tiny-a0", "a0")
    (folder / "model.safetensors").write_bytes(b"weights")
    shards = folder.parent / "dilm-dpc5-s0"
    put_provenance(shards, "s0", stage="dataset", parent="a0", dpc=5)
    (shards / "shard-0.h5").write_bytes(b"texts")
    put_rows(
        tmp_path / "runs", ROW, changed(ROW, key="c1", seed=2), changed(ROW, key="c2", status="failed", value=None)
    )
    return tmp_path / "runs"


def put_artifact(root: Path, name: str, key: str, steps: int = 3) -> Path:
    folder = root / "toy" / name
    folder.mkdir(parents=True)
    lines = [json.dumps({"step": step, "loss": step / 2, "gradient_norm": 1.0}) + "\n" for step in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("".join([*lines, json.dumps({"step": steps, "valid_nll": 2.5}) + "\n"]))
    put_provenance(folder, key, **SCIENCE)
    return folder


def put_provenance(folder: Path, key: str, time: str = ROW.time, **science: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "provenance.json", {"key": key, "science": science, "seconds": 60, "time": time})


def stamp() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def put_rows(root: Path, *rows: Row) -> None:
    rows_folder(root).mkdir(parents=True, exist_ok=True)
    with open(rows_folder(root) / "rows-job.jsonl", "a") as stream:
        stream.writelines(json.dumps(row.flat()) + "\n" for row in rows)


def test_every_artifact_and_every_done_cell_becomes_a_run(root: Path, uri: str) -> None:
    assert bring_in(root, uri) == f"MLflow at {uri}: 2 runs and 2 cells added, 0 known before"
    found = runs(uri)
    assert set(found) == KEYS
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
    assert bring_in(root, uri).endswith("0 runs and 0 cells added, 4 known before")
    assert {key: run.info.run_id for key, run in runs(uri).items()} == before


def test_only_what_is_new_is_added(root: Path, uri: str) -> None:
    bring_in(root, uri)
    put_rows(root, changed(ROW, key="c2"), changed(ROW, key="c3"))
    assert bring_in(root, uri).endswith("0 runs and 2 cells added, 4 known before")
    assert set(runs(uri)) == KEYS | {"c2", "c3"}


def test_training_that_is_under_way_is_left_out(root: Path, uri: str) -> None:
    under_way = root / "toy" / f"lm-tiny-a9{TEMPORARY}host-7-abcd"
    under_way.mkdir()
    (under_way / "metrics.jsonl").write_text('{"step": 1, "lo')
    bring_in(root, uri)
    assert set(runs(uri)) == KEYS


def test_a_root_without_anything_is_no_error(tmp_path: Path, uri: str) -> None:
    assert bring_in(tmp_path / "runs", uri).endswith("0 runs and 0 cells added, 0 known before")


def test_runs_are_nested_as_they_were_made(root: Path, uri: str) -> None:
    bring_in(root, uri)
    found = runs(uri)
    key_of = {run.info.run_id: key for key, run in found.items()} | {"": ""}
    parents = {key: key_of[run.data.tags.get(PARENT, "")] for key, run in found.items()}
    assert parents == {"a0": "", "s0": "a0", "c0": "s0", "c1": "s0"}


def test_a_run_has_the_time_that_its_work_took(root: Path, uri: str) -> None:
    bring_in(root, uri)
    found = runs(uri)
    assert (found["a0"].info.start_time, found["a0"].info.end_time) == (END - 60_000, END)
    assert (found["c0"].info.start_time, found["c0"].info.end_time) == (END - 30_000, END)


def test_runs_have_their_files_but_no_weights(root: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_module, "LARGEST_FILE", 20_000)
    (root / "toy" / "dilm-dpc5-s0" / "shard-1.h5").write_bytes(b"x" * 20_001)
    bring_in(root, uri)
    client, found = MlflowClient(uri), runs(uri)
    held = {key: [item.path for item in client.list_artifacts(run.info.run_id)] for key, run in found.items()}
    expected = {"a0": ["metrics.jsonl", "provenance.json"], "s0": ["provenance.json", "shard-0.h5"], "c0": [], "c1": []}
    assert held == expected


def test_files_stand_beside_the_store_wherever_the_command_is_run(
    root: Path, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    bring_in(root, uri)
    assert list(elsewhere.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "mlartifacts", "mlflow.db", "runs"]


def die(*arguments: object, **named: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("call", ["log_batch", "log_artifact", "set_tag", "set_terminated"])
def test_a_run_that_was_cut_short_is_replaced(root: Path, uri: str, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """The collector dies on the way."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MlflowClient, call, die)
        bring_in(root, uri)
    assert [run.info.status for run in runs(uri).values()] == ["RUNNING"]
    assert bring_in(root, uri).endswith("2 runs and 2 cells added, 0 known before")
    found = runs(uri)
    assert {key: run.info.status for key, run in found.items()} == dict.fromkeys(KEYS, "FINISHED")
    assert found["c0"].data.metrics["value"] == 81.5


def test_runs_cut_short_among_many_do_not_hide_others(root: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known runs are read page by page, and deleting must not shift the pages."""
    monkeypatch.setattr(mlflow_module, "PAGE", 2)
    put_rows(root, *(changed(ROW, key=f"d{number}") for number in range(6)))
    bring_in(root, uri)
    client, found = MlflowClient(uri), runs(uri)
    for key in ("d1", "d4"):
        client.update_run(found[key].info.run_id, status="RUNNING")
    assert bring_in(root, uri).endswith("0 runs and 2 cells added, 8 known before")
    assert len(runs(uri)) == 10


def test_what_two_collectors_have_brought_in_at_once_stays_once(root: Path, uri: str) -> None:
    bring_in(root, uri)
    client, run = MlflowClient(uri), runs(uri)["c0"]
    twin = client.create_run(run.info.experiment_id, tags={"dilm.key": "c0"}).info.run_id
    client.set_terminated(twin)
    assert bring_in(root, uri).endswith("0 runs and 0 cells added, 4 known before")
    assert set(runs(uri)) == KEYS


def test_two_collectors_of_one_root_do_not_meet(root: Path, uri: str) -> None:
    with locks.held(root / "claims" / "mlflow"), pytest.raises(ConfigError, match=r"is bringing in .*runs; wait"):
        bring_in(root, uri)
    bring_in(root, uri)


def test_what_was_made_again_is_brought_in_again(root: Path, uri: str) -> None:
    bring_in(root, uri)
    later = "2026-01-02T04:04:05Z"
    put_rows(root, changed(ROW, value=77.0, time=later))
    write_json(root / "toy" / "dilm-tiny-a0" / "provenance.json", {"key": "a0", "science": SCIENCE, "time": later})
    assert bring_in(root, uri).endswith("1 runs and 1 cells added, 2 known before")
    found = runs(uri)
    assert set(found) == KEYS and found["c0"].data.metrics["value"] == 77.0
    assert found["s0"].data.tags[PARENT] == found["a0"].info.run_id
    assert bring_in(root, uri).endswith("0 runs and 0 cells added, 4 known before")


def test_a_run_of_what_is_being_made_again_is_left_alone(root: Path, uri: str) -> None:
    bring_in(root, uri)
    live = LiveRun(uri, Artifact(root / "toy" / "dilm-tiny-a0", "a0", SCIENCE, ""))
    live.log([Point("loss", 0.5, END, 1)])
    deadline = time.monotonic() + 60
    while "RUNNING" not in {run.info.status for run in runs_of(*connect(uri), "a0")}:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    bring_in(root, uri)
    assert sorted(run.info.status for run in runs_of(*connect(uri), "a0")) == ["FINISHED", "RUNNING"]
    live.end("FINISHED")
    put_provenance(root / "toy" / "dilm-tiny-a0", "a0", **SCIENCE, time=stamp())
    bring_in(root, uri)
    assert history(uri, runs(uri)["a0"], "loss") == [(1, 0.5)]


def test_files_that_are_refused_cost_nothing_else(root: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(client: MlflowClient, run: str, path: str) -> None:
        raise ConnectionError("413 Request Entity Too Large")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifact", refuse)
        told = bring_in(root, uri)
    assert told.endswith(
        "2 runs and 2 cells added, 0 known before; files of 2 runs were not stored, as 413 Request Entity Too Large"
    )
    assert {run.info.status for run in runs(uri).values()} == {"FINISHED"}
    assert bring_in(root, uri).endswith("0 runs and 0 cells added, 4 known before")
    assert len(MlflowClient(uri).list_artifacts(runs(uri)["a0"].info.run_id)) == 2


def test_trainings_are_brought_in_before_anything_is_evaluated(
    tmp_path: Path, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from tools import collect

    put_artifact(tmp_path / "runs", "lm-tiny-a1", "a1")
    collect.main([str(tmp_path / "runs"), "--mlflow", uri])
    assert "1 runs and 0 cells added" in capsys.readouterr().out


def test_a_run_that_another_program_has_under_way_is_left_alone(root: Path, uri: str) -> None:
    bring_in(root, uri)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("dilm").experiment_id
    live = client.create_run(experiment, tags={"dilm.key": "live"}).info.run_id
    bring_in(root, uri)
    assert client.get_run(live).info.lifecycle_stage == "active"


@pytest.mark.parametrize("status", ["RUNNING", "FAILED"])
def test_a_live_run_that_lost_its_server_is_replaced_and_its_cells_stay_below_it(
    root: Path, uri: str, status: str
) -> None:
    bring_in(root, uri)
    client, before = MlflowClient(uri), runs(uri)["a0"].info.run_id
    client.update_run(before, status=status)
    assert bring_in(root, uri).endswith("1 runs and 0 cells added, 3 known before")
    found = runs(uri)
    assert found["a0"].info.run_id != before
    assert found["s0"].data.tags[PARENT] == found["a0"].info.run_id


def test_a_run_that_was_logged_live_gets_its_files(root: Path, uri: str) -> None:
    run = LiveRun(uri, Artifact(root / "toy" / "dilm-tiny-a0", "a0", SCIENCE, ""))
    run.log([Point("loss", 0.5, END, 1)])
    run.end("FINISHED")
    assert bring_in(root, uri).endswith("1 runs and 2 cells added, 1 known before")
    found = runs(uri)["a0"]
    assert history(uri, found, "loss") == [(1, 0.5)]  # as it was
    assert {item.path for item in MlflowClient(uri).list_artifacts(found.info.run_id)} == {
        "metrics.jsonl",
        "provenance.json",
    }


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1:9", "gopher://127.0.0.1", "file:mlruns", "sqlite:////proc/nowhere/mlflow.db"]
)
def test_a_store_that_cannot_be_used_is_one_line(root: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConfigError, match=f"^MLflow at {uri}: .") as caught:
        bring_in(root, uri)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_files_go_through_a_real_server(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "server"
    folder.mkdir()
    server = Server(folder)
    try:
        assert bring_in(root, server.uri).endswith("2 runs and 2 cells added, 0 known before")
        assert bring_in(root, server.uri).endswith("0 runs and 0 cells added, 4 known before")
        found = runs(server.uri)
        assert set(found) == KEYS
        client = MlflowClient(server.uri)
        held = client.download_artifacts(found["s0"].info.run_id, "shard-0.h5", str(tmp_path))
        assert Path(held).read_bytes() == b"texts"
        assert [path.name for path in folder.rglob("shard-0.h5")] == ["shard-0.h5"]
    finally:
        server.kill()
