"""Sides that take turns in one process, and what is told of them: speed, ratios with their spread, peak memory."""

import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

GIB = 2**30
FORWARD, TRAINING = 2, 6  # useful floating-point operations a parameter and token
MATMUL_SECONDS = 0.5
MATMUL_SIZE = {"cpu": 1024, "cuda": 8192}


@dataclass(frozen=True)
class Done:
    """What one call of a side did."""

    amount: float  # in the contest's unit
    flops: float = 0.0  # useful ones: padding and what is thrown away don't count
    value: float | None = None  # what came out, which the sides must agree on; None: nothing to compare


Call = Callable[[], Done]
Timings = Mapping[str, Sequence[tuple[float, Done]]]  # of each side: seconds and outcome, a round each


@dataclass(frozen=True)
class Goal:
    """A number that is had from every round, and what its median should be."""

    label: str
    number: Callable[[Timings, int], float]  # of a round
    bound: float | None = None  # None: measured without a target
    at_least: bool = True
    unit: str = "x"


@dataclass(frozen=True)
class Contest:
    """Sides that do the same work. Each is prepared by a call of its own, so that a process may hold one alone."""

    name: str
    unit: str
    sides: dict[str, Callable[[], Call]]
    goals: list[Goal] = field(default_factory=list)
    precision: str = "fp32"
    tolerance: float = 0.01  # share by which values of one round may differ
    note: str = ""
    rounding: float = 0.0  # by which they may differ however small they are


def speed_up(bound: float | None, over: str = "baseline", side: str = "ours") -> Goal:
    """How many times as fast a side is as another, for the same amount."""

    def number(timings: Timings, turn: int) -> float:
        return rate(timings[side][turn]) / rate(timings[over][turn])

    return Goal(f"{side} against {over}", number, bound)


def cost(side: str, over: str, bound: float | None) -> Goal:
    """How many times as long a side takes as another, for the same amount."""

    def number(timings: Timings, turn: int) -> float:
        return rate(timings[over][turn]) / rate(timings[side][turn])

    return Goal(f"time of {side} / {over}", number, bound, at_least=False)


def speed(side: str, bound: float | None, unit: str) -> Goal:
    """The amount a second of a side."""
    return Goal(f"{side}", lambda timings, turn: rate(timings[side][turn]), bound, unit=f" {unit}/s")


def seconds(side: str, bound: float) -> Goal:
    """The seconds of a side's call."""
    return Goal(side, lambda timings, turn: timings[side][turn][0], bound, at_least=False, unit=" s")


def rate(timed: tuple[float, Done]) -> float:
    """The amount a second."""
    return timed[1].amount / timed[0]


def alternate(
    contest: Contest, rounds: int, warm_up: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[tuple[float, Done]]]:
    """Time A B A B ..., after untimed rounds. Raises RuntimeError where the sides of a round don't agree."""
    calls = {side: prepare() for side, prepare in contest.sides.items()}
    timings: dict[str, list[tuple[float, Done]]] = {side: [] for side in calls}
    for turn in range(warm_up + rounds):
        values: dict[str, float] = {}
        for side, call in calls.items():
            began = clock()
            done = call()
            _wait()
            took = clock() - began
            values |= {} if done.value is None else {side: done.value}
            if turn >= warm_up:
                timings[side].append((took, done))
        found = np.array([*values.values()] or [0.0])
        allowed = max(contest.rounding, contest.tolerance * np.abs(found).max())
        if not np.ptp(found) <= allowed:  # nor where one is NaN
            raise RuntimeError(f"{contest.name}: the sides didn't do the same work: {values}")
    return timings


def peak_of(contest: Contest, side: str) -> int:
    """Peak memory in bytes, of the GPU where there is one, of this process after a first call of one side."""
    contest.sides[side]()()
    _wait()
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def device_name() -> str:
    """The machine, in words."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"


def matmul_rate(precision: str, small: bool = False) -> float:
    """The best measured rate of a square matrix product, in FLOP/s: the roof of what a model can reach here."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 128 if small else MATMUL_SIZE[device]
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = torch.ones(size, size, dtype=kind, device=device), torch.ones(size, size, dtype=kind, device=device)
    best, ends = 0.0, time.perf_counter() + MATMUL_SECONDS * (0.1 if small else 1)
    while not best or time.perf_counter() < ends:
        began = time.perf_counter()
        left @ right
        _wait()
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


