"""Fixtures of the unit tests."""

import shutil
from pathlib import Path

import pytest
from pairs import TASK

from dilm.config.schema import GeneratorConfig, SourceConfig
from dilm.hub.pretrained import model_folder
from dilm.models.generator import Generator, build_generator


@pytest.fixture(scope="module")
def generator(tiny_cache: Path) -> Generator:
    """A tiny GPT-2 for pairs of texts, in eval mode."""
    folder = model_folder("tiny", SourceConfig(built="tiny-gpt2"), tiny_cache)
    built = build_generator(folder, GeneratorConfig("tiny"), TASK)
    built.model.eval()
    return built


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store's file with its tables and nothing in them."""
    from mlflow import MlflowClient  # heavy, and for few tests

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def uri(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store of this test's own; whatever MLflow writes where the command is run stays with it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"
