"""Language-model pre-training: task rows -> a generator that writes texts of a class (paper, section 3.1)."""

from pathlib import Path

import numpy as np

from dilm.artifacts import Artifact, make
from dilm.checkpoints import Checkpoints
from dilm.clustering import plain_batches
from dilm.config import Config
from dilm.data import Corpus, load_corpus
from dilm.device import out_of_memory, pick_device
from dilm.engine import Engine
from dilm.errors import TrainingError
from dilm.generator import build_generator
from dilm.keys import derive_seed
from dilm.likelihood import average_nll, build_likelihood, held_out_scores, settled
from dilm.lineage import pretrain_artifact
from dilm.optimizer import Step
from dilm.sources import cache_folder, model_folder
from dilm.streams import skip
from dilm.tracking import METRICS_FILE, Progress, Tracker
from dilm.world import ALONE, World


def run(config: Config, world: World = ALONE) -> Artifact:
    """Make the pre-trained generator, or find it."""
    cache = cache_folder(config.cache)
    corpus = world.first(lambda: load_corpus(config.task, config.data, cache))
    artifact = pretrain_artifact(config, corpus.content_hash)

    def build(folder: Path) -> None:
        with out_of_memory():
            Pretraining(config, corpus, artifact, cache, world).train(folder)

    make(artifact, build, config, ranks=world)
    return artifact


class Pretraining:
    """The training loop and what it holds."""

    def __init__(self, config: Config, corpus: Corpus, artifact: Artifact, cache: Path, world: World) -> None:
        self.config, self.artifact, self.world = config, artifact, world
        self.names = (config.task.name, config.seed)
        self.device = pick_device(config.device, config.threads)
        source = world.first(lambda: model_folder(config.generator.name, config.generator.source, cache))
        self.generator = build_generator(source, config.generator, config.task, self.device)
        self.sequences = world.first(lambda: self.generator.encode_once(corpus.train, config.generator, cache))
        self.held_out = self.generator.encode(corpus.valid)

    def train(self, folder: Path) -> None:
        """Take all steps, from the newest checkpoint on, and save the generator to `folder`."""
        settings, world = self.config.pretrain, self.world
        checkpoints = Checkpoints(self.artifact, self.config.checkpoint, world)
        engine, start, _ = checkpoints.resume(self.engine, folder / METRICS_FILE)
        random = np.random.default_rng(derive_seed("pretrain", *self.names))
        batches = skip(plain_batches(len(self.sequences), settings.batch, random), start)
        with (
            Tracker(folder, self.config, self.artifact, world.main) as tracker,
            Progress(settings.steps, "pretrain", start, world.main) as bar,
        ):
            self.generator.model.train()
            for step in range(start + 1, settings.steps + 1):
                rows = next(batches)
                n_tokens, done = self.update(engine, step, rows)
                bar.update(tokens=n_tokens, loss=done.loss)
                if step % settings.log_every == 0 or step == settings.steps:
                    tracker.log(step, loss=done.loss, gradient_norm=done.norm)
                if step == settings.steps or (settings.valid_every and step % settings.valid_every == 0):
                    self._validate(engine, tracker, step)
                if checkpoints.due(step) and step < settings.steps:
                    checkpoints.save(step, engine, {}, tracker.path)
            whole = settled(self.generator, engine)
            if world.main:
                whole.save(folder)
        engine.close()

    def engine(self, universal: bool = False) -> Engine:
        """What trains the generator."""
        settings = self.config.pretrain
        return build_likelihood(self.generator, self.config, settings.optimizer, settings.steps, self.world, universal)

    def update(self, engine: Engine, step: int, rows: np.ndarray) -> tuple[int, Step]:
        """One update on a batch that all ranks share. The loss is the token-averaged NLL, however many they are."""
        sequences = self.sequences.take(rows)
        names = ("pretrain dropout", *self.names, step)
        parts, n_tokens = average_nll(self.generator, sequences, names, self.config, engine)
        done = engine.step(*parts)
        if not np.isfinite(done.loss) or not np.isfinite(done.norm):
            raise TrainingError(
                f"pretrain: the loss is {done.loss} and its gradient's norm {done.norm} at step {step}, on the "
                f"training rows {', '.join(map(str, rows[:8]))} ...; lower pretrain.optimizer.lr."
            )
        return n_tokens, done

    def _validate(self, engine: Engine, tracker: Tracker, step: int) -> None:
        if self.held_out:
            whole = settled(self.generator, engine)
            nll, accuracy = held_out_scores(whole, self.held_out, self.config.precision, self.world)
            tracker.log(step, valid_nll=nll, valid_label_accuracy=accuracy)
