"""Tables of labelled texts: where a task's rows are found, how they are read, and one index by label."""

import gzip
import hashlib
import io
import itertools
import json
import os
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from dilm.config import DataConfig, TaskConfig
from dilm.errors import DataError, SourceError
from dilm.files import write_bytes
from dilm.keys import content_key, derive_seed
from dilm.sources import fetch_package, hub_reachable
from dilm.text import fold_space
from dilm.tiny import tiny_rows

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
READER_VERSION = 1  # raised when the same file gives other rows
TINY_ROWS = {"train": 1200, "dev": 300}


@dataclass(frozen=True)
class TextTable:
    """Rows of labelled texts. A text is a tuple with one string a field."""

    fields: tuple[str, ...]
    texts: list[tuple[str, ...]]
    labels: np.ndarray  # (n,) int64

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Sequence[int] | np.ndarray) -> "TextTable":
        """The rows with these indices, in this order."""
        return replace(self, texts=[self.texts[row] for row in rows], labels=self.labels[np.asarray(rows, dtype=int)])

    @cached_property
    def rows_by_label(self) -> dict[int, np.ndarray]:
        """Row indices of each label, ascending; made by one stable sort."""
        order = np.argsort(self.labels, kind="stable")
        present, starts = np.unique(self.labels[order], return_index=True)
        return {int(label): rows for label, rows in zip(present, np.split(order, starts)[1:], strict=True)}

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over fields, texts and labels, whatever file they came from."""
        digest = hashlib.sha256()
        rows = ([*text, str(int(label))] for text, label in zip(self.texts, self.labels, strict=True))
        for row in itertools.chain([list(self.fields)], rows):
            for value in row:
                encoded = value.encode("utf-8", "surrogatepass")
                digest.update(b"%d:%b" % (len(encoded), encoded))  # with its length, so that nothing runs together
            digest.update(b"\n")
        return digest.hexdigest()


def table(fields: Sequence[str], texts: list[tuple[str, ...]], labels: Sequence[int] | np.ndarray) -> TextTable:
    """A table from plain lists."""
    return TextTable(tuple(fields), texts, np.asarray(labels, dtype=np.int64))


def read_tsv(path: Path, task: TaskConfig) -> TextTable:
    """Read a TSV file (plain or .gz; header; no quoting; label last). Raises DataError with file and line."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as stream:
            raw = stream.read()
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path}: can't be read ({error}). Fetch the file again.") from error
    lines = raw.split(b"\n")
    if lines and not lines[-1]:
        lines.pop()
    expected = [*task.fields, "label"]
    if not lines or lines[0].decode("utf-8", "replace").rstrip("\r").split("\t") != expected:
        found = lines[0].decode("utf-8", "replace")[:80] if lines else "an empty file"
        raise DataError(
            f"{path}, line 1: the header is {found!r}; it must be {chr(9).join(expected)!r} (tab-separated)."
        )
    texts, labels = [], []
    for number, line in enumerate(lines[1:], start=2):
        *text, label = _parse_line(line, task, f"{path}, line {number}")
        texts.append(tuple(text))
        labels.append(int(label))
    return table(task.fields, texts, labels)


def _parse_line(line: bytes, task: TaskConfig, where: str) -> list[str]:
    try:
        values = line.decode("utf-8").rstrip("\r").split("\t")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not valid UTF-8 ({error.reason} at byte {error.start}).") from error
    if len(values) != len(task.fields) + 1:
        raise DataError(f"{where}: {len(values)} tab-separated values; there must be {len(task.fields) + 1}.")
    if not values[-1].isdecimal() or int(values[-1]) >= len(task.labels):
        raise DataError(
            f"{where}: label {values[-1]!r}; it must be 0 to {len(task.labels) - 1} ({', '.join(task.labels)})."
        )
    for name, text in zip(task.fields, values, strict=False):
        if not text.strip():
            raise DataError(f"{where}: field {name!r} is empty; remove the row.")
    return values


@dataclass(frozen=True)
class Place:
    """Where a task's rows were found: kind (folder, hub, package, built) and, for people, which."""

    kind: str
    where: str


