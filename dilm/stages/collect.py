"""Collecting: rows of every job -> tables with intervals, plots, one page, cells as CSV and Parquet, runs in MLflow."""

import sys
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from pyarrow.csv import write_csv
from pyarrow.parquet import write_table

from dilm.artifacts.rows import read_table
from dilm.core.errors import ConfigError
from dilm.core.io import write_bytes
from dilm.report.health import artifacts_below, costs_of, health_of
from dilm.report.html import page, texts_below
from dilm.report.plots import plot_all
from dilm.report.summary import Table, across_models, make_tables
from dilm.report.tables import latex, markdown, missing_of
from dilm.tracking.mlflow import bring_in

if TYPE_CHECKING:
    import pyarrow


def run(root: Path, out: Path) -> list[Table]:
    """Write the report of every row under `root`: `index.html`, `tables.md|tex`, `results.csv|parquet`, `plots/`."""
    cells = read_table(root)
    _write_cells(cells, out)
    rows = cells.to_pandas()
    tables = make_tables(rows)
    across = across_models(tables)
    failed = rows[rows["status"] == "failed"]
    write_bytes(out / "tables.md", markdown(tables, across, failed).encode())
    write_bytes(out / "tables.tex", latex(tables, across).encode())
    artifacts = artifacts_below(root)
    plots = plot_all(tables, across, costs_of(tables, rows, artifacts), root)
    for name, svg in plots.items():
        write_bytes(out / "plots" / f"{name}.svg", svg.encode())
    health = health_of(rows, sum(map(missing_of, tables)), artifacts)
    write_bytes(out / "index.html", page(tables, across, plots, health, texts_below(root)).encode())
    return tables


def _write_cells(cells: "pyarrow.Table", out: Path) -> None:
    csv, parquet = BytesIO(), BytesIO()
    write_csv(cells, csv)
    write_table(cells, parquet)
    write_bytes(out / "results.csv", csv.getvalue())
    write_bytes(out / "results.parquet", parquet.getvalue())


def to_mlflow(root: Path, uri: str, required: bool = True) -> None:
    """Bring artifacts and done cells under `root` into the MLflow store at `uri`, and print how many were added.

    Raises ConfigError where the store can't be used. Where it is not `required`, that is a line on stderr instead,
    which says how to try again.
    """
    try:
        print(bring_in(root, uri))
    except ConfigError as error:
        if required:
            raise
        print(f"{error}; `python tools/collect.py {root} --mlflow {uri}` tries again", file=sys.stderr)
