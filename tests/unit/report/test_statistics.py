"""Intervals and tests against their definitions, written out by hand."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dilm.report.statistics import (
    Summary,
    bootstrap_interval,
    dataset_means,
    distance,
    holm,
    paired_difference,
    summarise,
)

reproducible = settings(max_examples=60, deadline=None, derandomize=True)
scores = st.floats(0, 100).map(lambda value: round(value, 1))


def percentile_bootstrap(means: np.ndarray) -> tuple[float, float]:
    draws = np.random.default_rng(123)
    resampled = [draws.choice(means, len(means)).mean() for _ in range(20_000)]
    low, high = np.percentile(resampled, [2.5, 97.5])
    return float(low), float(high)


@pytest.mark.parametrize("n", [2, 3, 5, 13, 14, 20, 37])
@pytest.mark.parametrize("offset", [0.0, 1.5])
def test_interval_and_p_value_are_scipys(n: int, offset: float) -> None:
    """With the very same draws, which are made once for all of one size; with ties among the means too."""
    means = np.round(np.random.default_rng(n).normal(offset, 3, n), 1)
    about = {"n_resamples": 9_999, "rng": np.random.default_rng(0)}
    interval = stats.bootstrap((means,), np.mean, method="percentile", **about).confidence_interval
    assert bootstrap_interval(means) == pytest.approx((interval.low, interval.high), abs=1e-12)
    about["rng"] = np.random.default_rng(0)
    found = stats.permutation_test((means,), np.mean, permutation_type="samples", **about)
    assert paired_difference(means, np.zeros(n)).p_value == found.pvalue


@pytest.mark.parametrize("n", [2, 3, 8, 20])
def test_the_interval_is_the_percentile_bootstraps(n: int) -> None:
    means = np.random.default_rng(n).normal(80, 3, n)
    low, high = bootstrap_interval(means)
    expected_low, expected_high = percentile_bootstrap(means)
    tolerance = 0.15 * means.std()
    assert low == pytest.approx(expected_low, abs=tolerance)
    assert high == pytest.approx(expected_high, abs=tolerance)
    assert means.min() - 1e-9 <= low < means.mean() < high <= means.max() + 1e-9


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0)
    hits = sum(low <= 50 <= high for low, high in (bootstrap_interval(draws.normal(50, 5, 25)) for _ in range(100)))
    assert 84 <= hits <= 99


def test_the_interval_is_the_same_every_time() -> None:
    means = np.array([80.1, 82.3, 79.9, 85.0])
    assert bootstrap_interval(means) == bootstrap_interval(means.copy())


@pytest.mark.parametrize("values", [[], [80.0]])
def test_there_is_no_interval_of_fewer_than_two(values: list[float]) -> None:
    assert all(math.isnan(end) for end in bootstrap_interval(np.array(values)))


def test_the_interval_of_equal_values_is_that_value() -> None:
    """Exactly, though the mean of seven such numbers is rounded to another."""
    assert bootstrap_interval(np.array([50.2] * 7)) == (50.2, 50.2)


@reproducible
@given(st.lists(st.tuples(scores, st.integers(0, 4)), min_size=1, max_size=20))
def test_means_of_data_sets_against_a_search_of_every_row(rows: list[tuple[float, int]]) -> None:
    values, datasets = (np.array(column) for column in zip(*rows, strict=True))
    expected = [np.mean([value for value, other in rows if other == dataset]) for dataset in sorted(set(datasets))]
    np.testing.assert_allclose(dataset_means(values, datasets), expected)


def test_a_summary_by_hand() -> None:
    summary = summarise(np.array([80.0, 82.0, 90.0, 92.0]), np.array([0, 0, 7, 7]))
    assert (summary.mean, summary.n_models, summary.n_datasets) == (86.0, 4, 2)
    assert summary.std == pytest.approx(math.sqrt((36 + 16 + 16 + 36) / 3))
    assert (summary.low, summary.high) == (81.0, 91.0), "two data sets: the ends are their means"


def test_the_interval_is_over_data_sets_not_over_models() -> None:
    """Many learners on two data sets don't make it narrower."""
    few = summarise(np.array([80.0, 90.0]), np.array([0, 1]))
    many = summarise(np.repeat([80.0, 90.0], 50), np.repeat([0, 1], 50))
    assert (few.low, few.high) == (many.low, many.high)
    assert (many.n_models, many.n_datasets) == (100, 2)


