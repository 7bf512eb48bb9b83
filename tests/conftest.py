"""Fixtures: the tiny configuration, and models built in code once a run."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import settings

from dilm.checks import typed
from dilm.compose import attach
from dilm.config import CONF_FOLDER, Config

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
torch.set_num_threads(1)
settings.register_profile("dilm", deadline=None)  # the first example loads what is loaded where it is used
settings.load_profile("dilm")

DISK_BYTES = 65_536

Compose = Callable[..., Config]


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and feature cache of this run alone."""
    return tmp_path_factory.mktemp("cache")


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
