"""A study sent to Slurm at once: every stage's jobs in arrays that wait for what they need. Torch-free."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dilm import jobs, slurm
from dilm.compose import Composer, checked, sweep, with_sweep
from dilm.config import Config
from dilm.errors import ConfigError, MissingArtifactError
from dilm.jobs import Call, Verdict
from dilm.plan import COMMAND_OF, REPORT, STAGES, Standing, Unit, jobs_of, left_of, standing_of, units_of
from dilm.site import gpus_of
from dilm.submit import JobArray, array_name, asked_for, check, chunks, submit

# Stages that a user may name; training is two of them, so that several matchings share a pre-training.
NAMES = {"train": ("pretrain", "learners", "match")} | {stage: (stage,) for stage in STAGES}
LIVE = (jobs.QUEUED, jobs.RUNNING)
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
    configs = [(overrides, composer.config(overrides)) for overrides in sweep(with_sweep(checked(arguments)))]
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
    calls = _failed_calls(standing)
    per_job = None
    for stage in STAGES[:-1]:
        found: dict[str, Unit] = {}
        for call in calls.get(stage, []):
            keys = _again(call)
            config = composer.config(keys)
            per_job = config.launcher.cells_per_job
            study.max_array_size = config.site.max_array_size
            for unit in left_of(units_of(stage, [(keys, config)]), standing, (jobs.FAILED,)):
                found.setdefault(unit.keys[0], unit)
        study.units[stage] = list(found.values())
        _arrange(study, stage, study.units[stage], per_job)
    for call in calls.get("collect", [])[-1:]:
        _collect(study, call.overrides)
    return study


def _again(call: Call) -> tuple[str, ...]:
    """The keys of a call, to find its units by. What is trained doesn't depend on the method, which stage is does."""
    apart = ("force=", *(("method=", "stages=") if call.command == "train" else ()))
    keys = [override for override in call.overrides if not override.startswith(apart)]
    return (*keys, *(["method=dilm"] if call.command == "train" else []))


def _failed_calls(standing: Standing) -> dict[str, list[Call]]:
    """For every stage the calls that make something that has failed, the newest call of each key alone."""
    newest: dict[tuple[str, str], Call] = {}
    for verdict in standing.verdicts.values():
        for call in verdict.job.calls:
            newest |= {(stage, key): call for stage, keys in call.makes.items() for key in keys}
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
                live.add(_to_wait_for(study.standing.live[folder], folder))
            elif not (study.root / folder).is_dir():
                before = "generate" if unit.stage == "evaluate" else "train"
                raise MissingArtifactError(
                    str(study.root / folder), f"python tools/submit.py {before},{unit.stage}", "with these keys"
                )
    return frozenset(planned), frozenset(live)


def _to_wait_for(verdict: Verdict, key: str) -> str:
    """A live job's name, for a dependency. Raises ConfigError for one that Slurm doesn't know."""
    if not verdict.job.name.startswith("slurm-"):
        raise ConfigError(
            f"{key} is being made by {verdict.job.name} on {verdict.job.host}, outside Slurm, and jobs can't wait for "
            "that; submit again when it is done."
        )
    return verdict.job.name


def _collect(study: Study, overrides: tuple[str, ...]) -> None:
    """One job that brings all rows together, once every evaluation is done; none where the report is up to date."""
    evaluations = {number for number, planned in enumerate(study.arrays) if planned.array.stage == "evaluate"}
    keys = [key for unit in study.units.get("evaluate", []) for key in unit.keys]
    holders = [study.standing.live[key] for key in keys if key in study.standing.live]
    if not evaluations and not holders and study.standing.of("collect", REPORT) in (jobs.DONE, *LIVE):
        return
    live = tuple(sorted({_to_wait_for(verdict, "the report's rows") for verdict in holders}))
    call = Call("collect", overrides, makes={"collect": [REPORT]})
    array = JobArray("collect", study.root, ((call,),), _asked(study, overrides, "collect"), live)
    study.arrays.append(Planned(array, "", frozenset(evaluations)))


def parts_of(study: Study) -> list[list[JobArray]]:
    """Every planned array, cut to what the cluster takes. Raises SlurmError where it doesn't tell."""
    largest = study.max_array_size or slurm.max_array_size()
    return [list(chunks(planned.array, largest)) for planned in study.arrays]


def check_study(study: Study) -> None:
    """Ask Slurm whether it would take every kind of job. Raises ConfigError, and nothing is queued."""
    seen: list[tuple[object, int]] = []
    for parts in parts_of(study):
        kind = (parts[0].asked, len(parts[0].jobs))  # the first part is the longest
        if kind not in seen:
            seen.append(kind)
            check(parts[0])


def send(study: Study) -> Iterator[tuple[Planned, list[str]]]:
    """Queue every array with its dependencies; yields the names of its jobs as soon as they are queued."""
    sent: list[list[str]] = []
    for planned, parts in zip(study.arrays, parts_of(study), strict=True):
        before = {array_name(name) for number in planned.needs for name in sent[number]}
        after = (*planned.array.after, *sorted(before))
        sent.append([name for part in parts for name in submit(replace(part, after=after))])
        yield planned, sent[-1]
