"""Collecting the rows of a large study. The released scripts have nothing that does this."""

import json
from collections.abc import Sequence
from itertools import islice, product
from pathlib import Path

import numpy as np

from benchmarks.timing import Call, Contest, Done, seconds
from dilm.artifacts.rows import Cell, Row, rows_folder
from dilm.stages.collect import run

ROWS = 100_000
TASKS, LEARNERS = 4, 4
METHODS = ("random", "k_centers", "herding", "rank", "lm", "dilm", "published")
SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500)
DATASETS, SEEDS = 20, 5
FILES = 50  # jobs
GOAL = 5.0  # seconds


def contest(keys: Sequence[str], small: bool, folder: Path) -> Contest:
    """Tables, plots and CSV of 100,000 cells of four tasks, four learners, seven methods and nine sizes."""
    size = 1_000 if small else ROWS
    return Contest(
        "collect", "rows", {"ours": lambda: _ours(size, folder)}, [seconds("ours", GOAL)], note=f"{size:,} rows"
    )


def _ours(size: int, folder: Path) -> Call:
    write_rows(folder / "runs", size)

    def call() -> Done:
        tables = run(folder / "runs", folder / "report")
        cells = sum(summary.n_models for table in tables for summary in table.summaries.values())
        if cells != size:
            raise RuntimeError(f"collect: {cells} of {size} cells are in the tables")
        return Done(size)

    return call


def write_rows(root: Path, size: int) -> None:
    """Done rows of so many cells, spread over the files of many jobs."""
    random = np.random.default_rng(0)
    rows_folder(root).mkdir(parents=True)
    streams = [open(rows_folder(root) / f"rows-{number}.jsonl", "w") for number in range(FILES)]  # noqa: SIM115
    axes = product(range(TASKS), range(LEARNERS), METHODS, SIZES, range(DATASETS), range(SEEDS))
    for number, (task, learner, method, dpc, dataset, seed) in enumerate(islice(axes, size)):
        value = 60 + dpc / 2 + METHODS.index(method) + random.normal()
        cell = Cell(
            key=f"{number:012x}", task=f"task{task}", method=method, dpc=dpc, dataset=dataset, seed=seed,
            evaluator="finetune", model=f"learner{learner}", metric="accuracy",
            source_key=f"{task}-{method}-{dpc}", protocol="p", data_hash=f"d{task}", pool="fresh",
        )  # fmt: skip
        row = Row(cell, "done", value, {"accuracy": value}, time="2025-01-01T00:00:00Z")
        streams[number % FILES].write(json.dumps(row.flat()) + "\n")
    for stream in streams:
        stream.close()
