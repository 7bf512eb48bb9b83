"""Sending jobs to a scheduler: what a job asks for, and arrays, checked before anything is queued.

`conf/site/<name>.yaml` tells the cluster, `launcher.*` the job; together they are `hydra.launcher` of the composed
configuration, the same for Hydra's launcher and for `tools/submit.py`. Its key `scheduler` names who runs the jobs,
where that is not Slurm. Torch-free.
"""

import getpass
import re
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dilm.config.compose import composed
from dilm.config.schema import LauncherConfig, SiteConfig
from dilm.core.io import ENVIRONMENT_FILE
from dilm.launch import worker
from dilm.scheduler.base import Scheduler, Submission
from dilm.scheduler.job import scheduler_named
from dilm.scheduler.records import (
    ENDED,
    FAILED,
    QUEUED,
    Call,
    Job,
    finish,
    judge,
    log_file,
    read_job,
    record_file,
    write_queued,
)

DEFAULT_SCHEDULER = "slurm"  # unless `hydra.launcher.scheduler` names another


def request(site: SiteConfig, launcher: LauncherConfig, command: str) -> dict[str, Any]:
    """What a job of a command (train, generate, evaluate, collect) asks for, by the names of `hydra.launcher`."""
    minutes = launcher.minutes or site.minutes.get(command, 60)
    limits = {"timeout_min": minutes, "signal_delay_s": min(site.signal_seconds, 30 * minutes)}
    cpu_partition = site.partition if site.cpu_partition is None else site.cpu_partition
    if command == "collect":
        alone = {"nodes": 1, "tasks_per_node": 1, "cpus_per_task": 1, "gpus": 0, "gres": None, "mem_gb": None}
        return alone | limits | {"partition": cpu_partition, "constraint": None}
    gpus = site.gpus if launcher.gpus is None else launcher.gpus
    return limits | {
        "partition": site.partition if gpus else cpu_partition,
        "constraint": site.constraint if gpus or site.cpu_partition is None else None,
        "nodes": launcher.nodes,
        "tasks_per_node": launcher.tasks or max(gpus, 1),
        "cpus_per_task": launcher.cpus or site.cpus,
        "gpus": gpus,
        "gres": ":".join(part for part in ("gpu", site.gpu_type, str(gpus)) if part) if gpus else None,
        "mem_gb": site.mem_gb if launcher.mem_gb is None else launcher.mem_gb,
    }


def with_site(asked: dict[str, Any], site: SiteConfig, command: str) -> dict[str, Any]:
    """Parameters of `hydra.launcher`, after the site's own shell lines and options of the batch system."""
    scheduler = asked.get("scheduler") or DEFAULT_SCHEDULER
    return asked | {
        "setup": [*setup_lines(site, command, scheduler), *(asked.get("setup") or [])],
        "additional_parameters": {"requeue": True, **site.options, **(asked.get("additional_parameters") or {})},
    }


def gpus_of(asked: dict[str, Any]) -> int:
    """GPUs that a job with these parameters gets, on all its nodes."""
    gres = asked.get("gres") or ""
    count = str(asked.get("gpus_per_node") or (gres.rpartition(":")[2] if gres.startswith("gpu") else ""))
    return int(asked.get("nodes") or 1) * (int(count) if count.isdecimal() else 0)


def setup_lines(site: SiteConfig, command: str, scheduler: str = DEFAULT_SCHEDULER) -> list[str]:
    """Shell lines before a job's processes start."""
    lines = ["set -e", f"source {shlex.quote(str(ENVIRONMENT_FILE))}"]
    independent = scheduler_named(scheduler).independent_ranks
    if command == "evaluate" and independent:  # its processes share cells, and the others go on when one fails
        lines.append(independent)
    if site.modules:
        lines.append(f"module load {shlex.join(site.modules)}")
    lines += site.setup
    if site.scratch:
        lines.append(f'export TMPDIR="{site.scratch}"; mkdir -p "$TMPDIR"')
    return lines


def attach_requests() -> None:
    """Register what `conf/hydra/launcher` asks of a job: `${dilm_job:gpus}`."""
    OmegaConf.register_new_resolver("dilm_job", _job, replace=True)


def _job(name: str, *, _root_: DictConfig) -> Any:
    """What a job of the command that is being launched asks for."""
    site, launcher = (OmegaConf.to_object(_root_[part]) for part in ("site", "launcher"))
    return request(site, launcher, _root_.hydra.job.name)[name]  # type: ignore[arg-type]


