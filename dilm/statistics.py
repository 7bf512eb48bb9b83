"""Means, spreads and intervals. Data sets are the unit of resampling: seeds of one data set aren't independent."""

from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 9_999


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
    return np.array([values[datasets == dataset].mean() for dataset in np.unique(datasets)])


def bootstrap_interval(means: np.ndarray) -> tuple[float, float]:
    """95% percentile bootstrap interval of the mean; NaN with fewer than two data sets."""
    if len(means) < 2:
        return float("nan"), float("nan")
    if np.ptp(means) == 0:
        return float(means[0]), float(means[0])
    interval = stats.bootstrap(
        (means,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return float(interval.low), float(interval.high)


def summarise(values: np.ndarray, datasets: np.ndarray) -> Summary:
    """Mean ± std over models, as the paper reports it, and the interval over data sets."""
    low, high = bootstrap_interval(dataset_means(values, datasets))
    std = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
    return Summary(float(values.mean()), std, low, high, len(values), len(np.unique(datasets)))


@dataclass(frozen=True)
class Difference:
    """One method against another on the same data-set indices."""

    mean: float
    low: float
    high: float
    p_value: float  # two-sided paired permutation test
    n_datasets: int


def paired_difference(first: np.ndarray, second: np.ndarray) -> Difference:
    """Mean of first - second over data sets (n,), its bootstrap interval, and a sign-flip permutation test."""
    differences = first - second
    low, high = bootstrap_interval(differences)
    p_value = float("nan")
    if len(differences) > 1:
        p_value = stats.permutation_test(
            (differences,),
            np.mean,
            permutation_type="samples",
            n_resamples=RESAMPLES,
            rng=np.random.default_rng(0),
        ).pvalue
    return Difference(float(differences.mean()), low, high, float(p_value), len(differences))
