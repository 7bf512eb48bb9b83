"""K-centers of the written candidates of 20 data sets: scikit-learn's k-means, and a batched one beside it."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import Call, Contest, Done, speed, speed_up
from dilm.core.hashing import derive_seed
from dilm.selection.coreset import k_centers

SETS, TEXTS, CENTERS, WIDTH = 20, 2_000, 20, 768  # oversample=100 at dpc 20, BERT's embeddings
ITERATIONS = 300  # scikit-learn's limit, and its tolerance below
TOLERANCE = 1e-4
Choose = Callable[[Tensor, int], list[np.ndarray]]


def contest(keys: Sequence[str], small: bool, folder: Path) -> Contest:
    """One class of every data set a call. The batched one is here to be measured alone: nothing uses it."""
    shape = (3, 60, 4, 8) if small else (SETS, TEXTS, CENTERS, WIDTH)
    embeddings_SND = blobs(*shape)
    k = shape[2]
    sides = {
        "ours": lambda: _timed(embeddings_SND, k, _one_by_one),
        "batched": lambda: _timed(embeddings_SND, k, batched),
    }
    goals = [speed("ours", None, "texts"), speed_up(None, "ours", "batched")]
    note = f"{shape[0]} data sets of {shape[1]} texts, {k} kept, {shape[3]} features"
    return Contest("select", "texts", sides, goals, tolerance=0.1, note=note)


def blobs(sets: int, texts: int, centers: int, width: int) -> Tensor:
    """Embeddings with some structure: twice as many clusters as are asked for, and as much noise as distance."""
    random = np.random.default_rng(derive_seed("bench blobs"))
    middles = random.normal(size=(sets, 2 * centers, width))
    which = random.integers(2 * centers, size=(sets, texts))
    points = np.take_along_axis(middles, which[:, :, None], axis=1) + random.normal(size=(sets, texts, width))
    return torch.from_numpy(points.astype(np.float32))


def spread(embeddings_ND: Tensor, rows: np.ndarray) -> float:
    """Mean squared distance of all texts from the nearest one that was chosen."""
    return float(torch.cdist(embeddings_ND, embeddings_ND[torch.as_tensor(rows)]).min(1).values.square().mean())


def _timed(embeddings_SND: Tensor, k: int, choose: Choose) -> Call:
    def call() -> Done:
        chosen = choose(embeddings_SND, k)
        value = np.mean([spread(part, rows) for part, rows in zip(embeddings_SND, chosen, strict=True)])
        return Done(embeddings_SND.shape[0] * embeddings_SND.shape[1], value=float(value))

    return call


def _one_by_one(embeddings_SND: Tensor, k: int) -> list[np.ndarray]:
    return [k_centers(part, k, derive_seed("bench", number)) for number, part in enumerate(embeddings_SND)]


def batched(embeddings_SND: Tensor, k: int) -> list[np.ndarray]:
    """The same for all sets at once: greedy k-means++, Lloyd's steps until none moves, nearest texts."""
    random = torch.Generator().manual_seed(derive_seed("bench batched") % 2**32)
    n_sets, n_texts, _ = embeddings_SND.shape
    sets_S = torch.arange(n_sets)
    centers = [embeddings_SND[sets_S, torch.randint(n_texts, (n_sets,), generator=random)]]
    nearest_SN = torch.cdist(centers[0][:, None], embeddings_SND)[:, 0].square()
    for _ in range(k - 1):
        drawn_ST = torch.multinomial(nearest_SN, 2 + int(math.log(k)), replacement=True, generator=random)
        drawn_STD = embeddings_SND[sets_S[:, None], drawn_ST]
        distances_STN = torch.cdist(drawn_STD, embeddings_SND).square().minimum(nearest_SN[:, None])
        best_S = distances_STN.sum(-1).argmin(-1)
        nearest_SN = distances_STN[sets_S, best_S]
        centers.append(drawn_STD[sets_S, best_S])
    centers_SKD = torch.stack(centers, 1)
    still = TOLERANCE * embeddings_SND.var(1).mean(-1)
    for _ in range(ITERATIONS):
        which_SN = torch.cdist(embeddings_SND, centers_SKD).argmin(-1)
        onehot_SNK = torch.nn.functional.one_hot(which_SN, k).to(embeddings_SND.dtype)
        counts_SK1 = onehot_SNK.sum(1)[:, :, None]
        means_SKD = torch.where(counts_SK1 > 0, onehot_SNK.mT @ embeddings_SND / counts_SK1.clamp(min=1), centers_SKD)
        moved_S = (means_SKD - centers_SKD).square().sum((1, 2))
        centers_SKD = means_SKD
        if (moved_S <= still).all():
            break
    distances_SKN = torch.cdist(centers_SKD, embeddings_SND)
    chosen_SK = torch.empty(n_sets, k, dtype=torch.long)
    for center in range(k):
        chosen_SK[:, center] = distances_SKN[:, center].argmin(-1)
        distances_SKN[sets_S, :, chosen_SK[:, center]] = torch.inf
    return list(chosen_SK.numpy())
