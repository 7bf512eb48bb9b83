"""A cell of an evaluation: batches cut by length, dev tokenised once and sorted; against unsorted padded batches."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.plain import Trainer, configured, padded, still
from benchmarks.timing import FORWARD, TRAINING, Call, Contest, Done, multiplied, speed_up
from dilm.config.schema import Config
from dilm.core.hashing import derive_seed
from dilm.data.corpus import load_corpus, load_split, sampled_dev
from dilm.data.samplers import candidate_rows, plain_batches
from dilm.data.text_table import TextTable
from dilm.distributed.context import Context
from dilm.distributed.device import autocast, pick_device
from dilm.evaluation.cells import Training
from dilm.evaluation.finetune import finetuned
from dilm.hub.pretrained import cache_folder
from dilm.models.batching import Ids
from dilm.models.learner import Learner, build_learner

NAMES = ("evaluate", "bench", 0, 0)


def contest(keys: Sequence[str], small: bool, folder: Path) -> Contest:
    """One learner a call, always the same: a data set of real texts, and all of dev."""
    config = configured(small, keys)
    cache = cache_folder(config.cache)
    corpus = load_corpus(config.task, config.data, cache)
    rows = candidate_rows(corpus.train, config.dpc * len(config.task.labels), derive_seed("bench data set"))
    dataset = corpus.train.take(rows)
    dev = sampled_dev(load_split(config.task, "dev", cache), config.evaluate.dev_rows, config.task.name)
    config.learner = still(config.learner, cache, folder / "learner")
    sides = {
        "ours": lambda: _ours(config, dataset, dev, cache),
        "baseline": lambda: _baseline(config, dataset, dev, cache),
    }
    note = f"{config.learner.name}, {config.evaluate.steps} steps on {len(dataset)} texts, {len(dev)} dev texts"
    return Contest("evaluate", "models", sides, [speed_up(2)], config.precision, 0.02, note)


def _ours(config: Config, dataset: TextTable, dev: TextTable, cache: Path) -> Call:
    predict = finetuned(Context(config), [Training(dataset, NAMES)], dev)
    learner = build_learner(config.learner, len(config.task.labels), cache, torch.device("cpu"))
    flops = _flops(config, learner, learner.tokenize(dataset.texts), learner.tokenize(dev.texts))
    del learner

    def call() -> Done:
        return Done(1, flops, float((predict(dataset, NAMES) == dev.labels).mean()))

    return call


def _baseline(config: Config, dataset: TextTable, dev: TextTable, cache: Path) -> Call:
    device = pick_device(config.device, config.threads)
    learner = build_learner(config.learner, len(config.task.labels), cache, device)
    settings = config.evaluate

    def logits(tokens: Sequence[Ids]) -> torch.Tensor:
        with autocast(device, config.precision):
            return learner(*padded(tokens, learner.pad_token, device)).float()

    def call() -> Done:
        learner.fresh(*NAMES)
        trainer = Trainer(learner, settings.optimizer, settings.steps)
        tokens, scored = learner.tokenize(dataset.texts), learner.tokenize(dev.texts)  # for every model again
        size = min(settings.batch, len(dataset))
        batches = plain_batches(len(dataset), size, np.random.default_rng(derive_seed("batches", *NAMES)))
        learner.train()
        for rows in (next(batches) for _ in range(settings.steps)):
            labels_B = torch.as_tensor(dataset.labels[rows], device=device)
            trainer.step(F.cross_entropy(logits([tokens[row] for row in rows]), labels_B))
        learner.eval()
        with torch.no_grad():
            starts = range(0, len(scored), settings.batch)
            found = torch.cat([logits(scored[start : start + settings.batch]).argmax(1).cpu() for start in starts])
        right = float((found.numpy() == dev.labels).mean())
        return Done(1, _flops(config, learner, tokens, scored), right)

    return call


def _flops(config: Config, learner: Learner, train: Sequence[Ids], scored: Sequence[Ids]) -> float:
    size = min(config.evaluate.batch, len(train))
    trained = config.evaluate.steps * size * sum(map(len, train)) / len(train)
    return multiplied(learner) * (TRAINING * trained + FORWARD * sum(map(len, scored)))
