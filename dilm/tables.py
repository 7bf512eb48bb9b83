"""Tables of labelled texts, and the files that they are read from: TSV, CSV and JSON lines. Torch-free.

Columns are found by name, others are left alone. A label is an index into the task's labels, or one of their names.
"""

import csv
import gzip
import hashlib
import io
import itertools
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dilm.config import TaskConfig
from dilm.errors import DataError, did_you_mean
from dilm.text import fold_space

CELL_BYTES = 1 << 27  # the longest cell of a CSV file; the csv module's own limit is 128 KiB


@dataclass(frozen=True)
class TextTable:
    """Rows of labelled texts. A text is a tuple with one string a field."""

    fields: tuple[str, ...]
    texts: list[tuple[str, ...]]
    labels: np.ndarray  # (n,) int64

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Sequence[int] | np.ndarray) -> "TextTable":
        """The rows with these indices, in this order."""
        return replace(self, texts=[self.texts[row] for row in rows], labels=self.labels[np.asarray(rows, dtype=int)])

    @cached_property
    def rows_by_label(self) -> dict[int, np.ndarray]:
        """Row indices of each label, ascending; made by one stable sort."""
        order = np.argsort(self.labels, kind="stable")
        present, starts = np.unique(self.labels[order], return_index=True)
        return {int(label): rows for label, rows in zip(present, np.split(order, starts)[1:], strict=True)}

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over fields, texts and labels, whatever file they came from."""
        digest = hashlib.sha256()
        rows = ([*text, str(int(label))] for text, label in zip(self.texts, self.labels, strict=True))
        for row in itertools.chain([list(self.fields)], rows):
            for value in row:
                encoded = value.encode("utf-8", "surrogatepass")
                digest.update(b"%d:%b" % (len(encoded), encoded))  # with its length, so that nothing runs together
            digest.update(b"\n")
        return digest.hexdigest()


def table(fields: Sequence[str], texts: list[tuple[str, ...]], labels: Sequence[int] | np.ndarray) -> TextTable:
    """A table from plain lists."""
    return TextTable(tuple(fields), texts, np.asarray(labels, dtype=np.int64))


Rows = Iterator[tuple[int, list[Any]]]  # line in the file, and the values of the task's columns, the label last


def read_table(path: Path, task: TaskConfig) -> TextTable:
    """Read a file, `.gz` or not, by its suffix: `.tsv` (no quoting), `.csv` or `.jsonl`.

    Raises DataError, which names file and line, for whatever is not a row of the task.
    """
    form = path.name.removesuffix(".gz").rpartition(".")[2]
    if form not in FORMATS:
        raise DataError(f"{path}: a file's name must end in .{', .'.join(FORMATS)}, or one of these and .gz.")
    known = {str(index): index for index in range(len(task.labels))}
    known |= {name: index for index, name in enumerate(task.labels) if name not in known}
    texts, labels = [], []
    for number, values in FORMATS[form](_decoded(path), task, path):
        *text, label = values
        where = f"{path}, line {number}"
        if (index := known.get(str(label))) is None:
            allowed = f"0 to {len(task.labels) - 1} ({', '.join(task.labels)})"
            raise DataError(f"{where}: label {label!r}; it must be {allowed}, or one of these names.")
        texts.append(tuple(_checked(task.fields, text, where)))
        labels.append(index)
    return table(task.fields, texts, labels)


def _checked(fields: Sequence[str], text: list[Any], where: str) -> list[str]:
    for name, value in zip(fields, text, strict=True):
        if not isinstance(value, str):
            raise DataError(f"{where}: field {name!r} is {value!r}; it must be a text.")
        if not value or value.isspace():
            raise DataError(f"{where}: field {name!r} is empty; remove the row.")
    return text


def _decoded(path: Path) -> str:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as stream:
            raw = stream.read()
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path}: can't be read ({error}). Fetch the file again.") from error
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        place = error.start - before.rfind(b"\n") - 1
        line = before.count(b"\n") + 1
        raise DataError(f"{path}, line {line}: not valid UTF-8 ({error.reason} at byte {place}).") from error


def _columns(task: TaskConfig, head: list[str], path: Path) -> list[int]:
    """Where a header has the task's fields and its label."""
    wanted = [*task.fields, task.label]
    if missing := [name for name in wanted if name not in head]:
        found = ", ".join(head)[:80] or "an empty file"
        raise DataError(
            f"{path}, line 1: the header has no {missing[0]!r}, but {found}; the task's columns are "
            f"{', '.join(wanted)} (task.fields, task.label)."
        )
    return [head.index(name) for name in wanted]


def _tsv(content: str, task: TaskConfig, path: Path) -> Rows:
    """No quoting: a quotation mark is an ordinary character."""
    lines = content.split("\n")
    if not lines[-1]:
        lines.pop()
    head = lines[0].rstrip("\r").split("\t") if lines else []
    columns = _columns(task, head, path)
    for number, line in enumerate(lines[1:], start=2):
        values = line.rstrip("\r").split("\t")
        if len(values) != len(head):
            raise DataError(
                f"{path}, line {number}: {len(values)} tab-separated values; there must be {len(head)}, as in line 1."
            )
        yield number, [values[column] for column in columns]


def _csv(content: str, task: TaskConfig, path: Path) -> Rows:
    """With the usual quoting; a quoted text may run over several lines, which are folded as all white space is."""
    csv.field_size_limit(CELL_BYTES)
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    try:
        head = next(reader, [])
        columns = _columns(task, head, path)
        start = reader.line_num + 1
        for values in reader:
            if values and len(values) != len(head):
                raise DataError(
                    f"{path}, line {start}: {len(values)} comma-separated values; there must be {len(head)}, as in "
                    "line 1."
                )
            if values:
                yield start, [fold_space(values[column]) for column in columns]
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not valid CSV ({error}).") from error


def _jsonl(content: str, task: TaskConfig, path: Path) -> Rows:
    """One object a line."""
    wanted = [*task.fields, task.label]
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}: not valid JSON ({error.msg} at column {error.colno}).") from error
        if not isinstance(values, dict):
            raise DataError(f"{path}, line {number}: {line[:40]!r} is no JSON object, as {{...}}.")
        if missing := [name for name in wanted if name not in values]:
            raise DataError(f"{path}, line {number}: no {missing[0]!r}.{did_you_mean(missing[0], values)}")
        yield number, [fold_space(value) if isinstance(value, str) else value for value in map(values.get, wanted)]


FORMATS: dict[str, Callable[[str, TaskConfig, Path], Rows]] = {"tsv": _tsv, "csv": _csv, "jsonl": _jsonl}
