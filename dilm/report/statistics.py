"""Means, spreads and intervals. Data sets are the unit of resampling: seeds of one data set aren't independent.

The bootstrap and the permutation test give what `scipy.stats.bootstrap` and `permutation_test` give with a fixed seed:
equal p values, and intervals equal up to rounding, which the tests check. scipy draws resamples in every call; here
they are drawn once for each number of data sets, and a call is a matrix product. Measured on one core, tables of 5,400
cells (54 summaries, 81 differences) take 0.13 s, with scipy 1.6 s; tables of 100,000 cells take 2.4 s, with scipy 33 s.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np

RESAMPLES = 9_999
TIE = 100 * np.finfo(np.float64).eps  # relative rounding error within which two means count as equal


@dataclass(frozen=True)
class Summary:
    """Scores of one method in percent: mean and standard deviation over models, 95% interval over data sets."""

    mean: float
    std: float
    low: float
    high: float
    n_models: int
    n_datasets: int


def dataset_means(values: np.ndarray, datasets: np.ndarray) -> np.ndarray:
    """The mean score of each data set, ordered by its index: (n_models,), (n_models,) -> (n_datasets,)."""
    _, places, counts = np.unique(datasets, return_inverse=True, return_counts=True)
    return np.bincount(places, values) / counts


def bootstrap_interval(means: np.ndarray) -> tuple[float, float]:
    """95% percentile bootstrap interval of the mean of `means` (n_datasets,); NaN with fewer than two data sets."""
    if len(means) < 2:
        return float("nan"), float("nan")
    if np.ptp(means) == 0:
        return float(means[0]), float(means[0])
    low, high = np.percentile(_resamples(len(means)) @ means, [2.5, 97.5])
    return float(low), float(high)


@lru_cache(maxsize=8)
def _resamples(n: int) -> np.ndarray:
    """Resamples as scipy draws them, (RESAMPLES, n): what share of a resample each of n values has."""
    drawn = np.random.default_rng(0).integers(0, n, (RESAMPLES, n))
    return np.stack([(drawn == place).sum(1) for place in range(n)], axis=1) / n


def sign_flip_p(differences: np.ndarray) -> float:
    """Two-sided p of a paired permutation test of the mean of `differences` (n,): exact for n <= 13, else drawn."""
    exact = 2 ** len(differences) <= RESAMPLES
    means = _signs(len(differences)) @ differences / len(differences)
    observed = differences.mean()
    slack = TIE * np.abs(differences).mean()
    beyond = min((means <= observed + slack).sum(), (means >= observed - slack).sum())
    return float(min(1.0, 2 * (beyond + (not exact)) / (len(means) + (not exact))))


@lru_cache(maxsize=8)
def _signs(n: int) -> np.ndarray:
    """Sign flips, (2^n, n) where that is all of them, else (RESAMPLES, n) as scipy draws them."""
    if 2**n <= RESAMPLES:
        return np.array(list(product([1.0, -1.0], repeat=n)))
    order = np.tile(np.arange(2), (RESAMPLES, n, 1))
    return 1.0 - 2 * np.random.default_rng(0).permuted(order, axis=-1)[:, :, 0]


def summarise(values: np.ndarray, datasets: np.ndarray) -> Summary:
    """Mean ± std over models, as the paper reports it, and the interval over data sets; both arrays are (n_models,)."""
    low, high = bootstrap_interval(dataset_means(values, datasets))
    std = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
    return Summary(float(values.mean()), std, low, high, len(values), len(np.unique(datasets)))


@dataclass(frozen=True)
class Difference:
    """The mean of one method minus that of another, in percent points."""

    mean: float
    low: float
    high: float
    p_value: float  # of a two-sided permutation test, paired by data-set index; NaN: not paired, or one data set
    n_datasets: int
    p_holm: float = float("nan")  # p_value after Holm's correction


def paired_difference(first: np.ndarray, second: np.ndarray) -> Difference:
    """Mean of first - second over data sets (n,), its bootstrap interval, and a sign-flip permutation test."""
    differences = first - second
    low, high = bootstrap_interval(differences)
    p_value = sign_flip_p(differences) if len(differences) > 1 else float("nan")
    return Difference(float(differences.mean()), low, high, p_value, len(differences))


def distance(upper: np.ndarray, means: np.ndarray) -> Difference:
    """Mean of `upper` (scores on one data set) minus the mean of `means` (n_datasets,), with the latter's interval."""
    low, high = bootstrap_interval(means)
    top = float(upper.mean())
    return Difference(top - float(means.mean()), top - high, top - low, float("nan"), len(means))


def holm(p_values: np.ndarray) -> np.ndarray:
    """p values (n,) corrected for their number by Holm's step-down method. NaN stay NaN and are not counted."""
    corrected = np.full(len(p_values), np.nan)
    tested = np.flatnonzero(~np.isnan(p_values))
    order = tested[np.argsort(p_values[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(factors * p_values[order]), 1)
    return corrected
