"""Where the time of a study went, and what its data sets have cost."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from reports import DILM, RANDOM, ROW, cells, frame

from dilm.core.io import TEMPORARY, write_json
from dilm.report.health import artifacts_below, costs_of, health_of
from dilm.report.summary import make_tables
from dilm.scheduler.records import DONE, Job, record_file


def put_artifact(root: Path, name: str, key: str, seconds: float | None, parent: str = "", **more: Any) -> None:
    science = {"stage": name.partition("-")[0], **({"parent": parent} if parent else {})}
    told = {} if seconds is None else {"seconds": seconds}
    write_json(root / "toy" / f"{name}-{key}" / "provenance.json", {"key": key, "science": science, **told, **more})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A generator that took an hour on two GPUs, a pool of candidates from it, and two sizes of data sets."""
    job = Job("slurm-7", DONE, (), gpus=2)
    write_json(record_file(tmp_path, "slurm-7"), {**vars(job), "calls": [], "attempts": [], "after": []})
    put_artifact(tmp_path, "match-dilm", "g", 3600.0, job="slurm-7")
    put_artifact(tmp_path, "candidates-dilm", "c", 1800.0, "g", job="gone")
    put_artifact(tmp_path, "dataset-dilm", "dilm5", 36.0, "c")
    put_artifact(tmp_path, "dataset-random", "random5", 36.0)
    put_artifact(tmp_path, "dataset-old", "old5", None, "c")
    put_artifact(tmp_path, f"match-dilm-h{TEMPORARY}x", "h", 9e9)
    return tmp_path


def test_artifacts_are_known_with_what_they_took(root: Path) -> None:
    made = artifacts_below(root)
    assert set(made) == {"g", "c", "dilm5", "random5", "old5"}
    assert (made["g"].stage, made["g"].gpus, made["g"].seconds) == ("match", 2, 3600.0)
    assert made["c"].parents == ("g",) and made["c"].gpus == 0


def test_hours_are_added_up_by_stage(root: Path) -> None:
    rows = [replace(row, seconds=600.0) for row in cells("dilm", DILM)]
    failed = [
        replace(ROW, status="failed", value=None, error="why", time="2"),
        replace(ROW, status="failed", error="old", time="1"),
    ]
    found = health_of(frame(rows + failed), 4, artifacts_below(root))
    assert (found.done, found.failed, found.missing, found.newest) == (6, 2, 4, "2")
    hours = {stage: (spent, gpu) for stage, _, spent, gpu in found.hours}
    assert hours["match"] == (1.0, 2.0) and hours["candidates"] == (0.5, 0.0)
    assert hours["dataset"] == (pytest.approx(0.02), 0.0), "what is not known is not counted"
    assert hours["evaluate"] == (pytest.approx(1.0), 0.0)
    assert [failure["error"] for failure in found.failures] == ["why", "old"], "the newest first"


def test_a_data_set_costs_all_that_it_was_made_from(root: Path) -> None:
    rows = frame(cells("dilm", DILM) + cells("random", RANDOM) + cells("lm", RANDOM, source="old5"))
    costs = costs_of(make_tables(rows), rows, artifacts_below(root))
    hours = dict(zip(costs["method"], costs["hours"], strict=True))
    assert hours == {"dilm": pytest.approx(2 + 0.5 + 0.01), "random": pytest.approx(0.01)}, "lm's is not known"
    assert dict(zip(costs["method"], costs["device"], strict=True)) == {"dilm": "GPU", "random": "processor"}


def test_without_artifacts_nothing_is_known() -> None:
    rows = frame(cells("dilm", DILM))
    assert costs_of(make_tables(rows), rows, {}).empty
    assert health_of(rows, 0, {}).hours == []
