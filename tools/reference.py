"""What the tiny study gives, byte by byte: `python tools/reference.py run FILE`, `... compare BEFORE AFTER`.

A change that should change no result is shown to change none: run this at the commit before and after, and compare.
The study is every method, evaluator and way of training of `experiment=tiny`, on a task of one field and two labels and
on one of two fields and three labels. Written down are the folders of all artifacts, the SHA-256 of every shard, of
each of its columns and of every safetensors file, and every row but its time, host and job.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np

Keys = tuple[str, ...]
ROOT = Path(__file__).resolve().parents[1]
TASKS: dict[str, Keys] = {
    "tiny": ("task=tiny",),
    "mnli": ("task=mnli", "task.max_length=48", "task.path={data}/mnli"),
}
WORDS = "the a film plot cast score scene was is seems looks good bad dull bright long short warm cold".split()
TRAINED = "ablation=none,pooled_learners,imitation,last_layer,lm_regulariser,continued_learner,no_diverse"
REAL = "method=random,k_centers,herding,teach,full,published"
WRITTEN = "method=rank,lm,dilm"
VARIANTS = "ablation=pooled_learners,imitation,teach_selection,no_selection"
PUBLISHED = "published.path={data}/published-{task}"
DATASETS: tuple[Keys, ...] = ((REAL, PUBLISHED), (WRITTEN,), ("method=dilm", VARIANTS))
LEARNING: tuple[Keys, ...] = ((), ("learner.freeze_encoder=true",), ("evaluator=words",))
IN_CONTEXT = ("evaluator=icl", "icl.shots=1", "method=random,teach,lm,dilm")
VOLATILE = ("time", "host", "job_id", "seconds")  # of a row


def commands() -> Iterator[tuple[str, Keys]]:
    """The study of one task: commands in order, each with its keys."""
    yield "train", (TRAINED,)
    for keys in DATASETS:
        yield "generate", keys
    yield "generate", ("method=lm,dilm", "generate.pool=fresh", "generate.oversample=6")
    for keys in DATASETS:
        for learning in LEARNING:
            yield "evaluate", (*keys, *learning)
    yield "evaluate", IN_CONTEXT


def write_data(folder: Path) -> None:
    """Rows of the second task, and data sets that are published: from a seed, so that they are the same everywhere."""
    draws = np.random.default_rng(7)
    for split, n in (("train", 700), ("dev", 120)):
        rows = [f"{_text(draws)}\t{_text(draws)}\t{number % 3}" for number in range(n)]
        path = folder / "mnli" / f"{'dev_matched' if split == 'dev' else split}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(["premise\thypothesis\tlabel", *rows, ""]))
    for task, fields, n_labels in (("tiny", ["sentence"], 2), ("mnli", ["premise", "hypothesis"], 3)):
        for number in range(2):
            path = folder / f"published-{task}" / f"dataset_{number}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            texts = [{field: _text(draws) for field in fields} for _ in range(4 * n_labels)]
            lines = [json.dumps({**text, "labels": row % n_labels}) for row, text in enumerate(texts)]
            path.write_text("\n".join([*lines, ""]))


def _text(draws: np.random.Generator) -> str:
    return " ".join(draws.choice(WORDS, draws.integers(3, 9)))


def run_task(task: str, work: Path, repository: Path) -> None:
    """Run the study of one task below `work`. Raises RuntimeError with what a command said where it fails."""
    fixed = ["experiment=tiny", *TASKS[task], "threads=1", f"root={work / 'runs'}", f"cache={work / task / 'cache'}"]
    environment = {**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for command, keys in commands():
        arguments = [key.format(data=work / "data", task=task) for key in (*fixed, *keys)]
        call = [sys.executable, "-m", f"dilm.{command}", "-m", *arguments]
        done = subprocess.run(call, cwd=repository, env=environment, capture_output=True, text=True)
        print(f"{task}: {command} {' '.join(keys)}: {done.returncode}", file=sys.stderr, flush=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(call)}\n{done.stdout}{done.stderr}")


def sha256(content: bytes) -> str:
    """SHA-256, as hex."""
    return hashlib.sha256(content).hexdigest()


def columns(path: Path) -> dict[str, str]:
    """SHA-256 of the values of every column of a shard."""
    found: dict[str, str] = {}

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = sha256(item[:].tobytes())

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return found


def digest(root: Path) -> dict[str, Any]:
    """Everything below a root that must not change."""
    folders = sorted(path.parent for path in root.rglob("provenance.json"))
    artifacts: dict[str, dict[str, Any]] = {}
    for folder in folders:
        files = sorted(path for path in folder.rglob("*") if path.suffix in (".h5", ".safetensors"))
        artifacts[str(folder.relative_to(root))] = {
            str(path.relative_to(folder)): {"sha256": sha256(path.read_bytes())}
            | ({"columns": columns(path)} if path.suffix == ".h5" else {})
            for path in files
        }
    rows = [json.loads(line) for path in root.glob("rows/*.jsonl") for line in path.read_text().splitlines()]
    told = {row["key"]: {name: value for name, value in row.items() if name not in VOLATILE} for row in rows}
    if len(told) != len(rows):
        raise RuntimeError(f"{len(rows)} rows, but {len(told)} keys: a cell was evaluated twice.")
    return {"artifacts": artifacts, "rows": dict(sorted(told.items()))}


def run(file: Path, repository: Path) -> None:
    """Run the study of every task with the code of a repository, and write what it gave."""
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(len(TASKS)) as pool:
        work = Path(temporary)
        write_data(work / "data")
        list(pool.map(lambda task: run_task(task, work, repository), TASKS))
        found = digest(work / "runs")
    file.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{_size(found)}: {file}")


def _size(found: dict[str, Any]) -> str:
    n_files = sum(map(len, found["artifacts"].values()))
    return f"{len(found['artifacts'])} artifacts, {n_files} files, {len(found['rows'])} rows"


def compare(before: Path, after: Path) -> int:
    """Print what differs; how many differences there are. Shards of two schemas are compared column by column."""
    old, new = (json.loads(path.read_text()) for path in (before, after))
    differences = [*_names(old, new), *_values(old, new)]
    for line in differences:
        print(line)
    print(f"{_size(old)}: {len(differences)} differences")
    return len(differences)


def _names(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    for kind in ("artifacts", "rows"):
        for name in sorted(old[kind].keys() ^ new[kind].keys()):
            yield f"{kind}: {name} only {'before' if name in old[kind] else 'after'}"


def _values(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    for name in sorted(old["artifacts"].keys() & new["artifacts"].keys()):
        first, second = old["artifacts"][name], new["artifacts"][name]
        for file in sorted(first.keys() | second.keys()):
            if why := _file(first.get(file), second.get(file)):
                yield f"artifacts: {name}/{file}: {why}"
    for key in sorted(old["rows"].keys() & new["rows"].keys()):
        first, second = old["rows"][key], new["rows"][key]
        for field in sorted(first.keys() | second.keys()):
            if field not in first or field not in second or first[field] != second[field]:
                yield f"rows: {key} {field}: {first.get(field)!r}, then {second.get(field)!r}"


def _file(first: dict[str, Any] | None, second: dict[str, Any] | None) -> str:
    if first is None or second is None:
        return "only before" if first else "only after"
    if first["sha256"] == second["sha256"]:
        return ""
    if "columns" not in first:
        return "other bytes"
    differing = {name for name, value in first["columns"].items() if second["columns"].get(name) != value}
    if "index" in second["columns"] and "index" not in first["columns"]:  # schema 2 cut `seed` in `index` and `seed`
        differing -= {"seed"}
        if first["columns"]["seed"] not in (second["columns"]["index"], second["columns"]["seed"]):
            differing |= {"seed"}
    return f"other {', '.join(sorted(differing))}" if differing else ""


def main() -> None:
    """Run or compare, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    running = modes.add_parser("run", help="run the study, and write down what it gives")
    running.add_argument("file", type=Path)
    running.add_argument("--repository", type=Path, default=ROOT, help="a checkout whose code is run (default: this)")
    comparing = modes.add_parser("compare", help="print what differs; exit status 1 if anything does")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    arguments = parser.parse_args()
    if arguments.mode == "run":
        run(arguments.file, arguments.repository.resolve())
    elif compare(arguments.before, arguments.after):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
