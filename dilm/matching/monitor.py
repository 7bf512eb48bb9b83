"""Does matching do what it says? Gradient similarity of freshly written texts, at learner states that stay fixed.

The matching loss itself could fall by shifting weight onto a few of the synthetic texts. So this looks at texts that
are sampled anew, all with equal weight, and compares their gradient with that of a fixed sample of real texts, at the
same few learner states every time. The texts' random numbers are the same at every measurement.

Shape suffixes: S learner states, C labels, P parameters of the learner's head, B texts.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dilm.config.schema import Config
from dilm.core.hashing import derive_seed
from dilm.data.corpus import Corpus
from dilm.data.samplers import candidate_rows, plain_batches
from dilm.data.text_table import TextTable
from dilm.matching.gradients import label_means, text_gradients
from dilm.models.batching import Ids
from dilm.models.generator import Generator
from dilm.models.learner import Learner, text_loss
from dilm.models.sampling import Sampler
from dilm.training.engine import TorchEngine

REAL_DPC = 500  # real texts a class that stand for the corpus
RESAMPLES = 2_000


class SimilarityMonitor:
    """Fixed learner states, each with the real data's gradient, against which a generator's texts are measured.

    The learner that is given trains to those states; `measure` leaves it as it was, and `bootstrap` at the last state.
    """

    def __init__(self, config: Config, corpus: Corpus, learner: Learner) -> None:
        self.config = config
        self.learner = learner
        self.names = (config.task.name, config.seed)
        labels_N = corpus.train.labels
        real = candidate_rows(corpus.train, REAL_DPC * learner.n_labels, derive_seed("monitor real", *self.names))
        other = candidate_rows(
            corpus.train, config.match.monitor_dpc * learner.n_labels, derive_seed("monitor other", *self.names)
        )
        real_tokens, other_tokens = (learner.tokenize(corpus.train.take(rows).texts) for rows in (real, other))
        self.states: list[dict[str, Tensor]] = []
        self.real_SCP: list[Tensor] = []
        ceiling = []
        for state in self._train_states(corpus):
            self.states.append(state)
            self.real_SCP.append(self._gradients(real_tokens, labels_N[real]))
            sample_CP = self._gradients(other_tokens, labels_N[other])
            ceiling.append(float(F.cosine_similarity(self.real_SCP[-1], sample_CP, dim=1).mean()))
        self.real_similarity = float(np.mean(ceiling))  # of as many real texts: what the generator could hope for

    def _train_states(self, corpus: Corpus) -> Iterator[dict[str, Tensor]]:
        """Train one learner on real data, and pause at each state with the learner's weights at it."""
        settings = self.config.match
        self.learner.fresh("monitor", *self.names)
        schedule = max(settings.learner_schedule, *settings.monitor_states)
        trainer = TorchEngine(self.learner, settings.learner_optimizer, schedule)
        generator = np.random.default_rng(derive_seed("monitor learner", *self.names))
        batches = plain_batches(len(corpus.train), settings.learner_batch, generator)
        step = 0
        for until in sorted(settings.monitor_states):
            self.learner.eval()
            while step < until:
                rows = next(batches)
                drawn, labels_B = self.learner.tokenize(corpus.train.take(rows).texts), corpus.train.labels[rows]
                trainer.step(partial(text_loss, self.learner, drawn, labels_B, self.config.precision))
                step += 1
            yield {name: tensor.detach().clone() for name, tensor in self.learner.state_dict().items()}

    def _gradients(self, tokens: Sequence[Ids], labels_B: np.ndarray) -> Tensor:
        """Mean gradient of each label, means_CP, at the learner's weights of now."""
        rows_BP = text_gradients(self.learner, tokens, labels_B, self.config.precision)
        return label_means(rows_BP, labels_B, self.learner.n_labels)

    def bootstrap(self, table: TextTable, seed: int) -> np.ndarray:
        """Cosine similarity of a table's texts, equal weights, mean over states and labels: of all, then of resamples.

        Texts are resampled with replacement within their label; the result has 1 + RESAMPLES values in -1..1.
        """
        tokens = self.learner.tokenize(table.texts)
        generator = np.random.default_rng(seed)
        picks = {
            label: np.stack(
                [np.ones(len(rows)), *generator.multinomial(len(rows), [1 / len(rows)] * len(rows), RESAMPLES)]
            )
            for label, rows in table.rows_by_label.items()
        }
        similarities = []
        for state, real_CP in zip(self.states, self.real_SCP, strict=True):
            self.learner.load_state_dict(state)
            rows_BP = text_gradients(self.learner, tokens, table.labels, self.config.precision)
            for label, rows in table.rows_by_label.items():
                sums = torch.as_tensor(picks[label], dtype=torch.float32) @ rows_BP[rows].cpu()
                similarities.append(F.cosine_similarity(sums, real_CP[label][None].cpu(), dim=1).numpy())
        return np.mean(similarities, axis=0)

    def measure(self, generator: Generator) -> dict[str, float]:
        """Mean cosine over labels and states between fresh texts' gradient and the real one, and at each state.

        With them the share of texts that are well-formed; it alone where a label has none. Puts the learner back.
        """
        before = {name: tensor.detach().clone() for name, tensor in self.learner.state_dict().items()}
        tokens: list[Ids] = []
        labels: list[int] = []
        sampler, count = Sampler(generator, self.config.precision), self.config.match.monitor_dpc
        for label in range(self.learner.n_labels):
            samples = sampler.sample(
                label, range(count), ("monitor", *self.names), self.config.generate.top_p, self.config.generate.batch
            )
            texts = [text for text in samples.texts if text is not None]
            tokens += self.learner.tokenize(texts)
            labels += [label] * len(texts)
        wellformed = len(labels) / (self.learner.n_labels * count)
        if len(set(labels)) < self.learner.n_labels:
            return {"fresh_wellformed": wellformed}
        similarities = []
        for state, real_CP in zip(self.states, self.real_SCP, strict=True):
            self.learner.load_state_dict(state)
            fresh_CP = self._gradients(tokens, np.array(labels))
            similarities.append(float(F.cosine_similarity(real_CP, fresh_CP, dim=1).mean()))
        self.learner.load_state_dict(before)
        per_state = zip(sorted(self.config.match.monitor_states), similarities, strict=True)
        return {
            "fresh_similarity": float(np.mean(similarities)),
            **{f"fresh_similarity_at_{step}": value for step, value in per_state},
            "real_similarity": self.real_similarity,
            "fresh_wellformed": wellformed,
        }
