"""Language-model pre-training: task rows -> a generator that writes texts of a class (paper, section 3.1)."""

from pathlib import Path

import numpy as np

from dilm.artifacts import Artifact, make, pretrain_artifact
from dilm.clustering import plain_batches
from dilm.config import Config
from dilm.data import Corpus, load_corpus
from dilm.device import pick_device, seeded
from dilm.engine import TorchEngine
from dilm.errors import DataError
from dilm.generator import Generator, build_generator, held_out_scores, sum_nll
from dilm.keys import derive_seed
from dilm.sources import cache_folder, model_folder
from dilm.tracking import Tracker, progress


def run(config: Config) -> Artifact:
    """Make the pre-trained generator, or find it."""
    cache = cache_folder(config.cache)
    corpus = load_corpus(config.task, config.data, cache)
    artifact = pretrain_artifact(config, corpus.content_hash)
    make(artifact, lambda folder: _train(config, corpus, artifact.key, cache, folder), config)
    return artifact


def _train(config: Config, corpus: Corpus, key: str, cache: Path, folder: Path) -> None:
    settings, task = config.pretrain, config.task
    device = pick_device(config.device, config.threads)
    source = model_folder(config.generator.name, config.generator.source, cache)
    generator = build_generator(source, config.generator, task, device)
    sequences, held_out = generator.encode(corpus.train), generator.encode(corpus.valid)
    engine = TorchEngine(generator.model, settings.optimizer, settings.steps)
    batches = plain_batches(
        len(sequences), settings.batch, np.random.default_rng(derive_seed("pretrain", task.name, config.seed))
    )
    with Tracker(folder, config, key, "pretrain") as tracker, progress(settings.steps, "pretrain") as bar:
        _validate(generator, held_out, config, tracker, 0)
        generator.model.train()
        for step in range(1, settings.steps + 1):
            with seeded(derive_seed("pretrain dropout", task.name, config.seed, step), device):
                value, norm = _step(generator, engine, [sequences[row] for row in next(batches)], config.precision)
            if not np.isfinite(value):
                raise DataError(f"pretrain: the loss is {value} at step {step}; lower pretrain.optimizer.lr.")
            bar.set_postfix(loss=f"{value:.3f}", refresh=False)
            bar.update()
            if step % settings.log_every == 0 or step == settings.steps:
                tracker.log(step, loss=value, gradient_norm=norm)
            if step == settings.steps or (settings.valid_every and step % settings.valid_every == 0):
                _validate(generator, held_out, config, tracker, step)
    generator.save(folder)


def _step(generator: Generator, engine: TorchEngine, sequences: list[list[int]], precision: str) -> tuple[float, float]:
    """One update: the token-averaged NLL before it, and the gradient's norm."""
    n_tokens = sum(len(sequence) - generator.control.prompt_length for sequence in sequences)
    loss = sum_nll(generator, sequences, precision).sum() / n_tokens
    norm = engine.step(loss)
    return float(loss.detach()), norm


def _validate(generator: Generator, held_out: list[list[int]], config: Config, tracker: Tracker, step: int) -> None:
    if held_out:
        nll, accuracy = held_out_scores(generator, held_out, config.precision)
        tracker.log(step, valid_nll=nll, valid_label_accuracy=accuracy)
