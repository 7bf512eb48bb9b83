"""Scores against counts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dilm.metrics import score

labels = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=40)


@given(labels)
def test_accuracy_and_f1_against_counts(pairs: list[tuple[int, int]]) -> None:
    predicted, true = (np.array(column) for column in zip(*pairs, strict=True))
    hits = sum(a == b for a, b in pairs)
    both, either = sum(a and b for a, b in pairs), sum(a + b for a, b in pairs)
    accuracy, f1 = 100 * hits / len(pairs), 200 * both / either if either else 0.0
    assert score("accuracy", predicted, true) == (pytest.approx(accuracy), {"accuracy": pytest.approx(accuracy)})
    value, parts = score("accuracy_f1", predicted, true)
    assert value == pytest.approx((accuracy + f1) / 2)
    assert parts == {"accuracy": pytest.approx(accuracy), "f1": pytest.approx(f1)}
