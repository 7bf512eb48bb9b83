"""Vectors that are kept: found again without the model, and told apart by model, kind and texts."""

from pathlib import Path

import torch

from dilm.config.schema import LearnerConfig, SourceConfig
from dilm.models.features import FeatureStore

TEXTS = [("good",), ("bad film",)]


def store(cache: Path, pooling: str = "mean") -> FeatureStore:
    config = LearnerConfig("tiny", SourceConfig(built="tiny-bert"), pooling=pooling, embedding="mean", max_length=32)
    return FeatureStore(config, 2, cache, torch.device("cpu"), "fp32")


def test_found_again_without_loading_the_model(tmp_path: Path) -> None:
    first = store(tmp_path).get(TEXTS, "features")
    again = store(tmp_path)
    assert torch.equal(again.get(TEXTS, "features"), first)
    assert again._learner is None


def test_each_model_kind_and_text_has_its_own(tmp_path: Path) -> None:
    files = set()
    for pooling, what, texts in [
        ("mean", "features", TEXTS),
        ("cls", "features", TEXTS),
        ("mean", "embed", TEXTS),
        ("mean", "features", TEXTS[:1]),
    ]:
        store(tmp_path, pooling).get(texts, what)
        files = set((tmp_path / "features").iterdir())
    assert len(files) == 4
