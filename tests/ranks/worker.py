"""Run by torchrun or alone: one update of each stage with plain SGD, and what it did, into a file.

SGD because its updates show a gradient's scale, which AdamW hides. The key `distance=` names the matching loss.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

import dilm.matching.loss
import dilm.training.deepspeed
import dilm.training.engine
from dilm.artifacts.fingerprint import match_artifact, pretrain_artifact
from dilm.config.compose import attach
from dilm.config.schema import OptimizerConfig
from dilm.config.validate import typed
from dilm.core.io import CONF_FOLDER
from dilm.distributed.context import Context
from dilm.distributed.world import joined
from dilm.launch.worker import leave
from dilm.matching.batches import SyntheticTexts
from dilm.matching.trainer import Matching
from dilm.stages.train import Pretraining
from dilm.training.deepspeed import DeepSpeedEngine
from dilm.training.engine import Engine, TorchEngine

ROWS = np.array([0, 5, 9, 14, 3, 77, 41, 20, 66, 8, 31, 19, 2])  # an odd number: the ranks' shares are unequal
LR = 0.5
MEAN_SQUARED = "distance=mean_squared"


def sgd(module: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=LR)


def watch(engine: Engine, seen: dict[str, Tensor]) -> None:
    """Keep every parameter's gradient as it is after the last backward, before clipping."""
    if isinstance(engine, DeepSpeedEngine):
        from deepspeed.utils import safe_get_full_grad

        take = engine.engine.step

        def step() -> None:
            for name, parameter in engine.module.named_parameters():
                seen[name] = safe_get_full_grad(parameter).detach().float().clone()
            take()

        engine.engine.step = step
    elif isinstance(engine, TorchEngine):
        sum_gradients = engine._sum_gradients

        def summed() -> None:
            sum_gradients()
            for name, parameter in engine.module.named_parameters():
                assert parameter.grad is not None
                seen[name] = parameter.grad.detach().clone()

        engine._sum_gradients = summed  # type: ignore[method-assign]


def weights(engine: Any) -> dict[str, Tensor]:
    found = engine.weights()
    if found is None:
        found = {name: value.detach().clone() for name, value in engine.module.named_parameters()}
    return found


def observed(engine: Engine, update: Any) -> dict[str, Any]:
    seen: dict[str, Tensor] = {}
    watch(engine, seen)
    before = weights(engine)
    told = update()
    after = weights(engine)
    return {"gradients": seen, "updates": {name: after[name] - before[name] for name in before}, "told": told}


def mean_squared(real_P: Tensor, synthetic_P: Tensor) -> Tensor:
    """A matching loss that depends on a gradient's length, as the cosine doesn't."""
    return (real_P - synthetic_P).square().mean() / real_P.square().mean()


def main(out: Path, pool: Path, overrides: list[str]) -> None:
    torch.set_num_threads(1)
    if MEAN_SQUARED in overrides:
        overrides.remove(MEAN_SQUARED)
        dilm.matching.loss.gradient_distance = mean_squared
    attach()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_FOLDER)):
        config = typed(compose("config", overrides))
    dilm.training.engine.adamw = dilm.training.deepspeed.adamw = sgd
    with joined() as world:
        context = Context(config, world)
        corpus = context.corpus
        pretraining = Pretraining(context, pretrain_artifact(config, corpus.content_hash))
        engine = pretraining.engine()
        pretraining.generator.model.train()
        result = {"pretrain": observed(engine, lambda: pretraining.update(engine, 1, ROWS)[1].loss)}
        parent = pretrain_artifact(config, corpus.content_hash).folder
        if world.main and not parent.exists():  # the same generator, whatever the precision
            parent.symlink_to(next(parent.parent.glob("lm-tiny-????????????")))
        world.barrier()
        matching = Matching(context, match_artifact(config, corpus.content_hash))
        engine = matching.engine()
        matching.trajectory.start()
        if pool.exists():
            matching._take_texts([SyntheticTexts(**part) for part in json.loads(pool.read_text())], 0)
        else:
            matching.write_texts(engine, 0)
            pool.write_text(json.dumps([vars(part) for part in matching.texts]))
        matching.learner.fresh("test")
        result["match"] = observed(engine, lambda: matching.update(engine, 1)["loss"])
        if world.main:
            torch.save(result, out)


if __name__ == "__main__":
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    leave(0)  # as commands do: else threads of the collective library abort one process in fifty on busy cores
