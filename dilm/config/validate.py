"""From the composed configuration to the typed one, with every value that no stage could work with refused by name."""

import re
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dilm.config.schema import (
    DEVICES,
    EMBEDDED,
    EMBEDDINGS,
    ENGINES,
    EVALUATORS,
    LEARNERS,
    METHODS,
    METRICS,
    OBJECTIVES,
    POOLINGS,
    TWO_LABEL_METRICS,
    Config,
    TaskConfig,
)
from dilm.config.stages import chosen_stages, job_commands
from dilm.core.errors import ConfigError, did_you_mean

CHOICES: dict[str, tuple[str, ...]] = {
    "method": METHODS,
    "evaluator": EVALUATORS,
    "precision": ("bf16", "fp32"),
    "device": DEVICES,
    "tracking": ("auto", "jsonl", "mlflow"),
    "task.metric": METRICS,
    "generator.bos_init": ("bos", "label"),
    "learner.pooling": POOLINGS,
    "learner.embedding": EMBEDDINGS,
    "match.learner.pooling": POOLINGS,
    "match.learner.embedding": EMBEDDINGS,
    "match.objective": OBJECTIVES,
    "match.learners": LEARNERS,
    "match.nll_average": ("tokens", "padded"),
    "generate.encoder.embedding": EMBEDDINGS,
    "generate.pool": ("fresh", "shared"),
    "generate.selection": (*EMBEDDED, "teach", "none"),
    "icl.calibrate": ("none", "contextual"),
    "engine.name": ENGINES,
}
# DeepSpeed's own keys that a user may set; it ignores those that it doesn't know, without a word.
DEEPSPEED_KEYS = (
    "zero_optimization communication_data_type activation_checkpointing aio comms_logger flops_profiler "
    "wall_clock_breakdown memory_breakdown dump_state tensorboard csv_monitor"
).split()
# ... and those that follow from other keys.
DERIVED_KEYS = {
    "optimizer": "pretrain.optimizer and match.optimizer",
    "scheduler": "pretrain.optimizer and match.optimizer",
    "gradient_clipping": "pretrain.optimizer.clip and match.optimizer.clip",
    "train_batch_size": "pretrain.batch and match.synthetic_dpc",
    "train_micro_batch_size_per_gpu": "pretrain.batch and match.synthetic_dpc",
    "gradient_accumulation_steps": "engine.accumulate",
    "bf16": "precision",
    "fp16": "precision",
    "data_types": "precision",
}
AT_LEAST_ONE = (
    "dpc n_datasets n_seeds threads pretrain.steps pretrain.batch pretrain.log_every match.outer_steps "
    "match.inner_steps match.pool_size match.learner_batch match.learner_schedule match.synthetic_dpc match.real_dpc "
    "match.real_batches match.repset_dpc match.n_repset match.real_candidates match.regenerate_every "
    "match.taught_sets match.taught_dpc "
    "match.pool_dpc match.monitor_dpc match.log_every generate.pool_dpc generate.real_candidates "
    "generate.oversample generate.batch match.lm_batch evaluate.steps evaluate.batch evaluate.n_datasets "
    "generate.teach.pool generate.teach.scored "
    "evaluate.dev_rows audit.span audit.embedded_rows icl.max_length evaluate.full.epochs evaluate.full.batch "
    "task.max_length learner.max_length engine.accumulate checkpoint.steps checkpoint.keep launcher.nodes "
    "launcher.tasks launcher.cpus launcher.mem_gb launcher.minutes launcher.array_parallelism launcher.cells_per_job "
    "site.cpus site.mem_gb site.max_array_size"
).split()
POSITIVE = (
    "checkpoint.minutes audit.near "
    "pretrain.optimizer.lr match.optimizer.lr match.learner_optimizer.lr evaluate.optimizer.lr evaluate.head_lr "
    "evaluate.full.optimizer.lr "
    "match.temperature generate.top_p pretrain.optimizer.clip match.optimizer.clip evaluate.optimizer.clip"
).split()
NOT_NEGATIVE = (
    "data.valid_rows audit.listed icl.shots generate.teach.words generate.teach.passes generate.teach.restarts "
    "pretrain.valid_every match.lm_weight match.learner_steps match.monitor_every "
    "pretrain.optimizer.warmup match.optimizer.warmup match.learner_optimizer.warmup evaluate.optimizer.warmup "
    "launcher.gpus launcher.max_requeues site.gpus site.signal_seconds"
).split()