def multiplied(model: nn.Module) -> int:
    """Parameters that every token is multiplied with: all but embeddings, whose rows are looked up."""
    looked_up = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    linear = {id(part.weight) for part in model.modules() if isinstance(part, nn.Linear)}  # tied ones among them
    return sum(p.numel() for p in model.parameters() if id(p) not in looked_up - linear)


def report(
    contest: Contest, timings: Timings, peaks: Mapping[str, int] | None = None, roofs: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Everything that was found, ready for JSON. Seconds and values are a round each; memory in bytes."""
    roofs = roofs or {}
    sides = {}
    for side, timed in timings.items():
        took, total = [item[0] for item in timed], sum(item[0] for item in timed)
        flops = sum(item[1].flops for item in timed) / total
        sides[side] = {
            "seconds": took,
            "speed": statistics.median(map(rate, timed)),
            "values": [item[1].value for item in timed],
            "flops": flops,
            "of_matmul": flops / roofs[contest.precision] if flops and contest.precision in roofs else None,
            "peak_bytes": (peaks or {}).get(side),
        }
    goals = [_judged(goal, timings) for goal in contest.goals]
    return {
        "benchmark": contest.name,
        "unit": contest.unit,
        "precision": contest.precision,
        "note": contest.note,
        "device": device_name(),
        "matmul_flops": dict(roofs),
        "sides": sides,
        "goals": goals,
    }


def _judged(goal: Goal, timings: Timings) -> dict[str, Any]:
    numbers = [goal.number(timings, turn) for turn in range(len(next(iter(timings.values()))))]
    middle = statistics.median(numbers)
    reached = None
    if goal.bound is not None:
        reached = middle >= goal.bound if goal.at_least else middle <= goal.bound
    found = {"median": middle, "low": min(numbers), "high": max(numbers), "rounds": len(numbers)}
    return {"label": goal.label, "unit": goal.unit, "bound": goal.bound, "at_least": goal.at_least, **found} | {
        "reached": reached
    }


def lines(found: dict[str, Any]) -> list[str]:
    """A report for people."""
    roofs = ", ".join(f"{name} {flops / 1e9:,.0f} GFLOP/s" for name, flops in found["matmul_flops"].items())
    printed = [f"{found['benchmark']} ({found['precision']}; {found['device']}{'; matmul ' if roofs else ''}{roofs})"]
    printed += [found["note"]] if found["note"] else []
    for name, side in found["sides"].items():
        share = f"  {side['of_matmul']:5.1%} of matmul" if side["of_matmul"] is not None else ""
        memory = f"  {side['peak_bytes'] / GIB:6.2f} GiB" if side["peak_bytes"] else ""
        took = statistics.median(side["seconds"])
        printed.append(f"  {name:32} {side['speed']:12,.5g} {found['unit']}/s  {took:9.3f} s{memory}{share}")
    return printed + [f"  {_goal_text(goal)}" for goal in found["goals"]]


def _goal_text(goal: dict[str, Any]) -> str:
    text = f"{goal['label']}: {goal['median']:.4g}{goal['unit']} ({goal['low']:.4g} to {goal['high']:.4g})"
    if goal["bound"] is None:
        return text
    sign = "≥" if goal["at_least"] else "≤"
    return f"{text}, target {sign} {goal['bound']:g}: {'reached' if goal['reached'] else 'SHORT'}"


def markdown_rows(found: dict[str, Any]) -> list[str]:
    """The rows of a table: benchmark, side, speed, peak memory, share of the matmul rate; then benchmark and goals."""
    rows = []
    for name, side in found["sides"].items():
        memory = f"{side['peak_bytes'] / GIB:.2f} GiB" if side["peak_bytes"] else "–"
        share = "–" if side["of_matmul"] is None else f"{side['of_matmul']:.0%}"
        rows.append([found["benchmark"], name, f"{side['speed']:,.4g} {found['unit']}/s", memory, share])
    rows += [[found["benchmark"], _goal_text(goal), "", "", ""] for goal in found["goals"]]
    return [f"| {' | '.join(row)} |" for row in rows]
