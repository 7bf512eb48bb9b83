"""Distilled data sets and candidates on disk: HDF5 shards of schema 2, with an index written last.

A shard holds only what the configuration determines, so equal configurations give equal bytes. Texts are one UTF-8
blob and offsets, since variable-length HDF5 strings don't compress. `index.json` lists every shard's rows and SHA-256;
a reader raises on a missing, truncated or altered shard, and never fills gaps.

Which text a row is (`index`) and what it was drawn with (`seed`), by who wrote the shard:

| rows | `index` | `seed` |
| --- | --- | --- |
| candidates that a generator wrote | number of the text within its data set's (or the pool's) texts of the label | -1 |
| candidates that a generator ranked | row of the training texts | -1 |
| a data set that was chosen | that of the candidate | seed of the data set's draw |
| `method=full` | row of the training texts | `seed=` of the run |
| `method=published` | -1 | `seed=` of the run |

Schema 1 had the column `seed` alone: `index` for candidates, `seed` for data sets. It is read as such; of its data sets
`index` is unknown.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dilm.config.schema import Config, DataConfig, TaskConfig
from dilm.core.errors import ConfigError, ShardError
from dilm.core.io import read_json, sha256_file, write_bytes, write_json
from dilm.data.text_table import TextTable

SCHEMA = 2
READABLE = (1, SCHEMA)
ROWS_PER_SHARD = 100_000
CHUNK = 1 << 16
GZIP_LEVEL = 1  # twice as fast as the usual 4, and a tenth larger
ENCODING_ERRORS = "surrogatepass"  # half a character may stand in a text
COLUMNS: dict[str, tuple[str, float]] = {  # name: (type, value where unknown)
    "dataset": ("int32", -1),
    "index": ("int64", -1),
    "seed": ("int64", -1),
    "nll": ("float32", float("nan")),
    "cluster": ("int32", -1),
}


@dataclass(frozen=True)
class ShardTable:
    """Texts with the columns of a shard. Arrays are (n,)."""

    table: TextTable
    dataset: np.ndarray  # int32; which data set the row belongs to, -1: a shared pool
    index: np.ndarray  # int64; which of the generator's texts, or of the training rows; -1: unknown
    seed: np.ndarray  # int64; what the row was drawn with; -1: nothing
    nll: np.ndarray  # float32; nats a token under the generator, NaN: unknown
    cluster: np.ndarray  # int32; -1: none

    def __len__(self) -> int:
        return len(self.table)

    def take(self, rows: Sequence[int] | np.ndarray) -> "ShardTable":
        """The rows with these indices, in this order."""
        rows = np.asarray(rows, dtype=int)
        return ShardTable(self.table.take(rows), *(getattr(self, name)[rows] for name in COLUMNS))

    def with_columns(self, **columns: int | np.ndarray) -> "ShardTable":
        """The same texts with other columns; a scalar fills its column."""
        kept = {name: getattr(self, name) for name in COLUMNS}
        changed = {name: _column(name, value, len(self)) for name, value in columns.items()}
        return ShardTable(self.table, **{**kept, **changed})


def _column(name: str, value: Any, n: int) -> np.ndarray:
    return np.broadcast_to(np.asarray(value, dtype=COLUMNS[name][0]), (n,)).copy()


def shard_table(table: TextTable, **columns: Any) -> ShardTable:
    """A shard's rows from a table; columns not given are unknown."""
    filled = {name: _column(name, columns.get(name, unknown), len(table)) for name, (_, unknown) in COLUMNS.items()}
    return ShardTable(table, **filled)


def concatenate(parts: Sequence[ShardTable]) -> ShardTable:
    """All rows of several tables with the same fields, in order."""
    table = TextTable(
        parts[0].table.fields,
        [text for part in parts for text in part.table.texts],
        np.concatenate([part.table.labels for part in parts]),
    )
    return ShardTable(table, *(np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS))


