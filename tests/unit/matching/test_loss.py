"""The closed form against autograd, and the loss against its definition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from dilm.matching.loss import (
    distance_slope,
    generation_weights,
    head_gradients,
    matching_loss,
    nll_slopes,
    parameter_gradient,
)

sizes = st.tuples(st.integers(1, 6), st.integers(2, 5), st.integers(1, 7), st.booleans(), st.integers(0, 2**31))


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


@given(sizes, st.integers(1, 4), st.sampled_from([0.5, 1.0, 3.0]))
def test_slopes_of_cut_batches_equal_autograd(
    size: tuple[int, int, int, bool, int], cuts: int, temperature: float
) -> None:
    """However the texts are spread, each part's slopes are the gradient of the whole batch's loss."""
    features, head, labels = problem(*size)
    rows = head_gradients(features, head(features), labels, size[3]).detach()
    generator = torch.Generator().manual_seed(size[-1] + 1)
    nll = torch.rand(len(labels), generator=generator, dtype=torch.float64, requires_grad=True)
    real = torch.randn(rows.shape[1], generator=generator, dtype=torch.float64)
    (expected,) = torch.autograd.grad(matching_loss(real, rows, generation_weights(nll, temperature)), nll)

    weights = generation_weights(nll.detach(), temperature)
    parts = [slice(cut, None, cuts) for cut in range(cuts)]
    synthetic = torch.stack([weights[part] @ rows[part] for part in parts]).sum(0)
    for part in parts:
        found = nll_slopes(rows[part] @ distance_slope(real, synthetic), weights[part], temperature)
        assert torch.allclose(found, expected[part], rtol=1e-7, atol=1e-8)


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
