"""How varied the texts of a data set are, and how they compare with the corpus's. Torch-free.

Every measure says little alone: it is to be read beside the same measure of as many real texts.
"""

import math
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from dilm.overlap import words_of

BLEU_ORDER = 4


def grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """How often each run of n words occurs."""
    return Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))


def distinct(texts: Iterable[Sequence[str]], n: int) -> float:
    """Distinct runs of n words as a share of all (Li et al., 2016); NaN where there is none."""
    counts = Counter[tuple[str, ...]]()
    for words in texts:
        counts.update(grams(words, n))
    return len(counts) / counts.total() if counts else math.nan


def self_bleu(texts: Sequence[Sequence[str]]) -> float:
    """Mean BLEU-4 of each text against all others (Zhu et al., 2018), in 0..1: high where texts are alike.

    A precision of zero counts as half a match, so that short texts have a score at all. NaN for fewer than two texts.
    """
    texts = [words for words in texts if words]
    if len(texts) < 2:
        return math.nan
    counted = [[grams(words, n) for n in range(1, BLEU_ORDER + 1)] for words in texts]
    most = [_two_most(own[order] for own in counted) for order in range(BLEU_ORDER)]
    lengths = [len(words) for words in texts]
    scores = []
    for number, own in enumerate(counted):
        nearest = min((abs(n - lengths[number]), n) for other, n in enumerate(lengths) if other != number)[1]
        logs = [_log_precision(own[order], number, most[order]) for order in range(min(BLEU_ORDER, lengths[number]))]
        brevity = min(0.0, 1 - nearest / lengths[number])
        scores.append(math.exp(brevity + sum(logs) / len(logs)))
    return float(np.mean(scores))


Most = dict[
    tuple[str, ...], tuple[int, int, int]
]  # run of words: its highest count, whose it is, the highest of others


def _two_most(counted: Iterable[Counter[tuple[str, ...]]]) -> Most:
    most: Most = {}
    for owner, counts in enumerate(counted):
        for gram, count in counts.items():
            first, whose, second = most.get(gram, (0, -1, 0))
            most[gram] = (count, owner, first) if count > first else (first, whose, max(second, count))
    return most


def _log_precision(own: Counter[tuple[str, ...]], number: int, most: Most) -> float:
    matches = 0
    for gram, count in own.items():
        first, whose, second = most[gram]
        matches += min(count, second if whose == number else first)
    return math.log(max(matches, 0.5) / own.total())


def compression_ratio(texts: Sequence[str]) -> float:
    """Bytes of all texts over those that zlib makes of them: high where they repeat each other (Shaib et al., 2024)."""
    content = "\n".join(texts).encode("utf-8", "surrogatepass")
    return len(content) / len(zlib.compress(content, 9)) if content else math.nan


def divergence(counts: Counter[str], others: Counter[str]) -> float:
    """Jensen-Shannon divergence of two distributions of words, in bits (0: the same, 1: nothing in common)."""
    names = sorted(counts.keys() | others.keys())
    first, second = (np.array([part[name] for name in names], dtype=float) for part in (counts, others))
    first, second = first / max(first.sum(), 1), second / max(second.sum(), 1)
    middle = (first + second) / 2
    total = 0.0
    for part in (first, second):
        there = part > 0
        total += float((part[there] * np.log2(part[there] / middle[there])).sum()) / 2
    return max(0.0, total)


def measures(texts: Sequence[tuple[str, ...]]) -> dict[str, float]:
    """All measures of one data set."""
    words = [[word for field in text for word in words_of(field)] for text in texts]
    lengths = [len(own) for own in words]
    return {
        **{f"distinct_{n}": distinct(words, n) for n in (1, 2, 3)},
        "self_bleu": self_bleu(words),
        "compression_ratio": compression_ratio([" ".join(text) for text in texts]),
        "words_a_text": float(np.mean(lengths)) if lengths else math.nan,
        "distinct_words": float(len({word for own in words for word in own})),
        "duplicates": float(len(words) - len({tuple(own) for own in words})),
    }
