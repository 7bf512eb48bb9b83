"""Seeds that leave no trace, and precision."""

import pytest
import torch

from dilm.device import autocast, out_of_memory, pick_device, seeded
from dilm.errors import TrainingError

CPU = torch.device("cpu")


def test_seeded_block_is_repeatable_and_leaves_the_state_as_it_was() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with seeded(7, CPU):
        first = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with seeded(7, CPU):
        assert torch.equal(torch.rand(3), first)


def test_auto_takes_what_is_there() -> None:
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_autocast_follows_the_precision() -> None:
    product = torch.ones(2, 2) @ torch.ones(2, 2)
    with autocast(CPU, "bf16"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with autocast(CPU, "fp32"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == product.dtype == torch.float32


def test_full_memory_is_told_with_advice() -> None:
    with pytest.raises(TrainingError, match=r"out of memory .* Raise engine\.accumulate"), out_of_memory():
        torch.zeros(2**50)
    with pytest.raises(RuntimeError, match="size"), out_of_memory():
        torch.zeros(2) @ torch.zeros(3)
