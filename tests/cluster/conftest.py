"""Fixtures: a real cluster for all tests of this folder, and what they ask of it."""

import gzip
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import forking
import pytest
from daemons import cluster, missing, variables

from dilm.hub.tiny import tiny_rows

REPOSITORY = Path(__file__).resolve().parents[2]
MAX_ARRAY_SIZE = 11
# A cluster of CPUs: one thread a process, and no wait for a signal that would come at once.
CPUS = ["experiment=tiny", "launcher.gpus=0", "site.cpus=1", "site.mem_gb=2", "threads=1"]


@pytest.fixture(scope="session")
def up() -> Iterator[Path]:
    """A cluster of four nodes that takes arrays of eleven jobs; its folder."""
    if reason := missing():
        pytest.skip(reason)
    with cluster(max_array_size=MAX_ARRAY_SIZE) as folder:
        yield folder


@pytest.fixture
def slurm(up: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cluster, found by Slurm's commands during this test alone."""
    for name, value in (variables(up) | {"OMP_NUM_THREADS": "1"}).items():
        monkeypatch.setenv(name, value)
    return up


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files in the folders of SST-2, QQP and MNLI."""
    root = tmp_path_factory.mktemp("data")
    for folder, fields, n_labels in (
        ("SST-2", ["sentence"], 2),
        ("QQP", ["question1", "question2"], 2),
        ("MNLI", ["premise", "hypothesis"], 3),
    ):
        (root / folder).mkdir()
        for split, name in (("train", "train"), ("dev", "dev_matched" if folder == "MNLI" else "dev")):
            texts, _ = tiny_rows(split, 900)
            rows = ["\t".join([*([text] * len(fields)), str(i % n_labels)]) for i, text in enumerate(texts)]
            lines = "\n".join(["\t".join([*fields, "label"]), *rows, ""])
            (root / folder / f"{name}.tsv.gz").write_bytes(gzip.compress(lines.encode()))
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where a test's jobs write."""
    return tmp_path / "runs"


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(slurm: Path, data: Path, tiny_cache: Path, root: Path, tmp_path: Path) -> Run:
    """Run a command of the project (`train`, `tools/submit.py`) as a user on the login node does."""

    def ran(command: str, *arguments: str, status: int | None = 0) -> subprocess.CompletedProcess[str]:
        start = [str(REPOSITORY / command)] if command.endswith(".py") else ["-m", f"dilm.{command}"]
        environment = os.environ | {"DILM_DATA": str(data), "DILM_CACHE": str(tiny_cache)}
        done = forking.run(*start, *arguments, cwd=tmp_path, env=environment, timeout=500)
        assert status in (None, done.returncode), done.stdout + done.stderr
        return done

    return ran


@pytest.fixture
def keys(root: Path) -> list[str]:
    """Keys of every command."""
    return [*CPUS, f"root={root}"]
