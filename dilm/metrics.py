"""Scores of predicted labels, in percent."""

from collections.abc import Callable

import numpy as np
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

Score = Callable[[np.ndarray, np.ndarray], float]  # true, predicted


def _matthews(labels: np.ndarray, predicted: np.ndarray) -> float:
    constant = len(np.unique(labels)) == 1 or len(np.unique(predicted)) == 1
    return 0.0 if constant else float(matthews_corrcoef(labels, predicted))


SCORES: dict[str, Score] = {
    "accuracy": accuracy_score,
    "f1": lambda labels, predicted: f1_score(labels, predicted, zero_division=0.0),  # of label 1
    "matthews": _matthews,
    "macro_f1": lambda labels, predicted: f1_score(labels, predicted, average="macro", zero_division=0.0),
}
MADE_OF = {"accuracy_f1": ("accuracy", "f1")}  # means of others


def score(metric: str, predicted: np.ndarray, labels: np.ndarray) -> tuple[float, dict[str, float]]:
    """The task's metric, from predicted and true labels (n,), and with it accuracy and all that it is made of.

    `accuracy_f1` is the mean of accuracy and the F1 of label 1 (QQP, paper, section 4.1). Matthews' correlation is
    from -100 to 100, and 0 where all predictions are the same label.
    """
    parts = MADE_OF.get(metric, (metric,))
    found = {name: 100 * float(SCORES[name](labels, predicted)) for name in dict.fromkeys(("accuracy", *parts))}
    return sum(found[name] for name in parts) / len(parts), found
