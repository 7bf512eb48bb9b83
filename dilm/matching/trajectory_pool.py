"""A pool of the learner's trajectories, made once on real texts for all runs of a task, and how matching reads it.

One artifact of a trajectory (`trajectory-*`) holds the learner's weights before each of the generator's updates in an
outer step, another (`teacher-*`) the gradients of every set of real texts at each of these states. Neither depends on
the generator, nor on a run's seed.

Shape suffixes: S states of a trajectory, R sets of real texts, C labels, P matched parameters.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from dilm.config.schema import MatchConfig
from dilm.core import signals
from dilm.core.hashing import Names, derive_seed
from dilm.core.io import write_bytes
from dilm.core.signals import Stopped
from dilm.distributed.context import Context
from dilm.matching.batches import fixed_sets
from dilm.matching.gradients import matched_parameters, mean_gradients
from dilm.matching.trajectory import LearnerTraining
from dilm.models.features import FeatureStore
from dilm.models.learner import Learner, build_learner
from dilm.tracking.tracker import Progress

GRADIENTS_FILE = "gradients.safetensors"


class PooledTrajectory:
    """The learner's states, and the real gradients at each, are read from a pool of trajectories made beforehand.

    Outer steps pass through the trajectories in shuffled rounds. A real batch is one whole set of real texts.
    `folders` are those of each trajectory's states and gradients.
    """

    def __init__(self, learner: Learner, folders: Sequence[tuple[Path, Path]], settings: MatchConfig, names: Names):
        self.learner, self.settings, self.names = learner, settings, names
        self.trajectories = [states for states, _ in folders]
        self.real_SRCP = [load_file(gradients / GRADIENTS_FILE)["gradients"] for _, gradients in folders]
        self.random = np.random.default_rng(derive_seed("real batches", *names))
        self.place = (0, 0)  # trajectory, state
        self.ahead: tuple[tuple[int, int], Future[dict[str, Tensor]]] | None = None
        self.reader = ThreadPoolExecutor(1, "trajectory")

    def start(self) -> None:
        """Nothing to do: the pool has everything."""

    def begin(self, outer: int) -> None:
        """The first state of the outer step's trajectory."""
        self._go(outer * self.settings.inner_steps)

    def gradients(self) -> Tensor:
        """Mean gradient of each label over `real_batches` of the sets, at random, real_CP."""
        number, inner = self.place
        real_RCP = self.real_SRCP[number][inner]
        rows = self.random.integers(len(real_RCP), size=self.settings.real_batches)
        return real_RCP[torch.as_tensor(rows)].mean(0).to(self.learner.device)

    def advance(self, outer: int, inner: int) -> None:
        """The next state, while there is one."""
        if inner + 1 < self.settings.inner_steps:
            self._go(outer * self.settings.inner_steps + inner + 1)

    def state(self) -> dict[str, Any]:
        """Empty: the number of updates determines everything."""
        return {}

    def restore(self, updates: int, state: dict[str, Any]) -> None:
        """Everything as it was after so many updates of the generator."""
        for _ in range(updates):
            self.random.integers(len(self.real_SRCP[0][0]), size=self.settings.real_batches)
        if updates % self.settings.inner_steps:
            self._go(updates)

    def place_of(self, update: int) -> tuple[int, int]:
        """The trajectory and its state that the generator's update of this number, from 0, is matched at."""
        outer, inner = divmod(update, self.settings.inner_steps)
        turn, position = divmod(outer, len(self.trajectories))
        order = np.random.default_rng(derive_seed("trajectories", *self.names, turn)).permutation(
            len(self.trajectories)
        )
        return int(order[position]), inner

    def _go(self, update: int) -> None:
        """Bring the learner to an update's state, and begin to read the next one's."""
        self.place = self.place_of(update)
        reading = self.ahead[1] if self.ahead and self.ahead[0] == self.place else self._reading(self.place)
        self.learner.load_state_dict(reading.result())
        following = self.place_of(update + 1)
        self.ahead = (following, self._reading(following))

    def _reading(self, place: tuple[int, int]) -> Future[dict[str, Tensor]]:
        number, inner = place
        return self.reader.submit(read_state, self.trajectories[number], inner)


def state_file(inner: int) -> str:
    """The file of a trajectory's state before the generator's update `inner` of an outer step."""
    return f"state-{inner:03d}.safetensors"


