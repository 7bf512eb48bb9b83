"""Files of labelled texts: what is read from them, and what is refused with file and line."""

import csv
import gzip
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dilm.config import TaskConfig
from dilm.errors import DataError
from dilm.tables import read_table
from dilm.text import fold_space

reproducible = settings(max_examples=100, deadline=None, derandomize=True)

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


@pytest.mark.parametrize("name", ["rows.tsv", "rows.tsv.gz"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_rows_are_read_from_plain_and_compressed_files(tmp_path: Path, name: str, end: str) -> None:
    path = write_rows(tmp_path / name, TWO, [("it rains .", "it's wet", "0"), ("é 😀", "ß", "2")], end)
    rows = read_table(path, TWO)
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
    found = read_table(path, TWO)
    assert found.texts == [row[:2] for row in rows]
    assert found.labels.tolist() == [row[2] for row in rows]


@pytest.mark.parametrize("text", ['"quoted', 'say "so"', '""', "it's", "a\\tb", "NA", "#", " led by a blank"])
def test_no_character_quotes_or_escapes(tmp_path: Path, text: str) -> None:
    path = write_rows(tmp_path / "rows.tsv", ONE, [(text, "1"), ("plain", "0")])
    assert read_table(path, ONE).texts == [(text,), ("plain",)]


def test_the_last_line_need_not_end(tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_bytes(b"sentence\tlabel\na\t1\nb\t0")
    assert read_table(tmp_path / "rows.tsv", ONE).texts == [("a",), ("b",)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"line 1: the header has no 'sentence', but an empty file; the task's columns are sentence, label"),
        (b"text\tlabel\na\t0\n", r"line 1: the header has no 'sentence', but text, label; the task's columns"),
        (b"sentence\ttarget\n0\ta\n", r"line 1: the header has no 'label', but sentence, target; .*task.label"),
        (b"a good film\t1\n", r"line 1: the header has no 'sentence', but a good film, 1; the task's"),
        (b"sentence\tlabel\na\t0\nb\n", r"line 3: 1 tab-separated values; there must be 2"),
        (b"sentence\tlabel\na\tb\t0\n", r"line 2: 3 tab-separated values; there must be 2"),
        (b"sentence\tlabel\na\t0\n\nb\t1\n", r"line 3: 1 tab-separated values; there must be 2"),
        (b"sentence\tlabel\na\tmaybe\n", r"line 2: label 'maybe'; it must be 0 to 1 \(no, yes\)"),
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
        read_table(path, ONE)
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
        read_table(tmp_path / "rows.tsv.gz", ONE)


@pytest.mark.parametrize("name", ["rows.tsv", "rows.tsv.gz"])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"{name}: can't be read"):
        read_table(tmp_path / name, ONE)


def test_columns_are_found_by_name_and_labels_by_theirs(tmp_path: Path) -> None:
    task = TaskConfig(name="one", fields=["text"], labels=["no", "yes"], label="target")
    (tmp_path / "a.tsv").write_text("id\ttarget\ttext\n7\tyes\ta b\n8\t0\tc\n")
    (tmp_path / "a.csv").write_text('id,target,text\n7,yes,"a\n b"\n\n8,0,c\n')
    (tmp_path / "a.jsonl").write_text('{"id": 7, "target": "yes", "text": " a\\nb"}\n\n{"target": 0, "text": "c"}\n')
    for name in ("a.tsv", "a.csv", "a.jsonl"):
        rows = read_table(tmp_path / name, task)
        assert (rows.texts, rows.labels.tolist()) == ([("a b",), ("c",)], [1, 0])


@reproducible
@given(
    st.lists(st.tuples(texts, texts, st.integers(0, 2)), max_size=8), st.sampled_from(["csv", "jsonl"]), st.booleans()
)
def test_csv_and_json_lines_give_back_what_was_written(
    folder: Path, rows: list[tuple[str, str, int]], form: str, compress: bool
) -> None:
    stream = io.StringIO(newline="")
    if form == "csv":
        csv.writer(stream).writerows([[*TWO.fields, "label"], *rows])
    else:
        lines = [json.dumps(dict(zip([*TWO.fields, "label"], row, strict=True))) for row in rows]
        stream.write("".join(f"{line}\n" for line in lines))
    path = folder / f"rows.{form}{'.gz' * compress}"
    content = stream.getvalue().encode()
    path.write_bytes(gzip.compress(content) if compress else content)
    found = read_table(path, TWO)
    assert found.texts == [(fold_space(first), fold_space(second)) for first, second, _ in rows]
    assert found.labels.tolist() == [label for *_, label in rows]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", r"line 1: the header has no 'sentence', but an empty file"),
        ("a.csv", 'sentence,label\n"a\nb",0\nc\n', r"line 4: 1 comma-separated values; there must be 2"),
        ("a.csv", 'sentence,label\n"a\nb",2\n', r"line 2: label '2'; it must be 0 to 1 \(no, yes\), or one of these"),
        ("a.csv", 'sentence,label\n"a"b,1\n', r"line 2: not valid CSV"),
        ("a.csv", 'sentence,label\n"a,1\n', r"line 2: not valid CSV"),
        ("a.csv", "sentence,label\n  ,1\n", r"line 2: field 'sentence' is empty"),
        ("a.jsonl", '{"sentence": "a", "label": 1}\n{"sentence"', r"line 2: not valid JSON .* column 12"),
        ("a.jsonl", '["a", 1]\n', r"line 1: '\[\"a\", 1\]' is no JSON object"),
        ("a.jsonl", '{"sentense": "a", "label": 1}\n', r"line 1: no 'sentence'\. Did you mean 'sentense'"),
        ("a.jsonl", '{"sentence": 7, "label": 1}\n', r"line 1: field 'sentence' is 7; it must be a text"),
        ("a.jsonl", '{"sentence": "a", "label": "maybe"}\n', r"line 1: label 'maybe'; it must be 0 to 1"),
        ("a.jsonl", '{"sentence": "a", "label": true}\n', r"line 1: label True; it must be 0 to 1"),
        ("a.txt", "", r": a file's name must end in .tsv, .csv, .jsonl, or one of these and .gz"),
    ],
)
def test_what_is_no_row_is_told_with_file_and_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=rf"{name}(, )?{message}") as caught:
        read_table(tmp_path / name, ONE)
    assert "\n" not in str(caught.value)
