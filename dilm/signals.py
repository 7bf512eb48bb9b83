"""Ctrl-C that always ends a run: at once, or at the next step where something swallowed it."""

import signal
from types import FrameType

_interrupted = False


def listen() -> None:
    """From now on remember an interrupt, besides raising KeyboardInterrupt as usual."""
    signal.signal(signal.SIGINT, _note)


def _note(number: int, frame: FrameType | None) -> None:
    global _interrupted
    _interrupted = True
    raise KeyboardInterrupt


def check() -> None:
    """Raise KeyboardInterrupt again where it went lost: some libraries import others under a bare `except`."""
    if _interrupted:
        raise KeyboardInterrupt
