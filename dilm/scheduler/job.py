"""Which job this process is of: the name that records, locks and rows have. Torch-free."""

import os
import socket
from pathlib import Path

from dilm.scheduler import slurm


def job_id() -> str:
    """The job that this process is of: Slurm's (with its array task), submitit's on this machine, or host and pid."""
    if job := os.environ.get("SLURM_JOB_ID"):
        return slurm.job_name(job, os.environ.get("SLURM_ARRAY_JOB_ID", ""), os.environ.get("SLURM_ARRAY_TASK_ID", ""))
    if job := os.environ.get("SUBMITIT_LOCAL_JOB_ID"):
        return f"local-{job}"
    return f"{socket.gethostname()}-{os.getpid()}"


def rank_id() -> str:
    """`job_id`, with the process's rank but the first."""
    rank = os.environ.get("RANK", "0")
    return job_id() if rank == "0" else f"{job_id()}-rank{rank}"


def restarts() -> int:
    """How many times Slurm has queued this job again."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def process_start(pid: int) -> str | None:
    """When a process of this host started (clock ticks since boot), which tells it from a later one of equal id."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]
