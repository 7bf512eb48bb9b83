"""Evaluation: train fresh learners on each tiny data set and score them on dev (paper, section 4.1).

A cell is one data set and one seed. Cells that are done, by whatever job, are skipped.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dilm.artifacts import dataset_artifact, protocol_science
from dilm.clustering import plain_batches
from dilm.config import Config, OptimizerConfig
from dilm.data import TextTable, load_corpus, load_split
from dilm.device import pick_device, seeded
from dilm.engine import TorchEngine
from dilm.errors import CellsFailedError, DilmError
from dilm.features import FeatureStore
from dilm.keys import content_key, derive_seed
from dilm.learner import Learner, build_learner, forward_all, text_loss
from dilm.metrics import score
from dilm.results import DoneCells, Row, RowWriter, cell_key, claimed_cell
from dilm.shards import read_shards
from dilm.sources import cache_folder
from dilm.tracking import Progress

Predict = Callable[[TextTable, tuple[str | int, ...]], np.ndarray]  # data set, names of its seed -> dev labels


@dataclass(frozen=True)
class Outcome:
    """How many cells were evaluated now, were there already, are with another job, and failed."""

    done: int
    found: int
    elsewhere: int
    values: list[float]


def run(config: Config) -> Outcome:
    """Evaluate every missing cell of one method, size and learner. Raises CellsFailedError at the end if any failed."""
    root, cache = Path(config.root), cache_folder(config.cache)
    corpus = load_corpus(config.task, config.data, cache)
    source = dataset_artifact(config, corpus.content_hash)
    shards = read_shards(source.require())
    dev = load_split(config.task, "dev", cache)
    protocol = protocol_science(config, dev.content_hash)
    frozen = config.learner.freeze_encoder
    blank = Row(
        key="", task=config.task.name, method=config.method, dpc=config.dpc, dataset=0, seed=0,
        evaluator="frozen" if frozen else "finetune", model=config.learner.name, metric=config.task.metric,
        value=None, status="failed", source_key=source.key, protocol=content_key(protocol),
        data_hash=dev.content_hash, steps=config.evaluate.steps, pool=config.generate.pool,
    )  # fmt: skip
    n_datasets = config.evaluate.n_datasets or config.n_datasets
    cells = [
        replace(blank, dataset=dataset, seed=seed, key=cell_key(source.key, dataset, protocol, seed))
        for dataset in range(n_datasets)
        for seed in range(config.n_seeds)
    ]
    done = DoneCells(root)
    missing = [cell for cell in cells if config.force or cell.key not in done]
    if not missing:
        return Outcome(0, len(cells), 0, [])
    datasets = [shards.table.take(np.flatnonzero(shards.dataset == dataset)) for dataset in range(n_datasets)]
    predict = (_frozen if frozen else _finetune)(config, datasets, dev, cache)

    def evaluate_one(cell: Row) -> Row:
        return _evaluate_cell(config, cell, datasets[cell.dataset], dev, predict)

    return _evaluate_all(config, missing, evaluate_one, done, len(cells) - len(missing))


def _evaluate_all(
    config: Config, cells: list[Row], evaluate_one: Callable[[Row], Row], done: DoneCells, found: int
) -> Outcome:
    writer = RowWriter(Path(config.root))
    rows: list[Row] = []
    title = f"evaluate {config.method} dpc {config.dpc} {cells[0].model} ({cells[0].evaluator})"
    with Progress(len(cells), title) as bar:
        for cell in cells:
            row = _claim_and_evaluate(config, cell, evaluate_one, done, writer)
            rows += [] if row is None else [row]
            bar.update()
    errors = [row.error for row in rows if row.error is not None]
    if errors:
        raise CellsFailedError(
            f"{len(errors)} of {len(cells)} cells failed; the first: {errors[0]}. Their rows are in {writer.path}; "
            "the same command evaluates them again."
        )
    return Outcome(len(rows), found, len(cells) - len(rows), [row.value for row in rows if row.value is not None])


def _claim_and_evaluate(
    config: Config, cell: Row, evaluate_one: Callable[[Row], Row], done: DoneCells, writer: RowWriter
) -> Row | None:
    """The cell's row, written while its claim is held; None where another job has the cell or has done it meanwhile."""
    with claimed_cell(writer.root, cell.key) as won:
        if not won or (cell.key in done and not config.force):
            return None
        row = evaluate_one(cell)
        writer.write(row)
        return row


