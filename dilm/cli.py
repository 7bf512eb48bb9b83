"""What every command shares: Hydra around a function of the typed configuration, one-line errors, a closing word.

The exit status is that of `dilm.launch.worker`.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from dilm.config import help
from dilm.config.compose import attach, checked
from dilm.config.help import Command
from dilm.config.schema import Config
from dilm.config.stages import CELLS, job_commands, kind_of
from dilm.config.validate import typed
from dilm.core.errors import DilmError, MissingArtifactError
from dilm.core.io import CONF_FOLDER
from dilm.data.corpus import with_fallback
from dilm.launch import plan, worker
from dilm.launch.hydra_launcher import MULTIRUN, chosen_launcher, launch
from dilm.launch.submit import attach_requests
from dilm.launch.sweep import with_sweep
from dilm.launch.worker import INTERRUPTED, READER_GONE, USER_ERROR, Ending, Recorder, as_line, reader_gone, user_error
from dilm.scheduler.records import DONE

LISTED = 8


@dataclass(frozen=True)
class Ran:
    """One run of a command that has ended well."""

    config: Config
    keys: tuple[str, ...]
    made: tuple[str, ...]  # folders below root
    told: str = ""  # its outcome in a line, such as a score


def say(command: Command, runs: Sequence[Ran], arguments: Sequence[str], seconds: float) -> None:
    """Print it, where somebody looks at a terminal."""
    if runs and sys.stdout.isatty():
        Console().print(Panel("\n".join(map(escape, lines_of(command, runs, arguments, seconds))), expand=False))


def lines_of(command: Command, runs: Sequence[Ran], arguments: Sequence[str], seconds: float) -> list[str]:
    """The lines: outcomes and folders, at most a few; then what comes next."""
    minutes, rest = divmod(round(seconds), 60)
    spent = f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
    lines = [f"{command.name}: {len(runs)} {'run' if len(runs) == 1 else 'runs'} in {spent}"]
    root = runs[-1].config.root
    shown = [line for ran in runs for line in ([ran.told] if ran.told else [f"{root}/{name}" for name in ran.made])]
    shown = list(dict.fromkeys(shown))
    lines += shown[:LISTED]
    lines += [f"... and {len(shown) - LISTED} more"] if len(shown) > LISTED else []
    return [*lines, f"next: {next_command(command, runs[-1].config, arguments)}"]


def next_command(command: Command, config: Config, arguments: Sequence[str]) -> str:
    """What somebody who ran this wants to run next, with the same keys."""
    return command.next.format(keys=" ".join(_making(arguments)), config=config)


def run_tool(main: Callable[[list[str]], None]) -> None:
    """Run a tool on its command line, with errors of one line."""
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        if reader_gone(error):
            sys.exit(READER_GONE)
        if (mendable := user_error(error)) is None:
            raise
        print(as_line(mendable), file=sys.stderr)
        sys.exit(USER_ERROR)


Run = Callable[[Config], str | None]  # of a command; what it returns is its outcome in a line


def main(command: Command, run: Run) -> None:
    """Compose the configuration from the command line, run, and exit with the status that tells how it ended."""
    recorder = Recorder()
    try:
        _main(command, run, recorder)
        end = Ending(0, DONE)
    except BaseException as error:
        end = worker.ending(error, recorder)
    recorder.end(end)
    worker.leave(end.status)


def _main(command: Command, run: Run, recorder: Recorder) -> None:
    began = time.monotonic()
    worker.prepare()
    attach()
    if any(argument.startswith("-") for argument in sys.argv[1:]):  # such as --help and --cfg, which print these
        attach_requests()
        help.register(command)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints its own report and exits with 1
    given = sys.argv[1:]
    arguments = checked(given)
    if set(MULTIRUN) & set(arguments):
        arguments = with_sweep(arguments, command.name)
        if launcher := chosen_launcher(arguments, command.name):
            launch(command.name, arguments, launcher)
            return
        arguments.append("hydra.sweeper.params=null")  # else Hydra sweeps an experiment's keys beside those given
    arguments.append(f"hydra.job.name={command.name}")  # else named after this file
    if worker.rank():
        arguments.append("hydra.output_subdir=null")  # the main rank writes Hydra's files
    sys.argv[1:] = arguments  # where Hydra reads them
    jobs = Jobs(command.name, run, recorder)
    hydra.main(version_base="1.3", config_path=str(CONF_FOLDER), config_name="config")(jobs.run_one)()
    if jobs.failures:
        raise jobs.failures[0]
    if not worker.rank():
        say(command, jobs.done, given, time.monotonic() - began)


class Jobs:
    """The jobs of one command that Hydra runs in this process: one, or one for each combination of keys."""

    def __init__(self, command: str, run: Run, recorder: Recorder) -> None:
        self.command, self.run, self.recorder = command, run, recorder
        self.done: list[Ran] = []
        self.failures: list[DilmError] = []

    def run_one(self, composed: DictConfig) -> None:
        """Run one. Errors of the user are kept until Hydra is done; in a multirun they are printed at once as well."""
        keys = tuple(HydraConfig.get().overrides.task)
        worker.prepare_work()
        try:
            config = with_fallback(typed(composed))
            call = plan.call_of(self.command, keys, config)
            if self.command in job_commands():
                self.recorder.add(config, call)
            told = self.run(config) or ""
            made = tuple(name for stage, names in call.makes.items() if kind_of(stage) != CELLS for name in names)
            self.done.append(Ran(config, keys, made, told))
        except Exception as caught:
            if (error := user_error(caught)) is None:
                raise
            if isinstance(error, MissingArtifactError):
                error = error.with_keys(" ".join(_making(keys)))
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                print(f"{' '.join(keys)}: {as_line(error)}", file=sys.stderr)
            self.failures.append(error)  # raised where Hydra is done, which would add a line of its own


def _making(keys: Sequence[str]) -> list[str]:
    """The keys without those that choose a part of what `train` makes."""
    return [key for key in keys if not key.startswith(("stages=", "match.trajectory="))]
