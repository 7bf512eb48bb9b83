"""Choosing from texts in memory: as the stage chooses, as the selections say, and one line for what is wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from dilm.artifacts.shards import read_shards
from dilm.config.compose import load_learner
from dilm.config.schema import Config, SourceConfig, TeachConfig
from dilm.core.errors import ArgumentError, ConfigError, DilmError
from dilm.core.hashing import derive_seed
from dilm.data.corpus import load_corpus
from dilm.hub.pretrained import model_folder
from dilm.selection.coreset import herding
from dilm.selection.select import others_first
from dilm.selection.teach import Labels, search, tuned, value, view_of
from dilm.selection.texts import CHOICES, select
from dilm.stages import generate

Compose = Callable[..., Config]
TEXTS = [f"text number {number}" for number in range(60)]
LABELS = ["a", "b", "c"] * 20


def embedded(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 8))


@pytest.mark.parametrize(
    "keys", ["method=random", "method=k_centers generate.pool=fresh generate.real_candidates=null"]
)
def test_it_is_the_choice_of_the_stage(tiny: Compose, tiny_cache: Path, keys: str) -> None:
    config = tiny(*keys.split())
    rows = read_shards(generate.run(config).folder)
    train = load_corpus(config.task, config.data, tiny_cache).train
    for number in range(config.n_datasets):
        own = rows.take(np.flatnonzero(rows.dataset == number))
        chosen = select(
            train.texts,
            train.labels,
            config.dpc,
            config.method,
            encoder="tiny",
            seed=own.seed[0],
            n_candidates=None,
            cache=tiny_cache,
            device="cpu",
        )
        assert [train.texts[row] for row in chosen] == own.table.texts
        assert (train.labels[chosen] == own.table.labels).all()


def test_herding_is_that_of_each_class() -> None:
    embeddings = embedded(60)
    chosen = select(TEXTS, LABELS, 4, "herding", encoder=embeddings)
    for place, name in enumerate("abc"):
        members = np.flatnonzero(np.array(LABELS) == name)
        expected = members[herding(torch.from_numpy(embeddings[members].astype(np.float32)), 4)]
        assert (chosen[4 * place : 4 * place + 4] == expected).all()


def test_teach_is_the_search_over_all_classes_and_is_worth_more_than_random() -> None:
    embeddings = embedded(60) + 2 * np.eye(3, 8)[[0, 1, 2] * 20]
    features = torch.from_numpy(embeddings.astype(np.float32))
    chosen = select(TEXTS, LABELS, 2, encoder=features, seed=5)
    members = np.argsort(np.array(LABELS), kind="stable")
    numbers = np.repeat(range(3), 20)
    order = np.random.default_rng(derive_seed("scored", 5)).permutation(60)
    labels = Labels(numbers, np.unique(LABELS, return_inverse=True)[1][order], 3)
    views = tuned([view_of(features[members], features[order])], labels, 2, derive_seed("probes", 5))
    expected, worth = search(views, labels, 2, derive_seed("search", 5), TeachConfig().passes, TeachConfig().restarts)
    assert (chosen == members[expected]).all()
    places = {row: place for place, row in enumerate(members)}
    drawn = [select(TEXTS, LABELS, 2, "random", seed=seed) for seed in range(5)]
    assert worth < min(value(views, labels, [places[row] for row in rows]) for rows in drawn)


def test_what_scores_comes_first_from_texts_that_are_no_candidates() -> None:
    texts = [(text,) for text in TEXTS]
    order = others_first(texts, set(texts[:15]), seed=1)
    assert sorted(order) == list(range(60)) and set(order[45:]) == set(range(15))
    assert (order != others_first(texts, set(texts[:15]), seed=2)).any()


@settings(max_examples=30)
@given(st.sampled_from(CHOICES), st.integers(1, 3), st.integers(0, 2**40), st.sampled_from([None, 18, 30, 1000]))
def test_every_class_has_dpc_distinct_texts(selection: str, dpc: int, seed: int, n_candidates: int | None) -> None:
    texts = [*TEXTS[:30], *TEXTS[:30]]  # each twice, with the same label

    def choose() -> np.ndarray:
        return select(texts, LABELS, dpc, selection, encoder=embedded(60), seed=seed, n_candidates=n_candidates)

    chosen = choose()
    assert chosen.shape == (3 * dpc,) and chosen.dtype == np.int64
    assert [LABELS[row] for row in chosen] == sorted("abc" * dpc)
    assert len({texts[row] for row in chosen}) == 3 * dpc
    assert (choose() == chosen).all()


def test_another_seed_chooses_others() -> None:
    for selection in ("teach", "k_centers", "random"):
        first, second = (select(TEXTS, LABELS, 3, selection, encoder=embedded(60), seed=seed) for seed in (0, 1))
        assert selection == "teach" or set(first) != set(second)
    few = [select(TEXTS, LABELS, 3, "herding", encoder=embedded(60), seed=seed, n_candidates=30) for seed in (0, 1)]
    assert set(few[0]) != set(few[1])


def test_texts_and_labels_of_several_kinds() -> None:
    numbers = np.repeat([3, 1], 5)
    expected = select(TEXTS[:10], numbers, 2, "random")
    assert list(numbers[expected]) == [1, 1, 3, 3], "classes are in sorted order"
    frame = pd.DataFrame({"text": TEXTS[:10], "label": numbers})
    assert (select(frame["text"], frame["label"], 2, "random") == expected).all()
    rows = Dataset.from_pandas(frame)
    assert (select(rows["text"], rows["label"], 2, "random") == expected).all()
    assert rows.select(expected)["label"][:2] == [1, 1]
    named = pd.Series(["x", "b"]).repeat(5)
    assert (select(np.array(TEXTS[:10]), named, 2, "random") == expected).all()


def test_an_encoder_from_a_folder_reads_pairs_as_the_learner_does(tiny_cache: Path) -> None:
    folder = model_folder("tiny", SourceConfig(built="tiny-bert"), tiny_cache)
    pairs = [(f"question {number}", f"answer {number * 7}") for number in range(20)]
    chosen = [
        select(pairs, [0, 1] * 10, 3, "k_centers", encoder=encoder, cache=tiny_cache, device="cpu")
        for encoder in (folder, str(folder), "tiny")
    ]
    assert (chosen[0] == chosen[1]).all() and (chosen[0] == chosen[2]).all()


def test_a_learner_is_loaded_by_its_name() -> None:
    assert load_learner("minilm").pooling == "mean"
    with pytest.raises(ConfigError, match=r"learner 'minilmm' is unknown\. Did you mean 'minilm'"):
        load_learner("minilmm")


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"selection": "k-centers"}, "selection 'k-centers' is unknown. Did you mean 'k_centers'?"),
    ({"selection": "rank"}, "selection 'rank' is unknown."),
    ({"encoder": "minilmm"}, "encoder 'minilmm' is no folder and no learner. Did you mean 'minilm'?"),
    ({"encoder": embedded(7)}, "encoder is an array of float64 of shape (7, 8); embeddings of 60 texts must be"),
    ({"encoder": np.full((60, 2), np.nan)}, "has values that are NaN"),
    ({"dpc": 0}, "dpc is 0; it must be a whole number from 1."),
    ({"dpc": 2.5}, "dpc is 2.5;"),
    ({"dpc": 21}, "dpc=21, but class 'a' has only 20 distinct texts"),
    ({"n_candidates": 6}, "dpc=3, but class 'a' has only 2 distinct texts"),
    ({"seed": -1}, "seed is -1;"),
    ({"device": "gpu"}, "device 'gpu' is unknown."),
    ({"precision": "fp16"}, "precision 'fp16' is unknown."),
    ({"texts": "abc", "labels": [0]}, "texts is one string;"),
    ({"texts": [], "labels": []}, "texts is empty;"),
    ({"texts": [*TEXTS[:59], None]}, "texts[59] is None;"),
    ({"texts": [*TEXTS[:59], " "]}, "texts[59] is empty;"),
    ({"texts": [*TEXTS[:59], ("a", "b")]}, "texts must all be strings, or all pairs"),
    ({"labels": LABELS[:59]}, "labels has shape (59,) for 60 texts;"),
    ({"labels": [0.5] * 60}, "labels must be whole numbers or strings"),
    ({"labels": ["a"] * 60}, "labels has one class"),
]


@pytest.mark.parametrize(("changed", "message"), WRONG, ids=[message[:30] for _, message in WRONG])
def test_what_is_wrong_is_told_in_one_line(changed: dict[str, Any], message: str) -> None:
    arguments = {"texts": TEXTS, "labels": LABELS, "dpc": 3, "encoder": embedded(60)} | changed
    with pytest.raises(ArgumentError) as caught:
        select(**arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, DilmError)
