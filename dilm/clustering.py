"""k-means in an embedding space, and mini-batches that take one text from each cluster (paper, section 3.3)."""

from collections.abc import Iterator

import numpy as np
from torch import Tensor


def k_means(embeddings_ND: Tensor, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Cluster with k-means++ and one start. Returns the cluster of each text (N,) and the centroids (k, D)."""
    from sklearn.cluster import KMeans  # heavy, and an evaluation needs the batches alone

    fitted = KMeans(n_clusters=k, init="k-means++", n_init=1, random_state=seed % 2**32).fit(embeddings_ND.numpy())
    return fitted.labels_, fitted.cluster_centers_


def diverse_batches(clusters_N: np.ndarray, size: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Endless batches of `size` row indices, one from each of `size` clusters.

    Each cluster's texts are passed in a shuffled order, again and again; where there are fewer clusters than
    `size`, the rest is drawn from all rows.
    """
    members = [np.flatnonzero(clusters_N == cluster) for cluster in np.unique(clusters_N)]
    queues = [_endless(rows, generator) for rows in members]
    everything = _endless(np.arange(len(clusters_N)), generator)
    while True:
        batch = [next(queue) for queue in queues[:size]]
        yield np.array(batch + [next(everything) for _ in range(size - len(batch))])


def plain_batches(n: int, size: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Endless batches of `size` of `n` row indices, in shuffled passes."""
    rows, left = np.arange(n), np.arange(0)
    while True:
        while len(left) < size:
            left = np.concatenate([left, generator.permutation(rows)])
        yield left[:size]
        left = left[size:]


def _endless(rows: np.ndarray, generator: np.random.Generator) -> Iterator[int]:
    while True:
        yield from generator.permutation(rows)
