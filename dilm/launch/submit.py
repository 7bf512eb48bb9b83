"""Sending jobs to Slurm: what a job asks for, and arrays through submitit, checked before anything is queued.

`conf/site/<name>.yaml` tells the cluster, `launcher.*` the job; together they are `hydra.launcher` of the composed
configuration, the same for Hydra's launcher and for `tools/submit.py`. Torch-free.
"""

import getpass
import re
import shlex
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dilm.config.compose import composed
from dilm.config.schema import LauncherConfig, SiteConfig
from dilm.core.errors import ConfigError, SlurmError
from dilm.core.io import ENVIRONMENT_FILE
from dilm.launch import worker
from dilm.scheduler import slurm
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
    """Parameters of `hydra.launcher`, after the site's own shell lines and options of sbatch."""
    return asked | {
        "setup": [*setup_lines(site, command), *(asked.get("setup") or [])],
        "additional_parameters": {"requeue": True, **site.options, **(asked.get("additional_parameters") or {})},
    }


def gpus_of(asked: dict[str, Any]) -> int:
    """GPUs that a job with these parameters gets, on all its nodes."""
    gres = asked.get("gres") or ""
    count = gres.rpartition(":")[2] if gres.startswith("gpu") else ""
    return int(asked.get("nodes") or 1) * (int(count) if count.isdecimal() else 0)


def setup_lines(site: SiteConfig, command: str) -> list[str]:
    """Shell lines before a job's processes start."""
    lines = ["set -e", f"source {shlex.quote(str(ENVIRONMENT_FILE))}"]
    if command == "evaluate":  # whose processes need each other not, so that none is ended when another one fails
        lines.append("export SLURM_KILL_BAD_EXIT=0 SLURM_WAIT=0")
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


QUEUE_SECONDS = 20.0  # between two calls of squeue while waiting
RECORD_SECONDS = 1.0  # between two looks at records
# Fields of `hydra.launcher` that are submitit's own for every kind of cluster; the rest are Slurm's.
COMMON = (
    "timeout_min",
    "cpus_per_task",
    "gpus_per_node",
    "tasks_per_node",
    "mem_gb",
    "nodes",
    "name",
    "stderr_to_stdout",
)
OWN = ("_target_", "submitit_folder", "max_num_timeout", "_recursive_", "_convert_")


@dataclass(frozen=True)
class JobArray:
    """Jobs that are submitted at once: they ask for the same, and wait for the same."""

    stage: str
    root: Path
    jobs: tuple[tuple[Call, ...], ...]
    asked: dict[str, Any]  # `hydra.launcher`, resolved
    after: tuple[str, ...] = ()  # names of jobs, or of whole arrays, that must be done first

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of submitit's executor."""
        given = {name: value for name, value in self.asked.items() if name not in OWN and value is not None}
        parameters = {name if name in COMMON else f"slurm_{name}": value for name, value in given.items()}
        further = dict(given.get("additional_parameters") or {})
        if self.after:
            ids = ":".join(slurm.bare_id(name) for name in self.after)
            further |= {"dependency": f"afterok:{ids}", "kill-on-invalid-dep": "yes"}
        return parameters | {"slurm_additional_parameters": further}


def asked_for(overrides: Sequence[str], command: str, launcher: str = "slurm") -> dict[str, Any]:
    """What a command's jobs ask for: `hydra.launcher` of the configuration that these keys compose."""
    attach_requests()
    tree = composed(overrides, launcher, command)
    asked: dict[str, Any] = OmegaConf.to_container(tree.hydra.launcher, resolve=True)  # type: ignore[assignment]
    site = OmegaConf.to_object(tree.site)
    return with_site(asked, site, command)  # type: ignore[arg-type]


def executor_of(array: JobArray) -> Any:
    """submitit's executor for an array."""
    import submitit  # a quarter of a second that a plan doesn't need

    executor = submitit.AutoExecutor(folder=str(array.root / "jobs" / "%j"), cluster="slurm")
    try:
        executor.update_parameters(**array.parameters)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"hydra.launcher: {str(error).splitlines()[0]}") from error
    return executor


