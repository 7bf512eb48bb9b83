"""Result rows: none is lost, none is half, and one `done` row a cell counts."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from outcomes import changed, make_row

from dilm.artifacts import rows as rows_module
from dilm.artifacts.rows import (
    NAMES,
    Row,
    RowLog,
    RowWriter,
    cell_key,
    claim_file,
    claimed_cell,
    cut_torn_tail,
    read_table,
    row_of,
    rows_folder,
)
from dilm.core.errors import DiskFullError
from dilm.scheduler.job import job_id

ROW = make_row(
    key="k0", task="toy", method="dilm", dpc=2, dataset=0, seed=0, evaluator="frozen", model="tiny", metric="accuracy",
    value=81.5, status="done", source_key="s0", protocol="p0", data_hash="d0", metrics={"accuracy": 81.5}, steps=20,
    seconds=1.5, pool="shared",
)  # fmt: skip
LINE = """key task method dpc dataset seed evaluator model metric value status source_key protocol data_hash metrics
    steps seconds error dev_rows pool schema host job_id time""".split()  # names as they have always stood in a line
FAILED = changed(ROW, value=None, metrics={}, status="failed", error="ValueError: é\n😀")


def put(root: Path, job: str, *rows: Row) -> Path:
    """Rows as another job's file has them."""
    path = rows_folder(root) / f"rows-{job}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as stream:
        stream.writelines(json.dumps(row.flat()) + "\n" for row in rows)
    return path


def read_rows(root: Path) -> list[Row]:
    """The rows, which `read_table` has too."""
    rows = rows_module.read_rows(root)
    columns = [{name: value for name, value in row.flat().items() if name != "metrics"} for row in rows]
    assert read_table(root).to_pylist() == columns
    return rows


def unstamped(rows: list[Row]) -> list[Row]:
    return [changed(row, host="", job_id="", time="") for row in rows]


# Writing and reading


def test_rows_come_back_ordered_by_key(tmp_path: Path) -> None:
    writer = RowWriter(tmp_path)
    rows = [changed(ROW, key="k2"), changed(FAILED, key="k1"), ROW]
    for row in rows:
        writer.write(row)
    assert unstamped(read_rows(tmp_path)) == rows[::-1]


def test_a_row_is_stamped_with_host_job_and_time(tmp_path: Path) -> None:
    RowWriter(tmp_path).write(ROW)
    (row,) = read_rows(tmp_path)
    assert (row.host, row.job_id) == (os.uname().nodename, job_id())
    assert row.time.endswith("Z") and len(row.time) == len("2000-01-01T00:00:00Z")


def test_a_row_is_one_line_of_json_with_every_key(tmp_path: Path) -> None:
    writer = RowWriter(tmp_path)
    writer.write(FAILED)
    assert writer.path == tmp_path / "rows" / f"rows-{job_id()}.jsonl"
    content = writer.path.read_text(encoding="utf-8")
    assert content.count("\n") == 1
    assert list(json.loads(content)) == list(FAILED.flat()) == LINE
    assert json.loads(content)["schema"] == 1


def test_a_row_is_a_cell_and_its_outcome() -> None:
    assert sorted([*NAMES, "cell"]) == sorted([*vars(ROW.cell), *vars(ROW)])
    assert (ROW.cell.key, ROW.cell.steps, ROW.cell.pool, ROW.value, ROW.seconds) == ("k0", 20, "shared", 81.5, 1.5)
    assert row_of(ROW.flat()) == ROW
    without = {name: value for name, value in ROW.flat().items() if name not in ("pool", "error", "metrics")}
    assert row_of({**without, "later": 1}) == changed(ROW, pool="", error=None, metrics={})
    with pytest.raises(TypeError, match="protocol"):
        row_of({name: value for name, value in without.items() if name != "protocol"})


def test_every_row_is_flushed_to_disk_before_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = RowWriter(tmp_path)
    sizes: list[int] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        sizes.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    monkeypatch.setattr(rows_module.os, "fsync", noted)
    writer.write(ROW)
    writer.write(ROW)
    assert sizes == [sizes[0], 2 * sizes[0]]
    assert sizes[1] == writer.path.stat().st_size


