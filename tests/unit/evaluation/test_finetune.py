"""Evaluated learners: heads trained side by side are those trained one by one."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dilm.config.schema import Config
from dilm.core.hashing import derive_seed
from dilm.data.corpus import load_split
from dilm.data.samplers import plain_batches
from dilm.distributed.context import Context
from dilm.distributed.device import seeded
from dilm.evaluation.cells import Training
from dilm.evaluation.finetune import frozen, schedule_of, train_heads
from dilm.models.features import FeatureStore
from dilm.training.engine import TorchEngine


def one_head(features_BD: Tensor, labels_B: Tensor, config: Config, names: tuple[str | int, ...]) -> nn.Linear:
    """A head trained alone, as any module is trained."""
    n, schedule = len(labels_B), schedule_of(config, len(labels_B))
    with seeded(derive_seed("head", *names), torch.device("cpu")):
        head = nn.Linear(features_BD.shape[1], len(config.task.labels))
        nn.init.normal_(head.weight, std=0.02)
    engine = TorchEngine(head, schedule.optimizer, schedule.steps)
    batches = plain_batches(n, min(schedule.batch, n), np.random.default_rng(derive_seed("batches", *names)))
    for _ in range(schedule.steps):
        rows = torch.as_tensor(next(batches))
        engine.step(lambda rows=rows: nn.functional.cross_entropy(head(features_BD[rows]), labels_B[rows]))
    return head


@pytest.mark.parametrize("clip", [1.0, 0.05])
def test_heads_side_by_side_are_the_heads_one_by_one(tiny: Callable[..., Config], clip: float) -> None:
    config = tiny("learner.freeze_encoder=true", "evaluate.batch=5", f"evaluate.optimizer.clip={clip}")
    random = torch.Generator().manual_seed(0)
    examples = [(torch.randn(12, 8, generator=random), torch.randint(2, (12,), generator=random)) for _ in range(3)]
    work = [(examples[number % 3], ("cell", number)) for number in range(7)]
    weights, biases = train_heads([example for example, _ in work], config, [names for _, names in work])
    for weight, bias, (example, names) in zip(weights, biases, work, strict=True):
        expected = one_head(*example, config, names)
        assert torch.allclose(weight, expected.weight, atol=1e-6)
        assert torch.allclose(bias, expected.bias, atol=1e-6)


def test_frozen_cells_have_the_same_scores_together_alone_and_one_by_one(
    tiny: Callable[..., Config], tiny_cache: Path
) -> None:
    config = tiny("learner.freeze_encoder=true")
    rows, dev = (load_split(config.task, split, tiny_cache) for split in ("train", "dev"))
    sizes = (10, 10, 6, 10)
    work = [
        Training(rows.take(range(50 * number, 50 * number + size)), ("cell", number, seed))
        for number, size in enumerate(sizes)
        for seed in range(2)
    ]
    together = frozen(Context(config), work, dev)
    store = FeatureStore(config.learner, 2, tiny_cache, torch.device("cpu"), config.precision)
    dev_ND = store.get(dev.texts, "features")
    for dataset, names in reversed(work):
        found = together(dataset, names)
        assert np.array_equal(found, frozen(Context(config), [Training(dataset, names)], dev)(dataset, names))
        features_BD = store.get(dataset.texts, "features")
        scale = features_BD.square().mean().sqrt()
        head = one_head(features_BD / scale, torch.as_tensor(dataset.labels), config, names)
        assert np.array_equal(found, head(dev_ND / scale).argmax(1).numpy())
    assert len({together(*cell).tobytes() for cell in work}) > 1
