"""What the generator is matched to: pooled learners are where trained ones would be, with the same real gradients."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dilm.artifacts.fingerprint import pool_artifacts
from dilm.config.schema import Config
from dilm.core.errors import ConfigError, MissingArtifactError
from dilm.data.corpus import Corpus, load_corpus
from dilm.distributed.context import Context
from dilm.distributed.world import ALONE
from dilm.matching.batches import fixed_sets
from dilm.matching.gradients import parameter_gradient
from dilm.matching.trainer import build_trajectory
from dilm.matching.trajectory import LearnerTraining, untrained
from dilm.matching.trajectory_pool import GRADIENTS_FILE, PooledTrajectory, state_file
from dilm.models.features import FeatureStore
from dilm.models.learner import Learner, build_learner, text_loss
from dilm.stages import train

Compose = Callable[..., Config]
CPU = torch.device("cpu")
POOL = ("match.learners=pool", "match.pool_size=3", "match.learner_optimizer.lr=1e-2")


def corpus_of(config: Config, cache: Path) -> Corpus:
    return load_corpus(config.task, config.data, cache)


def learner_of(config: Config, cache: Path) -> Learner:
    return build_learner(config.match.learner, 2, cache, CPU)


def weights(learner: Learner) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in learner.parameters()])


def pooled(config: Config, cache: Path) -> PooledTrajectory:
    trajectory = build_trajectory(Context(config), learner_of(config, cache), None)
    assert isinstance(trajectory, PooledTrajectory)
    return trajectory


@pytest.mark.parametrize("representative", [True, False])
def test_the_pool_holds_what_training_and_autograd_give(tiny: Compose, tiny_cache: Path, representative: bool) -> None:
    config = tiny(*POOL, "match.pool_size=2", f"match.representative={representative}")
    train.make_trajectories(config)
    corpus, learner = corpus_of(config, tiny_cache), learner_of(config, tiny_cache)
    store = FeatureStore(config.match.learner, 2, tiny_cache, CPU, "fp32")
    sets = fixed_sets(corpus.train, config.match, store, ("pool", "tiny"))
    assert len(sets) == config.match.n_repset
    tokens, labels = learner.tokenize(corpus.train.texts), corpus.train.labels
    for number, (trajectory, teacher) in enumerate(pool_artifacts(config, corpus.content_hash)):
        training = LearnerTraining(learner, tokens, labels, config.match, "fp32", ("pool", "tiny", number), ALONE)
        training.begin(0)
        real_SRCP = load_file(teacher.folder / GRADIENTS_FILE)["gradients"]
        for inner in range(config.match.inner_steps):
            if inner:
                training.advance(0, inner - 1)
            stored = load_file(trajectory.folder / state_file(inner))
            assert all(torch.equal(stored[name], value) for name, value in learner.state_dict().items())
            learner.eval()
            for number_of_set, chosen in enumerate(sets):
                for label, rows in enumerate(chosen):
                    loss = text_loss(learner, [tokens[row] for row in rows], labels[rows], "fp32")
                    expected_P = parameter_gradient(loss, list(learner.head.parameters()))
                    torch.testing.assert_close(real_SRCP[inner, number_of_set, label], expected_P)


def test_outer_steps_pass_through_the_pool_in_shuffled_rounds(tiny: Compose, tiny_cache: Path) -> None:
    config = tiny(*POOL)
    train.make_trajectories(config)
    trajectory = pooled(config, tiny_cache)
    inner = config.match.inner_steps
    places = [trajectory.place_of(update) for update in range(40 * inner)]
    rounds = [[places[(turn * 3 + outer) * inner][0] for outer in range(3)] for turn in range(13)]
    assert all(sorted(numbers) == [0, 1, 2] for numbers in rounds)
    assert len(set(map(tuple, rounds))) > 1
    assert [state for _, state in places] == list(range(inner)) * 40
    other = pooled(tiny(*POOL, "seed=1"), tiny_cache)  # the same pool, in another order
    assert other.trajectories == trajectory.trajectories
    assert [other.place_of(update) for update in range(40 * inner)] != places


def test_restored_it_goes_the_same_way(tiny: Compose, tiny_cache: Path) -> None:
    config = tiny(*POOL, "match.real_batches=2")
    train.make_trajectories(config)
    inner, total = config.match.inner_steps, 7 * config.match.inner_steps
    trajectory, seen = pooled(config, tiny_cache), []
    for update in range(total):
        if update % inner == 0:
            trajectory.begin(update // inner)
        seen.append((weights(trajectory.learner), trajectory.gradients()))
        assert trajectory.place == trajectory.place_of(update)
        trajectory.advance(update // inner, update % inner)
    assert not any(torch.equal(one, other) for (one, _), (other, _) in pairwise(seen))
    for start in (0, 1, inner, 2 * inner + 1):
        again = pooled(config, tiny_cache)
        again.restore(start, trajectory.state())
        for update in range(start, total):
            if update % inner == 0:
                again.begin(update // inner)
            with untrained(again.learner, ("t",)):  # as where synthetic texts are clustered
                pass
            for found, expected in zip((weights(again.learner), again.gradients()), seen[update], strict=True):
                assert torch.equal(found, expected)
            again.advance(update // inner, update % inner)


def test_gradients_are_those_of_the_weights_that_are_kept(tiny: Compose, tiny_cache: Path) -> None:
    config = tiny(*POOL, "precision=bf16", "match.pool_size=1", "match.n_repset=1")
    train.make_trajectories(config)
    corpus, trajectory = corpus_of(config, tiny_cache), pooled(config, tiny_cache)
    stored = load_file(trajectory.trajectories[0] / state_file(1))
    assert {value.dtype for value in stored.values() if value.is_floating_point()} == {torch.bfloat16}
    trajectory.begin(0)
    trajectory.advance(0, 0)
    store = FeatureStore(config.match.learner, 2, tiny_cache, CPU, "bf16")
    (chosen,) = fixed_sets(corpus.train, config.match, store, ("pool", "tiny"))
    tokens = trajectory.learner.tokenize(corpus.train.take(np.concatenate(chosen)).texts)
    trajectory.learner.eval()
    half = len(chosen[0])
    expected = [
        parameter_gradient(
            text_loss(trajectory.learner, part, np.full(half, label), "bf16"),
            list(trajectory.learner.head.parameters()),
        )
        for label, part in enumerate((tokens[:half], tokens[half:]))
    ]
    cosines = torch.cosine_similarity(trajectory.gradients(), torch.stack(expected))
    assert (cosines > 0.999).all()  # to the rounding of bf16


def test_what_is_there_is_found_and_what_is_missing_is_made(
    tiny: Compose, tiny_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(*POOL)
    corpus = corpus_of(config, tiny_cache)
    with pytest.raises(MissingArtifactError):
        pooled(config, tiny_cache)
    train.make_trajectories(tiny(*POOL, "match.trajectory=1"))
    there = [[artifact.exists for artifact in both] for both in pool_artifacts(config, corpus.content_hash)]
    assert there == [[False, False], [True, True], [False, False]]
    made = pool_artifacts(config, corpus.content_hash)[1][0].folder.stat().st_mtime_ns
    capsys.readouterr()
    train.make_trajectories(tiny(*POOL, "seed=5"))  # another run of the task
    assert capsys.readouterr().out.startswith("learners: the pool's 3 x 3 states of tiny take 0.0 GB below ")
    assert all(artifact.exists for both in pool_artifacts(config, corpus.content_hash) for artifact in both)
    assert pool_artifacts(config, corpus.content_hash)[1][0].folder.stat().st_mtime_ns == made
    train.make_trajectories(config)
    assert capsys.readouterr().out.startswith("found 3 of the pool's 3 learners (tiny) below ")


def test_other_sets_have_teachers_of_their_own_for_the_same_trajectories(tiny: Compose, tiny_cache: Path) -> None:
    digest = corpus_of(tiny(), tiny_cache).content_hash
    one, other = (pool_artifacts(tiny(*POOL, *keys), digest) for keys in ((), ("match.representative=false",)))
    assert [way.key for way, _ in one] == [way.key for way, _ in other]
    assert {teacher.key for _, teacher in one}.isdisjoint(teacher.key for _, teacher in other)
    assert pool_artifacts(tiny(), digest) == []


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (("match.trajectory=8",), "match.trajectory is 8, but match.pool_size=8 has 0 to 7"),
        (("match.learners=pool", "match.parameters=all"), "match.parameters is 'all', but a pool keeps"),
        (("match.learners=pol",), "match.learners 'pol' is unknown. Did you mean 'pool'"),
    ],
)
def test_keys_that_could_not_work_are_refused(tiny: Compose, keys: tuple[str, ...], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        tiny(*keys)


def test_the_untrained_learner_is_lent_for_a_block(tiny: Compose, tiny_cache: Path) -> None:
    config = tiny("match.learner_optimizer.lr=1e-2")
    trajectory = build_trajectory(Context(config), learner_of(config, tiny_cache), None)
    trajectory.begin(0)
    trajectory.advance(0, 0)
    trained = weights(trajectory.learner)
    with untrained(trajectory.learner, ("t",)):
        assert not torch.equal(weights(trajectory.learner), trained)
    assert torch.equal(weights(trajectory.learner), trained)
