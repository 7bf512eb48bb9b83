"""Measures of variety against their definitions, and that they tell varied texts from alike ones."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from dilm.evaluation.text_metrics import BLEU_ORDER, compression_ratio, distinct, divergence, grams, measures, self_bleu

reproducible = settings(max_examples=100, deadline=None, derandomize=True)
texts_of_words = st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=7), min_size=2, max_size=6)


def bleu(words: list[str], others: list[list[str]]) -> float:
    """BLEU-4 by its definition: clipped by the highest count in any one reference, the nearest length (the shorter)."""
    logs = []
    for n in range(1, min(BLEU_ORDER, len(words)) + 1):
        own = grams(words, n)
        matches = sum(min(count, max(grams(other, n)[gram] for other in others)) for gram, count in own.items())
        logs.append(math.log(max(matches, 0.5) / own.total()))
    length = min((len(other) for other in others), key=lambda other: (abs(other - len(words)), other))
    brevity = 1.0 if len(words) >= length else math.exp(1 - length / len(words))
    return brevity * math.exp(np.mean(logs))


@reproducible
@given(texts_of_words)
def test_self_bleu_by_its_definition(texts: list[list[str]]) -> None:
    expected = [bleu(words, texts[:number] + texts[number + 1 :]) for number, words in enumerate(texts)]
    assert self_bleu(texts) == pytest.approx(np.mean(expected))


def test_self_bleu_of_equal_texts_is_one_and_of_one_text_is_none() -> None:
    assert self_bleu([["a", "b", "c", "d", "e"]] * 3) == pytest.approx(1.0)
    assert math.isnan(self_bleu([["a"]])) and math.isnan(self_bleu([["a"], []]))


def test_distinct_runs_by_hand() -> None:
    assert distinct([["a", "b", "a"], ["a", "b"]], 1) == 2 / 5
    assert distinct([["a", "b", "a"], ["a", "b"]], 2) == 2 / 3
    assert math.isnan(distinct([["a"]], 2))


def test_repeated_texts_are_compressed_more() -> None:
    draws = np.random.default_rng(0)
    varied = [" ".join(map(str, draws.integers(0, 1000, 10))) for _ in range(20)]
    assert compression_ratio(varied[:1] * 20) > 3 * compression_ratio(varied)
    assert math.isnan(compression_ratio([]))


@reproducible
@given(*[st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 50), min_size=1).map(Counter[str])] * 2)
def test_divergence_is_scipys(counts: Counter[str], others: Counter[str]) -> None:
    names = sorted(counts.keys() | others.keys())
    expected = jensenshannon([counts[name] for name in names], [others[name] for name in names], base=2) ** 2
    assert divergence(counts, others) == pytest.approx(expected, abs=1e-12)


def test_all_measures_of_a_data_set() -> None:
    found = measures([("A good film .", "yes"), ("a good film", "YES"), ("bad", "no")])
    assert found["duplicates"] == 1 and found["distinct_words"] == 6
    assert found["words_a_text"] == pytest.approx(10 / 3)
    assert found["distinct_1"] == pytest.approx(6 / 10)
