"""What is in an artifact's key and what is not, and that artifacts are made once and whole."""

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dilm import artifacts
from dilm.artifacts import Artifact, make
from dilm.cells import protocol_science
from dilm.config import Config, GeneratorConfig, LearnerConfig, SourceConfig, TaskConfig, plain
from dilm.errors import DiskFullError, MissingArtifactError
from dilm.files import TEMPORARY, read_json
from dilm.keys import content_key

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
    made = {stage: getattr(artifacts, f"{stage}_artifact")(config, data_hash).key for stage in STAGES}
    return {**made, "protocol": content_key(protocol_science(config, dev_hash))}


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
        ("n_seeds", 7),
        ("evaluate__n_datasets", 1),
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
    monkeypatch.setitem(artifacts.STAGE_VERSION, stage, 99)
    assert changed_stages(before, keys(tiny_config())) == expected


def test_methods_and_stages_have_keys_of_their_own() -> None:
    datasets = {keys(tiny_config(method=method))["dataset"] for method in ("random", "k_centers", "lm", "dilm")}
    assert len(datasets) == 4
    assert len(set(keys(tiny_config()).values())) == 5


@pytest.mark.parametrize(
    ("stage", "name"),
    [("pretrain", "lm-tiny"), ("match", "dilm-tiny"), ("candidates", "candidates-dilm"), ("dataset", "dilm-dpc20")],
)
def test_a_folder_is_named_for_people_and_by_its_key(stage: str, name: str) -> None:
    artifact = getattr(artifacts, f"{stage}_artifact")(tiny_config(root="/root"), "rows")
    assert artifact.folder == Path("/root") / "tiny" / f"{name}-{artifact.key}"
    assert content_key(artifact.science) == artifact.key


def test_the_generator_of_a_method() -> None:
    for method, stage in (("lm", "pretrain"), ("dilm", "match")):
        config = tiny_config(method=method)
        assert artifacts.generator_artifact(config, "rows").key == keys(config)[stage]


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
    artifact = getattr(artifacts, f"{stage}_artifact")(tiny_config(root=str(tmp_path)), "rows")
    with pytest.raises(MissingArtifactError, match=rf"{artifact.key} is not there yet\. Make it with: {command}"):
        artifact.require()
    artifact.folder.mkdir(parents=True)
    assert artifact.require() == artifact.folder


# Making


@pytest.fixture
def artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    monkeypatch.setattr(artifacts, "_git_state", dict)
    monkeypatch.setattr(artifacts, "POLL_SECONDS", 0.02)
    return Artifact(tmp_path / "tiny" / "toy-0123", "0123", {"stage": "toy"}, "make toy")


def building(content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "file").write_text(content) and None


def never(folder: Path) -> None:
    raise AssertionError("it is there already")


def beside(artifact: Artifact) -> list[str]:
    parent = artifact.folder.parent
    return sorted(path.name for path in parent.iterdir()) if parent.exists() else []


def test_an_artifact_is_made_once_and_then_found(artifact: Artifact) -> None:
    said: list[str] = []
    assert make(artifact, building("first"), tiny_config(), said.append)
    assert artifact.exists
    assert not make(artifact, never, tiny_config(), said.append)
    assert (artifact.folder / "file").read_text() == "first"
    assert said == [f"wrote {artifact.folder}", f"found {artifact.folder}"]
    assert beside(artifact) == ["toy-0123"]


def test_force_makes_it_again(artifact: Artifact) -> None:
    make(artifact, building("first"), tiny_config())
    assert make(artifact, building("second"), tiny_config(force=True))
    assert (artifact.folder / "file").read_text() == "second"
    assert beside(artifact) == ["toy-0123"]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_a_build_that_fails_leaves_nothing(artifact: Artifact, kind: type[BaseException]) -> None:
    def fail(folder: Path) -> None:
        (folder / "file").write_text("half")
        raise kind

    with pytest.raises(kind):
        make(artifact, fail, tiny_config())
    assert beside(artifact) == []
    assert make(artifact, building("whole"), tiny_config())


def test_a_forced_build_that_fails_leaves_the_old_artifact(artifact: Artifact) -> None:
    make(artifact, building("old"), tiny_config())
    with pytest.raises(AssertionError):
        make(artifact, never, tiny_config(force=True))
    assert (artifact.folder / "file").read_text() == "old"
    assert beside(artifact) == ["toy-0123"]


