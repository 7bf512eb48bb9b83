"""Runs in MLflow: logged live to a server while a stage runs (`LiveRun`), or brought in from disk later (`bring_in`).

`metrics.jsonl` and the result rows are the record; MLflow has a copy. A run carries the key of its artifact or cell in
the tag `dilm.key`, so each is there once: an attempt that starts again deletes what earlier attempts have left, and
`bring_in` adds what is missing and replaces what was cut short or has been made again.
"""

import calendar
import json
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, NamedTuple

from dilm.artifacts import locks
from dilm.artifacts.artifact import METRICS_FILE, Artifact
from dilm.artifacts.rows import Row, read_rows
from dilm.core.errors import ConfigError
from dilm.core.io import TEMPORARY, read_json

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


# Tags of a run: the key of its artifact or cell, how it got here, the run it is shown under, how many files it has.
KEY, WRITER, PARENT, FILES = "dilm.key", "dilm.writer", "mlflow.parentRunId", "dilm.files"

# Limits of MLflow
POINTS_AT_ONCE = 1_000
LONGEST_PARAM = 6_000  # characters
PAGE = 1_000  # runs in one answer of a search

# Settings that MLflow reads from the environment
QUIET = {"MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
# Live runs repeat a failed call themselves, because they notice a run that was created twice.
ONCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
RETRIES = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3"}  # with MLflow's default the user waits for minutes

# Live logging
INTERVAL, LONGEST_PAUSE = 2.0, 30.0  # seconds between deliveries, and at most between attempts at one
PATIENCE, NO_PATIENCE = 20.0, 2.0  # seconds that a stage waits for the server at its end; where it was stopped

# Bringing in
LARGEST_FILE = 10_000_000  # bytes; weights are not brought in
WHOLE = ("dataset", "audit")  # stages of which all files are brought in, not provenance and metrics alone
PARTS = ("method", "dpc", "dataset", "seed", "evaluator", "model", "source_key", "protocol", "pool")  # of a cell


class Point(NamedTuple):
    """A metric's value at a step."""

    name: str
    value: float
    timestamp: int  # in milliseconds
    step: int


def points_of(record: dict[str, Any], timestamp: int) -> list[Point]:
    """The points of a line of `metrics.jsonl`."""
    return [Point(name, value, timestamp, record["step"]) for name, value in record.items() if name != "step"]


def read_points(metrics: Path, timestamp: int) -> list[Point]:
    """All points of a `metrics.jsonl`; none where there is no such file."""
    if not metrics.exists():
        return []
    return [point for line in metrics.read_text().splitlines() for point in points_of(json.loads(line), timestamp)]


def milliseconds() -> int:
    """Milliseconds since 1970, as MLflow counts time."""
    return time.time_ns() // 1_000_000


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested values under dotted names."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def set_environment(values: dict[str, str]) -> None:
    """Set variables that the user has not set. Only from the main thread, since the environment is the process's."""
    for name, value in values.items():
        os.environ.setdefault(name, value)


def connect(uri: str, artifacts: str | None = None) -> "tuple[MlflowClient, str]":
    """A client and the id of the experiment `dilm`, or $MLFLOW_EXPERIMENT_NAME; created where it is missing."""
    from mlflow import MlflowClient  # takes seconds to load
    from mlflow.exceptions import MlflowException

    client, name = MlflowClient(uri), os.environ.get("MLFLOW_EXPERIMENT_NAME") or "dilm"
    if experiment := client.get_experiment_by_name(name):
        return client, experiment.experiment_id
    try:
        return client, client.create_experiment(name, artifact_location=artifacts)
    except MlflowException:
        if experiment := client.get_experiment_by_name(name):  # another job was faster
            return client, experiment.experiment_id
        raise


def runs_of(client: "MlflowClient", experiment: str, key: str) -> "Sequence[Run]":
    """The runs of an artifact or a cell, by its key."""
    return client.search_runs([experiment], f"tags.`{KEY}` = '{key}'")


def send(client: "MlflowClient", run: str, params: dict[str, Any], points: Sequence[Point]) -> None:
    """Log parameters and points, and wait until MLflow has them."""
    from mlflow.entities import Metric, Param

    named = [Param(name, str(value)[:LONGEST_PARAM]) for name, value in params.items()]
    client.log_batch(run, [Metric(*point) for point in points], named, synchronous=True)


def run_name(folder: Path) -> str:
    """The name of an artifact's run: its task and its folder."""
    return f"{folder.parent.name}/{folder.name}"


class LiveRun:
    """An artifact's run on a server, logged while the artifact is being made. A server that fails never stops a stage.

    A thread sends what is waiting, and tries again while the server is away. Points leave the queue when the server has
    taken them; each has the time at which it was logged, so one that is sent again because the answer to it was lost is
    the same point to MLflow. A run that couldn't be sent whole stays unfinished, and `bring_in` replaces it later.
    """

    def __init__(self, uri: str, artifact: Artifact, earlier: Sequence[Point] = ()) -> None:
        set_environment(QUIET | ONCE)
        self.uri, self.artifact = uri, artifact
        self._waiting, self._params = deque(earlier), dict(flat(artifact.science))
        self._began, self._run, self._status = milliseconds(), "", ""
        self._closing, self._given_up = Event(), Event()
        self._told = self._done = False
        self._thread = Thread(target=self._serve, name="mlflow", daemon=True)
        self._thread.start()

    def log(self, points: Sequence[Point]) -> None:
        """Queue points."""
        self._waiting.extend(points)

    def end(self, status: str) -> None:
        """Send the rest and end the run as FINISHED, FAILED or KILLED; gives up after PATIENCE or NO_PATIENCE."""
        self._status = status
        self._closing.set()
        self._thread.join(PATIENCE if status == "FINISHED" else NO_PATIENCE)
        self._given_up.set()  # the thread leaves the run alone from now on, since `bring_in` may replace it
        if not self._done and status == "FINISHED":
            folder = self.artifact.folder
            _warn(
                f"MLflow at {self.uri} has not taken all of {run_name(folder)}; later, "
                f"`python tools/collect.py {folder.parents[1]} --mlflow {self.uri}` brings it in"
            )

    def _serve(self) -> None:
        """The thread: create the run, send what is waiting every INTERVAL, and end the run."""
        client, experiment, pause = None, "", 0.0
        while not self._given_up.is_set():
            closing = self._closing.wait(pause)
            try:
                if client is None:
                    client, experiment = connect(self.uri)
                if self._given_up.is_set():  # connecting may take long
                    return
                if not self._run:
                    self._run = self._create(client, experiment)
                self._deliver(client)
                if closing:
                    client.set_terminated(self._run, self._status)
                    self._done = True
                    return
                pause = INTERVAL
            except Exception as error:  # whatever a client raises; metrics.jsonl has every point
                self._tell(error)
                if "active' state" in str(error):  # as MLflow says of a run that was deleted
                    return
                pause = min(max(2 * pause, INTERVAL), LONGEST_PAUSE)
                if closing:
                    self._given_up.wait(INTERVAL / 4)

    def _create(self, client: "MlflowClient", experiment: str) -> str:
        """A new run. Those that earlier attempts at this artifact have left are deleted."""
        for earlier in runs_of(client, experiment, self.artifact.key):
            client.delete_run(earlier.info.run_id)
        science, folder = self.artifact.science, self.artifact.folder
        tags = {KEY: self.artifact.key, WRITER: "live", "stage": str(science["stage"]), "task": folder.parent.name}
        for parent in runs_of(client, experiment, science.get("parent", "none"))[:1]:
            tags[PARENT] = parent.info.run_id
        return client.create_run(experiment, self._began, tags, run_name(folder)).info.run_id

    def _deliver(self, client: "MlflowClient") -> None:
        """Send what is waiting. It is dropped from the queue only when the server has taken it."""
        if self._params:
            send(client, self._run, self._params, ())
            self._params = {}
        while points := list(islice(self._waiting, POINTS_AT_ONCE)):
            send(client, self._run, {}, points)
            for _ in points:
                self._waiting.popleft()

    def _tell(self, error: Exception) -> None:
        """Warn of the first error only."""
        if not self._told:
            self._told = True
            reason = " ".join(str(error).split())
            _warn(f"MLflow at {self.uri} did not answer as it should; going on, and trying again: {reason}")


def _warn(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class RunRecord:
    """A run as the store should have it, of an artifact or a cell on disk."""

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
    """Create an MLflow run for every artifact and every done cell that the store lacks; returns a line with the counts.

    Bringing in the same root again adds nothing. A run that was cut short, or whose artifact or cell was made again, is
    replaced. A run of something that is not complete below `root` is left alone. Raises ConfigError where the store
    can't be used, or another process is bringing in the same root.
    """
    from mlflow.exceptions import MlflowException

    set_environment(QUIET | RETRIES)
    claim = root / "claims" / "mlflow"
    with locks.held(claim) as won:
        if not won:
            raise ConfigError(f"MLflow at {uri}: {locks.holder(claim)} is bringing in {root}; wait for it.")
        try:
            return _bring_in(root, uri)
        except (MlflowException, OSError) as error:
            raise ConfigError(f"MLflow at {uri}: {' '.join(str(error).split())}") from error


def _bring_in(root: Path, uri: str) -> str:
    client, experiment = connect(uri, _beside(uri))
    records = {record.key: record for record in (*_artifacts(root), *_cells(root))}
    runs = _whole_runs(client, experiment, records)
    before, added, errors = len(runs), [record for key, record in records.items() if key not in runs], []
    for key, record in records.items():
        if key in runs:
            error = _complete(client, runs[key], record, runs)
        else:
            runs[key], error = _add(client, experiment, record, runs)
        errors += [error] if error else []
    cells = sum(record.stage == "evaluate" for record in added)
    line = f"MLflow at {uri}: {len(added) - cells} runs and {cells} cells added, {before} known before"
    return line + (f"; files of {len(errors)} runs were not stored, as {errors[0]}" if errors else "")


def _beside(uri: str) -> str | None:
    """Where files of runs go for a database file: beside it. MLflow's default is the working directory."""
    scheme, _, path = uri.partition(":///")
    return (Path(path).resolve().parent / "mlartifacts").as_uri() if scheme == "sqlite" else None


def _whole_runs(client: "MlflowClient", experiment: str, records: dict[str, RunRecord]) -> "dict[str, Run]":
    """The store's runs, by key, that are whole and up to date. Others of the same keys are deleted.

    Those were cut short, are of something that has been made again since, or are there twice. A run that started after
    its record ended is of an attempt under way, and is left alone.
    """
    whole: dict[str, Run] = {}
    surplus: set[str] = set()
    token = None
    while True:
        # The oldest first: pages don't shift where a job starts a run meanwhile.
        page = client.search_runs([experiment], max_results=PAGE, order_by=["start_time ASC"], page_token=token)
        for run in page:
            key, run_id, finished = run.data.tags.get(KEY, ""), run.info.run_id, run.info.status == "FINISHED"
            if key not in records or (not finished and run.info.start_time > records[key].end):
                continue
            outdated = not finished or run.info.end_time < records[key].start
            if outdated or whole.setdefault(key, run).info.run_id != run_id:
                surplus.add(run_id)
        if not (token := page.token):
            break
    for run_id in surplus:  # at the end, since a deletion shifts the pages behind it
        client.delete_run(run_id)
    return whole


def _add(
    client: "MlflowClient", experiment: str, record: RunRecord, runs: "dict[str, Run]"
) -> "tuple[Run, str | None]":
    """A new run, ended only when it is whole; and the error where its files could not be stored."""
    tags = {KEY: record.key, WRITER: "collect", "stage": record.stage, "task": record.task}
    if record.parent in runs:
        tags[PARENT] = runs[record.parent].info.run_id
    run = client.create_run(experiment, record.start, tags, record.name)
    send(client, run.info.run_id, record.params, record.points)
    error = _add_files(client, run, record)
    client.set_terminated(run.info.run_id, end_time=record.end)
    return run, error


def _complete(client: "MlflowClient", run: "Run", record: RunRecord, runs: "dict[str, Run]") -> str | None:
    """Add what a known run lacks: the files, if it was logged live or they were refused, and a parent made again."""
    if record.parent in runs and run.data.tags.get(PARENT) != runs[record.parent].info.run_id:
        client.set_tag(run.info.run_id, PARENT, runs[record.parent].info.run_id)
    return None if FILES in run.data.tags else _add_files(client, run, record)


def _add_files(client: "MlflowClient", run: "Run", record: RunRecord) -> str | None:
    """Store a run's files; returns the error where that fails, as behind a proxy that takes no large files."""
    from mlflow.exceptions import MlflowException

    try:
        for path in record.files:
            client.log_artifact(run.info.run_id, str(path))
    except (MlflowException, OSError) as error:
        return " ".join(str(error).split())
    if record.files:
        client.set_tag(run.info.run_id, FILES, str(len(record.files)))
    return None


def _artifacts(root: Path) -> Iterator[RunRecord]:
    """All complete artifacts below `root`, each after what it was made from."""
    records = {}
    for path in sorted(root.glob("*/*/provenance.json")):
        if TEMPORARY not in path.parent.name:
            record = _artifact_of(path.parent, read_json(path))
            records[record.key] = record
    while records:
        first = next(key for key, record in records.items() if record.parent not in records)
        yield records.pop(first)


def _artifact_of(folder: Path, provenance: dict[str, Any]) -> RunRecord:
    science, end = provenance["science"], _timestamp(provenance["time"])
    stage = str(science["stage"])
    files = sorted(folder.iterdir()) if stage in WHOLE else [folder / "provenance.json", folder / METRICS_FILE]
    return RunRecord(
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


def _cells(root: Path) -> Iterator[RunRecord]:
    return (_cell_of(row) for row in read_rows(root) if row.status == "done")


def _cell_of(row: Row) -> RunRecord:
    cell, end = row.cell, _timestamp(row.time)
    values = row.metrics | ({} if row.value is None else {"value": row.value})
    return RunRecord(
        key=cell.key,
        parent=cell.source_key,
        name=f"{cell.task}/{cell.method}-dpc{cell.dpc}/{cell.model}-{cell.evaluator}/{cell.dataset}-{cell.seed}",
        stage="evaluate",
        task=cell.task,
        start=end - int(1000 * row.seconds),
        end=end,
        params={part: getattr(cell, part) for part in PARTS},
        points=[Point(name, value, end, 0) for name, value in values.items()],
    )


def _timestamp(text: str) -> int:
    """Milliseconds since 1970 of a time (UTC) as rows and provenance have it."""
    return 1000 * calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ"))
