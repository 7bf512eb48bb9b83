"""What every command shares: Hydra around a function of the typed configuration, and errors of one line.

Exit status: 0 done, 1 a bug (with its traceback), 2 something that the user can mend, 130 interrupted.
"""

import dataclasses
import os
import sys
import typing
from collections.abc import Callable
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dilm import signals
from dilm.checks import typed
from dilm.config import CONF_FOLDER, Config, TaskConfig, attach
from dilm.errors import ConfigError, DilmError, DiskFullError, MissingArtifactError, did_you_mean
from dilm.files import is_disk_full

GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd")
# Groups that fill a part of the tree other than the one that bears their name.
GROUP_AT = {"match.learner": "learner@match.learner", "generate.encoder": "learner@generate.encoder"}
USER_ERROR, INTERRUPTED = 2, 130
ENVIRONMENT = {
    # Libraries that would report every model they load, or every device they don't find.
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DS_LOG_LEVEL": "error",
    # Threads that wait spin for some microseconds, not for milliseconds: where cores are contended that takes five
    # times as long as one thread. Not spinning at all costs a quarter where they are free.
    "GOMP_SPINCOUNT": "1000",
    "HDF5_USE_FILE_LOCKING": "BEST_EFFORT",
}


def main(about: str, run: Callable[[Config], None]) -> None:
    """Compose the configuration from the command line, run, and exit with the status that tells how it ended."""
    try:
        _main(about, run)
    except (HydraException, OmegaConfBaseException) as error:
        fail(ConfigError(_one_line(error)))
    except DilmError as error:
        fail(error)
    except OSError as error:  # of Hydra's own files; ours name theirs
        if not is_disk_full(error):
            raise
        fail(DiskFullError(f"{error.filename or 'the disk'}: no space is left on the device; free some and run again."))
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from what is complete", file=sys.stderr)
        sys.exit(INTERRUPTED)


def fail(error: DilmError) -> None:
    """Print an error's one line and exit 2."""
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    sys.exit(USER_ERROR)


def _main(about: str, run: Callable[[Config], None]) -> None:
    signals.listen()
    attach()
    OmegaConf.register_new_resolver("dilm_about", lambda: about, replace=True)
    OmegaConf.register_new_resolver("dilm_command", lambda: f"python -m dilm.{Path(sys.argv[0]).stem}", replace=True)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints its own report and exits with 1
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not any(Path(device).exists() for device in GPU_DEVICES):
        os.environ.setdefault(
            "DS_ACCELERATOR", "cpu"
        )  # else DeepSpeed, which transformers imports, warns of its choice
    sys.argv[1:] = [rewrite(argument) for argument in sys.argv[1:]]
    for argument in sys.argv[1:]:
        check_override(argument)

    failures: list[DilmError] = []

    @hydra.main(version_base="1.3", config_path=str(CONF_FOLDER), config_name="config")
    def job(composed: DictConfig) -> None:
        _run_job(run, composed, failures)

    job()
    if failures:
        raise failures[0]


def _run_job(run: Callable[[Config], None], composed: DictConfig, failures: list[DilmError]) -> None:
    """One job. In a local multirun the user's errors are told at once and kept, and the other jobs go on."""
    hydra_config = HydraConfig.get()
    local = "basic_launcher" in hydra_config.launcher._target_
    try:
        run(with_fallback(typed(composed)))
    except DilmError as caught:
        error: DilmError = caught
        if isinstance(caught, MissingArtifactError):
            error = caught.with_keys(" ".join(hydra_config.overrides.task))
        if not local:
            raise error from caught
        if hydra_config.mode != RunMode.MULTIRUN:
            fail(error)
        print(f"{' '.join(hydra_config.overrides.task)}: {type(error).__name__}: {error}", file=sys.stderr)
        failures.append(error)


def rewrite(argument: str) -> str:
    """`match.learner=minilm` names a group's option, which Hydra wants as `learner@match.learner=minilm`.

    And DeepSpeed's keys are free to add, which Hydra wants to be told.
    """
    key, equals, value = argument.partition("=")
    if key.startswith("engine.deepspeed."):
        return f"++{argument}"
    return f"{GROUP_AT[key]}{equals}{value}" if key in GROUP_AT else argument


def check_override(argument: str) -> None:
    """Refuse an unknown key or option before Hydra does, with a suggestion. Raises ConfigError."""
    key, equals, value = argument.partition("=")
    if argument.startswith("-") or not equals:
        return
    key = key.lstrip("+~")
    if key.startswith("hydra"):
        return
    group = key.partition("@")[0]
    if (CONF_FOLDER / group).is_dir():
        _check_options(group, value)
    else:
        _check_key(key)


def _check_options(group: str, value: str) -> None:
    options = options_of(group)
    for name in value.strip("'\"").split(","):
        if name and "[" not in name and "(" not in name and "${" not in name and name not in (*options, "null"):
            raise ConfigError(f"{group} {name!r} is unknown.{did_you_mean(name, options)}")


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


def _one_line(error: Exception) -> str:
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
    from dilm.data import find_place

    if config.data.fallback is None or find_place(config.task) is not None:
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
