"""Collecting: rows of every job -> tables with intervals, plots, one page, and the cells as CSV and Parquet."""

from io import BytesIO
from pathlib import Path

from pyarrow.csv import write_csv
from pyarrow.parquet import write_table

from dilm.artifacts.rows import read_table
from dilm.core.io import write_bytes
from dilm.report.health import artifacts_below, costs_of, health_of
from dilm.report.html import page, texts_below
from dilm.report.plots import plot_all
from dilm.report.summary import Table, across_models, make_tables
from dilm.report.tables import latex, markdown, missing_of


def run(root: Path, out: Path) -> list[Table]:
    """Write the report of every row under `root`: `index.html`, `tables.md|tex`, `results.csv|parquet`, `plots/`."""
    cells = read_table(root)
    csv, parquet = BytesIO(), BytesIO()
    write_csv(cells, csv)
    write_table(cells, parquet)
    write_bytes(out / "results.csv", csv.getvalue())
    write_bytes(out / "results.parquet", parquet.getvalue())
    rows = cells.to_pandas()
    tables = make_tables(rows)
    across = across_models(tables)
    failed = rows[rows["status"] == "failed"]
    write_bytes(out / "tables.md", markdown(tables, across, failed).encode())
    write_bytes(out / "tables.tex", latex(tables, across).encode())
    made = artifacts_below(root)
    plots = plot_all(tables, across, costs_of(tables, rows, made), root)
    for name, svg in plots.items():
        write_bytes(out / "plots" / f"{name}.svg", svg.encode())
    health = health_of(rows, sum(map(missing_of, tables)), made)
    write_bytes(out / "index.html", page(tables, across, plots, health, texts_below(root)).encode())
    return tables
