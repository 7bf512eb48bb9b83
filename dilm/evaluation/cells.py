"""The cells of an evaluation: which learners are trained on which data sets, and the key of each. Torch-free."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from dilm.artifacts.fingerprint import content_hash, dataset_artifact, learner_science, version_of
from dilm.artifacts.rows import Cell, cell_key
from dilm.config.schema import Config, plain
from dilm.config.stages import Output
from dilm.core.errors import ConfigError
from dilm.core.hashing import content_key, without
from dilm.data.templates import PROMPT_VERSION, label_words
from dilm.data.text_table import TextTable, published_files
from dilm.hub.pretrained import source_id

SeedNames = tuple[str | int, ...]  # of which every random number of a learner's training is derived


class Training(NamedTuple):
    """What one learner is trained on, or shown, and what seeds it."""

    dataset: TextTable
    names: SeedNames


Predictor = Callable[[TextTable, SeedNames], np.ndarray]  # trains on a data set, and labels dev: (n_dev,) int64


def protocol_science(config: Config, dev_hash: str) -> dict[str, Any]:
    """What determines an evaluation besides the data set and the seed."""
    settings = config.evaluate
    science = {
        "version": version_of("evaluate"),
        "evaluator": config.evaluator,
        "metric": config.task.metric,
        "dev": dev_hash,
        "dev_rows": settings.dev_rows,
        "seed": config.seed,
    }
    if config.evaluator == "words":
        return science
    if config.evaluator == "icl":
        llm = source_id(config.llm.source) | {"four_bit": config.llm.four_bit}
        prompt = {
            "version": PROMPT_VERSION,
            "fields": config.task.fields,
            "words": label_words(config.task.labels, config.task.words),
        }
        return science | {"llm": llm, "prompt": prompt, "icl": plain(config.icl), "precision": config.precision}
    frozen = config.learner.freeze_encoder
    return science | {
        "learner": learner_science(config.learner) | {"freeze_encoder": frozen},
        "steps": settings.steps,
        "batch": settings.batch,
        "optimizer": plain(settings.optimizer) | ({"lr": settings.head_lr} if frozen else {}),
        "precision": config.precision,
    }


def cell_science(config: Config, dev_hash: str) -> dict[str, Any]:
    """What determines a cell besides the data set and the seed: the protocol, and what `method=full` does otherwise."""
    protocol = protocol_science(config, dev_hash)
    if config.method != "full" or config.evaluator != "finetune":
        return protocol
    full = plain(config.evaluate.full)
    if config.learner.freeze_encoder:
        full["optimizer"]["lr"] = config.evaluate.head_lr
    return without(protocol, "steps", "batch", "optimizer") | full


def n_datasets_of(config: Config) -> int:
    """How many data sets the method has."""
    if config.method == "full":
        return 1
    return len(published_files(config)) if config.method == "published" else config.n_datasets


def name_of(config: Config) -> str:
    """What tables call the method, and the variant of it."""
    name = config.published.name if config.method == "published" else config.method
    return f"{name}, {config.variant}" if config.variant else name


def _learnt_by(config: Config) -> tuple[str, str]:
    """What rows call the evaluator, and the model."""
    if config.evaluator == "finetune":
        return "frozen" if config.learner.freeze_encoder else "finetune", config.learner.name
    return config.evaluator, config.llm.name if config.evaluator == "icl" else "words"


def evaluation_cells(config: Config, data_hash: str, dev_hash: str) -> list[Cell]:
    """The cells that the configuration names, data set by data set. Raises ConfigError for a number that none has."""
    source = dataset_artifact(config, data_hash)
    science, protocol = cell_science(config, dev_hash), content_key(protocol_science(config, dev_hash))
    full = config.method == "full"
    if full:
        protocol += "/" + content_key({"source": source.key, **science})
    evaluator, model = _learnt_by(config)
    first = Cell(
        key="", task=config.task.results or config.task.name, method=name_of(config), dpc=0 if full else config.dpc,
        dataset=0, seed=0, evaluator=evaluator, model=model, metric=config.task.metric,
        source_key=source.key, protocol=protocol, data_hash=dev_hash,
        steps=config.evaluate.steps if config.evaluator == "finetune" and not full else 0, pool=config.generate.pool,
        dev_rows=config.evaluate.dev_rows,
    )  # fmt: skip
    n_datasets = n_datasets_of(config)
    cells = [
        replace(first, dataset=dataset, seed=seed, key=cell_key(source.key, dataset, science, seed))
        for dataset in range(min(config.evaluate.n_datasets or n_datasets, n_datasets))
        for seed in range(config.n_seeds)
    ]
    wanted = config.evaluate.cells
    if beyond := [number for number in wanted or [] if not 0 <= number < len(cells)]:
        raise ConfigError(
            f"evaluate.cells names {beyond[0]}, but {len(cells) // config.n_seeds} data sets x {config.n_seeds} seeds "
            f"have the cells 0 to {len(cells) - 1}."
        )
    return cells if wanted is None else [cells[index] for index in wanted]


def evaluate_outputs(config: Config) -> list[Output]:
    """The cells of one evaluation, as `dilm.config.stages` declares them."""
    cells = evaluation_cells(config, content_hash(config), content_hash(config, "dev"))
    return [Output(tuple(cell.key for cell in cells))]
