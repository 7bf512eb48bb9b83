"""A training step: backward, sum over ranks, clip, update, schedule. Plain torch, or DeepSpeed's ZeRO.

A step's loss comes in microbatches, computed one after another, so that one graph at a time is in memory. The gradient
is that of the *sum* over all microbatches of all ranks: the caller divides by the number of texts or tokens.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dilm.config.schema import Config, EngineConfig, OptimizerConfig
from dilm.core.errors import ConfigError
from dilm.distributed.device import autocast, pick_device
from dilm.distributed.world import ALONE, World
from dilm.models.generator import Generator
from dilm.models.likelihood import TextNLL
from dilm.training.deepspeed import DeepSpeedEngine, check_zero
from dilm.training.optimizer import Microbatch, Step, adamw, warmup_cosine

STATE_FILE = "engine.pt"


class Engine(Protocol):
    """What a training loop needs of whatever holds the weights. Every method but `__call__` is collective."""

    world: World
    lockstep: bool  # whether every rank must call the module equally often

    def __call__(self, *inputs: Any) -> Tensor:
        """The module's forward pass, ready for backward."""
        ...

    def step(self, *microbatches: Microbatch) -> Step:
        """Back-propagate the sum of the microbatches of all ranks, and update.

        Each rank gives at least one, and all equally many. Nothing is updated where the loss is not finite.
        """
        ...

    def weights(self) -> dict[str, Tensor] | None:
        """Whole fp32 weights by the module's names, on the CPU; None where the module itself has them."""
        ...

    def save(self, folder: Path) -> None:
        """Write weights, optimizer and schedule into an empty folder."""
        ...

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        ...

    def close(self) -> None:
        """Give back what it holds besides the module."""
        ...


class TorchEngine:
    """AdamW with linear warm-up and cosine decay over `steps`, gradients clipped by norm; ranks are data parallel."""

    lockstep = False

    def __init__(
        self, module: nn.Module, config: OptimizerConfig, steps: int, precision: str = "fp32", world: World = ALONE
    ) -> None:
        self.module, self.world, self.precision = module, world, precision
        self.clip = config.clip
        self.optimizer = adamw(module, config)
        self.schedule = warmup_cosine(self.optimizer, config, steps)

    def __call__(self, *inputs: Any) -> Tensor:
        """The module's forward pass, ready for backward."""
        with autocast(next(self.module.parameters()).device, self.precision):
            return self.module(*inputs)

    def step(self, *microbatches: Microbatch) -> Step:
        """Back-propagate the sum of the microbatches of all ranks, and update."""
        value = torch.zeros((), device=next(self.module.parameters()).device)
        for microbatch in microbatches:
            loss = microbatch()
            loss.backward()
            value += loss.detach().float()
        value = self.world.all_reduce(value)
        self._sum_gradients()
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.clip)
        done = Step(*torch.stack([value, norm]).tolist())  # the one place where a step waits for a GPU
        if math.isfinite(done.loss):
            self.optimizer.step()
            self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return done

    def _sum_gradients(self) -> None:
        if self.world.size == 1:
            return
        trained = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        given = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        total = self.world.all_reduce(torch.cat([gradient.flatten() for gradient in given]))
        for parameter, gradient in zip(trained, total.split([p.numel() for p in trained]), strict=True):
            parameter.grad = gradient.view_as(parameter)

    def weights(self) -> dict[str, Tensor] | None:
        """None: the module itself has them."""
        return None

    def save(self, folder: Path) -> None:
        """Write weights, optimizer and schedule into an empty folder."""
        if self.world.main:
            torch.save(self.state(), folder / STATE_FILE)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        self.load_state(torch.load(folder / STATE_FILE, weights_only=True, map_location="cpu", mmap=True))

    def close(self) -> None:
        """Nothing to do: everything is freed with this object."""

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on, on this rank. The tensors are not copied."""
        return {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])


def build_engine(
    module: nn.Module,
    config: EngineConfig,
    optimizer: OptimizerConfig,
    steps: int,
    precision: str,
    world: World,
    device: torch.device,
    universal: bool = False,
) -> Engine:
    """The engine that `config` names; `auto` is plain torch for one process on a CPU, and ZeRO otherwise.

    `steps` are those of the whole schedule. `universal`: it is to read a checkpoint that was converted for another
    number of ranks.
    """
    if uses_deepspeed(config, world, device):
        return DeepSpeedEngine(module, config, optimizer, steps, precision, world, device, universal)
    return TorchEngine(module, optimizer, steps, precision, world)


def generator_engine(
    generator: Generator, config: Config, optimizer: OptimizerConfig, steps: int, world: World, universal: bool
) -> Engine:
    """The engine that trains a generator through the likelihood of texts: calling it calls `TextNLL`.

    `steps` and `universal` as for `build_engine`.
    """
    if config.engine.gradient_checkpointing:
        generator.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    module = TextNLL(generator.model, config.engine.compile)
    return build_engine(module, config.engine, optimizer, steps, config.precision, world, generator.device, universal)


def full_weights(generator: Generator, engine: Engine) -> Generator:
    """The generator with its weights as they are now, whole, on every rank: to validate, sample or save with.

    Collective; what is done with the result is not, so ranks may sample texts of different lengths.
    """
    weights = engine.weights()
    if weights is None:
        return generator
    return generator.with_weights({name.removeprefix("model."): value for name, value in weights.items()})


def check_engine(config: Config, world: World) -> None:
    """Refuse an engine that can't work with the other keys, before anything is loaded. Raises ConfigError."""
    device = pick_device(config.device)
    if not uses_deepspeed(config.engine, world, device):
        if world.size > 1:
            raise ConfigError(f"engine=torch is for one process, and there are {world.size}; set engine=zero1.")
        return
    if config.precision == "bf16" and not config.engine.deepspeed.get("zero_optimization", {}).get("stage"):
        raise ConfigError("DeepSpeed's stage 0 keeps no fp32 master weights; set engine=zero1 or precision=fp32.")
    if config.engine.compile and config.engine.deepspeed.get("zero_optimization", {}).get("stage") == 3:
        raise ConfigError("engine.compile is true, and stage 3 gathers weights inside the model; set engine=zero2.")
    _check_shares(config, world)
    check_zero(config.engine.deepspeed.get("zero_optimization", {}))


def _check_shares(config: Config, world: World) -> None:
    """Every rank, and every microbatch, must have a text."""
    match, microbatches = config.match, world.size * config.engine.accumulate
    texts = {"pretrain.batch": (config.pretrain.batch, microbatches)}
    if "match" in config.stages:
        texts["match.synthetic_dpc"] = match.synthetic_dpc, microbatches
        texts["match.learner_batch"] = match.learner_batch, world.size
        if match.lm_weight:
            texts["match.lm_batch"] = match.lm_batch, microbatches
        texts["match.real_dpc"] = match.real_dpc, world.size
    for key, (size, least) in texts.items():
        if size < least:
            product = "ranks x engine.accumulate" if least == microbatches else "the number of ranks"
            raise ConfigError(f"{key} is {size}, fewer than {product} = {least}; raise it.")


def uses_deepspeed(config: EngineConfig, world: World, device: torch.device) -> bool:
    """Whether `build_engine` takes DeepSpeed."""
    return config.name.startswith("zero") or (config.name == "auto" and (world.size > 1 or device.type != "cpu"))
