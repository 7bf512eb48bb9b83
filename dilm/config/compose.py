"""From keys on a command line to typed configurations: checks with suggestions, sweeps, and Hydra's composition.

Torch-free, and quick for a large sweep: what a group's choice brings is composed once, plain values are set on it.
"""

import dataclasses
import typing
from collections.abc import Iterable, Sequence

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dilm.config.schema import Config, LearnerConfig, TaskConfig
from dilm.core.errors import ConfigError, did_you_mean
from dilm.core.io import CONF_FOLDER

T = typing.TypeVar("T")
# Groups that fill a part of the tree other than the one that bears their name.
GROUP_AT = {"match.learner": "learner@match.learner", "generate.encoder": "learner@generate.encoder"}


def attach() -> None:
    """Register the schema under the name that `conf/config.yaml` starts from."""
    ConfigStore.instance().store(name="schema", node=Config)


def rewrite(argument: str) -> str:
    """`match.learner=minilm` names a group's option, which Hydra wants as `learner@match.learner=minilm`.

    And keys of DeepSpeed and of sbatch are free to add, which Hydra wants to be told.
    """
    key, equals, value = argument.partition("=")
    if key.startswith(("engine.deepspeed.", "site.options")):
        return f"++{argument}"
    return f"{GROUP_AT[key]}{equals}{value}" if key in GROUP_AT else argument


def check_override(argument: str) -> None:
    """Refuse an unknown key or option before Hydra does, with a suggestion. Raises ConfigError."""
    key, equals, value = argument.partition("=")
    if argument.startswith("-") or not equals:
        return
    key = key.lstrip("+~")
    group = key.partition("@")[0]
    if key.startswith("hydra") and group != "hydra/launcher":
        return
    if (CONF_FOLDER / group).is_dir():
        _check_options(group, value)
    else:
        _check_key(key)


def _check_options(group: str, value: str) -> None:
    options = options_of(group)
    known = (*options, "null", *OTHERS_OPTIONS.get(group, ()))
    for name in value.strip("'\"").split(","):
        if name and "[" not in name and "(" not in name and "${" not in name and name not in known:
            raise ConfigError(f"{group} {name!r} is unknown.{did_you_mean(name, options)}")


OTHERS_OPTIONS = {"hydra/launcher": ("basic", "submitit_slurm", "submitit_local")}  # that are not in conf/


def options_of(group: str) -> list[str]:
    """Names of a group's options: its YAML files, also in folders below it."""
    folder = CONF_FOLDER / group
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def _check_key(key: str) -> None:
    kind: object = Config
    for depth, name in enumerate(key.split(".")):
        if typing.get_origin(kind) is dict:
            return  # keys of others, checked where their names are known
        if not dataclasses.is_dataclass(kind) or not isinstance(kind, type):
            raise ConfigError(f"{key} is unknown: {'.'.join(key.split('.')[:depth])} has no parts.")
        hints = typing.get_type_hints(kind)
        if name not in hints:
            groups = [path.name for path in CONF_FOLDER.iterdir() if path.is_dir()] if depth == 0 else []
            raise ConfigError(f"{key} is unknown.{did_you_mean(name, {*hints, *groups})}")
        kind = hints[name]


def checked(arguments: Iterable[str]) -> list[str]:
    """Arguments as Hydra wants them. Raises ConfigError for the first that is unknown."""
    rewritten = [rewrite(argument) for argument in arguments]
    for argument in rewritten:
        check_override(argument)
    return rewritten


def one_line(error: Exception) -> str:
    """Hydra's and OmegaConf's messages run over several lines; the cause is often in the chained error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = error.__cause__ or error.__context__
    if isinstance(cause, OmegaConfBaseException):
        lines += [line.strip() for line in str(cause).splitlines() if line.strip()]
    unwanted = ("object_type=", "reference_type=", "See https", "Set the environment")
    kept = [line for line in dict.fromkeys(lines) if not line.startswith(unwanted)]
    return "; ".join(kept).replace("full_key: ", "key ")


def load_task(name: str) -> TaskConfig:
    """A task of `conf/task` by its name. Raises ConfigError."""
    return _load(TaskConfig, "task", name)


def load_learner(name: str) -> LearnerConfig:
    """A learner of `conf/learner` by its name. Raises ConfigError."""
    return _load(LearnerConfig, "learner", name)


def _load(kind: type[T], group: str, name: str) -> T:
    path = CONF_FOLDER / group / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(f"{group} {name!r} is unknown.{did_you_mean(name, options_of(group))}")
    return typing.cast(T, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), OmegaConf.load(path))))


def composed(overrides: Sequence[str], launcher: str | None = None, command: str = "") -> DictConfig:
    """Hydra's composition of keys; with a `launcher`, what Hydra itself is configured with stands at `hydra`.

    The launcher "" is the one that the keys choose.
    """
    attach()
    keys = list(overrides)
    if launcher is not None:
        chosen = [f"hydra/launcher={launcher}"] if launcher else []
        keys = [*chosen, f"hydra.job.name={command}", *keys]
    before = GlobalHydra.instance().hydra  # of a command that is running
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF_FOLDER)):
            return compose("config", keys, return_hydra_config=launcher is not None)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(one_line(error)) from error
    finally:
        if before is not None:
            GlobalHydra.instance().initialize(before)
