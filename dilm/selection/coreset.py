"""Coresets of a class by embeddings: which texts make the data set (paper, section 3.4). Row indices are the result.

Shape suffixes: N texts of a class, D dimensions of an embedding, K chosen.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def k_means(embeddings_ND: Tensor, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Cluster with k-means++ and one start. Returns each text's cluster (N,) int32, and the centroids (k, D)."""
    from sklearn.cluster import KMeans  # heavy, and imported only where texts are clustered

    fitted = KMeans(n_clusters=k, init="k-means++", n_init=1, random_state=seed % 2**32).fit(embeddings_ND.numpy())
    return fitted.labels_, fitted.cluster_centers_


def random_rows(n: int, k: int, seed: int) -> np.ndarray:
    """`k` distinct of `n` indices, uniformly. Raises ValueError where k > n."""
    _enough(n, k)
    return np.random.default_rng(seed).choice(n, size=k, replace=False)


def k_centers(embeddings_ND: Tensor, k: int, seed: int) -> np.ndarray:
    """K-centers of the paper: k-means with k clusters, then the text nearest each centroid.

    (This is not the greedy farthest-first algorithm that bears the same name.) Indices are distinct: a text that is
    nearest two centroids serves the first, and the second takes its next nearest. Raises ValueError where k > N.
    """
    _enough(len(embeddings_ND), k)
    if k == len(embeddings_ND):
        return np.arange(k)
    _, centroids = k_means(embeddings_ND, k, seed)
    distances_KN = torch.cdist(torch.as_tensor(centroids, dtype=embeddings_ND.dtype), embeddings_ND)
    chosen: list[int] = []
    for distances_N in distances_KN:
        distances_N[chosen] = torch.inf
        chosen.append(int(distances_N.argmin()))
    return np.array(chosen)


def herding(embeddings_ND: Tensor, k: int) -> np.ndarray:
    """Herding (Welling 2009): texts in turn, each the one that brings the mean of the chosen nearest that of all.

    Deterministic; of equally near texts the first is taken. Raises ValueError where k > N.
    """
    _enough(len(embeddings_ND), k)
    wide_ND = embeddings_ND.double()
    mean_D, sum_D = wide_ND.mean(0), torch.zeros_like(wide_ND[0])
    chosen: list[int] = []
    for size in range(1, k + 1):
        distances_N = ((sum_D + wide_ND) / size - mean_D).square().sum(1)
        distances_N[chosen] = torch.inf
        chosen.append(int(distances_N.argmin()))
        sum_D += wide_ND[chosen[-1]]
    return np.array(chosen)


# By the names of `config.EMBEDDED`: embeddings (N, D), how many, and a seed -> row indices.
SELECTIONS: dict[str, Callable[[Tensor, int, int], np.ndarray]] = {
    "k_centers": k_centers,
    "herding": lambda embeddings_ND, k, seed: herding(embeddings_ND, k),
}


def _enough(n: int, k: int) -> None:
    if k > n:
        raise ValueError(f"{k} of {n} texts can't be chosen")
