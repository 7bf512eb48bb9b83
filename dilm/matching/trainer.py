"""The training loop of gradient matching: generator, learner, and the two streams of texts (paper, section 3.3)."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dilm.artifacts.artifact import METRICS_FILE, Artifact
from dilm.artifacts.fingerprint import pool_artifacts, pretrain_artifact
from dilm.config.schema import Config
from dilm.core.errors import TrainingError
from dilm.core.hashing import derive_seed
from dilm.data.corpus import Corpus
from dilm.data.samplers import plain_batches, skip
from dilm.distributed.device import pick_device, seeded
from dilm.distributed.world import ALONE, World
from dilm.matching.batches import PoolOfLabel, Writing, synthetic_pool
from dilm.matching.gradients import gradients_of, matched_parameters
from dilm.matching.loss import distance_slope, generation_weights, gradient_distance, nll_slopes
from dilm.matching.monitor import SimilarityMonitor
from dilm.matching.trajectory import Teacher, TrainedTeacher, pretrained
from dilm.matching.trajectory_pool import PooledTeacher
from dilm.models.batching import split_by_length
from dilm.models.generator import load_generator
from dilm.models.learner import Learner, build_learner
from dilm.models.likelihood import denominators, sum_nll
from dilm.tracking.tracker import Progress, Tracker
from dilm.training.checkpoints import Checkpoints
from dilm.training.engine import Engine
from dilm.training.language_model import average_nll, build_likelihood, full_weights
from dilm.training.optimizer import Microbatch


def build_teacher(
    config: Config,
    corpus: Corpus,
    learner: Learner,
    parameters: list[nn.Parameter] | None,
    cache: Path,
    world: World,
) -> Teacher:
    """The teacher that `match.learners` names. Raises MissingArtifactError where the pool isn't there."""
    if config.match.learners != "pool":
        return TrainedTeacher(config, corpus, learner, parameters, cache, world)
    pool = [(way.require(), teacher.require()) for way, teacher in pool_artifacts(config, corpus.content_hash)]
    return PooledTeacher(learner, pool, config.match, (config.task.name, config.seed))


@dataclass(frozen=True)
class Drawn:
    """A mini-batch of every label's synthetic texts, the same on all ranks."""

    sequences: list[list[int]]  # the generator's tokens
    tokens: list[list[int]]  # the learner's
    labels_B: np.ndarray


