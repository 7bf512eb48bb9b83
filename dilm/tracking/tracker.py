"""What a stage reports while it runs: progress, and metrics as JSON lines and, where there is a server, to MLflow."""

import json
import os
import sys
import time
from pathlib import Path
from types import TracebackType

from tqdm import tqdm

from dilm.artifacts.artifact import METRICS_FILE, Artifact
from dilm.config.schema import Config
from dilm.core import signals
from dilm.core.errors import ConfigError
from dilm.core.io import TEMPORARY
from dilm.tracking.mlflow import LiveRun, milliseconds, points_of, read_points

LOG_SECONDS = 30.0  # between progress lines where there is no terminal


class Progress:
    """A progress bar in a terminal, a plain line every LOG_SECONDS elsewhere, and nothing where not `active`."""

    def __init__(self, total: int, title: str, start: int = 0, active: bool = True) -> None:
        self.total, self.title, self.start, self.active = total, title, start, active
        self.done, self.tokens = start, 0
        self._began = self._said = time.monotonic()
        terminal = active and sys.stderr.isatty()
        self._bar = (
            tqdm(total=total, desc=title, initial=start, dynamic_ncols=True, leave=False, delay=0) if terminal else None
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, n: int = 1, tokens: int = 0, **values: float) -> None:
        """Count `n` more steps, which took `tokens` of text; `values` are shown beside the progress.

        Raises Stopped where a signal has asked the process to stop.
        """
        signals.check()
        self.done += n
        self.tokens += tokens
        now = time.monotonic()
        speed = {"tokens/s": f"{self.tokens / max(now - self._began, 1e-9):,.0f}"} if self.tokens else {}
        shown = {name: f"{value:.3f}" for name, value in values.items()} | speed
        if self._bar is not None:
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(n)
        elif self.active and now - self._said >= LOG_SECONDS:
            self._said = now
            left = (now - self._began) / max(self.done - self.start, 1) * (self.total - self.done)
            parts = [f"{name} {value}" for name, value in shown.items()] + [f"{tqdm.format_interval(left)} left"]
            print(f"{self.title}: {self.done:,} of {self.total:,}, {', '.join(parts)}", file=sys.stderr, flush=True)


def finished_metrics(root: Path, names: str = "*") -> list[Path]:
    """The metrics files of complete artifacts below `root`; an artifact under way has a temporary name."""
    files = root.glob(f"*/{names}/{METRICS_FILE}")
    return sorted(path for path in files if TEMPORARY not in path.parent.name)


def tracking_uri(config: Config) -> str | None:
    """The MLflow server for live logging, or None. Raises ConfigError for anything but http(s) that is asked for."""
    uri = config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    asked = config.tracking == "mlflow" or (config.tracking == "auto" and config.tracking_uri)
    if uri.startswith(("http://", "https://")):
        return None if config.tracking == "jsonl" else uri
    if asked:
        raise ConfigError(
            f"tracking_uri is {uri!r}; live logging needs an http(s) MLflow server, since jobs must not share a "
            "database file. Set tracking_uri or $MLFLOW_TRACKING_URI, or bring the runs in later with "
            "`python tools/collect.py runs --mlflow sqlite:///mlflow.db`."
        )
    return None


class Tracker:
    """Logs one stage's metrics to `metrics.jsonl` in its folder and, where there is a server, to a run in MLflow.

    Logs nothing where not `active`, as on all ranks but the main one. Points that the file has already, from an attempt
    that was stopped, are sent to MLflow again.
    """

    def __init__(self, folder: Path, config: Config, artifact: Artifact, active: bool = True) -> None:
        self.path = folder / METRICS_FILE if active else Path(os.devnull)
        uri = tracking_uri(config) if active else None
        earlier = read_points(self.path, milliseconds()) if uri else []
        self._stream = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed by __exit__)
        self._live = LiveRun(uri, artifact, earlier) if uri else None

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        if self._live:
            stopped = isinstance(error, signals.Stopped | KeyboardInterrupt)
            self._live.end("KILLED" if stopped else "FAILED" if error else "FINISHED")

    def log(self, step: int, **metrics: float) -> None:
        """Record metrics at a step."""
        record = {"step": step, **metrics}
        self._stream.write(json.dumps(record) + "\n")
        self._stream.flush()
        if self._live:
            self._live.log(points_of(record, milliseconds()))
