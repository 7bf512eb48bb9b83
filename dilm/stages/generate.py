"""Writing candidates and choosing data sets: a generator, or the real rows -> HDF5 shards (paper, section 3.4)."""

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
from dilm.data.corpus import Corpus, load_corpus
from dilm.data.text_table import read_published, table
from dilm.distributed.device import pick_device
from dilm.distributed.world import ALONE, World
from dilm.evaluation.text_metrics import NONE, copies
from dilm.hub.pretrained import cache_folder
from dilm.models.generator import load_generator
from dilm.models.likelihood import text_nll
from dilm.models.sampling import Writer
from dilm.selection.select import SHARED, chooser, real_candidates, trusted_rows
from dilm.tracking.tracker import Progress


def run(config: Config, world: World = ALONE) -> Artifact:
    """Make the data sets of one method and size, and the candidates that they are chosen from, or find them.

    Ranks share writing and ranking; choosing is the main one's.
    """
    cache = cache_folder(config.cache)
    corpus = world.main_first(lambda: load_corpus(config.task, config.data, cache))
    artifact = dataset_artifact(config, corpus.content_hash)
    if world.broadcast(artifact.exists and not config.force):
        make(artifact, lambda folder: None, config, world=world)
        return artifact
    pool = _pool(config, corpus, world) if config.method in GENERATOR_METHODS else None

    def choose(folder: Path) -> None:
        if world.main:
            candidates = (
                real_candidates(config, corpus) if pool is None else _written_or_ranked(config, corpus, pool, cache)
            )
            _choose_all(config, artifact, candidates, corpus, cache, folder)

    make(artifact, choose, config, world=world)
    return artifact


def _pool(config: Config, corpus: Corpus, world: World) -> Path:
    """The folder of what a generator wrote, or of the real texts that it ranked."""
    parent = generator_artifact(config, corpus.content_hash).require()
    pool = candidates_artifact(config, corpus.content_hash)

    def fill(folder: Path) -> None:
        if config.method == "rank":
            _rank_real(config, pool, parent, corpus, world, folder)
        else:
            _write_candidates(config, pool, parent, world, folder)

    make(pool, fill, config, world=world)
    return pool.folder


def _written_or_ranked(config: Config, corpus: Corpus, pool: Path, cache: Path) -> ShardTable:
    """The candidates of a pool; where asked without copies of training texts, and without what a teacher doubts."""
    candidates, settings = read_shards(pool), config.generate
    if config.method not in WRITING_METHODS:
        return candidates
    if settings.exclude_copies:
        candidates = candidates.take(np.flatnonzero(copies(candidates.table.texts, corpus.train.texts) == NONE))
    if settings.teacher_filter:
        candidates = candidates.take(trusted_rows(config, candidates.table, corpus, cache))
    return candidates


def _attributes(config: Config, key: str, dpc: int) -> dict[str, object]:
    return {
        "key": key,
        "task": config.task.name,
        "method": config.method,
        "dpc": dpc,
        "labels": list(config.task.labels),
    }


def _write_candidates(config: Config, artifact: Artifact, parent: Path, world: World, folder: Path) -> None:
    """All well-formed texts of every label, with their NLL; `seed` is the text's index, which seeds its tokens."""
    settings, task = config.generate, config.task
    device = pick_device(config.device, config.threads)
    generator = load_generator(parent, config.generator, task, device)
    writer = Writer(generator, config.precision)
    shared = settings.pool == "shared"
    datasets = [SHARED] if shared else range(config.n_datasets)
    size = settings.pool_dpc if shared else settings.oversample * config.dpc
    batches = list(product(datasets, range(len(task.labels)), range(0, size, settings.batch)))
    parts = []
    with Progress(len(batches), f"write {config.method}", active=world.main) as bar:
        for number in world.shard(len(batches)):
            dataset, label, start = batches[number]
            indices = range(start, min(start + settings.batch, size))
            kept = artifact.state / f"part-{number:06d}"  # of a job that was stopped
            if not kept.is_dir():
                signals.check_stop()
                _write_part(config, writer, dataset, label, indices, kept)
            parts.append(read_shards(kept))
            bar.update(world.size)
    whole = concatenate(world.interleave(world.all_gather(parts)))
    if not world.main:
        return
    about = {"written": size * len(task.labels) * len(datasets), "config": plain(config)}
    write_shards(folder, whole, _attributes(config, artifact.key, 0 if shared else config.dpc), about)


