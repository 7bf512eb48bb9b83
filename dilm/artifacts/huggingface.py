"""Distilled data sets in the form of Hugging Face's `datasets`: a split a data set, labels with their names."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dilm.artifacts.shards import ShardTable, read_index, read_shards

if TYPE_CHECKING:
    from datasets import DatasetDict, Features


def load_dataset(folder: str | Path) -> "DatasetDict":
    """The data sets in a folder that `python -m dilm.generate` made, as `datasets` has them in memory.

    A split a data set: `data_set_00`, `data_set_01`, ...; `train` where there is one; `candidates` where the folder
    holds what data sets are chosen from. Columns: the task's text fields, `label` (a `ClassLabel`), and `nll` (nats a
    token under the generator) and `cluster` where they are known. Raises ShardError for a shard that is missing,
    truncated or altered.
    """
    from datasets import Dataset, DatasetDict, NamedSplit

    folder = Path(folder).expanduser()
    index, rows = read_index(folder), read_shards(folder)
    features = features_of(index, rows)
    splits = DatasetDict()
    for name, part in splits_of(rows).items():
        columns = columns_of(index["fields"], part, features)
        splits[name] = Dataset.from_dict(columns, features=features, split=NamedSplit(name))
    return splits


def splits_of(rows: ShardTable) -> dict[str, ShardTable]:
    """The rows of each data set by the name of its split."""
    numbers = [int(number) for number in np.unique(rows.dataset)]
    names = {number: f"data_set_{number:02d}" if number >= 0 else "candidates" for number in numbers}
    if len(numbers) == 1 and numbers[0] >= 0:
        names = {numbers[0]: "train"}
    return {name: rows.take(np.flatnonzero(rows.dataset == number)) for number, name in names.items()}


def features_of(index: Mapping[str, Any], rows: ShardTable) -> "Features":
    """The columns of all splits and their types; NLL and cluster only where they are known."""
    from datasets import ClassLabel, Features, Value

    columns: dict[str, Any] = {name: Value("string") for name in index["fields"]}
    columns["label"] = ClassLabel(names=list(index["labels"]))
    if not np.isnan(rows.nll).all():
        columns["nll"] = Value("float32")
    if (rows.cluster >= 0).any():
        columns["cluster"] = Value("int32")
    return Features(columns)


def columns_of(fields: Sequence[str], rows: ShardTable, features: "Features") -> dict[str, list[Any]]:
    """The values of the columns that `features` names."""
    # A generator may write half a surrogate pair, which Arrow's strings can't hold.
    texts = [[field.encode("utf-8", "replace").decode() for field in text] for text in rows.table.texts]
    columns: dict[str, list[Any]] = {name: [text[place] for text in texts] for place, name in enumerate(fields)}
    columns["label"] = rows.table.labels.tolist()
    columns["nll"] = [None if np.isnan(value) else float(value) for value in rows.nll]
    columns["cluster"] = rows.cluster.tolist()
    return {name: columns[name] for name in features}
