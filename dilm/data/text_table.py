"""Tables of labelled texts with one index by label, and how they are read from TSV, CSV and JSON-lines files."""

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

import numpy as np

from dilm.config.schema import Config, TaskConfig
from dilm.core.errors import ConfigError, DataError
from dilm.core.io import sha256_file
from dilm.data.templates import fold_space


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


def read_table(path: Path, task: TaskConfig) -> TextTable:
    """Read a file of labelled texts, plain or .gz, by its ending. Raises DataError with file and line.

    `.tsv`: a header, no quoting, texts as they are. `.csv`: a header, quotes as Python's csv module and spreadsheets
    write them. `.jsonl`: one object a line. White space in the last two is folded. Columns are found by name, others
    are ignored; the label is its index or its name.
    """
    ending = path.name.removesuffix(".gz").rpartition(".")[2]
    if ending not in _READERS:
        raise DataError(f"{path}: the ending tells the format; it must be {', '.join(_READERS)}, or one with .gz.")
    known = _known_labels(task)
    texts, labels = [], []
    for number, (*text, label) in _READERS[ending](_decoded(path), [*task.fields, task.label], path):
        if label not in known:
            numbers = "" if len(known) == len(task.labels) else f"0 to {len(task.labels) - 1}, or one of "
            allowed = f"{numbers}{', '.join(task.labels)}"
            raise DataError(f"{path}, line {number}: label {label!r}; it must be {allowed}.")
        if not all(map(str.strip, text)):
            name = next(name for name, value in zip(task.fields, text, strict=True) if not value.strip())
            raise DataError(f"{path}, line {number}: field {name!r} is empty; remove the row.")
        texts.append(tuple(text))
        labels.append(known[label])
    return table(task.fields, texts, labels)


def _known_labels(task: TaskConfig) -> dict[str, int]:
    """What a row's label may be: its index or its name; its name alone where a name is a number, as of stars."""
    names = {name: index for index, name in enumerate(task.labels)}
    numbers = {} if any(map(str.isdecimal, names)) else {str(index): index for index in names.values()}
    return numbers | names


def _decoded(path: Path) -> str:
    """The file's characters, without the mark that some programs put first."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as stream:
            content = stream.read()
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path}: can't be read ({error}). Fetch the file again.") from error
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        place = error.start - content.rfind(b"\n", 0, error.start) - 1
        raise DataError(f"{path}, line {line}: not valid UTF-8 ({error.reason} at byte {place}).") from error


Rows = Iterator[tuple[int, list[str]]]  # a row's first line in the file; its texts, then its label


def _tsv(content: str, names: list[str], path: Path) -> Rows:
    lines = content.split("\n")
    if not lines[-1]:
        lines.pop()
    header = lines[0].rstrip("\r").split("\t") if lines else []
    columns = _columns(header, names, path, "tab")
    for number, line in enumerate(lines[1:], start=2):
        values = line.rstrip("\r").split("\t")
        if len(values) != len(header):
            raise DataError(f"{path}, line {number}: {len(values)} tab-separated values; there must be {len(header)}.")
        yield number, [values[column] for column in columns]


def _csv(content: str, names: list[str], path: Path) -> Rows:
    rows = csv.reader(io.StringIO(content, newline=""), strict=True)
    number = 1  # of the line that a row starts on: a quoted value may run over several
    try:
        header = [name.strip() for name in next(rows, [])]
        columns = _columns(header, names, path, "comma")
        number = rows.line_num + 1
        for values in rows:
            if values and len(values) != len(header):
                raise DataError(
                    f"{path}, line {number}: {len(values)} comma-separated values; there must be {len(header)}."
                )
            if values:  # else an empty line
                yield number, [fold_space(values[column]) for column in columns]
            number = rows.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, line {number}: not valid CSV ({error}).") from error


def _columns(header: list[str], names: list[str], path: Path, separator: str) -> list[int]:
    """Where the columns with these names are."""
    for name in names:
        if header.count(name) != 1:
            found = f"the header {chr(9).join(header)[:80]!r}" if header else "an empty file"
            raise DataError(
                f"{path}, line 1: {found} has no column {name!r}, or several; the {separator}-separated header must "
                f"have {', '.join(names)}, in any order (task.fields and task.label name them)."
            )
    return [header.index(name) for name in names]


def _jsonl(content: str, names: list[str], path: Path) -> Rows:
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            yield number, _object_values(line, names, f"{path}, line {number}")


def _object_values(line: str, names: list[str], where: str) -> list[str]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON ({getattr(error, 'msg', error)}).") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: {line.strip()[:40]!r}; there must be one object, {{...}}.")
    if missing := [name for name in names if name not in row]:
        found = ", ".join(row) or "nothing"
        raise DataError(f"{where}: the keys are {found}; there must be {', '.join(names)}: {missing[0]!r} is missing.")
    *texts, label = [row[name] for name in names]
    for name, text in zip(names, texts, strict=False):
        if not isinstance(text, str) or not _is_unicode(text):
            raise DataError(f"{where}: field {name!r} is {json.dumps(text)[:40]}; it must be a string of text.")
    label = label if isinstance(label, str) else json.dumps(label)
    return [fold_space(value) for value in (*texts, label)]


def _is_unicode(text: str) -> bool:
    """Whether a text can be written: JSON may escape halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_READERS: dict[str, Callable[[str, list[str], Path], Rows]] = {"tsv": _tsv, "csv": _csv, "jsonl": _jsonl}
LABELS = "labels"  # the column's name in such files


def published_files(config: Config) -> list[Path]:
    """The files of `published.path`, as many as `n_datasets`, in the order of their numbers. Raises ConfigError."""
    if config.published.path is None:
        raise ConfigError("method=published needs published.path=<a folder of *.jsonl, one data set a file>.")
    folder = Path(config.published.path).expanduser()
    files = sorted(folder.glob("*.jsonl"), key=lambda file: (len(file.name), file.name))
    if not files:
        raise ConfigError(f"published.path {str(folder)!r} has no *.jsonl, one data set a file.")
    return files[: config.n_datasets]


def published_hashes(config: Config) -> list[str]:
    """What determines the data sets: the content of each file."""
    return [sha256_file(file) for file in published_files(config)]


def read_published(config: Config) -> list[TextTable]:
    """The data sets. Raises DataError for a file that isn't `dpc` texts of every label."""
    found = []
    for file in published_files(config):
        rows = read_table(file, replace(config.task, label=LABELS))
        counts = np.bincount(rows.labels, minlength=len(config.task.labels)).tolist()
        if counts != [config.dpc] * len(config.task.labels):
            raise DataError(f"{file}: {counts} texts of the labels, but dpc={config.dpc}; set dpc, or published.path.")
        found.append(rows)
    return found
