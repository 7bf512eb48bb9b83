"""Shards written and read, in MB of text a second; JSON lines beside them."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.timing import Call, Contest, Done, speed
from dilm.artifacts.shards import ShardTable, read_shards, shard_table, write_shards
from dilm.data.text_table import table
from dilm.hub.tiny import tiny_rows

ROWS = 200_000
MEGABYTE = 1e6
ATTRIBUTES = {"key": "", "task": "tiny", "method": "lm", "dpc": 0, "labels": ["negative", "positive"]}
GOAL = 200.0  # MB/s


def contest(keys: Sequence[str], small: bool, folder: Path) -> Contest:
    """Texts of the tiny task with all columns; what was read must be what was written."""
    rows = synthetic(500 if small else ROWS)
    sides = {
        "ours, write": lambda: _write(rows, folder / "shards"),
        "ours, read": lambda: _read(rows, folder / "read"),
        "JSON lines, write": lambda: _write_lines(rows, folder / "rows.jsonl"),
        "JSON lines, read": lambda: _read_lines(rows, folder / "read.jsonl"),
    }
    goals = [speed("ours, write", GOAL, "MB"), speed("ours, read", GOAL, "MB")]
    note = f"{len(rows):,} rows, {_megabytes(rows):.1f} MB of text"
    return Contest("shards", "MB", sides, goals, note=note)


def synthetic(n: int) -> ShardTable:
    """So many rows, of distinct sentences again and again with a number behind."""
    texts, labels = tiny_rows("train", min(n, 5_000))
    rows: list[tuple[str, ...]] = [(f"{texts[row % len(texts)]} {row}",) for row in range(n)]
    random = np.random.default_rng(0)
    columns = {"dataset": np.arange(n) % 20, "index": np.arange(n), "nll": random.random(n)}
    return shard_table(table(("sentence",), rows, [labels[row % len(texts)] for row in range(n)]), **columns)


def _megabytes(rows: ShardTable) -> float:
    return sum(len(value.encode()) for text in rows.table.texts for value in text) / MEGABYTE


def _write(rows: ShardTable, folder: Path) -> Call:
    size = _megabytes(rows)

    def call() -> Done:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        write_shards(folder, rows, ATTRIBUTES, {})
        return Done(size)

    return call


def _read(rows: ShardTable, folder: Path) -> Call:
    size = _megabytes(rows)
    _write(rows, folder)()

    def call() -> Done:
        return Done(size, value=_checked(read_shards(folder).table.texts, rows))

    return call


def _write_lines(rows: ShardTable, path: Path) -> Call:
    size = _megabytes(rows)
    columns = [rows.table.labels, rows.dataset, rows.index, rows.seed, rows.nll, rows.cluster]

    def call() -> Done:
        with open(path, "w") as stream:
            for text, *values in zip(rows.table.texts, *(column.tolist() for column in columns), strict=True):
                stream.write(json.dumps([*text, *values]) + "\n")
        return Done(size)

    return call


def _read_lines(rows: ShardTable, path: Path) -> Call:
    size = _megabytes(rows)
    _write_lines(rows, path)()

    def call() -> Done:
        with open(path) as stream:
            return Done(size, value=_checked([(json.loads(line)[0],) for line in stream], rows))

    return call


def _checked(texts: list[tuple[str, ...]], rows: ShardTable) -> float:
    if texts != rows.table.texts:
        raise RuntimeError("shards: what was read is not what was written")
    return float(len(texts))
