"""How a study went: what is done, failed and missing, where the time went, and what data sets have cost."""

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
class Made:
    """An artifact, what making it has taken, and what it was made from."""

    stage: str
    task: str
    seconds: float  # of the attempt that completed it; NaN: made before this was recorded
    gpus: int  # of the job that made it
    parents: tuple[str, ...]  # keys


def artifacts_below(root: Path) -> dict[str, Made]:
    """Every complete artifact by its key."""
    found = {}
    for path in sorted(root.glob("*/*/provenance.json")):
        if TEMPORARY in path.parent.name:
            continue
        provenance = read_json(path)
        job = read_job(record_file(root, str(provenance.get("job", ""))))
        science: dict[str, Any] = provenance["science"]
        parent = science.get("parent")
        found[str(provenance["key"])] = Made(
            str(science["stage"]),
            path.parent.parent.name,
            float(provenance.get("seconds", np.nan)),
            job.gpus if job else 0,
            (parent,) if parent else (),
        )
    return found


@dataclass(frozen=True)
class Health:
    """Counts of cells, hours by stage and task, and the newest failures."""

    done: int
    failed: int
    missing: int
    hours: list[tuple[str, str, float, float]]  # stage, task, hours, those of a GPU among them
    failures: list[dict[str, Any]]
    newest: str  # time of the newest row


def health_of(rows: pd.DataFrame, missing: int, made: dict[str, Made], listed: int = 50) -> Health:
    """From the rows that count, and all artifacts."""
    hours: dict[tuple[str, str], tuple[float, float]] = {}
    for artifact in made.values():
        place, spent = (artifact.stage, artifact.task), float(np.nan_to_num(artifact.seconds)) / 3600
        all_hours, of_gpus = hours.get(place, (0.0, 0.0))
        hours[place] = all_hours + spent, of_gpus + spent * artifact.gpus
    for task, seconds in rows.groupby("task")["seconds"].sum().items():
        hours["evaluate", str(task)] = float(seconds) / 3600, 0.0
    failed = rows[rows["status"] == "failed"].sort_values("time", ascending=False)
    named = ["task", "method", "dpc", "dataset", "seed", "model", "error"]
    return Health(
        int((rows["status"] == "done").sum()),
        len(failed),
        missing,
        [(*place, *spent) for place, spent in hours.items() if spent[0] > 0],
        [dict(zip(named, values, strict=True)) for values in failed[named].head(listed).itertuples(index=False)],
        str(rows["time"].max()) if len(rows) else "",
    )


def costs_of(tables: list[Table], rows: pd.DataFrame, made: dict[str, Made]) -> pd.DataFrame:
    """What the data sets of each method and size have cost, with all that they were made from, and their mean score.

    Of each task the model with the most cells. Data sets whose cost is not known are left out.
    """
    done = rows[rows["status"] == "done"]
    largest: dict[str, Table] = {}
    for table in tables:
        known = largest.get(table.task)
        if known is None or _models(table) > _models(known):
            largest[table.task] = table
    sources = done.groupby(["task", "method", "dpc"])["source_key"].first()
    points = []
    for task, table in largest.items():
        for (method, dpc), summary in table.summaries.items():
            key = sources.get((task, method, dpc))
            seconds, gpus = _chain(str(key), made)
            if dpc and seconds > 0:
                device = "GPU" if gpus else "processor"
                points.append([task, method, dpc, table.model, table.metric, summary.mean, seconds / 3600, device])
    return pd.DataFrame(points, columns=COLUMNS)


def _models(table: Table) -> int:
    return sum(summary.n_models for summary in table.summaries.values())


def _chain(key: str, made: dict[str, Made]) -> tuple[float, int]:
    """Seconds (NaN where one's are not known) and the most GPUs of an artifact and all that it was made from."""
    own = made.get(key)
    if own is None:
        return np.nan, 0
    parts = [_chain(parent, made) for parent in own.parents]
    seconds = own.seconds * max(own.gpus, 1) + sum(part[0] for part in parts)
    return seconds, max([own.gpus, *(part[1] for part in parts)])
