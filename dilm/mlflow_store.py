"""Bringing finished runs and cells into an MLflow store: the one writer, so that jobs never share a database."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dilm.files import read_json
from dilm.results import Row, read_rows
from dilm.tracking import finished_metrics

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "dilm"
BATCH = 1_000  # metrics that MLflow takes at once
PAGE = 1_000  # runs that it gives at once
LONGEST_PARAM = 500


def bring_in(root: Path, uri: str) -> str:
    """Create an MLflow run for every trained artifact and every done cell that the store lacks; says how many.

    A run is known by its tag `dilm.key`, so bringing in the same root again adds nothing.
    """
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = client.get_experiment_by_name(EXPERIMENT)
    experiment = found.experiment_id if found else client.create_experiment(EXPERIMENT)
    known = _known_keys(client, experiment)
    runs = cells = 0
    for metrics in finished_metrics(root):
        provenance = read_json(metrics.parent / "provenance.json")
        if provenance["key"] not in known:
            _add_artifact(client, experiment, metrics, provenance)
            runs += 1
    for row in read_rows(root):
        if row.status == "done" and row.key not in known:
            _add_cell(client, experiment, row)
            cells += 1
    return f"MLflow at {uri}: {runs} runs and {cells} cells added, {len(known)} known before"


def _known_keys(client: "MlflowClient", experiment: str) -> set[str]:
    """Keys of complete runs. One that was cut short is deleted, to be added again."""
    known, cut_short, token = set(), [], None
    while True:
        page = client.search_runs([experiment], max_results=PAGE, page_token=token)
        for run in page:
            if run.info.status == "FINISHED":
                known.add(run.data.tags.get("dilm.key", ""))
            elif run.data.tags.get("dilm.writer") == "collect":
                cut_short.append(run.info.run_id)
        if not (token := page.token):
            break
    for run_id in cut_short:  # at the end, since a deletion shifts the pages behind it
        client.delete_run(run_id)
    return known


def _add_artifact(client: "MlflowClient", experiment: str, metrics: Path, provenance: dict[str, Any]) -> None:
    folder = metrics.parent
    stage = str(provenance["science"]["stage"])
    tags = {"dilm.key": provenance["key"], "dilm.writer": "collect", "stage": stage, "task": folder.parent.name}
    run = client.create_run(experiment, tags=tags, run_name=f"{folder.parent.name}/{folder.name}").info.run_id
    for name, value in sorted(_flat(provenance["science"])):
        client.log_param(run, name, str(value)[:LONGEST_PARAM])
    points = []
    for line in metrics.read_text().splitlines():
        values = json.loads(line)
        step = values.pop("step")
        points += [_metric(name, value, step) for name, value in values.items()]
    for start in range(0, len(points), BATCH):
        client.log_batch(run, metrics=points[start : start + BATCH])
    client.set_terminated(run)


def _add_cell(client: "MlflowClient", experiment: str, row: Row) -> None:
    name = f"{row.task}/{row.method}-dpc{row.dpc}/{row.model}-{row.evaluator}/{row.dataset}-{row.seed}"
    tags = {"dilm.key": row.key, "dilm.writer": "collect", "stage": "evaluate", "task": row.task}
    run = client.create_run(experiment, tags=tags, run_name=name).info.run_id
    parts = ("method", "dpc", "dataset", "seed", "evaluator", "model", "source_key", "protocol", "pool")
    for part in parts:
        client.log_param(run, part, getattr(row, part))
    client.log_batch(run, metrics=[_metric(name, value, 0) for name, value in row.metrics.items()])
    client.log_metric(run, "value", row.value if row.value is not None else float("nan"))
    client.set_terminated(run)


def _metric(name: str, value: float, step: int) -> Any:
    from mlflow.entities import Metric

    return Metric(name, value, 0, step)


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