def _lookup(config: Config, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def check(config: Config) -> None:
    """Refuse values that no stage could work with. Raises ConfigError that names the key."""
    for key, allowed in CHOICES.items():
        if (found := _lookup(config, key)) not in allowed:
            raise ConfigError(f"{key} {found!r} is unknown.{did_you_mean(str(found), allowed)}")
    for stage in config.stages:
        if stage not in (known := chosen_stages()):
            raise ConfigError(f"stages names {stage!r}.{did_you_mean(stage, known)}")
    _check_numbers(config)
    _check_engine(config)
    _check_site(config)
    match = config.match
    if match.learner_schedule < (steps := match.inner_steps * match.learner_steps):
        raise ConfigError(
            f"match.learner_schedule is {match.learner_schedule}, but a learner is trained for inner_steps x "
            f"learner_steps = {steps} steps; raise it to at least that."
        )
    if not re.fullmatch(r"classifier|all|last_layers:[1-9]\d*", match.parameters):
        raise ConfigError(
            f"match.parameters is {match.parameters!r}; it is classifier, all, or last_layers:k, such as last_layers:2."
        )
    if match.learners == "pool" and match.parameters != "classifier":
        raise ConfigError(
            f"match.parameters is {match.parameters!r}, but a pool keeps the classifier's gradients alone; set "
            "match.parameters=classifier or match.learners=fresh."
        )
    if match.trajectory is not None and not 0 <= match.trajectory < match.pool_size:
        raise ConfigError(
            f"match.trajectory is {match.trajectory}, but match.pool_size={match.pool_size} has 0 to "
            f"{match.pool_size - 1}."
        )
    if match.monitor_every and not match.monitor_states:
        raise ConfigError("match.monitor_states is empty; name the learner's steps to measure at, such as [0, 20].")
    wanted = config.evaluate.n_datasets
    if wanted is not None and wanted > config.n_datasets:
        raise ConfigError(
            f"evaluate.n_datasets is {wanted}, but only n_datasets={config.n_datasets} data sets are made; "
            "lower the one or raise the other."
        )
    _check_task(config.task)
    _check_icl(config)


def _check_icl(config: Config) -> None:
    if config.evaluator != "icl":
        return
    if not config.llm.name:
        raise ConfigError("evaluator=icl needs a language model to read the prompts; choose one, such as llm=smollm2.")
    if config.method == "full":
        raise ConfigError("method=full with evaluator=icl: a whole training set is no prompt; leave one of them away.")
    if config.icl.shots is not None and config.icl.shots > config.dpc:
        raise ConfigError(
            f"icl.shots is {config.icl.shots}, but the data sets have only dpc={config.dpc} texts a class; "
            "lower the one or raise the other."
        )


def _check_task(task: TaskConfig) -> None:
    if not task.fields or len(task.labels) < 2:
        raise ConfigError(f"task {task.name!r} needs at least one field and two labels; see conf/task/sst2.yaml.")
    if twice := [label for index, label in enumerate(task.labels) if label in task.labels[:index]]:
        raise ConfigError(f"task.labels names {twice[0]!r} twice; every label has a name of its own.")
    if task.hub_fields and len(task.hub_fields) != len(task.fields):
        raise ConfigError(
            f"task.hub_fields has {len(task.hub_fields)} columns; there must be one for each of task.fields "
            f"({', '.join(task.fields)}), or none where they have the same names."
        )
    if task.metric in TWO_LABEL_METRICS and len(task.labels) > 2:
        raise ConfigError(
            f"task.metric {task.metric!r} is for two labels, and task {task.name!r} has {len(task.labels)}; take "
            "macro_f1 or accuracy."
        )
    distinct = {word.strip() for word in task.words} - {""}
    if task.words and not len(distinct) == len(task.words) == len(task.labels):
        raise ConfigError(
            f"task.words is {task.words}; it must be a word for each of the {len(task.labels)} labels, all different, "
            "or empty for the labels themselves."
        )
    if task.hub_labels and not set(task.hub_labels) <= set(range(len(task.labels))):
        raise ConfigError(f"task.hub_labels {task.hub_labels} must be indices into task.labels {task.labels}.")


def _check_engine(config: Config) -> None:
    for key in config.engine.deepspeed:
        if key in DERIVED_KEYS:
            raise ConfigError(f"engine.deepspeed.{key} follows from {DERIVED_KEYS[key]}; set that instead.")
        if key not in DEEPSPEED_KEYS:
            raise ConfigError(f"engine.deepspeed.{key} is unknown.{did_you_mean(key, DEEPSPEED_KEYS)}")
    name, zero = config.engine.name, config.engine.deepspeed.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise ConfigError(f"engine.deepspeed.zero_optimization is {zero!r}; it has keys, such as stage.")
    stage = zero.get("stage", 0)
    if name.startswith("zero") and not name.startswith(f"zero{stage}"):
        raise ConfigError(
            f"engine.name is {name!r}, but its ZeRO stage is {stage}; choose the whole group: engine={name}."
        )
    if config.engine.name == "zero0" and config.precision == "bf16":
        raise ConfigError(
            "engine=zero0 with precision=bf16 is refused: DeepSpeed's stage 0 has no fp32 master weights, and its "
            "losses drift. Set precision=fp32 or engine=zero1."
        )


def _check_site(config: Config) -> None:
    for command, minutes in config.site.minutes.items():
        if command not in (known := job_commands()):
            raise ConfigError(f"site.minutes names {command!r}.{did_you_mean(command, known)}")
        if minutes < 1:
            raise ConfigError(f"site.minutes.{command} is {minutes}; it must be at least 1.")


def _check_numbers(config: Config) -> None:
    for key in AT_LEAST_ONE:
        if (found := _lookup(config, key)) is not None and found < 1:
            raise ConfigError(f"{key} is {found}; it must be at least 1.")
    for key in POSITIVE:
        if (found := _lookup(config, key)) is not None and found <= 0:
            raise ConfigError(f"{key} is {found}; it must be greater than 0.")
    for key in NOT_NEGATIVE:
        if (found := _lookup(config, key)) is not None and found < 0:
            raise ConfigError(f"{key} is {found}; it must not be negative.")
    if config.task.max_length < (shortest := 2 * len(config.task.fields) + 1 + config.generator.prefix):
        raise ConfigError(
            f"task.max_length is {config.task.max_length}; a text of {len(config.task.fields)} fields takes at least "
            f"{shortest} tokens, with its control tokens."
        )
    if not 0 <= config.generate.teacher_filter < 1:
        raise ConfigError(f"generate.teacher_filter is {config.generate.teacher_filter}; it is a share, 0 to below 1.")
    dropout = config.generator.dropout
    if dropout is not None and not 0 <= dropout < 1:
        raise ConfigError(f"generator.dropout is {dropout}; it is a share, from 0 to below 1.")
    for key in ("generate.top_p", "audit.near"):
        if (found := _lookup(config, key)) > 1:
            raise ConfigError(f"{key} is {found}; it is a share, at most 1.")


def typed(composed: DictConfig) -> Config:
    """The composed configuration as dataclasses, checked. Raises ConfigError."""
    config = OmegaConf.to_object(composed)
    if not isinstance(config, Config):
        raise ConfigError("the configuration does not start from `schema`; see conf/config.yaml.")
    check(config)
    return config
