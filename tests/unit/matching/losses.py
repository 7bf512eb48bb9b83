"""Matching losses to test with, and ranks as threads."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from dilm.distributed.world import World
from dilm.matching.loss import gradient_distance

Distance = Callable[[Tensor, Tensor], Tensor]
T = TypeVar("T")


def mean_squared(real_P: Tensor, synthetic_P: Tensor) -> Tensor:
    """Mean squared distance, in units of the real gradient's mean square.

    It depends on the synthetic gradient's length, so that no term of the softmax's derivative vanishes.
    """
    return (real_P - synthetic_P).square().mean() / real_P.square().mean()


DISTANCES: dict[str, Distance] = {"cosine": gradient_distance, "mean_squared": mean_squared}


@dataclass(frozen=True)
class Thread(World):
    """A rank that is a thread of this process."""

    barrier: Any = None
    boxes: list[Tensor] = field(default_factory=list)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        self.boxes[self.rank] = tensor
        self.barrier.wait(timeout=60)
        total = torch.stack(self.boxes).sum(0)
        self.barrier.wait(timeout=60)
        return total


def on_ranks(size: int, call: Callable[[World], T]) -> list[T]:
    """What each of so many ranks gives."""
    barrier, boxes = threading.Barrier(size), [torch.zeros(())] * size
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: call(Thread(rank, size, 0, barrier, boxes)), range(size)))