def test_a_summary_of_one_model_has_no_spread() -> None:
    summary = summarise(np.array([80.0]), np.array([0]))
    assert (summary.mean, summary.n_models, summary.n_datasets) == (80.0, 1, 1)
    assert math.isnan(summary.std) and math.isnan(summary.low) and math.isnan(summary.high)


def test_a_summary_of_models_on_one_data_set_has_a_spread_and_no_interval() -> None:
    summary = summarise(np.array([80.0, 82.0]), np.array([0, 0]))
    assert summary.std == pytest.approx(math.sqrt(2))
    assert math.isnan(summary.low)
    assert isinstance(summary, Summary)


def sign_flip_p_value(differences: np.ndarray) -> float:
    """The share of all sign flips whose mean is at least as far from zero as the one found."""
    signs = np.array(list(itertools.product([1, -1], repeat=len(differences))))
    means = np.abs((signs * differences).mean(1))
    return float((means >= abs(differences.mean()) - 1e-9).mean())


@reproducible
@given(st.lists(st.tuples(scores, scores), min_size=2, max_size=8))
def test_the_permutation_test_against_all_sign_flips(pairs: list[tuple[float, float]]) -> None:
    first, second = (np.array(column) for column in zip(*pairs, strict=True))
    found = paired_difference(first, second)
    assert found.p_value == pytest.approx(sign_flip_p_value(first - second))
    assert found.mean == pytest.approx((first - second).mean())
    assert found.n_datasets == len(pairs)


def test_a_difference_by_hand() -> None:
    found = paired_difference(np.array([80.0, 85.0, 90.0]), np.array([78.0, 82.0, 86.0]))
    assert found.mean == 3.0
    assert found.p_value == 0.25, "2 of the 8 sign flips are as far from zero"
    assert 2.0 <= found.low < 3.0 < found.high <= 4.0


def test_with_many_data_sets_the_permutation_test_is_drawn() -> None:
    draws = np.random.default_rng(0)
    second = draws.normal(80, 3, 20)
    clear, none = second + draws.normal(2, 1, 20), second + draws.normal(0, 1, 20)
    assert paired_difference(clear, second).p_value < 0.001
    assert paired_difference(none, second).p_value > 0.05
    assert paired_difference(clear, second) == paired_difference(clear, second)


def test_exchanging_the_two_changes_the_sign_alone() -> None:
    first, second = np.array([80.0, 85.0, 91.0, 70.0]), np.array([78.0, 86.0, 86.0, 69.0])
    forth, back = paired_difference(first, second), paired_difference(second, first)
    assert back.mean == -forth.mean
    assert back.p_value == pytest.approx(forth.p_value)


def test_equal_scores_do_not_differ() -> None:
    found = paired_difference(np.array([80.0, 85.0]), np.array([80.0, 85.0]))
    assert (found.mean, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_one_data_set_gives_a_difference_and_nothing_more() -> None:
    found = paired_difference(np.array([80.0]), np.array([78.0]))
    assert (found.mean, found.n_datasets) == (2.0, 1)
    assert math.isnan(found.low) and math.isnan(found.high) and math.isnan(found.p_value)


@given(st.lists(st.one_of(st.floats(0, 1), st.just(float("nan"))), max_size=8))
def test_holm_by_its_definition(p_values: list[float]) -> None:
    """The k-th smallest of m, times m - k + 1, and never below the one before."""
    found = holm(np.array(p_values))
    tested = sorted((value, index) for index, value in enumerate(p_values) if not math.isnan(value))
    least = 0.0
    for rank, (value, index) in enumerate(tested):
        least = max(least, min(1.0, value * (len(tested) - rank)))
        assert found[index] == pytest.approx(least)
    assert all(math.isnan(found[index]) for index, value in enumerate(p_values) if math.isnan(value))


def test_holm_rejects_no_less_than_bonferroni() -> None:
    p_values = np.array([0.01, 0.04, 0.03, 0.005])
    assert holm(p_values).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert (holm(p_values) <= np.minimum(1, 4 * p_values)).all()


def test_the_distance_has_the_interval_of_the_data_sets() -> None:
    means = np.array([70.0, 74.0, 78.0])
    found = distance(np.array([90.0, 92.0]), means)
    low, high = bootstrap_interval(means)
    assert (found.mean, found.low, found.high) == (91 - 74, 91 - high, 91 - low)
    assert math.isnan(found.p_value)
