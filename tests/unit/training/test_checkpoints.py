"""Checkpoints that are whole, or passed over; what they bring back; how many are kept."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dilm.artifacts.artifact import Artifact
from dilm.config.schema import CheckpointConfig, OptimizerConfig
from dilm.core.errors import ConfigError, DiskFullError
from dilm.distributed.world import ALONE
from dilm.training import checkpoints as module
from dilm.training.checkpoints import Checkpoints
from dilm.training.engine import TorchEngine

INPUTS = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))


def build(universal: bool = False) -> TorchEngine:
    torch.manual_seed(0)
    return TorchEngine(nn.Linear(3, 1), OptimizerConfig(lr=0.1, warmup=0.2), steps=16)


def loss(engine: TorchEngine, step: int) -> Tensor:
    return engine(INPUTS[step]).square().sum()


def checkpoints(folder: Path, **config: Any) -> Checkpoints:
    return Checkpoints(Artifact(folder / "lm-x", "x", {}, ""), CheckpointConfig(**config), ALONE)


def train(kept: Checkpoints, metrics: Path, until: int) -> Tensor:
    """Train to step `until`, with a checkpoint where one is due; the weights."""
    engine, start, state = kept.resume(build, metrics)
    assert isinstance(engine, TorchEngine)
    assert state == ({"step": start} if start else {})
    for step in range(start + 1, until + 1):
        engine.step(lambda step=step: loss(engine, step - 1))  # type: ignore[misc]
        with open(metrics, "a") as stream:
            stream.write(json.dumps({"step": step}) + "\n")
        if kept.due(step):
            kept.save(step, engine, {"step": step}, metrics)
    return torch.cat([parameter.detach().flatten() for parameter in engine.module.parameters()])


def names(kept: Checkpoints) -> list[str]:
    return sorted(path.name for path in kept.folder.iterdir())


def test_training_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    straight = train(checkpoints(tmp_path / "a", steps=100), tmp_path / "straight", 12)
    kept = checkpoints(tmp_path / "b", steps=5)
    train(kept, tmp_path / "metrics", 7)  # two steps are lost
    assert torch.equal(train(kept, tmp_path / "metrics", 12), straight)
    assert (tmp_path / "metrics").read_text() == (tmp_path / "straight").read_text()


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    kept = checkpoints(tmp_path, steps=2, keep=2)
    train(kept, tmp_path / "metrics", 9)
    assert names(kept) == ["step-00000006", "step-00000008"]


@pytest.mark.parametrize("harm", ["truncated", "altered", "lost", "no manifest", "empty manifest"])
def test_a_harmed_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, harm: str) -> None:
    straight = train(checkpoints(tmp_path / "a", steps=100), tmp_path / "straight", 12)
    kept = checkpoints(tmp_path / "b", steps=2)
    train(kept, tmp_path / "metrics", 8)
    newest = kept.folder / "step-00000008"
    victim = newest / (module.MANIFEST_FILE if "manifest" in harm else "engine/engine.pt")
    content = victim.read_bytes()
    if harm in ("lost", "no manifest"):
        victim.unlink()
    else:
        harmed = {"truncated": content[:-10], "altered": content[:-10] + b"0123456789", "empty manifest": b""}
        victim.write_bytes(harmed[harm])
    with pytest.warns(UserWarning, match="step-00000008 is not whole"):
        assert torch.equal(train(kept, tmp_path / "metrics", 12), straight)


def test_what_a_killed_process_left_is_no_checkpoint(tmp_path: Path) -> None:
    kept = checkpoints(tmp_path, steps=2)
    (kept.folder / "step-00000004.tmp-host-1-ab" / "engine").mkdir(parents=True)
    _, start, _ = kept.resume(build, tmp_path / "metrics")
    assert start == 0
    assert names(kept) == []


def test_a_failed_save_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = checkpoints(tmp_path, steps=2)
    train(kept, tmp_path / "metrics", 2)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(DiskFullError, match="step-00000004"):
        train(kept, tmp_path / "metrics", 4)
    assert names(kept) == ["step-00000002"]


def test_another_engines_checkpoint_is_refused(tmp_path: Path) -> None:
    kept = checkpoints(tmp_path, steps=2)
    train(kept, tmp_path / "metrics", 2)
    manifest = kept.folder / "step-00000002" / module.MANIFEST_FILE
    manifest.write_text(manifest.read_text().replace('"torch"', '"zero2"'))
    with pytest.raises(ConfigError, match=r"written by engine=zero2, and engine=torch can't read it"):
        kept.resume(build, tmp_path / "metrics")


def test_minutes_and_steps_say_when(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    kept = checkpoints(tmp_path, steps=None, minutes=10.0)
    assert not kept.due(1)
    now[0] = 600.0
    assert kept.due(2)
    kept.save(2, build(), {}, tmp_path / "metrics")
    assert not kept.due(3)
    assert not checkpoints(tmp_path, steps=None, minutes=None).due(5)
    assert [step for step in range(1, 9) if checkpoints(tmp_path, steps=4, minutes=None).due(step)] == [4, 8]
