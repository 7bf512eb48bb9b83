"""Bringing artifacts and cells into an MLflow store: the one writer, so that jobs never share a database.

A run is known by its tag `dilm.key`. Runs are nested as artifacts are: what a run was made from is its parent, a cell's
the data sets that it was evaluated on.
"""

import calendar
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dilm import claims
from dilm.errors import ConfigError
from dilm.files import TEMPORARY, read_json
from dilm.live import KEY, PARENT, QUIET, WRITER, Point, connect, flat, read_points, run_name, send, set_environment
from dilm.results import Row, read_rows
from dilm.tracking import METRICS_FILE

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PAGE = 1_000  # runs that MLflow gives at once
LARGEST_FILE = 10_000_000  # bytes; weights are not brought in
WHOLE = ("dataset", "audit")  # stages whose files all are brought in, besides what tells how others were made
PARTS = ("method", "dpc", "dataset", "seed", "evaluator", "model", "source_key", "protocol", "pool")  # of a row
FILES = "dilm.files"  # tag of a run that has its files
RETRIES = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3"}  # MLflow's own number has the user wait for minutes


@dataclass(frozen=True)
class Wanted:
    """A run that the store is to have."""

    key: str
    parent: str  # key
    name: str
    stage: str
    task: str
    start: int  # in milliseconds
    end: int
    params: dict[str, Any]
    points: list[Point]
    files: tuple[Path, ...] = ()


def bring_in(root: Path, uri: str) -> str:
    """Create an MLflow run for every artifact and every done cell that the store lacks; says how many.

    Bringing in the same root again adds nothing. A run that was cut short, or is of something that was made again, is
    replaced; one of something that is not complete below `root` is left alone. Raises ConfigError where the store can't
    be used.
    """
    from mlflow.exceptions import MlflowException

    set_environment(QUIET | RETRIES)
    claim = root / "claims" / "mlflow"
    with claims.held(claim) as won:
        if not won:
            raise ConfigError(f"MLflow at {uri}: {claims.holder(claim)} is bringing in {root}; wait for it.")
        try:
            return _bring_in(root, uri)
        except (MlflowException, OSError) as error:
            raise ConfigError(f"MLflow at {uri}: {' '.join(str(error).split())}") from error


def _bring_in(root: Path, uri: str) -> str:
    client, experiment = connect(uri, _beside(uri))
    wanted = {item.key: item for item in (*_artifacts(root), *_cells(root))}
    runs = _known(client, experiment, wanted)
    before, added, lost = len(runs), [item for key, item in wanted.items() if key not in runs], []
    for key, item in wanted.items():
        if key in runs:
            error = _complete(client, runs[key], item, runs)
        else:
            runs[key], error = _add(client, experiment, item, runs)
        lost += [error] if error else []
    cells = sum(item.stage == "evaluate" for item in added)
    told = f"MLflow at {uri}: {len(added) - cells} runs and {cells} cells added, {before} known before"
    return told + (f"; files of {len(lost)} runs were not stored, as {lost[0]}" if lost else "")


def _beside(uri: str) -> str | None:
    """Where a new database file's artifacts go: beside it, not where the command happens to be run."""
    scheme, _, path = uri.partition(":///")
    return (Path(path).resolve().parent / "mlartifacts").as_uri() if scheme == "sqlite" else None


def _known(client: "MlflowClient", experiment: str, wanted: dict[str, Wanted]) -> "dict[str, Run]":
    """Whole runs by the key of what is complete. Others of these keys are deleted: cut short, outdated, there twice."""
    known: dict[str, Run] = {}
    surplus: set[str] = set()
    token = None
    while True:
        # The oldest first: pages don't shift where a job starts a run meanwhile.
        page = client.search_runs([experiment], max_results=PAGE, order_by=["start_time ASC"], page_token=token)
        for run in page:
            key, run_id = run.data.tags.get(KEY, ""), run.info.run_id
            if key not in wanted or (run.info.status != "FINISHED" and run.info.start_time > wanted[key].end):
                continue  # not complete here, or being made again
            if run.info.status == "FINISHED" and run.info.end_time >= wanted[key].start:
                surplus |= {run_id} if known.setdefault(key, run).info.run_id != run_id else set()
            else:
                surplus.add(run_id)
        if not (token := page.token):
            break
    for run_id in surplus:  # at the end, since a deletion shifts the pages behind it
        client.delete_run(run_id)
    return known


