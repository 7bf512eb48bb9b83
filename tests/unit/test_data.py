"""Tables of texts: where they are found, what is refused with file and line, and how they are cut."""

import gzip
import io
import shutil
import socket
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dilm import data
from dilm.compose import load_task
from dilm.config import DataConfig, TaskConfig
from dilm.data import (
    SHARED_DATA,
    TextTable,
    find_place,
    load_corpus,
    load_split,
    read_tsv,
    split_hash,
    stratified_rows,
    table,
)
from dilm.errors import DataError, SourceError

reproducible = settings(max_examples=100, deadline=None, derandomize=True)

HUB_REACHABLE = data.hub_reachable

ONE = TaskConfig(name="one", fields=["sentence"], labels=["no", "yes"], folder="ONE")
TWO = TaskConfig(name="two", fields=["premise", "hypothesis"], labels=["a", "b", "c"])

# A text may hold anything but a tab, a line break, and the control characters that no data set keeps.
characters = st.characters(exclude_categories=["Cc", "Cs"])
texts = st.text(characters, min_size=1, max_size=12).filter(str.strip)


def write_rows(path: Path, task: TaskConfig, rows: list[tuple[str, ...]], end: str = "\n") -> Path:
    lines = ["\t".join([*task.fields, "label"]), *("\t".join(row) for row in rows)]
    content = "".join(line + end for line in lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


# Reading


@pytest.mark.parametrize("name", ["rows.tsv", "rows.tsv.gz"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_rows_are_read_from_plain_and_compressed_files(tmp_path: Path, name: str, end: str) -> None:
    path = write_rows(tmp_path / name, TWO, [("it rains .", "it's wet", "0"), ("é 😀", "ß", "2")], end)
    rows = read_tsv(path, TWO)
    assert rows.fields == ("premise", "hypothesis")
    assert rows.texts == [("it rains .", "it's wet"), ("é 😀", "ß")]
    assert rows.labels.tolist() == [0, 2]
    assert rows.labels.dtype == np.int64
    assert len(rows) == 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


@reproducible
@given(st.lists(st.tuples(texts, texts, st.integers(0, 2)), max_size=8), st.sampled_from(["rows.tsv", "rows.tsv.gz"]))
def test_any_text_is_read_as_it_is(folder: Path, rows: list[tuple[str, str, int]], name: str) -> None:
    path = write_rows(folder / name, TWO, [(first, second, str(label)) for first, second, label in rows])
    found = read_tsv(path, TWO)
    assert found.texts == [row[:2] for row in rows]
    assert found.labels.tolist() == [row[2] for row in rows]


@pytest.mark.parametrize("text", ['"quoted', 'say "so"', '""', "it's", "a\\tb", "NA", "#", " led by a blank"])
def test_no_character_quotes_or_escapes(tmp_path: Path, text: str) -> None:
    path = write_rows(tmp_path / "rows.tsv", ONE, [(text, "1"), ("plain", "0")])
    assert read_tsv(path, ONE).texts == [(text,), ("plain",)]


def test_the_last_line_need_not_end(tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_bytes(b"sentence\tlabel\na\t1\nb\t0")
    assert read_tsv(tmp_path / "rows.tsv", ONE).texts == [("a",), ("b",)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"line 1: the header is 'an empty file'; it must be 'sentence\\tlabel'"),
        (b"text\tlabel\na\t0\n", r"line 1: the header is 'text\\tlabel'"),
        (b"label\tsentence\n0\ta\n", r"line 1: the header is 'label\\tsentence'"),
        (b"a good film\t1\n", r"line 1: the header is 'a good film\\t1'"),
        (b"sentence\tlabel\na\t0\nb\n", r"line 3: 1 tab-separated values; there must be 2"),
        (b"sentence\tlabel\na\tb\t0\n", r"line 2: 3 tab-separated values; there must be 2"),
        (b"sentence\tlabel\na\t0\n\nb\t1\n", r"line 3: 1 tab-separated values; there must be 2"),
        (b"sentence\tlabel\na\tyes\n", r"line 2: label 'yes'; it must be 0 to 1 \(no, yes\)"),
        (b"sentence\tlabel\na\t2\n", r"line 2: label '2'; it must be 0 to 1"),
        (b"sentence\tlabel\na\t-1\n", r"line 2: label '-1'; it must be 0 to 1"),
        (b"sentence\tlabel\na\t1.0\n", r"line 2: label '1.0'; it must be 0 to 1"),
        (b"sentence\tlabel\na\t\n", r"line 2: label ''; it must be 0 to 1"),
        (b"sentence\tlabel\na\t0\n\t1\n", r"line 3: field 'sentence' is empty; remove the row"),
        (b"sentence\tlabel\n  \t1\n", r"line 2: field 'sentence' is empty; remove the row"),
        (b"sentence\tlabel\na\t0\nb\xff\t1\n", r"line 3: not valid UTF-8 \(invalid start byte at byte 1\)"),
    ],
)
@pytest.mark.parametrize("name", ["rows.tsv", "rows.tsv.gz"])
def test_a_bad_row_is_told_with_file_and_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    with pytest.raises(DataError, match=rf"{name}, {message}") as caught:
        read_tsv(path, ONE)
    assert "\n" not in str(caught.value)


def compressed() -> bytes:
    numbers = np.random.default_rng(0).integers(0, 10**9, 500)
    return gzip.compress(b"sentence\tlabel\n" + b"".join(b"row %d\t1\n" % number for number in numbers))


@pytest.mark.parametrize(
    "content",
    [
        compressed()[:-100],
        compressed()[:5],
        compressed()[:200] + bytes([compressed()[200] ^ 0xFF]) + compressed()[201:],
        compressed()[:-8] + b"\0" * 8,
        b"sentence\tlabel\nnot compressed at all\t1\n",
    ],
    ids=["truncated", "truncated in its head", "altered", "of a wrong checksum", "not compressed"],
)
def test_a_broken_gz_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rows.tsv.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"rows\.tsv\.gz: can't be read \(.*Fetch the file again"):
        read_tsv(tmp_path / "rows.tsv.gz", ONE)


@pytest.mark.parametrize("name", ["rows.tsv", "rows.tsv.gz"])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"{name}: can't be read"):
        read_tsv(tmp_path / name, ONE)


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
    monkeypatch.setattr(data, "SHARED_DATA", tmp_path / "shared" / "data")
    monkeypatch.setattr(data, "hub_reachable", lambda: False)
    monkeypatch.delenv("DILM_DATA", raising=False)
    return tmp_path


