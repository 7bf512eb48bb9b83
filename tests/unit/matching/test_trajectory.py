"""The learner's way: fresh or continued, put aside and taken up again."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dilm.config.schema import Config
from dilm.data.corpus import load_corpus
from dilm.distributed.world import ALONE
from dilm.matching.trajectory import LearnerTraining
from dilm.models.learner import build_learner


def training_of(config: Config, cache: Path) -> LearnerTraining:
    learner = build_learner(config.match.learner, 2, cache, torch.device("cpu"))
    corpus = load_corpus(config.task, config.data, cache)
    tokens = learner.tokenize(corpus.train.texts)
    return LearnerTraining(learner, tokens, corpus.train.labels, config.match, "fp32", ("tiny", 0), ALONE)


def weights(of: LearnerTraining) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in of.learner.parameters()])


@pytest.mark.parametrize("learners", ["fresh", "continued"])
def test_an_outer_step_starts_afresh_or_goes_on(tiny: Callable[..., Config], tiny_cache: Path, learners: str) -> None:
    training = training_of(tiny(f"match.learners={learners}", "match.learner_optimizer.lr=1e-2"), tiny_cache)
    training.begin(0)
    start = weights(training)
    training.advance(0, 0)
    trained = weights(training)
    assert not torch.equal(trained, start)
    training.begin(1)
    assert torch.equal(weights(training), trained) == (learners == "continued")
    n_head = sum(parameter.numel() for parameter in training.learner.head.parameters())
    assert (
        (weights(training) != start).sum() <= n_head if learners == "fresh" else True
    )  # the pretrained encoder, and another head


@pytest.mark.parametrize("learners", ["fresh", "continued"])
def test_restored_it_goes_the_same_way(tiny: Callable[..., Config], tiny_cache: Path, learners: str) -> None:
    config = tiny(f"match.learners={learners}")
    inner = config.match.inner_steps
    training = training_of(config, tiny_cache)
    for update in range(2 * inner):
        if update % inner == 0:
            training.begin(update // inner)
        if update == inner + 1:
            saved = copy.deepcopy(training.state())
        training.advance(update // inner, update % inner)
    again = training_of(config, tiny_cache)
    again.restore(inner + 1, saved)
    for update in range(inner + 1, 2 * inner):
        again.advance(update // inner, update % inner)
    assert torch.equal(weights(again), weights(training))
