"""`-m hydra/launcher=slurm` and `=local`: every combination of a sweep as a job of its own, waited for.

Hydra's launchers must give results back, so they block; `tools/submit.py` submits and returns. A sweep that was cut
off goes on where it is: what is made already is not submitted, what live jobs are making is waited for.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from dilm import jobs, plan, runner, slurm
from dilm.compose import Composer
from dilm.errors import ConfigError, JobsFailedError
from dilm.jobs import Call
from dilm.site import gpus_of, with_site
from dilm.submit import JobArray, check, chunks, submit, wait

Verdict = tuple[str, str]
PLUGIN = "hydra_plugins.dilm"


def register() -> None:
    """Make the launchers known to Hydra, which looks for them by name in its own namespace of packages alone."""
    sys.modules[PLUGIN] = sys.modules[__name__]
    for launcher in (SlurmLauncher, LocalLauncher):
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
        if command not in plan.COMMANDS or command == "collect":
            raise ConfigError(f"python -m dilm.{command} does not run as a job; leave hydra/launcher away.")
        composer = Composer()
        calls = []
        for overrides in job_overrides:
            config = composer.config(overrides)
            if config.root != str(root):
                raise ConfigError("root can't be swept: the jobs of one sweep write below one root.")
            calls.append(Call(command, tuple(overrides), config.task.name, plan.makes(config, command)))
        verdicts = self.run(root, command, calls, force=bool(self.config.force))
        failed = [(call, reason) for call, (state, reason) in zip(calls, verdicts, strict=True) if state != jobs.DONE]
        for call, reason in failed:
            _say(f"{call.command} {' '.join(call.overrides)}: {reason}")
        if failed:
            raise JobsFailedError(
                f"{len(failed)} of {len(calls)} jobs failed; `python tools/status.py {root}` tells more, and the same "
                "command runs what is not done."
            )
        return [JobReturn(overrides=call.overrides, status=JobStatus.COMPLETED) for call in calls]

    def run(self, root: Path, command: str, calls: list[Call], force: bool) -> list[Verdict]:
        """What became of each call."""
        raise NotImplementedError


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


class SlurmLauncher(_Launcher):
    """Jobs of Slurm arrays."""

    __module__ = PLUGIN

    def run(self, root: Path, command: str, calls: list[Call], force: bool) -> list[Verdict]:
        """Submit what is new, in as few arrays as the cluster takes, and wait."""
        standing = plan.standing_of(root)
        holders = [None if force else _holder(call, standing) for call in calls]
        new = [index for index, holder in enumerate(holders) if holder is None]
        names = {index: holder for index, holder in enumerate(holders) if holder}
        _say(f"{len(calls)} jobs: {holders.count('')} done already, {len(names)} running or queued, {len(new)} new")
        if new:
            site = OmegaConf.to_object(self.config.site)
            asked = with_site(self.parameters, site, command)  # type: ignore[arg-type]
            array = JobArray(command, root, tuple((calls[index],) for index in new), asked)
            check(array)
            largest = self.config.site.max_array_size or slurm.max_array_size()
            for part in chunks(array, largest):
                submitted = submit(part)
                names |= dict(zip(new[: len(submitted)], submitted, strict=True))
                new = new[len(submitted) :]
                _say(f"submitted {array_of(submitted)}: {len(submitted)} jobs; logs in {root / 'jobs'}")
        try:
            verdicts = wait(root, list(names.values())) if names else {}
        except KeyboardInterrupt:
            ids = " ".join(sorted({slurm.bare_id(name).partition("_")[0] for name in names.values()}))
            _say(f"the jobs go on: `python tools/status.py {root}` shows them, `scancel {ids}` ends them")
            raise
        return [verdicts[names[index]] if index in names else (jobs.DONE, "") for index in range(len(calls))]


def _holder(call: Call, standing: plan.Standing) -> str | None:
    """The live job that makes what a call would make, "" where all is there, None where it is to be submitted."""
    keys = [(stage, key) for stage, names in call.makes.items() for key in names]
    states = [standing.of(stage, key) for stage, key in keys]
    if not keys or plan.NEW in states or jobs.FAILED in states:
        return None
    live = [standing.live[key][0] for (_, key), state in zip(keys, states, strict=True) if state != jobs.DONE]
    return live[0] if live else ""


def array_of(names: Sequence[str]) -> str:
    """What to call jobs that were submitted together."""
    return f"job {slurm.bare_id(names[0]).partition('_')[0]}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class LocalLauncher(_Launcher):
    """Jobs on this machine, one after another, each with as many processes as it would have GPUs."""

    __module__ = PLUGIN

    def run(self, root: Path, command: str, calls: list[Call], force: bool) -> list[Verdict]:
        """Start each job's processes, and wait for them."""
        import submitit

        wanted = self.parameters
        verdicts = []
        for number, call in enumerate(calls):
            executor = submitit.LocalExecutor(folder=str(root / "jobs" / "%j"))
            executor.update_parameters(
                nodes=wanted["nodes"],
                tasks_per_node=wanted["tasks_per_node"],
                gpus_per_node=gpus_of({"gres": f"gpu:{wanted['gpus_per_node'] or 0}"}),
                timeout_min=wanted["timeout_min"],
            )
            job = executor.submit(runner.run_job, str(root), (call,))
            name = f"local-{job.job_id}"
            _say(f"job {number + 1} of {len(calls)} ({name}): {' '.join(call.overrides)}; log: {job.paths.stderr}")
            while not job.done():
                time.sleep(0.2)
            verdicts.append(
                jobs.judge(root, [name]).get(name, (jobs.FAILED, f"ended without a word; {job.paths.stderr}"))
            )
        return verdicts