def place_of(task: TaskConfig) -> tuple[str, str] | None:
    place = find_place(task, Path("none"))
    return None if place is None else (place.kind, place.where)


def test_the_places_are_tried_in_order(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = TaskConfig(**{**vars(ONE), "hub": "someone/rows@1", "package": "rows==1", "built": "tiny"})
    monkeypatch.setattr(data, "hub_reachable", lambda: True)
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
    monkeypatch.setattr(data, "hub_reachable", lambda: False)
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
        monkeypatch.setattr(data, "hub_reachable", HUB_REACHABLE)
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

    monkeypatch.setattr(data, "hub_reachable", lambda: True)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=refuse))
    task = TaskConfig(**{**vars(ONE), "hub": "someone/rows@1"})
    with pytest.raises(SourceError, match=r"task 'one': someone/rows@1 can't be loaded from the hub") as caught:
        load_split(task, "train", nowhere)
    assert "\n" not in str(caught.value)


def test_rows_of_the_hub_are_folded_and_pinned(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def load(identity: str, config: str, *, split: str, revision: str) -> dict[str, list[object]]:
        asked.append((identity, config, split, revision))
        return {"premise": ["a\n b", "c", "d"], "hypothesis": ["e", " f", "g"], "label": [2, 0, 1]}

    monkeypatch.setattr(data, "hub_reachable", lambda: True)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))
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
    files = {"rows-1/about.txt": b"-", f"rows-1/{data.MOVIE_SNIPPETS}": SNIPPETS}
    content = packed({"rows-1/more.tar.gz": packed(files)} if nested else files)
    (nowhere / "rows-1.tar.gz").write_bytes(content)
    monkeypatch.setattr(data, "fetch_package", lambda *arguments, **named: nowhere / "rows-1.tar.gz")
    monkeypatch.setattr(data, "MOVIE_DEV_ROWS", 2)
    parts = [data._package_rows(MOVIE, split, nowhere) for split in ("train", "dev")]
    assert [len(part) for part in parts] == [2, 2]
    found = {text[0]: int(label) for part in parts for text, label in zip(part.texts, part.labels, strict=True)}
    assert found == {"good one": 1, "bad one": 0, "good two": 1, "bad two": 0}


