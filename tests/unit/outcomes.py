"""Rows of cells, as tests make them."""

from typing import Any

from dilm.artifacts.rows import Row, row_of


def make_row(**values: Any) -> Row:
    """A row whose cell and outcome have these values, by name."""
    return row_of(values)


def changed(row: Row, **values: Any) -> Row:
    """The row with other values in its cell or its outcome."""
    return row_of({**row.flat(), **values})
