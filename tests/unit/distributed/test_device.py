"""Seeds that leave no trace, and precision."""

from pathlib import Path

import pytest
import torch

from dilm.core.errors import TrainingError
from dilm.distributed import device
from dilm.distributed.device import autocast, multiplies_bf16, out_of_memory, pick_device, seeded

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


@pytest.mark.parametrize(("fast", "precision", "told"), [(False, "bf16", 1), (False, "fp32", 0), (True, "bf16", 0)])
def test_emulated_bf16_is_told_once(
    fast: bool, precision: str, told: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(device, "multiplies_bf16", lambda _: fast)
    device._warn_of_slow_bf16.cache_clear()
    for _ in range(2):
        autocast(CPU, precision)
    assert capsys.readouterr().err.count("give every command precision=fp32") == told
    device._warn_of_slow_bf16.cache_clear()


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="reads /proc/cpuinfo")
def test_processors_that_say_bf16_have_it() -> None:
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    if any("bf16" in flag for flag in flags):
        assert multiplies_bf16(CPU)
    elif "avx2" in flags and "avx512f" not in flags:
        assert not multiplies_bf16(CPU)


def test_a_torch_without_onednn_has_no_fast_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.delattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", raising=False)
    assert not multiplies_bf16(CPU)
    assert multiplies_bf16(torch.device("cuda"))


def test_full_memory_is_told_with_advice() -> None:
    with pytest.raises(TrainingError, match=r"out of memory .* Raise engine\.accumulate"), out_of_memory():
        torch.zeros(2**50)
    with pytest.raises(RuntimeError, match="size"), out_of_memory():
        torch.zeros(2) @ torch.zeros(3)
