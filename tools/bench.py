"""Benchmarks on the machine at hand: `python tools/bench.py SUBJECT [--small] [--out FILE.json] [key=value ...]`.

Each subject times this project's own code and a baseline that does the same work as the authors' released scripts do.
They take turns in one process; speeds, ratios with their spread, peak memory (each side in a process of its own) and
the share of the machine's measured matmul rate are printed. Keys are those of `dilm.train` and `dilm.evaluate`; by
default the quick start's small pretrained models are taken, and for `match` the paper's shapes with random weights.

`engine`: tokens a second of a pre-training step, and peak memory of all ranks, for plain torch and every ZeRO stage,
each in processes of its own.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dilm.cli import run_tool

SUBJECTS = ("pretrain", "generate", "evaluate", "icl", "select", "shards", "collect", "match", "scaling")


def main(arguments: Sequence[str]) -> None:
    """Run the named benchmark, or one of its measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*SUBJECTS, "engine", "engine-step"], help="engine-step: one measurement")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each side")
    parser.add_argument("--warm-up", type=int, default=1, help="calls of each side before them")
    parser.add_argument("--small", action="store_true", help="tiny models and few rows: seconds, without meaning")
    parser.add_argument("--no-memory", action="store_true", help="don't start processes that measure peak memory")
    parser.add_argument("--out", type=Path, help="also write what was found as JSON")
    parser.add_argument("--markdown", action="store_true", help="print rows of a Markdown table")
    parser.add_argument("--only", metavar="SIDE", help="call one side once, and print this process's peak memory")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1], help="engine: numbers of processes")
    parser.add_argument("--steps", type=int, default=10, help="engine: timed steps")
    parser.add_argument("keys", nargs="*", help="key=value, as for dilm.train")
    given = parser.parse_intermixed_args(arguments)
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if given.what.startswith("engine"):
        from benchmarks import engine

        if given.what == "engine":
            engine.compare_engines(given.ranks, given.steps, given.keys)
        else:
            engine.measure_engine(given.steps, given.keys)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(given, Path(folder))


def measure(given: argparse.Namespace, folder: Path) -> None:
    """Measure one subject, or the peak memory of one of its sides."""
    from benchmarks import timing

    contest = importlib.import_module(f"benchmarks.{given.what}").contest(given.keys, given.small, folder)
    if given.only:
        print(json.dumps({"peak": timing.peak_of(contest, given.only)}))
        return
    peaks = {} if given.no_memory else {side: _peak(given, side) for side in contest.sides}
    roofs = {name: timing.matmul_rate(name, given.small) for name in ("fp32", "bf16")}
    timings = timing.alternate(contest, given.rounds, given.warm_up)
    found = timing.report(contest, timings, peaks, roofs)
    print("\n".join(timing.markdown_rows(found) if given.markdown else timing.lines(found)), flush=True)
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n")


def _peak(given: argparse.Namespace, side: str) -> int:
    """Peak memory in bytes of a process that does one side's work alone, torch and all."""
    small = ["--small"] if given.small else []
    command = [sys.executable, str(Path(__file__).resolve()), given.what, "--only", side, *small, *given.keys]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr.strip()}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return int(found["peak"])


if __name__ == "__main__":
    run_tool(main)
