"""The report as a whole: every part is there, and the same rows give the same bytes."""

from pathlib import Path

import pandas as pd
import pytest
from outcomes import changed
from reports import DILM, FULL, RANDOM, ROW, cells, put

from dilm.artifacts.rows import rows_folder
from dilm.core.errors import ConfigError
from dilm.stages.collect import run, to_mlflow


def test_the_whole_training_set_alone_is_a_report_too(tmp_path: Path) -> None:
    put(tmp_path, FULL)
    (table,) = run(tmp_path, tmp_path / "report")
    assert (table.methods, table.sizes) == ([], [])
    assert "full, all training texts: 93.0 ± 1.4 (2 models)" in (tmp_path / "report" / "tables.md").read_text()


def test_a_report_has_every_part(tmp_path: Path) -> None:
    put(tmp_path, [*cells("dilm", DILM), changed(ROW, key="f", status="failed", value=None, error="ValueError: why")])
    tables = run(tmp_path, tmp_path / "out")
    assert [table.title for table in tables] == ["toy, tiny (frozen encoder), accuracy"]
    assert (
        (tmp_path / "out" / "tables.md")
        .read_text(encoding="utf-8")
        .endswith("1 cells failed; the first: ValueError: why\n")
    )
    frame = pd.read_csv(tmp_path / "out" / "results.csv")
    assert len(frame) == 7
    assert frame.loc[frame["status"] == "done", "value"].tolist() == [value for scores in DILM for value in scores]
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "out" / "results.parquet")[["key", "value"]], frame[["key", "value"]]
    )
    assert [path.name for path in (tmp_path / "out" / "plots").iterdir()] == ["toy-tiny-frozen.svg"]


def test_collecting_again_gives_the_same_bytes(tmp_path: Path) -> None:
    rows = cells("dilm", DILM) + cells("random", RANDOM)
    put(tmp_path / "runs", rows)
    run(tmp_path / "runs", tmp_path / "first")
    run(tmp_path / "runs", tmp_path / "first")
    put(tmp_path / "runs", rows[::-1])
    run(tmp_path / "runs", tmp_path / "second")
    names = {str(path.relative_to(tmp_path / "first")) for path in (tmp_path / "first").rglob("*.*")}
    expected = {"results.csv", "results.parquet", "tables.md", "tables.tex", "index.html", "plots/toy-tiny-frozen.svg"}
    assert names == expected
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


def test_without_rows_the_report_says_so(tmp_path: Path) -> None:
    rows_folder(tmp_path).mkdir()
    assert run(tmp_path, tmp_path / "out") == []
    assert "No cell is done yet." in (tmp_path / "out" / "tables.md").read_text()
    assert (tmp_path / "out" / "results.csv").exists()
    assert not (tmp_path / "out" / "plots").exists()


def test_a_store_that_is_away_ends_a_tool_and_costs_a_study_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    put(tmp_path, cells("dilm", DILM))
    uri = "http://127.0.0.1:9"  # the port that discards
    with pytest.raises(ConfigError, match=f"^MLflow at {uri}: "):
        to_mlflow(tmp_path, uri)
    assert capsys.readouterr().err == ""
    to_mlflow(tmp_path, uri, required=False)
    told = capsys.readouterr().err
    assert told.startswith(f"MLflow at {uri}: ") and told.count("\n") == 1
    assert told.endswith(f"; `python tools/collect.py {tmp_path} --mlflow {uri}` tries again\n")


def test_cells_are_brought_into_a_store(tmp_path: Path, uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "runs", [changed(row, time="2026-01-02T03:04:05Z") for row in cells("dilm", DILM)])
    to_mlflow(tmp_path / "runs", uri)
    assert capsys.readouterr().out.endswith("0 runs and 6 cells added, 0 known before\n")
