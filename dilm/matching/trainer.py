"""The training loop of gradient matching: generator, learner, and the two streams of texts (paper, section 3.3).

Shape suffixes: B synthetic texts of a batch, b those of this rank or of one microbatch, C labels.
"""

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
from dilm.core.errors import TrainingError
from dilm.core.hashing import derive_seed
from dilm.data.samplers import plain_batches, skip
from dilm.distributed.context import Context
from dilm.distributed.device import seeded
from dilm.matching.batches import SamplingSettings, SyntheticTexts, write_synthetic_texts
from dilm.matching.gradients import gradients_of, matched_parameters
from dilm.matching.loss import Matched, match_gradients
from dilm.matching.monitor import SimilarityMonitor
from dilm.matching.trajectory import LearnerTrajectory, TrainedTrajectory, untrained
from dilm.matching.trajectory_pool import PooledTrajectory
from dilm.models.batching import split_by_length
from dilm.models.generator import load_generator
from dilm.models.learner import Learner, build_learner
from dilm.models.likelihood import denominators, sum_nll
from dilm.tracking.tracker import Progress, Tracker
from dilm.training.checkpoints import Checkpoints
from dilm.training.engine import Engine, full_weights, generator_engine
from dilm.training.language_model import average_nll
from dilm.training.optimizer import Microbatch


def build_trajectory(context: Context, learner: Learner, parameters: list[nn.Parameter] | None) -> LearnerTrajectory:
    """The learner's trajectory as `match.learners` names it; `parameters` as from `matched_parameters`.

    Raises MissingArtifactError where a pool of trajectories is named and not there.
    """
    config = context.config
    if config.match.learners != "pool":
        return TrainedTrajectory(context, learner, parameters)
    artifacts = pool_artifacts(config, context.corpus.content_hash)
    pool = [(states.require(), gradients.require()) for states, gradients in artifacts]
    return PooledTrajectory(learner, pool, config.match, (config.task.name, config.seed))


@dataclass(frozen=True)
class SyntheticBatch:
    """A mini-batch of every label's synthetic texts, the same on all ranks; B texts, label by label."""

    sequences: list[list[int]]  # the generator's tokens
    tokens: list[list[int]]  # the learner's
    labels_B: np.ndarray


