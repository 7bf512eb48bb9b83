"""An update of gradient matching: ours in both ways, what no update can do without, and the released scripts' way."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.plain import Trainer, configured, padded
from benchmarks.shapes import build_shape
from benchmarks.timing import FORWARD, TRAINING, Call, Contest, Done, cost, multiplied, speed_up
from dilm.artifacts.artifact import Artifact, make
from dilm.artifacts.fingerprint import match_artifact, pool_artifacts, pretrain_artifact
from dilm.config.schema import Config, GeneratorConfig, LearnerConfig, SourceConfig
from dilm.core.hashing import Names, derive_seed
from dilm.core.io import new_folder
from dilm.data.corpus import Corpus, load_corpus
from dilm.data.samplers import plain_batches
from dilm.distributed.context import Context
from dilm.distributed.device import autocast, pick_device
from dilm.distributed.world import ALONE
from dilm.hub.pretrained import cache_folder, model_folder
from dilm.matching.batches import SyntheticTexts, fixed_sets, real_batches
from dilm.matching.trainer import Matching
from dilm.matching.trajectory import LearnerTraining, TrainedTrajectory
from dilm.models.features import FeatureStore
from dilm.models.generator import Generator, build_generator, load_generator
from dilm.models.learner import Learner, build_learner, forward_all
from dilm.models.likelihood import sum_nll
from dilm.stages.train import make_trajectories

# The paper's update, with few candidates for the one set that real texts come from: choosing it isn't timed.
UPDATE = (
    *("match.synthetic_dpc=64", "match.real_dpc=200", "match.learner_steps=20", "match.learner_batch=64"),
    *("match.repset_dpc=200", "match.n_repset=1", "match.real_candidates=600", "match.optimizer.lr=3e-7"),
)
ONE_LEARNER = ("match.pool_size=1", "match.monitor_every=0")
POOL = 12_800  # texts a class, at most


def contest(keys: Sequence[str], small: bool, folder: Path) -> Contest:
    """All sides draw the same texts at the same learner states, so that losses must agree.

    Written texts are played by real ones: a generator with random weights writes nothing well-formed, and real texts
    have the lengths that matter here. `ours` takes the learner's states from a pool, here of one learner, that is made
    below `root` where it isn't there; `fresh` trains it between the updates. There are as many rounds as the pool has
    states, at most.
    """
    config = configured(small, keys, *UPDATE, *ONE_LEARNER)
    if small:
        config = replace(config, root=str(folder / "runs"), match=replace(config.match, pool_size=1, n_repset=1))
    cache = cache_folder(config.cache)
    corpus = load_corpus(config.task, config.data, cache)
    if not small:
        config = _shaped(config, corpus, Path(config.root) / "bench-shapes")
    stage = Stage(config, corpus, cache)
    sides = {"ours": stage.ours, "fresh": stage.fresh, "floor": stage.floor, "baseline": stage.baseline}
    goals = [speed_up(10), cost("ours", "floor", 1.3), speed_up(None, side="fresh")]
    found = config.match
    note = (
        f"{config.generator.name}, {config.match.learner.name}; {len(config.task.labels)} labels x "
        f"{found.synthetic_dpc} written and {found.real_dpc} real texts, {found.learner_steps} learner steps of "
        f"{found.learner_batch}; {stage.make_pool()}"
    )
    # A learner with random weights soon has gradients whose cosine is one but for what bf16 rounds.
    return Contest("match", "updates", sides, goals, config.precision, 0.05, note, rounding=1e-4)


def _shaped(config: Config, corpus: Corpus, folder: Path) -> Config:
    """The same with the paper's models, but for their weights."""
    texts = [value for text in corpus.train.texts for value in text]
    for name in ("gpt2", "bert"):
        if not (folder / name).exists():
            with new_folder(folder / name) as made:
                build_shape(name, texts, made)
    generator = GeneratorConfig("gpt2-shape", SourceConfig(path=str(folder / "gpt2")), dropout=0.0)
    learner = LearnerConfig("bert-shape", SourceConfig(path=str(folder / "bert")))
    return replace(config, generator=generator, match=replace(config.match, learner=learner))


