"""Scores of predicted labels, in percent."""

import numpy as np
from sklearn.metrics import accuracy_score, f1_score


def score(metric: str, predicted: np.ndarray, labels: np.ndarray) -> tuple[float, dict[str, float]]:
    """The task's metric and all that it is made of, from predicted and true labels (n,).

    `accuracy`, or `accuracy_f1`: the mean of accuracy and the F1 of label 1 (QQP, paper, section 4.1).
    """
    accuracy = 100 * float(accuracy_score(labels, predicted))
    if metric == "accuracy":
        return accuracy, {"accuracy": accuracy}
    f1 = 100 * float(f1_score(labels, predicted, zero_division=0.0))
    return (accuracy + f1) / 2, {"accuracy": accuracy, "f1": f1}
