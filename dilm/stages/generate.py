"""Writing candidates and choosing data sets: a generator, or the real rows -> HDF5 shards (paper, section 3.4)."""

from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch

from dilm.artifacts.artifact import Artifact, make
from dilm.artifacts.fingerprint import candidates_artifact, dataset_artifact, generator_artifact, selection_of
from dilm.artifacts.shards import ShardTable, concatenate, read_shards, shard_table, write_shards
from dilm.config.schema import GENERATOR_METHODS, WRITING_METHODS, Config, plain
from dilm.core import signals
from dilm.core.io import new_folder
from dilm.data.text_table import read_published, table
from dilm.distributed.context import Context
from dilm.distributed.world import ALONE, World
from dilm.evaluation.text_metrics import NONE, copies
from dilm.models.generator import load_generator
from dilm.models.likelihood import text_nll
from dilm.models.sampling import Sampler
from dilm.selection.select import SHARED, chooser, credible_rows, real_candidates
from dilm.tracking.tracker import Progress


def run(config: Config, world: World = ALONE) -> Artifact:
    """Make the data sets of one method and size, and the candidates that they are chosen from, or find them.

    Ranks share writing and ranking; choosing is the main one's.
    """
    context = Context(config, world)
    corpus = context.corpus
    artifact = dataset_artifact(config, corpus.content_hash)
    if world.broadcast(artifact.exists and not config.force):
        make(artifact, lambda folder: None, config, world=world)
        return artifact
    candidates_of: Callable[[], ShardTable] = partial(real_candidates, config, corpus)
    if config.method in GENERATOR_METHODS:
        candidates_of = _written_or_ranked(context)

    def choose(folder: Path) -> None:
        if world.main:
            _choose_all(context, artifact, _allowed(context, candidates_of()), folder)

    make(artifact, choose, config, world=world)
    return artifact


def _written_or_ranked(context: Context) -> Callable[[], ShardTable]:
    """Make the candidates that a generator writes, or the real texts that it ranks, or find them.

    What is returned gives them to the main rank: as they were made by this call, else read from their artifact.
    """
    config, corpus = context.config, context.corpus
    parent = generator_artifact(config, corpus.content_hash).require()
    pool = candidates_artifact(config, corpus.content_hash)
    made: list[ShardTable] = []

    def fill(folder: Path) -> None:
        if config.method == "rank":
            rows, about = _ranked(context, parent)
        else:
            rows, about = _written(context, pool, parent)
        if context.world.main:
            dpc = config.dpc if config.method in WRITING_METHODS and config.generate.pool == "fresh" else 0
            write_shards(folder, rows, _attributes(config, pool.key, dpc), about | {"config": plain(config)})
            made.append(rows)

    make(pool, fill, config, world=context.world)
    return lambda: made[0] if made else read_shards(pool.folder)


def _allowed(context: Context, candidates: ShardTable) -> ShardTable:
    """Candidates; where asked, of written ones no copies of training texts, and none whose label a teacher doubts."""
    config, settings = context.config, context.config.generate
    if config.method not in WRITING_METHODS:
        return candidates
    if settings.exclude_copies:
        candidates = candidates.take(np.flatnonzero(copies(candidates.table.texts, context.corpus.train.texts) == NONE))
    if settings.teacher_filter:
        candidates = candidates.take(credible_rows(context, candidates.table))
    return candidates


def _attributes(config: Config, key: str, dpc: int) -> dict[str, object]:
    return {
        "key": key,
        "task": config.task.name,
        "method": config.method,
        "dpc": dpc,
        "labels": list(config.task.labels),
    }


