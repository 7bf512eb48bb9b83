"""Language-model training of a generator on texts of its task (paper, section 3.1), and on texts that teach."""

from pathlib import Path

import numpy as np

from dilm.artifacts import Artifact
from dilm.batching import Tokens
from dilm.checkpoints import Checkpoints
from dilm.clustering import plain_batches
from dilm.config import Config, PretrainConfig
from dilm.engine import Engine
from dilm.errors import TrainingError
from dilm.generator import Generator
from dilm.keys import derive_seed
from dilm.likelihood import average_nll, build_likelihood, held_out_scores, settled
from dilm.optimizer import Step
from dilm.streams import skip
from dilm.tracking import METRICS_FILE, Progress, Tracker
from dilm.world import World


class LanguageModelTraining:
    """The training loop and what it holds. `stage` names it in seeds, messages and the optimizer's key."""

    def __init__(
        self,
        config: Config,
        settings: PretrainConfig,
        stage: str,
        generator: Generator,
        parts: tuple[Tokens, Tokens],  # trained on, and held out
        artifact: Artifact,
        world: World,
    ) -> None:
        self.config, self.settings, self.stage = config, settings, stage
        self.generator, self.artifact, self.world = generator, artifact, world
        self.names = (config.task.name, config.seed)
        self.sequences, self.held_out = parts

    def train(self, folder: Path) -> None:
        """Take all steps, from the newest checkpoint on, and save the generator to `folder`."""
        settings, world = self.settings, self.world
        checkpoints = Checkpoints(self.artifact, self.config.checkpoint, world)
        engine, start, _ = checkpoints.resume(self.engine, folder / METRICS_FILE)
        random = np.random.default_rng(derive_seed(self.stage, *self.names))
        batches = skip(plain_batches(len(self.sequences), settings.batch, random), start)
        with (
            Tracker(folder, self.config, self.artifact, world.main) as tracker,
            Progress(settings.steps, self.stage, start, world.main) as bar,
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
        settings = self.settings
        return build_likelihood(self.generator, self.config, settings.optimizer, settings.steps, self.world, universal)

    def update(self, engine: Engine, step: int, rows: np.ndarray) -> tuple[int, Step]:
        """One update on a batch that all ranks share. The loss is the token-averaged NLL, however many they are."""
        sequences = self.sequences.take(rows)
        names = (f"{self.stage} dropout", *self.names, step)
        parts, n_tokens = average_nll(self.generator, sequences, names, self.config, engine)
        done = engine.step(*parts)
        if not np.isfinite(done.loss) or not np.isfinite(done.norm):
            raise TrainingError(
                f"{self.stage}: the loss is {done.loss} and its gradient's norm {done.norm} at step {step}, on the "
                f"texts {', '.join(map(str, rows[:8]))} ... of those it learns from; lower {self.stage}.optimizer.lr."
            )
        return n_tokens, done

    def _validate(self, engine: Engine, tracker: Tracker, step: int) -> None:
        if self.held_out:
            whole = settled(self.generator, engine)
            nll, accuracy = held_out_scores(whole, self.held_out, self.config.precision, self.world)
            tracker.log(step, valid_nll=nll, valid_label_accuracy=accuracy)
