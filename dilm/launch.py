"""What every command shares: Hydra around a function of the typed configuration, and errors of one line.

The exit status is that of `dilm.runner`.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from dilm import closing, help, launcher, plan, runner
from dilm.checks import COMMANDS, typed
from dilm.closing import Ran
from dilm.compose import attach, checked, with_fallback, with_sweep
from dilm.config import CONF_FOLDER, Config
from dilm.errors import DilmError, MissingArtifactError
from dilm.jobs import DONE, Call
from dilm.runner import Ending, Recorder, as_line, user_error

Run = Callable[[Config], str | None]  # of a command; what it returns is its outcome in a line


def main(about: str, run: Run) -> None:
    """Compose the configuration from the command line, run, and exit with the status that tells how it ended."""
    recorder = Recorder()
    try:
        _main(about, run, recorder)
        end = Ending(0, DONE)
    except BaseException as error:
        end = runner.ending(error, recorder)
    recorder.end(end)
    runner.leave(end.status)


def _main(about: str, run: Run, recorder: Recorder) -> None:
    began = time.monotonic()
    runner.prepare()
    attach()
    launcher.register()
    command = Path(sys.argv[0]).stem
    help.register(command, about)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints its own report and exits with 1
    given = sys.argv[1:]
    arguments = checked(given)
    if {"-m", "--multirun"} & set(arguments):  # Hydra would sweep an experiment's keys beside those given
        arguments = [*with_sweep(arguments, command), "hydra.sweeper.params=null"]
    sys.argv[1:] = [*arguments, f"hydra.job.name={command}"]  # which Hydra takes for `launch`
    if runner.rank():
        sys.argv.append("hydra.output_subdir=null")  # the main rank writes Hydra's files

    failures: list[DilmError] = []
    runs: list[Ran] = []

    @hydra.main(version_base="1.3", config_path=str(CONF_FOLDER), config_name="config")
    def job(composed: DictConfig) -> None:
        _run_job(command, run, composed, recorder, failures, runs)

    job()
    if failures:
        raise failures[0]
    if not runner.rank():
        closing.say(command, runs, given, time.monotonic() - began)


def _run_job(
    command: str, run: Run, composed: DictConfig, recorder: Recorder, failures: list[DilmError], runs: list[Ran]
) -> None:
    """One job. In a multirun the user's errors are told at once and kept, and the other jobs go on."""
    hydra_config = HydraConfig.get()
    keys = tuple(hydra_config.overrides.task)
    runner.prepare_work()
    try:
        config = with_fallback(typed(composed))
        made = plan.makes(config, command) if command in COMMANDS else {}
        if command in COMMANDS:
            recorder.add(config, Call(command, keys, config.task.name, made))
        told = run(config) or ""
        folders = () if command == "evaluate" else tuple(name for names in made.values() for name in names)
        runs.append(Ran(config, keys, folders, told))
    except Exception as caught:
        if (error := user_error(caught)) is None:
            raise
        if isinstance(error, MissingArtifactError):
            # Those that leave out what makes it would lead here again.
            error = error.with_keys(
                " ".join(key for key in keys if not key.startswith(("stages=", "match.trajectory=")))
            )
        if hydra_config.mode == RunMode.MULTIRUN:
            print(f"{' '.join(keys)}: {as_line(error)}", file=sys.stderr)
        failures.append(error)  # raised where Hydra is done, which would add a line of its own
