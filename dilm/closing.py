"""What a command says at its end in a terminal: what was made, in which time, and what to run next."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from dilm.config import Config

LISTED = 8
NEXT = {"prefetch": "train", "train": "generate", "generate": "evaluate"}
TRAINING_KEYS = ("stages=", "match.trajectory=")  # that choose a part of what `train` makes


@dataclass(frozen=True)
class Ran:
    """One run of a command that has ended well."""

    config: Config
    keys: tuple[str, ...]
    made: tuple[str, ...]  # folders below root
    told: str = ""  # its outcome in a line, such as a score


def say(command: str, runs: Sequence[Ran], arguments: Sequence[str], seconds: float) -> None:
    """Print it, where somebody looks at a terminal."""
    if runs and sys.stdout.isatty():
        Console().print(Panel("\n".join(map(escape, lines_of(command, runs, arguments, seconds))), expand=False))


def lines_of(command: str, runs: Sequence[Ran], arguments: Sequence[str], seconds: float) -> list[str]:
    """The lines: outcomes and folders, at most a few; then what comes next."""
    minutes, rest = divmod(round(seconds), 60)
    spent = f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
    lines = [f"{command}: {len(runs)} {'run' if len(runs) == 1 else 'runs'} in {spent}"]
    root = runs[-1].config.root
    shown = [line for ran in runs for line in ([ran.told] if ran.told else [f"{root}/{name}" for name in ran.made])]
    shown = list(dict.fromkeys(shown))
    lines += shown[:LISTED]
    lines += [f"... and {len(shown) - LISTED} more"] if len(shown) > LISTED else []
    return [*lines, f"next: {next_command(command, runs[-1].config, arguments)}"]


def next_command(command: str, config: Config, arguments: Sequence[str]) -> str:
    """What somebody who ran this wants to run next, with the same keys."""
    if command in NEXT:
        keys = [key for key in arguments if not key.startswith(TRAINING_KEYS)]
        return " ".join([f"python -m dilm.{NEXT[command]}", *keys])
    if command == "evaluate":
        return f"python tools/collect.py {config.root} --out report"
    if command == "audit":
        return f"python -m dilm.export shard={config.shard} to=<folder>"
    if command == "export":
        return f'datasets.load_dataset("{config.to}")'
    return f"open {config.root}/report/index.html"
