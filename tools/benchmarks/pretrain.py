"""A pre-training step: batches cut by length, logits at real places alone; against one padded batch of all logits."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.plain import Trainer, configured, padded
from benchmarks.timing import TRAINING, Call, Contest, Done, multiplied, speed_up
from dilm.artifacts.fingerprint import pretrain_artifact
from dilm.config.schema import Config
from dilm.core.hashing import derive_seed
from dilm.data.corpus import Corpus, load_corpus
from dilm.data.samplers import plain_batches
from dilm.distributed.context import Context
from dilm.distributed.device import autocast, pick_device
from dilm.hub.pretrained import cache_folder, model_folder
from dilm.models.generator import build_generator
from dilm.stages.train import Pretraining

BATCH = "pretrain.batch=64"  # the paper's


def contest(keys: Sequence[str], small: bool, folder: Path) -> Contest:
    """The same batches of the same texts, to models that begin equal: their losses stay equal too.

    `engine.compile=true` adds a compiled side, whose first call takes minutes.
    """
    config = configured(small, keys, BATCH)
    compiled, config = config, replace(config, engine=replace(config.engine, compile=False))
    cache = cache_folder(config.cache)
    corpus = load_corpus(config.task, config.data, cache)
    sides = {
        "ours": lambda: _ours(config),
        "baseline": lambda: _baseline(config, corpus, cache, checkpointing=True),
        "baseline, no checkpointing": lambda: _baseline(config, corpus, cache, checkpointing=False),
    }
    goals = [speed_up(1.5), speed_up(None, "baseline, no checkpointing")]
    if compiled.engine.compile:
        sides["ours, compiled"] = lambda: _ours(compiled)
        goals.append(speed_up(None, "ours", "ours, compiled"))
    note = f"{config.generator.name}, steps of {config.pretrain.batch} texts of {config.task.name}"
    return Contest("pretrain", "tokens", sides, goals, config.precision, 0.02, note)


def _ours(config: Config) -> Call:
    context = Context(config)
    corpus = context.corpus
    pretraining = Pretraining(context, pretrain_artifact(config, context.corpus.content_hash))
    engine = pretraining.engine()
    model = pretraining.generator.model.train()
    batches = plain_batches(len(corpus.train), config.pretrain.batch, _random(config))
    flops = TRAINING * multiplied(model)
    step = 0

    def call() -> Done:
        nonlocal step
        step += 1
        tokens, done = pretraining.update(engine, step, next(batches))
        return Done(tokens, flops * tokens, done.loss)

    return call


def _baseline(config: Config, corpus: Corpus, cache: Path, checkpointing: bool) -> Call:
    """The released scripts train with gradient checkpointing."""
    device = pick_device(config.device, config.threads)
    source = model_folder(config.generator.name, config.generator.source, cache)
    generator = build_generator(source, config.generator, config.task, device)
    sequences = generator.encode(corpus.train)
    model = generator.model.train()
    if checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    trainer = Trainer(model, config.pretrain.optimizer, config.pretrain.steps)
    batches = plain_batches(len(corpus.train), config.pretrain.batch, _random(config))
    given, flops = generator.control.prompt_length, TRAINING * multiplied(model)

    def call() -> Done:
        batch = [sequences[row] for row in next(batches)]
        ids_BL, mask_BL = padded(batch, generator.control.pad, device)
        labels_BL = ids_BL.masked_fill(mask_BL == 0, -100)
        labels_BL[:, :given] = -100
        with autocast(device, config.precision):
            loss = model(input_ids=ids_BL, attention_mask=mask_BL, labels=labels_BL, use_cache=False).loss
        tokens = sum(map(len, batch)) - given * len(batch)
        return Done(tokens, flops * tokens, trainer.step(loss))

    return call


def _random(config: Config) -> np.random.Generator:
    return np.random.default_rng(derive_seed("bench pretrain", config.task.name))
