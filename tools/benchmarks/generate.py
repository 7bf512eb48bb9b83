"""Writing texts: rows that have ended leave the batch; against `model.generate`, which runs all to the longest."""

from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.plain import configured
from benchmarks.timing import FORWARD, Call, Contest, Done, multiplied, speed_up
from dilm.artifacts.fingerprint import pretrain_artifact
from dilm.config.schema import Config
from dilm.core.hashing import derive_seed
from dilm.data.corpus import load_corpus
from dilm.data.templates import parse_tokens
from dilm.distributed.device import autocast, pick_device
from dilm.hub.pretrained import cache_folder
from dilm.models.generator import Generator, load_generator
from dilm.models.sampling import Sampler
from dilm.stages import train

LABEL = 0


def contest(keys: Sequence[str], small: bool, folder: Path) -> Contest:
    """A batch of texts of one class. Draws differ, so that texts do: their lengths have the same distribution.

    The generator is the pre-trained one below `root`, and is trained where it isn't there: one that has not learnt
    when a text ends would make every text equally long.
    """
    config = configured(small, keys, *([] if small else ["generate.batch=256"]))
    if small:
        config.root = str(folder / "runs")
    cache = cache_folder(config.cache)
    corpus = load_corpus(config.task, config.data, cache)
    trained = pretrain_artifact(config, corpus.content_hash)
    if not trained.exists:
        train.pretrain(config)
    sides = {"ours": lambda: _ours(config, trained.folder), "baseline": lambda: _baseline(config, trained.folder)}
    note = f"{config.generator.name} after {config.pretrain.steps} steps, {config.generate.batch} texts at a time"
    return Contest("generate", "tokens", sides, [speed_up(3)], config.precision, 0.35, note)


def _generator(config: Config, folder: Path) -> Generator:
    device = pick_device(config.device, config.threads)
    return load_generator(folder, config.generator, config.task, device)


def _ours(config: Config, folder: Path) -> Call:
    generator = _generator(config, folder)
    sampler = Sampler(generator, config.precision)
    size, flops, turn = config.generate.batch, FORWARD * multiplied(generator.model), 0

    def call() -> Done:
        nonlocal turn
        turn += 1
        written = sampler.sample(LABEL, range(size), ("bench", turn), config.generate.top_p, size)
        tokens = sum(map(len, written.tokens))
        return Done(tokens, flops * tokens, tokens / len(written.texts))

    return call


def _baseline(config: Config, folder: Path) -> Call:
    generator = _generator(config, folder)
    model, control = generator.model.eval(), generator.control
    size, flops, turn = config.generate.batch, FORWARD * multiplied(model), 0
    prompts_BL = torch.tensor([control.prompt(LABEL)] * size, device=generator.device)

    @torch.no_grad()
    def call() -> Done:
        nonlocal turn
        turn += 1
        with torch.random.fork_rng(), autocast(generator.device, config.precision):
            torch.manual_seed(derive_seed("bench", turn))
            found_BL = model.generate(
                prompts_BL,
                attention_mask=torch.ones_like(prompts_BL),
                do_sample=True,
                top_p=config.generate.top_p,
                top_k=0,
                max_length=generator.max_length,
                eos_token_id=control.eos,
                pad_token_id=control.pad,
            )
        written = found_BL[:, prompts_BL.shape[1] :].tolist()
        tokens = 0
        for ids in written:
            if fields := parse_tokens(ids, generator.n_fields, control):
                [generator.decode(field) for field in fields]
            tokens += ids.index(control.eos) + 1 if control.eos in ids else len(ids)
        return Done(tokens, flops * tokens, tokens / size)

    return call
