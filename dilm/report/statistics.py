"""Means, spreads and intervals. Data sets are the unit of resampling: seeds of one data set aren't independent."""

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np

RESAMPLES = 9_999
TIE = 100 * np.finfo(np.float64).eps  # of the mean size: by how much means that are equal may differ through rounding


@dataclass(frozen=True)
class Summary:
    """Scores of one method: mean and standard deviation over models, 95% interval of the mean over data sets."""

    mean: float
    std: float
    low: float
    high: float
    n_models: int
    n_datasets: int


def dataset_means(values: np.ndarray, datasets: np.ndarray) -> np.ndarray:
    """The mean score of each data set, ordered by its index."""
    _, places, counts = np.unique(datasets, return_inverse=True, return_counts=True)
    return np.bincount(places, values) / counts


def bootstrap_interval(means: np.ndarray) -> tuple[float, float]:
    """95% percentile bootstrap interval of the mean; NaN with fewer than two data sets."""
    if len(means) < 2:
        return float("nan"), float("nan")
    if np.ptp(means) == 0:
        return float(means[0]), float(means[0])
    low, high = np.percentile(_resamples(len(means)) @ means, [2.5, 97.5])
    return float(low), float(high)


@lru_cache(maxsize=8)
def _resamples(n: int) -> np.ndarray:
    """Rows of n weights, each value's share of a resample: those that `scipy.stats.bootstrap` draws every time anew."""
    drawn = np.random.default_rng(0).integers(0, n, (RESAMPLES, n))
    return np.stack([(drawn == place).sum(1) for place in range(n)], axis=1) / n


def sign_flip_p(differences: np.ndarray) -> float:
    """Two-sided p of a permutation test of the mean, as `scipy.stats.permutation_test` has it: exact for small n."""
    exact = 2 ** len(differences) <= RESAMPLES
    means = _signs(len(differences)) @ differences / len(differences)
    observed = differences.mean()
    slack = TIE * np.abs(differences).mean()
    beyond = min((means <= observed + slack).sum(), (means >= observed - slack).sum())
    return float(min(1.0, 2 * (beyond + (not exact)) / (len(means) + (not exact))))


@lru_cache(maxsize=8)
def _signs(n: int) -> np.ndarray:
    """Rows of n signs: all there are, or those that scipy draws."""
    if 2**n <= RESAMPLES:
        return np.array(list(product([1.0, -1.0], repeat=n)))
    order = np.tile(np.arange(2), (RESAMPLES, n, 1))
    return 1.0 - 2 * np.random.default_rng(0).permuted(order, axis=-1)[:, :, 0]


def summarise(values: np.ndarray, datasets: np.ndarray) -> Summary:
    """Mean ± std over models, as the paper reports it, and the interval over data sets."""
    low, high = bootstrap_interval(dataset_means(values, datasets))
    std = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
    return Summary(float(values.mean()), std, low, high, len(values), len(np.unique(datasets)))


@dataclass(frozen=True)
class Difference:
    """One method against another: by the same data-set indices where it is paired."""

    mean: float
    low: float
    high: float
    p_value: float  # two-sided paired permutation test; NaN: not paired, or a single data set
    n_datasets: int
    p_holm: float = float("nan")  # corrected for the number of tests it is one of


def paired_difference(first: np.ndarray, second: np.ndarray) -> Difference:
    """Mean of first - second over data sets (n,), its bootstrap interval, and a sign-flip permutation test."""
    differences = first - second
    low, high = bootstrap_interval(differences)
    p_value = sign_flip_p(differences) if len(differences) > 1 else float("nan")
    return Difference(float(differences.mean()), low, high, p_value, len(differences))


def distance(upper: np.ndarray, means: np.ndarray) -> Difference:
    """Mean score of `upper` (models of one data set) minus the mean of `means` (n,), with the latter's interval."""
    low, high = bootstrap_interval(means)
    top = float(upper.mean())
    return Difference(top - float(means.mean()), top - high, top - low, float("nan"), len(means))


def holm(p_values: np.ndarray) -> np.ndarray:
    """p values corrected for their number by Holm's step-down method, in their order; NaN stay and don't count."""
    corrected = np.full(len(p_values), np.nan)
    tested = np.flatnonzero(~np.isnan(p_values))
    order = tested[np.argsort(p_values[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(factors * p_values[order]), 1)
    return corrected
