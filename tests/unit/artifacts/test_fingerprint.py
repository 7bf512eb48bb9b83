"""What is in an artifact's key and what is not."""

import copy
from pathlib import Path
from typing import Any

import pytest

from dilm.artifacts import fingerprint
from dilm.config.schema import METHODS, Config, GeneratorConfig, LearnerConfig, SourceConfig, TaskConfig
from dilm.config.stages import maker_of
from dilm.core.errors import ConfigError, MissingArtifactError
from dilm.core.hashing import content_key
from dilm.evaluation.cells import cell_science, evaluation_cells

STAGES = ("pretrain", "match", "candidates", "dataset")
ALL = (*STAGES, "protocol")
FROM_MATCH = STAGES[1:]
FROM_CANDIDATES = STAGES[2:]
NONE: tuple[str, ...] = ()


def learner(name: str = "tiny", built: str = "tiny-bert") -> LearnerConfig:
    return LearnerConfig(name=name, source=SourceConfig(built=built))


def tiny_config(**changes: Any) -> Config:
    """A whole configuration with models built in code; `changes` by key, with __ for the dots."""
    config = Config(
        task=TaskConfig(name="tiny", fields=["sentence"], labels=["no", "yes"], built="tiny"),
        generator=GeneratorConfig(name="tiny", source=SourceConfig(built="tiny-gpt2")),
        learner=learner(),
    )
    config.match.learner, config.generate.encoder = learner(), learner()
    for key, value in changes.items():
        part: Any = config
        *parents, name = key.split("__")
        for parent in parents:
            part = getattr(part, parent)
        assert hasattr(part, name), key
        setattr(part, name, copy.deepcopy(value))
    return config


def keys(config: Config, data_hash: str = "rows", dev_hash: str = "dev") -> dict[str, str]:
    made = {stage: getattr(fingerprint, f"{stage}_artifact")(config, data_hash).key for stage in STAGES}
    return {**made, "protocol": content_key(cell_science(config, dev_hash))}


def changed_stages(before: dict[str, str], after: dict[str, str]) -> tuple[str, ...]:
    return tuple(stage for stage in ALL if before[stage] != after[stage])


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("seed", 1, ALL),
        ("precision", "fp32", ALL),
        ("task__name", "other", STAGES),
        ("task__fields", ["text"], STAGES),
        ("task__labels", ["yes", "no"], STAGES),
        ("task__max_length", 40, STAGES),
        ("task__metric", "accuracy_f1", ("protocol",)),
        ("data__valid_rows", 10, STAGES),
        ("generator__source", SourceConfig(hub="someone/gpt@12ab"), STAGES),
        ("generator__dropout", 0.0, STAGES),
        ("pretrain__steps", 7, STAGES),
        ("pretrain__batch", 7, STAGES),
        ("pretrain__optimizer__lr", 7.0, STAGES),
        ("match__outer_steps", 7, FROM_MATCH),
        ("match__optimizer__warmup", 0.7, FROM_MATCH),
        ("match__learner_optimizer__lr", 7.0, FROM_MATCH),
        ("match__learner_dropout", True, FROM_MATCH),
        ("match__representative", False, FROM_MATCH),
        ("match__real_candidates", 7, FROM_MATCH),
        ("match__nll_average", "padded", FROM_MATCH),
        ("match__learner", learner(built="tiny-gpt2"), FROM_MATCH),
        ("match__learner__pooling", "mean", FROM_MATCH),
        ("match__learner__max_length", 7, FROM_MATCH),
        ("generate__top_p", 0.5, FROM_MATCH),
        ("generate__batch", 7, FROM_CANDIDATES),
        ("generate__pool", "shared", FROM_CANDIDATES),
        ("generate__oversample", 7, FROM_CANDIDATES),
        ("generate__selection", "none", ("dataset",)),
        ("generate__selection", "herding", ("dataset",)),
        ("match__parameters", "all", FROM_MATCH),
        ("match__learners", "continued", FROM_MATCH),
        ("match__learners", "pool", FROM_MATCH),
        ("match__lm_weight", 0.1, FROM_MATCH),
        ("match__objective", "teach", FROM_MATCH),
        ("generate__encoder__embedding", "mean", ("dataset",)),
        ("dpc", 7, FROM_CANDIDATES),
        ("n_datasets", 7, FROM_CANDIDATES),
        ("learner", learner(built="tiny-gpt2"), ("protocol",)),
        ("learner__pooling", "mean", ("protocol",)),
        ("learner__freeze_encoder", True, ("protocol",)),
        ("evaluate__steps", 7, ("protocol",)),
        ("evaluate__batch", 7, ("protocol",)),
        ("evaluate__optimizer__lr", 7.0, ("protocol",)),
    ],
)
def test_a_scientific_key_changes_what_it_determines(key: str, value: object, expected: tuple[str, ...]) -> None:
    assert changed_stages(keys(tiny_config()), keys(tiny_config(**{key: value}))) == expected


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("root", "/elsewhere"),
        ("cache", "/elsewhere"),
        ("device", "cuda"),
        ("threads", 7),
        ("tracking", "mlflow"),
        ("tracking_uri", "http://localhost"),
        ("force", True),
        ("stages", ["match"]),
        ("match__pool_size", 7),  # of a pool that isn't there
        ("match__trajectory", 7),
        ("n_seeds", 7),
        ("evaluate__n_datasets", 1),
        ("evaluate__full__epochs", 7),  # of method=full alone
        ("evaluate__head_lr", 7.0),  # counts where the encoder is frozen alone
        ("task__path", "/elsewhere"),
        ("task__folder", "OTHER"),
        ("task__train", "other.tsv"),
        ("task__hub", "someone/rows@1"),
        ("task__built", None),
        ("data__fallback", "sst2"),
        ("engine__name", "zero3"),
        ("engine__deepspeed", {"zero_optimization": {"stage": 3}}),
        ("engine__accumulate", 7),
        ("engine__gradient_checkpointing", True),
        ("engine__compile", True),
        ("checkpoint__steps", 7),
        ("checkpoint__minutes", None),
        ("generator__name", "another name"),
        ("learner__name", "another name"),
        ("match__learner__name", "another name"),
        ("generate__encoder__name", "another name"),
        ("pretrain__log_every", 7),
        ("pretrain__valid_every", 7),
        ("match__log_every", 7),
        ("match__monitor_every", 7),
        ("match__monitor_dpc", 7),
        ("match__monitor_states", [7]),
        ("generate__pool_dpc", 7),  # of shared pools alone
    ],
)
def test_paths_logging_and_names_are_in_no_key(key: str, value: object) -> None:
    assert changed_stages(keys(tiny_config()), keys(tiny_config(**{key: value}))) == NONE


