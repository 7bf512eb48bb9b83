"""Audits of data sets whose copies, wrong labels and repeats are known."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dilm.artifacts.shards import inspected
from dilm.audit import run as audit_command
from dilm.config.schema import Config
from dilm.core.errors import ConfigError, ShardError
from dilm.core.io import read_json, write_json
from dilm.data.corpus import load_corpus, load_split
from dilm.hub.pretrained import cache_folder
from dilm.stages import audit, generate

Compose = Callable[..., Config]
NEW = ["zebras quietly adore algebra", "seven purple submarines hum"]


@pytest.fixture
def copied(tiny: Compose, tmp_path: Path) -> Config:
    """A data set of two training texts (one spelt otherwise, one with the other label), a dev text and two new ones."""
    config = tiny()
    corpus = load_corpus(config.task, config.data, cache_folder(config.cache))
    dev = load_split(config.task, "dev", cache_folder(config.cache))
    (first,), (second,) = corpus.train.texts[0], corpus.valid.texts[0]
    label, other = int(corpus.train.labels[0]), 1 - int(corpus.valid.labels[0])
    rows = [(first + " ...", label), (second, other), (dev.texts[0][0], int(dev.labels[0]))]
    rows += [(text, number % 2) for number, text in enumerate(NEW)]
    folder = tmp_path / "theirs"
    folder.mkdir()
    lines = [json.dumps({"sentence": text, "labels": number}) + "\n" for text, number in [*rows, rows[0]]]
    (folder / "one.jsonl").write_text("".join(lines))
    made = generate.run(tiny("method=published", f"published.path={folder}", "published.name=theirs", "dpc=3"))
    return tiny(f"shard={made.folder}", "learner.freeze_encoder=true")


def found_by(config: Config) -> dict[str, Any]:
    found: dict[str, Any] = read_json(audit.run(config).folder / audit.REPORT)
    return found


def test_copies_repeats_and_neighbours_are_told(copied: Config) -> None:
    found = found_by(copied)
    assert found["shard"]["rows"] == 6 and found["shard"]["distinct"] == 5
    assert (found["copies"]["train"], found["copies"]["dev"]) == (2, 1)
    assert found["near_duplicates"]["texts"] >= 2
    texts = found["texts"]
    assert "copy of a training text" in texts[0]["flags"] and texts[0]["rows"] == 2
    assert "copy of a training text" in texts[1]["flags"], "held-out rows are training texts too"
    assert "copy of a dev text" in texts[2]["flags"]
    assert texts[1]["span_of"] == texts[1]["text"] and texts[1]["span"] == len(texts[1]["text"][0].split())
    assert texts[3]["span"] <= 1 and not any("copy" in flag or "row" in flag for flag in texts[3]["flags"])
    assert texts[0]["similarity"] == pytest.approx(1, abs=0.05) and len(texts[0]["nearest"]) == 1
    assert found["diversity"]["mean"]["duplicates"] == 1
    assert found["vocabulary"]["texts"]["unseen_words"] > found["vocabulary"]["control"]["unseen_words"]
    assert found["flagged"] == sum(bool(text["flags"]) for text in texts)


def test_shorter_spans_are_flagged_where_asked(copied: Config) -> None:
    copied.audit.span = 3
    assert found_by(copied)["spans"]["texts"] >= 3


def test_a_teacher_that_has_learnt_tells_wrong_labels(copied: Config) -> None:
    """The tiny task's words tell its labels; the head needs more than the three epochs of a fine-tuned learner."""
    copied.evaluate.full.epochs = 20
    copied.evaluate.head_lr = 0.1
    found = found_by(copied)
    assert found["labels"]["control"] > 75
    flags = found["texts"][1]["flags"]
    assert any(flag.startswith("the teacher takes it for") for flag in flags)
    assert not any(flag.startswith("the teacher") for flag in found["texts"][0]["flags"])


def test_an_audit_is_made_once_and_told_in_lines(copied: Config, capsys: pytest.CaptureFixture[str]) -> None:
    audit_command(copied)
    said = capsys.readouterr().out
    assert "copies of training texts" in said and "audit.json" in said
    before = audit.run(copied).folder.stat().st_mtime_ns
    assert "found" in capsys.readouterr().out
    assert audit.run(copied).folder.stat().st_mtime_ns == before
    copied.audit.listed = 1
    audit_command(copied)
    assert "more (audit.listed)" in capsys.readouterr().out, "what is printed makes no other audit"


def test_neighbours_may_be_sought_among_a_sample(copied: Config) -> None:
    copied.audit.embedded_rows = 50
    assert found_by(copied)["neighbours"]["among"] == 50


def test_the_training_set_itself_is_refused(tiny: Compose) -> None:
    made = generate.run(tiny("method=full"))
    with pytest.raises(ConfigError, match="is the training set itself"):
        audit.run(tiny(f"shard={made.folder}"))


def test_what_is_no_folder_of_shards_is_one_line(tiny: Compose, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="shard is not set"):
        inspected(tiny())
    with pytest.raises(ConfigError, match="there is no such folder"):
        inspected(tiny("shard=nowhere"))
    with pytest.raises(ShardError, match="is missing"):
        inspected(tiny(f"shard={tmp_path}"))


def test_shards_of_another_version_are_one_line(copied: Config) -> None:
    index = Path(str(copied.shard)) / "index.json"
    content = read_json(index)
    assert inspected(copied).name == "theirs-dpc3" and inspected(copied).task.name == "tiny"
    write_json(index, content | {"about": {"config": content["about"]["config"] | {"task": {"gone": 1}}}})
    with pytest.raises(ShardError, match="of another version"):
        inspected(copied)
    write_json(index, content | {"about": {}})
    with pytest.raises(ShardError, match="does not say how"):
        inspected(copied)
