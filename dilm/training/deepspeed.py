"""DeepSpeed's ZeRO (Rajbhandari et al. 2020) behind the interface of `engine`.

Settings that DeepSpeed ignores, and calls that give wrong results without an error, are dealt with here.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dilm.config.schema import EngineConfig, OptimizerConfig
from dilm.core.errors import ConfigError, TrainingError, did_you_mean
from dilm.distributed.device import collective_backend, current_gpu
from dilm.distributed.world import World
from dilm.training.optimizer import Microbatch, Step, adamw, warmup_cosine

STATE_TAG = "state"  # folder that DeepSpeed keeps a checkpoint in
NEVER = 10**9


class DeepSpeedEngine:
    """ZeRO stages 0 to 3. With bf16 the weights are bf16, and the optimizer keeps fp32 masters, sums and moments.

    Every method but `__call__` is collective. `universal` as for `build_engine`.
    """

    def __init__(
        self,
        module: nn.Module,
        config: EngineConfig,
        optimizer: OptimizerConfig,
        steps: int,
        precision: str,
        world: World,
        device: torch.device,
        universal: bool = False,
    ) -> None:
        deepspeed = import_deepspeed()
        self.world = world
        keys = deepspeed_keys(config, optimizer.clip, precision)
        self.stage = int(keys["zero_optimization"].get("stage", 0))
        self.lockstep = self.stage == 3  # it gathers the weights at every call
        if universal:
            keys["checkpoint"] = {"load_universal": True}
        # DeepSpeed takes its masters from weights already rounded to bf16.
        exact = {name: p.detach().cpu().clone() for name, p in module.named_parameters()} if precision == "bf16" else {}
        self.inner = adamw(module, optimizer)
        self.engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=self.inner,
            lr_scheduler=warmup_cosine(self.inner, optimizer, steps),
            config=keys,
            dist_init_required=False,
        )
        self.module = self.engine.module
        for name, parameter in self.module.named_parameters():
            if name in exact:
                self._set_master(parameter, exact.pop(name).to(device))

    def _set_master(self, parameter: nn.Parameter, value: Tensor) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        if self.stage < 3:
            safe_set_full_fp32_param(parameter, value)
            return
        # The stage-3 twin of the above fails where the ranks' shares are not equal: they are cut here.
        share = -(-value.numel() // self.world.size)
        padded = nn.functional.pad(value.flatten(), (0, share * self.world.size - value.numel()))
        safe_set_local_fp32_param(parameter, padded[share * self.world.rank :][:share])

    def __call__(self, *inputs: Any) -> Tensor:
        """The module's forward pass, ready for backward."""
        return self.engine(*inputs)

    def step(self, *microbatches: Microbatch) -> Step:
        """Back-propagate the sum of the microbatches of all ranks, and update; `norm` is NaN where it did not."""
        value = torch.zeros(())
        for number, microbatch in enumerate(microbatches, start=1):
            # Without this, several backward passes a step give a wrong sum at stages 1 and 2, and no error.
            self.engine.set_gradient_accumulation_boundary(number == len(microbatches))
            loss = microbatch()
            # DeepSpeed takes the mean over ranks.
            self.engine.backward(loss * self.world.size, scale_wrt_gas=False)
            value += loss.detach().float().cpu()
        value = self.world.all_reduce(value)
        if not torch.isfinite(value):
            return Step(float(value), float("nan"))
        norm = self._norm() if self.stage == 0 else None
        self.engine.step()
        return Step(float(value), float(self.engine.get_global_grad_norm() if norm is None else norm))

    def _norm(self) -> Tensor:
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        return nn.utils.get_total_norm(gradients)

    def weights(self) -> dict[str, Tensor] | None:
        """Whole fp32 weights by the module's names, on the CPU, on every rank."""
        import deepspeed

        if self.stage == 0:
            return None
        whole = {}
        for name, parameter in self.module.named_parameters():
            value = deepspeed.utils.safe_get_full_fp32_param(parameter) if parameter.requires_grad else parameter
            whole[name] = value.detach().to("cpu", torch.float32, copy=True)
        return whole

    def save(self, folder: Path) -> None:
        """Write this rank's part of weights, optimizer and schedule; ranks share the folder."""
        self.engine.save_checkpoint(str(folder), tag=STATE_TAG)

    def close(self) -> None:
        """Give back the optimizer's states and buffers, which DeepSpeed ties to the module."""
        self.engine.destroy()

    def _read(self, folder: Path, tag: str) -> None:
        path, _ = self.engine.load_checkpoint(str(folder), tag=tag)
        if path is None:
            raise TrainingError(f"DeepSpeed found no checkpoint in {folder / tag}; remove it to go on from another.")

    def load(self, folder: Path) -> None:
        """Read what `save` wrote, or, in a `universal` engine, its conversion for other numbers of ranks.

        Raises TrainingError where DeepSpeed finds no checkpoint there.
        """
        if not self.engine.load_universal_checkpoint():
            self._read(folder, STATE_TAG)
            return
        decays = [group["weight_decay"] for group in self.inner.param_groups]
        self._read(folder, f"{STATE_TAG}_universal")
        # DeepSpeed 0.19.8 gives all groups the first one's decay, and lets them share one count of steps, which each
        # of them then raises.
        for group, decay in zip(self.inner.param_groups, decays, strict=True):
            group["weight_decay"] = decay
        for state in self.inner.state.values():
            state["step"] = state["step"].clone()
        # Left on, it would leave the model's parts out of the next stage-3 checkpoint.
        self.engine._config.load_universal_checkpoint = False


def check_zero(keys: Mapping[str, Any]) -> None:
    """Check `engine.deepspeed.zero_optimization` by DeepSpeed's own schema. Raises ConfigError naming the key."""
    from pydantic import ValidationError

    import_deepspeed()
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    known = {field.alias or name for name, field in DeepSpeedZeroConfig.model_fields.items()}
    for key in keys:
        if key not in known | set(DeepSpeedZeroConfig.model_fields):
            raise ConfigError(f"engine.deepspeed.zero_optimization.{key} is unknown.{did_you_mean(key, known)}")
    try:
        DeepSpeedZeroConfig(**keys)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, ("engine.deepspeed.zero_optimization", *first["loc"])))
        raise ConfigError(f"{place} is {first['input']!r}: {first['msg']}.") from error


def deepspeed_keys(config: EngineConfig, clip: float, precision: str) -> dict[str, Any]:
    """DeepSpeed's whole configuration: what the user gave, and what follows from our other keys, which wins."""
    keys: dict[str, Any] = {
        **config.deepspeed,
        "train_micro_batch_size_per_gpu": 1,  # of no effect: the microbatches are ours
        "gradient_accumulation_steps": 1,
        "gradient_clipping": clip,
        "steps_per_print": NEVER,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # its own one would be compiled at first use
    }
    if precision == "bf16":
        keys |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    return keys


def import_deepspeed() -> Any:
    """Import DeepSpeed, with no kernel to be compiled at run time, and with a process group to work in."""
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        os.environ.setdefault(name, value)  # without them it looks for MPI
    if (gpu := current_gpu()) is not None:
        os.environ["LOCAL_RANK"] = str(gpu)  # its index among the visible GPUs, which DeepSpeed takes it for
    if not dist.is_initialized():
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(collective_backend(), store=store, rank=0, world_size=1)
    import deepspeed
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
