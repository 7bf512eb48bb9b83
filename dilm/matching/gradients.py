"""Gradients of the learner's loss, text by text, and what gradient matching needs of them: sums and products.

Two routes give the same numbers (paper, section 3.2). For a single linear layer each text's gradient has a closed form,
with no backward pass. For any other parameters one backward pass gives the sums and a double one the products, and no
single text's gradient is ever in memory.

Shape suffixes: B texts, C labels, D features, P matched parameters.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dilm.core.errors import ConfigError
from dilm.distributed.world import World
from dilm.models.batching import Ids, by_length
from dilm.models.learner import CPU_TOKENS, Learner, forward_all, text_losses


def head_gradients(features_BD: Tensor, logits_BC: Tensor, labels_B: Tensor, has_bias: bool = True) -> Tensor:
    """Gradient of each text's cross-entropy with respect to a linear head, as rows grads_BP.

    With the residual r = softmax(logits) - onehot(y) the gradient is [r ⊗ h, r], so no backward pass is needed.
    P = C*D, or C*D + C with a bias: the weight's entries come first, row by row, then the bias's.
    """
    residual_BC = logits_BC.softmax(-1) - F.one_hot(labels_B, logits_BC.shape[-1]).to(logits_BC.dtype)
    weight_BP = torch.einsum("bc,bd->bcd", residual_BC, features_BD).flatten(1)
    return torch.cat([weight_BP, residual_BC], dim=1) if has_bias else weight_BP


def parameter_gradient(loss: Tensor, parameters: Sequence[Tensor], create_graph: bool = False) -> Tensor:
    """Gradient of a scalar loss with respect to any parameters, flattened and joined, gradient_P: for any head.

    For a linear head it equals a row of `head_gradients`; with `create_graph` it can be differentiated again.
    """
    gradients = torch.autograd.grad(
        loss, list(parameters), create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return torch.cat([gradient.flatten() for gradient in gradients])


@torch.no_grad()
def text_gradients(learner: Learner, tokens: Sequence[Ids], labels_B: np.ndarray, precision: str) -> Tensor:
    """Gradient of each text's loss with respect to the linear head, gradients_BP in fp32, the learner in eval mode."""
    features_BD = forward_all(learner, tokens, "features", precision).to(learner.device)
    labels = torch.as_tensor(labels_B, device=learner.device)
    return head_gradients(features_BD, learner.head(features_BD), labels, learner.head.bias is not None)


def label_means(gradients_BP: Tensor, labels_B: np.ndarray, n_labels: int) -> Tensor:
    """Mean gradient of each label's texts, means_CP; every label must have a text, or its row is NaN."""
    return torch.stack([gradients_BP[labels_B == label].mean(0) for label in range(n_labels)])


GPU_TOKENS = 8192  # of a batch that is back-propagated twice, padding included


class TextGradients(Protocol):
    """The gradients of some texts' losses, each under its label, as the two linear maps that matching needs.

    `products` is the transpose of `sums`: the derivative of any function of the sums with respect to the weights.
    """

    def sums(self, weights_B: Tensor) -> Tensor:
        """The weighted sum of each label's gradients, sums_CP."""
        ...

    def products(self, directions_CP: Tensor) -> Tensor:
        """The product of each text's gradient with its label's direction, products_B."""
        ...


class HeadGradients:
    """Of a head that is one linear layer, in closed form; `rows_BP` as from `text_gradients`."""

    def __init__(self, rows_BP: Tensor, labels_B: np.ndarray, n_labels: int) -> None:
        self.rows_BP = rows_BP
        self.labels_B = torch.as_tensor(labels_B, device=rows_BP.device)
        self.n_labels = n_labels

    def sums(self, weights_B: Tensor) -> Tensor:
        """The weighted sum of each label's gradients, sums_CP."""
        onehot_BC = F.one_hot(self.labels_B, self.n_labels).to(self.rows_BP.dtype)
        return onehot_BC.T @ (weights_B[:, None] * self.rows_BP)

    def products(self, directions_CP: Tensor) -> Tensor:
        """The product of each text's gradient with its label's direction, products_B."""
        return (self.rows_BP @ directions_CP.T).gather(1, self.labels_B[:, None])[:, 0]


