"""Identity by content: keys of artifacts and cells, cached files, and the seed of every random draw."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dilm.core.io import write_bytes

KEY_LENGTH = 12
Names = Sequence[str | int]  # what is drawn: its seed


def canonical_json(value: Any) -> str:
    """One spelling for equal values: sorted keys, no blanks, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def content_key(value: Any) -> str:
    """The first 12 hex digits of the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:KEY_LENGTH]


def without(part: dict[str, Any], *names: str) -> dict[str, Any]:
    """The entries of other names: what of a configuration's part belongs into a key."""
    return {name: value for name, value in part.items() if name not in names}


def cached(folder: Path, name: str, identity: Any, make: Callable[[], bytes | memoryview]) -> Path:
    """The file that holds what `identity` determines, written with what `make` returns if it is not there yet.

    `identity` is anything that `canonical_json` takes. `name` is the file's name with `*` where the key goes, such as
    `minilm-*.npy`. Processes may race for a file: it appears whole, and all of them write the same.
    """
    before, _, after = name.rpartition("*")
    path = folder / f"{before}{content_key(identity)}{after}"
    if not path.is_file():
        write_bytes(path, make())
    return path


def derive_seed(*names: str | int) -> int:
    """A seed in [0, 2^63) from the names of what is drawn, so that no draw depends on what ran before it."""
    digest = hashlib.sha256(canonical_json(list(names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