def test_a_package_without_the_rows_is_named(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (nowhere / "rows-1.tar.gz").write_bytes(packed({"rows-1/about.txt": b"-"}))
    monkeypatch.setattr(data, "fetch_package", lambda *arguments, **named: nowhere / "rows-1.tar.gz")
    with pytest.raises(SourceError, match=r"rows-1\.tar\.gz: no movieReviewSnippets"):
        load_split(MOVIE, "train", nowhere)


# Content


def test_the_content_hash_is_of_the_rows_not_of_the_file(tmp_path: Path) -> None:
    rows = [("a b", "1"), ('"c', "0")]
    plain = read_tsv(write_rows(tmp_path / "rows.tsv", ONE, rows), ONE)
    other = read_tsv(write_rows(tmp_path / "other.tsv.gz", ONE, rows, "\r\n"), ONE)
    assert plain.content_hash == other.content_hash == table(["sentence"], [("a b",), ('"c',)], [1, 0]).content_hash


small_tables = st.lists(st.tuples(texts, texts, st.integers(0, 2)), max_size=4)


@reproducible
@given(small_tables, small_tables)
def test_content_hashes_are_equal_just_where_the_rows_are(
    first: list[tuple[str, str, int]], second: list[tuple[str, str, int]]
) -> None:
    hashes = [
        table(["premise", "hypothesis"], [row[:2] for row in rows], [row[2] for row in rows]).content_hash
        for rows in (first, second)
    ]
    assert (hashes[0] == hashes[1]) == (first == second)


BASE = (["premise", "hypothesis"], [("a", "bc"), ("d", "e")], [0, 1])


@pytest.mark.parametrize(
    "changed",
    [
        (["premise", "claim"], BASE[1], BASE[2]),
        (BASE[0], [("ab", "c"), ("d", "e")], BASE[2]),
        (BASE[0], [("d", "e"), ("a", "bc")], BASE[2]),
        (BASE[0], [("a", "bc"), ("d", "e ")], BASE[2]),
        (BASE[0], BASE[1], [1, 0]),
        (BASE[0], BASE[1], [0, 2]),
        (BASE[0], BASE[1][:1], BASE[2][:1]),
        (BASE[0], [*BASE[1], ("d", "e")], [*BASE[2], 1]),
    ],
)
def test_any_change_changes_the_content_hash(changed: tuple[list[str], list[tuple[str, ...]], list[int]]) -> None:
    assert table(*changed).content_hash != table(*BASE).content_hash


# One index by label, and cuts


def labelled(labels: list[int]) -> TextTable:
    return table(["sentence"], [(f"text {row}",) for row in range(len(labels))], labels)


@reproducible
@given(st.lists(st.integers(0, 5), max_size=40))
def test_rows_by_label_against_a_search_of_every_row(labels: list[int]) -> None:
    found = {label: rows.tolist() for label, rows in labelled(labels).rows_by_label.items()}
    assert found == {label: [row for row, other in enumerate(labels) if other == label] for label in set(labels)}


@reproducible
@given(st.lists(st.integers(0, 2), min_size=1, max_size=10), st.data())
def test_take_gives_the_rows_in_the_order_asked_for(labels: list[int], draw: st.DataObject) -> None:
    rows = draw.draw(st.lists(st.integers(0, len(labels) - 1), max_size=12))
    taken = labelled(labels).take(rows)
    assert taken.texts == [(f"text {row}",) for row in rows]
    assert taken.labels.tolist() == [labels[row] for row in rows]
    assert taken.fields == ("sentence",)


def test_a_table_taken_from_has_its_own_index_and_hash() -> None:
    whole = labelled([0, 1, 0])
    assert whole.rows_by_label[0].tolist() == [0, 2]
    part = whole.take(np.array([2, 1]))
    assert part.rows_by_label[0].tolist() == [0]
    assert part.content_hash != whole.content_hash


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


# The real data


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the data folder is not there")
@pytest.mark.parametrize(
    ("name", "n_train", "n_dev", "counts"),
    [
        ("sst2", 67_349, 872, [29_780, 37_569]),
        ("mnli", 28_635, 9_815, [9_640, 9_511, 9_484]),
        ("qqp", 49_088, 7_598, [26_173, 22_915]),
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
    monkeypatch.setattr(data, "SHARED_DATA", tmp_path / "none")
    monkeypatch.setattr(data, "hub_reachable", lambda: True)
    first = [load_split(task, split, cache) for split in ("train", "dev")]
    assert first[0].texts == [("a film",), ("bad, and long",)] and first[0].labels.tolist() == [1, 0]
    shutil.rmtree(source)
    monkeypatch.setattr(data, "hub_reachable", lambda: False)
    again = [load_split(task, split, cache) for split in ("train", "dev")]
    assert [rows.content_hash for rows in again] == [rows.content_hash for rows in first]


def test_a_files_hash_is_remembered_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, cache = tmp_path / "train.tsv", tmp_path / "cache"
    file.write_text("sentence\tlabel\ngood\t1\nbad\t0\n")
    task = TaskConfig(name="t", fields=["sentence"], labels=["a", "b"], path=str(tmp_path))
    first = split_hash(task, "train", cache)
    assert first == load_split(task, "train", cache).content_hash
    with monkeypatch.context() as patched:
        patched.setattr(data, "load_split", None)  # not read again
        assert split_hash(task, "train", cache) == first
    file.write_text("sentence\tlabel\nbest\t1\nbad\t0\n")
    assert split_hash(task, "train", cache) != first
