"""Token sequences into padded tensors, and batches of like length.

Shape suffixes: B sequences, L tokens.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor


def pad(
    sequences: Sequence[Sequence[int]], pad_token: int, device: torch.device, left: bool = False
) -> tuple[Tensor, Tensor]:
    """Sequences padded to the longest, on the right unless `left`: ids_BL (int64) and mask_BL (1: a real token).

    The mask comes from the lengths, not from the pad token, which some models use as an ordinary token too.
    """
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    ids_BL = torch.full((len(sequences), int(lengths.max())), pad_token)
    for row, sequence in enumerate(sequences):
        start = ids_BL.shape[1] - len(sequence) if left else 0
        ids_BL[row, start : start + len(sequence)] = torch.as_tensor(sequence)
    mask_BL = (torch.arange(ids_BL.shape[1]) < lengths[:, None]).long()
    mask_BL = mask_BL.flip(1) if left else mask_BL
    return ids_BL.to(device), mask_BL.to(device)


def by_length(lengths: Sequence[int], tokens: int) -> Iterator[np.ndarray]:
    """Row indices in batches of like length, longest first, each at most `tokens` tokens with its padding."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    start = 0
    while start < len(order):
        size = max(1, tokens // max(1, lengths[order[start]]))
        yield order[start : start + size]
        start += size


def deal(lengths: Sequence[int], hands: int) -> list[np.ndarray]:
    """Row indices dealt out, longest first, so that every hand has about as many tokens."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    return [order[hand::hands] for hand in range(hands)]