class Stage:
    """What the sides have in common: a pre-trained generator on disk, and how a learner begins."""

    def __init__(self, config: Config, corpus: Corpus, cache: Path) -> None:
        self.config, self.corpus, self.cache = config, corpus, cache
        self.names = ("pool", config.task.name)  # by which learners of a pool, and their sets, are drawn
        self.way: Names = (*self.names, 0)
        self.device = pick_device(config.device, config.threads)
        self.trained = pretrain_artifact(config, corpus.content_hash)
        if not self.trained.exists:
            source = model_folder(config.generator.name, config.generator.source, cache)
            built = build_generator(source, config.generator, config.task, self.device)
            make(self.trained, built.save, config)

    @property
    def pooled(self) -> Config:
        """The same with learners from a pool."""
        return replace(self.config, match=replace(self.config.match, learners="pool"))

    def make_pool(self) -> str:
        """Make the pool, or find it, and tell what it cost."""
        began = time.perf_counter()
        there = all(artifact.exists for both in self._artifacts() for artifact in both)
        make_trajectories(self.pooled)
        states = self.config.match.inner_steps
        took = time.perf_counter() - began
        return "the pool was there" if there else f"the pool's {states} states took {took:.0f} s to make"

    def _artifacts(self) -> list[tuple[Artifact, Artifact]]:
        return pool_artifacts(self.pooled, self.corpus.content_hash)

    def written(self, generator: Generator, learner: Learner) -> list[SyntheticTexts]:
        """Real texts of each label as if they were written."""
        train, size = self.corpus.train, self.config.match.pool_dpc or POOL
        parts = [train.take(rows[:size]) for _, rows in sorted(train.rows_by_label.items())]
        return [
            SyntheticTexts(generator.encode(part).lists(), learner.tokenize(part.texts).lists(), None) for part in parts
        ]

    def sets(self, learner: Learner) -> list[list[np.ndarray]]:
        """The sets that real texts come from."""
        settings = self.config.match
        store = FeatureStore(settings.learner, learner.n_labels, self.cache, self.device, self.config.precision)
        return fixed_sets(self.corpus.train, settings, store, self.names)

    def ours(self) -> Call:
        """This project's updates, with learners from a pool."""
        return self._updates(self._matching(self.pooled), trains=False)

    def fresh(self) -> Call:
        """This project's updates, with a learner that is trained between them."""
        matching, train = self._matching(self.config), self.corpus.train
        trajectory = matching.trajectory
        if not isinstance(trajectory, TrainedTrajectory):
            raise RuntimeError("match.learners must be fresh here")
        precision, tokens = self.config.precision, matching.learner.tokenize_once(train)
        trajectory.training = LearnerTraining(
            matching.learner, tokens, train.labels, self.config.match, precision, self.way, ALONE
        )
        trajectory.take_sets(self.sets(matching.learner))
        return self._updates(matching, trains=True)

    def _matching(self, config: Config) -> Matching:
        matching = Matching(Context(config), match_artifact(config, self.corpus.content_hash))
        matching.texts = self.written(matching.generator, matching.learner)
        matching.batches = [self._draws(part, label) for label, part in enumerate(matching.texts)]
        return matching

    def _updates(self, matching: Matching, trains: bool) -> Call:
        matching.trajectory.begin(0)
        engine = matching.engine()
        flops = self._flops(matching.generator, matching.learner, matching.texts, trains)
        step = 0

        def call() -> Done:
            nonlocal step
            step += 1
            loss = matching.update(engine, step)["loss"]
            matching.trajectory.advance(0, step - 1)
            return Done(1, flops, loss)

        return call

    def _draws(self, part: SyntheticTexts, label: int) -> Iterator[np.ndarray]:
        return part.batches(self.config.match.synthetic_dpc, ("bench", label))

    def _flops(self, generator: Generator, learner: Learner, pool: list[SyntheticTexts], trains: bool) -> float:
        """Useful operations of an update: everything it reads once, at mean lengths."""
        settings, n_labels = self.config.match, learner.n_labels
        written = [sequence for part in pool for sequence in part.sequences]
        tokens = [ids for part in pool for ids in part.tokens]
        drawn = settings.synthetic_dpc * n_labels
        read = _mean(tokens) * (drawn + trains * settings.real_dpc * settings.real_batches * n_labels)
        trained = trains * _mean(tokens) * settings.learner_steps * settings.learner_batch
        generator_flops = TRAINING * multiplied(generator.model) * _mean(written) * drawn
        return generator_flops + multiplied(learner) * (FORWARD * read + TRAINING * trained)

    def _models(self) -> tuple[Generator, Learner]:
        generator = load_generator(self.trained.folder, self.config.generator, self.config.task, self.device)
        learner = build_learner(self.config.match.learner, len(self.config.task.labels), self.cache, self.device)
        return generator, learner.fresh("match", *self.way, 0)

    def floor(self) -> Call:
        """What no update can do without: the generator's forward and backward pass, and one look of the learner."""
        generator, learner = self._models()
        pool = self.written(generator, learner)
        draws = [self._draws(part, label) for label, part in enumerate(pool)]
        generator.model.train()
        flops = [TRAINING * multiplied(generator.model), FORWARD * multiplied(learner)]

        def call() -> Done:
            rows = [next(batches) for batches in draws]
            sequences = [part.sequences[row] for part, own in zip(pool, rows, strict=True) for row in own]
            tokens = [part.tokens[row] for part, own in zip(pool, rows, strict=True) for row in own]
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
        pool, sets = self.written(generator, learner), self.sets(learner)
        every = self.config.match
        released = Released(self.config, generator, learner, self.corpus)
        draws = [self._draws(part, label) for label, part in enumerate(pool)]
        real = real_batches(sets, every.real_dpc, self.names)
        random = np.random.default_rng(derive_seed("learner", *self.way))
        batches = plain_batches(len(self.corpus.train), every.learner_batch, random)
        flops = self._flops(generator, learner, pool, trains=True)

        def call() -> Done:
            drawn = [next(own) for own in draws]
            losses = [
                released.loss(label, [part.sequences[row] for row in own], [part.tokens[row] for row in own], rows)
                for label, (part, own, rows) in enumerate(zip(pool, drawn, next(real), strict=True))
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