class Matching:
    """The training loop and what it holds: generator, learner, and the two streams of texts."""

    def __init__(self, config: Config, corpus: Corpus, artifact: Artifact, cache: Path, world: World = ALONE) -> None:
        self.config, self.settings, self.corpus = config, config.match, corpus
        self.artifact, self.world = artifact, world
        self.names = (config.task.name, config.seed)
        self.device = pick_device(config.device, config.threads)
        self.n_labels = len(config.task.labels)
        parent = pretrain_artifact(config, corpus.content_hash).require()
        self.generator = load_generator(parent, config.generator, config.task, self.device)
        self.learner = world.main_first(lambda: build_learner(config.match.learner, self.n_labels, cache, self.device))
        self.parameters = matched_parameters(self.learner, self.settings.parameters)
        if self.parameters is not None:
            self.learner.use_eager_attention()  # the other kernels can't be back-propagated twice
        self.teacher = build_teacher(config, corpus, self.learner, self.parameters, cache, world)
        encode = partial(self.generator.encode_once, corpus.train, config.generator, cache)
        self.sequences = world.main_first(encode) if self.settings.lm_weight else []
        self.lm_rows = plain_batches(
            len(corpus.train), self.settings.lm_batch, np.random.default_rng(derive_seed("regulariser", *self.names))
        )
        self.writing = Writing(config.precision, config.generate.top_p, config.generate.batch)
        self.pool: list[PoolOfLabel] = []
        self.batches: list[Iterator[np.ndarray]] = []

    def train(self, folder: Path) -> None:
        """Run all outer and inner steps, from the newest checkpoint on, and save the generator to `folder`."""
        settings, world = self.settings, self.world
        total = settings.outer_steps * settings.inner_steps
        checkpoints = Checkpoints(self.artifact, self.config.checkpoint, world)
        engine, start, state = checkpoints.resume(self.engine, folder / METRICS_FILE)
        monitor = None
        if settings.monitor_every and world.main:
            monitor = SimilarityMonitor(self.config, self.corpus, self.learner)
        if start:
            self._restore(start, state)
        else:
            self.teacher.start()
        with (
            Tracker(folder, self.config, self.artifact, world.main) as tracker,
            Progress(total, "match", start, world.main) as bar,
        ):
            if not start:
                self._measure(engine, monitor, tracker, 0)
            for step in range(start + 1, total + 1):
                outer, inner = divmod(step - 1, settings.inner_steps)
                if inner == 0:
                    self._begin(engine, outer)
                metrics = self.update(engine, step)
                self.teacher.advance(outer, inner)
                bar.update(loss=metrics["loss"], tokens=int(metrics.pop("tokens")))
                if step % settings.log_every == 0 or step == total:
                    tracker.log(step, **metrics)
                if step == total or (settings.monitor_every and step % settings.monitor_every == 0):
                    self._measure(engine, monitor, tracker, step)
                if checkpoints.due(step) and step < total:
                    checkpoints.save(step, engine, self._state(outer), tracker.path)
            whole = full_weights(self.generator, engine)
            if world.main:
                whole.save(folder)
        engine.close()

    def engine(self, universal: bool = False) -> Engine:
        """What trains the generator."""
        settings = self.settings
        total = settings.outer_steps * settings.inner_steps
        return build_likelihood(self.generator, self.config, settings.optimizer, total, self.world, universal)

    def _state(self, outer: int) -> dict[str, Any]:
        """What a checkpoint needs besides the generator: the pool, and the learner on its way."""
        written = outer - outer % self.settings.regenerate_every
        pool = [asdict(part) for part in self.pool]
        return {"pool": pool, "outer": written, "teacher": self.teacher.state()}

    def _restore(self, start: int, state: dict[str, Any]) -> None:
        """Pool, learner and streams as they were after `start` updates."""
        settings = self.settings
        self._take_pool([PoolOfLabel(**part) for part in state["pool"]], state["outer"])
        for batches in self.batches:
            skip(batches, start - state["outer"] * settings.inner_steps)
        skip(self.lm_rows, start if settings.lm_weight else 0)
        self.teacher.restore(start, state["teacher"])

    def _begin(self, engine: Engine, outer: int) -> None:
        """An outer step's learner, and new texts where it is time for them."""
        if outer % self.settings.regenerate_every == 0:
            self.write_pool(engine, outer)
        self.teacher.begin(outer)

    def write_pool(self, engine: Engine, outer: int) -> None:
        """New synthetic texts from the generator as it is now."""
        whole = full_weights(self.generator, engine)
        names = (*self.names, outer)
        with pretrained(self.learner, self.names) as learner:  # whose clusters last as long as the pool does
            pool = synthetic_pool(whole, learner, self.settings, self.writing, names, self.world)
        self._take_pool(pool, outer)

    def _take_pool(self, pool: list[PoolOfLabel], outer: int) -> None:
        size = self.settings.synthetic_dpc
        self.pool = pool
        self.batches = [part.batches(size, (*self.names, outer, label)) for label, part in enumerate(pool)]

    def draw(self) -> Drawn:
        """The next mini-batch of every label."""
        rows = [next(batches) for batches in self.batches]
        return Drawn(
            [part.sequences[index] for part, drawn in zip(self.pool, rows, strict=True) for index in drawn],
            [part.tokens[index] for part, drawn in zip(self.pool, rows, strict=True) for index in drawn],
            np.repeat(np.arange(self.n_labels), [len(drawn) for drawn in rows]),
        )

    def update(self, engine: Engine, step: int) -> dict[str, float]:
        """One update of the generator: match the gradients of every label, and step.

        The texts are dealt to ranks, and to parts where memory is short. All that joins them is the vector of their nll
        and the sum of their weighted gradients, so the objective is that of one process.
        """
        world, accumulate = self.world, self.config.engine.accumulate
        self.generator.model.train()
        drawn = self.draw()
        hands = split_by_length([len(sequence) for sequence in drawn.sequences], world.size * accumulate)
        hands = hands[world.rank * accumulate :][:accumulate]
        averages_B = denominators(self.generator, drawn.sequences, self.settings.nll_average).to(self.device)

        def nll(number: int) -> Tensor:
            where = (world.rank, number) if world.rank or number else ()
            with seeded(derive_seed("match dropout", *self.names, step, *where), self.device):
                sequences = [drawn.sequences[row] for row in hands[number]]
                return sum_nll(self.generator, sequences, self.config.precision, engine) / averages_B[hands[number]]

        own = np.concatenate(hands)
        with torch.set_grad_enabled(accumulate == 1):  # with more parts each one's graph is made in its turn
            found = [nll(number) for number in range(accumulate)]
        nll_B = torch.zeros(len(drawn.sequences), device=self.device)
        nll_B[own] = torch.cat(found).detach()
        losses_C, slopes_B, effective = self._match(drawn, own, world.all_reduce(nll_B))

        regulariser = self._regulariser(engine, step)

        def part(number: int) -> Tensor:
            loss = (slopes_B[hands[number]] * (found[number] if accumulate == 1 else nll(number))).sum()
            return loss + self.settings.lm_weight * regulariser[number]() if regulariser else loss

        loss = float(losses_C.mean())
        done = engine.step(*(partial(part, number) for number in range(accumulate)))
        if not np.isfinite(loss) or not np.isfinite(done.norm):
            raise TrainingError(
                f"match: the loss is {loss} and its gradient's norm {done.norm} at update {step}, on the texts of "
                f"outer step {(step - 1) // self.settings.inner_steps}; lower match.optimizer.lr."
            )
        n_tokens = sum(map(len, drawn.sequences))
        return {"loss": loss, "gradient_norm": done.norm, "effective_texts": effective, "tokens": n_tokens}

    def _regulariser(self, engine: Engine, step: int) -> list[Microbatch]:
        """The language-model loss on real texts, cut in parts as the update is; none where it has no weight."""
        if not self.settings.lm_weight:
            return []
        sequences = [self.sequences[row] for row in next(self.lm_rows)]
        names = ("regulariser dropout", *self.names, step)
        return average_nll(self.generator, sequences, names, self.config, engine)[0]

    def _match(self, drawn: Drawn, own: np.ndarray, nll_B: Tensor) -> tuple[Tensor, Tensor, float]:
        """Matching loss of each label, its mean's slopes in every own text's nll, and how many texts really count."""
        temperature = self.settings.temperature
        labels = drawn.labels_B[own]
        tokens = [drawn.tokens[row] for row in own]
        grads = gradients_of(self.learner, tokens, labels, self.parameters, self.config.precision)
        real_CP = self.teacher.gradients()
        weights_B = torch.zeros_like(nll_B)
        for label in range(self.n_labels):
            rows = drawn.labels_B == label
            weights_B[rows] = generation_weights(nll_B[rows], temperature)
        synthetic_CP = self.world.all_reduce(grads.sums(weights_B[own]))
        pairs = list(zip(real_CP, synthetic_CP, strict=True))
        products_B = grads.products(torch.stack([distance_slope(real_P, synthetic_P) for real_P, synthetic_P in pairs]))
        slopes_B = torch.zeros_like(nll_B)
        slopes_B[own] = nll_slopes(products_B, weights_B[own], temperature) / self.n_labels
        losses_C = torch.stack([gradient_distance(real_P, synthetic_P) for real_P, synthetic_P in pairs])
        effective = [1 / float(weights_B[drawn.labels_B == label].square().sum()) for label in range(self.n_labels)]
        return losses_C, slopes_B, float(np.mean(effective))

    def _measure(self, engine: Engine, monitor: SimilarityMonitor | None, tracker: Tracker, step: int) -> None:
        if self.settings.monitor_every:
            whole = full_weights(self.generator, engine)
            if monitor:
                tracker.log(step, **monitor.measure(whole))
