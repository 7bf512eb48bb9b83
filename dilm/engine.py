"""One small interface for a training step: backward, clip, step, schedule. Plain torch, one process."""

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup

from dilm.config import OptimizerConfig

NO_DECAY_DIMENSIONS = 1  # biases and normalisation weights, the parameters with one dimension, are not decayed


class Engine(Protocol):
    """What a training loop needs of whatever holds the weights."""

    model: nn.Module

    def step(self, loss: Tensor) -> float:
        """Back-propagate a loss and update; the gradient's norm before clipping."""
        ...


class TorchEngine:
    """AdamW with linear warm-up and cosine decay, gradients clipped by their norm."""

    def __init__(self, model: nn.Module, config: OptimizerConfig, steps: int) -> None:
        self.model = model
        self.clip = config.clip
        # Fused: a third of the time and none of the temporary copies of every parameter.
        groups = parameter_groups(model.parameters(), config.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=True)
        self.schedule = get_cosine_schedule_with_warmup(self.optimizer, round(config.warmup * steps), steps)

    def step(self, loss: Tensor) -> float:
        """Back-propagate a loss and update; the gradient's norm before clipping."""
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)


def parameter_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, object]]:
    """Parameters with weight decay, and those of one dimension without."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() > NO_DECAY_DIMENSIONS], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() <= NO_DECAY_DIMENSIONS], "weight_decay": 0.0},
    ]
