"""Choosing from texts in memory, without configuration files or artifacts: what `dilm.select` does (docs/api.md).

Shape suffixes: N texts, D features of an embedding.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from dilm.config.compose import load_learner, options_of
from dilm.config.schema import DEVICES, EMBEDDED, PRECISIONS, LearnerConfig, SourceConfig, TeachConfig
from dilm.core.errors import ArgumentError, did_you_mean
from dilm.core.hashing import derive_seed
from dilm.core.io import read_json
from dilm.data.samplers import candidate_rows
from dilm.data.text_table import TextTable, table
from dilm.distributed.device import pick_device
from dilm.hub.pretrained import cache_folder
from dilm.models.features import FeatureStore
from dilm.selection.coreset import SELECTIONS, random_rows
from dilm.selection.select import class_seed, first_rows, others_first, taught_rows
from dilm.selection.teach import Labels, view_of

CHOICES = ("teach", *EMBEDDED, "random")
MAX_TOKENS = 512  # of a text, for an encoder from a folder that doesn't say fewer


def select(
    texts: Iterable[str | Iterable[str]],
    labels: ArrayLike,
    dpc: int,
    selection: str = "teach",
    *,
    encoder: str | Path | ArrayLike = "minilm",
    seed: int = 0,
    n_candidates: int | None = 3000,
    device: str = "auto",
    precision: str = "fp32",
    cache: str | Path | None = None,
) -> np.ndarray:
    """Choose a small training set from labelled texts.

    Args:
        texts: N strings, or N pairs of strings.
        labels: N class labels, whole numbers or strings.
        dpc: Texts to choose for each class.
        selection: `teach`, a set from which a linear proxy of the embeddings learns most (docs/method.md); `k_centers`,
            the text nearest each of `dpc` k-means centroids (paper, section 3.4); `herding`, texts whose mean follows
            that of the class; `random`.
        encoder: What texts are compared by: the name of a learner in `conf/learner`, a folder with a transformers
            model (its last layer's mean over tokens is taken), or embeddings (N, D). `random` needs none.
        seed: Another seed makes another data set. `herding` draws its candidates with it, nothing else.
        n_candidates: How many of the texts to choose among, drawn in equal shares for the classes; None: all.
            `random` always draws from all texts.
        device: Where the encoder runs: `auto`, `cpu` or `cuda`.
        precision: Of the encoder: `fp32` or `bf16`.
        cache: Folder for models and embeddings; None: `$DILM_CACHE`, else `~/.cache/dilm`.

    Returns:
        Row indices (dpc × number of classes,), int64, class by class in the sorted order of labels. No two rows of
        a class have the same text.

    Raises:
        ArgumentError: An argument is wrong, or a class has fewer than `dpc` distinct texts. It is a ValueError.
        SourceError: The encoder can't be fetched.

    """
    _one_of(CHOICES, selection=selection)
    _one_of(DEVICES, device=device)
    _one_of(PRECISIONS, precision=precision)
    _whole(1, dpc=dpc, **({} if n_candidates is None else {"n_candidates": n_candidates}))
    _whole(0, seed=seed)
    seed = int(seed)  # NumPy's integers have no JSON, from which seeds are derived
    names, everything = _labelled(texts, labels)
    candidates, scored = _drawn(everything, selection, n_candidates, seed)
    needed = np.union1d(candidates, scored)  # what is embedded; all rows below are places in it
    rows, is_candidate_N = everything.take(needed), np.isin(needed, candidates)
    members = [np.flatnonzero(is_candidate_N & (rows.labels == label)) for label in range(len(names))]
    classes = [_distinct(rows, own, dpc, name) for own, name in zip(members, names, strict=True)]
    if selection == "random":
        return needed[_each(classes, lambda own, draw: random_rows(len(own), dpc, draw), seed)]
    embeddings_ND = _embeddings(encoder, everything, needed, pick_device(device), precision, cache)
    if selection == "teach":
        return needed[_taught(embeddings_ND, rows, classes, np.searchsorted(needed, scored), dpc, seed)]
    return needed[_each(classes, lambda own, draw: SELECTIONS[selection](embeddings_ND[own], dpc, draw), seed)]


def _drawn(everything: TextTable, selection: str, n_candidates: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows to choose among, and those that `teach` is scored on, of others where there are enough."""
    share = None if selection == "random" else n_candidates
    candidates = candidate_rows(everything, share, derive_seed("candidates", seed))
    if selection != "teach":
        return candidates, candidates[:0]
    if len(everything.rows_by_label) == 1:
        raise ArgumentError("selection='teach' tells classes apart, and labels has one class; take 'k_centers'.")
    known = {everything.texts[row] for row in candidates}
    return candidates, others_first(everything.texts, known, derive_seed("scored", seed))[: TeachConfig().scored]


def _each(classes: Sequence[np.ndarray], choose: Callable[[np.ndarray, int], np.ndarray], seed: int) -> np.ndarray:
    """The rows that `choose` takes of each class, given the class's rows and a seed."""
    return np.concatenate([rows[choose(rows, class_seed(seed, label))] for label, rows in enumerate(classes)])


def _taught(
    embeddings_ND: Tensor, rows: TextTable, classes: Sequence[np.ndarray], scored: np.ndarray, dpc: int, seed: int
) -> np.ndarray:
    """The rows of the set that teaches most, of the members of all classes, on the scored rows."""
    members = np.concatenate(classes)
    labels = Labels(rows.labels[members], rows.labels[scored], len(classes))
    view = view_of(embeddings_ND[members], embeddings_ND[scored])
    return members[taught_rows([view], labels, dpc, seed, TeachConfig())]


def _one_of(known: Collection[str], **arguments: str) -> None:
    for name, value in arguments.items():
        if value not in known:
            raise ArgumentError(f"{name} {value!r} is unknown.{did_you_mean(str(value), known)}")


def _whole(least: int, **arguments: int) -> None:
    for name, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ArgumentError(f"{name} is {value!r}; it must be a whole number from {least}.")


def _labelled(texts: Iterable[str | Iterable[str]], labels: ArrayLike) -> tuple[list[Any], TextTable]:
    """The class names, sorted, and the texts with their numbers. Raises ArgumentError."""
    if isinstance(texts, str):
        raise ArgumentError("texts is one string; give a list of strings, or of pairs of strings.")
    rows = [_text(number, text) for number, text in enumerate(texts)]
    if not rows:
        raise ArgumentError("texts is empty; there is nothing to choose from.")
    if {len(row) for row in rows} not in ({1}, {2}):
        raise ArgumentError("texts must all be strings, or all pairs of strings.")
    names, numbers = np.unique(_label_values(labels, len(rows)), return_inverse=True)
    return names.tolist(), table([f"text{place}" for place in range(len(rows[0]))], rows, numbers)


def _text(number: int, text: Any) -> tuple[str, ...]:
    parts = (text,) if isinstance(text, str) or not isinstance(text, Iterable) else tuple(text)
    for part in parts:
        if not isinstance(part, str):
            raise ArgumentError(f"texts[{number}] is {text!r}; it must be a string or a pair of strings.")
        if not part.strip():
            raise ArgumentError(f"texts[{number}] is empty; leave it and its label out.")
    return parts


def _label_values(labels: ArrayLike, n: int) -> np.ndarray:
    values = np.asarray(labels)
    if values.dtype == object and all(isinstance(value, str) for value in values.flat):
        values = values.astype(str)
    if values.dtype.kind not in "biuU":
        raise ArgumentError("labels must be whole numbers or strings, one for each text.")
    if values.shape != (n,):
        raise ArgumentError(f"labels has shape {values.shape} for {n} texts; it must be ({n},).")
    return values


def _distinct(rows: TextTable, members: np.ndarray, dpc: int, name: Any) -> np.ndarray:
    """The members of a class, each text once."""
    first = first_rows(rows.texts, members)
    if len(first) < dpc:
        raise ArgumentError(
            f"dpc={dpc}, but class {name!r} has only {len(first)} distinct texts among the candidates; lower dpc or "
            "raise n_candidates."
        )
    return first


def _embeddings(
    encoder: str | Path | ArrayLike,
    everything: TextTable,
    needed: np.ndarray,
    device: torch.device,
    precision: str,
    cache: str | Path | None,
) -> Tensor:
    """Embeddings (N, D) of the needed rows, fp32, on the CPU. Raises ArgumentError and SourceError."""
    if isinstance(encoder, str | Path):
        folder = cache_folder(None if cache is None else str(cache))
        return FeatureStore(_learner(encoder), 2, folder, device, precision).get(everything.take(needed).texts, "embed")
    given = np.asarray(encoder)
    if given.ndim != 2 or len(given) != len(everything) or given.dtype.kind not in "fiu":
        raise ArgumentError(
            f"encoder is an array of {given.dtype} of shape {given.shape}; embeddings of {len(everything)} texts must "
            f"be numbers of shape ({len(everything)}, D)."
        )
    if not np.isfinite(given).all():
        raise ArgumentError("encoder, an array of embeddings, has values that are NaN or infinite.")
    return torch.from_numpy(given[needed].astype(np.float32))


def _learner(encoder: str | Path) -> LearnerConfig:
    """What reads the texts: a learner by its name, or the model in a folder with its last layer's mean over tokens."""
    folder, known = Path(encoder).expanduser(), options_of("learner")
    if encoder in known:
        return load_learner(str(encoder))
    if not folder.is_dir():
        raise ArgumentError(f"encoder {str(encoder)!r} is no folder and no learner.{did_you_mean(str(encoder), known)}")
    path = folder / "config.json"
    reads = read_json(path).get("max_position_embeddings", MAX_TOKENS) if path.is_file() else MAX_TOKENS
    source = SourceConfig(path=str(folder))
    return LearnerConfig(folder.name, source, pooling="mean", embedding="mean", max_length=min(MAX_TOKENS, int(reads)))
