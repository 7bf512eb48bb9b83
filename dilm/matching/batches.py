"""The two streams that gradient matching compares: real batches and the generator's own texts (paper, section 3.3)."""

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
from dilm.models.sampling import Writer
from dilm.selection.coreset import k_centers, k_means


def teacher_sets(table: TextTable, config: MatchConfig, store: FeatureStore, names: Names) -> list[list[np.ndarray]]:
    """The sets that real batches come from, each with the rows of every label. Raises DataError.

    The representative teacher: `n_repset` coresets by K-centers, with different seeds. Without it: all rows.
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
    """Endless real batches: for each label, the rows of `real_dpc` texts of one of the sets."""
    generator = np.random.default_rng(derive_seed("real batches", *names))
    while True:
        chosen = sets[generator.integers(len(sets))]
        yield [generator.choice(rows, size=min(real_dpc, len(rows)), replace=False) for rows in chosen]


def fixed_sets(table: TextTable, config: MatchConfig, store: FeatureStore, names: Names) -> list[list[np.ndarray]]:
    """The `n_repset` sets of real texts that a pool of learners is measured on: coresets, or else random texts."""
    sets = teacher_sets(table, config, store, names)
    if config.representative:
        return sets
    drawn = real_batches(sets, config.repset_dpc, names)
    return [next(drawn) for _ in range(config.n_repset)]


@dataclass(frozen=True)
class PoolOfLabel:
    """Well-formed texts that the generator wrote for one label."""

    sequences: list[list[int]]  # the generator's tokens, from <bos_y> to <eos>
    tokens: list[list[int]]  # the learner's tokens
    clusters: list[int] | None  # of each text; None: mini-batches are drawn at random

    def batches(self, size: int, names: Names) -> Iterator[np.ndarray]:
        """Endless mini-batches of text numbers: one of each cluster, where there are clusters."""
        generator = np.random.default_rng(derive_seed("mini-batch", *names))
        if self.clusters is None:
            return plain_batches(len(self.sequences), size, generator)
        return diverse_batches(np.array(self.clusters), size, generator)


@dataclass(frozen=True)
class Writing:
    """How texts are sampled while matching."""

    precision: str
    top_p: float
    batch: int


def synthetic_pool(
    generator: Generator,
    learner: Learner,
    config: MatchConfig,
    writing: Writing,
    names: Names,
    world: World = ALONE,
) -> list[PoolOfLabel]:
    """Texts from the generator as it is now, for each label. Raises DataError.

    Clusters are those of the learner's embeddings as it is now. Ranks share the writing and the embedding.
    """
    writer = Writer(generator, writing.precision)
    size = config.pool_dpc or config.synthetic_dpc * config.inner_steps * config.regenerate_every
    pool = []
    for label in range(learner.n_labels):
        written = writer.write(label, world.shard(size), ("pool", *names), writing.top_p, writing.batch)
        shares = world.all_gather(list(zip(written.texts, written.tokens, strict=True)))
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
            embeddings_ND = _embed(learner, tokens, writing.precision, world)
            seed = derive_seed("mini-batch", *names, label)
            # On the main rank alone: with more threads, scikit-learn's sums depend on which of them ends first.
            found = k_means(embeddings_ND, config.synthetic_dpc, seed)[0].tolist() if world.main else None
            clusters = world.broadcast(found)
        pool.append(PoolOfLabel(sequences, tokens.lists(), clusters))
    return pool


def _embed(learner: Learner, tokens: Tokens, precision: str, world: World) -> Tensor:
    own = tokens.take(world.shard(len(tokens)))
    # As arrays: a row of a tensor travels with the whole tensor's memory.
    shares = world.all_gather(forward_all(learner, own, "embed", precision).numpy())
    return torch.from_numpy(np.stack(world.interleave([list(share) for share in shares])))