values = st.floats(0, 100) | st.none()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.text(max_size=9), values, st.dictionaries(st.text(max_size=4), st.floats(0, 1))), max_size=5)
)
def test_any_row_comes_back(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[str, Any, dict[str, float]]]
) -> None:
    root = tmp_path_factory.mktemp("rows")
    writer = RowWriter(root)
    rows = [
        changed(ROW, key=f"k{number}", error=text, value=value, metrics=metrics)
        for number, (text, value, metrics) in enumerate(parts)
    ]
    for row in rows:
        writer.write(row)
    assert unstamped(read_rows(root)) == rows


def test_no_rows_are_no_error(tmp_path: Path) -> None:
    assert read_rows(tmp_path) == []
    assert RowLog(tmp_path).begin() == set()


def test_rows_of_another_schema_are_passed_over(tmp_path: Path) -> None:
    path = put(tmp_path, "a", ROW)
    with open(path, "a") as stream:
        stream.write(json.dumps({"schema": 2, "key": "k1", "new": []}) + "\n")
    assert read_rows(tmp_path) == [ROW]


# Torn tails


@pytest.mark.parametrize("tail", ["", "{", '{"key": "k9", "status": "done"', "\x00\x00"])
def test_a_torn_tail_is_no_row_and_is_cut_when_the_job_opens_its_file_again(tmp_path: Path, tail: str) -> None:
    path = put(tmp_path, job_id(), ROW)
    whole = path.read_bytes()
    path.write_bytes(whole + tail.encode())
    assert read_rows(tmp_path) == [ROW]
    assert RowLog(tmp_path).begin() == {"k0"}
    writer = RowWriter(tmp_path)
    assert path.read_bytes() == whole
    writer.write(changed(ROW, key="k1"))
    assert [row.cell.key for row in read_rows(tmp_path)] == ["k0", "k1"]


@pytest.mark.parametrize(
    ("content", "kept"),
    [(b"", b""), (b"torn", b""), (b"a\n", b"a\n"), (b"a\nb\ntorn", b"a\nb\n"), (b"\n\ntorn", b"\n\n")],
)
def test_a_file_is_cut_back_to_its_last_newline(tmp_path: Path, content: bytes, kept: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    cut_torn_tail(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == kept


# Which row counts


@pytest.mark.parametrize(
    ("rows", "counts"),
    [
        ([("a", "done", 1.0, "01"), ("a", "done", 2.0, "02")], 2.0),
        ([("a", "failed", None, "01"), ("a", "done", 2.0, "02")], 2.0),
        ([("a", "done", 1.0, "01"), ("a", "failed", None, "02")], 1.0),
        ([("a", "failed", None, "01"), ("b", "done", 2.0, "02")], 2.0),
        ([("b", "done", 2.0, "01"), ("a", "failed", None, "02")], 2.0),
        ([("b", "done", 2.0, "01"), ("a", "done", 1.0, "02")], 1.0),
        ([("a", "done", 1.0, "02"), ("b", "done", 2.0, "01")], 1.0),
    ],
)
def test_the_newest_done_row_of_a_cell_counts(
    tmp_path: Path, rows: list[tuple[str, str, float | None, str]], counts: float
) -> None:
    for job, status, value, second in rows:
        put(tmp_path, job, changed(ROW, status=status, value=value, time=f"2030-01-01T00:00:{second}Z"))
    (row,) = read_rows(tmp_path)
    assert (row.status, row.value) == ("done", counts)


@pytest.mark.parametrize(("first", "second"), [("a", "b"), ("b", "a"), ("a", "a")])
def test_the_newest_failed_row_counts_where_none_is_done(tmp_path: Path, first: str, second: str) -> None:
    put(tmp_path, first, changed(FAILED, error="old", time="2030-01-01T00:00:01Z"))
    put(tmp_path, second, changed(FAILED, error="new", time="2030-01-01T00:00:02Z"))
    assert [row.error for row in read_rows(tmp_path)] == ["new"]


attempts = st.tuples(st.sampled_from("abc"), st.sampled_from(["k0", "k1"]), st.sampled_from(["done", "failed"]),
                     st.integers(0, 3))  # fmt: skip


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(attempts, max_size=9))
def test_rows_and_table_have_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory, told: list[tuple[str, str, str, int]]
) -> None:
    """... which are, of each cell, the last of its done rows by time, file and line, else the last of all."""
    root = tmp_path_factory.mktemp("rows")
    for number, (job, key, status, second) in enumerate(told):
        put(root, job, changed(ROW, key=key, status=status, time=f"2030-01-01T00:00:0{second}Z", steps=number))
    expected = []
    for key in ("k0", "k1"):
        mine = [(status == "done", second, job, number) for number, (job, other, status, second) in enumerate(told)
                if other == key]  # fmt: skip
        expected += [max(mine)[-1]] if mine else []
    assert [row.cell.steps for row in read_rows(root)] == expected


