"""Metrics against their definitions, counted by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dilm.config.schema import METRICS
from dilm.evaluation.metrics import score

pairs = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=12)
binary = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=12)


def f1_of(label: int, rows: list[tuple[int, int]]) -> float:
    """2TP / (2TP + FP + FN); 0 where nothing is counted."""
    hits = sum(p == label and t == label for p, t in rows)
    misses = sum((p == label) != (t == label) for p, t in rows)
    return 2 * hits / (2 * hits + misses) if hits else 0.0


def scored(metric: str, rows: list[tuple[int, int]]) -> float:
    predicted, labels = np.array(rows).T
    return score(metric, predicted, labels)[0]


@given(pairs)
def test_accuracy_and_macro_f1(rows: list[tuple[int, int]]) -> None:
    assert scored("accuracy", rows) == pytest.approx(100 * sum(p == t for p, t in rows) / len(rows))
    present = {label for row in rows for label in row}
    assert scored("macro_f1", rows) == pytest.approx(100 * sum(f1_of(c, rows) for c in present) / len(present))


@given(binary)
def test_f1_and_its_mean_with_accuracy(rows: list[tuple[int, int]]) -> None:
    f1, accuracy = 100 * f1_of(1, rows), 100 * sum(p == t for p, t in rows) / len(rows)
    assert scored("f1", rows) == pytest.approx(f1)
    assert scored("accuracy_f1", rows) == pytest.approx((f1 + accuracy) / 2)


@given(binary)
def test_matthews_correlation(rows: list[tuple[int, int]]) -> None:
    tp, fp, fn, tn = (sum(row == kind for row in rows) for kind in ((1, 1), (1, 0), (0, 1), (0, 0)))
    length = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    expected = (tp * tn - fp * fn) / length if length else 0.0
    assert scored("matthews", rows) == pytest.approx(100 * expected)


@pytest.mark.parametrize("metric", METRICS)
def test_a_metric_brings_what_it_is_made_of(metric: str) -> None:
    value, found = score(metric, np.array([0, 1, 1]), np.array([0, 1, 0]))
    assert found["accuracy"] == pytest.approx(200 / 3)
    expected = (found["accuracy"] + found["f1"]) / 2 if metric == "accuracy_f1" else found[metric]
    assert value == pytest.approx(expected)


def test_one_label_alone_is_no_correlation_and_no_warning() -> None:
    assert scored("matthews", [(1, 1), (1, 0)]) == 0
    assert scored("f1", [(0, 0), (0, 0)]) == 0
