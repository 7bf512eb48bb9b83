"""A stage's run on an MLflow server while it is under way: never fatal, never waited for, nothing lost or twice.

What is logged waits in memory until the server has taken it. Every point carries the time at which it was logged, so
that one sent again, because the answer to it was lost, is the same point to MLflow. A run that couldn't be sent whole
stays unfinished, and `mlflow_store.bring_in` replaces it from the artifact.
"""

import json
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, NamedTuple

from dilm.artifacts import Artifact

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

KEY, WRITER, PARENT = "dilm.key", "dilm.writer", "mlflow.parentRunId"  # tags of a run
POINTS_AT_ONCE, PARAMS_AT_ONCE = 1_000, 100  # that MLflow takes
LONGEST_PARAM = 500
INTERVAL, LONGEST_PAUSE = 2.0, 30.0  # seconds between deliveries, and at most between attempts at one
PATIENCE = 20.0  # seconds that the end of a stage waits for the server
REQUESTS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}  # it is tried again here


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


def connect(uri: str, artifacts: str | None = None) -> "tuple[MlflowClient, str]":
    """A client, and the experiment's id. It is `dilm` or $MLFLOW_EXPERIMENT_NAME, and made where it is missing."""
    from mlflow import MlflowClient  # heavy, and needed only here
    from mlflow.exceptions import MlflowException

    for name, value in REQUESTS.items():
        os.environ.setdefault(name, value)
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
    """Log parameters and points, in as many parts as MLflow needs."""
    from mlflow.entities import Metric, Param

    named = [Param(name, str(value)[:LONGEST_PARAM]) for name, value in sorted(params.items())]
    metrics = [Metric(*point) for point in points]
    for start in range(0, len(named), PARAMS_AT_ONCE):
        client.log_batch(run, params=named[start : start + PARAMS_AT_ONCE])
    for start in range(0, len(metrics), POINTS_AT_ONCE):
        client.log_batch(run, metrics=metrics[start : start + POINTS_AT_ONCE])


def run_name(folder: Path) -> str:
    """How an artifact's run is called: its task and its folder."""
    return f"{folder.parent.name}/{folder.name}"


class LiveRun:
    """Sends an artifact's points to a server from a thread of its own, and goes on trying while the server is away."""

    def __init__(self, uri: str, artifact: Artifact, earlier: Sequence[Point] = ()) -> None:
        self.uri, self.artifact = uri, artifact
        self._waiting = deque(earlier)
        self._closing, self._status, self._told = Event(), "", False
        self._thread = Thread(target=self._serve, name="mlflow", daemon=True)
        self._thread.start()

    def log(self, points: Sequence[Point]) -> None:
        """Have points sent."""
        self._waiting.extend(points)

    def end(self, status: str) -> None:
        """Have the rest sent and the run ended as FINISHED, FAILED or KILLED; waits for that, but not for long."""
        self._status = status
        self._closing.set()
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            folder = self.artifact.folder
            _say(
                f"MLflow at {self.uri} has not taken all of {run_name(folder)}; later, "
                f"`python tools/collect.py {folder.parents[1]} --mlflow {self.uri}` brings it in"
            )

    def _serve(self) -> None:
        """The thread: begin the run, deliver what is waiting now and then, and end it."""
        begun: tuple[MlflowClient, str] | None = None
        pause = 0.0
        while True:
            closing = self._closing.wait(pause)
            try:
                begun = begun or self._begin()
                self._deliver(*begun)
                if closing:
                    client, run = begun
                    client.set_terminated(run, self._status)
                    return
                pause = INTERVAL
            except Exception as error:  # never fatal: rows and metrics.jsonl are the truth
                self._tell(error)
                pause = min(max(2 * pause, INTERVAL), LONGEST_PAUSE)
                if closing:
                    time.sleep(INTERVAL / 4)

    def _begin(self) -> "tuple[MlflowClient, str]":
        """A new run in the place of those that earlier attempts at this artifact have left."""
        client, experiment = connect(self.uri)
        for left in runs_of(client, experiment, self.artifact.key):
            client.delete_run(left.info.run_id)
        science, folder = self.artifact.science, self.artifact.folder
        tags = {KEY: self.artifact.key, WRITER: "live", "stage": str(science["stage"]), "task": folder.parent.name}
        for parent in runs_of(client, experiment, science.get("parent", "none"))[:1]:
            tags[PARENT] = parent.info.run_id
        run = client.create_run(experiment, tags=tags, run_name=run_name(folder)).info.run_id
        send(client, run, dict(flat(science)), ())
        return client, run

    def _deliver(self, client: "MlflowClient", run: str) -> None:
        while some := list(islice(self._waiting, POINTS_AT_ONCE)):
            send(client, run, {}, some)
            for _ in some:  # only now: what the server has not taken is sent again
                self._waiting.popleft()

    def _tell(self, error: Exception) -> None:
        if not self._told:
            self._told = True
            _say(f"MLflow at {self.uri} can't be reached; going on, and trying again: {' '.join(str(error).split())}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
