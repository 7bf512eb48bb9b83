"""Combinations of keys, such as `dpc=5,10` and what an experiment sweeps, and a typed configuration for each."""

import copy
from collections.abc import Sequence
from itertools import product
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dilm.config.compose import composed, one_line, options_of
from dilm.config.schema import Config
from dilm.config.validate import typed
from dilm.core.errors import ConfigError
from dilm.core.io import CONF_FOLDER
from dilm.data.corpus import with_fallback

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
    values: dict[str, list[str]] = {}  # by key: of a key that is given twice, the last counts
    try:
        for override in OverridesParser.create().parse_overrides(list(arguments)):
            key = override.get_key_element()
            if not override.is_sweep_override():
                values[key] = [f"{key}={override.get_value_element_as_str()}"]
            elif override.value_type == ValueType.GLOB_CHOICE_SWEEP:
                names = cast(Glob, override.value()).filter(options_of(override.key_or_group))
                values[key] = [f"{key}={name}" for name in names]
            elif override.is_discrete_sweep():
                values[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
            else:
                raise ConfigError(
                    f"{override.input_line}: a sweep takes values, such as {key}=1,2 or {key}=range(1,3)."
                )
    except HydraException as error:
        raise ConfigError(one_line(error)) from error
    return [list(overrides) for overrides in product(*values.values())]


class Composer:
    """Composes many configurations that differ in some values.

    Hydra composes the groups of each choice once; values are set on copies. 1,000 combinations of `experiment=paper`
    take 13 s of one core so, and 152 s by `compose()` alone.
    """

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
