"""Where a task's rows are found, and how they are cut."""

import dataclasses
import gzip
import io
import json
import os
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dilm.config.compose import load_task
from dilm.config.schema import Config, DataConfig, TaskConfig
from dilm.core.errors import DataError, SourceError
from dilm.core.hashing import cached, content_key, derive_seed
from dilm.core.io import REPOSITORY, write_bytes
from dilm.data.templates import fold_space
from dilm.data.text_table import TextTable, read_table, table
from dilm.hub.pretrained import cache_folder, fetch_package, hub_reachable
from dilm.hub.tiny import tiny_rows


def with_fallback(config: Config) -> Config:
    """The configuration with `data.fallback`'s task where the chosen task's rows are nowhere to be had."""
    if config.data.fallback is None:
        return config
    if all(find_place(config.task, split, cache_folder(config.cache)) for split in ("train", "dev")):
        return config
    print(f"no rows of task {config.task.name!r} can be had here; taking {config.data.fallback!r}", file=sys.stderr)
    return dataclasses.replace(config, task=load_task(config.data.fallback))


SHARED_DATA = REPOSITORY.parent / "shared" / "data"
READER_VERSION = 1  # raised when the same file gives other rows
TINY_ROWS = {"train": 1200, "dev": 300}


@dataclass(frozen=True)
class Place:
    """Where a task's rows were found: kind (folder, hub, package, built) and, for people, which."""

    kind: str
    where: str


def find_place(task: TaskConfig, split: str, cache: Path) -> Place | None:
    """The first place that has a split: path, $DILM_DATA, ../shared/data, then code, package or the hub.

    A folder of the task that lacks the split's file is passed over where another place has it. What was fetched from
    the hub once is in the cache, and needs no hub.
    """
    if task.path is not None:
        return Place("folder", task.path)
    for folder in _folders(task):
        if _file_in(folder, task, split) is not None:
            return Place("folder", str(folder))
    if task.built is not None:
        return Place("built", task.built)
    if task.package is not None:
        return Place("package", task.package)
    if task.hub is not None and (_hub_file(task, split, cache).is_file() or hub_reachable()):
        return Place("hub", str(task.hub))
    return None


def _folders(task: TaskConfig) -> list[Path]:
    """The task's folders below the data roots."""
    roots = [Path(os.environ["DILM_DATA"])] if os.environ.get("DILM_DATA") else []
    return [root / task.folder for root in [*roots, SHARED_DATA] if task.folder and (root / task.folder).is_dir()]


def load_split(task: TaskConfig, split: str, cache: Path) -> TextTable:
    """The rows of split `train` or `dev`. Raises DataError or SourceError."""
    place = find_place(task, split, cache)
    if place is None:
        for folder in _folders(task):
            _split_file(folder, task, split)  # which tells what file is missing
        tried = f"task.path is not set, $DILM_DATA and {SHARED_DATA.parent.name}/data have no {task.folder!r}"
        raise DataError(f"task {task.name!r}: no rows found: {tried}, and the hub can't be reached. Set one of them.")
    if place.kind == "folder":
        rows = read_table(_split_file(Path(place.where), task, split), task)
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
    place = find_place(task, split, cache)
    identity: dict[str, object] = {
        "reader": READER_VERSION,
        "split": split,
        "fields": task.fields,
        "label": task.label,
        "labels": task.labels,
    }
    if place is not None and place.kind == "folder":
        file = _split_file(Path(place.where), task, split).resolve()
        state = file.stat()
        identity |= {"file": str(file), "bytes": state.st_size, "modified": state.st_mtime_ns}
    elif place is not None and place.kind == "package":
        identity |= {"package": task.package, "sha256": task.sha256}
    elif place is not None and place.kind == "hub" and "@" in str(task.hub):
        identity |= _hub_identity(task, split)
    else:
        return load_split(task, split, cache).content_hash

    def content() -> bytes:
        return f"{load_split(task, split, cache).content_hash}\n".encode()

    return cached(cache / "hashes", "*", identity, content).read_text().strip()


def _file_name(task: TaskConfig, split: str) -> str:
    return task.train if split == "train" else task.dev


def _file_in(folder: Path, task: TaskConfig, split: str) -> Path | None:
    name = _file_name(task, split)
    return next((file for file in (folder / name, folder / name.removesuffix(".gz")) if file.is_file()), None)


def _split_file(folder: Path, task: TaskConfig, split: str) -> Path:
    found = _file_in(folder, task, split)
    if found is None:
        raise DataError(
            f"{folder / _file_name(task, split)}: there is no such file. Put it there, or set task.path to the folder "
            "that has it."
        )
    return found


def _hub_split(task: TaskConfig, split: str) -> str:
    return task.hub_train if split == "train" else task.hub_dev


def _hub_identity(task: TaskConfig, split: str) -> dict[str, object]:
    """What determines a split of the hub's."""
    return {
        "hub": task.hub,
        "config": task.hub_config,
        "split": _hub_split(task, split),
        "columns": [*(task.hub_fields or task.fields), task.hub_label],
        "labels": task.hub_labels,
    }


def _hub_file(task: TaskConfig, split: str, cache: Path) -> Path:
    """Where a split from the hub is kept: gzipped JSON lines of texts and label."""
    key = content_key({"reader": READER_VERSION, "fields": task.fields} | _hub_identity(task, split))
    return cache / "data" / key / f"{split}.jsonl.gz"


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
    try:
        rows = load_dataset(identity, task.hub_config, split=_hub_split(task, split), revision=revision or None)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise SourceError(f"task {task.name!r}: {task.hub} can't be loaded from the hub ({reason}).") from error
    wanted = [*(task.hub_fields or task.fields), task.hub_label]
    if missing := [name for name in wanted if name not in rows.column_names]:
        known = ", ".join(rows.column_names)
        raise SourceError(f"task {task.name!r}: {task.hub} has no column {missing[0]!r}, but {known}.")
    columns = [rows[name] for name in wanted[:-1]]
    label_of = dict(enumerate(task.hub_labels or range(len(task.labels))))
    if unknown := set(rows[task.hub_label]) - set(label_of):
        raise SourceError(
            f"task {task.name!r}: a row of {task.hub} has label {unknown.pop()!r}; task.hub_labels (else task.labels) "
            f"says what 0 to {len(label_of) - 1} are, and no more."
        )
    texts = [tuple(fold_space(value) for value in values) for values in zip(*columns, strict=True)]
    return texts, [label_of[label] for label in rows[task.hub_label]]


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


def sampled_dev(dev: TextTable, n: int | None, task: str) -> TextTable:
    """A stratified sample of a task's dev rows, the same for all that is scored; all of them where n is None."""
    return dev if n is None or n >= len(dev) else dev.take(stratified_rows(dev, n, derive_seed("dev sample", task)))


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
