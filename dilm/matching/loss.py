"""Gradient matching: how alike are the learner's gradients on real and on synthetic text? (paper, section 3.2)

Shape suffixes: B texts of one label, C labels, D features, P = C*D (+ C) parameters of a linear head.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def head_gradients(features_BD: Tensor, logits_BC: Tensor, labels_B: Tensor, has_bias: bool = True) -> Tensor:
    """Gradient of each text's cross-entropy with respect to a linear head, as rows grads_BP.

    With the residual r = softmax(logits) - onehot(y) the gradient is [r ⊗ h, r], so no backward pass is needed.
    The weight's entries come first, row by row, then the bias's.
    """
    residual_BC = logits_BC.softmax(-1) - F.one_hot(labels_B, logits_BC.shape[-1]).to(logits_BC.dtype)
    weight_BP = torch.einsum("bc,bd->bcd", residual_BC, features_BD).flatten(1)
    return torch.cat([weight_BP, residual_BC], dim=1) if has_bias else weight_BP


def generation_weights(nll_B: Tensor, temperature: float = 1.0) -> Tensor:
    """How much each synthetic text counts: softmax(-nll / T), its generation probability normalised in the batch."""
    return F.softmax(-nll_B / temperature, dim=0)


def matching_loss(real_P: Tensor, synthetic_BP: Tensor, weights_B: Tensor) -> Tensor:
    """One minus the cosine between the real and the weighted synthetic gradient (scalar, in 0..2).

    The generator is reached through `weights_B` alone: text is discrete, so the rows are constants.
    """
    return gradient_distance(real_P, weights_B @ synthetic_BP)


def gradient_distance(real_P: Tensor, synthetic_P: Tensor) -> Tensor:
    """One minus the cosine between two gradients (scalar, in 0..2)."""
    return 1 - F.cosine_similarity(real_P, synthetic_P, dim=0)


def distance_slope(real_P: Tensor, synthetic_P: Tensor) -> Tensor:
    """Derivative of `gradient_distance` with respect to the synthetic gradient, slope_P."""
    length = synthetic_P.norm()
    unit_P = synthetic_P / length
    real_unit_P = F.normalize(real_P, dim=0)
    return (unit_P * (real_unit_P @ unit_P) - real_unit_P) / length


def nll_slopes(products_B: Tensor, weights_B: Tensor, temperature: float = 1.0) -> Tensor:
    """Derivative of the matching loss with respect to the nll of a label's texts, slopes_B.

    `products_B` are s_b = ∂L/∂a_b, each text's gradient times the `distance_slope` at the weighted sum over *all* of
    the label's texts; they and `weights_B` may be those of any part of them, so that the texts can be cut in parts and
    spread over processes. The softmax gives ∂L/∂nll_b = -a_b (s_b - Σ a s) / T; the sum is zero, since the cosine
    ignores a gradient's length.
    """
    return -weights_B / temperature * products_B


def parameter_gradient(loss: Tensor, parameters: Sequence[Tensor], create_graph: bool = False) -> Tensor:
    """Gradient of `loss` with respect to any parameters, flattened and joined: the route for any head.

    For a linear head it equals a row of `head_gradients`; with `create_graph` it can be differentiated again.
    """
    gradients = torch.autograd.grad(
        loss, list(parameters), create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return torch.cat([gradient.flatten() for gradient in gradients])
