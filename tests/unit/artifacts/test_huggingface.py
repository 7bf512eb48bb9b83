"""Data sets in memory as `datasets` has them: what an export of the same shards loads as."""

from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest

from dilm.artifacts.huggingface import load_dataset
from dilm.artifacts.shards import shard_table, write_shards
from dilm.config.schema import Config
from dilm.core.errors import ShardError
from dilm.data.text_table import table
from dilm.stages import export, generate

Compose = Callable[..., Config]
ATTRIBUTES = {"key": "0123456789ab", "task": "toy", "method": "lm", "dpc": 1, "labels": ["no", "yes"]}


def written(folder: Path, **columns: object) -> Path:
    folder.mkdir()
    rows = table(("premise", "hypothesis"), [("half \ud83d", "é 😀"), ("one", "two")], [1, 0])
    write_shards(folder, shard_table(rows, **columns), ATTRIBUTES, {})
    return folder


def test_it_is_what_the_export_loads_as(tiny: Compose, tmp_path: Path) -> None:
    folder = generate.run(tiny("method=k_centers")).folder
    export.run(tiny(f"shard={folder}", f"to={tmp_path / 'out'}"))
    expected = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "hf"))
    sets = load_dataset(str(folder))
    assert list(sets) == list(expected) == ["data_set_00", "data_set_01"]
    for name, split in sets.items():
        assert split.features == expected[name].features and split.split == name
        assert split.to_dict() == expected[name].to_dict()
        assert split.features["label"].names == ["negative", "positive"] and "cluster" in split.features


def test_one_data_set_is_train_and_unknown_columns_are_left_out(tmp_path: Path) -> None:
    sets = load_dataset(written(tmp_path / "one", dataset=0))
    assert list(sets) == ["train"]
    assert sets["train"].to_dict() == {"premise": ["half ?", "one"], "hypothesis": ["é 😀", "two"], "label": [1, 0]}


def test_a_pool_is_candidates_and_an_unknown_likelihood_is_none(tmp_path: Path) -> None:
    sets = load_dataset(written(tmp_path / "pool", nll=np.array([1.5, np.nan])))
    assert list(sets) == ["candidates"] and sets["candidates"]["nll"][:] == [1.5, None]


def test_altered_shards_and_other_folders_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"index\.json is missing"):
        load_dataset(tmp_path)
    folder = written(tmp_path / "shards", dataset=0)
    (shard,) = folder.glob("*.h5")
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ShardError, match=f"{shard.name} is truncated or altered"):
        load_dataset(folder)
