"""Tables as Markdown and LaTeX: the best of a size in bold, a star where a method is told from `random`."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import pandas as pd

from dilm.report.statistics import Difference, Summary
from dilm.report.summary import Across, Table

LEVEL = 0.05  # of a corrected p that is marked
NOTES = [
    "Mean ± standard deviation over models, and a 95% bootstrap interval of the mean over data sets.",
    "Differences are paired over data sets; p is of a two-sided sign-flip permutation test, corrected by Holm's method "
    "for the number of differences below one table.",
    f"In bold: the best mean of a size. A star: differs from random, with a corrected p below {LEVEL}.",
]
OVERLAP = "Data sets are halves of one shared pool of candidates: they overlap, so intervals are too narrow."


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


def marked(table: Table, method: str, dpc: int) -> tuple[bool, bool]:
    """Whether a method's mean is the best of its size, and whether it is told from `random`."""
    found = table.summaries.get((method, dpc))
    means = [own.mean for (name, size), own in table.summaries.items() if size == dpc]
    best = found is not None and len(means) > 1 and found.mean == max(means)
    against = table.differences.get((method, "random", dpc))
    return best, against is not None and against.p_holm < LEVEL


def missing_of(table: Table) -> int:
    """Models that are missing for every method and size to have as many as the one that has most."""
    counts = [summary.n_models for (_, dpc), summary in table.summaries.items() if dpc]
    return len(table.methods) * len(table.sizes) * max(counts, default=0) - sum(counts)


def markdown(tables: list[Table], across: list[Across], failed: pd.DataFrame) -> str:
    """All tables as Markdown, and how many rows `failed`."""
    lines = ["# Results", "", *NOTES]
    for table in tables:
        lines += ["", f"## {table.title}", ""]
        lines += [OVERLAP, ""] if table.shared_pool else []
        if table.sizes:
            head = ["method", *(f"dpc {dpc}" for dpc in table.sizes), "models", "data sets"]
            lines += _rows(head, summary_rows(table, _markdown_cell))
        for method, summary in table.whole.items():
            lines += ["", f"{method}, all training texts: {cell_text(summary)} ({summary.n_models} models)"]
        if missing := missing_of(table):
            lines += ["", f"{missing} models are missing for equal numbers."]
        if table.differences or table.below_full:
            lines += ["", *_rows(["difference", *(f"dpc {dpc}" for dpc in table.sizes)], difference_rows(table))]
    for part in across:
        lines += [
            "",
            f"## {part.title}",
            "",
            *_rows(["model", "method", *(f"dpc {dpc}" for dpc in part.sizes)], across_rows(part)),
        ]
    if not tables:
        lines += ["", "No cell is done yet."]
    if len(failed):
        lines += ["", f"{len(failed)} cells failed; the first: {failed['error'].iloc[0]}"]
    return "\n".join(lines) + "\n"


def _rows(head: list[str], body: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)]


Cell = Callable[[Summary | None, bool, bool], str]  # a summary; whether it is the best; whether it has a star


def _markdown_cell(summary: Summary | None, best: bool, star: bool) -> str:
    text = cell_text(summary)
    return (f"**{text}**" if best else text) + (" *" if star else "")


def summary_rows(table: Table, cell: Cell) -> list[list[str]]:
    """A row for each method: its summaries, and of how many models and data sets they are."""
    body = []
    for method in table.methods:
        found = [table.summaries.get((method, dpc)) for dpc in table.sizes]
        texts = [cell(own, *marked(table, method, dpc)) for own, dpc in zip(found, table.sizes, strict=True)]
        models = "/".join(str(summary.n_models) for summary in found if summary)
        datasets = "/".join(str(summary.n_datasets) for summary in found if summary)
        body.append([method, *texts, models, datasets])
    return body


def difference_rows(table: Table) -> list[list[str]]:
    """A row for each pair of methods that is compared, and for each method's distance to the whole training set."""
    pairs = dict.fromkeys((first, second) for first, second, _ in table.differences)
    compared = [
        [f"{first} − {second}", *(_difference(table.differences, (first, second, dpc)) for dpc in table.sizes)]
        for first, second in pairs
    ]
    below = [
        [f"full − {method}", *(_difference(table.below_full, (method, dpc)) for dpc in table.sizes)]
        for method in table.methods
    ]
    return compared + (below if table.below_full else [])


Found = TypeVar("Found", tuple[str, str, int], tuple[str, int])


def _difference(differences: dict[Found, Difference], key: Found) -> str:
    return difference_text(differences[key]) if key in differences else "–"


def across_rows(part: Across, cell: Callable[[Summary | None], str] = cell_text) -> list[list[str]]:
    """A row for each model and method."""
    return [
        [model, method, *(cell(part.cells.get((model, method, dpc))) for dpc in part.sizes)]
        for model in part.models
        for method in part.methods
    ]


def latex(tables: list[Table], across: list[Across]) -> str:
    r"""All tables as LaTeX (booktabs), as the paper has them: `mean\textsubscript{std}`, the best in bold."""
    parts = [_latex_table(table) for table in tables if table.sizes]
    parts += [_latex_across(part) for part in across]
    return "% Needs \\usepackage{booktabs}. Made by dilm.\n\n" + "\n\n".join(parts) + "\n"


def _latex_table(table: Table) -> str:
    head = ["Method", *(f"{dpc}" for dpc in table.sizes)]
    body = [row[: len(head)] for row in summary_rows(table, _latex_cell)]
    whole = [
        [method, *[_latex_cell(summary, False, False)] * len(table.sizes)] for method, summary in table.whole.items()
    ]
    return _tabular(f"{table.title}, by texts a class (DPC).", head, [*body, *whole])


def _latex_across(part: Across) -> str:
    body = across_rows(part, lambda summary: _latex_cell(summary, False, False))
    named = [[f"{model}, {method}", *cells] for model, method, *cells in body]
    return _tabular(f"{part.title}.", ["Model, method", *map(str, part.sizes)], named)


def _latex_cell(summary: Summary | None, best: bool, star: bool) -> str:
    if summary is None:
        return "--"
    std = "" if math.isnan(summary.std) else rf"\textsubscript{{{summary.std:.1f}}}"
    mean = rf"\textbf{{{summary.mean:.1f}}}" if best else f"{summary.mean:.1f}"
    return f"{mean}{std}" + ("$^*$" if star else "")


def _tabular(caption: str, head: Sequence[str], body: list[list[str]]) -> str:
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_escaped(caption)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
    ]
    lines += [r"\toprule", " & ".join(map(_escaped, head)) + r" \\", r"\midrule"]
    lines += [" & ".join([_escaped(row[0]), *row[1:]]) + r" \\" for row in body]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"])


def _escaped(text: str) -> str:
    return "".join(f"\\{sign}" if sign in "&%$#_{}" else sign for sign in text).replace("−", "$-$")
