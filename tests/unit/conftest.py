"""Fixtures of the unit tests."""

from pathlib import Path

import pytest
from pairs import TASK

from dilm.config import GeneratorConfig, SourceConfig
from dilm.generator import Generator, build_generator
from dilm.sources import model_folder


@pytest.fixture(scope="module")
def generator(tiny_cache: Path) -> Generator:
    """A tiny GPT-2 for pairs of texts, in eval mode."""
    folder = model_folder("tiny", SourceConfig(built="tiny-gpt2"), tiny_cache)
    built = build_generator(folder, GeneratorConfig("tiny"), TASK)
    built.model.eval()
    return built
