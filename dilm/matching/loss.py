"""The matching loss, and its derivative with respect to the likelihood of synthetic texts (paper, section 3.2).

`gradient_distance` is all that one changes to match with another loss: everything else follows from it by autograd.

Shape suffixes: B synthetic texts of all labels, C labels, P matched parameters of the learner.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dilm.distributed.world import World
from dilm.matching.gradients import TextGradients


def gradient_distance(real_P: Tensor, synthetic_P: Tensor) -> Tensor:
    """One minus the cosine between one label's real and synthetic gradient: a scalar in 0..2.

    `synthetic_P` is differentiated by autograd; any differentiable function of the two with a scalar value will do.
    """
    return 1 - F.cosine_similarity(real_P, synthetic_P, dim=0)


def generation_weights(nll_B: Tensor, temperature: float = 1.0) -> Tensor:
    """How much each text of one label counts: softmax(-nll / T), its generation probability normalised in the batch.

    `nll_B` is in nats a token; the weights sum to one. They are how the loss reaches the generator: text is discrete.
    """
    return F.softmax(-nll_B / temperature, dim=0)


class Matched(NamedTuple):
    """What one matching of gradients gives, the same on every rank."""

    losses_C: Tensor  # `gradient_distance` of each label
    slopes_B: Tensor  # derivative of the labels' mean loss with respect to each text's nll, by the token
    weights_B: Tensor  # `generation_weights` of each label's texts


def match_gradients(
    real_CP: Tensor,
    nll_B: Tensor,
    labels_B: np.ndarray,
    local: np.ndarray,
    gradients: TextGradients,
    temperature: float,
    world: World,
) -> Matched:
    """Match the weighted gradient of each label's synthetic texts with the real one. Collective.

    All ranks give the same `real_CP`, `nll_B` and `labels_B`, of all texts. `local` are the rows of those texts whose
    learner gradients, `gradients`, this rank computes. The chain rule is taken in three steps, since what joins the
    ranks is small: the synthetic gradients, and one number a text. The texts' gradients are never in one graph.
    """
    nll_B = nll_B.detach().requires_grad_()
    with torch.enable_grad():
        weights_B = torch.zeros_like(nll_B)
        for label in range(len(real_CP)):
            rows = torch.as_tensor(np.flatnonzero(labels_B == label), device=nll_B.device)
            weights_B = weights_B.index_put((rows,), generation_weights(nll_B[rows], temperature))
    synthetic_CP = world.all_reduce(gradients.sums(weights_B.detach()[local]))
    losses_C, slopes_CP = _distances(real_CP, synthetic_CP)
    products_B = torch.zeros_like(nll_B)
    products_B[local] = gradients.products(slopes_CP)  # derivative with respect to the weights
    (slopes_B,) = torch.autograd.grad(weights_B, nll_B, world.all_reduce(products_B))
    return Matched(losses_C, slopes_B / len(real_CP), weights_B.detach())


def _distances(real_CP: Tensor, synthetic_CP: Tensor) -> tuple[Tensor, Tensor]:
    """`gradient_distance` of each label, losses_C, and its derivative by the synthetic gradient, slopes_CP.

    One label at a time: with P all of a learner's parameters a label's graph takes gigabytes.
    """
    losses, slopes = [], []
    for real_P, synthetic_P in zip(real_CP, synthetic_CP, strict=True):
        with torch.enable_grad():
            variable_P = synthetic_P.detach().requires_grad_()
            loss = gradient_distance(real_P, variable_P)
        slopes += torch.autograd.grad(loss, variable_P)
        losses.append(loss.detach())
    return torch.stack(losses), torch.stack(slopes)
