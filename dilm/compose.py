"""From keys on a command line to typed configurations: checks with suggestions, sweeps, and Hydra's composition.

Torch-free, and quick for a large sweep: what a group's choice brings is composed once, plain values are set on it.
"""

import copy
import dataclasses
import sys
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dilm.checks import typed
from dilm.config import CONF_FOLDER, Config, TaskConfig
from dilm.data import find_place
from dilm.errors import ConfigError, did_you_mean
from dilm.site import request
from dilm.sources import cache_folder

# Groups that fill a part of the tree other than the one that bears their name.
GROUP_AT = {"match.learner": "learner@match.learner", "generate.encoder": "learner@generate.encoder"}


def attach() -> None:
    """Register the schema under the name that `conf/config.yaml` starts from, and what `conf/hydra/launcher` asks."""
    ConfigStore.instance().store(name="schema", node=Config)
    OmegaConf.register_new_resolver("dilm_job", _job, replace=True)


def _job(name: str, *, _root_: DictConfig) -> Any:
    """What a job of the command that is being launched asks for."""
    site, launcher = (OmegaConf.to_object(_root_[part]) for part in ("site", "launcher"))
    return request(site, launcher, _root_.hydra.job.name)[name]  # type: ignore[arg-type]


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


def with_fallback(config: Config) -> Config:
    """The configuration with `data.fallback`'s task where the chosen task's rows are nowhere to be had."""
    if config.data.fallback is None:
        return config
    if all(find_place(config.task, split, cache_folder(config.cache)) for split in ("train", "dev")):
        return config
    print(f"no rows of task {config.task.name!r} can be had here; taking {config.data.fallback!r}", file=sys.stderr)
    return dataclasses.replace(config, task=load_task(config.data.fallback))


def load_task(name: str) -> TaskConfig:
    """A task of `conf/task` by its name. Raises ConfigError."""
    path = CONF_FOLDER / "task" / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(f"task {name!r} is unknown.{did_you_mean(name, options_of('task'))}")
    task = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TaskConfig), OmegaConf.load(Path(path))))
    return typing.cast(TaskConfig, task)


# Keys that change nothing of what a command makes, which an experiment's sweep leaves out for it.
LATER_KEYS = ("learner", "llm", "evaluator", "evaluate", "icl", "n_seeds")
UNSWEPT = {"train": ("method", "dpc", "n_datasets", *LATER_KEYS), "generate": LATER_KEYS}


def with_sweep(arguments: Sequence[str], command: str = "") -> list[str]:
    """The keys given, and what an experiment sweeps besides (`hydra.sweeper.params`)."""
    chosen = [argument for argument in arguments if argument.startswith("experiment=")]
    if not chosen:
        return list(arguments)
    params = composed(chosen, launcher="basic", command=command).hydra.sweeper.params or {}
    given = {argument.partition("=")[0].lstrip("+~") for argument in arguments}
    unswept = UNSWEPT.get(command, ())
    swept = [key for key in params if key not in given and key.partition(".")[0].partition("@")[0] not in unswept]
    return [*arguments, *(f"{key}={params[key]}" for key in swept)]


def sweep(arguments: Sequence[str]) -> list[list[str]]:
    """Every combination of the keys that have several values (`dpc=5,10`), as Hydra's multirun would run them."""
    try:
        (batch,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(list(arguments)), None)
    except HydraException as error:
        raise ConfigError(one_line(error)) from error
    return [list(overrides) for overrides in batch]


def composed(overrides: Sequence[str], launcher: str | None = None, command: str = "") -> DictConfig:
    """Hydra's composition of keys; with a `launcher`, what Hydra itself is configured with stands at `hydra`."""
    attach()
    keys = list(overrides)
    if launcher is not None:
        keys = [f"hydra/launcher={launcher}", f"hydra.job.name={command}", *keys]
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


class Composer:
    """Composes many configurations that differ in some values."""

    def __init__(self) -> None:
        self._trees: dict[tuple[str, ...], DictConfig] = {}

    def config(self, overrides: Sequence[str]) -> Config:
        """The typed configuration of these keys. Raises ConfigError."""
        overrides = [override for override in overrides if not override.lstrip("+~").startswith("hydra")]
        values = [override for override in overrides if _is_value(override)]
        groups = tuple(override for override in overrides if not _is_value(override))
        if groups not in self._trees:
            self._trees[groups] = composed(groups)
        tree = copy.deepcopy(self._trees[groups])
        try:
            for override in OverridesParser.create().parse_overrides(values):
                OmegaConf.update(tree, override.key_or_group, _plain_value(override.value()), merge=True)
            return with_fallback(typed(tree))
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(one_line(error)) from error


def _is_value(override: str) -> bool:
    key = override.partition("=")[0]
    return key[:1].isalpha() and "@" not in key and not key.startswith("hydra") and not (CONF_FOLDER / key).is_dir()


def _plain_value(value: Any) -> Any:
    """Without the quotes that Hydra's parser keeps on a string."""
    return value.text if hasattr(value, "text") and hasattr(value, "quote") else value
