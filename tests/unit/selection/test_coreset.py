"""Which texts are chosen: against brute force, distinct, and determined by the seed."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dilm.config.schema import EMBEDDED
from dilm.selection.coreset import SELECTIONS, herding, k_centers, k_means, random_rows


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
    assert (chosen == k_centers(points, k, seed)).all()
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


def squared(first: list[float], second: list[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(first, second, strict=True))


def mean(points: list[list[float]]) -> list[float]:
    return [sum(values) / len(points) for values in zip(*points, strict=True)]


def instances() -> Iterator[tuple[list[list[float]], int, int]]:
    """200 clouds of points of up to 4 dimensions, how many of them to choose, and a seed."""
    for seed in range(200):
        random = np.random.default_rng(seed)
        n, width = int(random.integers(2, 30)), int(random.integers(1, 5))
        yield random.normal(size=(n, width)).tolist(), int(random.integers(1, n)), seed


def test_herding_is_brute_force_by_its_definition() -> None:
    """Each choice leaves, of all that could be made, the least distance between both means."""
    for points, k, _ in instances():
        chosen: list[int] = []
        for _ in range(k):
            free = [row for row in range(len(points)) if row not in chosen]
            left = {row: squared(mean([points[i] for i in [*chosen, row]]), mean(points)) for row in free}
            chosen.append(min(free, key=lambda row: left[row]))
        assert herding(torch.tensor(points, dtype=torch.float64), k).tolist() == chosen


def test_k_centers_is_brute_force_by_its_definition() -> None:
    """Centroids that Lloyd's iteration leaves where they are, and of each the nearest text that is still free."""
    for points, k, seed in instances():
        embeddings = torch.tensor(points, dtype=torch.float64)
        clusters, centroids = k_means(embeddings, k, seed)
        for row, point in enumerate(points):
            distances = [squared(point, centroid) for centroid in centroids.tolist()]
            assert distances[clusters[row]] == pytest.approx(min(distances), abs=1e-9)
        for cluster, centroid in enumerate(centroids.tolist()):
            members = [point for row, point in enumerate(points) if clusters[row] == cluster]
            assert squared(mean(members), centroid) < 1e-9
        chosen = k_centers(embeddings, k, seed).tolist()
        assert len(set(chosen)) == len(chosen) == k
        for number, centroid in enumerate(centroids.tolist()):
            # Both members of a cluster of two are equally near its centroid, and either may be taken.
            nearest = min(squared(point, centroid) for row, point in enumerate(points) if row not in chosen[:number])
            assert squared(points[chosen[number]], centroid) == pytest.approx(nearest, abs=1e-9)


@given(st.integers(1, 30), st.data(), st.integers(0, 2**31))
def test_herding_chooses_distinct_texts_and_fewer_first(n: int, data: st.DataObject, seed: int) -> None:
    k = data.draw(st.integers(1, n))
    points = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))
    chosen = herding(points, k).tolist()
    assert len(set(chosen)) == k
    assert chosen[: k // 2] == herding(points, k // 2).tolist()


def test_herding_takes_no_text_twice_where_all_are_equal() -> None:
    assert herding(torch.ones(4, 2), 4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "choose",
    [
        lambda: random_rows(2, 3, 0),
        lambda: k_centers(torch.zeros(2, 2), 3, 0),
        lambda: herding(torch.zeros(2, 2), 3),
    ],
)
def test_too_few_texts_are_refused(choose: object) -> None:
    with pytest.raises(ValueError, match="3 of 2"):
        choose()  # type: ignore[operator]


def test_every_selection_by_embeddings_is_there_and_chooses() -> None:
    assert set(SELECTIONS) == set(EMBEDDED)
    points = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    for select in SELECTIONS.values():
        assert len(set(select(points, 4, 0).tolist())) == 4