def script(array: JobArray) -> str:
    """The text that sbatch is given."""
    executor = executor_of(array)._executor
    if len(array.jobs) > 1:
        executor.parameters["map_count"] = len(array.jobs)
    text: str = executor._make_submission_file_text(executor._submitit_command_str, "")
    return text


def check(array: JobArray) -> None:
    """Ask sbatch whether it would take an array, without its dependencies. Raises ConfigError, in one line."""
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(script(replace(array, after=())))
        file.flush()
        try:
            slurm.call("sbatch", "--test-only", file.name)
        except SlurmError as error:
            raise _refused(array, str(error)) from error


def _refused(array: JobArray, message: str) -> ConfigError:
    """What Slurm says, with the keys that it is about and what the cluster has."""
    reason = message.removeprefix("sbatch: ").removeprefix("allocation failure: ")
    asked = array.asked
    if "partition" in reason.lower() and "account" not in reason.lower():
        known = _listed("%R")
        return ConfigError(f"site.partition {asked.get('partition')!r}: Slurm says {reason!r}. Known: {known}.")
    wanted = ", ".join(
        f"{name}={asked[name]}"
        for name in ("partition", "account", "qos", "constraint", "nodes", "tasks_per_node", "cpus_per_task", "gres",
                     "mem_gb", "timeout_min")
        if asked.get(name) is not None
    )  # fmt: skip
    nodes = _listed("%R: %D nodes of %c CPUs, %m MB, %G")
    return ConfigError(
        f"Slurm would not take the {array.stage} jobs ({reason}). They ask for {wanted}; the cluster has {nodes}. "
        "Change launcher.* or the site's file."
    )


def _listed(what: str) -> str:
    try:
        return "; ".join(sorted(set(slurm.call("sinfo", "-h", "-o", what).split("\n")) - {""}))
    except SlurmError:
        return "unknown, since sinfo does not answer"


def chunks(array: JobArray, largest: int) -> Iterator[JobArray]:
    """Arrays no longer than the cluster takes; what may run at a time is divided among them."""
    n = -(-len(array.jobs) // largest)
    parallelism = max(1, int(array.asked.get("array_parallelism") or 1) // n) if n else 1
    for start in range(0, len(array.jobs), largest):
        asked = array.asked | {"array_parallelism": parallelism}
        yield replace(array, jobs=array.jobs[start : start + largest], asked=asked)


def submit(array: JobArray) -> list[str]:
    """Queue an array, and write its jobs' records; their names. Raises SlurmError."""
    import submitit

    executor = executor_of(array)
    calls = [tuple(_anchored(call, array.root) for call in job) for job in array.jobs]
    n = len(calls)
    try:
        started = executor.map_array(worker.run_job, [str(array.root.absolute())] * n, calls, [array.after] * n)
    except submitit.core.utils.FailedJobError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise SlurmError(f"sbatch failed: {lines[-1] if lines else error}") from error
    names = []
    for job, own in zip(started, calls, strict=True):
        name = f"slurm-{job.job_id}"
        record = Job(
            name,
            QUEUED,
            own,
            log=log_file(name),
            after=array.after,
            gpus=gpus_of(array.asked),
            user=getpass.getuser(),
            submitted=time.time(),
        )
        write_queued(array.root, record)
        names.append(name)
    return names


def _anchored(call: Call, root: Path) -> Call:
    """The call with its root as an absolute path, so that it means the same from every folder."""
    others = [override for override in call.overrides if not override.startswith("root=")]
    return replace(call, overrides=(*others, f"root={_quoted(str(root.absolute()))}"))


def _quoted(value: str) -> str:
    """A value of Hydra's grammar."""
    return value if re.fullmatch(r"[\w./:-]+", value) else "'" + value.replace("'", "\\'") + "'"


def array_name(job: str) -> str:
    """The array that a job is of: what a dependency on all its jobs names."""
    return job.partition("_")[0]


def wait(root: Path, names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Wait until all jobs have ended: what became of each. Slurm is asked now and then about those that are silent."""
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
