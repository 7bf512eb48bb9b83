"""What a process is told from outside: Ctrl-C, which always ends it, and a job's signals, which stop it in good order.

USR2 comes some minutes before a job's time limit, or before it is preempted: save at the next step, and be queued
again. TERM comes before a job is killed: save at the next step, and end. Handlers only set flags.
"""

import signal
from types import FrameType

_interrupted = False
_told: signal.Signals | None = None


class Stopped(Exception):
    """The run was told to stop, and has saved what it had; the same command goes on from there.

    `again`: whether the job is to be queued again, since some rank got USR2.
    """

    def __init__(self, again: bool) -> None:
        super().__init__()
        self.again = again


def listen(job: bool = False) -> None:
    """From now on remember an interrupt, besides raising KeyboardInterrupt, and USR2; in a `job` TERM as well."""
    signal.signal(signal.SIGINT, _interrupt)
    for number in (signal.SIGUSR2, *([signal.SIGTERM] if job else [])):
        signal.signal(number, _tell)


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _interrupted
    _interrupted = True
    raise KeyboardInterrupt


def _tell(number: int, frame: FrameType | None) -> None:
    global _told
    if _told != signal.SIGUSR2:  # which asks for more than TERM does
        _told = signal.Signals(number)


def check() -> None:
    """Raise KeyboardInterrupt again where it went lost: some libraries import others under a bare `except`."""
    if _interrupted:
        raise KeyboardInterrupt


def told() -> bool:
    """Whether a signal told this process to stop."""
    return _told is not None


def told_again() -> bool:
    """Whether a signal told this process to stop and to be queued again."""
    return _told == signal.SIGUSR2


def check_stop() -> None:
    """Raise Stopped where this process was told to stop: for work that ranks do on their own."""
    if told():
        raise Stopped(told_again())
