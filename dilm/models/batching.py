"""Token sequences, packed; padded into tensors; and in batches of like length.

Shape suffixes: B sequences, L tokens.
"""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from dilm.core.hashing import cached
from dilm.distributed.device import to_device

ROWS = 4096  # tokenised at a time
Ids = Sequence[int] | np.ndarray  # of tokens; or lengths


class Tokens(Sequence[np.ndarray]):
    """Token sequences end to end in one int32 array: four bytes a token and sixteen a text."""

    def __init__(self, flat: np.ndarray, lengths: np.ndarray) -> None:
        self.flat, self.lengths = flat, lengths.astype(np.int64)  # all tokens, int32; how many each sequence has
        self.ends = np.cumsum(self.lengths)

    @classmethod
    def of(cls, sequences: Iterable[Ids]) -> "Tokens":
        """Sequences, packed. Those of an iterator are packed one by one, and need not be in memory as lists."""
        if isinstance(sequences, Tokens):
            return sequences
        arrays = [np.asarray(ids, dtype=np.int32) for ids in sequences]
        return cls(np.concatenate([np.zeros(0, np.int32), *arrays]), np.array([len(ids) for ids in arrays]))

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, row: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, row: slice) -> "Tokens": ...

    def __getitem__(self, row: int | slice) -> "np.ndarray | Tokens":
        """One sequence, as a view of all; or the sequences of a slice."""
        if isinstance(row, slice):
            return self.take(range(len(self))[row])
        return self.flat[self.ends[row] - self.lengths[row] : self.ends[row]]

    def take(self, rows: Sequence[int] | np.ndarray) -> "Tokens":
        """The sequences with these numbers, in this order."""
        rows = np.asarray(rows, dtype=np.int64)
        lengths = self.lengths[rows]
        places = np.arange(lengths.sum()) + np.repeat(self.ends[rows] - np.cumsum(lengths), lengths)
        return Tokens(self.flat[places], lengths)

    def lists(self) -> list[list[int]]:
        """The sequences as plain lists."""
        return [ids.tolist() for ids in self]


def tokenized(tokenize: Callable[..., list[list[int]]], *columns: Sequence[object] | np.ndarray) -> Tokens:
    """Rows of these columns tokenised `ROWS` at a time, so that their lists are never in memory all at once."""
    starts = range(0, len(columns[0]), ROWS)
    return Tokens.of(chain.from_iterable(tokenize(*(column[at : at + ROWS] for column in columns)) for at in starts))


def kept_tokens(cache: Path, name: str, identity: dict[str, Any], make: Callable[[], Tokens]) -> Tokens:
    """The tokens that `identity` determines, made once and left on disk until they are read.

    Their file is one int32 array: the number of sequences, their lengths, their tokens.
    """

    def content() -> memoryview:
        made, stream = make(), io.BytesIO()
        np.save(stream, np.concatenate([[len(made)], made.lengths, made.flat]).astype(np.int32))
        return stream.getbuffer()

    stored = np.load(cached(cache / "tokens", f"{name}-*.npy", identity, content), mmap_mode="r")
    end = 1 + int(stored[0])
    return Tokens(stored[end:], stored[1:end])


def pad(sequences: Sequence[Ids], pad_token: int, device: torch.device, left: bool = False) -> tuple[Tensor, Tensor]:
    """Sequences padded to the longest, on the right unless `left`: ids_BL (int64) and mask_BL (1: a real token).

    The mask comes from the lengths, not from the pad token, which some models use as an ordinary token too.
    """
    tokens = Tokens.of(sequences)
    real_BL = np.arange(tokens.lengths.max()) < tokens.lengths[:, None]
    real_BL = real_BL[:, ::-1] if left else real_BL
    ids_BL = np.full(real_BL.shape, pad_token, np.int64)
    ids_BL[real_BL] = tokens.flat
    return to_device(torch.from_numpy(ids_BL), device), to_device(torch.from_numpy(real_BL.astype(np.int64)), device)


def by_length(lengths: Ids, tokens: int) -> Iterator[np.ndarray]:
    """Row indices in batches of like length, longest first, each at most `tokens` tokens with its padding."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    start = 0
    while start < len(order):
        size = max(1, tokens // max(1, lengths[order[start]]))
        yield order[start : start + size]
        start += size


def split_by_length(lengths: Ids, parts: int) -> list[np.ndarray]:
    """Row indices split into parts, dealt out longest first, so that every part has about as many tokens."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    return [order[part::parts] for part in range(parts)]