QUEUE_SECONDS = 20.0  # between two questions to the scheduler while waiting
RECORD_SECONDS = 1.0  # between two looks at records


@dataclass(frozen=True)
class JobArray:
    """Jobs that are submitted at once: they ask for the same, and wait for the same."""

    stage: str
    root: Path
    jobs: tuple[tuple[Call, ...], ...]
    asked: dict[str, Any]  # `hydra.launcher`, resolved
    after: tuple[str, ...] = ()  # names of jobs, or of whole arrays, that must be done first

    @property
    def scheduler(self) -> Scheduler:
        """Who runs the jobs."""
        return scheduler_named(self.asked.get("scheduler") or DEFAULT_SCHEDULER)

    @property
    def submission(self) -> Submission:
        """What the scheduler is given."""
        root = str(self.root.absolute())
        arguments = [(root, tuple(_anchored(call, self.root) for call in job), self.after) for job in self.jobs]
        return Submission(self.stage, self.root / "jobs", worker.run_job, arguments, self.asked, self.after)


def asked_for(overrides: Sequence[str], command: str, launcher: str = DEFAULT_SCHEDULER) -> dict[str, Any]:
    """What a command's jobs ask for: `hydra.launcher` of the configuration that these keys compose.

    `launcher` is an option of `conf/hydra/launcher`, for keys that choose none.
    """
    attach_requests()
    group = "hydra/launcher="
    launchers = [override.removeprefix(group) for override in overrides if override.startswith(group)]
    others = [override for override in overrides if not override.startswith(group)]
    tree = composed(others, launchers[-1] if launchers else launcher, command)
    asked: dict[str, Any] = OmegaConf.to_container(tree.hydra.launcher, resolve=True)  # type: ignore[assignment]
    site = OmegaConf.to_object(tree.site)
    return with_site(asked, site, command)  # type: ignore[arg-type]


def script(array: JobArray) -> str:
    """The text that the batch system is given."""
    return array.scheduler.script(array.submission)


def check(array: JobArray) -> None:
    """Ask the scheduler whether it would take an array. Raises ConfigError, in one line."""
    array.scheduler.check(array.submission)


def chunks(array: JobArray, largest: int) -> Iterator[JobArray]:
    """Arrays no longer than the cluster takes; what may run at a time is divided among them."""
    n = -(-len(array.jobs) // largest)
    parallelism = max(1, int(array.asked.get("array_parallelism") or 1) // n) if n else 1
    for start in range(0, len(array.jobs), largest):
        asked = array.asked | {"array_parallelism": parallelism}
        yield replace(array, jobs=array.jobs[start : start + largest], asked=asked)


def submit(array: JobArray) -> list[str]:
    """Queue an array, and write its jobs' records; their names. Raises ConfigError or SchedulerError."""
    submission = array.submission
    names = array.scheduler.submit(submission)
    for name, (_, calls, _) in zip(names, submission.arguments, strict=True):
        record = Job(
            name,
            QUEUED,
            calls,
            log=log_file(name),
            after=array.after,
            gpus=gpus_of(array.asked),
            user=getpass.getuser(),
            submitted=time.time(),
        )
        write_queued(array.root, record)
    return names


def _anchored(call: Call, root: Path) -> Call:
    """The call with its root as an absolute path, so that it means the same from every folder."""
    others = [override for override in call.overrides if not override.startswith("root=")]
    return replace(call, overrides=(*others, f"root={_quoted(str(root.absolute()))}"))


def _quoted(value: str) -> str:
    """A value of Hydra's grammar."""
    return value if re.fullmatch(r"[\w./:-]+", value) else "'" + value.replace("'", "\\'") + "'"


def wait(root: Path, names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Wait until all jobs have ended: what became of each. About silent ones the scheduler is asked now and then."""
    settled: dict[str, tuple[str, str]] = {}
    asked = time.monotonic()
    suspects: set[str] = set()
    while open_names := sorted(set(names) - set(settled)):
        time.sleep(RECORD_SECONDS)
        records = [read_job(record_file(root, name)) for name in open_names]
        settled |= {job.name: (job.state, job.reason) for job in records if job and job.state in ENDED}
        if time.monotonic() - asked >= QUEUE_SECONDS:
            asked = time.monotonic()
            verdicts = judge(root, [name for name in open_names if name not in settled])
            silent = {name for name, verdict in verdicts.items() if verdict.state == FAILED}
            for name in silent & suspects:  # twice in a row: a record may come late over a network file system
                finish(root, name, FAILED, verdicts[name].reason)
            suspects = silent
    return settled
