"""The learner's trajectory: trained on real texts between the generator's updates (paper, section 3.2).

The learner never sees the generator's texts. So it may be trained beside the generator, as in the paper, or
beforehand: `dilm.matching.trajectory_pool`. `outer` and `inner` count steps from 0.

Shape suffixes: C labels, P matched parameters.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from dilm.config.schema import MatchConfig
from dilm.core.errors import TrainingError
from dilm.core.hashing import Names, derive_seed
from dilm.data.samplers import plain_batches, skip
from dilm.distributed.context import Context
from dilm.distributed.device import seeded
from dilm.distributed.world import World
from dilm.matching.batches import real_batches, real_sets
from dilm.matching.gradients import mean_gradients
from dilm.models.batching import Ids
from dilm.models.features import FeatureStore
from dilm.models.learner import Learner, text_loss
from dilm.training.engine import TorchEngine


class LearnerTraining:
    """The learner, and its training on batches of real texts. Ranks share each batch; the learner is whole on all.

    `tokens` and `labels_N` are of all training texts, `names` seed batches, heads and dropout.
    """

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
        """Start an outer step, with a fresh learner or (`continued`) with this one; the schedule starts again."""
        if self.settings.learners != "continued" or outer == 0:
            self.learner.fresh("match", *self.names, outer)
        self.trainer = self._trainer()

    def advance(self, outer: int, inner: int) -> None:
        """Take the learner `learner_steps` steps further. Collective. Raises TrainingError at a loss not finite."""
        self.learner.train(self.settings.learner_dropout)
        rank = (self.world.rank,) if self.world.rank else ()

        def microbatch(rows: np.ndarray) -> Tensor:
            local = rows[list(self.world.shard(len(rows)))]
            loss = text_loss(self.learner, [self.tokens[row] for row in local], self.labels[local], self.precision)
            return loss * (len(local) / len(rows))

        with seeded(derive_seed("learner dropout", *self.names, outer, inner, *rank), self.learner.device):
            for _ in range(self.settings.learner_steps):
                loss = self.trainer.step(partial(microbatch, next(self.rows))).loss
                if not np.isfinite(loss):
                    raise TrainingError(
                        f"match: the learner's loss is {loss} in outer step {outer}; lower match.learner_optimizer.lr."
                    )

    def state(self) -> dict[str, Any]:
        """What the next steps depend on, besides the batches, which their number determines."""
        return self.trainer.state()

    def restore(self, updates: int, state: dict[str, Any]) -> None:
        """Learner and batches as they were after so many updates of the generator."""
        skip(self.rows, updates * self.settings.learner_steps)
        self.begin((updates - 1) // self.settings.inner_steps)
        self.trainer.load_state(state)


class LearnerTrajectory(Protocol):
    """The states that the learner passes while the generator is trained, and the real gradients at each."""

    learner: Learner

    def start(self) -> None:
        """Make ready for the first outer step of a run. Collective, as is everything but `state`."""
        ...

    def begin(self, outer: int) -> None:
        """Bring the learner to the state at which an outer step starts."""
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


class TrainedTrajectory:
    """As in the paper: the learner is trained between updates, and real batches are drawn for each of them."""

    def __init__(self, context: Context, learner: Learner, parameters: list[nn.Parameter] | None) -> None:
        config, corpus, world, cache = context.config, context.corpus, context.world, context.cache
        self.learner, self.parameters = learner, parameters
        self.settings, self.precision, self.world = config.match, config.precision, world
        self.names: Names = (config.task.name, config.seed)
        self.table = corpus.train
        self.store = FeatureStore(config.match.learner, learner.n_labels, cache, learner.device, config.precision)
        tokens = world.main_first(lambda: learner.tokenize_once(corpus.train))
        self.training = LearnerTraining(
            learner, tokens, corpus.train.labels, config.match, config.precision, self.names, world
        )
        self.sets: list[list[np.ndarray]] = []
        self.real: Iterator[list[np.ndarray]] = iter(())

    def start(self) -> None:
        """Choose the sets that real batches come from, the same on all ranks. Raises DataError as `real_sets`."""
        sets = real_sets(self.table, self.settings, self.store, self.names) if self.world.main else []
        self.take_sets(self.world.broadcast(sets))

    def take_sets(self, sets: list[list[np.ndarray]]) -> None:
        """Draw real batches from these sets from now on."""
        self.sets = sets
        self.real = real_batches(sets, self.settings.real_dpc, self.names)

    def begin(self, outer: int) -> None:
        """A fresh learner, or the same one, by `match.learners`."""
        self.training.begin(outer)

    def gradients(self) -> Tensor:
        """Mean gradient of each label over `real_batches` batches that ranks share, real_CP."""
        means = []
        for _ in range(self.settings.real_batches):
            rows = np.concatenate(next(self.real))
            tokens = [self.training.tokens[row] for row in rows]
            labels_B = self.table.labels[rows]
            means.append(mean_gradients(self.learner, tokens, labels_B, self.parameters, self.precision, self.world))
        return torch.stack(means).mean(0)

    def advance(self, outer: int, inner: int) -> None:
        """Train the learner `learner_steps` steps further."""
        self.training.advance(outer, inner)

    def state(self) -> dict[str, Any]:
        """The sets, and the learner with its optimizer."""
        return {"sets": [[rows.tolist() for rows in chosen] for chosen in self.sets], **self.training.state()}

    def restore(self, updates: int, state: dict[str, Any]) -> None:
        """Everything as it was after so many updates of the generator."""
        self.take_sets([[np.array(rows) for rows in chosen] for chosen in state.pop("sets")])
        skip(self.real, updates * self.settings.real_batches)
        self.training.restore(updates, state)


@contextmanager
def untrained(learner: Learner, names: Names) -> Iterator[Learner]:
    """Lend the learner with its pretrained weights and a head seeded by `names` for the block; restore it after."""
    before = {name: tensor.detach().clone() for name, tensor in learner.state_dict().items()}
    try:
        yield learner.fresh("clusters", *names)
    finally:
        learner.load_state_dict(before)
