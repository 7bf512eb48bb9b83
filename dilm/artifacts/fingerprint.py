"""The map of what stands under `root`: each artifact's folder, key, parents and the command that makes it.

A key hashes what determines the artifact: its part of the configuration, its parents' keys, the data's content hash
and the stage's version. Paths, launchers, workers and logging are not in it.
"""

from pathlib import Path
from typing import Any

from dilm.artifacts.artifact import Artifact
from dilm.config.schema import EMBEDDED, GENERATOR_METHODS, WRITING_METHODS, Config, LearnerConfig, plain
from dilm.core.hashing import content_key, without
from dilm.data.text_table import published_hashes
from dilm.hub.pretrained import source_id

# Raised when a stage's results change for equal configurations.
STAGE_VERSION = {
    "pretrain": 1,
    "trajectory": 1,
    "teacher": 1,
    "match": 1,
    "candidates": 1,
    "dataset": 1,
    "evaluate": 1,
    "audit": 1,
}
LEARNER_VERSION = 2  # raised when a learner's features change
TRAIN, GENERATE = "python -m dilm.train", "python -m dilm.generate"
MADE_BY = {
    "pretrain": TRAIN,
    "trajectory": TRAIN,
    "teacher": TRAIN,
    "match": TRAIN,
    "candidates": GENERATE,
    "dataset": GENERATE,
    "audit": "python -m dilm.audit",
}


def _artifact(config: Config, stage: str, name: str, science: dict[str, Any]) -> Artifact:
    science = {"stage": stage, "version": STAGE_VERSION[stage], **science}
    key = content_key(science)
    return Artifact(Path(config.root) / config.task.name / f"{name}-{key}", key, science, MADE_BY[stage])


def task_science(config: Config) -> dict[str, Any]:
    """What of a task determines results; where its rows were found does not, since their content is hashed."""
    task = config.task
    return {
        "name": task.name,
        "fields": task.fields,
        "labels": task.labels,
        "max_length": task.max_length,
        "valid_rows": config.data.valid_rows,
    }


def learner_science(learner: LearnerConfig) -> dict[str, Any]:
    """What of a learner determines its features and embeddings."""
    return {
        "version": LEARNER_VERSION,
        "source": source_id(learner.source),
        "pooling": learner.pooling,
        "embedding": learner.embedding,
        "max_length": learner.max_length,
    }


def pretrain_artifact(config: Config, data_hash: str) -> Artifact:
    """The generator after language-model training (method `lm`)."""
    generator = config.generator
    science = {
        "task": task_science(config),
        "data": data_hash,
        "generator": source_id(config.generator.source)
        | {"prefix": generator.prefix, "bos_init": generator.bos_init}
        | ({} if generator.dropout is None else {"dropout": generator.dropout}),
        "pretrain": without(plain(config.pretrain), "log_every", "valid_every"),
        "precision": config.precision,
        "seed": config.seed,
    }
    return _artifact(config, "pretrain", f"lm-{config.generator.name}", science)


def trajectory_artifact(config: Config, data_hash: str, number: int) -> Artifact:
    """One learner of the pool: its weights before each update of an outer step. All runs of a task share it."""
    match = config.match
    names = ("learner_steps", "inner_steps", "learner_batch", "learner_dropout", "learner_schedule")
    science = {
        "task": task_science(config),
        "data": data_hash,
        "learner": learner_science(match.learner),
        "training": {name: getattr(match, name) for name in names} | {"optimizer": plain(match.learner_optimizer)},
        "precision": config.precision,
        "number": number,
    }
    return _artifact(config, "trajectory", f"trajectory-{match.learner.name}-{number}", science)


def teacher_artifact(config: Config, data_hash: str, number: int) -> Artifact:
    """The gradients of real texts at every state of a learner of the pool."""
    match = config.match
    science = {
        "parent": trajectory_artifact(config, data_hash, number).key,
        "sets": {
            name: getattr(match, name) for name in ("representative", "repset_dpc", "n_repset", "real_candidates")
        },
    }
    return _artifact(config, "teacher", f"teacher-{match.learner.name}-{number}", science)


def pool_artifacts(config: Config, data_hash: str) -> list[tuple[Artifact, Artifact]]:
    """Every trajectory of the pool with its teacher; none where a matching has no pool."""
    pooled = config.match.objective == "gradient" and config.match.learners == "pool"
    numbers = range(config.match.pool_size) if pooled else ()
    return [(trajectory_artifact(config, data_hash, n), teacher_artifact(config, data_hash, n)) for n in numbers]


def match_artifact(config: Config, data_hash: str) -> Artifact:
    """The generator after gradient matching, or after imitating what teaches (method `dilm`)."""
    if config.match.objective == "teach":
        return _artifact(config, "match", f"dilm-{config.generator.name}", _imitation_science(config, data_hash))
    imitated = ("objective", "taught_sets", "taught_dpc")
    aside = ("learner", "trajectory", "log_every", "monitor_every", "monitor_dpc", "monitor_states")
    unused = ("real_dpc",) if config.match.learners == "pool" else ("pool_size",)
    science = {
        "parent": pretrain_artifact(config, data_hash).key,
        "match": without(plain(config.match), *imitated, *aside, *unused),
        "learner": learner_science(config.match.learner),
        "top_p": config.generate.top_p,
        "precision": config.precision,
        "seed": config.seed,
    }
    return _artifact(config, "match", f"dilm-{config.generator.name}", science)


