"""From the composed configuration to the typed one, with every value that no stage could work with refused by name.

What a single key may be is declared with it (`dilm.config.schema`); here stand the rules over several keys.
"""

import re

from omegaconf import DictConfig, OmegaConf

from dilm.config.keys import leaves
from dilm.config.schema import TWO_LABEL_METRICS, Config, MatchConfig
from dilm.config.stages import chosen_stages, job_commands
from dilm.core.errors import ConfigError, did_you_mean

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


def check(config: Config) -> None:
    """Refuse values that no stage could work with. Raises ConfigError that names the key."""
    for leaf in leaves(config):
        if refusal := leaf.key.refusal(leaf.name, leaf.value):
            raise ConfigError(refusal)
    _check_task(config)
    _check_match(config.match)
    _check_icl(config)
    for stage in config.stages:
        if stage not in (known := chosen_stages()):
            raise ConfigError(f"stages names {stage!r}.{did_you_mean(stage, known)}")
    _check_engine(config)
    wanted = config.evaluate.n_datasets
    if wanted is not None and wanted > config.n_datasets:
        raise ConfigError(
            f"evaluate.n_datasets is {wanted}, but only n_datasets={config.n_datasets} data sets are made; "
            "lower the one or raise the other."
        )
    for command in config.site.minutes:
        if command not in (known := job_commands()):
            raise ConfigError(f"site.minutes names {command!r}.{did_you_mean(command, known)}")


def _check_match(match: MatchConfig) -> None:
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


def _check_task(config: Config) -> None:
    task = config.task
    if not task.fields or len(task.labels) < 2:
        raise ConfigError(f"task {task.name!r} needs at least one field and two labels; see conf/task/sst2.yaml.")
    if twice := [label for index, label in enumerate(task.labels) if label in task.labels[:index]]:
        raise ConfigError(f"task.labels names {twice[0]!r} twice; each label needs another name.")
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
    if task.max_length < (shortest := 2 * len(task.fields) + 1 + config.generator.prefix):
        raise ConfigError(
            f"task.max_length is {task.max_length}; a text of {len(task.fields)} fields takes at least "
            f"{shortest} tokens, with its control tokens."
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

    for stage in config.stages:
        if stage not in (known := chosen_stages()):
            raise ConfigError(f"stages names {stage!r}.{did_you_mean(stage, known)}")


def typed(composed: DictConfig) -> Config:
    """The composed configuration as dataclasses, checked. Raises ConfigError."""
    config = OmegaConf.to_object(composed)
    if not isinstance(config, Config):
        raise ConfigError("the configuration does not start from `schema`; see conf/config.yaml.")
    check(config)
    return config
