"""The learner as evaluator: trained afresh on each tiny data set, as a whole or its head alone (paper, section 4.1)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dilm.clustering import plain_batches
from dilm.config import Config, OptimizerConfig
from dilm.device import pick_device, seeded
from dilm.engine import TorchEngine
from dilm.features import FeatureStore
from dilm.keys import derive_seed
from dilm.learner import Learner, build_learner, forward_all, text_loss
from dilm.results import Predict
from dilm.tables import TextTable


@dataclass(frozen=True)
class Schedule:
    """How a learner is trained on a data set."""

    steps: int
    batch: int
    optimizer: OptimizerConfig


def schedule_of(config: Config, n_texts: int) -> Schedule:
    """Steps, batch and optimizer for a data set of so many texts: `method=full` has a schedule of its own."""
    settings = config.evaluate
    found = Schedule(settings.steps, settings.batch, settings.optimizer)
    if config.method == "full":
        full = settings.full
        found = Schedule(full.epochs * -(-n_texts // full.batch), full.batch, full.optimizer)
    if config.learner.freeze_encoder:
        found = replace(found, optimizer=replace(found.optimizer, lr=settings.head_lr))
    return found


def finetuned(config: Config, datasets: list[TextTable], dev: TextTable, cache: Path) -> Predict:
    """The whole learner is trained. Dev is tokenised once."""
    device = pick_device(config.device, config.threads)
    learner = build_learner(config.learner, len(config.task.labels), cache, device)
    dev_tokens = learner.tokenize_once(dev)

    def predict(dataset: TextTable, names: tuple[str | int, ...]) -> np.ndarray:
        train_learner(learner, dataset, config, names)
        logits_NC = forward_all(learner, dev_tokens, "forward", config.precision)
        return logits_NC.argmax(1).numpy()

    return predict


def train_learner(learner: Learner, dataset: TextTable, config: Config, names: tuple[str | int, ...]) -> None:
    """Train a fresh learner on a tiny data set, dropout on."""
    schedule = schedule_of(config, len(dataset))
    learner.fresh(*names)
    tokens = learner.tokenize_once(dataset) if config.method == "full" else learner.tokenize(dataset.texts)
    engine = TorchEngine(learner, schedule.optimizer, schedule.steps)
    batches = _batches(len(dataset), schedule.batch, names)
    learner.train()
    with seeded(derive_seed("dropout", *names), learner.device):
        for _ in range(schedule.steps):
            rows = next(batches)
            drawn = [tokens[row] for row in rows]
            engine.step(partial(text_loss, learner, drawn, dataset.labels[rows], config.precision))


def frozen(config: Config, datasets: list[TextTable], dev: TextTable, cache: Path) -> Predict:
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
    schedule = schedule_of(config, len(labels_B))
    with seeded(derive_seed("head", *names), torch.device("cpu")):
        head = nn.Linear(features_BD.shape[1], len(config.task.labels))
        nn.init.normal_(head.weight, std=0.02)
    engine = TorchEngine(head, schedule.optimizer, schedule.steps)
    batches = _batches(len(labels_B), schedule.batch, names)
    labels = torch.as_tensor(labels_B)

    def head_loss(features: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(head(features), targets)

    for _ in range(schedule.steps):
        rows = torch.as_tensor(next(batches))
        engine.step(partial(head_loss, features_BD[rows], labels[rows]))
    return head


def _batches(n: int, size: int, names: tuple[str | int, ...]) -> Iterator[np.ndarray]:
    return plain_batches(n, min(size, n), np.random.default_rng(derive_seed("batches", *names)))
