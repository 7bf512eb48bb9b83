"""The closed form against autograd, and the loss and its slopes against their definitions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from losses import DISTANCES, on_ranks
from torch import Tensor, nn
from torch.nn import functional as F

from dilm.distributed.world import World
from dilm.matching.gradients import HeadGradients, head_gradients, parameter_gradient
from dilm.matching.loss import Matched, generation_weights, gradient_distance, match_gradients

sizes = st.tuples(st.integers(1, 6), st.integers(2, 5), st.integers(1, 7), st.booleans(), st.integers(0, 2**31))


def matching_loss(real_P: Tensor, synthetic_BP: Tensor, weights_B: Tensor) -> Tensor:
    """The paper's loss of one label by its definition."""
    return gradient_distance(real_P, weights_B @ synthetic_BP)


def problem(n: int, classes: int, width: int, bias: bool, seed: int) -> tuple[torch.Tensor, nn.Linear, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, width, generator=generator, dtype=torch.float64)
    head = nn.Linear(width, classes, bias=bias, dtype=torch.float64)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return features, head, torch.randint(classes, (n,), generator=generator)


@given(sizes)
def test_closed_form_equals_autograd(size: tuple[int, int, int, bool, int]) -> None:
    features, head, labels = problem(*size)
    rows = head_gradients(features, head(features), labels, has_bias=size[3])
    for row, feature, label in zip(rows, features, labels, strict=True):
        loss = F.cross_entropy(head(feature[None]), label[None])
        expected = parameter_gradient(loss, list(head.parameters()))
        assert torch.allclose(row, expected, rtol=0, atol=1e-8)


@given(sizes)
def test_generator_gradient_equals_double_backward(size: tuple[int, int, int, bool, int]) -> None:
    """The authors' route: weight the losses, differentiate for the learner, then for the generator."""
    features, head, labels = problem(*size)
    n = len(labels)
    generator = torch.Generator().manual_seed(size[-1] + 1)
    nll = torch.rand(n, generator=generator, dtype=torch.float64, requires_grad=True)
    parameters = list(head.parameters())
    real = torch.randn(sum(p.numel() for p in parameters), generator=generator, dtype=torch.float64)

    closed = matching_loss(
        real, head_gradients(features, head(features), labels, size[3]).detach(), generation_weights(nll)
    )
    (closed_gradient,) = torch.autograd.grad(closed, nll)

    weighted = (generation_weights(nll) * F.cross_entropy(head(features), labels, reduction="none")).sum()
    twice = 1 - F.cosine_similarity(real, parameter_gradient(weighted, parameters, create_graph=True), dim=0)
    (twice_gradient,) = torch.autograd.grad(twice, nll)

    assert torch.allclose(closed, twice, rtol=0, atol=1e-8)
    assert torch.allclose(closed_gradient, twice_gradient, rtol=0, atol=1e-8)


@given(sizes, st.integers(1, 4), st.sampled_from([0.5, 1.0, 3.0]), st.sampled_from(sorted(DISTANCES)))
@settings(deadline=None)
def test_slopes_are_the_gradient_of_any_loss_however_texts_are_spread(
    size: tuple[int, int, int, bool, int], ranks: int, temperature: float, name: str
) -> None:
    """On every rank, against double backward: through the softmax's weights and the learner's weighted loss."""
    features, head, labels = problem(*size)
    n_labels, labels_B = size[1], labels.numpy()
    rows = head_gradients(features, head(features), labels, size[3]).detach()
    generator = torch.Generator().manual_seed(size[-1] + 1)
    nll = torch.rand(len(labels), generator=generator, dtype=torch.float64, requires_grad=True)
    real = torch.randn(n_labels, rows.shape[1], generator=generator, dtype=torch.float64)
    present = [label for label in range(n_labels) if (labels == label).any()]
    real, labels_B = real[present], np.searchsorted(present, labels_B)  # every label has texts

    losses = []
    for number, label in enumerate(present):
        members = labels == label
        texts = F.cross_entropy(head(features[members]), labels[members], reduction="none")
        weighted = (generation_weights(nll[members], temperature) * texts).sum()
        synthetic = parameter_gradient(weighted, list(head.parameters()), create_graph=True)
        losses.append(DISTANCES[name](real[number], synthetic))
    (expected,) = torch.autograd.grad(torch.stack(losses).mean(), nll)

    def matched(world: World) -> Matched:
        local = np.arange(len(labels))[::-1][world.rank :: world.size].copy()
        own = HeadGradients(rows[local], labels_B[local], len(present))
        return match_gradients(real, nll.detach(), labels_B, local, own, temperature, world)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dilm.matching.loss.gradient_distance", DISTANCES[name])
        found = on_ranks(ranks, matched)
    for one in found:
        torch.testing.assert_close(one.losses_C, torch.stack(losses).detach(), rtol=0, atol=1e-8)
        torch.testing.assert_close(one.slopes_B, expected, rtol=1e-7, atol=1e-8)


@given(sizes, st.sampled_from([0.5, 1.0, 3.0]))
def test_the_cosines_slopes_are_those_of_its_closed_form(
    size: tuple[int, int, int, bool, int], temperature: float
) -> None:
    """∂L/∂nll = -a s / T, since the softmax's other term, Σ a s, vanishes where a gradient's length doesn't count."""
    features, head, labels = problem(*size)
    rows = head_gradients(features, head(features), labels, size[3]).detach()
    generator = torch.Generator().manual_seed(size[-1] + 1)
    nll = torch.rand(len(labels), generator=generator, dtype=torch.float64)
    real = torch.randn(rows.shape[1], generator=generator, dtype=torch.float64)
    one_label = np.zeros(len(labels), dtype=int)
    gradients = HeadGradients(rows, one_label, 1)
    found = match_gradients(real[None], nll, one_label, np.arange(len(labels)), gradients, temperature, World())

    weights = generation_weights(nll, temperature)
    length, unit, real_unit = (weights @ rows).norm(), F.normalize(weights @ rows, dim=0), F.normalize(real, dim=0)
    slope = (unit * (real_unit @ unit) - real_unit) / length
    torch.testing.assert_close(found.slopes_B, -weights / temperature * (rows @ slope), rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(found.weights_B, weights, rtol=0, atol=1e-12)


def test_generator_gradient_equals_finite_differences() -> None:
    features, head, labels = problem(5, 3, 4, True, 0)
    rows = head_gradients(features, head(features), labels).detach()
    real = torch.randn(rows.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    nll = torch.rand(5, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    assert torch.autograd.gradcheck(lambda values: matching_loss(real, rows, generation_weights(values, 0.7)), nll)


@given(st.lists(st.floats(0, 50), min_size=1, max_size=8), st.floats(0.1, 10))
def test_weights_are_normalised_probabilities(values: list[float], temperature: float) -> None:
    nll = torch.tensor(values, dtype=torch.float64)
    weights = generation_weights(nll, temperature)
    expected = torch.exp(-(nll - nll.min()) / temperature)
    assert torch.allclose(weights, expected / expected.sum())


def test_loss_is_zero_for_equal_directions_and_two_for_opposite_ones() -> None:
    rows = torch.eye(3, dtype=torch.float64)
    weights = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    assert matching_loss(7 * weights, rows, weights).item() == pytest.approx(0)
    assert matching_loss(-weights, rows, weights).item() == pytest.approx(2)
