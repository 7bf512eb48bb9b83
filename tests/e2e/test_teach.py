"""Data sets chosen by what they teach, from real and from written texts; and that dev has no part in any choice."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dilm import train as train_command
from dilm.artifacts.fingerprint import match_artifact, pretrain_artifact
from dilm.artifacts.shards import read_index, read_shards, shard_table
from dilm.config.schema import Config, TaskConfig
from dilm.core import signals
from dilm.core.errors import DataError
from dilm.core.hashing import derive_seed
from dilm.core.signals import Stopped
from dilm.data.corpus import load_corpus, load_split
from dilm.data.samplers import candidate_rows
from dilm.data.text_table import TextTable
from dilm.distributed.context import Context
from dilm.models.generator import load_generator
from dilm.models.likelihood import text_nll
from dilm.selection.select import credible_rows, scored_rows, taught_texts
from dilm.stages import generate

Compose = Callable[..., Config]
TEACH = ("generate.teach.scored=60", "generate.teach.words=8", "generate.teach.pool=200")
IMITATE = ("match.objective=teach", "match.taught_sets=2", "match.taught_dpc=3", "match.lm_batch=4")
TRAIN = ("pretrain.steps=60", "match.outer_steps=1", "match.inner_steps=2", "match.monitor_every=0")


def write(path: Path, rows: TextTable, labels: np.ndarray) -> None:
    lines = [f"{text}\t{label}" for (text,), label in zip(rows.texts, labels, strict=True)]
    path.write_text("\n".join(["sentence\tlabel", *lines]) + "\n")


def folder_of(path: Path, task: TaskConfig, cache: Path, shuffled: bool) -> Path:
    """The tiny task's rows as files, dev with its own labels or with others'."""
    path.mkdir()
    for split in ("train", "dev"):
        rows = load_split(task, split, cache)
        labels = rows.labels
        if shuffled and split == "dev":
            labels = np.random.default_rng(0).permutation(labels)
            assert (labels != rows.labels).any()
        write(path / f"{split}.tsv", rows, labels)
    return path


@pytest.mark.parametrize("method", ["random", "k_centers", "herding", "teach", "rank", "lm", "dilm", "imitation"])
def test_dev_labels_touch_no_data_set(tiny: Compose, tiny_cache: Path, tmp_path: Path, method: str) -> None:
    imitating = IMITATE if method == "imitation" else ()
    method = "dilm" if imitating else method
    chosen = []
    for shuffled in (False, True):
        folder = folder_of(tmp_path / f"rows-{shuffled}", tiny().task, tiny_cache, shuffled)
        keys = [f"task.path={folder}", "task.train=train.tsv", "task.dev=dev.tsv", "generate.selection=teach"]
        config = tiny(*keys, *TEACH, *TRAIN, *imitating, f"method={method}", f"root={tmp_path / f'runs-{shuffled}'}")
        if method in ("rank", "lm", "dilm"):
            train_command.run(config)
        made = generate.run(config)
        chosen.append({entry["file"]: (made.folder / entry["file"]).read_bytes() for entry in shards_of(made.folder)})
    assert chosen[0] and chosen[0] == chosen[1]


def shards_of(folder: Path) -> list[dict[str, str]]:
    found: list[dict[str, str]] = read_index(folder)["shards"]
    return found


def test_imitation_makes_what_teaches_likelier(tiny: Compose, tiny_cache: Path) -> None:
    config = tiny(*TEACH, *TRAIN, *IMITATE, "method=dilm", "match.inner_steps=20", "match.optimizer.lr=1e-3")
    train_command.run(config)
    corpus = load_corpus(config.task, config.data, tiny_cache)
    taught = taught_texts(Context(config))
    assert taught.labels.tolist() == ([0] * 3 + [1] * 3) * 2
    assert set(taught.texts) <= set(corpus.train.texts)
    nll = []
    for artifact in (pretrain_artifact, match_artifact):
        folder = artifact(config, corpus.content_hash).require()
        generator = load_generator(folder, config.generator, config.task)
        generator.model.eval()
        with torch.no_grad():
            nll.append(float(text_nll(generator, list(generator.encode(taught)), "fp32").mean()))
    assert nll[1] < nll[0] - 0.05


def test_every_data_set_has_its_own_texts_of_every_label(tiny: Compose) -> None:
    found = read_shards(generate.run(tiny("method=teach", "n_datasets=3", *TEACH)).folder)
    sets = [found.take(np.flatnonzero(found.dataset == number)) for number in range(3)]
    for own in sets:
        assert own.table.labels.tolist() == [0] * 4 + [1] * 4 and len(set(own.table.texts)) == 8
    assert len({tuple(own.table.texts) for own in sets}) == 3


def test_sets_are_scored_on_texts_that_are_no_candidates(tiny: Compose, tiny_cache: Path) -> None:
    config = tiny("method=teach", "generate.real_candidates=100", "generate.teach.pool=200")
    train = load_corpus(config.task, config.data, tiny_cache).train
    rows = candidate_rows(train, 100, derive_seed("any"))
    candidates = shard_table(train.take(rows))
    scored = scored_rows(config, candidates, train)
    texts = set(candidates.table.texts)
    others = sum(text not in texts for text in train.texts)
    assert len(set(scored)) == len(scored) == 200
    assert sum(train.texts[row] not in texts for row in scored) == min(others, 200)


def test_a_stopped_choice_goes_on_from_the_sets_that_it_has(tiny: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ("method=teach", "n_datasets=3", *TEACH)
    whole = read_shards(generate.run(tiny(*keys, f"root={tiny().root}-whole")).folder)
    calls = 0

    def stop() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Stopped(again=False)

    config = tiny(*keys)
    monkeypatch.setattr(signals, "check_stop", stop)
    with pytest.raises(Stopped):
        generate.run(config)
    monkeypatch.undo()
    kept = sorted(path.name for path in Path(config.root).glob("tiny/teach-*.state/set-*"))
    assert kept == ["set-000000", "set-000001"]
    again = read_shards(generate.run(config).folder)
    assert again.table.texts == whole.table.texts and not list(Path(config.root).glob("tiny/*.state"))


def test_a_teacher_of_all_training_texts_doubts_wrong_labels(tiny: Compose, tiny_cache: Path) -> None:
    config = tiny("generate.teacher_filter=0.05")
    corpus = load_corpus(config.task, config.data, tiny_cache)
    rows = corpus.valid
    wrong = np.arange(len(rows)) % 4 == 0
    mixed = TextTable(rows.fields, rows.texts, np.where(wrong, 1 - rows.labels, rows.labels))
    kept = credible_rows(Context(config), mixed)
    right = np.flatnonzero(~wrong)
    assert len(np.intersect1d(kept, right)) >= 0.9 * len(right)
    assert wrong[kept].mean() < 0.7 * wrong.mean()


def test_filtered_texts_make_other_data_sets(tiny: Compose) -> None:
    keys = ("method=lm", *TRAIN)
    train_command.run(tiny(*keys))
    plain, filtered = (generate.run(tiny(*keys, f"generate.teacher_filter={share}")) for share in (0, 0.3))
    assert plain != filtered
    assert read_index(filtered.folder)["about"]["candidates"] < read_index(plain.folder)["about"]["candidates"]


def test_too_few_texts_of_a_label_are_named(tiny: Compose) -> None:
    with pytest.raises(DataError, match="dpc=100000, but label"):
        generate.run(tiny("method=teach", "dpc=100000", *TEACH))
