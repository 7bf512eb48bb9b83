"""Which rows are drawn: candidates of every label, and endless mini-batches, shuffled or one text of each cluster."""

from collections.abc import Iterator
from typing import TypeVar

import numpy as np

from dilm.data.text_table import TextTable


def diverse_batches(clusters_N: np.ndarray, size: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Endless batches of `size` row indices, one from each of `size` clusters.

    Each cluster's texts are passed in a shuffled order, again and again; where there are fewer clusters than
    `size`, the rest is drawn from all rows.
    """
    members = [np.flatnonzero(clusters_N == cluster) for cluster in np.unique(clusters_N)]
    queues = [_endless(rows, generator) for rows in members]
    everything = _endless(np.arange(len(clusters_N)), generator)
    while True:
        batch = [next(queue) for queue in queues[:size]]
        yield np.array(batch + [next(everything) for _ in range(size - len(batch))])


def plain_batches(n: int, size: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Endless batches of `size` of `n` row indices, in shuffled passes."""
    rows, left = np.arange(n), np.arange(0)
    while True:
        while len(left) < size:
            left = np.concatenate([left, generator.permutation(rows)])
        yield left[:size]
        left = left[size:]


def _endless(rows: np.ndarray, generator: np.random.Generator) -> Iterator[int]:
    while True:
        yield from generator.permutation(rows)


T = TypeVar("T")


def candidate_rows(table: TextTable, n: int | None, seed: int) -> np.ndarray:
    """Row indices, ascending, of `n` rows drawn with equal shares for the labels; all rows where n is None."""
    if n is None or n >= len(table):
        return np.arange(len(table))
    generator = np.random.default_rng(seed)
    share = -(-n // len(table.rows_by_label))
    chosen = [
        generator.choice(rows, size=min(share, len(rows)), replace=False)
        for _, rows in sorted(table.rows_by_label.items())
    ]
    return np.sort(np.concatenate(chosen))


def skip(batches: Iterator[T], n: int) -> Iterator[T]:
    """The same endless batches after the first `n`, to go on from a checkpoint."""
    for _ in range(n):
        next(batches)
    return batches
