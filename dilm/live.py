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
            _say(
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
            _say(f"MLflow at {self.uri} did not answer as it should; going on, and trying again: {reason}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