def read_state(folder: Path, inner: int) -> dict[str, Tensor]:
    """A trajectory's state, by the names of the learner's weights, whole in memory.

    Cloned, since what `load_file` maps is only read from disk where it is used.
    """
    return {name: tensor.clone() for name, tensor in load_file(folder / state_file(inner)).items()}


GB = 10**9


class TrajectoryMaker:
    """Makes the pool: trains one learner along every trajectory in turn, and measures the real gradients at its states.

    Every method is collective. Raises ConfigError as `matched_parameters`.
    """

    def __init__(self, context: Context) -> None:
        config, corpus, world, cache = context.config, context.corpus, context.world, context.cache
        self.config, self.settings, self.corpus, self.world = config, config.match, corpus, world
        self.names: Names = ("pool", config.task.name)
        device, n_labels = context.device, context.n_labels
        self.learner = world.main_first(lambda: build_learner(config.match.learner, n_labels, cache, device))
        self.parameters = matched_parameters(self.learner, self.settings.parameters)
        if self.parameters is not None:
            self.learner.use_eager_attention()  # the other kernels can't be back-propagated twice
        self.store = FeatureStore(config.match.learner, n_labels, cache, device, config.precision)
        self.tokens = world.main_first(lambda: self.learner.tokenize_once(corpus.train))
        self.dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        if world.main:
            print(self._size())

    def _size(self) -> str:
        """What the pool takes on disk, in a line."""
        settings = self.settings
        weights = sum(tensor.numel() for tensor in self.learner.state_dict().values()) * self.dtype.itemsize
        size = weights * settings.inner_steps * settings.pool_size / GB
        states = f"{settings.pool_size} x {settings.inner_steps} states"
        return f"learners: the pool's {states} of {settings.learner.name} take {size:.1f} GB below {self.config.root}"

    @cached_property
    def sets(self) -> list[list[np.ndarray]]:
        """The sets of real texts whose gradients are kept, the same on all ranks."""
        sets = fixed_sets(self.corpus.train, self.settings, self.store, self.names) if self.world.main else []
        return self.world.broadcast(sets)

    def train(self, number: int, folder: Path) -> None:
        """Train a fresh learner, and write its weights before each of the generator's updates into `folder`.

        `number` is the trajectory's, and seeds it. Raises Stopped where a signal asked the run to stop.
        """
        names, inner_steps = (*self.names, number), self.settings.inner_steps
        labels = self.corpus.train.labels
        training = LearnerTraining(
            self.learner, self.tokens, labels, self.settings, self.config.precision, names, self.world
        )
        training.begin(0)
        with Progress(inner_steps, f"learner {number}", active=self.world.main) as bar:
            for inner in range(inner_steps):
                self._check_stop()
                if inner:
                    training.advance(0, inner - 1)
                if self.world.main:
                    write_bytes(folder / state_file(inner), save(self._weights()))
                bar.update()

    def _weights(self) -> dict[str, Tensor]:
        weights = {name: tensor.detach().cpu() for name, tensor in self.learner.state_dict().items()}
        return {
            name: (tensor.to(self.dtype) if tensor.is_floating_point() else tensor).contiguous()
            for name, tensor in weights.items()
        }

    def measure(self, trajectory: Path, number: int, folder: Path) -> None:
        """Write the mean gradients of every set at every state of a trajectory, real_SRCP, into `folder`.

        Raises Stopped where a signal asked the run to stop.
        """
        states = []
        with Progress(self.settings.inner_steps, f"teacher {number}", active=self.world.main) as bar:
            for inner in range(self.settings.inner_steps):
                self.learner.load_state_dict(read_state(trajectory, inner))
                states.append(torch.stack([self._gradients(np.concatenate(chosen)) for chosen in self.sets]))
                bar.update()
        if self.world.main:
            write_bytes(folder / GRADIENTS_FILE, save({"gradients": torch.stack(states).cpu()}))

    def _gradients(self, rows: np.ndarray) -> Tensor:
        """Mean gradient of each label's texts of a set, real_CP, the learner in eval mode."""
        self._check_stop()
        tokens = [self.tokens[row] for row in rows.tolist()]
        labels_B = self.corpus.train.labels[rows]
        return mean_gradients(self.learner, tokens, labels_B, self.parameters, self.config.precision, self.world)

    def _check_stop(self) -> None:
        told, again = self.world.any(signals.told(), signals.told_again())
        if told:
            raise Stopped(again)
