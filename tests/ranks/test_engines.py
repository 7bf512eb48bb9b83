"""Every ZeRO stage, on one and two processes, against plain torch: equal gradients and equal updates."""

from pathlib import Path
from typing import Any

import forking
import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.dist
WORKER = Path(__file__).with_name("worker.py")
# Clipped far below the norm, so that clipping must see the whole gradient; the first step is a whole one.
OPTIMIZER = [f"{stage}.optimizer.{key}" for stage in ("pretrain", "match") for key in ("clip=1e-3", "warmup=0.0")]


def torchrun(n: int, *command: str) -> list[str]:
    start = ["-m", "torch.distributed.run", "--nproc-per-node", str(n), "--rdzv-backend", "c10d"]
    return [*start, "--rdzv-endpoint", "127.0.0.1:0", *command]


def run(ranks: int, *command: str, timeout: float = 300) -> None:
    done = forking.run(*(command if ranks == 1 else torchrun(ranks, *command)), timeout=timeout)
    assert done.returncode == 0, done.stderr[-3000:]


class Runs:
    """The worker's results, by ranks and keys; the pre-trained parent is made once, by the usual command."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder = folder
        fixed = ["experiment=tiny", f"root={folder / 'runs'}", f"cache={cache}", "threads=1", "generator.dropout=0.0"]
        self.keys = [*fixed, "pretrain.steps=30", *OPTIMIZER]
        run(1, "-m", "dilm.train", *self.keys, "stages=[pretrain]")
        self.reference = self(1, "engine=torch")

    def __call__(self, ranks: int, *overrides: str) -> dict[str, Any]:
        out = self.folder / "result.pt"
        run(ranks, str(WORKER), str(out), str(self.folder / "pool.json"), *self.keys, *overrides)
        return dict(torch.load(out, weights_only=True))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_cache: Path) -> Runs:
    return Runs(tmp_path_factory.mktemp("ranks"), tiny_cache)


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Relative norm of the difference of all parameters together."""
    assert found.keys() == expected.keys()
    total = sum(float(value.square().sum()) for value in expected.values())
    return (sum(float((found[name] - expected[name]).square().sum()) for name in expected) / total) ** 0.5


def compare(found: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    for stage in ("pretrain", "match"):
        assert found[stage]["told"] == pytest.approx(expected[stage]["told"], rel=tolerance)
        for what in ("gradients", "updates"):
            assert distance(found[stage][what], expected[stage][what]) <= tolerance, (stage, what)


def zero(stage: int) -> list[str]:
    """At stage 3 nothing is so small that it stays whole."""
    threshold = "++engine.deepspeed.zero_optimization.stage3_param_persistence_threshold=0"
    return [f"engine=zero{stage}", *([threshold] if stage == 3 else [])]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_gradients_and_updates_are_those_of_one_process(runs: Runs, stage: int, ranks: int) -> None:
    compare(runs(ranks, *zero(stage), "engine.accumulate=2"), runs.reference, 1e-3)


def test_another_matching_loss_gives_one_process_and_two_the_same(runs: Runs) -> None:
    """With a loss that heeds a gradient's length a text's slope depends on the texts of all ranks."""
    key = "distance=mean_squared"
    alone = runs(1, "engine=torch", key)
    assert distance(alone["match"]["gradients"], runs.reference["match"]["gradients"]) > 0.5
    compare(runs(2, *zero(1), "engine.accumulate=2", key), alone, 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["zero1", "zero3", "zero3_offload"])
def test_three_ranks_and_whole_batches(runs: Runs, engine: str) -> None:
    """Parameters that three ranks can't share equally, and one backward pass a step."""
    compare(runs(3, f"engine={engine}"), runs.reference, 1e-3)


@pytest.mark.parametrize("key", ["engine.accumulate=3", "engine.gradient_checkpointing=true"])
def test_saving_memory_changes_nothing(runs: Runs, key: str) -> None:
    compare(runs(1, "engine=torch", key), runs.reference, 2e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "ranks"), [("torch", 1), ("zero2", 2)])
def test_a_compiled_generator_learns_the_same(runs: Runs, engine: str, ranks: int) -> None:
    compare(runs(ranks, f"engine={engine}", "engine.compile=true"), runs.reference, 1e-3)


@pytest.mark.parametrize(
    ("stage", "ranks"), [(2, 2), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, 2), (3, 2), (3, 3)))]
)
def test_bf16_stays_near_fp32(runs: Runs, stage: int, ranks: int) -> None:
    """Forward passes round to 8 bits: gradients within 3%, where a wrong scale would be 100% off."""
    keys = ("precision=bf16", *zero(stage), "engine.accumulate=2")
    compare(runs(ranks, *keys), runs.reference, 3e-2)
