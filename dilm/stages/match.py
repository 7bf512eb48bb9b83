"""Gradient matching: the generator learns to write texts whose gradients are like the real data's (paper, section 3.2).

Shape suffixes: B texts of all labels, P parameters of the learner's head, C labels.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dilm.artifacts import Artifact, make, match_artifact, pretrain_artifact
from dilm.clustering import plain_batches
from dilm.config import Config
from dilm.data import Corpus, load_corpus
from dilm.device import pick_device, seeded
from dilm.engine import TorchEngine
from dilm.errors import DataError
from dilm.features import FeatureStore
from dilm.generator import load_generator, text_nll
from dilm.keys import derive_seed
from dilm.learner import build_learner, label_means, text_gradients, text_loss
from dilm.matching import generation_weights, matching_loss
from dilm.similarity import SimilarityMonitor
from dilm.sources import cache_folder
from dilm.streams import PoolOfLabel, Writing, real_batches, synthetic_pool, teacher_sets
from dilm.tracking import Tracker, progress


def run(config: Config) -> Artifact:
    """Make the generator trained by gradient matching, or find it. Needs the pre-trained one."""
    cache = cache_folder(config.cache)
    corpus = load_corpus(config.task, config.data, cache)
    artifact = match_artifact(config, corpus.content_hash)
    if config.force or not artifact.exists:
        pretrain_artifact(config, corpus.content_hash).require()
    make(artifact, lambda folder: Matching(config, corpus, artifact.key, cache).train(folder), config)
    return artifact


class Matching:
    """The training loop and what it holds: generator, learner, and the two streams of texts."""

    def __init__(self, config: Config, corpus: Corpus, key: str, cache: Path) -> None:
        self.config, self.settings, self.corpus, self.key = config, config.match, corpus, key
        self.names = (config.task.name, config.seed)
        self.device = pick_device(config.device, config.threads)
        task = config.task
        self.n_labels = len(task.labels)
        parent = pretrain_artifact(config, corpus.content_hash).require()
        self.generator = load_generator(parent, config.generator, task, self.device)
        store = FeatureStore(config.match.learner, self.n_labels, cache, self.device, config.precision)
        sets = teacher_sets(corpus.train, self.settings, store, self.names)
        self.real = real_batches(sets, self.settings.real_dpc, self.names)
        self.learner = build_learner(config.match.learner, self.n_labels, cache, self.device)
        self.tokens = self.learner.tokenize(corpus.train.texts)
        self.learner_rows = plain_batches(
            len(corpus.train), self.settings.learner_batch, np.random.default_rng(derive_seed("learner", *self.names))
        )
        self.writing = Writing(config.precision, config.generate.top_p, config.generate.batch)

    def train(self, folder: Path) -> None:
        """Run all outer and inner steps, and save the generator to `folder`."""
        settings = self.settings
        total = settings.outer_steps * settings.inner_steps
        engine = TorchEngine(self.generator.model, settings.optimizer, total)
        monitor = (
            SimilarityMonitor(self.config, self.corpus, self.learner, self.tokens) if settings.monitor_every else None
        )
        with Tracker(folder, self.config, self.key, "match") as tracker, progress(total, "match") as bar:
            if monitor:
                tracker.log(0, **monitor.measure(self.generator))
            for outer in range(settings.outer_steps):
                if outer % settings.regenerate_every == 0:
                    # The fresh learner's encoder is the pretrained one, so clusters last as long as the pool does.
                    self.learner.fresh("clusters", *self.names)
                    pool = self.write_pool(outer)
                trainer = self._fresh_learner(outer)
                for inner in range(settings.inner_steps):
                    step = outer * settings.inner_steps + inner + 1
                    self._record(tracker, monitor, step, total, self.update(engine, pool, step))
                    self._train_learner(trainer, outer, inner)
                    bar.update()
        self.generator.save(folder)

    def write_pool(self, outer: int) -> list[PoolOfLabel]:
        """New synthetic texts from the generator as it is now."""
        return synthetic_pool(self.generator, self.learner, self.settings, self.writing, (*self.names, outer))

    def update(self, engine: TorchEngine, pool: list[PoolOfLabel], step: int) -> dict[str, float]:
        """One update of the generator: match the gradients of every label, and step."""
        self.generator.model.train()
        drawn = [(label, next(pool[label].batches)) for label in range(self.n_labels)]
        real_CP = self._real_gradients()
        sequences = [pool[label].sequences[index] for label, rows in drawn for index in rows]
        tokens = [pool[label].tokens[index] for label, rows in drawn for index in rows]
        labels_B = np.repeat([label for label, _ in drawn], [len(rows) for _, rows in drawn])
        synthetic_BP = text_gradients(self.learner, tokens, labels_B, self.config.precision)
        with seeded(derive_seed("match dropout", *self.names, step), self.device):
            nll_B = text_nll(self.generator, sequences, self.config.precision, self.settings.nll_average)
            losses, texts = [], []
            for label in range(self.n_labels):
                rows = np.flatnonzero(labels_B == label)
                weights = generation_weights(nll_B[rows], self.settings.temperature)
                losses.append(matching_loss(real_CP[label], synthetic_BP[rows], weights))
                texts.append(1 / float(weights.detach().square().sum()))
            loss = torch.stack(losses).mean()
            norm = engine.step(loss)
        if not np.isfinite(value := float(loss.detach())):
            raise DataError(f"match: the loss is {value} at update {step}; lower match.optimizer.lr.")
        return {"loss": value, "gradient_norm": norm, "effective_texts": float(np.mean(texts))}

    def _real_gradients(self) -> Tensor:
        """Mean gradient of real texts for each label, real_CP, averaged over `real_batches` batches."""
        means = []
        for _ in range(self.settings.real_batches):
            rows = np.concatenate(next(self.real))
            labels_B = self.corpus.train.labels[rows]
            tokens = [self.tokens[row] for row in rows]
            gradients_BP = text_gradients(self.learner, tokens, labels_B, self.config.precision)
            means.append(label_means(gradients_BP, labels_B, self.n_labels))
        return torch.stack(means).mean(0)

    def _fresh_learner(self, outer: int) -> TorchEngine:
        self.learner.fresh("match", *self.names, outer)
        return TorchEngine(self.learner, self.settings.learner_optimizer, self.settings.learner_schedule)

    def _train_learner(self, trainer: TorchEngine, outer: int, inner: int) -> None:
        """Take the learner some steps further on real data."""
        self.learner.train(self.settings.learner_dropout)
        with seeded(derive_seed("learner dropout", *self.names, outer, inner), self.device):
            for _ in range(self.settings.learner_steps):
                rows = next(self.learner_rows)
                tokens = [self.tokens[row] for row in rows]
                trainer.step(text_loss(self.learner, tokens, self.corpus.train.labels[rows], self.config.precision))

    def _record(
        self, tracker: Tracker, monitor: SimilarityMonitor | None, step: int, total: int, metrics: dict[str, float]
    ) -> None:
        if step % self.settings.log_every == 0 or step == total:
            tracker.log(step, **metrics)
        if monitor and (step % self.settings.monitor_every == 0 or step == total):
            tracker.log(step, **monitor.measure(self.generator))
