"""What a step's data handling costs as the corpus grows: it should not, whereas a pass that filters does."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from benchmarks.plain import padded
from benchmarks.timing import Call, Contest, Done, cost
from dilm.data.samplers import plain_batches
from dilm.data.text_table import table
from dilm.matching.batches import real_batches
from dilm.models import learner, likelihood
from dilm.models.batching import by_length, pad

SIZES = (1_000, 10_000, 100_000, 1_000_000)
BATCH, REAL_DPC, LABELS = 64, 200, 2
STEPS = 100  # a call
GROWTH = 2.0  # how much dearer a step may be among the most rows than among the fewest
PAD, CPU = 0, torch.device("cpu")


def contest(keys: Sequence[str], small: bool, folder: Path) -> Contest:
    """Steps a second of pre-training and matching without their models, and of a filter for each label."""
    sizes = (100, 1_000) if small else SIZES
    kinds = {"pretrain": _pretrain, "match": _match, "filtered": _filtered}
    sides: dict[str, Callable[[], Call]] = {
        f"{kind}, {n:,} rows": partial(prepare, n) for kind, prepare in kinds.items() for n in sizes
    }
    goals = [
        cost(f"{kind}, {sizes[-1]:,} rows", f"{kind}, {sizes[0]:,} rows", None if kind == "filtered" else GROWTH)
        for kind in kinds
    ]
    return Contest("scaling", "steps", sides, goals, note="data handling alone, on synthetic rows")


def _sequences(n: int) -> list[list[int]]:
    """Token sequences of 5 to 60 tokens."""
    return [list(range(1, 6 + int(length))) for length in np.random.default_rng(0).integers(55, size=n)]


def _labels(n: int) -> np.ndarray:
    return np.random.default_rng(1).permutation(np.arange(n) % LABELS)


def _padded(sequences: Sequence[list[int]], budget: int) -> None:
    for rows in by_length([len(sequence) for sequence in sequences], budget):
        pad([sequences[row] for row in rows], PAD, CPU)


def _pretrain(n: int) -> Call:
    sequences = _sequences(n)
    batches = plain_batches(n, BATCH, np.random.default_rng(2))

    def call() -> Done:
        for rows in islice(batches, STEPS):
            _padded([sequences[row] for row in rows], likelihood.CPU_TOKENS)
        return Done(STEPS)

    return call


def _match(n: int) -> Call:
    """Real batches out of the whole corpus: with representative sets they are out of a few hundred rows."""
    tokens, labels_N = _sequences(n), _labels(n)
    whole = table(("text",), [("",)] * n, labels_N)
    batches = real_batches([[rows for _, rows in sorted(whole.rows_by_label.items())]], REAL_DPC, ("bench",))

    def call() -> Done:
        for drawn in islice(batches, STEPS):
            rows = np.concatenate(drawn)
            np.bincount(labels_N[rows], minlength=LABELS)
            _padded([tokens[row] for row in rows], learner.TOKENS_PER_BATCH)
        return Done(STEPS)

    return call


def _filtered(n: int) -> Call:
    """A pass over all rows for each label, as the released scripts sort out a batch's candidates."""
    rows = [{"input_ids": ids, "labels": label} for ids, label in zip(_sequences(n), _labels(n).tolist(), strict=True)]
    random = np.random.default_rng(3)

    def call() -> Done:
        for label in range(LABELS):
            kept = list(filter(lambda row: row["labels"] == label, rows))
            chosen = [kept[row]["input_ids"] for row in random.choice(len(kept), min(REAL_DPC, len(kept)), False)]
            padded(chosen, PAD, CPU)
        return Done(1)

    return call
