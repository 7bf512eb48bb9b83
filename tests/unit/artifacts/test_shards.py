"""Shards: what is written comes back, equal rows give equal bytes, and no damage goes unnoticed."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dilm.artifacts import shards
from dilm.artifacts.shards import (
    COLUMNS,
    SCHEMA,
    ShardTable,
    concatenate,
    read_index,
    read_shards,
    shard_table,
    write_shards,
)
from dilm.core.errors import DiskFullError, ShardError
from dilm.core.hashing import derive_seed
from dilm.core.io import read_json, sha256_file
from dilm.data.text_table import table

reproducible = settings(max_examples=80, deadline=None, derandomize=True)

ATTRIBUTES: dict[str, Any] = {"key": "0123456789ab", "task": "toy", "method": "dilm", "dpc": 2, "labels": ["no", "yes"]}
ABOUT = {"config": {"seed": 0}, "note": "é" * 100_000}  # more than an HDF5 attribute takes

int32, int64 = st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1)
any_text = st.text(max_size=12)  # emoji, line breaks, NUL: all of Unicode but lone surrogates


@st.composite
def tables(draw: st.DrawFn) -> ShardTable:
    n_fields, n = draw(st.integers(1, 3)), draw(st.integers(0, 12))

    def column(values: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(values, min_size=n, max_size=n))

    texts = column(st.tuples(*[any_text] * n_fields))
    return shard_table(
        table([f"field{number}" for number in range(n_fields)], texts, column(int64)),
        dataset=column(int32),
        index=column(int64),
        seed=column(int64),
        nll=column(st.floats(width=32)),
        cluster=column(int32),
    )


def assert_equal(found: ShardTable, expected: ShardTable) -> None:
    assert found.table.fields == expected.table.fields
    assert found.table.texts == expected.table.texts
    assert found.table.labels.dtype == np.int64
    np.testing.assert_array_equal(found.table.labels, expected.table.labels)
    for name, (kind, _) in COLUMNS.items():
        assert getattr(found, name).dtype == kind
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def some_rows(n: int = 5) -> ShardTable:
    texts = [(f"text {row} 😀\n", f"{row * 7}") for row in range(n)]
    rows = table(["premise", "hypothesis"], texts, [row % 2 for row in range(n)])
    columns = {"dataset": np.arange(n) // 2, "index": np.arange(n)[::-1], "seed": np.arange(n) * 10**12}
    return shard_table(rows, **columns, nll=np.arange(n) / 3, cluster=1)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    return lambda: tmp_path_factory.mktemp("shards")


# Writing and reading


@reproducible
@given(tables(), st.integers(1, 13))
def test_any_rows_come_back(scratch: Callable[[], Path], rows: ShardTable, per_shard: int) -> None:
    folder = scratch()
    write_shards(folder, rows, ATTRIBUTES, ABOUT, per_shard)
    assert_equal(read_shards(folder), rows)
    assert len(list(folder.glob("*.h5"))) == max(1, -(-len(rows) // per_shard))


def test_lone_surrogates_come_back(tmp_path: Path) -> None:
    write_shards(tmp_path, shard_table(table(["text"], [("a\udcff",)], [0])), ATTRIBUTES, {})
    assert read_shards(tmp_path).table.texts == [("a\udcff",)]


def test_columns_that_are_not_given_are_unknown() -> None:
    rows = shard_table(table(["text"], [("a",), ("b",)], [0, 1]), nll=0.5)
    assert rows.dataset.tolist() == rows.index.tolist() == rows.seed.tolist() == rows.cluster.tolist() == [-1, -1]
    assert rows.nll.tolist() == [0.5, 0.5]
    assert np.isnan(shard_table(rows.table).nll).all()


def test_columns_can_be_given_anew() -> None:
    rows = some_rows(3).with_columns(dataset=7, seed=np.array([2**62, 1, 0]))
    assert rows.dataset.tolist() == [7, 7, 7]
    assert rows.seed.tolist() == [2**62, 1, 0]
    assert (rows.dataset.dtype, rows.seed.dtype) == (np.int32, np.int64)
    assert rows.cluster.tolist() == [1, 1, 1]


def test_a_column_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError):
        some_rows(3).with_columns(dataset=np.array([1, 2]))


@reproducible
@given(tables(), st.data())
def test_take_takes_texts_and_columns_alike(rows: ShardTable, data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.integers(0, max(0, len(rows) - 1)), max_size=6 if len(rows) else 0))
    taken = rows.take(chosen)
    assert taken.table.texts == [rows.table.texts[row] for row in chosen]
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(taken, name), [getattr(rows, name)[row] for row in chosen])


@reproducible
@given(tables(), st.data())
def test_parts_put_together_are_the_whole(rows: ShardTable, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(rows)))
    parts = [rows.take(np.arange(cut)), rows.take(np.arange(cut, len(rows)))]
    assert_equal(concatenate(parts), rows)


def test_rows_are_split_in_order_and_named_by_their_number(tmp_path: Path) -> None:
    write_shards(tmp_path, some_rows(5), ATTRIBUTES, ABOUT, per_shard=2)
    names = [f"shard-0000{number}-of-00003.h5" for number in range(3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.json", *names]
    assert [entry["rows"] for entry in read_index(tmp_path)["shards"]] == [2, 2, 1]


def test_the_index_tells_what_there_is(tmp_path: Path) -> None:
    write_shards(tmp_path, some_rows(5), ATTRIBUTES, ABOUT, per_shard=3)
    index = read_index(tmp_path)
    shards_of = index.pop("shards")
    assert index == {"schema": 2, **ATTRIBUTES, "fields": ["premise", "hypothesis"], "rows": 5, "about": ABOUT}
    assert shards_of == [
        {"file": f"shard-0000{number}-of-00002.h5", "rows": rows, "sha256": sha256_file(path)}
        for number, (rows, path) in enumerate(zip((3, 2), sorted(tmp_path.glob("*.h5")), strict=True))
    ]


def test_equal_rows_give_equal_bytes_whenever_they_are_written(tmp_path: Path) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        write_shards(folder, some_rows(), ATTRIBUTES, {"folder": folder.name}, per_shard=3)
        time.sleep(1.1)  # HDF5's times are in seconds
    first, second = ({path.name: path.read_bytes() for path in folder.glob("*.h5")} for folder in folders)
    assert len(first) == 2
    assert first == second


def test_other_rows_give_other_bytes(tmp_path: Path) -> None:
    for name, rows in (("first", some_rows()), ("second", some_rows().with_columns(cluster=2))):
        write_shards(tmp_path / name, rows, ATTRIBUTES, {})
    digests = {read_index(tmp_path / name)["shards"][0]["sha256"] for name in ("first", "second")}
    assert len(digests) == 2


# The layout


@pytest.fixture
def opened(tmp_path: Path) -> h5py.File:
    write_shards(tmp_path, some_rows(), ATTRIBUTES, ABOUT)
    with h5py.File(tmp_path / "shard-00000-of-00001.h5") as file:
        yield file


LAYOUT = {
    "texts/premise/bytes": "uint8",
    "texts/premise/offsets": "int64",
    "texts/hypothesis/bytes": "uint8",
    "texts/hypothesis/offsets": "int64",
    "label": "int64",
    "dataset": "int32",
    "index": "int64",
    "seed": "int64",
    "nll": "float32",
    "cluster": "int32",
}


def test_a_shard_has_these_columns_and_no_others(opened: h5py.File) -> None:
    found: dict[str, str] = {}
    opened.visititems(lambda name, part: found.update({name: str(part.dtype)}) if hasattr(part, "dtype") else None)
    assert found == LAYOUT


@pytest.mark.parametrize("name", LAYOUT)
def test_every_column_is_chunked_shuffled_compressed_and_summed(opened: h5py.File, name: str) -> None:
    column = opened[name]
    assert column.chunks is not None
    assert column.shuffle
    assert column.compression == "gzip"
    assert column.fletcher32


def test_a_shards_attributes(opened: h5py.File) -> None:
    found = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in opened.attrs.items()}
    assert found == {"schema": SCHEMA, **ATTRIBUTES, "fields": ["premise", "hypothesis"]}


def test_texts_are_one_blob_and_offsets(opened: h5py.File) -> None:
    group = opened["texts/hypothesis"]
    assert group["bytes"][:].tobytes() == b"07142128"
    assert group["offsets"][:].tolist() == [0, 1, 2, 4, 6, 8]


def test_an_empty_table_has_every_column(tmp_path: Path) -> None:
    write_shards(tmp_path, some_rows(0), ATTRIBUTES, {})
    with h5py.File(tmp_path / "shard-00000-of-00001.h5") as file:
        assert file["texts/premise/offsets"][:].tolist() == [0]
        assert file["label"].shape == file["texts/premise/bytes"].shape == (0,)
    assert len(read_shards(tmp_path)) == 0


def test_a_table_larger_than_a_chunk_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "CHUNK", 4)
    write_shards(tmp_path, some_rows(11), ATTRIBUTES, {})
    assert_equal(read_shards(tmp_path), some_rows(11))


# Schema 1

SCHEMA_1 = Path(__file__).parents[2] / "data" / "schema-1"  # made by the code that wrote it, with experiment=tiny
CANDIDATES_1, CHOSEN_1 = SCHEMA_1 / "candidates-lm-696e4edf88fd", SCHEMA_1 / "lm-dpc2-b1e17bfd1b6e"


def seeds_1(folder: Path) -> np.ndarray:
    with h5py.File(next(folder.glob("*.h5"))) as file:
        assert "index" not in file and file.attrs["schema"] == 1
        return np.asarray(file["seed"][:])


def test_candidates_of_schema_1_have_their_numbers() -> None:
    rows = read_shards(CANDIDATES_1)
    assert rows.index.tolist() == seeds_1(CANDIDATES_1).tolist() == [*range(12)] * 2
    assert rows.table.labels.tolist() == [0] * 12 + [1] * 12
    assert (rows.dataset == -1).all() and (rows.seed == -1).all() and np.isfinite(rows.nll).all()


def test_data_sets_of_schema_1_have_their_seeds() -> None:
    rows, candidates = read_shards(CHOSEN_1), read_shards(CANDIDATES_1)
    expected = [derive_seed("dataset", "tiny", 0, number) for number in (0, 1)]
    assert rows.seed.tolist() == seeds_1(CHOSEN_1).tolist() == [seed for seed in expected for _ in range(4)]
    assert (rows.index == -1).all() and rows.dataset.tolist() == [0] * 4 + [1] * 4
    assert set(rows.table.texts) <= set(candidates.table.texts)


@pytest.mark.parametrize("about", [{"written": 24}, {"ranked": 24}, {}])
def test_what_schema_1_says_of_rows_is_told_from_who_wrote_them(tmp_path: Path, about: dict[str, int]) -> None:
    """An interrupted job keeps candidates without a key, of which nothing else is said."""
    folder = shutil.copytree(CANDIDATES_1, tmp_path / "copied")
    index = read_json(folder / "index.json") | {"about": about}
    for key in ("", "0123456789ab"):
        (folder / "index.json").write_text(json.dumps({**index, "key": key}))
        rows = read_shards(folder)
        numbers, other = (rows.index, rows.seed) if about or not key else (rows.seed, rows.index)
        assert numbers.tolist() == [*range(12)] * 2 and (other == -1).all()


# Damage


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_shards(tmp_path, some_rows(), ATTRIBUTES, ABOUT, per_shard=3)
    return tmp_path


def refuses(folder: Path, message: str) -> None:
    with pytest.raises(ShardError, match=message) as caught:
        read_shards(folder)
    assert "\n" not in str(caught.value)


SECOND = "shard-00001-of-00002.h5"


def test_a_missing_shard_is_named(written: Path) -> None:
    (written / SECOND).unlink()
    refuses(written, rf"{SECOND} is missing, though index\.json lists it")


@pytest.mark.parametrize("kept", [0, 1, 512, -1])
def test_a_truncated_shard_is_named(written: Path, kept: int) -> None:
    path = written / SECOND
    path.write_bytes(path.read_bytes()[:kept])
    refuses(written, rf"{SECOND} is truncated or altered")


def test_a_flipped_bit_anywhere_is_noticed(written: Path) -> None:
    path = written / SECOND
    content = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(content) * 8, 50).tolist():
        altered = bytearray(content)
        altered[place // 8] ^= 1 << place % 8
        path.write_bytes(altered)
        refuses(written, rf"{SECOND} is truncated or altered")


def test_shards_that_changed_places_are_noticed(written: Path) -> None:
    first, second = sorted(written.glob("*.h5"))
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])
    refuses(written, r"shard-00000-of-00002\.h5 is truncated or altered")


def put_in_index(folder: Path, path: Path, **entry: Any) -> None:
    """Have the index vouch for what a shard's file holds now."""
    index = read_json(folder / "index.json")
    index["shards"][1] |= {"sha256": sha256_file(path), **entry}
    index["rows"] = sum(shard["rows"] for shard in index["shards"])
    (folder / "index.json").write_text(json.dumps(index))


