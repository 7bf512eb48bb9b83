"""Tables as text: what a reader of Markdown or of a paper sees."""

import math
from dataclasses import replace

import pytest
from jinja2 import UndefinedError
from outcomes import changed
from reports import DILM, FULL, RANDOM, ROW, cells, frame, one_table

from dilm.report.render import cell_text, difference_text, render
from dilm.report.statistics import Difference, Summary
from dilm.report.summary import across_models, make_tables
from dilm.report.tables import latex, markdown, marked, missing_of


@pytest.mark.parametrize(
    ("summary", "text"),
    [
        (None, "–"),
        (Summary(85.04, 3.46, 81.0, 89.0, 6, 3), "85.0 ± 3.5 [81.0, 89.0]"),
        (Summary(85.0, 1.4, math.nan, math.nan, 2, 1), "85.0 ± 1.4"),
        (Summary(85.0, math.nan, math.nan, math.nan, 1, 1), "85.0"),
    ],
)
def test_a_cells_text(summary: Summary | None, text: str) -> None:
    assert cell_text(summary) == text


@pytest.mark.parametrize(
    ("difference", "text"),
    [
        (Difference(10.66, 10.0, 11.0, 0.1, 3, p_holm=0.25), "+10.7 [+10.0, +11.0], p = 0.250"),
        (Difference(-0.3, -1.0, 0.4, 0.5, 3, p_holm=0.5), "-0.3 [-1.0, +0.4], p = 0.500"),
        (Difference(2.0, math.nan, math.nan, math.nan, 1), "+2.0"),
    ],
)
def test_a_differences_text(difference: Difference, text: str) -> None:
    assert difference_text(difference) == text


def test_tables_in_markdown() -> None:
    rows = cells("dilm", DILM) + cells("random", RANDOM) + cells("dilm", [[91.0]], dpc=20)
    lines = markdown(make_tables(frame(rows)), [], frame([])).splitlines()
    start = lines.index("## toy, tiny (frozen encoder), accuracy")
    assert lines[start + 1 :] == [
        "",
        "| method | dpc 5 | dpc 20 | models | data sets |",
        "| --- | --- | --- | --- | --- |",
        "| random | 74.3 ± 3.3 [71.0, 78.0] | – | 6 | 3 |",
        "| dilm | **85.0 ± 3.7 [81.0, 89.0]** | 91.0 | 6/1 | 3/1 |",
        "",
        "11 models are missing for equal numbers.",
        "",
        "| difference | dpc 5 | dpc 20 |",
        "| --- | --- | --- |",
        "| dilm − random | +10.7 [+10.0, +11.0], p = 0.250 | – |",
    ]


@pytest.mark.parametrize(("pool", "noted"), [("shared", True), ("fresh", False)])
def test_overlapping_data_sets_are_noted(pool: str, noted: bool) -> None:
    text = markdown(make_tables(frame(cells("dilm", DILM, pool=pool))), [], frame([]))
    assert ("halves of one shared pool" in text) == noted


def test_failed_cells_are_counted_with_the_first_ones_error() -> None:
    failed = [replace(ROW, status="failed", error="ValueError: why"), replace(ROW, status="failed", error="other")]
    text = markdown(make_tables(frame(cells("dilm", DILM))), [], frame(failed))
    assert text.endswith("\n2 cells failed; the first: ValueError: why\n")


MANY = [[80.0 + number] for number in range(12)]
LOWER = [[70.0 + number % 7] for number in range(12)]


def test_the_best_is_bold_and_what_is_told_from_random_has_a_star() -> None:
    table = one_table(cells("dilm", MANY) + cells("random", LOWER) + cells("lm", [[score + 1] for (score,) in LOWER]))
    assert marked(table, "dilm", 5) == (True, True)
    assert marked(table, "random", 5) == (False, False)
    assert marked(table, "dilm", 20) == (False, False)
    (row,) = [line for line in markdown([table], [], frame([])).splitlines() if line.startswith("| dilm |")]
    assert row.startswith("| dilm | **85.5 ± 3.6 [") and "]** * |" in row


def test_a_method_alone_is_not_the_best_of_anything() -> None:
    assert marked(one_table(cells("dilm", DILM)), "dilm", 5) == (False, False)


def test_missing_models_are_counted() -> None:
    table = one_table(cells("dilm", DILM) + cells("random", RANDOM[:2]) + cells("dilm", DILM, dpc=20))
    assert missing_of(table) == 2 + 6
    assert "8 models are missing for equal numbers." in markdown([table], [], frame([]))
    assert missing_of(one_table(cells("dilm", DILM) + cells("random", RANDOM) + FULL)) == 0


def test_tables_in_latex() -> None:
    other = [changed(row, model="other_1", key=f"other {row.cell.key}") for row in cells("dilm", RANDOM)]
    tables = make_tables(frame(cells("dilm", DILM) + cells("random", RANDOM) + FULL + other))
    text = latex(tables, across_models(tables))
    assert r"random & 74.3\textsubscript{3.3} \\" in text
    assert r"dilm & \textbf{85.0}\textsubscript{3.7} \\" in text
    assert r"full & 93.0\textsubscript{1.4} \\" in text
    assert r"Model, method & 5 \\" in text and r"other\_1, random & --" in text
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 3


def test_names_are_escaped_in_latex_and_stay_as_they_are_in_markdown() -> None:
    rows = cells(r"a&b_1 ~100% <\x>", DILM, task="t#1 & co") + cells("random", RANDOM, task="t#1 & co")
    tables = make_tables(frame(rows))
    text = latex(tables, [])
    assert r"a\&b\_1 \textasciitilde{}100\% <\textbackslash{}x> & \textbf{85.0}" in text
    assert r"\caption{t\#1 \& co, tiny (frozen encoder)" in text
    assert r"| a&b_1 ~100% <\x> | **85.0" in markdown(tables, [], frame([]))


def test_a_value_that_a_template_lacks_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="notes"):
        render("tables.md.j2")
