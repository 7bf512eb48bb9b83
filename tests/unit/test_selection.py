"""Which texts are chosen: against brute force, distinct, and determined by the seed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dilm.clustering import k_means
from dilm.selection import k_centers, random_rows


@given(st.integers(1, 50), st.data(), st.integers(0, 2**40))
def test_random_rows_are_distinct(n: int, data: st.DataObject, seed: int) -> None:
    k = data.draw(st.integers(1, n))
    chosen = random_rows(n, k, seed)
    assert len(set(chosen)) == k
    assert (chosen == random_rows(n, k, seed)).all()


@settings(max_examples=60)
@given(st.integers(2, 40), st.data(), st.integers(0, 2**40))
def test_k_centers_takes_the_text_nearest_each_centroid(n: int, data: st.DataObject, seed: int) -> None:
    k = data.draw(st.integers(1, n - 1))
    points = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed % 2**31))
    chosen = k_centers(points, k, seed)
    _, centroids = k_means(points, k, seed)
    free = set(range(n))
    for row, centroid in zip(chosen, centroids, strict=True):
        nearest = min(free, key=lambda i: float(((points[i].numpy() - centroid) ** 2).sum()))
        assert ((points[row].numpy() - centroid) ** 2).sum() == pytest.approx(
            ((points[nearest].numpy() - centroid) ** 2).sum(), rel=1e-4, abs=1e-6
        )
        free.remove(int(row))


def test_all_texts_are_chosen_where_there_are_just_enough() -> None:
    assert (k_centers(torch.zeros(3, 2), 3, 0) == np.arange(3)).all()


@pytest.mark.parametrize("choose", [lambda: random_rows(2, 3, 0), lambda: k_centers(torch.zeros(2, 2), 3, 0)])
def test_too_few_texts_are_refused(choose: object) -> None:
    with pytest.raises(ValueError, match="3 of 2"):
        choose()  # type: ignore[operator]
