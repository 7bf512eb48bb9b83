"""The learner as evaluator: trained afresh on each tiny data set, as a whole or its head alone (paper, section 4.1)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from dilm.config.schema import Config, OptimizerConfig
from dilm.core.hashing import Names, derive_seed
from dilm.data.samplers import plain_batches
from dilm.data.text_table import TextTable
from dilm.distributed.context import Context
from dilm.distributed.device import seeded
from dilm.evaluation.cells import Predictor, SeedNames, Training
from dilm.models.features import FeatureStore
from dilm.models.learner import Learner, build_learner, forward_all, text_loss
from dilm.training.engine import TorchEngine
from dilm.training.optimizer import adamw, warmup_cosine

HEADS = 128  # trained side by side


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


def finetuned(context: Context, trainings: Sequence[Training], dev: TextTable) -> Predictor:
    """A predictor that trains the whole learner afresh on each data set. Dev is tokenised once."""
    config = context.config
    learner = build_learner(config.learner, context.n_labels, context.cache, context.device)
    dev_tokens = learner.tokenize_once(dev)

    def predict(dataset: TextTable, names: Names) -> np.ndarray:
        train_learner(learner, dataset, config, names)
        logits_NC = forward_all(learner, dev_tokens, "forward", config.precision)
        return logits_NC.argmax(1).numpy()

    return predict


def train_learner(learner: Learner, dataset: TextTable, config: Config, names: Names) -> None:
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


def frozen(context: Context, trainings: Sequence[Training], dev: TextTable) -> Predictor:
    """A predictor that trains a head alone, on features that are computed once.

    Up to `HEADS` of the trainings whose data sets are of one size are done side by side.
    """
    config = context.config
    store = FeatureStore(config.learner, context.n_labels, context.cache, context.device, config.precision)
    dev_features = store.get(dev.texts, "features")
    texts = sorted({text for dataset, _ in trainings for text in dataset.texts})
    features = dict(zip(texts, store.get(texts, "features"), strict=True))
    predicted: dict[SeedNames, np.ndarray] = {}

    def predict(dataset: TextTable, names: SeedNames) -> np.ndarray:
        if names not in predicted:
            alike = [other for other in trainings if len(other.dataset) == len(dataset)]
            left = [other for other in alike if other.names not in predicted and other.names != names]
            train([Training(dataset, names), *left][:HEADS])
        return predicted[names]

    def train(together: list[Training]) -> None:
        stacked = {id(dataset): torch.stack([features[text] for text in dataset.texts]) for dataset, _ in together}
        # One number brings every encoder's features to the same size, so that one learning rate serves them all.
        scales = {number: features_BD.square().mean().sqrt() for number, features_BD in stacked.items()}
        scaled = {number: features_BD / scales[number] for number, features_BD in stacked.items()}
        examples = [(scaled[id(dataset)], torch.as_tensor(dataset.labels)) for dataset, _ in together]
        heads = train_heads(examples, config, [names for _, names in together])
        for (dataset, names), weight_CD, bias_C in zip(together, *heads, strict=True):
            logits_NC = nn.functional.linear(dev_features / scales[id(dataset)], weight_CD, bias_C)
            predicted[names] = logits_NC.argmax(1).numpy()

    return predict


def train_heads(
    examples: Sequence[tuple[Tensor, Tensor]], config: Config, names: Sequence[Names]
) -> tuple[Tensor, Tensor]:
    """Linear classifiers, weights_KCD and biases_KC, by the learner's own schedule with the head's learning rate.

    Each has its own features_BD and labels_B, as many as the others, and its own draws. They are trained side by side:
    so small a model's step is mostly the calls that it takes.
    """
    n, n_labels, n_heads = len(examples[0][1]), len(config.task.labels), len(names)
    schedule = schedule_of(config, n)
    drawn = [_new_head(examples[0][0].shape[1], n_labels, own) for own in names]
    heads = nn.ParameterList([torch.stack([head.weight for head in drawn]), torch.cat([head.bias for head in drawn])])
    weights_KCD, biases = heads  # the biases have one dimension, which is how the optimizer knows them
    optimizer = adamw(heads, schedule.optimizer)
    rate = warmup_cosine(optimizer, schedule.optimizer, schedule.steps)
    batches = [_batches(n, schedule.batch, own) for own in names]
    for _ in range(schedule.steps):
        drawn_rows = [next(own) for own in batches]
        pairs = zip(examples, drawn_rows, strict=True)
        parts = [(features_BD[rows], labels_B[rows]) for (features_BD, labels_B), rows in pairs]
        features_KBD, labels_KB = map(torch.stack, zip(*parts, strict=True))
        logits_KBC = features_KBD @ weights_KCD.mT + biases.view(n_heads, 1, n_labels)
        nn.functional.cross_entropy(logits_KBC.mT, labels_KB, reduction="none").mean(1).sum().backward()
        gradients_KP = torch.cat([weights_KCD.grad.flatten(1), biases.grad.view(n_heads, n_labels)], 1)
        factors_K = (schedule.optimizer.clip / (gradients_KP.norm(dim=1) + 1e-6)).clamp_max(1)  # as torch clips
        weights_KCD.grad *= factors_K[:, None, None]
        biases.grad *= factors_K.repeat_interleave(n_labels)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
    return weights_KCD.detach(), biases.detach().view(n_heads, n_labels)


def _new_head(width: int, n_labels: int, names: Names) -> nn.Linear:
    with seeded(derive_seed("head", *names), torch.device("cpu")):
        head = nn.Linear(width, n_labels)
        nn.init.normal_(head.weight, std=0.02)
    return head


def _batches(n: int, size: int, names: Names) -> Iterator[np.ndarray]:
    return plain_batches(n, min(size, n), np.random.default_rng(derive_seed("batches", *names)))
