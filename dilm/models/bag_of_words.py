"""Word counts: a linear model of them as evaluator, without torch or download, and texts as vectors of them.

The evaluator's score says how much of a data set's worth is in its words alone. It needs neither a GPU nor a model, so
that a cluster can be tried out with it.
"""

from collections.abc import Callable, Sequence

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import SGDClassifier
from sklearn.pipeline import make_pipeline

from dilm.core.hashing import derive_seed
from dilm.data.text_table import TextTable

SEEDS = 1 << 32  # numpy's


def bag_of_words(dev: TextTable) -> Callable[[TextTable, tuple[str | int, ...]], np.ndarray]:
    """The evaluator `words`: trains on a data set's one- and two-word counts (tf-idf), and labels the texts of dev.

    Returns a function of a data set and of the names that seed its training, logistic regression by stochastic gradient
    descent; it gives dev's predicted labels, (N,) int64.
    """
    questions = [" ".join(text) for text in dev.texts]

    def predict(dataset: TextTable, names: tuple[str | int, ...]) -> np.ndarray:
        seed = derive_seed("words", *names) % SEEDS
        model = make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), SGDClassifier(loss="log_loss", random_state=seed)
        )
        return model.fit([" ".join(text) for text in dataset.texts], dataset.labels).predict(questions)

    return predict


def word_features(parts: Sequence[Sequence[tuple[str, ...]]], width: int, seed: int) -> list[np.ndarray]:
    """Texts as vectors of their one- and two-word counts (tf-idf): (N, width) of each part, fp32.

    Latent semantic analysis (Deerwester et al. 1990): the truncated singular value decomposition of the counts, of all
    parts together. Words of one text alone are left out. `width` is smaller where texts or words are fewer.
    """
    texts = [" ".join(text) for part in parts for text in part]
    counts = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2).fit_transform(texts)
    width = min(width, *(size - 1 for size in counts.shape))
    vectors_ND = TruncatedSVD(width, random_state=seed % SEEDS).fit_transform(counts).astype(np.float32)
    return np.split(vectors_ND, np.cumsum([len(part) for part in parts])[:-1])