def test_the_rows_content_is_in_the_keys() -> None:
    base = keys(tiny_config())
    assert changed_stages(base, keys(tiny_config(), data_hash="other rows")) == STAGES
    assert changed_stages(base, keys(tiny_config(), dev_hash="other dev")) == ("protocol",)


@pytest.mark.parametrize(
    ("method", "key", "value", "expected"),
    [
        ("random", "pretrain__steps", 7, ("pretrain", "match", "candidates")),
        ("random", "generate__encoder__embedding", "mean", NONE),
        ("random", "generate__real_candidates", 7, ("dataset",)),
        ("k_centers", "generate__encoder__embedding", "mean", ("dataset",)),
        ("k_centers", "generate__selection", "none", NONE),
        ("herding", "generate__encoder__embedding", "mean", ("dataset",)),
        ("rank", "generate__encoder__embedding", "mean", NONE),
        ("rank", "generate__real_candidates", 7, FROM_CANDIDATES),
        ("rank", "generate__pool_dpc", 7, NONE),
        ("rank", "match__outer_steps", 7, FROM_MATCH),
        ("full", "dpc", 7, ("candidates",)),
        ("full", "n_datasets", 7, ("candidates",)),
        ("full", "evaluate__full__epochs", 7, ("protocol",)),
        ("full", "evaluate__full__optimizer__lr", 7.0, ("protocol",)),
        ("full", "evaluate__steps", 7, NONE),
        ("lm", "match__outer_steps", 7, ("match",)),
        ("lm", "pretrain__steps", 7, STAGES),
    ],
)
def test_a_method_depends_on_its_own_parents_alone(
    method: str, key: str, value: object, expected: tuple[str, ...]
) -> None:
    before, after = keys(tiny_config(method=method)), keys(tiny_config(method=method, **{key: value}))
    assert changed_stages(before, after) == expected


def test_one_shared_pool_serves_every_size() -> None:
    shared = {"generate__pool": "shared"}
    base = keys(tiny_config(**shared))
    assert changed_stages(base, keys(tiny_config(dpc=7, n_datasets=7, **shared))) == ("dataset",)
    assert changed_stages(base, keys(tiny_config(generate__pool_dpc=7, **shared))) == FROM_CANDIDATES
    assert changed_stages(base, keys(tiny_config(generate__oversample=7, **shared))) == NONE


def test_the_heads_learning_rate_counts_where_the_encoder_is_frozen() -> None:
    frozen = {"learner__freeze_encoder": True}
    base = keys(tiny_config(**frozen))
    assert changed_stages(base, keys(tiny_config(evaluate__head_lr=7.0, **frozen))) == ("protocol",)
    assert changed_stages(base, keys(tiny_config(evaluate__optimizer__lr=7.0, **frozen))) == NONE


@pytest.mark.parametrize(
    ("stage", "expected"), [("pretrain", STAGES), ("match", FROM_MATCH), ("evaluate", ("protocol",))]
)
def test_a_stages_version_is_in_the_keys(
    monkeypatch: pytest.MonkeyPatch, stage: str, expected: tuple[str, ...]
) -> None:
    before = keys(tiny_config())
    monkeypatch.setitem(maker_of(stage).versions, stage, 99)
    assert changed_stages(before, keys(tiny_config())) == expected


