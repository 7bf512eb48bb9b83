"""How a study went: cells done, failed and missing, hours by stage, and what the data sets have cost."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dilm.core.io import TEMPORARY, read_json
from dilm.report.summary import Table
from dilm.scheduler.records import read_job, record_file

COLUMNS = ["task", "method", "dpc", "model", "metric", "value", "hours", "device"]  # of `costs_of`


@dataclass(frozen=True)
class ArtifactCost:
    """What making an artifact has taken, and what it was made from."""

    stage: str
    task: str
    seconds: float  # of the attempt that completed it; NaN where that was not recorded
    gpus: int  # of the job that made it
    parents: tuple[str, ...]  # keys


def artifacts_below(root: Path) -> dict[str, ArtifactCost]:
    """Every complete artifact below `root` by its key."""
    artifacts = {}
    for path in sorted(root.glob("*/*/provenance.json")):
        if TEMPORARY in path.parent.name:
            continue
        provenance = read_json(path)
        job = read_job(record_file(root, str(provenance.get("job", ""))))
        science: dict[str, Any] = provenance["science"]
        parent = science.get("parent")
        artifacts[str(provenance["key"])] = ArtifactCost(
            str(science["stage"]),
            path.parent.parent.name,
            float(provenance.get("seconds", np.nan)),
            job.gpus if job else 0,
            (parent,) if parent else (),
        )
    return artifacts


@dataclass(frozen=True)
class Health:
    """Counts of cells, hours by stage and task, and the newest failures."""

    done: int
    failed: int
    missing: int
    hours: list[tuple[str, str, float, float]]  # stage, task, hours, and GPU hours
    failures: list[dict[str, Any]]
    newest: str  # time of the newest row


def health_of(rows: pd.DataFrame, missing: int, artifacts: dict[str, ArtifactCost], listed: int = 50) -> Health:
    """Health from `read_table`'s rows and all artifacts, with at most `listed` failures."""
    hours: dict[tuple[str, str], tuple[float, float]] = {}
    for artifact in artifacts.values():
        group, spent = (artifact.stage, artifact.task), float(np.nan_to_num(artifact.seconds)) / 3600
        all_hours, gpu_hours = hours.get(group, (0.0, 0.0))
        hours[group] = all_hours + spent, gpu_hours + spent * artifact.gpus
    for task, seconds in rows.groupby("task")["seconds"].sum().items():
        hours["evaluate", str(task)] = float(seconds) / 3600, 0.0
    failed = rows[rows["status"] == "failed"].sort_values("time", ascending=False)
    shown = ["task", "method", "dpc", "dataset", "seed", "model", "error"]
    return Health(
        int((rows["status"] == "done").sum()),
        len(failed),
        missing,
        [(*group, *spent) for group, spent in hours.items() if spent[0] > 0],
        [dict(zip(shown, values, strict=True)) for values in failed[shown].head(listed).itertuples(index=False)],
        str(rows["time"].max()) if len(rows) else "",
    )


def costs_of(tables: list[Table], rows: pd.DataFrame, artifacts: dict[str, ArtifactCost]) -> pd.DataFrame:
    """Hours that the data sets of each method and size took, with all that they were made from, and their mean score.

    The columns are COLUMNS; GPU hours where a GPU was used. The score is of the learner with the most cells of a task.
    Data sets whose cost is not known are left out.
    """
    done = rows[rows["status"] == "done"]
    largest: dict[str, Table] = {}
    for table in tables:
        before = largest.get(table.task)
        if before is None or _models(table) > _models(before):
            largest[table.task] = table
    sources = done.groupby(["task", "method", "dpc"])["source_key"].first()
    points = []
    for task, table in largest.items():
        for (method, dpc), summary in table.summaries.items():
            key = sources.get((task, method, dpc))
            seconds, gpus = _total_cost(str(key), artifacts)
            if dpc and seconds > 0:
                device = "GPU" if gpus else "processor"
                points.append([task, method, dpc, table.model, table.metric, summary.mean, seconds / 3600, device])
    return pd.DataFrame(points, columns=COLUMNS)


def _models(table: Table) -> int:
    return sum(summary.n_models for summary in table.summaries.values())


def _total_cost(key: str, artifacts: dict[str, ArtifactCost]) -> tuple[float, int]:
    """Seconds times GPUs, summed over an artifact and all that it was made from, and the most GPUs of one of them.

    NaN where the seconds of one are not known.
    """
    artifact = artifacts.get(key)
    if artifact is None:
        return np.nan, 0
    parents = [_total_cost(parent, artifacts) for parent in artifact.parents]
    seconds = artifact.seconds * max(artifact.gpus, 1) + sum(parent[0] for parent in parents)
    return seconds, max([artifact.gpus, *(parent[1] for parent in parents)])
