"""One update of the generator against double backward, whatever the loss, the parameters and the microbatches."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from losses import DISTANCES, Distance
from torch import Tensor, nn

from dilm.artifacts.artifact import make
from dilm.artifacts.fingerprint import match_artifact, pretrain_artifact
from dilm.config.schema import Config
from dilm.data.corpus import load_corpus
from dilm.distributed.context import Context
from dilm.hub.pretrained import model_folder
from dilm.matching.batches import SyntheticTexts
from dilm.matching.gradients import parameter_gradient
from dilm.matching.loss import generation_weights
from dilm.matching.trainer import Matching, SyntheticBatch
from dilm.models.generator import build_generator
from dilm.models.learner import text_losses
from dilm.models.likelihood import text_nll
from dilm.training.engine import TorchEngine

Compose = Callable[..., Config]


def matching_of(config: Config, cache: Path) -> Matching:
    """In double precision, with the parent's weights random; real texts play the synthetic ones, which it lacks."""
    corpus = load_corpus(config.task, config.data, cache)
    parent = pretrain_artifact(config, corpus.content_hash)
    source = model_folder(config.generator.name, config.generator.source, cache)
    make(parent, build_generator(source, config.generator, config.task).save, config)
    matching = Matching(Context(config), match_artifact(config, corpus.content_hash))
    matching.generator.model.double()
    matching.learner.fresh("test").double()
    matching.trajectory.start()
    parts = [corpus.train.take(rows[:40]) for _, rows in sorted(corpus.train.rows_by_label.items())]
    encode, tokenize = matching.generator.encode, matching.learner.tokenize
    texts = [SyntheticTexts(encode(part).lists(), tokenize(part.texts).lists(), None) for part in parts]
    matching._take_texts(texts, 0)
    return matching


def by_double_backward(matching: Matching, batch: SyntheticBatch, real_CP: Tensor, distance: Distance) -> Tensor:
    """The loss of a batch, with one graph from the generator's weights through the learner's gradient."""
    nll_B = text_nll(matching.generator, batch.sequences, "fp32")
    parameters = matching.parameters or list(matching.learner.head.parameters())
    matching.learner.eval()
    losses = []
    for label, real_P in enumerate(real_CP):
        rows = np.flatnonzero(batch.labels_B == label)
        weights_B = generation_weights(nll_B[rows], matching.settings.temperature)
        tokens = [batch.tokens[row] for row in rows]
        weighted = (weights_B * text_losses(matching.learner, tokens, batch.labels_B[rows], "fp32")).sum()
        losses.append(distance(real_P, parameter_gradient(weighted, parameters, create_graph=True)))
    return torch.stack(losses).mean()


@pytest.fixture
def summed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """The gradients of every step, before they are clipped."""
    seen: list[Tensor] = []
    clip = nn.utils.clip_grad_norm_

    def kept(parameters: Iterator[nn.Parameter], norm: float) -> Tensor:
        given = list(parameters)
        seen.append(torch.cat([p.grad.flatten() for p in given if p.grad is not None]))
        return clip(given, norm)

    monkeypatch.setattr("torch.nn.utils.clip_grad_norm_", kept)
    yield seen


@pytest.mark.parametrize("name", sorted(DISTANCES))
@pytest.mark.parametrize("keys", [(), ("engine.accumulate=3", "match.temperature=0.5"), ("match.parameters=all",)])
def test_an_update_is_that_of_double_backward(
    tiny: Compose,
    tiny_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    summed: list[Tensor],
    name: str,
    keys: tuple[str, ...],
) -> None:
    monkeypatch.setattr("dilm.matching.loss.gradient_distance", DISTANCES[name])
    matching = matching_of(tiny("generator.dropout=0.0", "engine=torch", *keys), tiny_cache)
    batch, real_CP = matching.draw(), matching.trajectory.gradients()
    # Far from its own real gradient, so that the loss doesn't vanish.
    real_CP = real_CP.double() + real_CP.std() * torch.randn(
        real_CP.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5)
    )
    monkeypatch.setattr(matching, "draw", lambda: batch)
    monkeypatch.setattr(matching.trajectory, "gradients", lambda: real_CP)
    whole = by_double_backward(matching, batch, real_CP, DISTANCES[name])
    loss = float(whole.detach())
    trained = [weight for weight in matching.generator.model.parameters() if weight.requires_grad]
    expected = parameter_gradient(whole, trained)

    engine = matching.engine()
    assert isinstance(engine, TorchEngine)
    metrics = matching.update(engine, 1)
    assert metrics["loss"] == pytest.approx(loss, abs=1e-8)
    assert expected.norm() > 1e-6
    assert torch.allclose(summed[0], expected, rtol=0, atol=1e-8)
    assert torch.allclose(summed[0], expected, rtol=1e-5, atol=1e-8 * float(expected.abs().max()))