def find_place(task: TaskConfig, cache: Path) -> Place | None:
    """The first place that has the task's rows: path, $DILM_DATA, ../shared/data, then package, code or the hub.

    What was fetched from the hub once is in the cache, and needs no hub.
    """
    if task.path is not None:
        return Place("folder", task.path)
    roots = [Path(os.environ["DILM_DATA"])] if os.environ.get("DILM_DATA") else []
    for root in [*roots, SHARED_DATA]:
        if task.folder and (root / task.folder).is_dir():
            return Place("folder", str(root / task.folder))
    if task.built is not None:
        return Place("built", task.built)
    if task.package is not None:
        return Place("package", task.package)
    fetched = task.hub is not None and all(_hub_file(task, split, cache).is_file() for split in ("train", "dev"))
    if fetched or (task.hub is not None and hub_reachable()):
        return Place("hub", str(task.hub))
    return None


def load_split(task: TaskConfig, split: str, cache: Path) -> TextTable:
    """The rows of split `train` or `dev`. Raises DataError or SourceError."""
    place = find_place(task, cache)
    if place is None:
        tried = f"task.path is not set, $DILM_DATA and {SHARED_DATA.parent.name}/data have no {task.folder!r}"
        raise DataError(f"task {task.name!r}: no rows found: {tried}, and the hub can't be reached. Set one of them.")
    if place.kind == "folder":
        rows = read_tsv(_split_file(Path(place.where), task, split), task)
    elif place.kind == "built":
        texts, labels = tiny_rows(split, TINY_ROWS[split])
        rows = table(task.fields, [(text,) for text in texts], labels)
    elif place.kind == "package":
        rows = _package_rows(task, split, cache)
    else:
        rows = _hub_rows(task, split, cache)
    missing = sorted(set(range(len(task.labels))) - set(rows.rows_by_label))
    if missing:
        raise DataError(f"task {task.name!r}: no {split} row has label {task.labels[missing[0]]!r} ({place.where}).")
    return rows


def split_hash(task: TaskConfig, split: str, cache: Path) -> str:
    """The content hash of a split, remembered for a file that hasn't changed: reading a large one takes seconds."""
    place = find_place(task, cache)
    identity: dict[str, object] = {
        "reader": READER_VERSION,
        "split": split,
        "fields": task.fields,
        "labels": task.labels,
    }
    if place is not None and place.kind == "folder":
        file = _split_file(Path(place.where), task, split).resolve()
        state = file.stat()
        identity |= {"file": str(file), "bytes": state.st_size, "modified": state.st_mtime_ns}
    elif place is not None and place.kind == "package":
        identity |= {"package": task.package, "sha256": task.sha256}
    elif place is not None and place.kind == "hub" and "@" in str(task.hub):
        identity |= {"hub": task.hub, "config": task.hub_config, "dev": task.hub_dev}
    else:
        return load_split(task, split, cache).content_hash
    remembered = cache / "hashes" / content_key(identity)
    try:
        return remembered.read_text().strip()
    except FileNotFoundError:
        found = load_split(task, split, cache).content_hash
        write_bytes(remembered, f"{found}\n".encode())
        return found


def _split_file(folder: Path, task: TaskConfig, split: str) -> Path:
    name = task.train if split == "train" else task.dev
    for candidate in (folder / name, folder / name.removesuffix(".gz")):
        if candidate.is_file():
            return candidate
    raise DataError(
        f"{folder / name}: there is no such file. Put it there, or set task.path to the folder that has it."
    )


def _hub_file(task: TaskConfig, split: str, cache: Path) -> Path:
    """Where a split from the hub is kept: gzipped JSON lines of texts and label."""
    source = {"reader": READER_VERSION, "hub": task.hub, "config": task.hub_config, "fields": task.fields}
    return cache / "data" / content_key(source | {"split": split, "dev": task.hub_dev}) / f"{split}.jsonl.gz"


def _hub_rows(task: TaskConfig, split: str, cache: Path) -> TextTable:
    file = _hub_file(task, split, cache)
    if not file.is_file():
        texts, labels = _fetch_hub_rows(task, split)
        lines = (json.dumps([*text, int(label)]) + "\n" for text, label in zip(texts, labels, strict=True))
        write_bytes(file, gzip.compress("".join(lines).encode(), mtime=0))
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    return table(task.fields, [tuple(row[:-1]) for row in rows], [row[-1] for row in rows])


