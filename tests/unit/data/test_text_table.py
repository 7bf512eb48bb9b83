"""Tables of labelled texts: reading TSV, CSV and JSON lines, what is refused with file and line, index and hash."""

import csv
import gzip
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rowfiles import ONE, TWO, labelled, write, write_rows

from dilm.config.schema import TaskConfig
from dilm.core.errors import DataError
from dilm.data.templates import fold_space
from dilm.data.text_table import read_table, table

reproducible = settings(max_examples=100, deadline=None, derandomize=True)

# A text may hold anything but a tab, a line break, and the control characters that no data set keeps.
characters = st.characters(exclude_categories=["Cc", "Cs"])
texts = st.text(characters, min_size=1, max_size=12).filter(str.strip)


# TSV


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
        (b"", r"line 1: an empty file has no column 'sentence'"),
        (b"text\tlabel\na\t0\n", r"line 1: the header 'text\\tlabel' has no column 'sentence'.* have sentence, label"),
        (b"sentence\tgold\na\t0\n", r"line 1: the header 'sentence\\tgold' has no column 'label'"),
        (b"label\tsentence\tlabel\n0\ta\t0\n", r"line 1: the header .* has no column 'label', or several"),
        (b"a good film\t1\n", r"line 1: the header 'a good film\\t1' has no column"),
        (b"sentence\tlabel\na\t0\nb\n", r"line 3: 1 tab-separated values; there must be 2"),
        (b"sentence\tlabel\na\tb\t0\n", r"line 2: 3 tab-separated values; there must be 2"),
        (b"sentence\tlabel\na\t0\n\nb\t1\n", r"line 3: 1 tab-separated values; there must be 2"),
        (b"sentence\tlabel\na\tmaybe\n", r"line 2: label 'maybe'; it must be 0 to 1, or one of no, yes"),
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
    refused(write(tmp_path / name, content), message)


def refused(path: Path, message: str, task: TaskConfig = ONE) -> None:
    with pytest.raises(DataError, match=rf"{path.name}, {message}") as caught:
        read_table(path, task)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["rows.txt", "rows.gz", "rows"])
def test_another_ending_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"the ending tells the format; it must be tsv, csv, jsonl"):
        read_table(write(tmp_path / name, "sentence\tlabel\na\t0\n"), ONE)


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


# Every format


def as_tsv(columns: list[str], rows: list[list[str]]) -> str:
    return "".join("\t".join(row) + "\n" for row in [columns, *rows])


def as_csv(columns: list[str], rows: list[list[str]]) -> str:
    stream = io.StringIO()
    csv.writer(stream).writerows([columns, *rows])
    return stream.getvalue()


def as_jsonl(columns: list[str], rows: list[list[str]]) -> str:
    return "".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows)


FORMATS = {"tsv": as_tsv, "csv": as_csv, "jsonl": as_jsonl}


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_columns_are_found_by_name_and_labels_by_index_or_name(tmp_path: Path, ending: str, packed: str) -> None:
    columns = ["gold", "hypothesis", "id", "premise"]
    rows = [["2", "it's wet", "17", "it rains"], ["a", "ß", "", "é 😀"], ["1", 'a "b", c', "-", "x"]]
    path = write(tmp_path / f"rows.{ending}{packed}", FORMATS[ending](columns, rows))
    found = read_table(path, TaskConfig(**{**vars(TWO), "label": "gold"}))
    assert found.fields == ("premise", "hypothesis")
    assert found.texts == [("it rains", "it's wet"), ("é 😀", "ß"), ("x", 'a "b", c')]
    assert found.labels.tolist() == [2, 0, 1]


@pytest.mark.parametrize("ending", FORMATS)
def test_names_that_are_numbers_are_never_taken_for_indices(tmp_path: Path, ending: str) -> None:
    stars = TaskConfig(name="stars", fields=["sentence"], labels=["1", "2", "3"])
    rows = [["good", "3"], ["bad", "1"], ["fair", "2"]]
    path = write(tmp_path / f"rows.{ending}", FORMATS[ending](["sentence", "label"], rows))
    assert read_table(path, stars).labels.tolist() == [2, 0, 1]
    write(path, FORMATS[ending](["sentence", "label"], [["bad", "0"]]))
    refused(path, r"line \d: label '0'; it must be 1, 2, 3\.", stars)


@pytest.mark.parametrize("ending", FORMATS)
def test_the_mark_that_some_programs_put_first_is_no_text(tmp_path: Path, ending: str) -> None:
    content = FORMATS[ending](["sentence", "label"], [["a", "yes"]])
    assert read_table(write(tmp_path / f"rows.{ending}", "\ufeff" + content), ONE).texts == [("a",)]


any_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(fold_space)


@reproducible
@given(st.lists(st.tuples(any_text, any_text, st.integers(0, 2)), max_size=6), st.sampled_from(["csv", "jsonl"]))
def test_any_text_is_read_with_its_white_space_folded(
    folder: Path, rows: list[tuple[str, str, int]], ending: str
) -> None:
    """Line breaks, quotes and separators included; and each format has the content hash of the folded texts."""
    written = [[first, second, str(label)] for first, second, label in rows]
    found = read_table(write(folder / f"any.{ending}", FORMATS[ending]([*TWO.fields, "label"], written)), TWO)
    expected = table(TWO.fields, [(fold_space(a), fold_space(b)) for a, b, _ in rows], [row[2] for row in rows])
    assert found.texts == expected.texts
    assert found.content_hash == expected.content_hash


