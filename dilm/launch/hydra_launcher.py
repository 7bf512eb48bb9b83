"""`-m hydra/launcher=slurm` and `=local`: every combination of a sweep as a job of its own, waited for.

Hydra's launchers must give results back, so they block; `tools/submit.py` submits and returns. A sweep that was cut
off goes on where it is: what is made already is not submitted, what live jobs are making is waited for.
"""

import sys
import time
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from dilm.config.stages import job_commands
from dilm.core.errors import ConfigError, JobsFailedError
from dilm.launch import plan, worker
from dilm.launch.submit import JobArray, check, chunks, submit, wait, with_site
from dilm.launch.sweep import Composer
from dilm.scheduler import records
from dilm.scheduler.base import JobRef, Submission, array_name
from dilm.scheduler.job import cancel_commands, scheduler_named, scheduler_of
from dilm.scheduler.records import Call, log_file

Verdict = tuple[str, str]
PLUGIN = "hydra_plugins.dilm"


def register() -> None:
    """Make the launchers known to Hydra, which looks for them by name in its own namespace of packages alone."""
    sys.modules[PLUGIN] = sys.modules[__name__]
    for launcher in (BatchLauncher, LocalLauncher):
        Plugins.instance().register(launcher)


class _Launcher(Launcher):
    """What both launchers share: the sweep's commands, without those that have nothing to do."""

    def __init__(self, **parameters: Any) -> None:
        self.parameters = {name: _plain(value) for name, value in parameters.items()}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before `launch`."""
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run every combination as a job, and wait for all."""
        root, command = Path(self.config.root), str(self.config.hydra.job.name)
        if command not in job_commands() or command == "collect":
            raise ConfigError(f"python -m dilm.{command} does not run as a job; leave hydra/launcher away.")
        composer = Composer()
        calls = []
        for overrides in job_overrides:
            config = composer.config(overrides)
            if config.root != str(root):
                raise ConfigError("root can't be swept: the jobs of one sweep write below one root.")
            calls.append(Call(command, tuple(overrides), config.task.name, plan.makes(config, command)))
        verdicts = self.run(root, command, calls, force=bool(self.config.force))
        ended = zip(calls, verdicts, strict=True)
        failed = [(call, reason) for call, (state, reason) in ended if state != records.DONE]
        for call, reason in failed:
            _say(f"{call.command} {' '.join(call.overrides)}: {reason}")
        if failed:
            raise JobsFailedError(
                f"{len(failed)} of {len(calls)} jobs failed; `python tools/status.py {root}` tells more, and the same "
                "command runs what is not done."
            )
        return [JobReturn(overrides=call.overrides, status=JobStatus.COMPLETED) for call in calls]

    @abstractmethod
    def run(self, root: Path, command: str, calls: list[Call], force: bool) -> list[Verdict]:
        """What became of each call."""


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


class BatchLauncher(_Launcher):
    """Jobs in arrays of a batch system: Slurm's, or that which the parameter `scheduler` names."""

    __module__ = PLUGIN

    def run(self, root: Path, command: str, calls: list[Call], force: bool) -> list[Verdict]:
        """Submit what is new, in as few arrays as the cluster takes, and wait."""
        standing = plan.standing_of(root)
        holders = [None if force else _holders(call, standing) for call in calls]
        names = {index: holder for index, holder in enumerate(holders) if holder is not None}
        new = [index for index, holder in enumerate(holders) if holder is None]
        n_done = sum(holder == [] for holder in holders)
        _say(f"{len(calls)} jobs: {n_done} done already, {len(names) - n_done} running or queued, {len(new)} new")
        if new:
            site = OmegaConf.to_object(self.config.site)
            asked = with_site(self.parameters, site, command)  # type: ignore[arg-type]
            array = JobArray(command, root, tuple((calls[index],) for index in new), asked)
            parts = list(chunks(array, self.config.site.max_array_size or array.scheduler.max_array_size()))
            check(parts[0])
            for part in parts:
                submitted = submit(part)
                names |= {index: [name] for index, name in zip(new, submitted, strict=False)}
                new = new[len(submitted) :]
                _say(f"submitted {array_of(submitted)}: {len(submitted)} jobs; logs in {root / 'jobs'}")
        every = sorted({name for holder in names.values() for name in holder})
        try:
            verdicts = wait(root, every)
        except KeyboardInterrupt:
            cancel = "; ".join(cancel_commands(every))
            _say(f"the jobs go on: `python tools/status.py {root}` shows them, `{cancel}` ends them")
            raise
        return [_worst([verdicts[name] for name in names[index]]) for index in range(len(calls))]


def _worst(verdicts: list[Verdict]) -> Verdict:
    return next((verdict for verdict in verdicts if verdict[0] != records.DONE), (records.DONE, ""))


def _holders(call: Call, standing: plan.Standing) -> list[str] | None:
    """The live jobs that make what a call would make, none where all is there; None where it is to be submitted."""
    states = [standing.of(stage, key) for stage, names in call.makes.items() for key in names]
    if not states or plan.NEW in states or records.FAILED in states:
        return None
    keys = [key for names in call.makes.values() for key in names]
    return sorted({standing.live[key].job.name for key in keys if key in standing.live})


def array_of(names: Sequence[str]) -> str:
    """What to call jobs that were submitted together."""
    return f"job {array_name(scheduler_of(names[0]).bare_id(names[0]))}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class LocalLauncher(_Launcher):
    """Jobs on this machine, one after another, each with as many processes as it would have GPUs."""

    __module__ = PLUGIN

    def run(self, root: Path, command: str, calls: list[Call], force: bool) -> list[Verdict]:
        """Start each job's processes, and wait for them."""
        local = scheduler_named("local")
        verdicts = []
        for number, call in enumerate(calls):
            arguments = [(str(root), (call,))]
            (name,) = local.submit(Submission(command, root / "jobs", worker.run_job, arguments, self.parameters))
            log = root.absolute() / log_file(name)
            _say(f"job {number + 1} of {len(calls)} ({name}): {' '.join(call.overrides)}; log: {log}")
            while local.status([JobRef(name)])[name].alive:
                time.sleep(0.2)
            verdict = records.judge(root, [name]).get(name)
            silent = (records.FAILED, f"ended without a word; its log is {log}")
            verdicts.append((verdict.state, verdict.reason) if verdict else silent)
        return verdicts
