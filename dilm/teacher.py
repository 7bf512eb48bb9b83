"""What the generator is matched to: a learner's states, and the gradient of real texts at each (paper, section 3.2).

The learner is trained on real texts alone and never sees the generator. So it may be trained beside it, as in the
paper, or beforehand: a pool of trajectories, with the real gradients at every state, serves all runs of a task.

Shape suffixes: C labels, P matched parameters, S states of a trajectory, R sets of real texts.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dilm.config import Config, MatchConfig
from dilm.data import Corpus
from dilm.features import FeatureStore
from dilm.gradients import mean_gradients
from dilm.keys import Names, derive_seed
from dilm.learner import Learner
from dilm.lineage import pool_artifacts
from dilm.streams import real_batches, skip, teacher_sets
from dilm.trajectory import Trajectory
from dilm.world import World

GRADIENTS_FILE = "gradients.safetensors"


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
        tokens = world.first(lambda: learner.tokenize_once(corpus.train))
        self.trajectory = Trajectory(
            learner, tokens, corpus.train.labels, config.match, config.precision, self.names, world
        )
        self.sets: list[list[np.ndarray]] = []
        self.real: Iterator[list[np.ndarray]] = iter(())

    def start(self) -> None:
        """Choose the sets that real batches come from, the same on all ranks."""
        found = teacher_sets(self.table, self.settings, self.store, self.names) if self.world.main else []
        self.take_sets(self.world.share(found))

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


class PooledTeacher:
    """The learner's states, and the real gradients at each, are read from a pool of trajectories made beforehand.

    Outer steps pass through the trajectories in shuffled rounds. A real batch is one whole set of real texts.
    """

    def __init__(self, learner: Learner, folders: Sequence[tuple[Path, Path]], settings: MatchConfig, names: Names):
        self.learner, self.settings, self.names = learner, settings, names
        self.trajectories = [trajectory for trajectory, _ in folders]
        self.real_SRCP = [load_file(teacher / GRADIENTS_FILE)["gradients"] for _, teacher in folders]
        self.random = np.random.default_rng(derive_seed("real batches", *names))
        self.place = (0, 0)  # trajectory, state
        self.ahead: tuple[tuple[int, int], Future[dict[str, Tensor]]] | None = None
        self.reader = ThreadPoolExecutor(1, "trajectory")

    def start(self) -> None:
        """Nothing: all is there."""

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
        """Nothing: the number of updates tells all."""
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
    """A trajectory's state, whole in memory: what `load_file` maps is only read from disk where it is used."""
    return {name: tensor.clone() for name, tensor in load_file(folder / state_file(inner)).items()}


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


@contextmanager
def pretrained(learner: Learner, names: Names) -> Iterator[Learner]:
    """The untrained learner for the block, to embed with; what it was comes back."""
    before = {name: tensor.detach().clone() for name, tensor in learner.state_dict().items()}
    try:
        yield learner.fresh("clusters", *names)
    finally:
        learner.load_state_dict(before)
