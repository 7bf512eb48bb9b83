"""What every training steps with: AdamW (Loshchilov and Hutter 2019), linear warm-up, cosine decay.

The paper's learning rate, warm-up, weight decay and clipping of each training are the defaults of `OptimizerConfig`s.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_cosine_schedule_with_warmup

from dilm.config.schema import OptimizerConfig

NO_DECAY_DIMENSIONS = 1  # biases and normalisation weights, the parameters with one dimension, are not decayed
Microbatch = Callable[[], Tensor]  # computes the loss of one, a scalar ready for backward


class Step(NamedTuple):
    """What a step reports. Where `loss` is not finite, nothing was updated."""

    loss: float  # summed over microbatches and ranks
    norm: float  # 2-norm of the gradient, before clipping


def adamw(module: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW over a module's trained parameters, at the peak learning rate; `warmup_cosine` schedules it."""
    # Fused: a third of the time and none of the temporary copies of every parameter.
    return torch.optim.AdamW(parameter_groups(module.parameters(), config.weight_decay), lr=config.lr, fused=True)


def parameter_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, object]]:
    """Trained parameters as torch's two groups: with weight decay, and those of one dimension without."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() > NO_DECAY_DIMENSIONS], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() <= NO_DECAY_DIMENSIONS], "weight_decay": 0.0},
    ]


def warmup_cosine(optimizer: torch.optim.Optimizer, config: OptimizerConfig, steps: int) -> LRScheduler:
    """The schedule of the learning rate: linear warm-up, then half a cosine down to zero at `steps`.

    `config.warmup` is the share of the steps that warm up, 0 to 1. Step it once after each of the optimizer's steps.
    """
    return get_cosine_schedule_with_warmup(optimizer, round(config.warmup * steps), steps)