@pytest.mark.parametrize(("method", "n_cells"), [("random", 6), ("full", 2)])
def test_cells_that_are_not_there_are_refused(method: str, n_cells: int) -> None:
    given = {"method": method, "n_datasets": 3, "n_seeds": 2}
    assert len(evaluation_cells(tiny_config(**given), "rows", "dev")) == n_cells
    last = tiny_config(evaluate__cells=[n_cells - 1], **given)
    assert [cell.seed for cell in evaluation_cells(last, "rows", "dev")] == [1]
    for beyond in (n_cells, -1):
        with pytest.raises(ConfigError, match=rf"evaluate.cells names {beyond}, but .* the cells 0 to {n_cells - 1}"):
            evaluation_cells(tiny_config(evaluate__cells=[beyond], **given), "rows", "dev")


def test_methods_and_stages_have_keys_of_their_own() -> None:
    datasets = {keys(tiny_config(method=method))["dataset"] for method in METHODS if method != "published"}
    assert len(datasets) == len(METHODS) - 1
    assert len(set(keys(tiny_config()).values())) == 5


@pytest.mark.parametrize(
    ("stage", "name"),
    [("pretrain", "lm-tiny"), ("match", "dilm-tiny"), ("candidates", "candidates-dilm"), ("dataset", "dilm-dpc20")],
)
def test_a_folder_is_named_for_people_and_by_its_key(stage: str, name: str) -> None:
    artifact = getattr(fingerprint, f"{stage}_artifact")(tiny_config(root="/root"), "rows")
    assert artifact.folder == Path("/root") / "tiny" / f"{name}-{artifact.key}"
    assert content_key(artifact.science) == artifact.key


def test_the_generator_of_a_method() -> None:
    for method, stage in (("lm", "pretrain"), ("dilm", "match"), ("rank", "match")):
        config = tiny_config(method=method)
        assert fingerprint.generator_artifact(config, "rows").key == keys(config)[stage]


@pytest.mark.parametrize(
    ("stage", "command"),
    [
        ("pretrain", r"python -m dilm\.train with the same keys"),
        ("match", r"python -m dilm\.train with the same keys"),
        ("candidates", r"python -m dilm\.generate with the same keys"),
        ("dataset", r"python -m dilm\.generate with the same keys"),
    ],
)
def test_a_missing_parent_names_the_command_that_makes_it(tmp_path: Path, stage: str, command: str) -> None:
    artifact = getattr(fingerprint, f"{stage}_artifact")(tiny_config(root=str(tmp_path)), "rows")
    with pytest.raises(MissingArtifactError, match=rf"{artifact.key} is not there yet\. Make it with: {command}"):
        artifact.require()
    artifact.folder.mkdir(parents=True)
    assert artifact.require() == artifact.folder


def dataset_key(**changes: Any) -> str:
    return fingerprint.dataset_artifact(tiny_config(**changes), "rows").key


def test_how_teach_chooses_is_in_its_keys_alone() -> None:
    other = learner(built="tiny-gpt2")
    taught = {"method": "teach"}
    assert dataset_key(**taught) != dataset_key(**taught, generate__teach__scored=7)
    assert dataset_key(**taught) != dataset_key(**taught, generate__encoder=other)
    viewed = {**taught, "generate__teach__views": {"any": learner()}}
    assert dataset_key(**viewed) == dataset_key(**taught)  # the same view, by another name
    assert dataset_key(**viewed) == dataset_key(**viewed, generate__encoder=other)
    assert dataset_key(method="k_centers") == dataset_key(method="k_centers", generate__teach__scored=7)


def test_a_teachers_filter_is_in_the_keys_of_written_texts_alone() -> None:
    for method, same in (("dilm", False), ("lm", False), ("rank", True), ("k_centers", True)):
        assert (dataset_key(method=method) == dataset_key(method=method, generate__teacher_filter=0.1)) == same


def test_imitation_depends_on_what_it_imitates_and_matching_does_not() -> None:
    def match_key(**changes: Any) -> str:
        return fingerprint.match_artifact(tiny_config(**changes), "rows").key

    imitated = {"match__objective": "teach"}
    for key, value in (("taught_sets", 7), ("taught_dpc", 7), ("lm_batch", 7), ("inner_steps", 7)):
        assert match_key(**imitated) != match_key(**imitated, **{f"match__{key}": value})
    for key in ("match__taught_sets", "match__taught_dpc", "generate__teach__scored"):
        assert match_key() == match_key(**{key: 7})
    assert match_key(**imitated) != match_key(**imitated, generate__teach__scored=7)
    for key in ("match__synthetic_dpc", "match__learner_steps", "match__real_dpc", "dpc"):
        assert match_key(**imitated) == match_key(**imitated, **{key: 7})
