"""What a stage works with: the configuration, and the processes, rows, cache and device that follow from it."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dilm.config.schema import Config
from dilm.data.corpus import Corpus, load_corpus
from dilm.distributed.world import ALONE, World
from dilm.hub.pretrained import cache_folder

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Context:
    """A configuration and the processes that work on it. The rest is made when it is first asked for."""

    config: Config
    world: World = ALONE

    @property
    def cache(self) -> Path:
        """The folder of models, tokens and features."""
        return cache_folder(self.config.cache)

    @cached_property
    def corpus(self) -> Corpus:
        """The task's training rows. Collective at its first use. Raises DataError."""
        return self.world.main_first(lambda: load_corpus(self.config.task, self.config.data, self.cache))

    @cached_property
    def device(self) -> "torch.device":
        """Where tensors are. Sets torch's threads."""
        from dilm.distributed.device import pick_device  # torch, which not every stage needs

        return pick_device(self.config.device, self.config.threads)

    @property
    def n_labels(self) -> int:
        """Labels of the task."""
        return len(self.config.task.labels)

    def changed(self, **values: Any) -> "Context":
        """The same work with other values in the configuration, none of which changes rows, cache or device."""
        other = Context(replace(self.config, **values), self.world)
        vars(other).update((name, made) for name, made in vars(self).items() if name in ("corpus", "device"))
        return other
