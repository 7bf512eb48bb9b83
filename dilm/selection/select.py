"""Data sets from candidates: what each may choose from, and what it takes (paper, section 3.4; docs/method.md)."""

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from dilm.artifacts.fingerprint import selection_of, teach_views
from dilm.artifacts.shards import ShardTable, concatenate, shard_table
from dilm.config.schema import EMBEDDED, WRITING_METHODS, Config, LearnerConfig, TeachConfig
from dilm.core.errors import DataError
from dilm.core.hashing import derive_seed
from dilm.data.corpus import Corpus
from dilm.data.samplers import candidate_rows
from dilm.data.text_table import TextTable
from dilm.distributed.context import Context
from dilm.models.features import FeatureStore
from dilm.selection.coreset import SELECTIONS, random_rows
from dilm.selection.teach import Labels, View, search, tuned, view_of
from dilm.tracking.tracker import Progress

SHARED = -1  # data-set index of candidates that all data sets share
Text = tuple[str, ...]  # one string a field
UNKNOWN = -1  # cluster of a text that wasn't chosen by clusters


def chooser(context: Context, candidates: ShardTable) -> Callable[[int], ShardTable]:
    """A function from a data set's number to its texts, chosen as `selection_of(config)` says.

    Candidates are embedded once, for all data sets. The function raises DataError where a label has too few.
    """
    config = context.config
    if selection_of(config) == "teach":
        return _Teaching(context, candidates).choose
    embeddings = None
    if selection_of(config) in EMBEDDED:
        embeddings = _store(context, config.generate.encoder).get(candidates.table.texts, "embed")
        embeddings = normalize(embeddings, dim=1) if config.generate.unit_embeddings else embeddings

    def choose(dataset: int) -> ShardTable:
        labels = range(len(config.task.labels))
        return concatenate([_choose(config, candidates, embeddings, dataset, label) for label in labels])

    return choose


def real_candidates(config: Config, corpus: Corpus) -> ShardTable:
    """The training rows that a method chooses from; `index` is the row's number."""
    rows = np.arange(len(corpus.train))
    if config.method not in ("random", "full"):
        seed = derive_seed("real candidates", config.task.name, config.seed)
        rows = candidate_rows(corpus.train, config.generate.real_candidates, seed)
    return shard_table(corpus.train.take(rows), dataset=SHARED, index=rows)


def taught_texts(context: Context) -> TextTable:
    """The real texts of `match.taught_sets` sets that teach most, for the generator to imitate.

    A text comes as often as sets have it. Raises DataError where a label has too few.
    """
    settings = context.config.match
    context = context.changed(method="teach", dpc=settings.taught_dpc)
    choose = chooser(context, real_candidates(context.config, context.corpus))
    bar = Progress(settings.taught_sets, "choose what the generator imitates")
    sets = []
    for dataset in range(settings.taught_sets):
        sets.append(choose(dataset))
        bar.update()
    return concatenate(sets).table


def _store(context: Context, encoder: LearnerConfig) -> FeatureStore:
    return FeatureStore(encoder, context.n_labels, context.cache, context.device, context.config.precision)


def _choose(
    config: Config, candidates: ShardTable, embeddings_ND: Tensor | None, dataset: int, label: int
) -> ShardTable:
    """The `dpc` texts of one label in one data set."""
    seed = _seed(config, dataset)
    rows = _distinct(config, candidates, dataset, label)
    draw = class_seed(seed, label)
    selection = selection_of(config)
    cluster = np.arange(config.dpc) if selection == "k_centers" else UNKNOWN
    if embeddings_ND is not None:
        chosen = SELECTIONS[selection](embeddings_ND[rows], config.dpc, draw)
    elif selection == "random":
        chosen = random_rows(len(rows), config.dpc, draw)
    elif selection == "rank":
        chosen = np.argsort(candidates.nll[rows], kind="stable")[: config.dpc]
    else:
        chosen = np.arange(config.dpc)
    return candidates.take(rows[chosen]).with_columns(dataset=dataset, seed=seed, cluster=cluster)


@dataclass(frozen=True)
class _Seen:
    """All candidates, and training texts to score sets on, as one encoder sees them."""

    candidates_ND: Tensor
    scored_MD: Tensor


class _Teaching:
    """Chooses what teaches most. Every data set has its own candidates, and its own training texts to score on."""

    def __init__(self, context: Context, candidates: ShardTable) -> None:
        config, corpus = context.config, context.corpus
        self.config, self.candidates = config, candidates
        self.scored = corpus.train.take(scored_rows(config, candidates, corpus.train))
        settings = config.generate.teach
        stores = [_store(context, view) for view in teach_views(config)]
        parts = (candidates.table.texts, self.scored.texts)
        self.seen = [_Seen(*(store.get(texts, "embed") for texts in parts)) for store in stores]
        if settings.words:
            from dilm.models.bag_of_words import (
                word_features,  # scikit-learn: heavy, and no other command needs it to start
            )

            seed = derive_seed("word features", config.task.name)
            self.seen.append(_Seen(*map(torch.from_numpy, word_features(parts, settings.words, seed))))

    def choose(self, dataset: int) -> ShardTable:
        """The data set of this number, class by class."""
        config, settings, seed = self.config, self.config.generate.teach, _seed(self.config, dataset)
        n_labels = len(config.task.labels)
        rows = np.concatenate([_distinct(config, self.candidates, dataset, label) for label in range(n_labels)])
        random = np.random.default_rng(derive_seed("scored", seed))
        scored = random.permutation(len(self.scored))[: settings.scored]
        labels = Labels(self.candidates.table.labels[rows], self.scored.labels[scored], n_labels)
        views = [view_of(seen.candidates_ND[rows], seen.scored_MD[scored]) for seen in self.seen]
        chosen = taught_rows(views, labels, config.dpc, seed, settings)
        return self.candidates.take(rows[chosen]).with_columns(dataset=dataset, seed=seed)