def test_a_full_disk_names_the_artifact_and_leaves_nothing(artifact: Artifact) -> None:
    def fill(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(DiskFullError, match="toy-0123: no space is left"):
        make(artifact, fill, tiny_config())
    assert beside(artifact) == []


def test_provenance_tells_how_it_was_made(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "_git_state", lambda: {"commit": "12ab", "dirty": True})
    config = tiny_config(dpc=7)
    make(artifact, building("first"), config)
    told = read_json(artifact.folder / "provenance.json")
    assert (told["key"], told["science"], told["config"]) == ("0123", {"stage": "toy"}, plain(config))
    assert told["code"] == {"version": artifacts.__version__, "commit": "12ab", "dirty": True}
    assert set(told["packages"]) >= {"torch", "transformers", "numpy"}
    assert time.strptime(told["time"], "%Y-%m-%dT%H:%M:%SZ")


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_the_state_of_the_code_is_read_from_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_OPTIONAL_LOCKS", "0")
    state = artifacts._git_state()
    assert state == {} or (len(state["commit"]) == 40 and isinstance(state["dirty"], bool))


def test_without_git_provenance_has_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert artifacts._git_state() == {}


# Making among processes. A builder tells that it began, waits for a file named `go`, and appends to a common log.

BUILDER = """
import os, sys, time
from pathlib import Path
from dilm import artifacts
from dilm.config import Config

artifacts.POLL_SECONDS = 0.02
artifacts._git_state = dict
folder, force = Path(sys.argv[1]), sys.argv[2] == "force"
artifact = artifacts.Artifact(folder, "0123", {"stage": "toy"}, "make toy")


def build(temporary):
    (temporary / "first").write_text("whole")
    print("building", flush=True)
    while not (folder.parent / "go").exists():
        time.sleep(0.01)
    (temporary / "second").write_text("whole")
    with open(folder.parent / "log", "a") as log:
        log.write(f"{os.getpid()}\\n")


made = artifacts.make(artifact, build, Config(force=force), lambda said: print(said, flush=True))
print(f"made {made}", flush=True)
"""

Builder = subprocess.Popen[str]


def builder(artifact: Artifact, force: bool = False) -> Builder:
    command = [sys.executable, "-c", BUILDER, str(artifact.folder), "force" if force else ""]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def line_of(process: Builder) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def ended(process: Builder) -> list[str]:
    lines, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return lines.splitlines()


def test_a_killed_builder_leaves_nothing_under_the_name_and_the_next_one_takes_over(artifact: Artifact) -> None:
    process = builder(artifact)
    try:
        assert line_of(process) == "building"
        assert not artifact.exists
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    left = beside(artifact)
    assert "toy-0123" not in left
    assert any(name.startswith(f"toy-0123{TEMPORARY}") for name in left)
    assert make(artifact, building("whole"), tiny_config())
    assert beside(artifact) == ["toy-0123"]


def test_a_builder_killed_in_a_forced_build_leaves_the_old_artifact(artifact: Artifact) -> None:
    make(artifact, building("old"), tiny_config())
    process = builder(artifact, force=True)
    try:
        assert line_of(process) == "building"
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert (artifact.folder / "file").read_text() == "old"
    assert make(artifact, building("new"), tiny_config(force=True))
    assert beside(artifact) == ["toy-0123"]


@pytest.mark.parametrize("force", [False, True])
def test_two_processes_at_once_build_once(artifact: Artifact, force: bool) -> None:
    first = builder(artifact, force)
    try:
        assert line_of(first) == "building"
        second = builder(artifact, force)
        try:
            said = line_of(second)
            assert f"is being made by job {artifacts.claims.job_id().rpartition('-')[0]}-{first.pid} " in said
            assert not artifact.exists
            (artifact.folder.parent / "go").touch()
            assert ended(first) == [f"wrote {artifact.folder}", "made True"]
            assert ended(second) == [f"found {artifact.folder}", "made False"]
        finally:
            second.kill()
            second.communicate()
    finally:
        first.kill()
        first.communicate()
    assert (artifact.folder.parent / "log").read_text() == f"{first.pid}\n"
    assert beside(artifact) == ["go", "log", "toy-0123"]


def test_a_waiting_process_takes_over_when_the_builder_is_killed(artifact: Artifact) -> None:
    first = builder(artifact)
    second = None
    try:
        assert line_of(first) == "building"
        second = builder(artifact)
        assert "waiting for it" in line_of(second)
        os.kill(first.pid, signal.SIGKILL)
        assert line_of(second) == "building"
        (artifact.folder.parent / "go").touch()
        assert ended(second) == [f"wrote {artifact.folder}", "made True"]
    finally:
        for process in (first, second):
            if process is not None:
                process.kill()
                process.communicate()
    assert beside(artifact) == ["go", "log", "toy-0123"]
    assert sorted(path.name for path in artifact.folder.iterdir()) == ["first", "provenance.json", "second"]
    assert json.loads((artifact.folder / "provenance.json").read_text())["key"] == "0123"