def test_a_file_that_is_no_shard_is_named(written: Path) -> None:
    (written / SECOND).write_bytes(b"no HDF5")
    put_in_index(written, written / SECOND)
    refuses(written, rf"{SECOND} can't be read as a shard of schema 2")


def change(path: Path, alter: Callable[[h5py.File], None]) -> None:
    with h5py.File(path, "r+") as file:
        alter(file)


@pytest.mark.parametrize("name", ["label", "nll", "texts/premise/offsets"])
def test_a_shard_without_a_column_is_named(written: Path, name: str) -> None:
    change(written / SECOND, lambda file: file.pop(name))
    put_in_index(written, written / SECOND)
    refuses(written, rf"{SECOND} can't be read as a shard of schema 2")


@pytest.mark.parametrize("schema", [1, 3])
def test_a_shard_of_another_schema_than_its_index_is_named(written: Path, schema: int) -> None:
    change(written / SECOND, lambda file: file.attrs.modify("schema", schema))
    put_in_index(written, written / SECOND)
    refuses(written, rf"{SECOND} can't be read as a shard of schema 2 \(its schema is {schema}\)")


def test_columns_of_unequal_length_are_noticed(written: Path) -> None:
    change(written / SECOND, lambda file: file["seed"].resize((9,)))
    put_in_index(written, written / SECOND)
    refuses(written, rf"{SECOND} can't be read as a shard of schema 2")


