"""A stage is declared once: one that is added to the list, with nothing else edited, is known everywhere."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from pkgutil import resolve_name

import pytest

from dilm.artifacts.artifact import Artifact, make
from dilm.artifacts.fingerprint import artifact_of, content_hash, named, pretrain_artifact
from dilm.config.schema import GENERATOR_METHODS, METHODS, Config
from dilm.config.stages import STAGES, Output, Stage, chosen_stages, direct_needs, job_commands, stage_named
from dilm.core.errors import ConfigError
from dilm.launch.plan import makes, plan_study, stages_named, units_of
from dilm.launch.status import lines_of

REPOSITORY = Path(__file__).resolve().parents[3]
Compose = Callable[..., Config]


def notes_artifact(config: Config) -> Artifact:
    parent = pretrain_artifact(config, content_hash(config))
    return artifact_of(config, "notes", "notes", {"parent": parent.key})


def notes_outputs(config: Config) -> list[Output]:
    return [Output((named(notes_artifact(config)),))]


def write_notes(config: Config, world: object) -> None:
    parent = pretrain_artifact(config, content_hash(config)).require()

    def build(folder: Path) -> None:
        (folder / "notes.txt").write_text(f"{(parent / 'model.safetensors').stat().st_size} bytes")

    make(notes_artifact(config), build, config)


NOTES = Stage(
    "notes",
    command="train",
    versions={"notes": 7},
    outputs="test_stage_declaration:notes_outputs",
    run="test_stage_declaration:write_notes",
    needs=("pretrain",),
    methods=("lm", "dilm"),
)


@pytest.fixture
def notes() -> Iterator[None]:
    declare()
    yield
    STAGES.remove(NOTES)


def declare() -> None:
    STAGES.insert(1, NOTES)


SCRIPT = f"""
import runpy, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_stage_declaration
test_stage_declaration.declare()
del sys.argv[0]
if sys.argv[0].endswith(".py"):
    runpy.run_path(sys.argv[0], run_name="__main__")
else:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def run(*command: str, cwd: Path) -> str:
    """What a command of the project prints, where the stage is declared."""
    import forking  # not in the command itself, which imports this file

    (script := cwd / "declared.py").write_text(SCRIPT)
    done = forking.run(str(script), *command, cwd=cwd, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_commands_run_it_and_status_counts_it(tmp_path: Path, tiny_cache: Path, notes: None) -> None:
    keys = ["experiment=tiny", "pretrain.steps=2", "method=lm", f"cache={tiny_cache}", "root=runs", "threads=1"]
    study = [str(REPOSITORY / "tools" / "submit.py"), "train", *keys, "--dry-run"]
    plan = run(*study, cwd=tmp_path) if shutil.which("srun") else ""
    if plan:  # submitit writes no script without Slurm's commands
        assert re.search(r"│ notes +│ tiny │ +1 │", plan) and "stages=[notes]" in plan
        assert "array 1: notes tiny, 1 job, after <array 0>" in plan

    said = run("dilm.train", *keys, "stages=[pretrain,notes]", cwd=tmp_path)
    (folder,) = (tmp_path / "runs" / "tiny").glob("notes-*")
    assert f"wrote runs/tiny/{folder.name}" in said and (folder / "notes.txt").read_text().endswith("bytes")
    again = run("dilm.train", *keys, "stages=[notes]", cwd=tmp_path)
    assert again.startswith(f"found runs/tiny/{folder.name}") and "lm-tiny" not in again

    lines = lines_of(tmp_path / "runs")
    assert [(line.stage, line.counts) for line in lines] == [("pretrain", {"done": 1}), ("notes", {"done": 1})]
    table = run(str(REPOSITORY / "tools" / "status.py"), "runs", cwd=tmp_path)
    assert re.search(r"│ notes +│ tiny │ +1 │", table)
    if plan:
        assert "nothing to submit" in run(*study, cwd=tmp_path)


def test_the_plan_has_its_units_and_what_they_wait_for(tiny: Compose, tmp_path: Path, notes: None) -> None:
    keys = ["experiment=tiny", f"root={tmp_path}", "method=lm,random", "task.path=null"]
    assert stages_named("notes,generate") == ["notes", "generate"]
    study = plan_study(stages_named("train"), keys)
    assert [(planned.array.stage, planned.needs) for planned in study.arrays] == [
        ("pretrain", set()),
        ("notes", {0}),
    ]
    (unit,) = study.units["notes"]
    assert unit.call.command == "train" and unit.call.overrides[-1] == "stages=[notes]"
    assert unit.needs == study.units["pretrain"][0].keys
    assert units_of("notes", [((), tiny("method=random"))]) == []
    config = tiny("method=lm")
    assert config.stages == ["pretrain", "notes", "learners", "match"]
    made = makes(config, "train")
    assert list(made) == ["pretrain", "notes", "match"] and made["notes"] == [named(notes_artifact(config))]
    assert notes_artifact(config).science["version"] == 7
    assert notes_artifact(config).command == "python -m dilm.train"


def test_it_is_unknown_where_it_is_not_declared(tiny: Compose) -> None:
    with pytest.raises(ConfigError, match=r"stages names 'notes'\. Known: learners, match, pretrain\."):
        tiny("stages=[notes]")
    with pytest.raises(ConfigError, match=r"stage 'notes' is unknown\. Known: train, pretrain, learners, match, gen"):
        stages_named("notes")


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_what_a_declaration_names_is_there(stage: Stage) -> None:
    for name in filter(None, (stage.outputs, stage.run, f"dilm.{stage.command}:run")):
        assert callable(resolve_name(name))
    before = STAGES[: STAGES.index(stage)]
    assert set(stage.needs) <= {other.name for other in before} and set(stage.methods) <= set(METHODS)
    kinds = [kind for other in STAGES for kind in other.versions]
    assert len(kinds) == len(set(kinds))


def test_stages_and_what_needs_them() -> None:
    assert chosen_stages() == ["pretrain", "learners", "match"]
    assert job_commands() == ["train", "generate", "evaluate", "collect"]
    assert stages_named("train,evaluate") == ["pretrain", "learners", "match", "evaluate"]
    assert stages_named("collect,generate") == ["generate", "collect"]
    assert set(stage_named("pretrain").methods) == set(GENERATOR_METHODS)
    needs = {method: [stage.name for stage in direct_needs(stage_named("generate"), method)] for method in METHODS}
    trained = {"rank": ["match"], "lm": ["pretrain"], "dilm": ["match"]}
    assert needs == {method: trained.get(method, []) for method in METHODS}
    assert [stage.name for stage in direct_needs(stage_named("match"), "dilm")] == ["pretrain", "learners"]


def test_a_sites_minutes_are_of_commands_that_run_as_jobs(tiny: Compose) -> None:
    with pytest.raises(ConfigError, match=r"site.minutes names 'trian'\. Did you mean 'train'"):
        tiny("+site.minutes={trian: 5}")