def _add(client: "MlflowClient", experiment: str, item: Wanted, runs: "dict[str, Run]") -> "tuple[Run, str | None]":
    """A new run, ended only when it is whole; and why its files could not be stored."""
    tags = {KEY: item.key, WRITER: "collect", "stage": item.stage, "task": item.task}
    if item.parent in runs:
        tags[PARENT] = runs[item.parent].info.run_id
    run = client.create_run(experiment, item.start, tags, item.name)
    send(client, run.info.run_id, item.params, item.points)
    error = _add_files(client, run, item)
    client.set_terminated(run.info.run_id, end_time=item.end)
    return run, error


def _complete(client: "MlflowClient", run: "Run", item: Wanted, runs: "dict[str, Run]") -> str | None:
    """What a run that was logged live can't have had, what was refused before, and a parent that was replaced."""
    if item.parent in runs and run.data.tags.get(PARENT) != runs[item.parent].info.run_id:
        client.set_tag(run.info.run_id, PARENT, runs[item.parent].info.run_id)
    return None if FILES in run.data.tags else _add_files(client, run, item)


def _add_files(client: "MlflowClient", run: "Run", item: Wanted) -> str | None:
    """Store a run's files; why that failed, as where a proxy takes no large ones: the run is worth having without."""
    from mlflow.exceptions import MlflowException

    try:
        for path in item.files:
            client.log_artifact(run.info.run_id, str(path))
    except (MlflowException, OSError) as error:
        return " ".join(str(error).split())
    if item.files:
        client.set_tag(run.info.run_id, FILES, str(len(item.files)))
    return None


def _artifacts(root: Path) -> Iterator[Wanted]:
    """All complete artifacts below `root`, each behind what it was made from."""
    found = {}
    for path in sorted(root.glob("*/*/provenance.json")):
        if TEMPORARY not in path.parent.name:
            item = _artifact(path.parent, read_json(path))
            found[item.key] = item
    while found:
        first = next(key for key, item in found.items() if item.parent not in found)
        yield found.pop(first)


def _artifact(folder: Path, provenance: dict[str, Any]) -> Wanted:
    science, end = provenance["science"], _timestamp(provenance["time"])
    stage = str(science["stage"])
    files = sorted(folder.iterdir()) if stage in WHOLE else [folder / "provenance.json", folder / METRICS_FILE]
    return Wanted(
        key=str(provenance["key"]),
        parent=str(science.get("parent", "")),
        name=run_name(folder),
        stage=stage,
        task=folder.parent.name,
        start=end - int(1000 * provenance.get("seconds", 0.0)),
        end=end,
        params=dict(flat(science)),
        points=read_points(folder / METRICS_FILE, end),
        files=tuple(path for path in files if path.is_file() and path.stat().st_size <= LARGEST_FILE),
    )


def _cells(root: Path) -> Iterator[Wanted]:
    return (_cell(row) for row in read_rows(root) if row.status == "done")


def _cell(row: Row) -> Wanted:
    end = _timestamp(row.time)
    values = row.metrics | ({} if row.value is None else {"value": row.value})
    return Wanted(
        key=row.key,
        parent=row.source_key,
        name=f"{row.task}/{row.method}-dpc{row.dpc}/{row.model}-{row.evaluator}/{row.dataset}-{row.seed}",
        stage="evaluate",
        task=row.task,
        start=end - int(1000 * row.seconds),
        end=end,
        params={part: getattr(row, part) for part in PARTS},
        points=[Point(name, value, end, 0) for name, value in values.items()],
    )


def _timestamp(text: str) -> int:
    """Milliseconds since 1970 of a time as rows and provenance have it."""
    return 1000 * calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ"))
