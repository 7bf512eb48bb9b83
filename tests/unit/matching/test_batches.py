"""Real batches and pools of synthetic texts."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from dilm.config.schema import Config, MatchConfig, SourceConfig, TaskConfig
from dilm.core.errors import DataError
from dilm.data.corpus import load_corpus
from dilm.data.samplers import candidate_rows
from dilm.hub.pretrained import model_folder
from dilm.matching.batches import SamplingSettings, real_batches, real_sets, write_synthetic_texts
from dilm.models.features import FeatureStore
from dilm.models.generator import build_generator
from dilm.models.learner import build_learner

CPU = torch.device("cpu")


@pytest.fixture
def config(tiny: Callable[..., Config]) -> Config:
    return tiny()


def test_teacher_sets_are_coresets_of_each_label(config: Config, tiny_cache: Path) -> None:
    corpus = load_corpus(config.task, config.data, tiny_cache)
    store = FeatureStore(config.match.learner, 2, tiny_cache, CPU, "fp32")
    sets = real_sets(corpus.train, config.match, store, ("t",))
    assert len(sets) == config.match.n_repset
    for chosen in sets:
        for label, rows in enumerate(chosen):
            assert len(set(rows)) == config.match.repset_dpc
            assert (corpus.train.labels[rows] == label).all()
    assert set(sets[0][0]) != set(sets[1][0])


def test_without_the_teacher_all_rows_are_real(config: Config, tiny_cache: Path) -> None:
    corpus = load_corpus(config.task, config.data, tiny_cache)
    store = FeatureStore(config.match.learner, 2, tiny_cache, CPU, "fp32")
    (rows,) = real_sets(corpus.train, MatchConfig(representative=False), store, ("t",))
    assert sum(map(len, rows)) == len(corpus.train)


def test_a_teacher_larger_than_the_corpus_is_refused(config: Config, tiny_cache: Path) -> None:
    corpus = load_corpus(config.task, config.data, tiny_cache)
    store = FeatureStore(config.match.learner, 2, tiny_cache, CPU, "fp32")
    with pytest.raises(DataError, match=r"match\.repset_dpc=5000"):
        real_sets(corpus.train, MatchConfig(repset_dpc=5000), store, ("t",))


def test_real_batches_stay_within_one_set() -> None:
    sets = [[np.arange(0, 5), np.arange(5, 10)], [np.arange(10, 15), np.arange(15, 20)]]
    for batch in islice(real_batches(sets, 3, ("t",)), 20):
        assert [len(rows) for rows in batch] == [3, 3]
        assert len({int(rows[0]) // 10 for rows in batch}) == 1


def test_candidate_rows_share_labels_equally(config: Config, tiny_cache: Path) -> None:
    train = load_corpus(config.task, config.data, tiny_cache).train
    rows = candidate_rows(train, 100, seed=1)
    assert np.bincount(train.labels[rows]).tolist() == [50, 50]
    assert (rows == candidate_rows(train, 100, seed=1)).all()
    assert len(candidate_rows(train, None, seed=1)) == len(train)


def test_a_generator_that_writes_no_wellformed_text_is_told(config: Config, tiny_cache: Path) -> None:
    folder = model_folder("tiny", SourceConfig(built="tiny-gpt2"), tiny_cache)
    task = TaskConfig("three", ["a", "b", "c"], ["x", "y"], max_length=8)
    generator = build_generator(folder, config.generator, task)  # untrained: three fields never come out
    learner = build_learner(config.match.learner, 2, tiny_cache, CPU)
    with pytest.raises(DataError, match=r"only \d+ of 64 texts .* label 0 are well-formed; match.synthetic_dpc=8"):
        write_synthetic_texts(generator, learner, config.match, SamplingSettings("fp32", 0.95, 64), ("t",))
