"""Tables as Markdown and LaTeX: the best of a size in bold, a star where a method is told from `random`."""

import math
from collections.abc import Callable

import pandas as pd

from dilm.report.render import cell_text, difference_text, render
from dilm.report.statistics import Summary
from dilm.report.summary import Across, Table

LEVEL = 0.05  # of a corrected p that is marked
NOTES = [
    "Mean ± standard deviation over models, and a 95% bootstrap interval of the mean over data sets.",
    "Differences are paired over data sets; p is of a two-sided sign-flip permutation test, corrected by Holm's method "
    "for the number of differences below one table.",
    f"In bold: the best mean of a size. A star: differs from random, with a corrected p below {LEVEL}.",
]
OVERLAP = "Data sets are halves of one shared pool of candidates: they overlap, so intervals are too narrow."
LATEX = str.maketrans({
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
})  # fmt: skip


def marked(table: Table, method: str, dpc: int) -> tuple[bool, bool]:
    """Whether a method's mean is the best of its size, and whether it is told from `random`."""
    summary = table.summaries.get((method, dpc))
    means = [each.mean for (_, size), each in table.summaries.items() if size == dpc]
    best = summary is not None and len(means) > 1 and summary.mean == max(means)
    against = table.differences.get((method, "random", dpc))
    return best, against is not None and against.p_holm < LEVEL


def missing_of(table: Table) -> int:
    """Models that are missing for every method and size to have as many as the one that has most."""
    counts = [summary.n_models for (_, dpc), summary in table.summaries.items() if dpc]
    return len(table.methods) * len(table.sizes) * max(counts, default=0) - sum(counts)


def markdown(tables: list[Table], across: list[Across], failed: pd.DataFrame) -> str:
    """All tables as Markdown, and how many rows `failed`, with the first one's error."""
    return render(
        "tables.md.j2",
        tables=tables,
        across=across,
        errors=failed["error"].tolist(),
        notes=NOTES,
        overlap=OVERLAP,
        grid=lambda head, body: [head, ["---"] * len(head), *body],
        sizes_of=size_heads,
        summary_rows=lambda table: summary_rows(table, _markdown_cell),
        difference_rows=difference_rows,
        across_rows=across_rows,
        missing_of=missing_of,
    )


def size_heads(table: Table | Across) -> list[str]:
    """Headings of the columns: a size each."""
    return [f"dpc {dpc}" for dpc in table.sizes]


CellText = Callable[[Summary | None, bool, bool], str]  # of a summary; whether it is the best; whether it has a star


def _markdown_cell(summary: Summary | None, best: bool = False, star: bool = False) -> str:
    text = cell_text(summary)
    return (f"**{text}**" if best else text) + (" *" if star else "")


def summary_rows(table: Table, text: CellText) -> list[list[str]]:
    """A row for each method: its name, its summaries, and of how many models and data sets they are."""
    rows = []
    for method in table.methods:
        summaries = [table.summaries.get((method, dpc)) for dpc in table.sizes]
        texts = [text(each, *marked(table, method, dpc)) for each, dpc in zip(summaries, table.sizes, strict=True)]
        models = "/".join(str(summary.n_models) for summary in summaries if summary)
        datasets = "/".join(str(summary.n_datasets) for summary in summaries if summary)
        rows.append([method, *texts, models, datasets])
    return rows


def difference_rows(table: Table) -> list[list[str]]:
    """A row for each pair of methods that is compared, and for each method's distance to the whole training set."""
    pairs = dict.fromkeys((first, second) for first, second, _ in table.differences)
    rows = [
        [f"{first} − {second}", *(difference_text(table.differences.get((first, second, dpc))) for dpc in table.sizes)]
        for first, second in pairs
    ]
    if table.below_full:
        rows += [
            [f"full − {method}", *(difference_text(table.below_full.get((method, dpc))) for dpc in table.sizes)]
            for method in table.methods
        ]
    return rows


def across_rows(part: Across, text: Callable[[Summary | None], str] = cell_text) -> list[list[str]]:
    """A row for each model and method."""
    return [
        [model, method, *(text(part.cells.get((model, method, dpc))) for dpc in part.sizes)]
        for model in part.models
        for method in part.methods
    ]


def latex(tables: list[Table], across: list[Across]) -> str:
    r"""All tables as LaTeX (booktabs), as the paper has them: `mean\textsubscript{std}`, the best in bold."""
    parts = [_latex_table(table) for table in tables if table.sizes]
    parts += [_latex_across(part) for part in across]
    return "% Needs \\usepackage{booktabs}. Made by dilm.\n\n" + "\n".join(parts)


def _latex_table(table: Table) -> str:
    head = ["Method", *map(str, table.sizes)]
    rows = [row[: len(head)] for row in summary_rows(table, _latex_cell)]
    rows += [[method, *[_latex_cell(summary)] * len(table.sizes)] for method, summary in table.whole.items()]
    return _tabular(f"{table.title}, by texts a class (DPC).", head, rows)


def _latex_across(part: Across) -> str:
    rows = [[f"{model}, {method}", *cells] for model, method, *cells in across_rows(part, _latex_cell)]
    return _tabular(f"{part.title}.", ["Model, method", *map(str, part.sizes)], rows)


def _latex_cell(summary: Summary | None, best: bool = False, star: bool = False) -> str:
    if summary is None:
        return "--"
    std = "" if math.isnan(summary.std) else rf"\textsubscript{{{summary.std:.1f}}}"
    mean = rf"\textbf{{{summary.mean:.1f}}}" if best else f"{summary.mean:.1f}"
    return f"{mean}{std}" + ("$^*$" if star else "")


def _tabular(caption: str, head: list[str], rows: list[list[str]]) -> str:
    frame = pd.DataFrame([[_escaped(name), *cells] for name, *cells in rows], columns=head)
    columns = "l" + "r" * (len(head) - 1)
    style = frame.style.hide(axis="index")
    return style.to_latex(caption=_escaped(caption), column_format=columns, position_float="centering", hrules=True)


def _escaped(text: str) -> str:
    """Names as LaTeX has them. pandas escapes cells and headings, but no captions."""
    return text.translate(LATEX)