def test_done_cells_are_those_with_a_done_row(tmp_path: Path) -> None:
    put(tmp_path, "a", ROW, changed(FAILED, key="k1"))
    put(tmp_path, "b", changed(ROW, key="k2"))
    done = RowLog(tmp_path)
    assert done.begin() == {"k0", "k2"}


def test_a_row_that_is_half_written_is_seen_when_it_is_whole(tmp_path: Path) -> None:
    path = put(tmp_path, "a", ROW)
    done = RowLog(tmp_path)
    line = json.dumps(changed(ROW, key="k1").flat()) + "\n"
    for part in (line[:50], line[50:]):
        assert "k1" not in done.begin()
        with open(path, "a") as stream:
            stream.write(part)
    assert "k1" in done.begin()


def test_a_failed_cell_that_is_done_later_is_done(tmp_path: Path) -> None:
    done = RowLog(tmp_path)
    put(tmp_path, "a", FAILED)
    assert "k0" not in done.begin()
    put(tmp_path, "b", ROW)
    assert "k0" in done.begin()


def test_a_cell_is_settled_once_another_process_has_tried_it(tmp_path: Path) -> None:
    """Also where it failed there: else every process of a job would fail at it in its turn."""
    put(tmp_path, "a", ROW, changed(FAILED, key="k1"))
    log = RowLog(tmp_path)
    log.begin()
    assert [log.settled(key) for key in ("k0", "k1", "k2")] == [True, False, False]
    put(tmp_path, "b", changed(FAILED, key="k1"), changed(ROW, key="k2"))
    assert log.settled("k1") and log.settled("k2")


def test_a_forced_evaluation_settles_what_it_did_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it was queued again, on whatever rank."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    put(tmp_path, "a", ROW, changed(ROW, key="k1", job_id="slurm-7-rank1"), changed(ROW, key="k2", job_id="slurm-7"))
    log = RowLog(tmp_path)
    assert log.begin() == {"k0", "k1", "k2"} and log.begin(force=True) == {"k1", "k2"}
    monkeypatch.delenv("SLURM_RESTART_COUNT")
    assert RowLog(tmp_path).begin(force=True) == set()
    assert not log.settled("k0") and log.settled("k1")


# Other processes

WRITER = """
import sys
from dataclasses import replace
from pathlib import Path
from dilm.artifacts.rows import Cell, Row, RowWriter

root, name = Path(sys.argv[1]), sys.argv[2]
cell = Cell(
    key="", task="toy", method="lm", dpc=1, dataset=0, seed=0, evaluator="frozen", model="m", metric="accuracy",
    source_key="s", protocol="p", data_hash="d",
)
writer = RowWriter(root)
print(writer.path.name, flush=True)
for line in sys.stdin:
    writer.write(Row(replace(cell, key=f"{name}{int(line)}"), "done", 1.0, error="x" * 2000))
    print(line.strip(), flush=True)
"""

Writer = subprocess.Popen[str]


@pytest.fixture
def writers(tmp_path: Path) -> Iterator[list[Writer]]:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    started = [
        subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for name in "abcd"
    ]
    yield started
    for writer in started:
        writer.kill()
        writer.communicate()


def order(writer: Writer, *numbers: int) -> None:
    assert writer.stdin is not None
    writer.stdin.write("".join(f"{number}\n" for number in numbers))
    writer.stdin.flush()


def line_of(writer: Writer) -> str:
    assert writer.stdout is not None
    return writer.stdout.readline().strip()


