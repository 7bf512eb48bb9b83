"""A task of one's own: one YAML file's keys, and rows in CSV or JSON lines."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dilm.config.schema import Config
from dilm.core.errors import DataError
from dilm.stages import evaluate, generate

LABELS = ["billing", "delivery", "other"]
WORDS = ["the invoice is wrong", "the parcel is late", "a question about shops"]


def write(path: Path, n: int) -> None:
    """Rows whose columns have names of their own, and labels by name."""
    rows = [{"id": i, "text": f"{WORDS[i % 3]}, case {i}", "team": LABELS[i % 3]} for i in range(n)]
    with open(path, "w", newline="") as stream:
        if path.suffix == ".jsonl":
            stream.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(stream, ["id", "text", "team"])
            writer.writeheader()
            writer.writerows(rows)


def keys(folder: Path, form: str) -> list[str]:
    task = {
        "name": "complaints", "path": folder, "train": f"train.{form}", "dev": f"dev.{form}", "fields": "[text]",
        "label": "team", "labels": f"[{','.join(LABELS)}]", "metric": "macro_f1",
    }  # fmt: skip
    return ["method=random", "evaluator=words", *(f"task.{name}={value}" for name, value in task.items())]


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_task_of_ones_own_goes_all_the_way(tiny: Callable[..., Config], tmp_path: Path, form: str) -> None:
    write(tmp_path / f"train.{form}", 300)
    write(tmp_path / f"dev.{form}", 60)
    config = tiny(*keys(tmp_path, form))
    assert generate.run(config).folder.parent.name == "complaints"
    outcome = evaluate.run(config)
    assert outcome.title == "complaints random dpc 4, words (words)"
    assert len(outcome.values) == 4 and min(outcome.values) > 90


def test_a_row_that_is_wrong_is_named(tiny: Callable[..., Config], tmp_path: Path) -> None:
    write(tmp_path / "train.csv", 30)
    with open(tmp_path / "train.csv", "a") as stream:
        stream.write("31,what is this,sales\n")
    with pytest.raises(DataError, match=r"train\.csv, line 32: label 'sales'; it must be 0 to 2, or one of billing"):
        generate.run(tiny(*keys(tmp_path, "csv"), "data.valid_rows=3"))
