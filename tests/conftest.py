"""Fixtures: the tiny configuration, and models built in code once a run."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before anything reads it: several tests share the cores

import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, settings

from dilm.config.compose import attach
from dilm.config.schema import Config
from dilm.config.validate import typed
from dilm.core.io import CONF_FOLDER

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
torch.set_num_threads(1)
# No deadline: the first example loads what is loaded where it is used. No check of speed: it would measure the load.
settings.register_profile("dilm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dilm")

DISK_BYTES = 65_536

# What a worker takes as a whole, the longest first so that none is left over at the end: one Slurm cluster serves all
# tests of its folder, one at a time. Every other file is a part of its own, and comes when these are dealt.
LONGEST = ("cluster", "ranks/test_resume.py", "ranks/test_engines.py", "ranks/test_commands.py", "unit/test_cli.py",
           "e2e/test_pipeline.py", "e2e/test_teach.py", "unit/launch/test_worker.py", "e2e/test_browser.py")  # fmt: skip

Compose = Callable[..., Config]


def part_of(node: str) -> str:
    """The part that a test's id belongs to: its file, or the folder of a cluster."""
    file = node.partition("::")[0].removeprefix("tests/")
    return "cluster" if file.startswith("cluster/") else file


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest parts first; within them, and after them, as collected."""
    assert all((Path(__file__).parent / part).exists() for part in LONGEST), "LONGEST names a part that has moved"
    ranks = {part: rank for rank, part in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(part_of(item.nodeid), len(ranks)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With several workers (`pytest -n 2`), deal whole parts, in the order of the tests."""
    from xdist.scheduler import LoadScopeScheduling

    class Parts(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return part_of(nodeid)

    config.option.loadscopereorder = False
    return Parts(config, log)


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and feature cache of this run alone, which all its workers share as jobs of one user do."""
    base = tmp_path_factory.getbasetemp()
    cache = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    cache.mkdir(exist_ok=True)
    return cache


@pytest.fixture
def tiny(tmp_path: Path, tiny_cache: Path) -> Compose:
    """Compose `experiment=tiny` with overrides; the root is the test's own folder."""

    def composed(*overrides: str) -> Config:
        attach()
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF_FOLDER)):
            fixed = ["experiment=tiny", f"root={tmp_path / 'runs'}", f"cache={tiny_cache}", "threads=1"]
            return typed(compose("config", [*fixed, *overrides]))

    return composed


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 KiB, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("this user may not mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
