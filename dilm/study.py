"""A study sent to Slurm at once: every stage's jobs in arrays that wait for what they need. Torch-free."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dilm import jobs, slurm
from dilm.compose import Composer, checked, sweep
from dilm.config import Config
from dilm.errors import ConfigError, MissingArtifactError
from dilm.jobs import Call
from dilm.plan import COMMAND_OF, REPORT, STAGES, Standing, Unit, jobs_of, left_of, standing_of, units_of
from dilm.site import gpus_of
from dilm.submit import JobArray, array_name, asked_for, check, chunks, submit

# Stages that a user may name; training is two of them, so that several matchings share a pre-training.
NAMES = {"train": ("pretrain", "match")} | {stage: (stage,) for stage in STAGES}
ASKING = ("site", "launcher", "hydra", "experiment", "root")  # keys that change what a job asks for


Alike = tuple[str, frozenset[int], frozenset[str], tuple[str, ...]]  # task, planned and live jobs before, asking keys


@dataclass(frozen=True)
class Planned:
    """An array, and the planned arrays that it waits for."""

    array: JobArray  # `after`: jobs that are live already
    task: str
    needs: frozenset[int] = frozenset()


@dataclass
class Study:
    """Everything that is needed, how it stands, and the arrays for what is left."""

    root: Path
    standing: Standing
    units: dict[str, list[Unit]]  # of each stage, all
    arrays: list[Planned] = field(default_factory=list)
    max_array_size: int | None = None  # the site's word; null: ask Slurm
    makers: dict[str, set[int]] = field(default_factory=dict)  # key: planned arrays that make it
    asked: dict[tuple[object, ...], dict[str, Any]] = field(default_factory=dict)  # by command and keys that matter

    @property
    def gpu_hours(self) -> float:
        """What all jobs ask for at most."""
        return sum(
            len(planned.array.jobs) * gpus_of(planned.array.asked) * planned.array.asked["timeout_min"] / 60
            for planned in self.arrays
        )


def stages_named(names: str) -> list[str]:
    """`train,evaluate` as stages, in their order. Raises ConfigError."""
    wanted = [stage for name in names.split(",") for stage in NAMES.get(name, (name,))]
    if unknown := [name for name in wanted if name not in STAGES]:
        raise ConfigError(f"stage {unknown[0]!r} is unknown. Known: {', '.join(NAMES)}.")
    return [stage for stage in STAGES if stage in wanted]


def plan_study(stages: Sequence[str], arguments: Sequence[str]) -> Study:
    """Plan the stages of every combination of keys. Raises DilmError before anything is queued."""
    composer = Composer()
    configs = [(overrides, composer.config(overrides)) for overrides in sweep(checked(arguments))]
    root = _one_root(configs)
    standing = Standing(root) if configs[0][1].force else standing_of(root)
    units = {stage: units_of(stage, configs) for stage in stages if stage != "collect"}
    study = Study(root, standing, units, max_array_size=configs[0][1].site.max_array_size)
    for stage, all_units in units.items():
        _arrange(study, stage, left_of(all_units, standing), configs[0][1].launcher.cells_per_job)
    if "collect" in stages:
        _collect(study, tuple(configs[0][0]))
    return study


def _one_root(configs: Sequence[tuple[Sequence[str], Config]]) -> Path:
    roots = {config.root for _, config in configs}
    if len(roots) > 1:
        raise ConfigError(f"root is {' and '.join(sorted(roots))}; a study has one.")
    return Path(roots.pop())


def plan_retry(root: Path) -> Study:
    """Plan again exactly what has failed: by the keys of the jobs that were to make it."""
    standing, composer = standing_of(root), Composer()
    study = Study(root, standing, {})
    calls = _failed_calls(root, standing)
    per_job = None
    for stage in STAGES[:-1]:
        found: dict[str, Unit] = {}
        for call in calls.get(stage, []):
            # What is trained doesn't depend on the method; which stage is needed does.
            keys = (*call.overrides, *(["method=dilm"] if call.command == "train" else []))
            config = composer.config(keys)
            per_job = config.launcher.cells_per_job
            study.max_array_size = config.site.max_array_size
            for unit in left_of(units_of(stage, [(keys, config)]), standing, (jobs.FAILED,)):
                found.setdefault(unit.keys[0], unit)
        study.units[stage] = list(found.values())
        _arrange(study, stage, study.units[stage], per_job)
    return study


def _failed_calls(root: Path, standing: Standing) -> dict[str, list[Call]]:
    """For every stage the calls that make something that has failed, the newest call of each key alone."""
    newest: dict[tuple[str, str], Call] = {}
    for job in jobs.read_jobs(root):
        for call in job.calls:
            for stage, keys in call.makes.items():
                newest |= {(stage, key): call for key in keys}
    found: dict[str, list[Call]] = {}
    for (stage, key), call in newest.items():
        known = found.setdefault(stage, [])
        if standing.of(stage, key) == jobs.FAILED and call not in known:
            known.append(call)
    return found


def _arrange(study: Study, stage: str, units: Sequence[Unit], cells_per_job: int | None) -> None:
    """Bring a stage's jobs into arrays: of one task, waiting for the same, asking for the same."""
    groups: dict[Alike, list[list[Unit]]] = {}
    for job in jobs_of(units, cells_per_job):
        groups.setdefault((job[0].task, *_needs(study, job), _asking(job[0].call.overrides)), []).append(job)
    for (_, needs, live, _), members in groups.items():
        calls = tuple(tuple(unit.call for unit in job) for job in members)
        asked = _asked(study, calls[0][0].overrides, COMMAND_OF[stage])
        array = JobArray(stage, study.root, calls, asked, tuple(sorted(live)))
        study.arrays.append(Planned(array, members[0][0].task, needs))
        for made in (name for job in members for unit in job for name in unit.keys):
            study.makers.setdefault(made, set()).add(len(study.arrays) - 1)