def _fetch_hub_rows(task: TaskConfig, split: str) -> tuple[list[tuple[str, ...]], list[int]]:
    from datasets import load_dataset  # heavy, and needed for the hub alone

    identity, _, revision = str(task.hub).partition("@")
    name = "train" if split == "train" else task.hub_dev
    try:
        rows = load_dataset(identity, task.hub_config, split=name, revision=revision or None)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise SourceError(f"task {task.name!r}: {task.hub} can't be loaded from the hub ({reason}).") from error
    columns = [rows[field] for field in task.fields]
    return [tuple(fold_space(value) for value in values) for values in zip(*columns, strict=True)], list(rows["label"])


MOVIE_SNIPPETS = "movieReviewSnippets_GroundTruth.txt"
MOVIE_DEV_ROWS = 1000


def _package_rows(task: TaskConfig, split: str, cache: Path) -> TextTable:
    """Movie snippets with a mean rating in -4..4: the label is its sign, and |mean| < 0.5 is dropped."""
    archive = fetch_package(str(task.package), str(task.sha256), cache / "packages", sdist=True)
    texts: list[tuple[str, ...]] = []
    labels = []
    for line in _movie_snippets(archive).splitlines():
        _, rating, text = line.split("\t", 2)
        if abs(float(rating)) >= 0.5 and text.strip():
            texts.append((fold_space(text),))
            labels.append(int(float(rating) > 0))
    order = np.random.default_rng(derive_seed("dev", task.name)).permutation(len(texts))
    rows = order[:MOVIE_DEV_ROWS] if split == "dev" else order[MOVIE_DEV_ROWS:]
    return table(task.fields, texts, labels).take(rows)


def _movie_snippets(archive: Path) -> str:
    """The snippets' file, from the archive or from an archive inside it."""
    with tarfile.open(archive) as outer:
        content = _member(outer, MOVIE_SNIPPETS)
        nested = _member(outer, ".tar.gz") or _member(outer, ".tgz") or _member(outer, ".tar")
        if content is None and nested is not None:
            with tarfile.open(fileobj=io.BytesIO(nested)) as inner:
                content = _member(inner, MOVIE_SNIPPETS)
    if content is None:
        raise SourceError(f"{archive}: no {MOVIE_SNIPPETS} inside.")
    return content.decode("utf-8", "replace")


def _member(archive: tarfile.TarFile, ending: str) -> bytes | None:
    """The content of the first file whose name ends so."""
    names = [member.name for member in archive.getmembers() if member.isfile() and member.name.endswith(ending)]
    stream = archive.extractfile(names[0]) if names else None
    return stream.read() if stream else None


@dataclass(frozen=True)
class Corpus:
    """A task's training rows, and the rows cut from them on which every choice is made."""

    train: TextTable
    valid: TextTable
    content_hash: str  # of all training rows, before the cut


def load_corpus(task: TaskConfig, data: DataConfig, cache: Path) -> Corpus:
    """Training rows without the held-out ones. Dev is not read here: `evaluate` alone does that."""
    rows = load_split(task, "train", cache)
    held_out = stratified_rows(rows, data.valid_rows, derive_seed("valid", task.name))
    kept = np.setdiff1d(np.arange(len(rows)), held_out)
    return Corpus(rows.take(kept), rows.take(held_out), rows.content_hash)


def stratified_rows(rows: TextTable, n: int, seed: int) -> np.ndarray:
    """`n` row indices, ascending, with the labels' own shares (largest remainders). Raises DataError."""
    if n >= len(rows):
        raise DataError(f"data.valid_rows={n} would leave nothing of {len(rows)} training rows; lower it.")
    generator = np.random.default_rng(seed)
    groups = list(rows.rows_by_label.values())
    exact = np.array([len(group) * n / len(rows) for group in groups])
    counts = np.floor(exact).astype(int)
    for position in np.argsort(counts - exact, kind="stable")[: n - counts.sum()]:
        counts[position] += 1
    chosen = [generator.choice(group, size=count, replace=False) for group, count in zip(groups, counts, strict=True)]
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, dtype=int)
