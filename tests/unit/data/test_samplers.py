"""k-means and the mini-batches made from its clusters."""

from itertools import islice

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from dilm.data.samplers import diverse_batches, plain_batches
from dilm.selection.coreset import k_means


def test_k_means_finds_separate_groups() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]])
    points = torch.cat([centre + torch.randn(20, 2, generator=generator) for centre in centres])
    clusters, centroids = k_means(points, 3, seed=3)
    assert [len(set(clusters[start : start + 20])) for start in (0, 20, 40)] == [1, 1, 1]
    assert torch.cdist(torch.as_tensor(centroids).float(), centres).min(0).values.max() < 1


def test_k_means_is_determined_by_its_seed() -> None:
    points = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    assert (k_means(points, 5, 1)[0] == k_means(points, 5, 1)[0]).all()


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(0, 2**31))
def test_diverse_batch_has_one_text_of_each_cluster(clusters: list[int], seed: int) -> None:
    found = np.array(clusters)
    size = len(set(clusters))
    for batch in islice(diverse_batches(found, size, np.random.default_rng(seed)), 10):
        assert sorted(found[batch]) == sorted(set(clusters))


@given(st.integers(1, 12), st.integers(1, 20), st.integers(0, 2**31))
def test_fewer_clusters_than_the_batch_are_filled_up(n: int, size: int, seed: int) -> None:
    batch = next(diverse_batches(np.zeros(n, dtype=int), size, np.random.default_rng(seed)))
    assert len(batch) == size
    assert set(batch) <= set(range(n))


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 2**31))
def test_plain_batches_pass_over_every_row(n: int, size: int, seed: int) -> None:
    rows = np.concatenate(list(islice(plain_batches(n, size, np.random.default_rng(seed)), n)))
    counts = np.bincount(rows, minlength=n)
    assert counts.max() - counts.min() <= 1
    generator = np.random.default_rng(seed)
    assert np.array_equal(rows, np.concatenate([generator.permutation(np.arange(n)) for _ in range(size)]))
