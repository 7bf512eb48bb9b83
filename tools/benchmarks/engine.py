"""Tokens a second and memory of plain torch and every ZeRO stage, each in processes of its own."""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ENGINES = ("torch", "zero0", "zero1", "zero2", "zero3", "zero3_offload")
DEFAULTS = ("experiment=tiny", "generator=smollm2", "pretrain.batch=16", "precision=bf16")
WARM_UP = 2  # steps that aren't timed
GIB = 2**30
FRONT = Path(__file__).resolve().parents[1] / "bench.py"


def compare_engines(ranks: list[int], steps: int, keys: list[str]) -> None:
    """Print a line for every engine and number of ranks; speeds are also told against plain torch."""
    print("engine        ranks  precision  tokens/s  of torch  peak GiB  device", flush=True)
    baseline = None
    for n in ranks:
        for engine in ENGINES:
            if engine == "torch" and n > 1:
                continue
            precision = ["precision=fp32"] if engine == "zero0" else []
            found = _child(n, steps, [*DEFAULTS, *keys, *precision, f"engine={engine}"])
            baseline = baseline or found["speed"]
            print(
                f"{engine:13} {n:5}  {found['precision']:9}  {found['speed']:8,.0f}  {found['speed'] / baseline:8.2f}"
                f"  {found['memory'] / GIB:8.2f}  {found['device']}",
                flush=True,
            )


def _child(ranks: int, steps: int, keys: list[str]) -> dict[str, Any]:
    command = [sys.executable, str(FRONT), "engine-step", "--steps", str(steps), *keys]
    if ranks > 1:
        start = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--rdzv-backend", "c10d"]
        command[1:1] = [*start, "--rdzv-endpoint", "127.0.0.1:0"]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or not lines:
        sys.exit(f"{' '.join(command)}\n{done.stderr.strip()}")
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def measure_engine(steps: int, keys: list[str]) -> None:
    """Take pre-training steps in this process, and print what was found as JSON."""
    import torch
    from hydra import compose, initialize_config_dir

    from dilm.artifacts.fingerprint import pretrain_artifact
    from dilm.config.compose import attach
    from dilm.config.validate import typed
    from dilm.core.io import CONF_FOLDER
    from dilm.distributed.context import Context
    from dilm.distributed.world import joined
    from dilm.stages.train import Pretraining
    from dilm.training.engine import check_engine

    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    attach()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_FOLDER)):
        config = typed(compose("config", keys))
    with joined() as world:
        check_engine(config, world)
        context = Context(config, world)
        corpus = context.corpus
        pretraining = Pretraining(context, pretrain_artifact(config, context.corpus.content_hash))
        engine = pretraining.engine()
        pretraining.generator.model.train()
        rows = np.random.default_rng(0).choice(len(corpus.train), size=(WARM_UP + steps, config.pretrain.batch))
        tokens = 0
        for number, batch in enumerate(rows):
            if number == WARM_UP:
                world.barrier()
                began, tokens = time.perf_counter(), 0
            tokens += pretraining.update(engine, number + 1, batch)[0]
        world.barrier()
        seconds = time.perf_counter() - began
        on_gpu = pretraining.generator.device.type == "cuda"
        peak = (
            torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        )
        memory = sum(world.all_gather(peak))
        device = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads a rank"
        if world.main:
            found = {"speed": tokens / seconds, "memory": memory, "precision": config.precision, "device": device}
            print(json.dumps(found), flush=True)
