"""Data sets that others published, as JSON lines: one file a data set, a line's text by the task's fields and `labels`.

They are brought into shards, so that they are evaluated by the same protocol as everything else. Torch-free.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from dilm.config import Config
from dilm.errors import ConfigError, DataError
from dilm.files import sha256_file
from dilm.tables import TextTable, read_table

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
