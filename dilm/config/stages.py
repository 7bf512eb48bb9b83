"""The stages of the pipeline, each declared once: its command, its version numbers, what it makes and what it needs.

A new stage is one entry of `STAGES` and the functions that it names, as `module:function`: they are loaded when they
are called, so this list stands below the packages that they are in, and loads no torch.
"""

from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

# What the outputs of a stage are: folders of artifacts, cells of an evaluation, or the report of a whole study, which
# is also the name of its folder.
ARTIFACT, CELLS, REPORT = "artifact", "cells", "report"


@dataclass(frozen=True)
class Output:
    """What one call of a stage makes: an artifact, or the cells of one evaluation."""

    keys: tuple[str, ...]  # the artifact's folder below root, or the cells' keys
    overrides: tuple[str, ...] = ()  # keys of the command line that choose it among the outputs of its stage
    group: str = ""  # outputs of one group share what the first of them makes: one job makes them all


@dataclass(frozen=True)
class Stage:
    """A step from the configuration and earlier artifacts to new ones."""

    name: str  # as `stages=`, `tools/submit.py` and job records have it
    command: str  # `python -m dilm.<command>` runs it
    versions: dict[str, int]  # by kind of artifact: raised when its results change for equal configurations
    outputs: str = ""  # function of the configuration: its list of `Output`; "": no study plans it
    run: str = ""  # function of configuration and `World`, for a stage that `stages=` chooses; "": the command itself
    kind: str = ARTIFACT  # of what it makes
    needs: tuple[str, ...] = ()  # stages whose outputs must be there first
    methods: tuple[str, ...] = ()  # that need it; (): all

    def serves(self, method: str) -> bool:
        """Whether a method needs this stage."""
        return not self.methods or method in self.methods

    def outputs_of(self, config: Any) -> list[Output]:
        """What it makes of a configuration. Raises DilmError where the task's rows can't be read."""
        outputs: list[Output] = resolve_name(self.outputs)(config)
        return outputs


# In the order in which they run.
STAGES = [
    Stage(
        "pretrain",
        command="train",
        versions={"pretrain": 1},
        outputs="dilm.artifacts.fingerprint:pretrain_outputs",
        run="dilm.stages.train:pretrain",
        methods=("rank", "lm", "dilm"),
    ),
    Stage(
        "learners",
        command="train",
        versions={"trajectory": 1, "teacher": 1},
        outputs="dilm.artifacts.fingerprint:learners_outputs",
        run="dilm.stages.train:make_trajectories",
        methods=("rank", "dilm"),
    ),
    Stage(
        "match",
        command="train",
        versions={"match": 1},
        outputs="dilm.artifacts.fingerprint:match_outputs",
        run="dilm.stages.train:match",
        needs=("pretrain", "learners"),
        methods=("rank", "dilm"),
    ),
    Stage(
        "generate",
        command="generate",
        versions={"candidates": 1, "dataset": 1},
        outputs="dilm.artifacts.fingerprint:generate_outputs",
        needs=("pretrain", "match"),
    ),
    Stage(
        "evaluate",
        command="evaluate",
        versions={"evaluate": 1},
        outputs="dilm.evaluation.cells:evaluate_outputs",
        kind=CELLS,
        needs=("generate",),
    ),
    Stage(
        "collect",
        command="collect",
        versions={},
        outputs="dilm.artifacts.fingerprint:collect_outputs",
        kind=REPORT,
        needs=("evaluate",),
    ),
    Stage("audit", command="audit", versions={"audit": 1}),
]


def stage_named(name: str) -> Stage:
    """A stage by its name."""
    return next(stage for stage in STAGES if stage.name == name)


def kind_of(name: str) -> str:
    """What a stage makes, by its name; job records may still name a stage that is not declared any more."""
    return next((stage.kind for stage in STAGES if stage.name == name), ARTIFACT)


def position(name: str) -> int:
    """A stage's place in the order of stages; the last for a name that is not declared."""
    names = [stage.name for stage in STAGES]
    return names.index(name) if name in names else len(names)


def maker_of(kind: str) -> Stage:
    """The stage that makes a kind of artifact."""
    return next(stage for stage in STAGES if kind in stage.versions)


def planned_stages() -> list[Stage]:
    """The stages that run as jobs of a study."""
    return [stage for stage in STAGES if stage.outputs]


def job_commands() -> list[str]:
    """The commands that run as jobs."""
    return list(dict.fromkeys(stage.command for stage in planned_stages()))


def chosen_stages() -> list[str]:
    """The names that `stages=` may have: all of them by default."""
    return [stage.name for stage in STAGES if stage.run]


def direct_needs(stage: Stage, method: str) -> list[Stage]:
    """The stages that a stage needs for a method, without those that another one of them needs itself."""
    needed = [other for other in map(stage_named, stage.needs) if other.serves(method)]
    beyond = {name for other in needed for name in other.needs}
    return [other for other in needed if other.name not in beyond]