def _write_part(config: Config, writer: Writer, dataset: int, label: int, indices: range, folder: Path) -> None:
    """Write some texts of one label to a folder of their own, from which a job that is queued again goes on."""
    task = config.task
    # The method is not in the names: lm and dilm write from the same random numbers, and are paired.
    names = ("candidates", task.name, config.seed, dataset)
    written = writer.write(label, indices, names, config.generate.top_p, config.generate.batch)
    good = [row for row, text in enumerate(written.texts) if text is not None]
    texts = [text for text in written.texts if text is not None]
    rows = table(task.fields, texts, [label] * len(good))
    part = shard_table(rows, dataset=dataset, seed=np.asarray(indices)[good], nll=written.nll[good])
    with new_folder(folder) as temporary:
        write_shards(temporary, part, _attributes(config, "", 0), {})


def _rank_real(config: Config, artifact: Artifact, parent: Path, corpus: Corpus, world: World, folder: Path) -> None:
    """Real texts with their NLL under the generator."""
    candidates = real_candidates(config, corpus)
    generator = load_generator(parent, config.generator, config.task, pick_device(config.device, config.threads))
    generator.model.eval()
    own = list(world.shard(len(candidates)))
    sequences = generator.encode(candidates.table.take(own))
    parts = []
    with Progress(-(-len(own) // config.generate.batch), "rank", active=world.main) as bar, torch.inference_mode():
        for start in range(0, len(own), config.generate.batch):
            signals.check_stop()
            part = sequences[start : start + config.generate.batch]
            parts += text_nll(generator, part, config.precision).tolist()
            bar.update()
    nll = world.interleave(world.all_gather(parts))
    if world.main:
        about = {"ranked": len(candidates), "config": plain(config)}
        ranked = candidates.with_columns(nll=np.array(nll, dtype=np.float32))
        write_shards(folder, ranked, _attributes(config, artifact.key, 0), about)


def _choose_all(
    config: Config, artifact: Artifact, candidates: ShardTable, corpus: Corpus, cache: Path, folder: Path
) -> None:
    """Choose every data set, and write them all. What takes long is kept meanwhile, for a job that is queued again."""
    selection = selection_of(config)
    about = {"candidates": len(candidates), "config": plain(config), "science": artifact.science}
    attributes = _attributes(config, artifact.key, config.dpc if selection != "full" else 0)
    if selection in ("full", "published"):
        whole = _published(config) if selection == "published" else candidates.with_columns(dataset=0, seed=config.seed)
        write_shards(folder, whole, attributes, about)
        return
    choose = chooser(config, candidates, corpus, cache)

    def kept(dataset: int) -> ShardTable:
        own = artifact.state / f"set-{dataset:06d}"
        if not own.is_dir():
            signals.check_stop()
            with new_folder(own) as temporary:
                write_shards(temporary, choose(dataset), attributes, {})
        return read_shards(own)

    parts = []
    with Progress(config.n_datasets, f"choose {config.method} dpc {config.dpc}") as bar:
        for dataset in range(config.n_datasets):
            parts.append(kept(dataset) if selection == "teach" else choose(dataset))
            bar.update()
    write_shards(folder, concatenate(parts), attributes, about)


def _published(config: Config) -> ShardTable:
    tables = read_published(config)
    return concatenate([shard_table(rows, dataset=number, seed=config.seed) for number, rows in enumerate(tables)])
