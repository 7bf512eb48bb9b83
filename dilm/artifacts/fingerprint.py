"""The map of what stands under `root`: each artifact's folder, key, parents and the command that makes it.

A key hashes what determines the artifact: its part of the configuration, its parents' keys, the data's content hash
and the stage's version. Paths, launchers, workers and logging are not in it.
"""

from pathlib import Path
from typing import Any

from dilm.artifacts.artifact import Artifact
from dilm.config.schema import EMBEDDED, GENERATOR_METHODS, WRITING_METHODS, Config, LearnerConfig, plain
from dilm.config.stages import REPORT, Output, maker_of
from dilm.core.hashing import content_key, without
from dilm.data.corpus import split_hash
from dilm.data.text_table import published_hashes
from dilm.hub.pretrained import cache_folder, source_id

LEARNER_VERSION = 2  # raised when a learner's features change


def version_of(kind: str) -> int:
    """The version number of a kind of artifact, or of cells: raised when results change for equal configurations."""
    return maker_of(kind).versions[kind]


def artifact_of(config: Config, kind: str, name: str, science: dict[str, Any]) -> Artifact:
    """The artifact of a kind that `science` determines. `name` stands before the key in the name of its folder."""
    science = {"stage": kind, "version": version_of(kind), **science}
    key = content_key(science)
    folder = Path(config.root) / config.task.name / f"{name}-{key}"
    return Artifact(folder, key, science, f"python -m dilm.{maker_of(kind).command}")


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
    return artifact_of(config, "pretrain", f"lm-{config.generator.name}", science)


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
    return artifact_of(config, "trajectory", f"trajectory-{match.learner.name}-{number}", science)


def teacher_artifact(config: Config, data_hash: str, number: int) -> Artifact:
    """The gradients of real texts at every state of a learner of the pool."""
    match = config.match
    science = {
        "parent": trajectory_artifact(config, data_hash, number).key,
        "sets": {
            name: getattr(match, name) for name in ("representative", "repset_dpc", "n_repset", "real_candidates")
        },
    }
    return artifact_of(config, "teacher", f"teacher-{match.learner.name}-{number}", science)


def pool_artifacts(config: Config, data_hash: str) -> list[tuple[Artifact, Artifact]]:
    """Every trajectory of the pool with its teacher; none where a matching has no pool."""
    pooled = config.match.objective == "gradient" and config.match.learners == "pool"
    numbers = range(config.match.pool_size) if pooled else ()
    return [(trajectory_artifact(config, data_hash, n), teacher_artifact(config, data_hash, n)) for n in numbers]


def match_artifact(config: Config, data_hash: str) -> Artifact:
    """The generator after gradient matching, or after imitating what teaches (method `dilm`)."""
    if config.match.objective == "teach":
        return artifact_of(config, "match", f"dilm-{config.generator.name}", _imitation_science(config, data_hash))
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
    return artifact_of(config, "match", f"dilm-{config.generator.name}", science)


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
        return artifact_of(config, "candidates", "candidates-rank", {"method": "rank", "seed": config.seed, **ranked})
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
    return artifact_of(config, "candidates", f"candidates-{config.method}", science)


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
        return artifact_of(config, "dataset", "full", {"method": "full", **real})
    if selection == "published":
        science = {"method": selection, "dpc": config.dpc, "task": task_science(config)}
        name = f"{config.published.name}-dpc{config.dpc}"
        return artifact_of(config, "dataset", name, {**science, "files": published_hashes(config)})
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
    return artifact_of(config, "dataset", f"{config.method}-dpc{config.dpc}", science)


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
    return artifact_of(config, "audit", f"audit-{name}", science)


# What stages make of a configuration, as `dilm.config.stages` declares them


def content_hash(config: Config, split: str = "train") -> str:
    """The content hash of a split of the task. Raises DilmError where its rows can't be read."""
    return split_hash(config.task, split, cache_folder(config.cache))


def named(artifact: Artifact) -> str:
    """An artifact's folder, relative to root."""
    return f"{artifact.folder.parent.name}/{artifact.folder.name}"


def pretrain_outputs(config: Config) -> list[Output]:
    """The pre-trained generator."""
    return [Output((named(pretrain_artifact(config, content_hash(config))),))]


def learners_outputs(config: Config) -> list[Output]:
    """The last of what is made for each trajectory of the pool, or for the one that `match.trajectory` names."""
    pool = pool_artifacts(config, content_hash(config))
    chosen = config.match.trajectory
    return [
        Output((named(teacher),), (f"match.trajectory={number}",))
        for number, (_, teacher) in enumerate(pool)
        if chosen in (None, number)
    ]


def match_outputs(config: Config) -> list[Output]:
    """The matched generator."""
    return [Output((named(match_artifact(config, content_hash(config))),))]


def generate_outputs(config: Config) -> list[Output]:
    """The data sets of one method and size. Those that are chosen from the same candidates are one group."""
    data_hash = content_hash(config)
    generated = config.method in GENERATOR_METHODS
    group = named(candidates_artifact(config, data_hash)) if generated else ""
    return [Output((named(dataset_artifact(config, data_hash)),), group=group)]


def collect_outputs(config: Config) -> list[Output]:
    """The report of all rows below root."""
    return [Output((REPORT,))]
