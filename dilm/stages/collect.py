"""Collecting: rows of every job -> tables with intervals, plots, and one CSV (paper, tables 1 to 4)."""

import math
from io import BytesIO
from pathlib import Path

import pandas as pd
from pyarrow.csv import write_csv

from dilm.files import write_bytes
from dilm.plots import plot_all
from dilm.results import read_table
from dilm.statistics import Difference, Summary
from dilm.summaries import Table, make_tables


def run(root: Path, out: Path) -> list[Table]:
    """Write `results.csv`, `tables.md` and `plots/` from every row under `root`."""
    cells = read_table(root)
    csv = BytesIO()
    write_csv(cells, csv)
    write_bytes(out / "results.csv", csv.getvalue())
    rows = cells.to_pandas()
    tables = make_tables(rows)
    write_bytes(out / "tables.md", markdown(tables, rows[rows["status"] == "failed"]).encode())
    plot_all(tables, root, out / "plots")
    return tables


def cell_text(summary: Summary | None) -> str:
    """`mean ± std [low, high]` in percent; a dash where there is nothing."""
    if summary is None:
        return "–"
    std = "" if math.isnan(summary.std) else f" ± {summary.std:.1f}"
    interval = "" if math.isnan(summary.low) else f" [{summary.low:.1f}, {summary.high:.1f}]"
    return f"{summary.mean:.1f}{std}{interval}"


def difference_text(difference: Difference) -> str:
    """`+mean [low, high], p` of a difference; the p that is corrected."""
    interval = "" if math.isnan(difference.low) else f" [{difference.low:+.1f}, {difference.high:+.1f}]"
    p_value = "" if math.isnan(difference.p_holm) else f", p = {difference.p_holm:.3f}"
    p_value = p_value.replace("p = 0.000", "p < 0.001")
    return f"{difference.mean:+.1f}{interval}{p_value}"


def markdown(tables: list[Table], failed: pd.DataFrame) -> str:
    """All tables as Markdown, and how many rows `failed`."""
    lines = [
        "# Results",
        "",
        "Mean ± standard deviation over models, and a 95% bootstrap interval of the mean over data sets.",
        "Differences are paired over data sets; p is of a two-sided sign-flip permutation test, corrected by Holm's",
        "method for the number of differences below one table.",
    ]
    for table in tables:
        lines += ["", f"## {table.title}", ""]
        if table.shared_pool:
            lines += [
                "Data sets are halves of one shared pool of candidates: they overlap, so intervals are too narrow.",
                "",
            ]
        if table.sizes:
            head = ["method", *(f"dpc {dpc}" for dpc in table.sizes), "models", "data sets"]
            lines += _rows(head, _summary_rows(table))
        for method, summary in table.whole.items():
            lines += ["", f"{method}, all training texts: {cell_text(summary)} ({summary.n_models} models)"]
        if table.differences or table.below_full:
            lines += ["", *_rows(["difference", *(f"dpc {dpc}" for dpc in table.sizes)], _difference_rows(table))]
    if not tables:
        lines += ["", "No cell is done yet."]
    if len(failed):
        lines += ["", f"{len(failed)} cells failed; the first: {failed['error'].iloc[0]}"]
    return "\n".join(lines) + "\n"


def _rows(head: list[str], body: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)]


def _summary_rows(table: Table) -> list[list[str]]:
    body = []
    for method in table.methods:
        found = [table.summaries.get((method, dpc)) for dpc in table.sizes]
        models = "/".join(str(summary.n_models) for summary in found if summary)
        datasets = "/".join(str(summary.n_datasets) for summary in found if summary)
        body.append([method, *(cell_text(summary) for summary in found), models, datasets])
    return body


def _difference_rows(table: Table) -> list[list[str]]:
    pairs = dict.fromkeys((first, second) for first, second, _ in table.differences)
    return [
        [
            f"{first} − {second}",
            *(
                difference_text(table.differences[first, second, dpc])
                if (first, second, dpc) in table.differences
                else "–"
                for dpc in table.sizes
            ),
        ]
        for first, second in pairs
    ] + [
        [f"full − {method}", *(_below(table, method, dpc) for dpc in table.sizes)]
        for method in table.methods
        if table.below_full
    ]


def _below(table: Table, method: str, dpc: int) -> str:
    found = table.below_full.get((method, dpc))
    return "–" if found is None else difference_text(found)
