"""Result rows: one JSON object a line, one file a job, and exactly one `done` row a cell that counts.

A cell is (source artifact, data set, protocol, seed). Cells are claimed, so that jobs which overlap don't
evaluate one twice; a failed cell leaves a `failed` row with its error, and its neighbours go on.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from io import BytesIO
from operator import itemgetter
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, get_args

from dilm.artifacts import locks
from dilm.core.errors import ArgumentError
from dilm.core.hashing import content_key
from dilm.core.io import disk_full_named
from dilm.scheduler import job as job_module
from dilm.scheduler.job import rank_id, restarts

if TYPE_CHECKING:
    import pandas
    import pyarrow


SCHEMA = 1


@dataclass(frozen=True)
class Cell:
    """One evaluation: what is trained on which data set and scored by what, whether or not it has run."""

    key: str
    task: str
    method: str
    dpc: int
    dataset: int
    seed: int
    evaluator: str  # finetune, frozen, icl, words
    model: str
    metric: str
    source_key: str  # of the data sets
    protocol: str  # key of the evaluation's settings; of method=full, and behind a slash that of its own
    data_hash: str  # of the dev rows
    steps: int = 0
    dev_rows: int | None = None  # of a sample of dev; None: all
    pool: str = ""  # fresh or shared: whether the data sets are independent


@dataclass(frozen=True)
class Row:
    """The outcome of one cell."""

    cell: Cell
    status: str  # done, failed
    value: float | None = None  # in percent
    metrics: dict[str, float] = field(default_factory=dict)  # every metric, in percent
    seconds: float = 0.0
    error: str | None = None
    schema: int = SCHEMA
    host: str = ""
    job_id: str = ""
    time: str = ""

    def flat(self) -> dict[str, Any]:
        """The values of cell and outcome by name, in the order of a line in a file."""
        values = vars(self.cell) | vars(self)
        return {name: values[name] for name in NAMES}


NAMES = tuple(
    "key task method dpc dataset seed evaluator model metric value status source_key protocol data_hash metrics steps "
    "seconds error dev_rows pool schema host job_id time".split()
)
TYPES: dict[str, Any] = {item.name: item.type for kind in (Cell, Row) for item in fields(kind) if item.name != "cell"}
CELL_NAMES = [item.name for item in fields(Cell)]
OUTCOME_NAMES = [name for name in TYPES if name not in CELL_NAMES]
_cell_values, _outcome_values = itemgetter(*CELL_NAMES), itemgetter(*OUTCOME_NAMES)


def row_of(values: Mapping[str, Any]) -> Row:
    """The inverse of `Row.flat`. Unknown names are ignored; those with a default may be missing."""
    try:  # a third faster than by keywords, which counts where there are 100,000 rows
        return Row(Cell(*_cell_values(values)), *_outcome_values(values))
    except KeyError:
        pass
    cell = Cell(**{name: values[name] for name in CELL_NAMES if name in values})
    return Row(cell, **{name: values[name] for name in OUTCOME_NAMES if name in values})


def cell_key(source_key: str, dataset: int, protocol: dict[str, Any], seed: int) -> str:
    """The key of a cell: equal wherever and in whatever company it is evaluated."""
    return content_key({"source": source_key, "dataset": dataset, "protocol": protocol, "seed": seed})


def rows_folder(root: Path) -> Path:
    """Where the jobs' row files are."""
    return root / "rows"


def claim_file(root: Path, key: str) -> Path:
    """The claim of a cell."""
    return root / "claims" / key[:2] / key


def cut_torn_tail(path: Path) -> None:
    """Cut a file back to its last newline: what a killed writer left is no row."""
    with open(path, "rb+") as stream:
        content = stream.read()
        if keep := len(content) - len(content[: content.rfind(b"\n") + 1]):
            stream.truncate(len(content) - keep)
            os.fsync(stream.fileno())


