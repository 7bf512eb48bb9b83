"""Every file in conf/ composes into the typed tree, and what is wrong is refused with the key's name."""

import copy
import math
import re
from dataclasses import fields
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import MISSING, OmegaConf

from dilm.artifacts.fingerprint import dataset_artifact
from dilm.config.compose import attach, load_task, options_of
from dilm.config.keys import Leaf, leaves
from dilm.config.schema import Config, LearnerConfig, SourceConfig
from dilm.config.validate import check, typed
from dilm.core.errors import ConfigError
from dilm.core.io import CONF_FOLDER
from dilm.evaluation.cells import evaluation_cells
from dilm.hub.pretrained import source_id
from dilm.launch.sweep import Composer, sweep, with_sweep


def composed(*overrides: str) -> Config:
    attach()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_FOLDER)):
        return typed(compose("config", list(overrides)))


@pytest.mark.parametrize(
    "override",
    [
        f"{group}={name}"
        for group in ("task", "generator", "learner", "llm", "engine", "experiment", "ablation")
        for name in options_of(group)
    ],
)
def test_every_yaml_composes(override: str) -> None:
    config = composed(override, *(["precision=fp32"] if override == "engine=zero0" else []))
    group, _, name = override.partition("=")
    if group not in ("experiment", "ablation"):
        part = getattr(config, group)
        assert (getattr(part, "results", "") or part.name) == name


@pytest.mark.parametrize("group", ["generator", "learner", "llm"])
def test_every_model_names_one_pinned_source(group: str) -> None:
    for name in options_of(group):
        assert source_id(getattr(composed(f"{group}={name}"), group).source)


def test_plain_defaults_are_the_papers() -> None:
    config = composed()
    assert (config.generator.name, config.learner.name, config.match.learner.name) == ("gpt2", "bert_base", "bert_base")
    assert (config.pretrain.steps, config.pretrain.batch, config.pretrain.optimizer.lr) == (80_000, 64, 1e-5)
    match = config.match
    assert match.outer_steps * match.inner_steps == 20_000
    assert (match.optimizer.lr, match.optimizer.warmup, match.learner_steps) == (3e-7, 0.05, 20)
    assert (match.synthetic_dpc, match.real_dpc, match.n_repset, match.regenerate_every) == (64, 200, 10, 20)
    assert (config.generate.oversample, config.generate.top_p, config.generate.pool) == (100, 0.95, "fresh")
    assert (config.evaluate.steps, config.evaluate.optimizer.lr, config.n_datasets, config.n_seeds) == (
        200,
        1e-4,
        20,
        5,
    )
    assert composed("experiment=paper") == config


