"""An update of gradient matching: ours, the floor below which no update can come, and the released scripts' way."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.plain import Trainer, configured, padded
from benchmarks.shapes import build_shape
from benchmarks.timing import FORWARD, TRAINING, Call, Contest, Done, cost, multiplied, speed_up
from dilm.artifacts import make
from dilm.clustering import plain_batches
from dilm.config import Config, GeneratorConfig, LearnerConfig, SourceConfig
from dilm.data import Corpus, load_corpus
from dilm.device import autocast, pick_device
from dilm.engine import Engine
from dilm.features import FeatureStore
from dilm.generator import Generator, build_generator, load_generator
from dilm.keys import derive_seed
from dilm.learner import Learner, build_learner, forward_all
from dilm.likelihood import sum_nll
from dilm.lineage import match_artifact, pretrain_artifact
from dilm.sources import cache_folder, model_folder
from dilm.stages.match import Matching
from dilm.streams import PoolOfLabel, real_batches, teacher_sets

# The paper's update, with few candidates for the sets that real texts come from: choosing those isn't timed.
UPDATE = (
    *("match.synthetic_dpc=64", "match.real_dpc=200", "match.learner_steps=20", "match.learner_batch=64"),
    *("match.repset_dpc=200", "match.n_repset=2", "match.real_candidates=600", "match.optimizer.lr=3e-7"),
)
POOL = 12_800  # texts a class, at most


def update(matching: Matching, engine: Engine, step: int) -> float:
    """What `Matching.train` does for one update, and the loss: the place to change with how learners are had.

    match.learners=fresh: the learner is trained between the updates. With a pool of stored learners nothing is.
    """
    loss = matching.update(engine, step)["loss"]
    matching.trajectory.advance(0, step - 1)
    return loss


def contest(keys: Sequence[str], small: bool, folder: Path) -> Contest:
    """All sides draw the same texts, so that losses must agree. Written texts are played by real ones.

    A generator with random weights writes nothing well-formed; real texts have the lengths that matter here.
    """
    config = configured(small, keys, *UPDATE)
    cache = cache_folder(config.cache)
    corpus = load_corpus(config.task, config.data, cache)
    if not small:
        config = _shaped(config, corpus, folder)
        cache = folder / "cache"
    config.root = str(folder / "runs")
    stage = Stage(config, corpus, cache)
    sides = {"ours": stage.ours, "floor": stage.floor, "baseline": stage.baseline}
    goals = [speed_up(10), cost("ours", "floor", 1.3)]
    found = config.match
    note = (
        f"{config.generator.name}, {config.match.learner.name}; {len(config.task.labels)} labels x "
        f"{found.synthetic_dpc} written and {found.real_dpc} real texts, {found.learner_steps} learner steps of "
        f"{found.learner_batch}"
    )
    return Contest("match", "updates", sides, goals, config.precision, 0.05, note)


def _shaped(config: Config, corpus: Corpus, folder: Path) -> Config:
    """The same with the paper's models, but for their weights."""
    texts = [value for text in corpus.train.texts for value in text]
    for name in ("gpt2", "bert"):
        build_shape(name, texts, folder / name)
    generator = GeneratorConfig("gpt2-shape", SourceConfig(path=str(folder / "gpt2")), dropout=0.0)
    learner = LearnerConfig("bert-shape", SourceConfig(path=str(folder / "bert")))
    return replace(config, generator=generator, match=replace(config.match, learner=learner))


@dataclass(frozen=True)
class Texts:
    """What every side draws from, by itself and in the same order."""

    pool: list[PoolOfLabel]
    sets: list[list[np.ndarray]]  # of real rows


