"""What texts share with a corpus: exact copies, the longest run of words, near-duplicates by MinHash.

Texts are compared as words without case and punctuation, so that another tokenisation hides no copy. Torch-free.
"""

import itertools
import re
import unicodedata
from collections.abc import Sequence
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
