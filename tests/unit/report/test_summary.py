"""Tables from rows, against numbers computed by hand."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
from outcomes import changed
from reports import DILM, FULL, RANDOM, cells, frame, one_table

from dilm.report.summary import across_models, comparisons, make_tables
from dilm.report.tables import markdown


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
    second = [changed(row, dataset=row.cell.dataset + 3) for row in cells("random", RANDOM)]
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


def test_what_teach_chose_is_compared_with_k_centers() -> None:
    pairs = comparisons({"random", "k_centers", "herding", "teach", "dilm", "dilm, teach"})
    assert {("teach", "k_centers"), ("dilm, teach", "k_centers"), ("dilm", "dilm, teach")} <= set(pairs)
    assert ("herding", "k_centers") not in pairs and len(pairs) == len(set(pairs))


def test_p_values_of_a_table_are_corrected_as_one_family() -> None:
    rows = [row for method in ("random", "k_centers", "dilm") for row in cells(method, DILM)]
    worse = cells("lm", RANDOM)
    differences = one_table(rows + worse).differences
    assert len(differences) == 5
    for difference in differences.values():
        assert difference.p_holm == min(1.0, max(difference.p_value, difference.p_holm))
    smallest = min(differences.values(), key=lambda difference: difference.p_value)
    assert smallest.p_holm == pytest.approx(min(1.0, 5 * smallest.p_value))


def test_the_whole_training_set_stands_beside_every_size() -> None:
    table = one_table(cells("dilm", DILM) + cells("random", RANDOM, dpc=20) + FULL)
    assert table.methods == ["random", "dilm"] and table.sizes == [5, 20]
    assert table.below_full["dilm", 5].mean == pytest.approx(93 - 85)
    assert (table.below_full["dilm", 5].low, table.below_full["dilm", 5].high) == (93 - 89, 93 - 81)
    text = markdown([table], [], frame([]))
    assert "full, all training texts: 93.0 ± 1.4 (2 models)" in text
    assert "| full − dilm | +8.0 [+4.0, +12.0] | – |" in text


def test_two_schedules_of_the_whole_training_set_are_told_apart() -> None:
    other = [changed(row, protocol="p0/f1", key=f"other {row.cell.key}") for row in FULL]
    table = one_table(cells("dilm", DILM) + FULL + other)
    assert {method for method, dpc in table.summaries if dpc == 0} == {"full f0", "full f1"}
    assert table.below_full == {}


@pytest.mark.parametrize(
    "changes", [{"task": "other"}, {"model": "other"}, {"evaluator": "finetune"}, {"metric": "f1"}, {"protocol": "p1"}]
)
def test_settings_are_not_mixed(changes: dict[str, str]) -> None:
    others = [changed(row, key=f"other {row.cell.key}", **changes) for row in cells("dilm", [[50.0], [51.0]])]
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


def test_models_stand_side_by_side_where_several_were_evaluated() -> None:
    rows = cells("dilm", DILM) + cells("random", RANDOM) + cells("lm", DILM, dpc=20)
    other = [changed(row, model="other", key=f"other {row.cell.key}") for row in cells("dilm", RANDOM)]
    assert across_models(make_tables(frame(rows))) == []
    (part,) = across_models(make_tables(frame(rows + other)))
    assert part.title == "toy across models (frozen encoder), accuracy"
    assert (part.methods, part.models, part.sizes) == (["random", "lm", "dilm"], ["other", "tiny"], [5, 20])
    assert part.cells["other", "dilm", 5].mean == pytest.approx(np.mean(RANDOM))
    assert ("other", "random", 5) not in part.cells