class AutogradGradients:
    """Of any parameters, by back-propagation through the learner in eval mode.

    Attention must be eager: other kernels can't be differentiated twice. A batch has texts of one label alone.
    """

    def __init__(
        self,
        learner: Learner,
        tokens: Sequence[Ids],
        labels_B: np.ndarray,
        parameters: list[nn.Parameter],
        precision: str,
    ) -> None:
        self.learner, self.tokens, self.labels_B = learner, tokens, labels_B
        self.parameters, self.precision = parameters, precision

    def _batches(self) -> Iterator[tuple[int, np.ndarray]]:
        """Batches of one label's texts of like length: the label, and their rows."""
        budget = CPU_TOKENS if self.learner.device.type == "cpu" else GPU_TOKENS
        for label in np.unique(self.labels_B):
            rows = np.flatnonzero(self.labels_B == label)
            for part in by_length([len(self.tokens[row]) for row in rows.tolist()], budget):
                yield int(label), rows[part]

    def _losses(self, rows: np.ndarray) -> Tensor:
        return text_losses(
            self.learner, [self.tokens[row] for row in rows.tolist()], self.labels_B[rows], self.precision
        )

    def sums(self, weights_B: Tensor) -> Tensor:
        """The weighted sum of each label's gradients, sums_CP."""
        size = sum(parameter.numel() for parameter in self.parameters)
        sums_CP = torch.zeros(self.learner.n_labels, size, device=weights_B.device, dtype=self.parameters[0].dtype)
        with _evaluating(self.learner):
            for label, rows in self._batches():
                sums_CP[label] += parameter_gradient((weights_B[rows] * self._losses(rows)).sum(), self.parameters)
        return sums_CP

    def products(self, directions_CP: Tensor) -> Tensor:
        """The product of each text's gradient with its label's direction, products_B."""
        products_B = torch.zeros(len(self.tokens), device=directions_CP.device, dtype=directions_CP.dtype)
        with _evaluating(self.learner):
            for label, rows in self._batches():
                losses_B = self._losses(rows)
                # The gradient of a weighted loss is linear in the weights, and its derivative with respect to one of
                # them is the gradient of that text's loss.
                weights_B = torch.ones_like(losses_B, requires_grad=True)
                sum_P = parameter_gradient((weights_B * losses_B).sum(), self.parameters, create_graph=True)
                (products_B[rows],) = torch.autograd.grad(sum_P @ directions_CP[label], weights_B)
        return products_B


@contextmanager
def _evaluating(learner: Learner) -> Iterator[None]:
    """The learner in eval mode, with gradients, for the block."""
    was_training = learner.training
    learner.eval()
    try:
        with torch.enable_grad():
            yield
    finally:
        learner.train(was_training)


def matched_parameters(learner: Learner, which: str) -> list[nn.Parameter] | None:
    """The parameters whose gradient is matched; None where they are one linear layer, which needs no backward pass.

    `which` is `match.parameters`: `classifier`, the head with all its layers, as in the paper; `last_layers:k`, the
    encoder's last k layers and what comes after them; `all`. Raises ConfigError where the encoder has fewer layers.
    """
    encoder = list(learner.encoder.parameters())
    encoder_ids = {id(parameter) for parameter in encoder}
    head = [parameter for parameter in learner.parameters() if id(parameter) not in encoder_ids]
    if which == "classifier":
        last = {id(parameter) for parameter in learner.head.parameters()}
        return None if {id(parameter) for parameter in head} == last else head
    first = 0
    if which != "all":
        layers = max((part for part in learner.encoder.modules() if isinstance(part, nn.ModuleList)), key=len)
        k = int(which.partition(":")[2])
        if k > len(layers):
            raise ConfigError(
                f"match.parameters is {which!r}, but learner {learner.config.name!r} has only {len(layers)} layers."
            )
        start = id(next(layers[-k].parameters()))
        first = next(place for place, parameter in enumerate(encoder) if id(parameter) == start)
    return [*encoder[first:], *head]


def gradients_of(
    learner: Learner,
    tokens: Sequence[Ids],
    labels_B: np.ndarray,
    parameters: list[nn.Parameter] | None,
    precision: str,
) -> TextGradients:
    """The gradients of tokenised texts with respect to `matched_parameters`, the learner in eval mode."""
    if parameters is None:
        return HeadGradients(text_gradients(learner, tokens, labels_B, precision), labels_B, learner.n_labels)
    return AutogradGradients(learner, tokens, labels_B, parameters, precision)


def mean_gradients(
    learner: Learner,
    tokens: Sequence[Sequence[int]],
    labels_B: np.ndarray,
    parameters: list[nn.Parameter] | None,
    precision: str,
    world: World,
) -> Tensor:
    """Mean gradient of each label's texts, means_CP, on every rank. Collective: ranks share the texts."""
    local = list(world.shard(len(tokens)))
    gradients = gradients_of(learner, [tokens[row] for row in local], labels_B[local], parameters, precision)
    shares_b = 1 / np.bincount(labels_B, minlength=learner.n_labels)[labels_B[local]]
    return world.all_reduce(gradients.sums(torch.as_tensor(shares_b, dtype=torch.float32, device=learner.device)))
