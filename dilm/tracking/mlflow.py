"""A stage's run on an MLflow server while it is under way: never fatal, never waited for, nothing lost or twice.

What is logged waits in memory until the server has taken it. Every point carries the time at which it was logged, so
that one sent again, because the answer to it was lost, is the same point to MLflow. A run that couldn't be sent whole
stays unfinished, and `mlflow_store.bring_in` replaces it from the artifact.
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


KEY, WRITER, PARENT = "dilm.key", "dilm.writer", "mlflow.parentRunId"  # tags of a run
POINTS_AT_ONCE = 1_000
LONGEST_PARAM = 6_000  # that MLflow takes
INTERVAL, LONGEST_PAUSE = 2.0, 30.0  # seconds between deliveries, and at most between attempts at one
PATIENCE, NO_PATIENCE = 20.0, 2.0  # seconds that the end of a stage waits for the server; where it was stopped
QUIET = {"MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
# It is tried again here, where a run that was made twice is noticed.
ONCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}


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
    """All points of a `metrics.jsonl`, which need not be there."""
    if not metrics.exists():
        return []
    return [point for line in metrics.read_text().splitlines() for point in points_of(json.loads(line), timestamp)]


def milliseconds() -> int:
    """Now, as MLflow counts time."""
    return time.time_ns() // 1_000_000


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested values under dotted names."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def set_environment(values: dict[str, str]) -> None:
    """Settings that MLflow reads from the environment alone, where the user has none. For the main thread."""
    for name, value in values.items():
        os.environ.setdefault(name, value)


def connect(uri: str, artifacts: str | None = None) -> "tuple[MlflowClient, str]":
    """A client, and the experiment's id. It is `dilm` or $MLFLOW_EXPERIMENT_NAME, and made where it is missing."""
    from mlflow import MlflowClient  # heavy, and needed only here
    from mlflow.exceptions import MlflowException

    client, name = MlflowClient(uri), os.environ.get("MLFLOW_EXPERIMENT_NAME") or "dilm"
    if found := client.get_experiment_by_name(name):
        return client, found.experiment_id
    try:
        return client, client.create_experiment(name, artifact_location=artifacts)
    except MlflowException:
        if found := client.get_experiment_by_name(name):  # another job was faster
            return client, found.experiment_id
        raise


def runs_of(client: "MlflowClient", experiment: str, key: str) -> "Sequence[Run]":
    """The runs that carry a key."""
    return client.search_runs([experiment], f"tags.`{KEY}` = '{key}'")


def send(client: "MlflowClient", run: str, params: dict[str, Any], points: Sequence[Point]) -> None:
    """Log parameters and points, and wait until MLflow has them."""
    from mlflow.entities import Metric, Param

    named = [Param(name, str(value)[:LONGEST_PARAM]) for name, value in params.items()]
    client.log_batch(run, [Metric(*point) for point in points], named, synchronous=True)


def run_name(folder: Path) -> str:
    """How an artifact's run is called: its task and its folder."""
    return f"{folder.parent.name}/{folder.name}"


class LiveRun:
    """Sends an artifact's points to a server from a thread of its own, and goes on trying while the server is away."""

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
        """Have points sent."""
        self._waiting.extend(points)

    def end(self, status: str) -> None:
        """Have the rest sent and the run ended as FINISHED, FAILED or KILLED; waits for that, but not for long."""
        self._status = status
        self._closing.set()
        self._thread.join(PATIENCE if status == "FINISHED" else NO_PATIENCE)
        self._given_up.set()  # from now on the run is `bring_in`'s
        if not self._done and status == "FINISHED":
            folder = self.artifact.folder
            _warn(
                f"MLflow at {self.uri} has not taken all of {run_name(folder)}; later, "
                f"`python tools/collect.py {folder.parents[1]} --mlflow {self.uri}` brings it in"
            )

    def _serve(self) -> None:
        """The thread: begin the run, deliver what is waiting now and then, and end it."""
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
            except Exception as error:  # never fatal: rows and metrics.jsonl are the truth
                self._tell(error)
                if "active' state" in str(error):  # as MLflow says of a run that was deleted
                    return
                pause = min(max(2 * pause, INTERVAL), LONGEST_PAUSE)
                if closing:
                    self._given_up.wait(INTERVAL / 4)

    def _create(self, client: "MlflowClient", experiment: str) -> str:
        """A new run in the place of those that earlier attempts at this artifact have left."""
        for left in runs_of(client, experiment, self.artifact.key):
            client.delete_run(left.info.run_id)
        science, folder = self.artifact.science, self.artifact.folder
        tags = {KEY: self.artifact.key, WRITER: "live", "stage": str(science["stage"]), "task": folder.parent.name}
        for parent in runs_of(client, experiment, science.get("parent", "none"))[:1]:
            tags[PARENT] = parent.info.run_id
        return client.create_run(experiment, self._began, tags, run_name(folder)).info.run_id

    def _deliver(self, client: "MlflowClient") -> None:
        """Send what is waiting; only what the server has taken waits no longer."""
        if self._params:
            send(client, self._run, self._params, ())
            self._params = {}
        while some := list(islice(self._waiting, POINTS_AT_ONCE)):
            send(client, self._run, {}, some)
            for _ in some:
                self._waiting.popleft()

    def _tell(self, error: Exception) -> None:
        if not self._told:
            self._told = True
            reason = " ".join(str(error).split())
            _warn(f"MLflow at {self.uri} did not answer as it should; going on, and trying again: {reason}")


def _warn(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


PAGE = 1_000  # runs that MLflow gives at once
LARGEST_FILE = 10_000_000  # bytes; weights are not brought in
WHOLE = ("dataset", "audit")  # stages whose files all are brought in, besides what tells how others were made
PARTS = ("method", "dpc", "dataset", "seed", "evaluator", "model", "source_key", "protocol", "pool")  # of a cell
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
    with locks.held(claim) as won:
        if not won:
            raise ConfigError(f"MLflow at {uri}: {locks.holder(claim)} is bringing in {root}; wait for it.")
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
            item = _artifact_of(path.parent, read_json(path))
            found[item.key] = item
    while found:
        first = next(key for key, item in found.items() if item.parent not in found)
        yield found.pop(first)


def _artifact_of(folder: Path, provenance: dict[str, Any]) -> Wanted:
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
    return (_cell_of(row) for row in read_rows(root) if row.status == "done")


def _cell_of(row: Row) -> Wanted:
    cell, end = row.cell, _timestamp(row.time)
    values = row.metrics | ({} if row.value is None else {"value": row.value})
    return Wanted(
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
    """Milliseconds since 1970 of a time as rows and provenance have it."""
    return 1000 * calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ"))
