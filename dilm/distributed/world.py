"""The processes of one run: which of them this is, and what they tell each other.

The launcher (torchrun, or srun through the job's own start) says who is who by RANK, WORLD_SIZE, LOCAL_RANK,
MASTER_ADDR and MASTER_PORT; without them a run is one process. Objects that are shared travel between processes of
the same run alone. Torch is imported by the methods that need it, so that artifacts can be made without it.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from dilm.core.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
TIMEOUT = timedelta(days=1)  # of a collective call: the others wait while the main rank clusters a corpus
T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among those of its run. Every method that tells or sums is collective: all ranks must call it."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def shard(self, n: int) -> range:
        """Every `size`-th of `n` indices, beginning with the rank: this process's share of them."""
        return range(self.rank, n, self.size)

    def broadcast(self, value: T) -> T:
        """The main process's value, on every rank."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def all_gather(self, value: T) -> list[T]:
        """Every rank's value, in the order of ranks, on every rank."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        boxes: list[Any] = [None] * self.size
        dist.all_gather_object(boxes, value)
        return boxes

    def any(self, *flags: bool) -> list[bool]:
        """Which of some flags is set on any rank, by one small message."""
        if self.size == 1:
            return list(flags)
        import torch
        import torch.distributed as dist

        raised = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(raised, dist.ReduceOp.MAX)
        return [bool(flag) for flag in raised]

    def all_reduce(self, tensor: "Tensor") -> "Tensor":
        """Sum over the ranks, as a new tensor."""
        if self.size == 1:
            return tensor
        import torch.distributed as dist

        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    def interleave(self, shares: Sequence[Sequence[T]]) -> list[T]:
        """The inverse of `shard`: shares of every rank, back in the order of their indices."""
        n = sum(map(len, shares))
        return [shares[index % self.size][index // self.size] for index in range(n)]

    def main_first(self, make: Callable[[], T]) -> T:
        """Call `make` on the main process, then on the others, which find in the cache what it has put there."""
        made = make() if self.main else None
        self.barrier()
        return make() if made is None else made

    def barrier(self) -> None:
        """Go on once every rank has come here."""
        if self.size > 1:
            import torch.distributed as dist

            dist.barrier()


ALONE = World()


def read_world(environment: Mapping[str, str]) -> World:
    """The process's place, as the launcher's variables tell it. Raises ConfigError where they are incomplete."""
    size = _number(environment, "WORLD_SIZE", 1)
    if size == 1:
        return ALONE
    missing = [name for name in VARIABLES if not environment.get(name)]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE is {size}, but {', '.join(missing)} not set; start the processes with torchrun or srun, or "
            "unset WORLD_SIZE for a run of one process."
        )
    world = World(_number(environment, "RANK", 0), size, _number(environment, "LOCAL_RANK", 0))
    if not 0 <= world.rank < size:
        raise ConfigError(f"RANK is {world.rank}, but WORLD_SIZE is {size}; ranks count from 0.")
    return world


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    found = environment.get(name) or str(default)
    if not found.isdecimal():
        raise ConfigError(f"{name} is {found!r}; expected a number, as torchrun and srun set it.")
    return int(found)


@contextmanager
def joined() -> Iterator[World]:
    """The world of this process, with its group open for the block."""
    world = read_world(os.environ)
    if world.size == 1:
        yield world
        return
    import torch.distributed as dist

    from dilm.distributed.device import collective_backend, take_own_gpu

    take_own_gpu()
    dist.init_process_group(collective_backend(), timeout=TIMEOUT)
    try:
        yield world
    finally:
        dist.destroy_process_group()
