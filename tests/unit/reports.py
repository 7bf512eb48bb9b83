"""Rows and tables that the tests of reports share."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
from outcomes import changed, make_row

from dilm.artifacts.rows import NAMES, Row, rows_folder
from dilm.report.summary import Table, make_tables

ROW = make_row(
    key="", task="toy", method="dilm", dpc=5, dataset=0, seed=0, evaluator="frozen", model="tiny", metric="accuracy",
    value=0.0, status="done", source_key="", protocol="p0", data_hash="d0", pool="fresh",
)  # fmt: skip


def cells(method: str, values: list[list[float]], dpc: int = 5, source: str = "", **changes: Any) -> list[Row]:
    """Rows of a method: values[data set][seed]."""
    source = source or f"{method}{dpc}"
    return [
        changed(
            ROW,
            method=method,
            dpc=dpc,
            dataset=dataset,
            seed=seed,
            value=value,
            metrics={"accuracy": value},
            source_key=source,
            key=f"{source}-{dataset}-{seed}",
            **changes,
        )
        for dataset, scores in enumerate(values)
        for seed, value in enumerate(scores)
    ]


def put(root: Path, rows: list[Row]) -> None:
    rows_folder(root).mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row.flat()) + "\n" for row in rows]
    (rows_folder(root) / "rows-job.jsonl").write_text("".join(lines))


def frame(rows: list[Row]) -> pd.DataFrame:
    return pd.DataFrame([row.flat() for row in rows], columns=list(NAMES))


def one_table(rows: list[Row]) -> Table:
    (table,) = make_tables(frame(rows))
    return table


DILM = [[80.0, 82.0], [84.0, 86.0], [90.0, 88.0]]
RANDOM = [[70.0, 72.0], [75.0, 73.0], [77.0, 79.0]]
FULL = cells("full", [[92.0, 94.0]], dpc=0, protocol="p0/f0")