def write_shards(
    folder: Path, rows: ShardTable, attributes: dict[str, Any], about: dict[str, Any], per_shard: int = ROWS_PER_SHARD
) -> None:
    """Write `rows` as shards of schema 2, at most `per_shard` rows each, then `index.json`. Raises DiskFullError.

    `attributes` (key, task, method, dpc, labels) stand in every shard; `about` (configuration, provenance) stands in
    the index alone, since HDF5 attributes end at 64 KB.
    """
    count = max(1, -(-len(rows) // per_shard))
    entries = []
    for number in range(count):
        part = rows.take(np.arange(number * per_shard, min((number + 1) * per_shard, len(rows))))
        path = folder / f"shard-{number:05d}-of-{count:05d}.h5"
        write_bytes(path, _shard_bytes(part, attributes))
        entries.append({"file": path.name, "rows": len(part), "sha256": sha256_file(path)})
    index = {"schema": SCHEMA, **attributes, "fields": list(rows.table.fields), "rows": len(rows)}
    write_json(folder / "index.json", {**index, "shards": entries, "about": about})


def _shard_bytes(rows: ShardTable, attributes: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs["schema"] = SCHEMA
        for name, value in {**attributes, "fields": list(rows.table.fields)}.items():
            file.attrs[name] = value
        for position, field in enumerate(rows.table.fields):
            blob_X, offsets_N = _packed([text[position] for text in rows.table.texts])
            group = file.create_group(f"texts/{field}")
            _write_column(group, "bytes", blob_X)
            _write_column(group, "offsets", offsets_N)
        _write_column(file, "label", rows.table.labels.astype(np.int64))
        for name in COLUMNS:
            _write_column(file, name, getattr(rows, name))
    return buffer.getvalue()


def _packed(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The UTF-8 bytes of all texts, and where each begins, with the end of the last: blob_X, offsets_N."""
    blob = "".join(texts).encode("utf-8", ENCODING_ERRORS)
    lengths = list(map(len, texts))
    if len(blob) != sum(lengths):  # else all is ASCII, a byte a character
        lengths = [len(text.encode("utf-8", ENCODING_ERRORS)) for text in texts]
    return np.frombuffer(blob, dtype=np.uint8), np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _unpacked(blob_X: np.ndarray, offsets_N: np.ndarray) -> list[str]:
    """The inverse of `_packed`: decoded at once, and cut where characters, not bytes, end."""
    text = blob_X.tobytes().decode("utf-8", ENCODING_ERRORS)
    if len(text) != len(blob_X):
        begins_X = (blob_X & 0b1100_0000) != 0b1000_0000  # a byte that continues a character begins with 10
        offsets_N = np.concatenate([[0], np.cumsum(begins_X)])[offsets_N]
    return [text[start:end] for start, end in pairwise(offsets_N.tolist())]


def _write_column(group: h5py.Group, name: str, values: np.ndarray) -> None:
    group.create_dataset(
        name,
        data=values,
        maxshape=(None,),
        chunks=(max(1, min(len(values), CHUNK)),),
        shuffle=True,
        compression="gzip",
        compression_opts=GZIP_LEVEL,
        fletcher32=True,
        track_times=False,  # a time would make equal seeds give unequal bytes
    )


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a folder of shards. Raises ShardError."""
    path = folder / "index.json"
    if not path.is_file():
        raise ShardError(f"{path} is missing: the shards beside it are incomplete. Make them again.")
    try:
        index = dict(read_json(path))
        if (schema := index["schema"]) not in READABLE:
            raise ShardError(
                f"{path}: schema {schema!r}; this version reads the schemas {READABLE[0]} and {READABLE[1]}. "
                "Use the dilm that wrote it."
            )
        listed = [(str(entry["file"]), str(entry["sha256"]), int(entry["rows"])) for entry in index["shards"]]
        if not listed or sum(rows for _, _, rows in listed) != index["rows"]:
            raise ValueError(f"it says {index['rows']} rows, and its {len(listed)} shards have others")
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{path} is not an index of shards ({error}). Make the shards again.") from error
    return index


def read_shards(folder: Path | str) -> ShardTable:
    """All rows of a folder of shards of schema 1 or 2, in order; every shard is checked against the index.

    Raises ShardError, which names the file that is missing, truncated, altered or of another schema.
    """
    folder = Path(folder).expanduser()
    index = read_index(folder)
    return concatenate([_read_shard(folder / entry["file"], entry, index) for entry in index["shards"]])


def _read_shard(path: Path, entry: dict[str, Any], index: dict[str, Any]) -> ShardTable:
    if not path.is_file():
        raise ShardError(f"{path} is missing, though index.json lists it. Make the shards again.")
    if (found := sha256_file(path)) != entry["sha256"]:
        raise ShardError(
            f"{path} is truncated or altered: its SHA-256 begins {found[:12]}, index.json says {entry['sha256'][:12]}. "
            "Make the shards again, or fetch the file again."
        )
    try:
        with h5py.File(path, "r", locking="best-effort") as file:
            rows = _read_file(file, index)
    except (OSError, KeyError, ValueError) as error:
        raise ShardError(f"{path} can't be read as a shard of schema {index['schema']} ({error}).") from error
    if len(rows) != entry["rows"]:
        raise ShardError(f"{path} has {len(rows)} rows; index.json says {entry['rows']}.")
    return rows


def _read_file(file: h5py.File, index: dict[str, Any]) -> ShardTable:
    if (schema := file.attrs["schema"]) != index["schema"]:
        raise ValueError(f"its schema is {schema}")
    fields = [str(name) for name in file.attrs["fields"]]
    texts = []
    for field in fields:
        group = file[f"texts/{field}"]
        texts.append(_unpacked(group["bytes"][:], group["offsets"][:]))
    table = TextTable(tuple(fields), list(zip(*texts, strict=True)), file["label"][:])
    columns = {name: file[name][:] for name in COLUMNS if schema != 1 or name != "index"}
    if {len(column) for column in (table.labels, *columns.values())} != {len(table)}:
        raise ValueError("its columns are of unequal length")
    if schema == 1 and _are_candidates(index):
        columns["index"] = columns.pop("seed")
    return shard_table(table, **columns)


def _are_candidates(index: dict[str, Any]) -> bool:
    """Whether rows are candidates; without a key they are a part of them, from which an interrupted job goes on."""
    return not index["key"] or not {"written", "ranked"}.isdisjoint(index["about"])


T = TypeVar("T")


@dataclass(frozen=True)
class Inspected:
    """Shards with their index, and the task that they are of, as it was when they were made."""

    folder: Path
    index: dict[str, Any]
    rows: ShardTable
    task: TaskConfig
    data: DataConfig

    @property
    def key(self) -> str:
        """The key of the shards' artifact."""
        return str(self.index["key"])

    @property
    def name(self) -> str:
        """The artifact's name for people, without its key."""
        return self.folder.name.removesuffix(f"-{self.key}")


def inspected(config: Config) -> Inspected:
    """The shards that `shard=` names. Raises ConfigError and ShardError."""
    if config.shard is None:
        raise ConfigError("shard is not set; name the folder of a data set, such as shard=runs/sst2/dilm-dpc5-<key>.")
    folder = Path(config.shard)
    if folder.is_file():
        folder = folder.parent
    if not folder.is_dir():
        raise ConfigError(
            f"shard {config.shard!r}: there is no such folder; `python -m dilm.generate` prints its name."
        )
    index = read_index(folder.resolve())
    made = index["about"].get("config", {})
    if not {"task", "data"} <= set(made):
        raise ShardError(f"{folder / 'index.json'} does not say how its texts were made; make them again.")
    task, data = _as(TaskConfig, made["task"], folder), _as(DataConfig, made["data"], folder)
    return Inspected(folder.resolve(), index, read_shards(folder.resolve()), task, data)


def _as(kind: type[T], values: dict[str, Any], folder: Path) -> T:
    try:
        found: T = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), values))  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ShardError(f"{folder / 'index.json'} is of another version of dilm ({reason}); make it again.") from error
    return found
