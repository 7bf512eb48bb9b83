"""What texts share with others, and how varied they are: copies, spans, near-duplicates; n-grams, BLEU, compression."""

import itertools
import math
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

NONE = -1  # no row of the corpus
SHINGLE = 5  # characters
PERMUTATIONS = 128
WORD = re.compile(r"\w+")


def words_of(text: str) -> list[str]:
    """The words of a text, without case, accents' spelling and punctuation."""
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def normalised(text: Sequence[str]) -> tuple[str, ...]:
    """The form in which texts are compared, field by field."""
    return tuple(" ".join(words_of(field)) for field in text)


def copies(texts: Sequence[tuple[str, ...]], corpus: Sequence[tuple[str, ...]]) -> np.ndarray:
    """The first row of the corpus that is the same text, (N,) int64; NONE where there is none.

    A text without any word is no copy.
    """
    first: dict[tuple[str, ...], int] = {}
    for row, text in enumerate(corpus):
        first.setdefault(normalised(text), row)
    forms = [normalised(text) for text in texts]
    return np.array([first.get(form, NONE) if any(form) else NONE for form in forms], dtype=np.int64)


@dataclass(frozen=True)
class Spans:
    """For every text the longest run of words that one field of it shares with a field of the corpus."""

    length: np.ndarray  # (N,) int64, words
    row: np.ndarray  # (N,) int64, a row of the corpus that has it; NONE where no word is shared


def longest_spans(texts: Sequence[tuple[str, ...]], corpus: Sequence[tuple[str, ...]]) -> Spans:
    """The longest shared run of words of each text.

    Runs grow by a word at a time, on all places of both sides at once: only places whose run of n words stands on the
    other side too are looked at for n + 1, so that the whole costs little more than reading the corpus.
    """
    known: dict[str, int] = {}
    ours, theirs = _Runs(texts, known, learn=True), _Runs(corpus, known, learn=False)
    spans = Spans(np.zeros(len(texts), dtype=np.int64), np.full(len(texts), NONE, dtype=np.int64))
    for length in itertools.count(1):
        shared = np.intersect1d(ours.run, theirs.run)
        if not len(shared):
            return spans
        ours.keep(shared)
        theirs.keep(shared)
        _, first = np.unique(theirs.run, return_index=True)
        owner = ours.row_X[ours.place]
        spans.length[owner] = length
        spans.row[owner] = theirs.row_X[theirs.place[first[ours.run]]]
        ours.grow(length, len(known))
        theirs.grow(length, len(known))
    raise AssertionError("texts are finite")


class _Runs:
    """The runs of words of one side that the other may share: where each begins, and a number that tells which it is.

    All fields stand one behind another in `words_X`, as numbers from 1, with a 0 behind each field and for a word that
    the other side does not know.
    """

    def __init__(self, texts: Sequence[tuple[str, ...]], known: dict[str, int], learn: bool) -> None:
        words, rows = [], []
        for row, text in enumerate(texts):
            for field in text:
                own = words_of(field)
                if learn:
                    words += [known.setdefault(word, len(known) + 1) for word in own]
                else:
                    words += [known.get(word, 0) for word in own]
                words.append(0)
                rows += [row] * (len(own) + 1)
        self.words_X = np.array(words, dtype=np.int64)
        self.row_X = np.array(rows, dtype=np.int64)
        self.place = np.flatnonzero(self.words_X)
        self.run = self.words_X[self.place]

    def keep(self, shared: np.ndarray) -> None:
        """Keep the runs that are among `shared`, which is sorted; their numbers are now the places in it."""
        number = np.searchsorted(shared, self.run).clip(max=len(shared) - 1)
        kept = shared[number] == self.run
        self.place, self.run = self.place[kept], number[kept]

    def grow(self, length: int, n_words: int) -> None:
        """Make every run of `length` words one longer; what ends with its field is dropped."""
        following = self.words_X[self.place + length]
        longer = following > 0
        self.place, self.run = self.place[longer], self.run[longer] * (n_words + 1) + following[longer]


def near_duplicates(
    texts: Sequence[tuple[str, ...]], corpus: Sequence[tuple[str, ...]], threshold: float
) -> list[tuple[int, int, float]]:
    """Pairs (text, row of the corpus, Jaccard similarity of their shingles) at or above the threshold.

    MinHash finds them, so that one may be missed; the similarity is then computed exactly. Only the texts' own
    signatures are kept: the corpus passes by.
    """
    from datasketch import MinHash, MinHashLSH

    own = [_shingles(text) for text in texts]
    index = MinHashLSH(threshold=max(threshold - 0.1, 0.1), num_perm=PERMUTATIONS)
    pairs = []
    for number, signature in enumerate(MinHash.bulk(own, num_perm=PERMUTATIONS)):
        if own[number]:
            index.insert(number, signature)
    known = set().union(*own)
    for row, text in enumerate(corpus):
        theirs = _shingles(text)
        if len(theirs & known) < threshold * len(theirs) or not theirs:
            continue  # no single text can share so many of them
        (signature,) = MinHash.bulk([theirs], num_perm=PERMUTATIONS)
        for number in index.query(signature):
            similarity = len(own[number] & theirs) / len(own[number] | theirs)
            if similarity >= threshold:
                pairs.append((number, row, similarity))
    return sorted(pairs, key=lambda pair: (pair[0], -pair[2], pair[1]))


def _shingles(text: Sequence[str]) -> set[bytes]:
    """Runs of characters of the normalised text; the whole of one that is shorter."""
    whole = "\x1f".join(normalised(text)).strip("\x1f")
    return (
        {whole[start : start + SHINGLE].encode() for start in range(max(1, len(whole) - SHINGLE + 1))}
        if whole
        else set()
    )


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
