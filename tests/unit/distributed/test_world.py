"""Who is who: the launcher's variables, and the shares of work."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dilm.core.errors import ConfigError
from dilm.distributed.world import ALONE, World, read_world

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}


def test_the_launchers_variables_are_read() -> None:
    assert read_world(TORCHRUN) == World(rank=1, size=4, local_rank=1)
    assert read_world({}) == ALONE
    assert read_world({**TORCHRUN, "WORLD_SIZE": "1", "RANK": "0"}) == ALONE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MASTER_ADDR": "", "MASTER_PORT": ""}, "WORLD_SIZE is 4, but MASTER_ADDR, MASTER_PORT not set"),
        ({"RANK": "4"}, "RANK is 4, but WORLD_SIZE is 4"),
        ({"WORLD_SIZE": "four"}, "WORLD_SIZE is 'four'; expected a number"),
    ],
)
def test_incomplete_variables_are_named(changes: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_world({**TORCHRUN, **changes})


@given(st.integers(0, 50), st.integers(1, 7))
def test_shares_are_disjoint_and_interleave_back(n: int, size: int) -> None:
    worlds = [World(rank, size) for rank in range(size)]
    shares = [[f"text {index}" for index in world.shard(n)] for world in worlds]
    assert worlds[0].interleave(shares) == [f"text {index}" for index in range(n)]


def test_one_process_tells_itself() -> None:
    tensor = torch.arange(3.0)
    assert ALONE.main
    assert ALONE.broadcast("value") == "value"
    assert ALONE.all_gather(5) == [5]
    assert torch.equal(ALONE.all_reduce(tensor), tensor)
    assert ALONE.main_first(lambda: 7) == 7
    ALONE.barrier()