def taught_rows(views: Sequence[View], labels: Labels, dpc: int, seed: int, settings: TeachConfig) -> list[int]:
    """The `dpc` candidates a class that teach most, class by class. `seed` is that of the data set."""
    views = tuned(views, labels, dpc, derive_seed("probes", seed))
    chosen, _ = search(views, labels, dpc, derive_seed("search", seed), settings.passes, settings.restarts)
    return chosen


def scored_rows(config: Config, candidates: ShardTable, train: TextTable) -> np.ndarray:
    """Training rows to score sets on: as they come in the corpus, and no candidates where there are enough others."""
    seed = derive_seed("scored pool", config.task.name, config.seed)
    return others_first(train.texts, set(candidates.table.texts), seed)[: config.generate.teach.pool]


def others_first(texts: Sequence[Text], candidates: Set[Text], seed: int) -> np.ndarray:
    """All rows of `texts` in random order, those of candidates last."""
    order = np.random.default_rng(seed).permutation(len(texts))
    candidate_N = np.array([texts[row] in candidates for row in order])
    return np.concatenate([order[~candidate_N], order[candidate_N]])


def credible_rows(context: Context, table: TextTable) -> np.ndarray:
    """The label filter: rows of a table whose label a linear classifier, trained on the whole corpus, does not doubt.

    It doubts a text whose log-odds for its label are below those of all but the `generate.teacher_filter` least likely
    held-out training texts.
    """
    from sklearn.linear_model import LogisticRegression  # heavy

    config, corpus = context.config, context.corpus
    store = _store(context, config.generate.encoder)
    parts = (corpus.train, corpus.valid, table)
    train_ND, valid_ND, table_ND = (store.get(part.texts, "embed").numpy() for part in parts)
    middle_D, spread = train_ND.mean(0), train_ND.std()
    classifier = LogisticRegression(max_iter=300).fit((train_ND - middle_D) / spread, corpus.train.labels)

    def log_odds(features_ND: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
        log_NC = classifier.predict_log_proba((features_ND - middle_D) / spread)
        log_N = log_NC[np.arange(len(labels_N)), labels_N]
        return log_N - np.log(-np.expm1(np.minimum(log_N, -1e-12)))

    limit = np.quantile(log_odds(valid_ND, corpus.valid.labels), config.generate.teacher_filter)
    return np.flatnonzero(log_odds(table_ND, table.labels) >= limit)


def _seed(config: Config, dataset: int) -> int:
    return derive_seed("dataset", config.task.name, config.seed, dataset)


def class_seed(seed: int, label: int) -> int:
    """What the choice of one class draws with; `seed` is that of the data set."""
    return derive_seed("choose", seed, label)


def _candidates_of(config: Config, candidates: ShardTable, dataset: int, label: int) -> np.ndarray:
    """Rows that a data set may choose from: all, its own candidates, or its seeded half of the pool.

    The half is one of candidate numbers and doesn't depend on dpc or method, so data sets are nested over dpc and
    paired over methods. Herding and ranking know no chance: their data sets differ by their halves alone.
    """
    rows = candidates.table.rows_by_label.get(label, np.zeros(0, dtype=int))
    writing = config.method in WRITING_METHODS
    fresh = config.generate.pool == "fresh"
    if writing and fresh:
        return rows[candidates.dataset[rows] == dataset]
    if config.method == "random" or (fresh and config.method == "k_centers"):
        return rows
    numbers = candidates.index[rows] if writing else np.arange(len(rows))
    size = config.generate.pool_dpc if writing else len(rows)
    generator = np.random.default_rng(derive_seed("half", config.task.name, config.seed, dataset, label))
    half = generator.permutation(size)[: -(-size // 2)]
    return rows[np.isin(numbers, half)]


def first_rows(texts: Sequence[Text], rows: np.ndarray) -> np.ndarray:
    """Of the rows with equal texts the first ones, in their order."""
    first: dict[Text, int] = {}
    for row in rows:
        first.setdefault(texts[row], int(row))
    return np.array(list(first.values()), dtype=int)


def _distinct(config: Config, candidates: ShardTable, dataset: int, label: int) -> np.ndarray:
    """The candidates of a data set and label, each text once. Raises DataError where they are fewer than dpc."""
    texts, rows = candidates.table, _candidates_of(config, candidates, dataset, label)
    first = first_rows(texts.texts, rows)
    if len(first) >= config.dpc:
        return first
    name, settings = config.task.labels[label], config.generate
    if config.method not in WRITING_METHODS:
        raise DataError(
            f"dpc={config.dpc}, but label {name!r} has only {len(first)} distinct training texts; lower dpc."
        )
    size = -(-settings.pool_dpc // 2) if settings.pool == "shared" else settings.oversample * config.dpc
    raise DataError(
        f"only {len(first)} of {size} texts written for label {name!r} are well-formed and distinct; dpc={config.dpc} "
        "needs more. Train longer (pretrain.steps), or raise generate.pool_dpc, generate.oversample or task.max_length"
        + (f"; or lower generate.teacher_filter={settings.teacher_filter}." if settings.teacher_filter else ".")
    )
