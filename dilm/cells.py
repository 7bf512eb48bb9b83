"""The cells of an evaluation: which learners are trained on which data sets, and the key of each. Torch-free."""

from dataclasses import replace
from typing import Any

from dilm.artifacts import STAGE_VERSION, dataset_artifact, learner_science
from dilm.config import Config, plain
from dilm.keys import content_key
from dilm.results import Row, cell_key


def protocol_science(config: Config, dev_hash: str) -> dict[str, Any]:
    """What determines an evaluation besides the data set and the seed."""
    settings = config.evaluate
    science = {
        "version": STAGE_VERSION["evaluate"],
        "evaluator": config.evaluator,
        "metric": config.task.metric,
        "dev": dev_hash,
        "seed": config.seed,
    }
    if config.evaluator == "words":
        return science
    frozen = config.learner.freeze_encoder
    return science | {
        "learner": learner_science(config.learner) | {"freeze_encoder": frozen},
        "steps": settings.steps,
        "batch": settings.batch,
        "optimizer": plain(settings.optimizer) | ({"lr": settings.head_lr} if frozen else {}),
        "precision": config.precision,
    }


def evaluation_cells(config: Config, data_hash: str, dev_hash: str) -> list[Row]:
    """Rows without a value, one for each cell that the configuration names, data set by data set."""
    source = dataset_artifact(config, data_hash)
    protocol = protocol_science(config, dev_hash)
    words = config.evaluator == "words"
    blank = Row(
        key="", task=config.task.name, method=config.method, dpc=config.dpc, dataset=0, seed=0,
        evaluator="words" if words else "frozen" if config.learner.freeze_encoder else config.evaluator,
        model="words" if words else config.learner.name, metric=config.task.metric, value=None, status="failed",
        source_key=source.key, protocol=content_key(protocol), data_hash=dev_hash,
        steps=0 if words else config.evaluate.steps, pool=config.generate.pool,
    )  # fmt: skip
    cells = [
        replace(blank, dataset=dataset, seed=seed, key=cell_key(source.key, dataset, protocol, seed))
        for dataset in range(config.evaluate.n_datasets or config.n_datasets)
        for seed in range(config.n_seeds)
    ]
    wanted = config.evaluate.cells
    return cells if wanted is None else [cells[index] for index in wanted]