@pytest.mark.parametrize("ending", FORMATS)
def test_no_rows_are_an_empty_table(tmp_path: Path, ending: str) -> None:
    assert len(read_table(write(tmp_path / f"rows.{ending}", FORMATS[ending](["sentence", "label"], [])), ONE)) == 0


@pytest.mark.parametrize("ending", FORMATS)
def test_every_row_of_a_large_file_is_read(tmp_path: Path, ending: str) -> None:
    rows = [
        [f"a film that is number {number} of many, told in one sentence", "01"[number % 2]] for number in range(67_000)
    ]
    path = write(tmp_path / f"rows.{ending}", FORMATS[ending](["sentence", "label"], rows))
    assert len(read_table(path, ONE)) == 67_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1: an empty file has no column 'sentence'"),
        ("text,label\na,0\n", r"line 1: the header 'text\\tlabel' has no column 'sentence'.*comma-separated"),
        ("sentence,label\na,0\nb\n", "line 3: 1 comma-separated values; there must be 2"),
        ('sentence,label\n"a\nb",0\nc,d,1\n', "line 4: 3 comma-separated values; there must be 2"),
        ('sentence,label\n"a\nb",0\n\n"c\nd",4\n', r"line 5: label '4'; it must be 0 to 1, or one of no, yes"),
        ("sentence,label\na,No\n", r"line 2: label 'No'; it must be 0 to 1, or one of no, yes"),
        ('sentence,label\n" \n",0\n', "line 2: field 'sentence' is empty; remove the row"),
        ('sentence,label\na,0\n"b,1\nc,0\n', r"line 3: not valid CSV \(unexpected end of data\)"),
        ('sentence,label\n"a"b,1\n', "line 2: not valid CSV"),
        (f"sentence,label\n{'a' * 200_000},1\n", "line 2: not valid CSV .field larger than field limit"),
    ],
)
def test_a_bad_row_of_a_csv_file_is_told_with_the_line_that_it_starts_on(
    tmp_path: Path, content: str, message: str
) -> None:
    refused(write(tmp_path / "rows.csv", content), message)


GOOD = '{"sentence": "a", "label": 1}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD + "\n" + '{"sentence": "a"', "line 3: not valid JSON"),
        (GOOD + '["a", 1]', r"line 2: .*there must be one object, {...}"),
        (GOOD + '{"text": "a", "label": 1}', "line 2: the keys are text, label; .*: 'sentence' is missing"),
        (GOOD + '{"sentence": "a"}', "line 2: the keys are sentence; .*sentence, label: 'label' is missing"),
        (GOOD + "{}", "line 2: the keys are nothing"),
        (GOOD + '{"sentence": 7, "label": 1}', "line 2: field 'sentence' is 7; it must be a string of text"),
        (GOOD + '{"sentence": null, "label": 1}', "line 2: field 'sentence' is null; it must be a string"),
        (
            GOOD + r'{"sentence": "half \ud83d", "label": 1}',
            r"line 2: field 'sentence' is \"half .*; it must be a string",
        ),
        (GOOD + r'{"sentence": "\n", "label": 1}', "line 2: field 'sentence' is empty"),
        (GOOD + '{"sentence": "a", "label": 2}', r"line 2: label '2'; it must be 0 to 1, or one of no, yes"),
        (GOOD + '{"sentence": "a", "label": true}', "line 2: label 'true'; it must be"),
        (GOOD + '{"sentence": "a", "label": 1.0}', "line 2: label '1.0'; it must be"),
        (GOOD + '{"sentence": "a", "label": [1]}', r"line 2: label '\[1\]'; it must be"),
        (GOOD + "[" * 100_000, "line 2: not valid JSON"),
        (GOOD + "1" * 5_000, "line 2: not valid JSON"),
    ],
)
def test_a_bad_line_of_json_is_told(tmp_path: Path, content: str, message: str) -> None:
    refused(write(tmp_path / "rows.jsonl", content), message)


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_other_encodings_are_told_with_the_line(tmp_path: Path, ending: str) -> None:
    content = FORMATS[ending](["sentence", "label"], [["fine", "0"], ["caf?", "1"]]).encode().replace(b"?", b"\xe9")
    refused(write(tmp_path / f"rows.{ending}", content), f"line {3 if ending == 'csv' else 2}: not valid UTF-8")


# Content


def test_the_content_hash_is_of_the_rows_not_of_the_file(tmp_path: Path) -> None:
    rows = [("a b", "1"), ('"c', "0")]
    plain = read_table(write_rows(tmp_path / "rows.tsv", ONE, rows), ONE)
    other = read_table(write_rows(tmp_path / "other.tsv.gz", ONE, rows, "\r\n"), ONE)
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


# One index by label


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
