"""Errors that a user can cause, each told in one line: what was found, what is allowed, what to do."""

import difflib
from collections.abc import Iterable


class DilmError(Exception):
    """Base of all errors that are the user's to mend; the command line prints one line and exits 2."""


class ConfigError(DilmError):
    """A key or value of the configuration is wrong."""


class DataError(DilmError):
    """A data set is missing, malformed, or too small for what was asked."""


class ArgumentError(DilmError, ValueError):
    """An argument of the Python API (docs/api.md) is wrong."""


class SourceError(DilmError):
    """A pretrained model or a data set can't be fetched, or is not what was pinned."""


class ShardError(DilmError):
    """A shard or its index is missing, truncated, altered, or of an unknown schema."""


class TrainingError(DilmError):
    """Training can't go on: a loss that is not finite, memory that is full."""


class MissingArtifactError(DilmError):
    """An earlier stage's artifact is not there; `command` makes it, from the same keys."""

    def __init__(self, what: str, command: str, keys: str = "with the same keys") -> None:
        super().__init__(f"{what} is not there yet. Make it with: {command} {keys}")
        self.what, self.command = what, command

    def with_keys(self, keys: str) -> "MissingArtifactError":
        """The same error with the keys of this very command line, to be copied."""
        return MissingArtifactError(self.what, self.command, keys)


class CellsFailedError(DilmError):
    """Some evaluation cells failed; their rows say why."""


class SchedulerError(DilmError):
    """A batch system refuses, or doesn't answer."""


class SlurmError(SchedulerError):
    """Slurm refuses, or doesn't answer."""


class JobsFailedError(DilmError):
    """Jobs that were waited for have failed; their records say why."""


class DiskFullError(DilmError):
    """No space is left; nothing stands half-written under a final name."""


class PlaceError(DilmError):
    """A file or folder that may not be read or written."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """End of an error message: the nearest known names, then all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{hint} Known: {', '.join(known)}."
