"""A linear model of word counts as evaluator: no torch, no download, milliseconds a cell.

What it scores says how much of a data set's worth is in its words alone; and it tries a cluster out.
"""

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import SGDClassifier
from sklearn.pipeline import make_pipeline

from dilm.keys import derive_seed
from dilm.results import Predict
from dilm.tables import TextTable

SEEDS = 1 << 32  # numpy's


def predictor(dev: TextTable) -> Predict:
    """Trains on one- and two-word counts (tf-idf) by stochastic gradient descent, and labels dev."""
    questions = [" ".join(text) for text in dev.texts]

    def predict(dataset: TextTable, names: tuple[str | int, ...]) -> np.ndarray:
        seed = derive_seed("words", *names) % SEEDS
        model = make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), SGDClassifier(loss="log_loss", random_state=seed)
        )
        return model.fit([" ".join(text) for text in dataset.texts], dataset.labels).predict(questions)

    return predict
