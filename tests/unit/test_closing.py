"""What a command says at its end: in a terminal alone, with lines that can be copied."""

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name

import pytest

from dilm.cli import LISTED, Ran, lines_of, next_command
from dilm.config.help import Command
from dilm.config.schema import Config

Compose = Callable[..., Config]


def command(name: str) -> Command:
    found: Command = resolve_name(f"dilm.{name}:COMMAND")
    return found


def test_it_tells_what_was_made_and_what_comes_next(tiny: Compose) -> None:
    config = tiny("root=runs")
    runs = [Ran(config, (), (f"tiny/dilm-dpc{size}-k",)) for size in range(LISTED + 2)]
    lines = lines_of(command("generate"), runs, ["-m", "task=tiny", "dpc=1,2"], 3671.0)
    assert lines[0] == f"generate: {LISTED + 2} runs in 1 h 1 min"
    assert lines[1] == "runs/tiny/dilm-dpc0-k" and len(lines) == LISTED + 3
    assert lines[-2:] == ["... and 2 more", "next: python -m dilm.evaluate -m task=tiny dpc=1,2"]


def test_a_score_stands_for_its_cells(tiny: Compose) -> None:
    lines = lines_of(command("evaluate"), [Ran(tiny("root=here"), (), (), "tiny random: mean accuracy 61.0")], [], 59.6)
    assert lines == [
        "evaluate: 1 run in 1 min 0 s",
        "tiny random: mean accuracy 61.0",
        "next: python tools/collect.py here --out report",
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("train", "python -m dilm.generate task=tiny"),
        ("prefetch", "python -m dilm.train task=tiny"),
        ("audit", "python -m dilm.export shard=s to=<folder>"),
        ("export", 'datasets.load_dataset("t")'),
        ("collect", "open here/report/index.html"),
    ],
)
def test_what_comes_next(tiny: Compose, name: str, expected: str) -> None:
    config = tiny("root=here", "shard=s", "to=t")
    assert next_command(command(name), config, ["task=tiny", "stages=[match]"][:1]) == expected
    assert "stages" not in next_command(command("train"), tiny(), ["stages=[match]"])


def test_a_terminal_sees_a_panel_and_a_pipe_does_not(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dilm.generate", "experiment=tiny", "method=random", f"cache={tmp_path}"]
    main, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=tmp_path, stdout=terminal, stderr=subprocess.DEVNULL, env=environment, check=True)
    os.close(terminal)
    seen = b""
    while b"\xe2\x95\xaf" not in seen:  # the panel's last corner
        seen += os.read(main, 10_000)
    os.close(main)
    text = seen.decode()
    assert "generate: 1 run in" in text and "runs/tiny/random-dpc4-" in text and "next: python -m dilm.evaluate" in text
    piped = subprocess.run(command, cwd=tmp_path, capture_output=True, env=environment, check=True, text=True)
    assert piped.stdout.startswith("found ") and "next" not in piped.stdout