def _evaluate_cell(config: Config, cell: Row, dataset: TextTable, dev: TextTable, predict: Predict) -> Row:
    """One cell's row; its failure is in the row and stops nobody else, but what the user must mend is raised."""
    started = time.monotonic()
    try:
        names = ("evaluate", cell.task, config.seed, cell.dataset, cell.seed)
        value, metrics = score(cell.metric, predict(dataset, names), dev.labels)
    except DilmError:
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        return replace(cell, status="failed", error=text, seconds=time.monotonic() - started)
    return replace(cell, status="done", value=value, metrics=metrics, seconds=time.monotonic() - started)


def _finetune(config: Config, datasets: list[TextTable], dev: TextTable, cache: Path) -> Predict:
    """The whole learner is trained. Dev is tokenised once."""
    device = pick_device(config.device, config.threads)
    learner = build_learner(config.learner, len(config.task.labels), cache, device)
    dev_tokens = learner.tokenize(dev.texts)

    def predict(dataset: TextTable, names: tuple[str | int, ...]) -> np.ndarray:
        train_learner(learner, dataset, config, names)
        logits_NC = forward_all(learner, dev_tokens, "forward", config.precision)
        return logits_NC.argmax(1).numpy()

    return predict


def train_learner(learner: Learner, dataset: TextTable, config: Config, names: tuple[str | int, ...]) -> None:
    """Train a fresh learner on a tiny data set, dropout on."""
    settings = config.evaluate
    learner.fresh(*names)
    tokens = learner.tokenize(dataset.texts)
    engine = TorchEngine(learner, settings.optimizer, settings.steps)
    batches = _batches(len(dataset), settings.batch, names)
    learner.train()
    with seeded(derive_seed("dropout", *names), learner.device):
        for _ in range(settings.steps):
            rows = next(batches)
            drawn = [tokens[row] for row in rows]
            engine.step(partial(text_loss, learner, drawn, dataset.labels[rows], config.precision))


def _frozen(config: Config, datasets: list[TextTable], dev: TextTable, cache: Path) -> Predict:
    """The head alone is trained, on features that are computed once."""
    device = pick_device(config.device, config.threads)
    store = FeatureStore(config.learner, len(config.task.labels), cache, device, config.precision)
    dev_features = store.get(dev.texts, "features")
    texts = sorted({text for dataset in datasets for text in dataset.texts})
    features = dict(zip(texts, store.get(texts, "features"), strict=True))

    def predict(dataset: TextTable, names: tuple[str | int, ...]) -> np.ndarray:
        features_BD = torch.stack([features[text] for text in dataset.texts])
        # One number brings every encoder's features to the same size, so that one learning rate serves them all.
        scale = features_BD.square().mean().sqrt()
        head = train_head(features_BD / scale, dataset.labels, config, names)
        with torch.inference_mode():
            return head(dev_features / scale).argmax(1).numpy()

    return predict


def train_head(features_BD: Tensor, labels_B: np.ndarray, config: Config, names: tuple[str | int, ...]) -> nn.Linear:
    """A linear classifier trained by the learner's own schedule, with the head's learning rate."""
    settings = config.evaluate
    optimizer = OptimizerConfig(**{**vars(settings.optimizer), "lr": settings.head_lr})
    with seeded(derive_seed("head", *names), torch.device("cpu")):
        head = nn.Linear(features_BD.shape[1], len(config.task.labels))
        nn.init.normal_(head.weight, std=0.02)
    engine = TorchEngine(head, optimizer, settings.steps)
    batches = _batches(len(labels_B), settings.batch, names)
    labels = torch.as_tensor(labels_B)

    def head_loss(features: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(head(features), targets)

    for _ in range(settings.steps):
        rows = torch.as_tensor(next(batches))
        engine.step(partial(head_loss, features_BD[rows], labels[rows]))
    return head


def _batches(n: int, size: int, names: tuple[str | int, ...]) -> Iterator[np.ndarray]:
    return plain_batches(n, min(size, n), np.random.default_rng(derive_seed("batches", *names)))