def test_done_cells_see_what_another_process_appends(tmp_path: Path, writers: list[Writer]) -> None:
    done = RowLog(tmp_path)
    writer = writers[0]
    line_of(writer)
    for number in range(5):
        assert f"a{number}" not in done.begin()
        order(writer, number)
        assert line_of(writer) == str(number)
        assert f"a{number}" in done.begin()
    assert all(f"a{number}" in done.begin() for number in range(5))


def test_writers_at_the_same_time_lose_nothing(tmp_path: Path, writers: list[Writer]) -> None:
    names = [line_of(writer) for writer in writers]
    assert len(set(names)) == 4
    for writer in writers:
        order(writer, *range(50))
    for writer in writers:
        writer.communicate(timeout=60)
    keys = {row.cell.key for row in read_rows(tmp_path)}
    assert keys == {f"{name}{number}" for name in "abcd" for number in range(50)}


def test_a_killed_writer_loses_no_row_that_it_had_told(tmp_path: Path, writers: list[Writer]) -> None:
    for writer in writers:
        line_of(writer)
        order(writer, *range(1000))
    told = {}
    for writer, name in zip(writers, "abcd", strict=True):
        told[name] = [line_of(writer) for _ in range(20)]
        os.kill(writer.pid, signal.SIGKILL)
    keys = {row.cell.key for row in read_rows(tmp_path)}
    assert keys >= {f"{name}{number}" for name, numbers in told.items() for number in numbers}
    assert len(keys) < 4000, "no writer was killed in the middle"


# Keys and claims


def test_a_cells_key_is_the_same_in_every_version() -> None:
    assert cell_key("s0", 3, {"steps": 20, "learner": {"pooling": "mean"}}, 1) == "dd3112e3570e"


def test_a_cells_key_is_of_source_data_set_protocol_and_seed() -> None:
    base: dict[str, Any] = {"source_key": "s0", "dataset": 3, "protocol": {"steps": 20}, "seed": 1}
    others = [{"source_key": "s1"}, {"dataset": 1}, {"protocol": {"steps": 21}}, {"seed": 3}, {"dataset": 1, "seed": 3}]
    keys = {cell_key(**{**base, **other}) for other in [{}, *others]}
    assert len(keys) == 6


def test_a_claimed_cell_is_held_for_the_block(tmp_path: Path) -> None:
    with claimed_cell(tmp_path, "abcdef") as won, claimed_cell(tmp_path, "abcdef") as again:
        assert (won, again) == (True, False)
        with claimed_cell(tmp_path, "abcdee") as other:
            assert other
    with claimed_cell(tmp_path, "abcdef") as later:
        assert later
    assert claim_file(tmp_path, "abcdef") == tmp_path / "claims" / "ab" / "abcdef"


# Full disks


@pytest.mark.parametrize("length", [300, 3_000, 5_000, 20_000])
def test_a_full_disk_leaves_the_rows_as_they_were(tiny_disk: Path, length: int) -> None:
    """Also where a part of the row still found room."""
    writer = RowWriter(tiny_disk)
    keys = []
    with pytest.raises(DiskFullError, match=r"rows-.*\.jsonl: no space is left"):
        for number in range(10_000):
            before = writer.path.read_bytes() if writer.path.exists() else b""
            writer.write(changed(ROW, key=f"k{number:05}", error="x" * length))
            keys.append(f"k{number:05}")
    assert keys
    assert writer.path.read_bytes() == before
    assert [row.cell.key for row in read_rows(tiny_disk)] == keys


def test_rows_go_on_when_there_is_space_again(tiny_disk: Path) -> None:
    writer = RowWriter(tiny_disk)
    writer.write(ROW)
    with pytest.raises(DiskFullError):
        writer.write(changed(ROW, key="k1", error="x" * 70_000))
    writer.write(changed(ROW, key="k2"))
    assert [row.cell.key for row in read_rows(tiny_disk)] == ["k0", "k2"]


def test_a_failed_flush_takes_the_row_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = RowWriter(tmp_path)
    writer.write(ROW)
    before = writer.path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(rows_module.os, "fsync", full)
    with pytest.raises(DiskFullError, match="no space is left"):
        writer.write(changed(ROW, key="k1"))
    assert writer.path.read_bytes() == before
