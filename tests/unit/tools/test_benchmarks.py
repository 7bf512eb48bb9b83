"""Benchmarks: both sides of every subject do the same work, and what is told of their times is right. No timings."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

TOOLS = Path(__file__).resolve().parents[3] / "tools"
sys.path.insert(0, str(TOOLS))

import bench  # noqa: E402
from benchmarks import match, plain, timing  # noqa: E402
from benchmarks.timing import Contest, Done  # noqa: E402


def subject(name: str) -> ModuleType:
    return importlib.import_module(f"benchmarks.{name}")


class Clock:
    """Stands still but for what calls add to it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def side(self, name: str, seconds: list[float], value: float | None = None, amount: float = 1) -> timing.Call:
        waiting = iter(seconds)

        def call() -> Done:
            self.order.append(name)
            self.now += next(waiting)
            return Done(amount, flops=10 * amount, value=value)

        return call


def two_sides(clock: Clock, ours: list[float], theirs: list[float], value: float | None = None) -> Contest:
    sides = {
        "ours": lambda: clock.side("ours", ours, 1.0, amount=4),
        "baseline": lambda: clock.side("baseline", theirs, value, amount=4),
    }
    return Contest("toy", "texts", sides, [timing.speed_up(2), timing.cost("ours", "baseline", 0.1)])


SECONDS = st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=1, max_size=7)


@given(SECONDS, st.integers(0, 2))
def test_sides_take_turns_and_every_round_gives_a_ratio(pairs: list[tuple[float, float]], warm_up: int) -> None:
    clock = Clock()
    ours, theirs = ([*[99.0] * warm_up, *side] for side in map(list, zip(*pairs, strict=True)))
    contest = two_sides(clock, ours, theirs)
    timings = timing.alternate(contest, len(pairs), warm_up, lambda: clock.now)
    assert clock.order == ["ours", "baseline"] * (len(pairs) + warm_up)
    found = timing.report(contest, timings, {"ours": 5}, {"fp32": 100.0})
    ratios = [two / one for one, two in pairs]
    faster, dearer = found["goals"]
    assert [faster[part] for part in ("median", "low", "high")] == pytest.approx(
        [np.median(ratios), min(ratios), max(ratios)]
    )
    assert dearer["low"] == pytest.approx(1 / max(ratios))
    assert faster["reached"] == (faster["median"] >= 2)
    assert dearer["reached"] == (dearer["median"] <= 0.1)
    side = found["sides"]["ours"]
    total = sum(one for one, _ in pairs)
    assert side["seconds"] == pytest.approx([one for one, _ in pairs])
    assert side["of_matmul"] == pytest.approx(40 * len(pairs) / total / 100)
    assert side["speed"] == pytest.approx(np.median([4 / one for one, _ in pairs]))
    assert (side["peak_bytes"], found["sides"]["baseline"]["peak_bytes"]) == (5, None)


@pytest.mark.parametrize("value", [1.02, 0.98, float("nan")])
def test_sides_that_disagree_are_refused(value: float) -> None:
    clock = Clock()
    with pytest.raises(RuntimeError, match="didn't do the same work"):
        timing.alternate(two_sides(clock, [1.0], [1.0], value), 1, 0, lambda: clock.now)


def test_parameters_that_multiply_are_counted_once() -> None:
    tied = nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 5), nn.Linear(3, 7, bias=False))
    assert timing.multiplied(tied) == 3 * 5 + 5 + 3 * 7
    tied[2].weight = tied[0].weight
    assert timing.multiplied(tied) == 3 * 5 + 5 + 3 * 7


def test_padding_fills_to_the_longest() -> None:
    ids_BL, mask_BL = plain.padded([[5], [6, 7, 8]], 9, torch.device("cpu"))
    assert ids_BL.tolist() == [[5, 9, 9], [6, 7, 8]]
    assert mask_BL.tolist() == [[1, 0, 0], [1, 1, 1]]


