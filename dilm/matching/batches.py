"""The two streams that gradient matching compares: real batches and synthetic texts (paper, section 3.3).

Rows are indices into a table of real texts. `names` seed what is random.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dilm.config.schema import MatchConfig
from dilm.core.errors import DataError
from dilm.core.hashing import Names, derive_seed
from dilm.data.samplers import candidate_rows, diverse_batches, plain_batches
from dilm.data.text_table import TextTable
from dilm.distributed.world import ALONE, World
from dilm.models.batching import Tokens
from dilm.models.features import FeatureStore
from dilm.models.generator import Generator
from dilm.models.learner import Learner, forward_all
from dilm.models.sampling import Sampler
from dilm.selection.coreset import k_centers, k_means


def real_sets(table: TextTable, config: MatchConfig, store: FeatureStore, names: Names) -> list[list[np.ndarray]]:
    """The sets that real batches come from, each with the rows of every label.

    With the paper's representative teacher: `n_repset` coresets by K-centers, with different seeds. Without it: one
    set of all rows. Raises DataError where a label has fewer than `repset_dpc` texts.
    """
    if not config.representative:
        return [[rows for _, rows in sorted(table.rows_by_label.items())]]
    rows = candidate_rows(table, config.real_candidates, derive_seed("repset candidates", *names))
    candidates = table.take(rows)
    embeddings_ND = store.get(candidates.texts, "embed")
    sets = []
    for number in range(config.n_repset):
        chosen = []
        for label, members in sorted(candidates.rows_by_label.items()):
            if len(members) < config.repset_dpc:
                raise DataError(
                    f"match.repset_dpc={config.repset_dpc}, but label {label} has only {len(members)} texts; lower it."
                )
            seed = derive_seed("repset", *names, number, label)
            chosen.append(rows[members[k_centers(embeddings_ND[members], config.repset_dpc, seed)]])
        sets.append(chosen)
    return sets


def real_batches(sets: list[list[np.ndarray]], real_dpc: int, names: Names) -> Iterator[list[np.ndarray]]:
    """Endless real batches: for each label, the rows of `real_dpc` texts of one of the sets, or of all it has."""
    generator = np.random.default_rng(derive_seed("real batches", *names))
    while True:
        chosen = sets[generator.integers(len(sets))]
        yield [generator.choice(rows, size=min(real_dpc, len(rows)), replace=False) for rows in chosen]


def fixed_sets(table: TextTable, config: MatchConfig, store: FeatureStore, names: Names) -> list[list[np.ndarray]]:
    """The `n_repset` sets of real texts whose gradients a pool of trajectories holds: coresets, or else random texts.

    Each has the rows of every label. Raises DataError as `real_sets`.
    """
    sets = real_sets(table, config, store, names)
    if config.representative:
        return sets
    drawn = real_batches(sets, config.repset_dpc, names)
    return [next(drawn) for _ in range(config.n_repset)]


@dataclass(frozen=True)
class SyntheticTexts:
    """Well-formed texts that the generator wrote for one label, from which mini-batches are drawn."""

    sequences: list[list[int]]  # the generator's tokens, from <bos_y> to <eos>
    tokens: list[list[int]]  # the learner's tokens
    clusters: list[int] | None  # of each text; None: mini-batches are drawn at random

    def batches(self, size: int, names: Names) -> Iterator[np.ndarray]:
        """Endless mini-batches of `size` text numbers: one of each cluster, where there are clusters."""
        generator = np.random.default_rng(derive_seed("mini-batch", *names))
        if self.clusters is None:
            return plain_batches(len(self.sequences), size, generator)
        return diverse_batches(np.array(self.clusters), size, generator)


@dataclass(frozen=True)
class SamplingSettings:
    """How texts are sampled while matching."""

    precision: str  # fp32 or bf16
    top_p: float
    batch: int  # texts sampled at a time


def write_synthetic_texts(
    generator: Generator,
    learner: Learner,
    config: MatchConfig,
    sampling: SamplingSettings,
    names: Names,
    world: World = ALONE,
) -> list[SyntheticTexts]:
    """Texts from the generator as it is now, for each label. Collective: ranks share the sampling and the embedding.

    With `match.diverse` they are clustered, into as many clusters as a mini-batch has texts, by the learner's
    embeddings as it is now. Raises DataError where fewer texts than a mini-batch needs are well-formed.
    """
    sampler = Sampler(generator, sampling.precision)
    size = config.pool_dpc or config.synthetic_dpc * config.inner_steps * config.regenerate_every
    texts_of_labels = []
    for label in range(learner.n_labels):
        samples = sampler.sample(label, world.shard(size), ("pool", *names), sampling.top_p, sampling.batch)
        shares = world.all_gather(list(zip(samples.texts, samples.tokens, strict=True)))
        good = [(text, tokens) for text, tokens in world.interleave(shares) if text is not None]
        if len(good) < config.synthetic_dpc:
            raise DataError(
                f"only {len(good)} of {size} texts that the generator wrote for label {label} are well-formed; "
                f"match.synthetic_dpc={config.synthetic_dpc} are needed. Train longer (pretrain.steps), or raise "
                "match.pool_dpc or task.max_length."
            )
        sequences = [[*generator.control.prompt(label), *tokens] for _, tokens in good]
        tokens = learner.tokenize([text for text, _ in good])
        clusters = None
        if config.diverse:
            embeddings_ND = _embed(learner, tokens, sampling.precision, world)
            seed = derive_seed("mini-batch", *names, label)
            # On the main rank alone: with more threads, scikit-learn's sums depend on which of them ends first.
            clusters = k_means(embeddings_ND, config.synthetic_dpc, seed)[0].tolist() if world.main else None
            clusters = world.broadcast(clusters)
        texts_of_labels.append(SyntheticTexts(sequences, tokens.lists(), clusters))
    return texts_of_labels


def _embed(learner: Learner, tokens: Tokens, precision: str, world: World) -> Tensor:
    """Embeddings of all texts on every rank, embeddings_ND; each rank computes its shard."""
    local = tokens.take(world.shard(len(tokens)))
    # As arrays: a row of a tensor travels with the whole tensor's memory.
    shares = world.all_gather(forward_all(learner, local, "embed", precision).numpy())
    return torch.from_numpy(np.stack(world.interleave([list(share) for share in shares])))