class Matching:
    """The training loop and what it holds: generator, learner, and the two streams of texts.

    Outer steps each start a learner; between the inner steps, which each update the generator once, it is trained.
    Raises MissingArtifactError where the pre-trained generator, or a pool that is named, is not there.
    """

    def __init__(self, context: Context, artifact: Artifact) -> None:
        config, corpus, world, cache = context.config, context.corpus, context.world, context.cache
        self.config, self.settings, self.corpus = config, config.match, corpus
        self.artifact, self.world = artifact, world
        self.names = (config.task.name, config.seed)
        self.device, self.n_labels = context.device, context.n_labels
        parent = pretrain_artifact(config, corpus.content_hash).require()
        self.generator = load_generator(parent, config.generator, config.task, self.device)
        self.learner = world.main_first(lambda: build_learner(config.match.learner, self.n_labels, cache, self.device))
        self.parameters = matched_parameters(self.learner, self.settings.parameters)
        if self.parameters is not None:
            self.learner.use_eager_attention()  # the other kernels can't be back-propagated twice
        self.trajectory = build_trajectory(context, self.learner, self.parameters)
        encode = partial(self.generator.encode_once, corpus.train, config.generator, cache)
        self.sequences = world.main_first(encode) if self.settings.lm_weight else []
        self.lm_rows = plain_batches(
            len(corpus.train), self.settings.lm_batch, np.random.default_rng(derive_seed("regulariser", *self.names))
        )
        self.sampling = SamplingSettings(config.precision, config.generate.top_p, config.generate.batch)
        self.texts: list[SyntheticTexts] = []  # of each label
        self.batches: list[Iterator[np.ndarray]] = []

    def train(self, folder: Path) -> None:
        """Run all outer and inner steps, from the newest checkpoint on, and save the generator to `folder`.

        Collective. Raises TrainingError where the loss or its gradient is not finite, and Stopped where a signal asked
        the run to stop, after a checkpoint.
        """
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
            self.trajectory.start()
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
                self.trajectory.advance(outer, inner)
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
        """What trains the generator; `universal` as for `build_engine`."""
        settings = self.settings
        total = settings.outer_steps * settings.inner_steps
        return generator_engine(self.generator, self.config, settings.optimizer, total, self.world, universal)

    def _state(self, outer: int) -> dict[str, Any]:
        """What a checkpoint needs besides the generator: synthetic texts, and the learner. Its keys stand in files."""
        written = outer - outer % self.settings.regenerate_every
        texts = [asdict(texts) for texts in self.texts]
        return {"pool": texts, "outer": written, "teacher": self.trajectory.state()}

    def _restore(self, start: int, state: dict[str, Any]) -> None:
        """Synthetic texts, learner and streams as they were after `start` updates."""
        settings = self.settings
        self._take_texts([SyntheticTexts(**texts) for texts in state["pool"]], state["outer"])
        for batches in self.batches:
            skip(batches, start - state["outer"] * settings.inner_steps)
        skip(self.lm_rows, start if settings.lm_weight else 0)
        self.trajectory.restore(start, state["teacher"])

    def _begin(self, engine: Engine, outer: int) -> None:
        """An outer step's learner, and new texts where it is time for them."""
        if outer % self.settings.regenerate_every == 0:
            self.write_texts(engine, outer)
        self.trajectory.begin(outer)

    def write_texts(self, engine: Engine, outer: int) -> None:
        """New synthetic texts from the generator as it is now. Collective. Raises DataError where too few are good."""
        whole = full_weights(self.generator, engine)
        names = (*self.names, outer)
        # Clustered by the untrained learner's embeddings: the texts outlast the learner of this outer step.
        with untrained(self.learner, self.names) as learner:
            texts = write_synthetic_texts(whole, learner, self.settings, self.sampling, names, self.world)
        self._take_texts(texts, outer)

    def _take_texts(self, texts: list[SyntheticTexts], outer: int) -> None:
        size = self.settings.synthetic_dpc
        self.texts = texts
        self.batches = [part.batches(size, (*self.names, outer, label)) for label, part in enumerate(texts)]

    def draw(self) -> SyntheticBatch:
        """The next mini-batch of every label."""
        rows = [next(batches) for batches in self.batches]
        return SyntheticBatch(
            [part.sequences[index] for part, drawn in zip(self.texts, rows, strict=True) for index in drawn],
            [part.tokens[index] for part, drawn in zip(self.texts, rows, strict=True) for index in drawn],
            np.repeat(np.arange(self.n_labels), [len(drawn) for drawn in rows]),
        )

    def update(self, engine: Engine, step: int) -> dict[str, float]:
        """One update of the generator: match the gradients of every label, and step. Collective.

        Texts are split over ranks, and over microbatches where memory is short. The ranks exchange the texts' nll, the
        sums of their weighted gradients and their slopes, so the objective is that of one process with one batch.
        Returns metrics: the labels' mean loss, the gradient's norm before clipping, how many texts of a label carry the
        weight, and the generator's tokens. Raises TrainingError where loss or norm is not finite.
        """
        accumulate = self.config.engine.accumulate
        self.generator.model.train()
        batch = self.draw()
        parts = split_by_length([len(sequence) for sequence in batch.sequences], self.world.size * accumulate)
        parts = parts[self.world.rank * accumulate :][:accumulate]
        nll = partial(self._nll, engine, step, batch, parts)
        with torch.set_grad_enabled(accumulate == 1):  # one part keeps its graph; of more, each graph is made in turn
            nll_parts = [nll(number) for number in range(accumulate)]
        local = np.concatenate(parts)
        nll_b = torch.cat(nll_parts).detach()
        nll_B = nll_b.new_zeros(len(batch.sequences))
        nll_B[local] = nll_b
        matched = self._match(batch, local, self.world.all_reduce(nll_B))
        regulariser = self._regulariser(engine, step)

        def microbatch(number: int) -> Tensor:
            part_b = nll_parts[number] if accumulate == 1 else nll(number)
            loss = (matched.slopes_B[parts[number]] * part_b).sum()
            return loss + self.settings.lm_weight * regulariser[number]() if regulariser else loss

        loss = float(matched.losses_C.mean())
        done = engine.step(*(partial(microbatch, number) for number in range(accumulate)))
        if not np.isfinite(loss) or not np.isfinite(done.norm):
            raise TrainingError(
                f"match: the loss is {loss} and its gradient's norm {done.norm} at update {step}, on the texts of "
                f"outer step {(step - 1) // self.settings.inner_steps}; lower match.optimizer.lr."
            )
        weights = [matched.weights_B[batch.labels_B == label] for label in range(self.n_labels)]
        effective = float(np.mean([1 / float(weights_b.square().sum()) for weights_b in weights]))
        n_tokens = sum(map(len, batch.sequences))
        return {"loss": loss, "gradient_norm": done.norm, "effective_texts": effective, "tokens": n_tokens}

    def _nll(self, engine: Engine, step: int, batch: SyntheticBatch, parts: list[np.ndarray], number: int) -> Tensor:
        """NLL of each text of one of this rank's parts, in nats, averaged as `match.nll_average` says: nll_b.

        The dropout is seeded, so that a part gives the same values again.
        """
        rows, rank = parts[number], self.world.rank
        averages_B = denominators(self.generator, batch.sequences, self.settings.nll_average).to(self.device)
        where = (rank, number) if rank or number else ()
        with seeded(derive_seed("match dropout", *self.names, step, *where), self.device):
            sequences = [batch.sequences[row] for row in rows]
            return sum_nll(self.generator, sequences, self.config.precision, engine) / averages_B[rows]

    def _regulariser(self, engine: Engine, step: int) -> list[Microbatch]:
        """The language-model loss on real texts, one microbatch for each of the update's; none without a weight."""
        if not self.settings.lm_weight:
            return []
        sequences = [self.sequences[row] for row in next(self.lm_rows)]
        names = ("regulariser dropout", *self.names, step)
        return average_nll(self.generator, sequences, names, self.config, engine)[0]

    def _match(self, batch: SyntheticBatch, local: np.ndarray, nll_B: Tensor) -> Matched:
        """Match all labels' gradients at the learner's weights of now; this rank computes those of the `local` rows."""
        tokens, labels_b = [batch.tokens[row] for row in local], batch.labels_B[local]
        gradients = gradients_of(self.learner, tokens, labels_b, self.parameters, self.config.precision)
        real_CP = self.trajectory.gradients()
        return match_gradients(real_CP, nll_B, batch.labels_B, local, gradients, self.settings.temperature, self.world)

    def _measure(self, engine: Engine, monitor: SimilarityMonitor | None, tracker: Tracker, step: int) -> None:
        if self.settings.monitor_every:
            whole = full_weights(self.generator, engine)
            if monitor:  # on the main rank
                tracker.log(step, **monitor.measure(whole))
