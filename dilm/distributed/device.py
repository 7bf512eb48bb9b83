"""Devices, precision and seeds of torch. The only file that says "cuda"."""

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from dilm.core.errors import TrainingError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt, in bytes


def pick_device(name: str, threads: int | None = None) -> torch.device:
    """The device called `auto`, `cpu` or `cuda`; sets torch's CPU threads where a number is given.

    `auto` is the GPU where there is one. On a GPU this process's becomes the current one.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if threads is not None:
        torch.set_num_threads(threads)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        take_own_gpu()
    if name == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # without it DeepSpeed, which transformers imports, warns
        _keep_freed_memory()
    return torch.device(name)


def take_own_gpu() -> None:
    """Make this process's GPU the current one: that of its LOCAL_RANK, or the only one that is visible to it."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def current_gpu() -> int | None:
    """The index of the current GPU among the visible ones; None without any."""
    return torch.cuda.current_device() if torch.cuda.is_available() else None


def collective_backend() -> str:
    """The backend of torch.distributed: gloo for tensors on CPUs, and NCCL for those on GPUs where there are any."""
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def _keep_freed_memory() -> None:
    """Let glibc reuse freed memory rather than return it: otherwise every large tensor costs fresh zeroed pages.

    That is a fifth of a training step's time on a CPU.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The values on the device; copies to a GPU don't block, so that the CPU can go on."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def attention(device: torch.device) -> str:
    """The attention kernel by transformers' name: on a CPU the plain one, whose backward pass takes half as long."""
    return "eager" if device.type == "cpu" else "sdpa"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 autocast, or a context that does nothing for `fp32`. Weights and sums stay in fp32."""
    if precision == "bf16":
        _warn_of_slow_bf16(device)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 natively: GPUs do, and CPUs whose bf16 products oneDNN takes."""
    if device.type == "cuda":
        return True
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@cache
def _warn_of_slow_bf16(device: torch.device) -> None:
    """Say once that this processor emulates bf16. Never changed by itself: precision is part of what artifacts are."""
    if not multiplies_bf16(device):
        print(
            "precision=bf16: this processor has no instructions for it and takes about ten times as long as with fp32; "
            "stop, and give every command precision=fp32.",
            file=sys.stderr,
            flush=True,
        )


def to_fp32(values: torch.Tensor) -> torch.Tensor:
    """The values in fp32, or in fp64 where they are: losses are computed and summed in no less."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


@contextmanager
def out_of_memory() -> Iterator[None]:
    """Turn torch's error that memory is full, of a GPU or of the machine, into a TrainingError with advice."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise TrainingError(
            f"out of memory ({str(error).splitlines()[0].rstrip('.')}). Raise engine.accumulate (2, 4, ...), set "
            "engine.gradient_checkpointing=true, or lower pretrain.batch or match.synthetic_dpc."
        ) from error


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's generators (dropout, initialisation) for the block, and restore their states after it."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
