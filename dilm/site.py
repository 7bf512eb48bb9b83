"""A cluster and what a job asks it for: `conf/site/<name>.yaml` tells the one, `launcher.*` the other. Torch-free."""

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ENVIRONMENT_FILE = Path(__file__).resolve().parents[1] / "slurm" / "env.sh"


@dataclass
class SiteConfig:
    """What this cluster's Slurm wants to hear, in one file that is written once."""

    name: str = "default"
    partition: str | None = None  # null: Slurm's default
    cpu_partition: str | None = None  # of jobs without GPUs; null: the same
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpu_type: str | None = None  # as in --gres=gpu:a100:4; null: any
    gpus: int = 1  # on each node, where launcher.gpus doesn't say; 0: a cluster of CPUs
    cpus: int = 8  # of each process
    mem_gb: int | None = None  # on each node; null: the partition's default
    minutes: dict[str, int] = field(default_factory=dict)  # time limit of each command's jobs
    signal_seconds: int = 300  # before the limit a job is told to save; more than one step and a checkpoint take
    modules: list[str] = field(default_factory=list)  # `module load` in every job
    setup: list[str] = field(default_factory=list)  # further shell lines before the job
    cache: str | None = None  # models and data, seen by all nodes; null: $DILM_CACHE or ~/.cache/dilm
    scratch: str | None = None  # TMPDIR of a job
    max_array_size: int | None = None  # jobs in one array; null: ask `scontrol show config`
    options: dict[str, Any] = field(default_factory=dict)  # further options of sbatch, such as {exclude: node7}


@dataclass
class LauncherConfig:
    """What the jobs of this run ask for; null: as the site's file says."""

    nodes: int = 1  # of one job
    gpus: int | None = None  # on each node
    tasks: int | None = None  # processes on each node; null: one a GPU, or one
    cpus: int | None = None  # of each process
    mem_gb: int | None = None  # on each node
    minutes: int | None = None  # time limit
    array_parallelism: int = 64  # jobs of one array that run at a time
    cells_per_job: int | None = None  # evaluation cells a job; null: all of one task, method, size and learner
    max_requeues: int = 20  # times that a job is queued again when its time ends


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
