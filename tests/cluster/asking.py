"""What tests ask of Slurm, of records, rows and artifacts."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from dilm.scheduler.records import Job, read_jobs


def asked(*command: str) -> str:
    """What a command of Slurm prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def until(holds: Callable[[], object], seconds: float = 200.0) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, asked("squeue", "-t", "all")
        time.sleep(0.3)


def states() -> dict[str, str]:
    """Slurm's own word on every job: by id, or array and task."""
    lines = asked("squeue", "-h", "-r", "-t", "all", "-o", "%i %T").splitlines()
    return dict(line.split() for line in lines)


def all_ended() -> bool:
    """Whether no job waits or runs."""
    return not asked("squeue", "-h").strip()


def ranks(job: str) -> dict[int, psutil.Process]:
    """The processes that do a running job's work, by rank; `job` is Slurm's own number of it."""
    found = {}
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            here = environment.get("SLURM_CONF") == os.environ["SLURM_CONF"]  # this cluster's: others count from 1 too
            mine = here and environment.get("SLURM_JOB_ID") == job and process.name().startswith("python")
            if mine and "submitit.core._submit" in process.cmdline():
                found[int(environment["SLURM_PROCID"])] = process
        except (psutil.Error, KeyError):
            continue
    return found


def jobs_of(root: Path) -> dict[str, Job]:
    """Records by the ids that Slurm has."""
    return {job.name.removeprefix("slurm-"): job for job in read_jobs(root)}


def rows_of(root: Path) -> list[dict[str, object]]:
    """Every row that any job wrote, also those that don't count."""
    return [json.loads(line) for path in (root / "rows").glob("*.jsonl") for line in path.read_text().splitlines()]


def artifact(root: Path, pattern: str) -> Path:
    """The one artifact of a pattern."""
    found = [
        path for path in root.glob(pattern) if not path.name.endswith((".state", ".claim")) and ".tmp-" not in path.name
    ]
    (only,) = found
    return only
