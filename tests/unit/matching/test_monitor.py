"""The measure of what matching does: fixed states, fresh texts, and no trace on the learner."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dilm.config.schema import Config, SourceConfig
from dilm.data.corpus import load_corpus
from dilm.data.samplers import candidate_rows
from dilm.hub.pretrained import model_folder
from dilm.matching.monitor import SimilarityMonitor
from dilm.models.generator import build_generator
from dilm.models.learner import build_learner


@pytest.fixture
def monitor(tiny: Callable[..., Config], tiny_cache: Path) -> SimilarityMonitor:
    config = tiny()
    corpus = load_corpus(config.task, config.data, tiny_cache)
    learner = build_learner(config.match.learner, 2, tiny_cache, torch.device("cpu"))
    return SimilarityMonitor(config, corpus, learner)


def test_states_are_distinct_and_kept(monitor: SimilarityMonitor) -> None:
    first, second = monitor.states
    assert not torch.equal(first["head.weight"], second["head.weight"])
    assert monitor.real_SCP[0].shape == monitor.real_SCP[1].shape
    assert 0 < monitor.real_similarity <= 1


def test_measuring_twice_gives_the_same_and_leaves_the_learner(
    monitor: SimilarityMonitor, tiny: Callable[..., Config], tiny_cache: Path
) -> None:
    folder = model_folder("tiny", SourceConfig(built="tiny-gpt2"), tiny_cache)
    generator = build_generator(folder, tiny().generator, tiny().task)
    monitor.learner.fresh("now")
    before = {name: tensor.clone() for name, tensor in monitor.learner.state_dict().items()}
    first = monitor.measure(generator)
    assert first == monitor.measure(generator)
    assert all(torch.equal(tensor, before[name]) for name, tensor in monitor.learner.state_dict().items())
    assert 0 <= first["fresh_wellformed"] <= 1


def test_real_texts_resemble_real_texts(
    monitor: SimilarityMonitor, tiny: Callable[..., Config], tiny_cache: Path
) -> None:
    """The measure's own check: with the same real texts on both sides the similarity is one."""
    config = tiny()
    corpus = load_corpus(config.task, config.data, tiny_cache)
    tokens = monitor.learner.tokenize(corpus.train.texts)
    rows = candidate_rows(corpus.train, 200, 1)
    gradients = monitor._gradients([tokens[row] for row in rows], corpus.train.labels[rows])
    again = monitor._gradients([tokens[row] for row in rows[::-1]], corpus.train.labels[rows[::-1]])
    assert torch.nn.functional.cosine_similarity(gradients, again, dim=1).min() > 0.9999


def test_bootstrap_begins_with_all_texts_and_spreads_around_them(
    monitor: SimilarityMonitor, tiny: Callable[..., Config], tiny_cache: Path
) -> None:
    config = tiny()
    train = load_corpus(config.task, config.data, tiny_cache).train
    sample = train.take(candidate_rows(train, 60, 1))
    values = monitor.bootstrap(sample, seed=1)
    expected = []
    for state, real in zip(monitor.states, monitor.real_SCP, strict=True):
        monitor.learner.load_state_dict(state)
        means = monitor._gradients(monitor.learner.tokenize(sample.texts), sample.labels)
        expected.append(float(torch.nn.functional.cosine_similarity(real, means, dim=1).mean()))
    assert values[0] == pytest.approx(sum(expected) / len(expected), abs=1e-5)
    assert values[1:].std() > 0
    assert values[1:].min() < values[0] <= 1