def test_bytes_that_are_no_utf8_are_noticed(written: Path) -> None:
    def alter(file: h5py.File) -> None:
        file["texts/premise/bytes"][0] = 0xFF

    change(written / SECOND, alter)
    put_in_index(written, written / SECOND)
    refuses(written, rf"{SECOND} can't be read as a shard of schema 2")


def test_another_number_of_rows_is_noticed(written: Path) -> None:
    put_in_index(written, written / SECOND, rows=9)
    refuses(written, rf"{SECOND} has 2 rows; index\.json says 9")


def test_a_missing_index_is_named(written: Path) -> None:
    (written / "index.json").unlink()
    refuses(written, r"index\.json is missing")


@pytest.mark.parametrize("schema", [0, 3, "2", None])
def test_an_index_of_an_unknown_schema_is_named(written: Path, schema: object) -> None:
    index = read_json(written / "index.json")
    (written / "index.json").write_text(json.dumps({**index, "schema": schema}))
    refuses(written, rf"index\.json: schema {schema!r}; this version reads the schemas 1 and 2")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"schema": 2, "shards": [{"fi',
        b"\xff\xfe",
        b"[]",
        b"3",
        b"{}",
        b'{"schema": 2}',
        b'{"schema": 2, "rows": 0, "shards": []}',
        b'{"schema": 2, "rows": 2, "shards": [{"file": "shard-00001-of-00002.h5", "rows": 2}]}',
        b'{"schema": 2, "rows": 2, "shards": ["shard-00001-of-00002.h5"]}',
        b'{"schema": 2, "rows": 2, "shards": 7}',
    ],
)
def test_a_broken_index_is_named(written: Path, content: bytes) -> None:
    (written / "index.json").write_bytes(content)
    refuses(written, r"index\.json is not an index of shards")


def test_an_index_that_lost_a_shard_is_noticed(written: Path) -> None:
    index = read_json(written / "index.json")
    index["shards"].pop()
    (written / "index.json").write_text(json.dumps(index))
    refuses(written, r"index\.json is not an index of shards")


def test_a_full_disk_leaves_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = 0

    def full_at_the_second(path: Path, content: bytes) -> None:
        nonlocal written
        written += 1
        if written == 2:
            raise DiskFullError(f"{path}: no space is left")

    monkeypatch.setattr(shards, "write_bytes", full_at_the_second)
    monkeypatch.setattr(shards, "sha256_file", lambda path: "0" * 64)
    with pytest.raises(DiskFullError, match=SECOND):
        write_shards(tmp_path, some_rows(), ATTRIBUTES, {}, per_shard=3)
    assert not (tmp_path / "index.json").exists()
