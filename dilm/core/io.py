"""Files that are complete wherever they stand under their final name, and the folders of this repository.

Everything is written to a unique temporary name in the same folder, flushed to disk, renamed, and the folder
flushed: a process killed at any moment leaves at most a temporary name.
"""

import errno
import hashlib
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dilm.core.errors import DilmError, DiskFullError

REPOSITORY = Path(__file__).resolve().parents[2]
CONF_FOLDER = REPOSITORY / "conf"
ENVIRONMENT_FILE = REPOSITORY / "slurm" / "env.sh"
TEMPORARY = ".tmp-"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def temporary_name(path: Path) -> Path:
    """A name beside `path` that no other process uses, and that says whose it is."""
    return path.with_name(f"{path.name}{TEMPORARY}{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}")


def fsync_path(path: Path) -> None:
    """Flush a file or a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error means that no space is left; libraries that aren't Python's say so in their text alone."""
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return True
    return any(os.strerror(number) in str(error) for number in DISK_FULL)


@contextmanager
def disk_full_named(path: Path) -> Iterator[None]:
    """Turn whatever says "no space left" into an error that names the path."""
    try:
        yield
    except Exception as error:
        if isinstance(error, DilmError) or not is_disk_full(error):
            raise
        raise DiskFullError(
            f"{path}: no space is left on the device. Nothing was written under this name; "
            "free some space, or set root= to another disk, and run the same command again."
        ) from error


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a whole file atomically. Raises DiskFullError."""
    temporary = temporary_name(path)
    with disk_full_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        fsync_path(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Fill a temporary folder which becomes `path` at the end, whole, or vanishes if the block fails.

    A folder that stands there already is replaced.
    """
    temporary = temporary_name(path)
    with disk_full_named(path):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            for entry in sorted(temporary.rglob("*")):
                fsync_path(entry)
            fsync_path(temporary)
            _replace_folder(temporary, path)
            fsync_path(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _replace_folder(temporary: Path, path: Path) -> None:
    """Give a folder its final name; where that fails, what stood there stands there again."""
    if not path.exists():
        os.rename(temporary, path)
        return
    retired = temporary_name(path)
    os.rename(path, retired)
    try:
        os.rename(temporary, path)
    except OSError:
        os.rename(retired, path)
        raise
    shutil.rmtree(retired)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