class RowWriter:
    """Appends rows to this job's file, each flushed to disk before the next."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = rows_folder(root) / f"rows-{rank_id()}.jsonl"
        with disk_full_named(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                cut_torn_tail(self.path)

    def write(self, row: Row) -> None:
        """Append a row. Raises DiskFullError, and then leaves the file as it was."""
        stamped = row.flat() | {
            "host": os.uname().nodename,
            "job_id": rank_id(),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        line = (json.dumps(stamped, ensure_ascii=False) + "\n").encode()
        # Without a buffer, which would go on with the rest of the row when the file is closed.
        with disk_full_named(self.path), open(self.path, "ab", buffering=0) as stream:
            before = stream.tell()
            try:
                while line:
                    line = line[stream.write(line) :]
                os.fsync(stream.fileno())
            except OSError:
                os.truncate(self.path, before)
                raise


def read_rows(root: Path) -> list[Row]:
    """The row that counts of every cell, ordered by key."""
    rows = [row_of(values) for content in _contents(root) for values in _parse(content)]
    keys, statuses, times = ([row.cell.key for row in rows], [row.status for row in rows], [row.time for row in rows])
    return [rows[position] for position in _counting(keys, statuses, times)]


def read_table(root: Path) -> "pyarrow.Table":
    """The rows of `read_rows` as columns, without `metrics`; a fifth of the time where there are 100,000."""
    import pyarrow
    from pyarrow import compute, json

    types = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64()}
    schema = pyarrow.schema([(name, types[kind]) for name in NAMES if (kind := _plain(TYPES[name])) in types])
    lines = b"".join(_contents(root))
    if not lines:
        return schema.empty_table()
    how = json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    table = json.read_json(BytesIO(lines), parse_options=how)
    table = table.filter(compute.equal(table["schema"], SCHEMA))
    keys, statuses, times = (table[name].to_pylist() for name in ("key", "status", "time"))
    return table.take(_counting(keys, statuses, times))


def _contents(root: Path) -> list[bytes]:
    """The whole lines of every job's file: a torn tail is no row."""
    contents = [path.read_bytes() for path in sorted(rows_folder(root).glob("rows-*.jsonl"))]
    return [content[: content.rfind(b"\n") + 1] for content in contents]


def _counting(keys: Sequence[str], statuses: Sequence[str], times: Sequence[str]) -> list[int]:
    """Positions of the rows that count, ordered by key: of a cell's rows the newest `done` one, else the newest one.

    Of rows of the same second the one that was read last is the newest.
    """
    newest: dict[str, int] = {}
    newest_done: dict[str, int] = {}
    for position in sorted(range(len(keys)), key=times.__getitem__):
        (newest_done if statuses[position] == "done" else newest)[keys[position]] = position
    counted = newest | newest_done
    return [counted[key] for key in sorted(counted)]


def results(root: str | Path = "runs") -> "pandas.DataFrame":
    """The outcomes of all evaluation cells below `root`, one a row: the columns of `Row` but `metrics`.

    `value` is in percent and NaN where `status` is "failed"; `error` then says why. Raises ArgumentError where nothing
    has been evaluated.
    """
    folder = Path(root).expanduser()
    if not rows_folder(folder).is_dir():
        raise ArgumentError(
            f"root {str(root)!r}: there is no {rows_folder(folder)}. Name the root= of `python -m dilm.evaluate`, "
            "which writes it."
        )
    frame: pandas.DataFrame = read_table(folder).to_pandas()
    return frame


def _plain(annotation: Any) -> Any:
    """The type of a field, without that it may also be None."""
    return get_args(annotation)[0] if isinstance(annotation, UnionType) else annotation


def _parse(content: bytes) -> Iterator[dict[str, Any]]:
    """The values of whole lines, of this schema alone."""
    for line in content.split(b"\n")[:-1]:
        values = json.loads(line)
        if values.get("schema") == SCHEMA:
            yield values


class RowLog:
    """What all jobs' rows tell of cells, kept up to date by reading what was appended since."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._read: dict[Path, int] = {}  # bytes of each file that have been seen
        self._done: dict[str, set[str]] = {}  # key: jobs that did it
        self._settled: set[str] = set()

    def _update(self) -> None:
        for path in sorted(rows_folder(self.root).glob("rows-*.jsonl")):
            seen = self._read.get(path, 0)
            if path.stat().st_size <= seen:
                continue
            with open(path, "rb") as stream:
                stream.seek(seen)
                content = stream.read()
            whole = content[: content.rfind(b"\n") + 1]
            self._read[path] = seen + len(whole)
            for row in _parse(whole):
                self._settled.add(row["key"])
                if row["status"] == "done":
                    self._done.setdefault(row["key"], set()).add(row["job_id"].partition("-rank")[0])

    def begin(self, force: bool = False) -> set[str]:
        """Keys of the cells that need not be evaluated; with `force`, those that this very job did before a requeue.

        From now on `settled` counts these, and whatever another row comes of.
        """
        self._update()
        mine = {job_module.job_id()} if restarts() else set()
        done = {key for key, by in self._done.items() if not force or by & mine}
        self._settled = set(done)
        return done

    def settled(self, key: str) -> bool:
        """Whether nothing is left to do for a cell: another process has done it meanwhile, or has failed at it."""
        self._update()
        return key in self._settled


@contextmanager
def claimed_cell(root: Path, key: str) -> Iterator[bool]:
    """Hold a cell for the block; yields False where another live job has it."""
    with locks.held(claim_file(root, key)) as won:
        yield won
