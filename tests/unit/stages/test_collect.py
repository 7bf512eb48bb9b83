"""The report as a whole: every part is there, and the same rows give the same bytes."""

from pathlib import Path

import pandas as pd
from outcomes import changed
from reports import DILM, FULL, RANDOM, ROW, cells, put

from dilm.artifacts.rows import rows_folder
from dilm.stages.collect import run


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