class Stage:
    """What the sides have in common: a pre-trained generator on disk, and how a learner begins."""

    def __init__(self, config: Config, corpus: Corpus, cache: Path) -> None:
        self.config, self.corpus, self.cache = config, corpus, cache
        self.names = (config.task.name, config.seed)
        self.device = pick_device(config.device, config.threads)
        self.trained = pretrain_artifact(config, corpus.content_hash)
        if not self.trained.exists:
            source = model_folder(config.generator.name, config.generator.source, cache)
            built = build_generator(source, config.generator, config.task, self.device)
            make(self.trained, built.save, config)

    def texts(self, generator: Generator, learner: Learner) -> Texts:
        """Real rows as the pool, and the representative sets."""
        train, settings = self.corpus.train, self.config.match
        store = FeatureStore(settings.learner, learner.n_labels, self.cache, self.device, self.config.precision)
        pool = []
        for _, rows in sorted(train.rows_by_label.items()):
            part = train.take(rows[: settings.pool_dpc or POOL])
            pool.append(PoolOfLabel(generator.encode(part), learner.tokenize(part.texts), None))
        return Texts(pool, teacher_sets(train, settings, store, self.names))

    def ours(self) -> Call:
        """This project's updates."""
        matching = Matching(self.config, self.corpus, match_artifact(self.config, self.corpus.content_hash), self.cache)
        texts = self.texts(matching.generator, matching.learner)
        settings = self.config.match
        matching.pool, matching.sets = texts.pool, texts.sets
        matching.batches = [self._draws(part, label) for label, part in enumerate(texts.pool)]
        matching.real = real_batches(texts.sets, settings.real_dpc, self.names)
        matching.trajectory.begin(0)
        engine = matching.engine()
        flops = self._flops(matching.generator, matching.learner, texts)
        step = 0

        def call() -> Done:
            nonlocal step
            step += 1
            return Done(1, flops, update(matching, engine, step))

        return call

    def _draws(self, part: PoolOfLabel, label: int) -> Iterator[np.ndarray]:
        return part.batches(self.config.match.synthetic_dpc, ("bench", label))

    def _flops(self, generator: Generator, learner: Learner, texts: Texts) -> float:
        """Useful operations of an update that trains its learner: everything it reads once, at mean lengths."""
        settings, n_labels = self.config.match, learner.n_labels
        written = [sequence for part in texts.pool for sequence in part.sequences]
        tokens = [ids for part in texts.pool for ids in part.tokens]
        drawn = settings.synthetic_dpc * n_labels
        read = _mean(tokens) * (drawn + settings.real_dpc * settings.real_batches * n_labels)
        trained = _mean(tokens) * settings.learner_steps * settings.learner_batch
        generator_flops = TRAINING * multiplied(generator.model) * _mean(written) * drawn
        return generator_flops + multiplied(learner) * (FORWARD * read + TRAINING * trained)

    def _models(self) -> tuple[Generator, Learner]:
        generator = load_generator(self.trained.folder, self.config.generator, self.config.task, self.device)
        learner = build_learner(self.config.match.learner, len(self.config.task.labels), self.cache, self.device)
        return generator, learner.fresh("match", *self.names, 0)

    def floor(self) -> Call:
        """What no update can do without: the generator's forward and backward pass, and one look of the learner."""
        generator, learner = self._models()
        texts = self.texts(generator, learner)
        draws = [self._draws(part, label) for label, part in enumerate(texts.pool)]
        generator.model.train()
        flops = [TRAINING * multiplied(generator.model), FORWARD * multiplied(learner)]

        def call() -> Done:
            rows = [next(batches) for batches in draws]
            sequences = [part.sequences[row] for part, own in zip(texts.pool, rows, strict=True) for row in own]
            tokens = [part.tokens[row] for part, own in zip(texts.pool, rows, strict=True) for row in own]
            sum_nll(generator, sequences, self.config.precision).mean().backward()
            generator.model.zero_grad()
            forward_all(learner, tokens, "features", self.config.precision)
            useful = flops[0] * sum(map(len, sequences)) + flops[1] * sum(map(len, tokens))
            return Done(1, useful)

        return call

    def baseline(self) -> Call:
        """The released scripts' update."""
        generator, learner = self._models()
        learner.use_eager_attention()  # no other can be back-propagated twice
        texts = self.texts(generator, learner)
        every = self.config.match
        released = Released(self.config, generator, learner, self.corpus)
        draws = [self._draws(part, label) for label, part in enumerate(texts.pool)]
        real = real_batches(texts.sets, every.real_dpc, self.names)
        random = np.random.default_rng(derive_seed("learner", *self.names))
        batches = plain_batches(len(self.corpus.train), every.learner_batch, random)
        flops = self._flops(generator, learner, texts)

        def call() -> Done:
            drawn = [next(own) for own in draws]
            losses = [
                released.loss(label, [part.sequences[row] for row in own], [part.tokens[row] for row in own], rows)
                for label, (part, own, rows) in enumerate(zip(texts.pool, drawn, next(real), strict=True))
            ]
            loss = released.generator_step(torch.stack(losses).mean())
            for _ in range(every.learner_steps):
                released.learner_step(next(batches))
            return Done(1, flops, loss)

        return call


