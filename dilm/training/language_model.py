"""Language-model training of a generator on texts of its task (paper, section 3.1), and on texts that teach."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dilm.artifacts.artifact import METRICS_FILE, Artifact
from dilm.config.schema import Config, PretrainConfig
from dilm.core.errors import TrainingError
from dilm.core.hashing import Names, derive_seed
from dilm.data.samplers import plain_batches, skip
from dilm.distributed.device import seeded
from dilm.distributed.world import ALONE, World
from dilm.models.batching import Ids, Tokens, split_by_length
from dilm.models.generator import Generator
from dilm.models.likelihood import sum_nll
from dilm.tracking.tracker import Progress, Tracker
from dilm.training.checkpoints import Checkpoints
from dilm.training.engine import Engine, full_weights, generator_engine
from dilm.training.optimizer import Microbatch, Step


def average_nll(
    generator: Generator, sequences: Sequence[Ids], names: Names, config: Config, engine: Engine
) -> tuple[list[Microbatch], int]:
    """Token-averaged NLL, in nats, of a batch that all ranks share (paper, section 3.1).

    Returns this rank's `engine.accumulate` microbatches, and the number of the batch's tokens. `names` seed the
    dropout. The sum over all microbatches of all ranks is the same loss, however many they are.
    """
    world, accumulate = engine.world, config.engine.accumulate
    lengths = [len(sequence) - generator.control.prompt_length for sequence in sequences]
    n_tokens = sum(lengths)

    def microbatch(number: int, rows: np.ndarray) -> Tensor:
        where = (world.rank, number) if world.rank or number else ()
        with seeded(derive_seed(*names, *where), generator.device):
            texts = [sequences[row] for row in rows]
            return sum_nll(generator, texts, config.precision, engine).sum() / n_tokens

    parts = split_by_length(lengths, world.size * accumulate)[world.rank * accumulate :][:accumulate]
    return [partial(microbatch, number, rows) for number, rows in enumerate(parts)], n_tokens


@torch.inference_mode()
def held_out_scores(
    generator: Generator, sequences: Sequence[Ids], precision: str, world: World = ALONE
) -> tuple[float, float]:
    """How well a generator models texts that it has not seen, in eval mode. Collective: ranks share the texts.

    Returns the mean NLL in nats over all tokens, and the share, 0 to 1, of texts that are likelier under their own
    `<bos_y>` than under any other: whether the generator heeds the label at all, which the NLL hardly shows.
    """
    texts = [sequences[row] for row in world.shard(len(sequences))]
    was_training = generator.model.training
    generator.model.eval()
    totals = world.all_reduce(torch.tensor(_sums(generator, texts, precision) if texts else [0.0, 0.0, 0.0]))
    generator.model.train(was_training)
    nll, n_tokens, right = totals.tolist()
    return nll / n_tokens, right / len(sequences)


def _sums(generator: Generator, sequences: Sequence[Ids], precision: str) -> list[float]:
    """Summed NLL, number of tokens, and number of texts likeliest under their own label."""
    control, given = generator.control, generator.control.prompt_length
    texts = [sequence[given:] for sequence in sequences]
    sums_NC = torch.stack(
        [
            sum_nll(generator, [[*control.prompt(label), *text] for text in texts], precision)
            for label in range(len(control.bos))
        ],
        dim=1,
    )
    labels_N = torch.tensor([control.bos.index(sequence[given - 1]) for sequence in sequences], device=sums_NC.device)
    nll_N = sums_NC.gather(1, labels_N[:, None])
    return [float(nll_N.sum()), float(sum(map(len, texts))), float((sums_NC.argmin(1) == labels_N).sum())]


class LanguageModelTraining:
    """The loop of language-model training, and what it holds.

    `stage` names it in seeds, messages and the optimizer's key. `parts` are the generator's sequences: trained on, and
    held out.
    """

    def __init__(
        self,
        config: Config,
        settings: PretrainConfig,
        stage: str,
        generator: Generator,
        parts: tuple[Tokens, Tokens],
        artifact: Artifact,
        world: World,
    ) -> None:
        self.config, self.settings, self.stage = config, settings, stage
        self.generator, self.artifact, self.world = generator, artifact, world
        self.names = (config.task.name, config.seed)
        self.sequences, self.held_out = parts

    def train(self, folder: Path) -> None:
        """Take all steps, from the newest checkpoint on, and save the generator to `folder`.

        Collective. Raises TrainingError where the loss or its gradient is not finite, and Stopped where a signal asked
        the run to stop, after a checkpoint.
        """
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
            whole = full_weights(self.generator, engine)
            if world.main:
                whole.save(folder)
        engine.close()

    def engine(self, universal: bool = False) -> Engine:
        """What trains the generator; `universal` as for `build_engine`."""
        settings = self.settings
        return generator_engine(self.generator, self.config, settings.optimizer, settings.steps, self.world, universal)

    def update(self, engine: Engine, step: int, rows: np.ndarray) -> tuple[int, Step]:
        """One update on the batch of these rows, which all ranks share. Returns its number of tokens, and the step.

        The loss is the batch's token-averaged NLL, however many ranks and microbatches there are. Raises TrainingError
        where it or its gradient is not finite.
        """
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
            whole = full_weights(self.generator, engine)
            nll, accuracy = held_out_scores(whole, self.held_out, self.config.precision, self.world)
            tracker.log(step, valid_nll=nll, valid_label_accuracy=accuracy)
