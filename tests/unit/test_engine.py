"""One training step against a hand-written one."""

import pytest
import torch
from torch import nn

from dilm.config import OptimizerConfig
from dilm.engine import TorchEngine


def test_schedule_warms_up_and_falls_to_zero() -> None:
    engine = TorchEngine(nn.Linear(2, 1), OptimizerConfig(lr=1.0, warmup=0.5), steps=4)
    rates = []
    for _ in range(4):
        rates.append(engine.schedule.get_last_lr()[0])
        engine.step(lambda: engine(torch.ones(1, 2)).sum())
    assert rates == pytest.approx([0.0, 0.5, 1.0, 0.5])
    assert engine.schedule.get_last_lr()[0] == pytest.approx(0)


def test_step_returns_the_norm_before_clipping_and_clips() -> None:
    model = nn.Linear(2, 1, bias=False)
    engine = TorchEngine(model, OptimizerConfig(lr=0.1, warmup=0.0, weight_decay=0.0, clip=1e-3), steps=10)
    assert engine.step(lambda: 1000 * model(torch.ones(1, 2)).sum()).norm == pytest.approx(1000 * 2**0.5)
    moment = engine.optimizer.state[model.weight]["exp_avg"]
    assert float(moment.norm()) == pytest.approx(0.1 * 1e-3, rel=1e-3)