class Released:
    """Gradients of all the learner's parameters by autograd, of which the classifier's are kept."""

    def __init__(self, config: Config, generator: Generator, learner: Learner, corpus: Corpus) -> None:
        self.config, self.generator, self.learner = config, generator, learner
        self.tokens, self.labels = learner.tokenize(corpus.train.texts), corpus.train.labels
        settings = config.match
        steps = settings.outer_steps * settings.inner_steps
        self.generator_trainer = Trainer(generator.model.train(), settings.optimizer, steps)
        self.learner_trainer = Trainer(learner.eval(), settings.learner_optimizer, settings.learner_schedule)
        learner.encoder.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        for part in learner.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0  # theirs stayed in eval mode
        self.kept = [name.startswith(("classifier.classifier.", "head.")) for name, _ in learner.named_parameters()]

    def loss(self, label: int, sequences: list[list[int]], tokens: list[list[int]], real_rows: np.ndarray) -> Tensor:
        """The matching loss of one label, with the graph of all gradients behind it."""
        real = self._losses([self.tokens[row] for row in real_rows], np.full(len(real_rows), label)).mean()
        real_P = self._gradient(real, create_graph=False)
        weights_B = F.softmax(-self._nll(sequences) / self.config.match.temperature, dim=0)
        written = (weights_B * self._losses(tokens, np.full(len(tokens), label))).sum()
        return 1 - F.cosine_similarity(real_P, self._gradient(written, create_graph=True), dim=0)

    def _gradient(self, loss: Tensor, create_graph: bool) -> Tensor:
        """Of all parameters; then the classifier's."""
        gradients = torch.autograd.grad(
            loss, list(self.learner.parameters()), create_graph=create_graph, materialize_grads=True, allow_unused=True
        )
        return torch.cat([gradient.flatten() for gradient, kept in zip(gradients, self.kept, strict=True) if kept])

    def _losses(self, tokens: list[list[int]], labels_B: np.ndarray) -> Tensor:
        device = self.learner.device
        with autocast(device, self.config.precision):
            logits_BC = self.learner(*padded(tokens, self.learner.pad_token, device))
        return F.cross_entropy(logits_BC.float(), torch.as_tensor(labels_B, device=device), reduction="none")

    def _nll(self, sequences: list[list[int]]) -> Tensor:
        """Nats a token of each text, from the vocabulary's logits at every place."""
        control, device = self.generator.control, self.generator.device
        ids_BL, mask_BL = padded(sequences, control.pad, device)
        with autocast(device, self.config.precision):
            logits_BLV = self.generator.model(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False).logits.float()
        given = control.prompt_length
        nll_BL = F.cross_entropy(logits_BLV[:, given - 1 : -1].mT, ids_BL[:, given:], reduction="none")
        counted_BL = mask_BL[:, given:]
        return (nll_BL * counted_BL).sum(1) / counted_BL.sum(1)

    def generator_step(self, loss: Tensor) -> float:
        """Back-propagate through the learner's gradients, and update the generator."""
        value = self.generator_trainer.step(loss)
        self.learner.zero_grad()  # which the backward pass has filled too
        return value

    def learner_step(self, rows: np.ndarray) -> None:
        """Train the learner, with gradient checkpointing."""
        self.learner.train()  # without which nothing is checkpointed
        self.learner_trainer.step(self._losses([self.tokens[row] for row in rows], self.labels[rows]).mean())
        self.learner.eval()


def _mean(sequences: list[list[int]]) -> float:
    return float(np.mean([len(sequence) for sequence in sequences]))