def _imitation_science(config: Config, data_hash: str) -> dict[str, Any]:
    match = config.match
    names = ("objective", "taught_sets", "taught_dpc", "lm_batch")
    return {
        "parent": pretrain_artifact(config, data_hash).key,
        "match": {name: getattr(match, name) for name in names} | {"optimizer": plain(match.optimizer)},
        "steps": match.outer_steps * match.inner_steps,
        "teach": _teach_science(config) | {"real_candidates": config.generate.real_candidates},
        "pool": config.generate.pool,
        "precision": config.precision,
        "seed": config.seed,
    }


def _teach_science(config: Config) -> dict[str, Any]:
    views = [learner_science(view) for view in teach_views(config)]
    return {"teach": without(plain(config.generate.teach), "views"), "views": views}


def generator_artifact(config: Config, data_hash: str) -> Artifact:
    """The trained generator that `config.method` samples from."""
    return (pretrain_artifact if config.method == "lm" else match_artifact)(config, data_hash)


def candidates_artifact(config: Config, data_hash: str) -> Artifact:
    """What data sets are chosen from: all well-formed texts that a generator wrote, or real ones that it has ranked."""
    settings = config.generate
    parent = generator_artifact(config, data_hash).key
    if config.method == "rank":
        ranked = {"parent": parent, "real_candidates": settings.real_candidates, "precision": config.precision}
        return _artifact(config, "candidates", "candidates-rank", {"method": "rank", "seed": config.seed, **ranked})
    science: dict[str, Any] = {
        "parent": parent,
        "pool": settings.pool,
        "top_p": settings.top_p,
        "batch": settings.batch,
        "precision": config.precision,
        "seed": config.seed,
    }
    if settings.pool == "shared":
        science |= {"pool_dpc": settings.pool_dpc}
    else:
        science |= {"oversample": settings.oversample, "dpc": config.dpc, "n_datasets": config.n_datasets}
    return _artifact(config, "candidates", f"candidates-{config.method}", science)


def selection_of(config: Config) -> str:
    """How texts are chosen: by the method itself, or from what a generator wrote as `generate.selection` says."""
    return config.generate.selection if config.method in WRITING_METHODS else config.method


def teach_views(config: Config) -> list[LearnerConfig]:
    """The encoders in whose inner products the proxies learn that `selection=teach` chooses by."""
    return list(config.generate.teach.views.values()) or [config.generate.encoder]


def dataset_artifact(config: Config, data_hash: str) -> Artifact:
    """The distilled data sets of one method and size."""
    settings, selection = config.generate, selection_of(config)
    real = {"task": task_science(config), "data": data_hash}
    if selection == "full":
        return _artifact(config, "dataset", "full", {"method": "full", **real})
    if selection == "published":
        science = {"method": selection, "dpc": config.dpc, "task": task_science(config)}
        name = f"{config.published.name}-dpc{config.dpc}"
        return _artifact(config, "dataset", name, {**science, "files": published_hashes(config)})
    science = {
        "method": config.method,
        "dpc": config.dpc,
        "n_datasets": config.n_datasets,
        "pool": settings.pool,
        "selection": selection,
        "seed": config.seed,
    }
    if selection == "teach":
        science |= _teach_science(config) | {"precision": config.precision, "data": data_hash}
    if selection in EMBEDDED:
        encoder = learner_science(settings.encoder) | {"unit_embeddings": settings.unit_embeddings}
        science |= {"encoder": encoder, "precision": config.precision}
    if config.method in GENERATOR_METHODS:
        science |= {"parent": candidates_artifact(config, data_hash).key}
        if config.method in WRITING_METHODS:
            science |= {"exclude_copies": True} if settings.exclude_copies else {}
            filtered = {"share": settings.teacher_filter, "encoder": learner_science(settings.encoder)}
            science |= {"teacher_filter": filtered | {"data": data_hash}} if settings.teacher_filter else {}
    else:
        science |= {**real, "real_candidates": settings.real_candidates}
    return _artifact(config, "dataset", f"{config.method}-dpc{config.dpc}", science)


def audit_artifact(config: Config, shard_key: str, name: str, hashes: dict[str, str]) -> Artifact:
    """What an audit of shards found; `hashes` are the contents of its task's splits."""
    frozen = config.learner.freeze_encoder
    full = plain(config.evaluate.full) | ({"head_lr": config.evaluate.head_lr} if frozen else {})
    science = {
        "parent": shard_key,
        "task": task_science(config),
        "data": hashes,
        "audit": without(plain(config.audit), "listed"),
        "encoder": learner_science(config.generate.encoder),
        "teacher": learner_science(config.learner) | {"freeze_encoder": frozen, "training": full},
        "precision": config.precision,
    }
    return _artifact(config, "audit", f"audit-{name}", science)
