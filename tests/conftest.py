"""Fixtures: the tiny configuration, and models built in code once a run."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from dilm.checks import typed
from dilm.config import CONF_FOLDER, Config, attach

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
torch.set_num_threads(1)

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
