"""The pool of learners that gradient matching goes through: trained once on real texts, for all runs of a task.

A trajectory holds a learner's weights before each of the generator's updates in an outer step; its teacher holds the
gradient of every set of real texts at each of these states. Neither depends on the generator, nor on a run's seed.
"""

from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from dilm import signals
from dilm.artifacts import make
from dilm.config import Config
from dilm.data import Corpus, load_corpus
from dilm.device import out_of_memory, pick_device
from dilm.features import FeatureStore
from dilm.files import write_bytes
from dilm.gradients import matched_parameters, mean_gradients
from dilm.keys import Names
from dilm.learner import build_learner
from dilm.lineage import pool_artifacts
from dilm.signals import Stopped
from dilm.sources import cache_folder
from dilm.streams import fixed_sets
from dilm.teacher import GRADIENTS_FILE, read_state, state_file
from dilm.tracking import Progress
from dilm.trajectory import Trajectory
from dilm.world import ALONE, World

GB = 10**9


def run(config: Config, world: World = ALONE) -> None:
    """Make the trajectories of the pool and their teachers, or find them; nothing where a matching has no pool."""
    if config.match.learners != "pool":
        return
    cache = cache_folder(config.cache)
    corpus = world.first(lambda: load_corpus(config.task, config.data, cache))
    pool = dict(enumerate(pool_artifacts(config, corpus.content_hash)))
    if config.match.trajectory is not None:
        pool = {config.match.trajectory: pool[config.match.trajectory]}
    there = all(artifact.exists for both in pool.values() for artifact in both)
    if world.share(there and not config.force):
        if world.main:
            size, name = config.match.pool_size, config.match.learner.name
            print(f"found {len(pool)} of the pool's {size} learners ({name}) below {config.root}")
        return
    with out_of_memory():
        maker = Learners(config, corpus, cache, world)
        for number, (trajectory, teacher) in pool.items():
            make(trajectory, partial(maker.train, number), config, ranks=world)
            make(teacher, partial(maker.measure, trajectory.folder, number), config, ranks=world)


class Learners:
    """What makes trajectories and their teachers: one learner, which goes every way in turn."""

    def __init__(self, config: Config, corpus: Corpus, cache: Path, world: World) -> None:
        self.config, self.settings, self.corpus, self.world = config, config.match, corpus, world
        self.names: Names = ("pool", config.task.name)
        device = pick_device(config.device, config.threads)
        n_labels = len(config.task.labels)
        self.learner = world.first(lambda: build_learner(config.match.learner, n_labels, cache, device))
        self.parameters = matched_parameters(self.learner, self.settings.parameters)
        if self.parameters is not None:
            self.learner.use_eager_attention()  # the other kernels can't be back-propagated twice
        self.store = FeatureStore(config.match.learner, n_labels, cache, device, config.precision)
        self.tokens = world.first(lambda: self.learner.tokenize_once(corpus.train))
        self.dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        if world.main:
            print(self._size())

    def _size(self) -> str:
        """What the pool takes, in a line."""
        settings = self.settings
        weights = sum(tensor.numel() for tensor in self.learner.state_dict().values()) * self.dtype.itemsize
        size = weights * settings.inner_steps * settings.pool_size / GB
        states = f"{settings.pool_size} x {settings.inner_steps} states"
        return f"learners: the pool's {states} of {settings.learner.name} take {size:.1f} GB below {self.config.root}"

    @cached_property
    def sets(self) -> list[list[np.ndarray]]:
        """The sets of real texts whose gradients are kept, the same on all ranks."""
        found = fixed_sets(self.corpus.train, self.settings, self.store, self.names) if self.world.main else []
        return self.world.share(found)

    def train(self, number: int, folder: Path) -> None:
        """Train a fresh learner, and write down where it is before each of the generator's updates."""
        names, inner_steps = (*self.names, number), self.settings.inner_steps
        labels = self.corpus.train.labels
        way = Trajectory(self.learner, self.tokens, labels, self.settings, self.config.precision, names, self.world)
        way.begin(0)
        with Progress(inner_steps, f"learner {number}", active=self.world.main) as bar:
            for inner in range(inner_steps):
                self._stop_where_told()
                if inner:
                    way.advance(0, inner - 1)
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
        """Write down the mean gradients of every set at every state of a trajectory, real_SRCP."""
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
        self._stop_where_told()
        tokens = [self.tokens[row] for row in rows.tolist()]
        labels_B = self.corpus.train.labels[rows]
        return mean_gradients(self.learner, tokens, labels_B, self.parameters, self.config.precision, self.world)

    def _stop_where_told(self) -> None:
        told, again = self.world.any(signals.told(), signals.told_again())
        if told:
            raise Stopped(again)