@pytest.mark.parametrize("override", ["dpc=abc", "match.optimizer.lr=[1]", "nonsense=1", "pretrain.nonsense=1"])
def test_wrong_types_and_unknown_keys_are_refused(override: str) -> None:
    with pytest.raises(ConfigCompositionException):
        composed(override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method=kcenters", "method 'kcenters' is unknown. Did you mean 'k_centers'"),
        ("dpc=0", "dpc is 0; it must be at least 1"),
        ("match.temperature=0", "match.temperature is 0.0; it must be greater than 0"),
        ("data.valid_rows=-1", "data.valid_rows is -1; it must not be negative"),
        ("task.max_length=2", "task.max_length is 2; a text of 1 fields takes at least 3 tokens"),
        ("generate.top_p=1.5", "generate.top_p is 1.5"),
        ("stages=[pretrain,mach]", "stages names 'mach'. Did you mean 'match'"),
        ("evaluate.n_datasets=30", "evaluate.n_datasets is 30, but only n_datasets=20"),
        ("match.learner_steps=30", "match.learner_schedule is 200, but a learner is trained for"),
        ("engine.deepspeed.zero_optimization=3", "engine.deepspeed.zero_optimization is 3; it has keys"),
        ("engine.name=zero2", "engine.name is 'zero2', but its ZeRO stage is 1; choose the whole group: engine=zero2"),
        ("engine=zero0", "engine=zero0 with precision=bf16 is refused"),
        ("+engine.deepspeed.optimiser={}", "engine.deepspeed.optimiser is unknown. Known: "),
        ("+engine.deepspeed.optimizer={}", "engine.deepspeed.optimizer follows from pretrain.optimizer"),
        ("checkpoint.minutes=0", "checkpoint.minutes is 0.0; it must be greater than 0"),
        ("generator.dropout=1", "generator.dropout is 1.0; it is a share"),
        ("task.labels=[one]", "task 'sst2' needs at least one field and two labels"),
    ],
)
def test_impossible_values_are_refused_by_name(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        composed(override)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def replaced(config: Config, key: str, value: object) -> Config:
    """The same configuration but for one key."""
    *path, name = key.split(".")
    config = copy.deepcopy(config)
    part: object = config
    for step in path:
        part = getattr(part, step)
    setattr(part, name, value)
    return config


LEAVES = list(leaves(Config()))
CHOICES = [leaf.name for leaf in LEAVES if leaf.key.choices]
BOUNDED = [leaf for leaf in LEAVES if leaf.key.range]


def like(leaf: Leaf, number: float) -> object:
    """A number as a key takes it: alone, in a list, or in a dictionary."""
    kind = str(leaf.type)
    return [number] if kind.startswith("list") else {"train": number} if kind.startswith("dict") else number


def is_whole(leaf: Leaf) -> bool:
    return "float" not in str(leaf.type)


@pytest.fixture(scope="module")
def valid() -> Config:
    return composed("experiment=tiny")


def test_choices_and_bounds_are_found() -> None:
    names = {leaf.name for leaf in BOUNDED}
    assert {"method", "match.learner.pooling", "engine.name", "task.metric"} <= set(CHOICES)
    assert {"dpc", "threads", "site.minutes", "match.monitor_states", "evaluate.full.optimizer.clip"} <= names
    assert {"match.learner.max_length", "generate.encoder.max_length", "checkpoint.minutes"} <= names
    numbers = {leaf.name for leaf in LEAVES if re.search(r"\b(int|float)\b", str(leaf.type))}
    over_several_keys = {"match.trajectory", "evaluate.cells", "task.hub_labels"}
    assert numbers - names == {"seed", *over_several_keys}


@pytest.mark.parametrize("key", CHOICES)
def test_every_choice_is_checked(key: str, valid: Config) -> None:
    message = rf"^{key} 'nonsense' is unknown\.( Did you mean '\w+'\?)? Known: "
    with pytest.raises(ConfigError, match=message):
        check(replaced(valid, key, "nonsense"))


@pytest.mark.parametrize("leaf", BOUNDED, ids=lambda leaf: leaf.name)
@settings(max_examples=20)
@given(data=st.data())
def test_a_number_below_its_bound_is_refused_by_name(leaf: Leaf, valid: Config, data: st.DataObject) -> None:
    key = leaf.key
    low = key.above if key.at_least is None else key.at_least
    assert low is not None, "every bound has a lower one"
    strict = key.above is None
    if is_whole(leaf):
        number: float = data.draw(st.integers(max_value=int(low) - 1 if strict else int(low)))
    else:
        number = data.draw(st.floats(max_value=low, exclude_max=strict) | st.just(math.nan))
    refused(valid, leaf, number)


@pytest.mark.parametrize("leaf", [leaf for leaf in BOUNDED if " and " in leaf.key.range], ids=lambda leaf: leaf.name)
@settings(max_examples=20)
@given(data=st.data())
def test_a_number_above_its_bound_is_refused_by_name(leaf: Leaf, valid: Config, data: st.DataObject) -> None:
    key = leaf.key
    high = key.below if key.at_most is None else key.at_most
    refused(valid, leaf, data.draw(st.floats(min_value=high, exclude_min=key.below is None)))


def refused(valid: Config, leaf: Leaf, number: float) -> None:
    """The message names the key, what it is and what is allowed, in one line."""
    with pytest.raises(ConfigError) as caught:
        check(replaced(valid, leaf.name, like(leaf, number)))
    message = str(caught.value)
    assert re.match(rf"{re.escape(leaf.name)}(\.train)? (is|has) {re.escape(str(number))}; it ", message), message
    range = leaf.key.range
    assert message.endswith("must not be negative." if range == "at least 0" else f"{range}.")
    assert "\n" not in message


@pytest.mark.parametrize("leaf", BOUNDED, ids=lambda leaf: leaf.name)
@settings(max_examples=20)
@given(data=st.data())
def test_a_number_within_its_bounds_is_not_refused(leaf: Leaf, data: st.DataObject) -> None:
    key = leaf.key
    low = key.above if key.at_least is None else key.at_least
    high = key.below if key.at_most is None else key.at_most
    if is_whole(leaf):
        number: float = data.draw(st.integers(min_value=int(low or 0)))
    else:
        numbers = st.floats(low, high, exclude_min=key.at_least is None, exclude_max=key.below is not None)
        number = data.draw(numbers)
    assert key.refusal(leaf.name, like(leaf, number)) is None


def test_null_is_not_refused() -> None:
    assert all(leaf.key.refusal(leaf.name, None) is None for leaf in LEAVES)


def test_encoders_in_a_dictionary_are_checked(valid: Config) -> None:
    views = {"small": LearnerConfig(name="small", max_length=0)}
    with pytest.raises(ConfigError, match=r"^generate\.teach\.views\.small\.max_length is 0; it must be at least 1\.$"):
        check(replaced(valid, "generate.teach.views", views))
    views = {"small": LearnerConfig(name="small", embedding="first")}
    with pytest.raises(ConfigError, match=r"^generate\.teach\.views\.small\.embedding 'first' is unknown"):
        check(replaced(valid, "generate.teach.views", views))


def test_time_limits_of_unknown_commands_are_refused(valid: Config) -> None:
    with pytest.raises(ConfigError, match=r"^site\.minutes names 'trian'\. Did you mean 'train'"):
        check(replaced(valid, "site.minutes", {"trian": 60}))


def test_instances_share_no_defaults() -> None:
    first, second = Config(), Config()
    first.stages.append("match")
    first.match.monitor_states.append(7)
    first.site.minutes["train"] = 1
    assert second == Config() != first


def test_experiments_name_only_keys_of_the_schema() -> None:
    schema = OmegaConf.structured(Config)
    for path in [*(CONF_FOLDER / "experiment").rglob("*.yaml"), *(CONF_FOLDER / "ablation").glob("*.yaml")]:
        plain = OmegaConf.load(path) or OmegaConf.create()
        plain.pop("defaults", None)
        plain.pop("hydra", None)
        OmegaConf.merge(schema, plain)


def test_an_experiments_sweep_is_taken_up_where_no_key_is_given() -> None:
    assert with_sweep(["dpc=5"]) == ["dpc=5"]
    assert with_sweep(["experiment=tiny"]) == ["experiment=tiny"]
    given = ["experiment=paper/table1", "task=sst2", "dpc=7"]
    assert with_sweep(given) == [*given, "method=random,k_centers,herding,rank,lm,dilm,full"]
    assert with_sweep(given, "train") == given, "a generator is the same for every method"
    assert with_sweep(["experiment=paper/table2_cross_model"], "generate") == [
        "experiment=paper/table2_cross_model",
        "task=sst2,qqp,mnli",
        "method=random,k_centers,dilm",
        "dpc=5,10,20",
    ]


@pytest.mark.parametrize(
    ("experiment", "cells", "jobs"),
    [
        # 20 data sets x 5 seeds of 6 methods x 3 sizes x 3 tasks; and one whole training set of each, five times.
        ("paper/table1", 20 * 5 * 6 * 3 * 3 + 5 * 3, 7 * 3 * 3),
        ("paper/table2_cross_model", 20 * 5 * 3 * 3 * 3 * 4, 3 * 3 * 3 * 4),
        ("paper/table3_icl", 20 * 5 * 3 * 3, 3 * 3),
        ("paper/table4_ablation", 20 * 5 * 4 * 3, 4 * 3),
    ],
)
def test_the_papers_tables_are_as_many_models_as_it_has(experiment: str, cells: int, jobs: int) -> None:
    composer = Composer()
    configs = [composer.config(keys) for keys in sweep(with_sweep([f"experiment={experiment}"], "evaluate"))]
    assert len(configs) == jobs
    keys = {cell.key for config in configs for cell in evaluation_cells(config, "rows", f"dev of {config.task.name}")}
    assert len(keys) == cells


def test_the_ablation_leaves_one_part_away_at_a_time() -> None:
    names = ("representative", "diverse")
    found = {}
    for name in ("none", "no_representative", "no_diverse", "no_selection"):
        config = composed("experiment=paper/table4_ablation", f"ablation={name}")
        found[name] = (*(getattr(config.match, part) for part in names), config.generate.selection)
        assert bool(config.variant) == (name != "none")
    assert found == {
        "none": (True, True, "k_centers"),
        "no_representative": (False, True, "k_centers"),
        "no_diverse": (True, False, "k_centers"),
        "no_selection": (True, True, "none"),
    }


def test_every_ablation_makes_other_data_sets() -> None:
    keys = {dataset_artifact(composed(f"ablation={name}"), "rows").key for name in options_of("ablation")}
    assert len(keys) == len(options_of("ablation"))


@pytest.mark.parametrize("value", ["head", "last_layers", "last_layers:0", "last_layers:x"])
def test_the_parameters_to_match_are_checked(value: str) -> None:
    with pytest.raises(ConfigError, match=rf"match.parameters is '{value}'; it is classifier, all, or last_layers:k"):
        composed(f"match.parameters='{value}'")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.labels=[a,a]", r"task.labels names 'a' twice"),
        ("task.hub_fields=[a,b]", r"task.hub_fields has 2 columns; there must be one for each of task.fields"),
        ("task.hub_labels=[0,2]", r"task.hub_labels \[0, 2\] must be indices into task.labels"),
        ("task=mnli task.metric=f1", r"task.metric 'f1' is for two labels, and task 'mnli' has 3; take macro_f1"),
    ],
)
def test_a_task_that_means_nothing_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        composed(*override.split())


def test_load_task_by_name() -> None:
    assert load_task("movie_snippets").package == "vaderSentiment==3.3.2"
    with pytest.raises(ConfigError, match=r"task 'moviesnippets' is unknown\. Did you mean 'movie_snippets'"):
        load_task("moviesnippets")


def test_names_are_required() -> None:
    assert fields(LearnerConfig)[0].default == MISSING
    assert fields(LearnerConfig)[1].default_factory is SourceConfig
    assert Path(CONF_FOLDER / "config.yaml").is_file()
