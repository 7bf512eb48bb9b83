"""Two small tasks, and files and tables of their rows."""

import gzip
from pathlib import Path

from dilm.config.schema import TaskConfig
from dilm.data.text_table import TextTable, table

ONE = TaskConfig(name="one", fields=["sentence"], labels=["no", "yes"], folder="ONE")
TWO = TaskConfig(name="two", fields=["premise", "hypothesis"], labels=["a", "b", "c"])


def write(path: Path, content: str | bytes) -> Path:
    """Compressed where the name says so."""
    raw = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def write_rows(path: Path, task: TaskConfig, rows: list[tuple[str, ...]], end: str = "\n") -> Path:
    """A TSV file; the label is each row's last value."""
    lines = ["\t".join([*task.fields, "label"]), *("\t".join(row) for row in rows)]
    return write(path, "".join(line + end for line in lines))


def labelled(labels: list[int]) -> TextTable:
    return table(["sentence"], [(f"text {row}",) for row in range(len(labels))], labels)
