"""Scores of predicted labels, in percent, as GLUE (Wang et al. 2019) scores its tasks.

`task.metric` names one of `SCORES` or `MADE_OF`.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

Score = Callable[[np.ndarray, np.ndarray], float]  # of true and predicted labels, (n,) each; 1 is the best


def _f1(labels: np.ndarray, predicted: np.ndarray, average: str = "binary") -> float:
    from sklearn.metrics import f1_score  # heavy, and most tasks are scored by accuracy alone

    return float(f1_score(labels, predicted, average=average, zero_division=0.0))


def _matthews(labels: np.ndarray, predicted: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    constant = len(np.unique(labels)) == 1 or len(np.unique(predicted)) == 1
    return 0.0 if constant else float(matthews_corrcoef(labels, predicted))


SCORES: dict[str, Score] = {
    "accuracy": lambda labels, predicted: float(np.mean(labels == predicted)),
    "f1": _f1,  # of label 1
    "matthews": _matthews,
    "macro_f1": partial(_f1, average="macro"),
}
MADE_OF = {"accuracy_f1": ("accuracy", "f1")}  # means of others


def score(metric: str, predicted: np.ndarray, labels: np.ndarray) -> tuple[float, dict[str, float]]:
    """The task's metric, from predicted and true labels (n,), and with it accuracy and all that it is made of.

    All in percent. `accuracy_f1` is the mean of accuracy and the F1 of label 1 (QQP, paper, section 4.1). Matthews'
    correlation is from -100 to 100, and 0 where all predictions are the same label; F1 is 0 where nothing is predicted
    to be of its label. Raises KeyError for a metric that is neither in `SCORES` nor in `MADE_OF`.
    """
    parts = MADE_OF.get(metric, (metric,))
    scores = {name: 100 * float(SCORES[name](labels, predicted)) for name in dict.fromkeys(("accuracy", *parts))}
    return sum(scores[name] for name in parts) / len(parts), scores