def _asking(overrides: Iterable[str]) -> tuple[str, ...]:
    return tuple(override for override in overrides if override.lstrip("+~").startswith(ASKING))


def _asked(study: Study, overrides: Sequence[str], command: str) -> dict[str, Any]:
    key = (command, _asking(overrides))
    if key not in study.asked:
        study.asked[key] = asked_for(overrides, command)
    return study.asked[key]


def _needs(study: Study, job: Sequence[Unit]) -> tuple[frozenset[int], frozenset[str]]:
    """Planned arrays and live jobs that make what a job needs. Raises MissingArtifactError where none does."""
    planned: set[int] = set()
    live: set[str] = set()
    for unit in job:
        for folder in unit.needs:
            if folder in study.makers:
                planned |= study.makers[folder]
            elif folder in study.standing.live:
                live.add(study.standing.live[folder][0])
            elif not (study.root / folder).is_dir():
                before = "generate" if unit.stage == "evaluate" else "train"
                raise MissingArtifactError(
                    str(study.root / folder), f"python tools/submit.py {before},{unit.stage}", "with these keys"
                )
    return frozenset(planned), frozenset(live)


def _collect(study: Study, overrides: tuple[str, ...]) -> None:
    """One job that brings all rows together, once every evaluation is done."""
    evaluations = {number for number, planned in enumerate(study.arrays) if planned.array.stage == "evaluate"}
    keys = [key for unit in study.units.get("evaluate", []) for key in unit.keys]
    live = {
        study.standing.live[key][0] for key in keys if study.standing.of("evaluate", key) in (jobs.QUEUED, jobs.RUNNING)
    }
    if not evaluations and not live:
        return
    call = Call("collect", overrides, makes={"collect": [REPORT]})
    array = JobArray("collect", study.root, ((call,),), _asked(study, overrides, "collect"), tuple(sorted(live)))
    study.arrays.append(Planned(array, "", frozenset(evaluations)))


def check_study(study: Study) -> None:
    """Ask Slurm whether it would take every kind of job. Raises ConfigError, and nothing is queued."""
    seen: list[Mapping[str, object]] = []
    for planned in study.arrays:
        if planned.array.asked not in seen:
            seen.append(planned.array.asked)
            check(replace(planned.array, jobs=planned.array.jobs[:1]))


def send(study: Study) -> list[tuple[Planned, list[str]]]:
    """Queue every array, cut to what the cluster takes, with its dependencies; the jobs' names."""
    largest = study.max_array_size or slurm.max_array_size()
    sent: list[tuple[Planned, list[str]]] = []
    for planned in study.arrays:
        before = {array_name(name) for number in planned.needs for name in sent[number][1]}
        array = replace(planned.array, after=(*planned.array.after, *sorted(before)))
        sent.append((planned, [name for part in chunks(array, largest) for name in submit(part)]))
    return sent
