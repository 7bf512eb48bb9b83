"""One training step against a hand-written one."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from dilm.config.schema import Config, EngineConfig, OptimizerConfig
from dilm.core.errors import ConfigError
from dilm.distributed.world import ALONE, World
from dilm.training.engine import TorchEngine, check_engine, uses_deepspeed


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


def test_parts_are_summed() -> None:
    model = nn.Linear(2, 1, bias=False)
    engine = TorchEngine(model, OptimizerConfig(lr=0.1, warmup=0.0, clip=100.0), steps=10)
    inputs = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    expected = float(model(inputs).detach().sum())
    done = engine.step(lambda: engine(inputs[0]).sum(), lambda: engine(inputs[1]).sum())
    assert done.loss == pytest.approx(expected)
    assert done.norm == pytest.approx(52**0.5)  # of (4, 6)


def test_a_loss_that_is_not_finite_updates_nothing() -> None:
    model = nn.Linear(2, 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    engine = TorchEngine(model, OptimizerConfig(lr=0.1, warmup=0.0), steps=10)
    done = engine.step(lambda: model(torch.ones(1, 2)).sum() * float("inf"))
    assert not math.isfinite(done.loss)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_auto_is_torch_for_one_process_on_a_cpu() -> None:
    cpu, gpu, two = torch.device("cpu"), torch.device("cuda"), World(0, 2)
    assert not uses_deepspeed(EngineConfig("auto"), ALONE, cpu)
    assert uses_deepspeed(EngineConfig("auto"), ALONE, gpu)
    assert uses_deepspeed(EngineConfig("auto"), two, cpu)
    assert uses_deepspeed(EngineConfig("zero1"), ALONE, cpu)
    assert not uses_deepspeed(EngineConfig("torch"), two, gpu)


@pytest.mark.parametrize(
    ("keys", "ranks", "message"),
    [
        (["engine=torch"], 2, "engine=torch is for one process, and there are 2"),
        (["engine=zero1", "pretrain.batch=3"], 4, r"pretrain\.batch is 3, fewer than ranks x engine\.accumulate = 4"),
        (["engine=zero1", "engine.accumulate=8"], 2, r"match\.synthetic_dpc is 8, fewer than .* = 16"),
        (["engine=zero2", "++engine.deepspeed.zero_optimization.stages=2"], 1, r"zero_optimization\.stages is unknown"),
        (["engine=zero3", "engine.compile=true"], 1, r"engine\.compile is true, and stage 3 gathers .* engine=zero2"),
    ],
)
def test_an_engine_that_cannot_work_is_refused(
    tiny: Callable[..., Config], keys: list[str], ranks: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_engine(tiny(*keys), World(0, ranks))