def _written(context: Context, artifact: Artifact, parent: Path) -> tuple[ShardTable, dict[str, int]]:
    """All well-formed texts of every label with their NLL, and how many were written; label and `index` seed a text.

    Every batch is kept beside the artifact until that is complete, so that a job that was killed writes none again.
    """
    config, world = context.config, context.world
    settings, task = config.generate, config.task
    generator = load_generator(parent, config.generator, task, context.device)
    sampler = Sampler(generator, config.precision)
    shared = settings.pool == "shared"
    datasets = [SHARED] if shared else range(config.n_datasets)
    size = settings.pool_dpc if shared else settings.oversample * config.dpc
    batches = list(product(datasets, range(len(task.labels)), range(0, size, settings.batch)))
    parts = []
    with Progress(len(batches), f"write {config.method}", active=world.main) as bar:
        for number in world.shard(len(batches)):
            dataset, label, start = batches[number]
            indices = range(start, min(start + settings.batch, size))
            write = partial(_write_batch, config, sampler, dataset, label, indices)
            parts.append(_kept(artifact.state / f"part-{number:06d}", write, _attributes(config, "", 0)))
            bar.update(world.size)
    rows = concatenate(world.interleave(world.all_gather(parts)))
    return rows, {"written": size * len(task.labels) * len(datasets)}


def _kept(folder: Path, make_rows: Callable[[], ShardTable], attributes: dict[str, object]) -> ShardTable:
    """Rows that a stopped or killed attempt of this artifact has kept in a folder; else they are made and kept."""
    if folder.is_dir():
        return read_shards(folder)
    signals.check_stop()
    rows = make_rows()
    with new_folder(folder) as temporary:
        write_shards(temporary, rows, attributes, {})
    return rows


def _write_batch(config: Config, sampler: Sampler, dataset: int, label: int, indices: range) -> ShardTable:
    """The well-formed ones of the texts of one label with these indices."""
    task = config.task
    # The method is not in the names: lm and dilm write from the same random numbers, and are paired.
    names = ("candidates", task.name, config.seed, dataset)
    written = sampler.sample(label, indices, names, config.generate.top_p, config.generate.batch)
    good = [row for row, text in enumerate(written.texts) if text is not None]
    texts = [text for text in written.texts if text is not None]
    rows = table(task.fields, texts, [label] * len(good))
    return shard_table(rows, dataset=dataset, index=np.asarray(indices)[good], nll=written.nll[good])


def _ranked(context: Context, parent: Path) -> tuple[ShardTable, dict[str, int]]:
    """Real texts with their NLL under the generator, and how many they are."""
    config, world = context.config, context.world
    candidates = real_candidates(config, context.corpus)
    generator = load_generator(parent, config.generator, config.task, context.device)
    generator.model.eval()
    rows = list(world.shard(len(candidates)))
    sequences = generator.encode(candidates.table.take(rows))
    nll: list[float] = []
    with Progress(-(-len(rows) // config.generate.batch), "rank", active=world.main) as bar, torch.inference_mode():
        for start in range(0, len(rows), config.generate.batch):
            signals.check_stop()
            part = sequences[start : start + config.generate.batch]
            nll += text_nll(generator, part, config.precision).tolist()
            bar.update()
    nll = world.interleave(world.all_gather(nll))
    return candidates.with_columns(nll=np.array(nll, dtype=np.float32)), {"ranked": len(candidates)}


def _choose_all(context: Context, artifact: Artifact, candidates: ShardTable, folder: Path) -> None:
    """Choose every data set, and write them all. What takes long is kept meanwhile, for a job that is queued again."""
    config = context.config
    selection = selection_of(config)
    about = {"candidates": len(candidates), "config": plain(config), "science": artifact.science}
    attributes = _attributes(config, artifact.key, config.dpc if selection != "full" else 0)
    if selection in ("full", "published"):
        whole = _published(config) if selection == "published" else candidates.with_columns(dataset=0, seed=config.seed)
        write_shards(folder, whole, attributes, about)
        return
    choose = chooser(context, candidates)
    parts = []
    with Progress(config.n_datasets, f"choose {config.method} dpc {config.dpc}") as bar:
        for dataset in range(config.n_datasets):
            if selection == "teach":
                parts.append(_kept(artifact.state / f"set-{dataset:06d}", partial(choose, dataset), attributes))
            else:
                parts.append(choose(dataset))
            bar.update()
    write_shards(folder, concatenate(parts), attributes, about)


def _published(config: Config) -> ShardTable:
    tables = read_published(config)
    return concatenate([shard_table(rows, dataset=number, seed=config.seed) for number, rows in enumerate(tables)])
