"""Reports from rows: tables against numbers computed by hand, and plots that show something."""

import json
import math
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dilm.files import TEMPORARY
from dilm.results import Row, rows_folder
from dilm.stages.collect import cell_text, difference_text, markdown, run
from dilm.statistics import Difference, Summary
from dilm.summaries import Table, make_tables

ROW = Row(
    key="", task="toy", method="dilm", dpc=5, dataset=0, seed=0, evaluator="frozen", model="tiny", metric="accuracy",
    value=0.0, status="done", source_key="", protocol="p0", data_hash="d0", pool="fresh",
)  # fmt: skip


def cells(method: str, values: list[list[float]], dpc: int = 5, source: str = "", **changes: Any) -> list[Row]:
    """Rows of a method: values[data set][seed]."""
    source = source or f"{method}{dpc}"
    return [
        replace(
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
    lines = [json.dumps(asdict(row)) + "\n" for row in rows]
    (rows_folder(root) / "rows-job.jsonl").write_text("".join(lines))


def frame(rows: list[Row]) -> pd.DataFrame:
    return pd.DataFrame([asdict(row) for row in rows], columns=list(Row.__dataclass_fields__))


def one_table(rows: list[Row]) -> Table:
    (table,) = make_tables(frame(rows))
    return table


DILM = [[80.0, 82.0], [84.0, 86.0], [90.0, 88.0]]
RANDOM = [[70.0, 72.0], [75.0, 73.0], [77.0, 79.0]]


# Tables


def test_a_summary_is_over_models_and_its_interval_over_data_sets() -> None:
    summary = one_table(cells("dilm", DILM)).summaries["dilm", 5]
    assert summary.mean == pytest.approx(85.0)
    assert summary.std == pytest.approx(math.sqrt((25 + 9 + 1 + 1 + 25 + 9) / 5))
    assert (summary.n_models, summary.n_datasets) == (6, 3)
    assert (summary.low, summary.high) == (81.0, 89.0), "three data sets: the ends are the smallest and largest means"


def test_a_difference_is_paired_over_data_sets() -> None:
    difference = one_table(cells("dilm", DILM) + cells("random", RANDOM)).differences["dilm", "random", 5]
    # Means of the data sets: 81, 85, 89 and 71, 74, 78.
    assert difference.mean == pytest.approx((10 + 11 + 11) / 3)
    assert (difference.low, difference.high) == (10.0, 11.0)
    assert difference.p_value == pytest.approx(2 / 8)
    assert difference.n_datasets == 3


def test_a_difference_counts_the_cells_that_both_have() -> None:
    first = cells("dilm", [[80.0, 90.0], [84.0], [99.0]])
    second = cells("random", [[70.0], [71.0, 0.0]])
    difference = one_table(first + second).differences["dilm", "random", 5]
    assert difference.n_datasets == 2
    assert difference.mean == pytest.approx(((80 - 70) + (84 - 71)) / 2)


def test_methods_without_a_common_data_set_have_no_difference() -> None:
    second = [replace(row, dataset=row.dataset + 3) for row in cells("random", RANDOM)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert one_table(cells("dilm", DILM) + second).differences == {}


def test_only_equal_sizes_are_compared() -> None:
    rows = cells("dilm", DILM, dpc=5) + cells("random", RANDOM, dpc=20) + cells("lm", RANDOM, dpc=20)
    assert set(one_table(rows).differences) == {("lm", "random", 20)}


def test_every_comparison_of_the_paper_is_made() -> None:
    rows = [row for method in ("random", "k_centers", "lm", "dilm") for row in cells(method, DILM)]
    pairs = {(first, second) for first, second, _ in one_table(rows).differences}
    with_dilm = {("dilm", "lm"), ("dilm", "k_centers"), ("dilm", "random")}
    assert pairs == with_dilm | {("k_centers", "random"), ("lm", "random")}


def test_p_values_of_a_table_are_corrected_as_one_family() -> None:
    rows = [row for method in ("random", "k_centers", "dilm") for row in cells(method, DILM)]
    worse = cells("lm", RANDOM)
    differences = one_table(rows + worse).differences
    assert len(differences) == 5
    for difference in differences.values():
        assert difference.p_holm == min(1.0, max(difference.p_value, difference.p_holm))
    smallest = min(differences.values(), key=lambda difference: difference.p_value)
    assert smallest.p_holm == pytest.approx(min(1.0, 5 * smallest.p_value))


FULL = cells("full", [[92.0, 94.0]], dpc=0, protocol="p0/f0")


def test_the_whole_training_set_stands_beside_every_size() -> None:
    table = one_table(cells("dilm", DILM) + cells("random", RANDOM, dpc=20) + FULL)
    assert table.methods == ["random", "dilm"] and table.sizes == [5, 20]
    assert table.below_full["dilm", 5].mean == pytest.approx(93 - 85)
    assert (table.below_full["dilm", 5].low, table.below_full["dilm", 5].high) == (93 - 89, 93 - 81)
    text = markdown([table], frame([]))
    assert "full, all training texts: 93.0 ± 1.4 (2 models)" in text
    assert "| full − dilm | +8.0 [+4.0, +12.0] | – |" in text


def test_the_whole_training_set_alone_is_a_report_too(tmp_path: Path) -> None:
    put(tmp_path, FULL)
    (table,) = run(tmp_path, tmp_path / "report")
    assert (table.methods, table.sizes) == ([], [])
    assert "full, all training texts: 93.0 ± 1.4 (2 models)" in (tmp_path / "report" / "tables.md").read_text()


def test_two_schedules_of_the_whole_training_set_are_told_apart() -> None:
    other = [replace(row, protocol="p0/f1", key=f"other {row.key}") for row in FULL]
    table = one_table(cells("dilm", DILM) + FULL + other)
    assert {method for method, dpc in table.summaries if dpc == 0} == {"full f0", "full f1"}
    assert table.below_full == {}


@pytest.mark.parametrize(
    "changes", [{"task": "other"}, {"model": "other"}, {"evaluator": "finetune"}, {"metric": "f1"}, {"protocol": "p1"}]
)
def test_settings_are_not_mixed(changes: dict[str, str]) -> None:
    others = [replace(row, key=f"other {row.key}", **changes) for row in cells("dilm", [[50.0], [51.0]])]
    tables = make_tables(frame(cells("dilm", DILM) + others))
    assert sorted(table.summaries["dilm", 5].n_models for table in tables) == [2, 6]
    assert len({table.title for table in tables}) == 2, "a reader must be able to tell them apart"


def test_data_sets_made_in_two_ways_are_told_apart() -> None:
    rows = (
        cells("dilm", DILM, source="aaaaaabbbbbb") + cells("dilm", RANDOM, source="ccccccdddddd") + cells("lm", RANDOM)
    )
    table = one_table(rows)
    assert table.methods == ["lm", "dilm aaaaaa", "dilm cccccc"]
    assert table.summaries["dilm aaaaaa", 5].mean == pytest.approx(85.0)
    assert table.summaries["dilm cccccc", 5].mean == pytest.approx(np.mean(RANDOM))
    assert ("dilm", "lm", 5) not in table.differences, "which of the two it is would be a guess"


def test_one_way_at_each_size_needs_no_key() -> None:
    assert one_table(cells("dilm", DILM, dpc=5) + cells("dilm", DILM, dpc=20)).methods == ["dilm"]


def test_methods_are_in_the_papers_order_and_sizes_ascend() -> None:
    rows = [row for method in ("dilm", "random", "own", "k_centers") for row in cells(method, DILM, dpc=20)]
    table = one_table([*rows, *cells("lm", DILM, dpc=5)])
    assert table.methods == ["random", "k_centers", "lm", "dilm", "own"]
    assert table.sizes == [5, 20]


def test_failed_rows_are_in_no_table() -> None:
    failed = [replace(row, status="failed", value=None) for row in cells("random", RANDOM)]
    assert make_tables(frame(failed)) == []
    assert one_table(cells("dilm", DILM) + failed).methods == ["dilm"]


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
    lines = markdown(make_tables(frame(rows)), frame([])).splitlines()
    start = lines.index("## toy, tiny (frozen encoder), accuracy")
    assert lines[start + 1 :] == [
        "",
        "| method | dpc 5 | dpc 20 | models | data sets |",
        "| --- | --- | --- | --- | --- |",
        "| random | 74.3 ± 3.3 [71.0, 78.0] | – | 6 | 3 |",
        "| dilm | 85.0 ± 3.7 [81.0, 89.0] | 91.0 | 6/1 | 3/1 |",
        "",
        "| difference | dpc 5 | dpc 20 |",
        "| --- | --- | --- |",
        "| dilm − random | +10.7 [+10.0, +11.0], p = 0.250 | – |",
    ]


@pytest.mark.parametrize(("pool", "noted"), [("shared", True), ("fresh", False)])
def test_overlapping_data_sets_are_noted(pool: str, noted: bool) -> None:
    text = markdown(make_tables(frame(cells("dilm", DILM, pool=pool))), frame([]))
    assert ("halves of one shared pool" in text) == noted


def test_failed_cells_are_counted_with_the_first_ones_error() -> None:
    failed = [replace(ROW, status="failed", error="ValueError: why"), replace(ROW, status="failed", error="other")]
    text = markdown(make_tables(frame(cells("dilm", DILM))), frame(failed))
    assert text.endswith("\n2 cells failed; the first: ValueError: why\n")


# The report


def test_a_report_has_every_part(tmp_path: Path) -> None:
    put(tmp_path, [*cells("dilm", DILM), replace(ROW, key="f", status="failed", value=None, error="ValueError: why")])
    tables = run(tmp_path, tmp_path / "out")
    assert [table.title for table in tables] == ["toy, tiny (frozen encoder), accuracy"]
    assert (
        (tmp_path / "out" / "tables.md")
        .read_text(encoding="utf-8")
        .endswith("1 cells failed; the first: ValueError: why\n")
    )
    frame = pd.read_csv(tmp_path / "out" / "results.csv")
    assert len(frame) == 7
    assert frame.loc[frame["status"] == "done", "value"].tolist() == [value for scores in DILM for value in scores]
    assert [path.name for path in (tmp_path / "out" / "plots").iterdir()] == ["toy-tiny-frozen.png"]


def test_collecting_again_gives_the_same_bytes(tmp_path: Path) -> None:
    rows = cells("dilm", DILM) + cells("random", RANDOM)
    put(tmp_path / "runs", rows)
    run(tmp_path / "runs", tmp_path / "first")
    run(tmp_path / "runs", tmp_path / "first")
    put(tmp_path / "runs", rows[::-1])
    run(tmp_path / "runs", tmp_path / "second")
    for name in ("results.csv", "tables.md"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_without_rows_the_report_says_so(tmp_path: Path) -> None:
    rows_folder(tmp_path).mkdir()
    assert run(tmp_path, tmp_path / "out") == []
    assert "No cell is done yet." in (tmp_path / "out" / "tables.md").read_text()
    assert (tmp_path / "out" / "results.csv").exists()
    assert not (tmp_path / "out" / "plots").exists()


# Plots


def assert_shows_something(path: Path) -> None:
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("L"))
    assert pixels.shape[0] > 200 and pixels.shape[1] > 200
    assert 0.01 < (pixels < 200).mean() < 0.9


@pytest.mark.parametrize(
    "rows",
    [
        cells("dilm", DILM) + cells("random", RANDOM) + cells("lm", DILM, dpc=20),
        cells("dilm", [[80.0]]),
        cells("dilm", [[0.0], [0.0]]),
        cells("dilm", [[50.2] * 3] * 3),  # the mean of nine such numbers is a little less than that of three
        cells("dilm", [[100 * 410 / 872] * 3] * 3),  # and here a little more
        cells("dilm", [[90.0] * 20, *[[50.0 + number / 10] for number in range(19)]]),  # the mean is off the interval
    ],
    ids=["several", "one model", "nothing right", "equal scores", "other equal scores", "unequal numbers of seeds"],
)
def test_scores_are_plotted(tmp_path: Path, rows: list[Row]) -> None:
    put(tmp_path, rows)
    run(tmp_path, tmp_path / "out")
    assert_shows_something(tmp_path / "out" / "plots" / "toy-tiny-frozen.png")


@pytest.mark.parametrize("changes", [{"protocol": "p1"}, {"model": "other"}, {"evaluator": "finetune"}])
def test_every_table_has_a_plot_of_its_own(tmp_path: Path, changes: dict[str, str]) -> None:
    put(tmp_path, cells("dilm", DILM) + cells("dilm", DILM, source="other", **changes))
    run(tmp_path, tmp_path / "out")
    plots = sorted((tmp_path / "out" / "plots").iterdir())
    assert len(plots) == 2
    for plot in plots:
        assert_shows_something(plot)


def put_metrics(folder: Path, records: list[dict[str, float]], tail: str = "") -> None:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + tail)


LOSSES = [{"step": step, "loss": 1 / step, "gradient_norm": 1.0, "effective_texts": 3.0} for step in range(1, 40)]
FRESH = [
    {"step": step, "fresh_similarity": 0.1 + step / 100, "fresh_similarity_at_0": 0.1, "fresh_similarity_at_20": 0.2,
     "real_similarity": 0.9}
    for step in range(0, 40, 10)
]  # fmt: skip


@pytest.mark.parametrize("records", [LOSSES, [FRESH[0], *LOSSES, *FRESH[1:]]], ids=["loss alone", "with similarity"])
def test_matching_is_plotted(tmp_path: Path, records: list[dict[str, float]]) -> None:
    rows_folder(tmp_path).mkdir()
    put_metrics(tmp_path / "toy" / "dilm-tiny-0123", records)
    put_metrics(tmp_path / "toy" / "lm-tiny-0123", LOSSES)
    run(tmp_path, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out" / "plots").iterdir()] == ["toy-dilm-tiny-0123.png"]
    assert_shows_something(tmp_path / "out" / "plots" / "toy-dilm-tiny-0123.png")


def test_training_that_is_under_way_is_no_part_of_a_report(tmp_path: Path) -> None:
    rows_folder(tmp_path).mkdir()
    put_metrics(tmp_path / "toy" / f"dilm-tiny-0123{TEMPORARY}host-7-abcd", LOSSES, tail='{"step": 40, "lo')
    run(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out" / "plots").exists()


def test_plots_leave_no_open_figure_and_no_temporary_file(tmp_path: Path) -> None:
    from matplotlib import pyplot

    put(tmp_path, cells("dilm", DILM))
    run(tmp_path, tmp_path / "out")
    assert pyplot.get_fignums() == []
    assert not [path for path in (tmp_path / "out").rglob("*") if TEMPORARY in path.name]
