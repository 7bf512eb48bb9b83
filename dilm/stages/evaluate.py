"""Evaluation: train fresh learners on each tiny data set and score them on dev (paper, section 4.1).

A cell is one data set and one seed. Cells that are done, by whatever job, are skipped. Torch is loaded by the
evaluators that need it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dilm.artifacts.fingerprint import dataset_artifact
from dilm.artifacts.rows import Cell, Row, RowLog, RowWriter, claimed_cell
from dilm.artifacts.shards import read_shards
from dilm.config.schema import Config
from dilm.core import signals
from dilm.core.errors import CellsFailedError, DilmError
from dilm.data.corpus import load_split, sampled_dev, split_hash
from dilm.data.text_table import TextTable
from dilm.distributed.context import Context
from dilm.evaluation.cells import Predictor, SeedNames, Training, evaluation_cells
from dilm.evaluation.metrics import score
from dilm.tracking.tracker import Progress

POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Outcome:
    """How many cells were evaluated now, were there already, are with another job, and failed."""

    title: str  # task, data sets, and what learnt from them
    done: int
    found: int
    elsewhere: int
    values: list[float]


def run(config: Config) -> Outcome:
    """Evaluate every missing cell of one method, size and learner. Raises CellsFailedError at the end if any failed."""
    context = Context(config)
    root, cache = Path(config.root), context.cache
    data_hash, dev = split_hash(config.task, "train", cache), load_split(config.task, "dev", cache)
    shards = read_shards(dataset_artifact(config, data_hash).require())
    cells = evaluation_cells(config, data_hash, dev.content_hash)
    log = RowLog(root)
    done = log.begin(config.force)
    missing = [cell for cell in cells if cell.key not in done]
    if not missing:
        return Outcome(title_of(cells[0]), 0, len(cells), 0, [])
    numbers = sorted({cell.dataset for cell in missing})
    datasets = {number: shards.table.take(np.flatnonzero(shards.dataset == number)) for number in numbers}
    scored = sampled_dev(dev, config.evaluate.dev_rows, config.task.name)
    trainings = [Training(datasets[cell.dataset], names_of(config, cell)) for cell in missing]
    predict = _predictor(context, trainings, scored)

    def evaluate_one(cell: Cell) -> Row:
        return _evaluate_cell(config, cell, datasets[cell.dataset], scored, predict)

    return _evaluate_all(config, missing, evaluate_one, log, len(cells) - len(missing))


def _predictor(context: Context, trainings: list[Training], dev: TextTable) -> Predictor:
    """What learns from a data set and labels dev; loaded with models and dev once for all cells."""
    config = context.config
    if config.evaluator == "words":
        from dilm.models import bag_of_words

        return bag_of_words.bag_of_words(dev)
    if config.evaluator == "icl":
        from dilm.evaluation import icl

        return icl.predictor(context, dev)
    from dilm.evaluation import finetune

    return (finetune.frozen if config.learner.freeze_encoder else finetune.finetuned)(context, trainings, dev)


def names_of(config: Config, cell: Cell) -> SeedNames:
    """What seeds a cell's learner."""
    return ("evaluate", config.task.name, config.seed, cell.dataset, cell.seed)


def title_of(cell: Cell) -> str:
    """What a cell is one of: task, method and size, and what learns from the data sets."""
    size = f" dpc {cell.dpc}" if cell.dpc else ""
    return f"{cell.task} {cell.method}{size}, {cell.model} ({cell.evaluator})"


def _evaluate_all(
    config: Config, cells: list[Cell], evaluate_one: Callable[[Cell], Row], log: RowLog, found: int
) -> Outcome:
    """Evaluate what no other process does; at the end wait for those, and take over what they leave undone."""
    writer = RowWriter(Path(config.root))
    rows: list[Row] = []
    left, pending = cells, len(cells)
    with Progress(len(cells), f"evaluate {title_of(cells[0])}") as bar:
        while left:
            skipped = []
            for cell in left:
                signals.check_stop()
                settled, row = _claim_and_evaluate(cell, evaluate_one, log, writer)
                skipped += [] if settled else [cell]
                rows += [] if row is None else [row]
                bar.update(settled)
            left = [cell for cell in skipped if not log.settled(cell.key)]
            bar.update(len(skipped) - len(left))
            if left and len(left) == pending:
                time.sleep(POLL_SECONDS)
            pending = len(left)
    errors = [row.error for row in rows if row.error is not None]
    if errors:
        raise CellsFailedError(
            f"{len(errors)} of {len(cells)} cells failed; the first: {errors[0]}. Their rows are in {writer.path}; "
            "the same command evaluates them again."
        )
    values = [row.value for row in rows if row.value is not None]
    return Outcome(title_of(cells[0]), len(rows), found, len(cells) - len(rows), values)


def _claim_and_evaluate(
    cell: Cell, evaluate_one: Callable[[Cell], Row], log: RowLog, writer: RowWriter
) -> tuple[bool, Row | None]:
    """Whether nothing is left to do for the cell; and its row, written while its claim is held, if this made it."""
    with claimed_cell(writer.root, cell.key) as won:
        if not won:
            return False, None
        if log.settled(cell.key):
            return True, None
        row = evaluate_one(cell)
        writer.write(row)
        return True, row


def _evaluate_cell(config: Config, cell: Cell, dataset: TextTable, dev: TextTable, predict: Predictor) -> Row:
    """One cell's row; its failure is in the row and stops nobody else, but what the user must mend is raised."""
    started = time.monotonic()
    try:
        value, metrics = score(cell.metric, predict(dataset, names_of(config, cell)), dev.labels)
    except DilmError:
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        return Row(cell, "failed", error=text, seconds=time.monotonic() - started)
    return Row(cell, "done", value, metrics, seconds=time.monotonic() - started)
