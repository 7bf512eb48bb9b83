"""The learner on its way: trained on real texts between the generator's updates (paper, section 3.2)."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from dilm.clustering import plain_batches
from dilm.config import MatchConfig
from dilm.device import seeded
from dilm.engine import TorchEngine
from dilm.errors import TrainingError
from dilm.keys import Names, derive_seed
from dilm.learner import Learner, text_loss
from dilm.streams import skip
from dilm.tables import TextTable
from dilm.world import World


class Trajectory:
    """Where the learner is, and what takes it further. Its batches are real texts, whose ranks share each."""

    def __init__(
        self, learner: Learner, table: TextTable, settings: MatchConfig, precision: str, names: Names, world: World
    ) -> None:
        self.learner, self.settings, self.precision = learner, settings, precision
        self.names, self.world = names, world
        self.labels = table.labels
        self.tokens = world.first(lambda: learner.tokenize_once(table))
        seed = derive_seed("learner", *names)
        self.rows = plain_batches(len(table), settings.learner_batch, np.random.default_rng(seed))
        self.trainer = self._trainer()

    def _trainer(self) -> TorchEngine:
        settings = self.settings
        return TorchEngine(self.learner, settings.learner_optimizer, settings.learner_schedule, world=self.world)

    def begin(self, outer: int) -> None:
        """Start an outer step: with a fresh learner, or with the one that is there; the schedule starts again."""
        if self.settings.fresh_learner or outer == 0:
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

    @contextmanager
    def pretrained(self) -> Iterator[Learner]:
        """The untrained learner for the block, to embed with; what it was comes back."""
        before = {name: tensor.detach().clone() for name, tensor in self.learner.state_dict().items()}
        try:
            yield self.learner.fresh("clusters", *self.names)
        finally:
            self.learner.load_state_dict(before)

    def state(self) -> dict[str, Any]:
        """What the next steps depend on."""
        return self.trainer.state()

    def restore(self, updates: int, state: dict[str, Any]) -> None:
        """Learner and batches as they were after so many updates of the generator."""
        skip(self.rows, updates * self.settings.learner_steps)
        self.begin((updates - 1) // self.settings.inner_steps)
        self.trainer.load_state(state)
