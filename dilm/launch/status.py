"""How a study stands: per stage and task what is done, running, queued and failed, from records, rows and artifacts."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from dilm.config.stages import position
from dilm.core.errors import ConfigError
from dilm.launch.plan import Standing, standing_of
from dilm.scheduler import records
from dilm.scheduler.job import accounting_of, scheduler_of
from dilm.scheduler.records import DONE, FAILED, QUEUED, RUNNING, Job, Verdict


@dataclass
class Line:
    """One stage of one task."""

    stage: str
    task: str
    counts: dict[str, int] = field(default_factory=dict)  # state: cells or artifacts
    seconds: float = 0.0  # that its jobs have run
    nodes: list[str] = field(default_factory=list)  # where they ran last
    error: str = ""  # the newest
    waits: str = ""  # why a job is not started


def lines_of(root: Path) -> list[Line]:
    """A line for each stage and task, in the order of stages."""
    standing = standing_of(root)
    lines: dict[tuple[str, str], Line] = {}
    keys: dict[tuple[str, str], dict[str, None]] = {}
    for verdict in standing.verdicts.values():
        for call in verdict.job.calls:
            for stage, made in call.makes.items():
                place = (stage, call.task)
                keys.setdefault(place, {}).update(dict.fromkeys(made))
                last = stage == list(call.makes)[-1]  # a job of two stages counts its time once
                _add_job(lines.setdefault(place, Line(*place)), verdict, last)
    for row in standing.rows:  # also of jobs whose records are gone
        place = ("evaluate", row.cell.task)
        lines.setdefault(place, Line(*place))
        keys.setdefault(place, {})[row.cell.key] = None
    for place, line in lines.items():
        _count(line, keys[place], standing)
    return sorted(lines.values(), key=lambda line: (position(line.stage), line.task))


def _add_job(line: Line, verdict: Verdict, timed: bool) -> None:
    job = verdict.job
    line.seconds += seconds_of(verdict) if timed else 0.0
    if job.node and job.node not in line.nodes:
        line.nodes.append(job.node)
    if verdict.state == FAILED:
        line.error = verdict.reason
    if verdict.state == QUEUED:
        line.waits = verdict.reason


def _count(line: Line, keys: Iterable[str], standing: Standing) -> None:
    for key in keys:
        state = standing.of(line.stage, key)
        line.counts[state] = line.counts.get(state, 0) + 1
        if state == FAILED:
            line.error = standing.failed[key] or line.error
    if not line.counts.get(FAILED):
        line.error = ""


def seconds_of(verdict: Verdict) -> float:
    """That a job has run, with the attempt that is running."""
    job = verdict.job
    last = job.attempts[-1] if job.attempts else None
    running = last is not None and last.end is None and verdict.state == RUNNING
    return job.seconds + (time.time() - last.start if last and running else 0.0)


@dataclass(frozen=True)
class Cost:
    """GPU hours of a stage."""

    stage: str
    used: float
    wasted: float  # by attempts that did not end well


def costs(root: Path) -> list[Cost]:
    """GPU hours by stage; of jobs that were killed the scheduler's accounting tells the time, where it has it."""
    verdicts = records.judge(root)
    told = accounting_of([name for name, verdict in verdicts.items() if _is_cut(verdict.job)])
    totals: dict[str, list[float]] = {}
    for name, verdict in verdicts.items():
        job, seconds = verdict.job, max(seconds_of(verdict), told[name].seconds if name in told else 0.0)
        good = sum(a.end - a.start for a in job.attempts if a.end and a.state in (DONE, records.PREEMPTED))
        if verdict.live:
            good = seconds
        stage = job.made[-1][0] if job.made else ""
        total = totals.setdefault(stage, [0.0, 0.0])
        total[0] += seconds * job.gpus / 3600
        total[1] += (seconds - good) * job.gpus / 3600
    return [Cost(stage, *totals[stage]) for stage in sorted(totals, key=position)]


def _is_cut(job: Job) -> bool:
    return any(attempt.end is None for attempt in job.attempts)


def log_of(root: Path, key: str) -> Path:
    """The log of the newest job of that name or id, or that makes a cell or artifact whose key begins so."""
    for job in reversed(records.read_jobs(root)):
        names_job = key in (job.name, scheduler_of(job.name).bare_id(job.name))
        if names_job or any(_names(name, key) for _, name in job.made):
            if not job.log:
                raise ConfigError(f"{job.name} was not started by dilm, and its log is not known.")
            return root / job.log
    raise ConfigError(
        f"no job below {root} has made {key!r}; give a job's id, a cell's key, or an artifact's name or key."
    )


def _names(name: str, key: str) -> bool:
    return name.startswith(key) or name.rpartition("/")[2].startswith(key) or name.rpartition("-")[2].startswith(key)
