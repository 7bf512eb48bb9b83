"""Bring the rows of every job together: `python tools/collect.py runs --out report`."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table as RichTable

from dilm.artifacts.rows import rows_folder
from dilm.cli import run_tool
from dilm.core.errors import MissingArtifactError

if TYPE_CHECKING:
    from dilm.report.summary import Table


def main(arguments: list[str]) -> None:
    """Write the report, print its tables, and copy to MLflow where asked."""
    parser = argparse.ArgumentParser(description=__doc__, epilog="Exit status: 0 done, 2 something to mend.")
    parser.add_argument("root", type=Path, help="the folder that the commands wrote to (root=, by default runs)")
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder of the report (default: report)")
    parser.add_argument("--mlflow", metavar="URI", help="also bring runs and cells into this MLflow store")
    options = parser.parse_args(arguments)
    evaluated = rows_folder(options.root).is_dir()
    if not evaluated and not (options.mlflow and options.root.is_dir()):
        raise MissingArtifactError(str(rows_folder(options.root)), "python -m dilm.evaluate", f"root={options.root}")
    from dilm.stages import collect  # pandas and matplotlib, which --help and a typo need not wait for

    if evaluated:
        _print_tables(collect.run(options.root, options.out), options.out)
    if options.mlflow:
        collect.to_mlflow(options.root, options.mlflow)


def _print_tables(tables: "list[Table]", out: Path) -> None:
    console = Console(width=None if sys.stdout.isatty() else 140)
    for table in tables:
        console.print(_printed(table))
    console.print(f"report: {out / 'index.html'}; beside it tables.md|tex, results.csv|parquet, plots/")


def _printed(table: "Table") -> RichTable:
    from dilm.report.render import cell_text

    printed = RichTable(title=table.title, caption="mean ± std over models [95% interval over data sets]")
    printed.add_column("method")
    for dpc in table.sizes:
        printed.add_column(f"dpc {dpc}")
    for method in table.methods:
        printed.add_row(method, *(cell_text(table.summaries.get((method, dpc))) for dpc in table.sizes))
    for method, summary in table.whole.items():
        printed.add_row(f"{method}: {cell_text(summary)}")
    return printed


if __name__ == "__main__":
    run_tool(main)
