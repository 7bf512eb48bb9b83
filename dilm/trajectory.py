"""The learner on its way: trained on real texts between the generator's updates (paper, section 3.2)."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from dilm.batching import Ids
from dilm.clustering import plain_batches
from dilm.config import MatchConfig
from dilm.device import seeded
from dilm.engine import TorchEngine
from dilm.errors import TrainingError
from dilm.keys import Names, derive_seed
from dilm.learner import Learner, text_loss
from dilm.streams import skip
from dilm.world import World


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
            own = rows[list(self.world.mine(len(rows)))]
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
