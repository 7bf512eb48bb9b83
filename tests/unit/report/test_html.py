"""The page: self-contained, escaped, with the texts of the shards and what audits say."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from outcomes import changed
from reports import DILM, FULL, RANDOM, ROW, cells, frame, put

from dilm.artifacts.rows import rows_folder
from dilm.artifacts.shards import shard_table, write_shards
from dilm.core.io import write_json
from dilm.data.text_table import table
from dilm.report.health import health_of
from dilm.report.html import page, texts_below
from dilm.report.summary import across_models, make_tables
from dilm.stages import collect

NASTY = '</script><b>&amp; \u2028 "quoted"'


def put_shards(root: Path, method: str, key: str, texts: list[str], labels: list[int], **columns: object) -> None:
    folder = root / "toy" / f"{method}-{key}"
    folder.mkdir(parents=True)
    rows = shard_table(table(("sentence",), [(text,) for text in texts], labels), **columns)
    attributes = {"key": key, "task": "toy", "method": method, "dpc": 1, "labels": ["bad", "good"]}
    write_shards(folder, rows, attributes, {"config": {}})


def test_texts_come_with_their_columns_and_audits(tmp_path: Path) -> None:
    put_shards(
        tmp_path, "dilm", "k1", ["a", NASTY, "c", "d"], [0, 1, 0, 1], dataset=np.array([0, 0, 7, 7]), nll=1.23456
    )
    put_shards(tmp_path, "random", "k2", ["a"], [0], dataset=0)
    put_shards(tmp_path, "candidates-dilm", "k3", ["pool"], [0])
    put_shards(tmp_path, "full", "k4", ["all"], [0], dataset=0)
    audit = {"shard": {"key": "k1"}, "texts": [{"text": ["a"], "nearest": ["b"], "similarity": 0.5, "flags": ["copy"]}]}
    write_json(tmp_path / "toy" / "audit-dilm-x" / "audit.json", audit)
    found = texts_below(tmp_path)
    assert [own["method"] for own in found["sets"]] == ["random", "dilm"], "in the order of tables"
    dilm = found["sets"][1]
    assert dilm["datasets"] == 2 and dilm["audited"] and not found["sets"][0]["audited"]
    assert [text["t"] for text in dilm["texts"]] == [("a",), (NASTY,)], "the first data sets alone"
    assert dilm["texts"][0] == {
        "t": ("a",),
        "l": 0,
        "d": 0,
        "n": 1.235,
        "c": -1,
        "near": ["b"],
        "s": 0.5,
        "f": ["copy"],
    }
    assert found["sets"][0]["texts"][0]["n"] is None


def test_the_page_needs_no_network_and_no_text_breaks_out_of_it(tmp_path: Path) -> None:
    put_shards(tmp_path, "dilm", "k1", [NASTY], [0], dataset=0)
    rows = frame(cells("dilm", DILM, task="<i>toy") + cells("random", RANDOM, task="<i>toy") + FULL)
    tables = make_tables(rows)
    text = page(tables, across_models(tables), {}, health_of(rows, 0, {}), texts_below(tmp_path))
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", text)
    assert "<i>toy" not in text and "&lt;i&gt;toy" in text
    (data,) = re.findall(r'<script type="application/json" id="texts">(.*?)</script>', text, re.S)
    assert json.loads(data)["sets"][0]["texts"][0]["t"] == [NASTY]
    assert not re.findall(r"<!--\w+-->|{{|{%|{#", text), "every part is filled"
    assert "85.0 ± 3.7 [81.0, 89.0]" in text and "6 models, 3 data sets" in text
    assert 'data-methods="dilm|random"' in text, "a difference belongs to both"


class Elements(HTMLParser):
    """The elements of a page, outside its drawings, and the words in its table cells."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.mark.parametrize("name", ["a & b", "a<script>alert(1)</script>", 'a" onclick="alert(1)', "{{ 1 + 1 }}"])
def test_a_name_or_a_text_is_shown_as_it_is_and_is_never_markup(tmp_path: Path, name: str) -> None:
    """As a method, a task, a model and an error, in tables, filters and plots; and as a text of a data set."""
    put_shards(tmp_path, "dilm", "k1", [name, "<script>alert(1)</script>"], [0, 1], dataset=0)
    failed = changed(ROW, key="f", method=name, model=name, status="failed", value=None, error=name)
    named = [changed(row, key=f"{name}-{row.cell.key}", model=name, method=name) for row in cells("dilm", DILM)]
    put(tmp_path, [*cells(name, DILM), *cells("random", RANDOM), *named, failed])
    collect.run(tmp_path, tmp_path / "out")
    text = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    found = Elements(text)
    assert found.tags.count("script") == 2, "the texts, and the page's program"
    assert not [attribute for attribute, _ in found.attributes if attribute.startswith("on")]
    methods = [value for attribute, value in found.attributes if attribute == "data-methods"]
    assert name in methods
    assert found.words.count(name) >= 5, "as the heading of rows, in the filters, as an error, and in the plots"
    (data,) = re.findall(r'<script type="application/json" id="texts">(.*?)</script>', text, re.S)
    assert [text["t"] for text in json.loads(data)["sets"][0]["texts"]] == [[name], ["<script>alert(1)</script>"]]


def test_a_text_may_have_half_a_character(tmp_path: Path) -> None:
    """A generator of bytes may stop within one; UTF-8 has no such character, and JSON does."""
    rows_folder(tmp_path).mkdir()
    put_shards(tmp_path, "dilm", "k1", ["half \ud83d", "whole 😀"], [0, 1], dataset=0)
    collect.run(tmp_path, tmp_path / "out")
    text = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    (data,) = re.findall(r'<script type="application/json" id="texts">(.*?)</script>', text, re.S)
    assert [text["t"] for text in json.loads(data)["sets"][0]["texts"]] == [["half \ud83d"], ["whole 😀"]]
