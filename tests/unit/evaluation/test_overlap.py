"""What texts share with a corpus, against searches of every pair."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dilm.evaluation.text_metrics import NONE, copies, longest_spans, near_duplicates, normalised, words_of

few_words = st.lists(st.sampled_from("a b c".split()), max_size=6).map(" ".join)
pairs = st.lists(st.tuples(few_words, few_words), min_size=1, max_size=6)
reproducible = settings(max_examples=150, deadline=None, derandomize=True)


def test_texts_are_compared_without_case_and_punctuation() -> None:
    assert words_of("It's the BEST — film , ever .") == ["it", "s", "the", "best", "film", "ever"]
    assert normalised(("\ufb01ne \u2161", " a  B ")) == ("fine ii", "a b"), "a ligature, a Roman number"
    assert words_of("... !") == []


def test_copies_are_found_however_they_are_spelt() -> None:
    corpus = [("a bad film",), ("A good film .",), ("a good film",)]
    texts = [("a GOOD film!",), ("a good",), ("...",), ("a bad film",)]
    assert copies(texts, [*corpus, ("?",)]).tolist() == [1, NONE, NONE, 0]


def test_a_pair_is_a_copy_if_both_its_fields_are() -> None:
    corpus = [("one", "two"), ("three", "four")]
    assert copies([("one", "two"), ("one", "four"), ("two", "one")], corpus).tolist() == [0, NONE, NONE]


def longest_common(first: list[str], second: list[str]) -> int:
    runs = {tuple(second[a:b]) for a in range(len(second)) for b in range(a + 1, len(second) + 1)}
    found = [b - a for a in range(len(first)) for b in range(a + 1, len(first) + 1) if tuple(first[a:b]) in runs]
    return max(found, default=0)


def of_two_texts(text: tuple[str, ...], other: tuple[str, ...]) -> int:
    return max(longest_common(words_of(field), words_of(theirs)) for field in text for theirs in other)


@reproducible
@given(pairs, pairs)
def test_longest_spans_against_a_search_of_all_runs(
    texts: list[tuple[str, ...]], corpus: list[tuple[str, ...]]
) -> None:
    found = longest_spans(texts, corpus)
    expected = [max(of_two_texts(text, other) for other in corpus) for text in texts]
    assert found.length.tolist() == expected
    for text, length, row in zip(texts, found.length, found.row, strict=True):
        assert (row == NONE) == (length == 0)
        assert row == NONE or of_two_texts(text, corpus[row]) == length, "the row has the run"


def test_no_run_goes_over_the_end_of_a_field_or_a_text() -> None:
    found = longest_spans([("a b", "c d"), ("e f",)], [("a b c", "d"), ("x", "d e")])
    assert (found.length.tolist(), found.row.tolist()) == ([2, 1], [0, 1])


def test_words_that_the_corpus_lacks_end_a_run() -> None:
    assert longest_spans([("a new b",)], [("a b",), ("a old b",)]).length.tolist() == [1]
    assert longest_spans([("new",)], [("old",)]).row.tolist() == [NONE]
    assert longest_spans([("",)], []).length.tolist() == [0]


def jaccard(first: str, second: str) -> float:
    own, other = ({text[a : a + 5] for a in range(len(text) - 4)} for text in (first, second))
    return len(own & other) / len(own | other)


def test_near_duplicates_are_those_of_a_search_of_all_pairs() -> None:
    draws = np.random.default_rng(0)
    words = [f"word{number}" for number in range(40)]
    corpus = [" ".join(draws.choice(words, 12)) for _ in range(200)]
    texts = [corpus[3], corpus[7].replace("word1", "other", 1), " ".join(draws.choice(words, 12)), corpus[9][:-8]]
    found = near_duplicates([(text,) for text in texts], [(text,) for text in corpus], 0.7)
    expected = [(n, row, jaccard(text, other)) for n, text in enumerate(texts) for row, other in enumerate(corpus)]
    assert {pair[:2] for pair in found} == {(n, row) for n, row, similarity in expected if similarity >= 0.7}
    assert {pair[:2]: pair[2] for pair in found}[0, 3] == 1.0
    similar = {(n, row): similarity for n, row, similarity in expected}
    assert all(similarity == pytest.approx(similar[n, row]) for n, row, similarity in found)


def test_short_and_empty_texts_have_near_duplicates_too() -> None:
    assert near_duplicates([("bad",), ("",), ("...",)], [("bad .",), ("",), ("good",)], 0.8) == [(0, 0, 1.0)]
    assert near_duplicates([("bad",)], [], 0.8) == []