ALIKE = {"pretrain": 1e-4, "match": 1e-4, "evaluate": 1e-9, "icl": 1e-4}  # whose sides give the very same numbers


@pytest.fixture
def keys(tiny_cache: Path, tmp_path: Path) -> list[str]:
    return [f"cache={tiny_cache}", f"root={tmp_path / 'runs'}", "threads=1"]


@pytest.mark.parametrize("name", ALIKE)
def test_both_sides_do_the_same_work(name: str, keys: list[str], tmp_path: Path) -> None:
    """Losses over several updates, accuracies and scores are equal to rounding."""
    contest = subject(name).contest(keys, True, tmp_path)
    timings = timing.alternate(contest, 3, 0)
    ours, *others = (side for side in timings if timings[side][0][1].value is not None)
    assert others
    for side in others:
        for (_, one), (_, other) in zip(timings[ours], timings[side], strict=True):
            assert one.value == pytest.approx(other.value, rel=ALIKE[name])
            assert one.amount == pytest.approx(other.amount)
            # Learners of a pool aren't trained again.
            assert one.flops > 0 and (one.flops == pytest.approx(other.flops) or name == "match")


def test_losses_move_so_that_their_equality_says_something(keys: list[str], tmp_path: Path) -> None:
    contest = subject("pretrain").contest(keys, True, tmp_path)
    values = [done.value for _, done in timing.alternate(contest, 3, 0)["ours"]]
    assert len(set(values)) == 3


def test_both_sides_write_the_same_number_of_texts_of_like_length(keys: list[str], tmp_path: Path) -> None:
    contest = subject("generate").contest([*keys, "pretrain.steps=100"], True, tmp_path)
    lengths = {
        side: np.mean([done.value for _, done in timed]) for side, timed in timing.alternate(contest, 2, 0).items()
    }
    assert lengths["ours"] == pytest.approx(lengths["baseline"], rel=0.15)
    assert lengths["ours"] > 5


def test_the_released_gradient_is_ours(keys: list[str], tmp_path: Path) -> None:
    """Another learner's steps in between would move the second loss."""
    contest = match.contest([*keys, "match.learner_optimizer.lr=1e-2", "match.optimizer.lr=1e-2"], True, tmp_path)
    timings = timing.alternate(contest, 3, 0)
    losses = np.array([[done.value for _, done in timings[side]] for side in ("ours", "fresh", "baseline")])
    for other in losses[1:]:
        assert losses[0] == pytest.approx(other, rel=1e-3)
    assert len(set(losses[0])) == 3


@pytest.mark.parametrize("name", ["select", "shards", "collect", "scaling"])
def test_what_has_no_baseline_runs(name: str, keys: list[str], tmp_path: Path) -> None:
    contest = subject(name).contest(keys, True, tmp_path)
    found = timing.report(contest, timing.alternate(contest, 2, 0))
    assert set(found["sides"]) == set(contest.sides)
    assert all(side["speed"] > 0 for side in found["sides"].values())
    assert all(goal["rounds"] == 2 for goal in found["goals"])


def test_the_batched_k_means_finds_separated_clusters() -> None:
    select = subject("select")
    points = torch.tensor([[[0.0, 0], [0, 1], [9, 0], [9, 1]], [[0, 0], [50, 0], [0, 1], [50, 1]]])
    for rows, sides in zip(select.batched(points, 2), ([{0, 1}, {2, 3}], [{0, 2}, {1, 3}]), strict=True):
        assert all(len(side & set(rows.tolist())) == 1 for side in sides)


def test_the_command_prints_and_keeps_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "found.json"
    bench.main(["select", "--small", "--rounds", "1", "--out", str(out), "--markdown"])
    rows = capsys.readouterr().out.splitlines()
    assert all(row.startswith("| select | ") and row.count("|") == 6 for row in rows)
    found = json.loads(out.read_text())
    assert found["matmul_flops"].keys() == {"fp32", "bf16"}
    assert all(side["peak_bytes"] > 2**20 for side in found["sides"].values())  # each a process of its own
