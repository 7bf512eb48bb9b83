"""The data sets that `export` and `audit` look at: a folder of shards, and what made it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dilm.config import Config, DataConfig, TaskConfig
from dilm.errors import ConfigError, ShardError
from dilm.shards import ShardTable, read_index, read_shards

T = TypeVar("T")


@dataclass(frozen=True)
class Inspected:
    """Shards with their index, and the task that they are of, as it was when they were made."""

    folder: Path
    index: dict[str, Any]
    rows: ShardTable
    task: TaskConfig
    data: DataConfig

    @property
    def key(self) -> str:
        """The key of the shards' artifact."""
        return str(self.index["key"])

    @property
    def name(self) -> str:
        """The artifact's name for people, without its key."""
        return self.folder.name.removesuffix(f"-{self.key}")


def inspected(config: Config) -> Inspected:
    """The shards that `shard=` names. Raises ConfigError and ShardError."""
    if config.shard is None:
        raise ConfigError("shard is not set; name the folder of a data set, such as shard=runs/sst2/dilm-dpc5-<key>.")
    folder = Path(config.shard)
    if folder.is_file():
        folder = folder.parent
    if not folder.is_dir():
        raise ConfigError(
            f"shard {config.shard!r}: there is no such folder; `python -m dilm.generate` prints its name."
        )
    index = read_index(folder.resolve())
    made = index["about"].get("config", {})
    if not {"task", "data"} <= set(made):
        raise ShardError(f"{folder / 'index.json'} does not say how its texts were made; make them again.")
    task, data = _as(TaskConfig, made["task"], folder), _as(DataConfig, made["data"], folder)
    return Inspected(folder.resolve(), index, read_shards(folder.resolve()), task, data)


def _as(kind: type[T], values: dict[str, Any], folder: Path) -> T:
    try:
        found: T = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), values))  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ShardError(f"{folder / 'index.json'} is of another version of dilm ({reason}); make it again.") from error
    return found
