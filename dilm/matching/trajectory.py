"""The learner on its way, trained on real texts between the generator's updates (paper, section 3.2).

The learner never sees the generator. So it may be trained beside it, as in the paper, or beforehand:
`dilm.matching.trajectory_pool`. Shape suffixes: C labels, P matched parameters, S states of a trajectory, R sets.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from dilm.config.schema import Config, MatchConfig
from dilm.core.errors import TrainingError
from dilm.core.hashing import Names, derive_seed
from dilm.data.corpus import Corpus
from dilm.data.samplers import plain_batches, skip
from dilm.distributed.device import seeded
from dilm.distributed.world import World
from dilm.matching.batches import real_batches, teacher_sets
from dilm.matching.gradients import mean_gradients
from dilm.models.batching import Ids
from dilm.models.features import FeatureStore
from dilm.models.learner import Learner, text_loss
from dilm.training.engine import TorchEngine


class Trajectory:
    """Where the learner is, and what takes it further. Its batches are real texts, whose ranks share each."""

    def __init__(
        self,
        learner: Learner,
        tokens: Sequence[Ids],
        labels_N: np.ndarray,
        settings: MatchConfig,
        precision: str,
        names: Names,
        world: World,
    ) -> None:
        self.learner, self.settings, self.precision = learner, settings, precision
        self.tokens, self.labels = tokens, labels_N
        self.names, self.world = names, world
        seed = derive_seed("learner", *names)
        self.rows = plain_batches(len(tokens), settings.learner_batch, np.random.default_rng(seed))
        self.trainer = self._trainer()

    def _trainer(self) -> TorchEngine:
        settings = self.settings
        return TorchEngine(self.learner, settings.learner_optimizer, settings.learner_schedule, world=self.world)

    def begin(self, outer: int) -> None:
        """Start an outer step: with a fresh learner, or with the one that is there; the schedule starts again."""
        if self.settings.learners != "continued" or outer == 0:
            self.learner.fresh("match", *self.names, outer)
        self.trainer = self._trainer()

    def advance(self, outer: int, inner: int) -> None:
        """Take the learner `learner_steps` steps further."""
        self.learner.train(self.settings.learner_dropout)
        rank = (self.world.rank,) if self.world.rank else ()

        def part(rows: np.ndarray) -> Tensor:
            own = rows[list(self.world.shard(len(rows)))]
            loss = text_loss(self.learner, [self.tokens[row] for row in own], self.labels[own], self.precision)
            return loss * (len(own) / len(rows))

        with seeded(derive_seed("learner dropout", *self.names, outer, inner, *rank), self.learner.device):
            for _ in range(self.settings.learner_steps):
                loss = self.trainer.step(partial(part, next(self.rows))).loss
                if not np.isfinite(loss):
                    raise TrainingError(
                        f"match: the learner's loss is {loss} in outer step {outer}; lower match.learner_optimizer.lr."
                    )

    def state(self) -> dict[str, Any]:
        """What the next steps depend on."""
        return self.trainer.state()

    def restore(self, updates: int, state: dict[str, Any]) -> None:
        """Learner and batches as they were after so many updates of the generator."""
        skip(self.rows, updates * self.settings.learner_steps)
        self.begin((updates - 1) // self.settings.inner_steps)
        self.trainer.load_state(state)


class Teacher(Protocol):
    """A learner that goes its way while the generator is trained, and the real gradient where it is."""

    learner: Learner

    def start(self) -> None:
        """Make ready for the first outer step of a run."""
        ...

    def begin(self, outer: int) -> None:
        """Bring the learner to where an outer step starts."""
        ...

    def gradients(self) -> Tensor:
        """The next real gradient of each label at the learner's state, real_CP."""
        ...

    def advance(self, outer: int, inner: int) -> None:
        """Take the learner to its state after an update of the generator."""
        ...

    def state(self) -> dict[str, Any]:
        """What the next steps depend on, besides their number."""
        ...

    def restore(self, updates: int, state: dict[str, Any]) -> None:
        """Everything as it was after so many updates of the generator."""
        ...


class TrainedTeacher:
    """The paper's way: the learner is trained between updates, and real batches are drawn for each."""

    def __init__(
        self,
        config: Config,
        corpus: Corpus,
        learner: Learner,
        parameters: list[nn.Parameter] | None,
        cache: Path,
        world: World,
    ) -> None:
        self.learner, self.parameters = learner, parameters
        self.settings, self.precision, self.world = config.match, config.precision, world
        self.names: Names = (config.task.name, config.seed)
        self.table = corpus.train
        self.store = FeatureStore(config.match.learner, learner.n_labels, cache, learner.device, config.precision)
        tokens = world.main_first(lambda: learner.tokenize_once(corpus.train))
        self.trajectory = Trajectory(
            learner, tokens, corpus.train.labels, config.match, config.precision, self.names, world
        )
        self.sets: list[list[np.ndarray]] = []
        self.real: Iterator[list[np.ndarray]] = iter(())

    def start(self) -> None:
        """Choose the sets that real batches come from, the same on all ranks."""
        found = teacher_sets(self.table, self.settings, self.store, self.names) if self.world.main else []
        self.take_sets(self.world.broadcast(found))

    def take_sets(self, sets: list[list[np.ndarray]]) -> None:
        """Draw real batches from these sets from now on."""
        self.sets = sets
        self.real = real_batches(sets, self.settings.real_dpc, self.names)

    def begin(self, outer: int) -> None:
        """A fresh learner, or the one that is there."""
        self.trajectory.begin(outer)

    def gradients(self) -> Tensor:
        """Mean gradient of each label over `real_batches` batches that ranks share, real_CP."""
        means = []
        for _ in range(self.settings.real_batches):
            rows = np.concatenate(next(self.real))
            tokens = [self.trajectory.tokens[row] for row in rows]
            labels_B = self.table.labels[rows]
            means.append(mean_gradients(self.learner, tokens, labels_B, self.parameters, self.precision, self.world))
        return torch.stack(means).mean(0)

    def advance(self, outer: int, inner: int) -> None:
        """Train the learner `learner_steps` steps further."""
        self.trajectory.advance(outer, inner)

    def state(self) -> dict[str, Any]:
        """The sets, and the learner with its optimizer."""
        return {"sets": [[rows.tolist() for rows in chosen] for chosen in self.sets], **self.trajectory.state()}

    def restore(self, updates: int, state: dict[str, Any]) -> None:
        """Everything as it was after so many updates of the generator."""
        self.take_sets([[np.array(rows) for rows in chosen] for chosen in state.pop("sets")])
        skip(self.real, updates * self.settings.real_batches)
        self.trajectory.restore(updates, state)


@contextmanager
def pretrained(learner: Learner, names: Names) -> Iterator[Learner]:
    """The untrained learner for the block, to embed with; what it was comes back."""
    before = {name: tensor.detach().clone() for name, tensor in learner.state_dict().items()}
    try:
        yield learner.fresh("clusters", *names)
    finally:
        learner.load_state_dict(before)
