"""Plots that show what they should, in the colours of the page around them."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from outcomes import changed
from reports import DILM, RANDOM, cells, put

from dilm.artifacts.rows import Row, rows_folder
from dilm.core.io import TEMPORARY
from dilm.stages.collect import run

SVG = "{http://www.w3.org/2000/svg}"


def assert_shows_something(path: Path, *words: str) -> None:
    """A drawing of its own size, with lines or marks, the words in it, and no black that a dark page would hide."""
    text = path.read_text(encoding="utf-8")
    drawing = ElementTree.fromstring(text)
    width, height = (float(size) for size in drawing.attrib["viewBox"].split()[2:])
    assert width > 200 and height > 100
    assert len(list(drawing.iter(f"{SVG}path"))) + len(list(drawing.iter(f"{SVG}use"))) > 10
    found = "".join(drawing.itertext())
    assert all(word in found for word in words)
    assert "currentColor" in text and "#000000" not in text.replace("fill: none", "")


@pytest.mark.parametrize(
    "rows",
    [
        cells("dilm", DILM) + cells("random", RANDOM) + cells("lm", DILM, dpc=20),
        cells("dilm", [[80.0]]),
        cells("dilm", [[0.0], [0.0]]),
        cells("dilm", [[50.2] * 3] * 3),  # the mean of nine such numbers is a little less than that of three
        cells("dilm", [[100 * 410 / 872] * 3] * 3),  # and here a little more
        cells("dilm", [[90.0] * 20, *[[50.0 + number / 10] for number in range(19)]]),  # the mean is off the interval
    ],
    ids=["several", "one model", "nothing right", "equal scores", "other equal scores", "unequal numbers of seeds"],
)
def test_scores_are_plotted(tmp_path: Path, rows: list[Row]) -> None:
    put(tmp_path, rows)
    run(tmp_path, tmp_path / "out")
    assert_shows_something(tmp_path / "out" / "plots" / "toy-tiny-frozen.svg", "texts a class", "dilm")


@pytest.mark.parametrize("changes", [{"protocol": "p1"}, {"model": "other"}, {"evaluator": "finetune"}])
def test_every_table_has_a_plot_of_its_own(tmp_path: Path, changes: dict[str, str]) -> None:
    put(tmp_path, cells("dilm", DILM) + cells("dilm", DILM, source="other", **changes))
    run(tmp_path, tmp_path / "out")
    plots = sorted((tmp_path / "out" / "plots").glob("toy-tiny*")) + sorted(
        (tmp_path / "out" / "plots").glob("toy-other*")
    )
    assert len(plots) == 2
    for plot in plots:
        assert_shows_something(plot)


def put_metrics(folder: Path, records: list[dict[str, float]], tail: str = "") -> None:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + tail)


LOSSES = [{"step": step, "loss": 1 / step, "gradient_norm": 1.0, "effective_texts": 3.0} for step in range(1, 40)]
FRESH = [
    {"step": step, "fresh_similarity": 0.1 + step / 100, "fresh_similarity_at_0": 0.1, "fresh_similarity_at_20": 0.2,
     "real_similarity": 0.9}
    for step in range(0, 40, 10)
]  # fmt: skip


@pytest.mark.parametrize("records", [LOSSES, [FRESH[0], *LOSSES, *FRESH[1:]]], ids=["loss alone", "with similarity"])
def test_matching_is_plotted(tmp_path: Path, records: list[dict[str, float]]) -> None:
    rows_folder(tmp_path).mkdir()
    put_metrics(tmp_path / "toy" / "dilm-tiny-0123", records)
    put_metrics(
        tmp_path / "toy" / "lm-tiny-0123", [*LOSSES, {"step": 39, "valid_nll": 1.0, "valid_label_accuracy": 0.7}]
    )
    run(tmp_path, tmp_path / "out")
    plots = sorted((tmp_path / "out" / "plots").iterdir())
    assert [path.name for path in plots] == ["toy-dilm-tiny-0123.svg", "toy-lm-tiny-0123.svg"]
    assert_shows_something(plots[0], "matching loss", "generator update")
    assert_shows_something(plots[1], "held-out")


def test_training_that_is_under_way_is_no_part_of_a_report(tmp_path: Path) -> None:
    rows_folder(tmp_path).mkdir()
    put_metrics(tmp_path / "toy" / f"dilm-tiny-0123{TEMPORARY}host-7-abcd", LOSSES, tail='{"step": 40, "lo')
    run(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out" / "plots").exists()


def test_plots_leave_no_open_figure_and_no_temporary_file(tmp_path: Path) -> None:
    from matplotlib import pyplot

    put(tmp_path, cells("dilm", DILM))
    run(tmp_path, tmp_path / "out")
    assert pyplot.get_fignums() == []
    assert not [path for path in (tmp_path / "out").rglob("*") if TEMPORARY in path.name]


def test_models_side_by_side_are_a_map(tmp_path: Path) -> None:
    other = [changed(row, model="other", key=f"other {row.cell.key}") for row in cells("random", RANDOM)]
    put(tmp_path, cells("dilm", DILM) + cells("random", RANDOM) + other)
    run(tmp_path, tmp_path / "out")
    assert_shows_something(tmp_path / "out" / "plots" / "toy-across-frozen.svg", "85.0", "74.3", "other", "tiny")


def test_figures_of_one_page_share_no_id(tmp_path: Path) -> None:
    other = [changed(row, model="other", key=f"other {row.cell.key}") for row in cells("dilm", DILM)]
    put(tmp_path, cells("dilm", DILM) + other)
    run(tmp_path, tmp_path / "out")
    texts = [path.read_text() for path in (tmp_path / "out" / "plots").iterdir()]
    clips = [set(re.findall(r'<clipPath id="([^"]+)"', text)) for text in texts]
    assert len(set.union(*clips)) == sum(map(len, clips)) > 0
