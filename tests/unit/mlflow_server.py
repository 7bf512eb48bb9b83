"""A real MLflow server on loopback, and what its store holds."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run


class Server:
    """`mlflow server` with a SQLite store in a folder; it can be killed and started again, on the same port."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.uri, self.log = f"http://127.0.0.1:{port}", folder / "server.log"
        self.command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"),
            *("--artifacts-destination", str(folder / "artifacts")),
        ]
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 180
        while True:
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)

    def kill(self) -> None:
        """End it and its workers at once."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def runs(uri: str) -> dict[str, Run]:
    """The store's runs by key."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("dilm")
    found = client.search_runs([experiment.experiment_id])
    by_key = {run.data.tags["dilm.key"]: run for run in found}
    assert len(by_key) == len(found), "a key twice"
    return by_key


def history(uri: str, run: Run, name: str) -> list[tuple[int, float]]:
    """Steps and values of a metric."""
    return [(point.step, point.value) for point in MlflowClient(uri).get_metric_history(run.info.run_id, name)]
