"""The picture of the packages: current, complete, and drawn so that nothing lies on anything else."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools import rooms
from tools.rooms import Graph, Layout, direct, imports, layers_of, loads_torch, picture, sources


def reached(graph: Graph, name: str) -> set[str]:
    return set().union(*({other} | reached(graph, other) for other in graph[name]))


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Up to nine packages that import some of those before them."""
    names = [f"p{number}" for number in range(draw(st.integers(1, 9)))]
    return {name: draw(st.sets(st.sampled_from(names[:place]))) if place else set() for place, name in enumerate(names)}


def test_the_committed_picture_is_current() -> None:
    assert rooms.PICTURE.read_text(encoding="utf-8") == picture(sources()), "run `python tools/rooms.py`"


def test_every_package_is_a_box_and_every_direct_import_an_arrow() -> None:
    files, shown = sources(), picture(sources())
    assert {"core", "matching", "stages", "commands"} <= set(files)
    for name, paths in files.items():
        assert f'class="name">{name}</text>' in shown
        assert all(path.stem in shown for path in paths)
    graph = imports(files)
    assert {"matching", "report"} <= graph["stages"] and "stages" not in graph["matching"]
    for name, others in direct(graph).items():
        for other in others:
            assert f"<title>{name} imports {other}</title>" in shown


def test_torch_is_seen_where_it_is_imported_at_once() -> None:
    files = sources()
    assert loads_torch(files["matching"]) and loads_torch(files["distributed"])
    assert not any(loads_torch(files[name]) for name in ("core", "config", "scheduler", "launch", "report"))


@given(graphs())
def test_arrows_that_are_left_out_follow_from_those_drawn(graph: Graph) -> None:
    drawn = direct(graph)
    for name in graph:
        assert reached(drawn, name) == reached(graph, name)
        for other in drawn[name]:
            assert not any(other in reached(graph, between) for between in drawn[name] - {other})


@settings(max_examples=15)
@given(graphs())
def test_everything_stands_above_what_it_imports_and_apart(graph: Graph) -> None:
    layer, layout = layers_of(graph), Layout(direct(graph))
    assert all(layer[name] > layer[other] for name, others in graph.items() for other in others)
    for row in layout.rows:
        for left, right in itertools.pairwise(row):
            assert layout.x[right] - layout.x[left] >= (layout.width(left) + layout.width(right)) / 2 + 20


def test_crossings_are_counted_and_taken_away() -> None:
    layout = Layout({"a": {"c"}, "b": {"d"}, "c": set(), "d": set()})
    assert layout.crossings() == 0
    layout.rows[0].reverse()
    assert layout.crossings() == 1


def test_the_command_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["rooms.py", "--to", str(tmp_path / "rooms.svg")])
    rooms.main()
    assert (tmp_path / "rooms.svg").read_text(encoding="utf-8").startswith("<svg ")
