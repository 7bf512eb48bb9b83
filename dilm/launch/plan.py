"""The plan of a study: from combinations of keys to what is to be made, what of it is there, and jobs for the rest.

A stage's *unit* is one artifact, or the cells of one evaluation. Units are told apart by content: combinations that
need the same generator make it once. A study's jobs are submitted at once, in arrays that wait for what they need.
Torch-free.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dilm.artifacts.rows import Row, read_rows, rows_folder
from dilm.config.compose import checked
from dilm.config.schema import Config
from dilm.config.stages import CELLS, REPORT, Stage, direct_needs, kind_of, planned_stages, stage_named
from dilm.core.errors import ConfigError, DilmError, MissingArtifactError
from dilm.launch.submit import JobArray, asked_for, check, chunks, gpus_of, submit
from dilm.launch.sweep import Composer, sweep, with_sweep
from dilm.scheduler import records
from dilm.scheduler.base import array_name
from dilm.scheduler.job import scheduler_of
from dilm.scheduler.records import DONE, FAILED, Call, Verdict, judge

NEW = "new"


def makes(config: Config, command: str) -> dict[str, list[str]]:
    """What a command makes, by stage: folders of artifacts, keys of cells. Nothing where the rows can't be read."""
    made = {}
    try:
        for stage in planned_stages():
            if stage.command == command and (not stage.run or stage.name in config.stages):
                made[stage.name] = [key for output in stage.outputs_of(config) for key in output.keys]
    except DilmError:
        return {}  # the command itself meets the error, and tells it
    return {name: keys for name, keys in made.items() if keys}


def call_of(command: str, overrides: tuple[str, ...], config: Config) -> Call:
    """A call of a command, with what it makes."""
    made = makes(config, command)
    task = "" if REPORT in map(kind_of, made) else config.task.name
    return Call(command, overrides, task, made)


@dataclass(frozen=True)
class Unit:
    """Something to be made by one call."""

    stage: str
    call: Call
    keys: tuple[str, ...]  # a folder, or cells' keys
    needs: tuple[str, ...] = ()  # folders that must be there first
    group: str = ""  # units of one group share what the first of them makes, and go into one job

    @property
    def task(self) -> str:
        """The task's name."""
        return self.call.task


def units_of(stage: str, configs: Iterable[tuple[Sequence[str], Config]]) -> list[Unit]:
    """The distinct units of a stage that combinations of keys need. Raises DilmError where rows can't be read."""
    found: dict[tuple[str, ...], Unit] = {}
    for overrides, config in configs:
        for unit in _units(stage_named(stage), tuple(overrides), config):
            found.setdefault(unit.keys, unit)
    return list(found.values())


def _units(stage: Stage, overrides: tuple[str, ...], config: Config) -> list[Unit]:
    if not stage.serves(config.method):
        return []
    needs = tuple(
        key
        for needed in direct_needs(stage, config.method)
        for output in needed.outputs_of(config)
        for key in output.keys
    )
    units = []
    for output in stage.outputs_of(config):
        chosen = (*output.overrides, *([f"stages=[{stage.name}]"] if stage.run else []))
        replaced = tuple(f"{override.partition('=')[0]}=" for override in output.overrides)
        others = [override for override in overrides if not (replaced and override.startswith(replaced))]
        call = Call(stage.command, (*others, *chosen), config.task.name, {stage.name: list(output.keys)})
        units.append(Unit(stage.name, call, output.keys, needs, output.group or output.keys[0]))
    return units


@dataclass(frozen=True)
class Standing:
    """What is there already, what live jobs are making, and what has failed."""

    root: Path
    done_cells: frozenset[str] = frozenset()
    failed: Mapping[str, str] = field(default_factory=dict)  # key: why
    live: Mapping[str, Verdict] = field(default_factory=dict)  # key: the job that is making it
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)  # of all jobs, oldest first
    rows: Sequence[Row] = ()
    force: bool = False  # what is there is made again

    def of(self, stage: str, key: str) -> str:
        """`done`, `running`, `queued`, `failed` or `new`."""
        if not self.force and self._is_there(stage, key):
            return DONE
        if key in self.live:
            return self.live[key].state
        return FAILED if key in self.failed else NEW

    def _is_there(self, stage: str, key: str) -> bool:
        kind = kind_of(stage)
        if kind == CELLS:
            return key in self.done_cells
        return report_is_current(self.root) if kind == REPORT else (self.root / key).is_dir()


def report_is_current(root: Path) -> bool:
    """Whether no row is newer than the report."""
    try:
        made = (root / REPORT / "index.html").stat().st_mtime
    except FileNotFoundError:
        return False
    return all(path.stat().st_mtime <= made for path in rows_folder(root).glob("rows-*.jsonl"))


def standing_of(root: Path) -> Standing:
    """How everything below a root stands, by its files and one question to the scheduler."""
    verdicts = judge(root)
    rows = read_rows(root)
    done = frozenset(row.cell.key for row in rows if row.status == DONE)
    failed: dict[str, str] = {}
    live: dict[str, Verdict] = {}
    for verdict in verdicts.values():
        for stage, key in verdict.job.made:
            failed.pop(key, None)
            if verdict.live:
                live[key] = verdict
            elif verdict.state != DONE:
                failed[key] = verdict.reason
            elif kind_of(stage) == CELLS and key not in done:
                failed[key] = f"{verdict.job.name} ended without it"
    failed |= {row.cell.key: row.error or "" for row in rows if row.status == FAILED}
    return Standing(root, done, failed, live, verdicts, rows)


def left_of(units: Sequence[Unit], standing: Standing, states: Sequence[str] = (NEW, FAILED)) -> list[Unit]:
    """Units cut down to the keys that stand so, by default what is still to be made."""
    left = []
    for unit in units:
        chosen = [index for index, key in enumerate(unit.keys) if standing.of(unit.stage, key) in states]
        if chosen:
            left.append(unit if len(chosen) == len(unit.keys) else part_of(unit, chosen))
    return left


def counted(units: Sequence[Unit], standing: Standing) -> dict[str, int]:
    """How many of the units' keys stand how."""
    return dict(Counter(standing.of(unit.stage, key) for unit in units for key in unit.keys))


def part_of(unit: Unit, indices: Sequence[int]) -> Unit:
    """Some of an evaluation's cells."""
    keys = tuple(unit.keys[index] for index in indices)
    cells = _cells_override(unit.call.overrides, indices)
    call = replace(unit.call, overrides=cells, makes={unit.stage: list(keys)})
    return replace(unit, keys=keys, call=call)


def _cells_override(overrides: tuple[str, ...], indices: Sequence[int]) -> tuple[str, ...]:
    """The keys with `evaluate.cells`; where they name cells already, the indices are into those."""
    name = "evaluate.cells="
    before = [override for override in overrides if override.startswith(name) and not override.endswith("=null")]
    if before:
        known = before[-1].removeprefix(name).strip("[]").split(",")
        indices = [int(known[index]) for index in indices]
    others = [override for override in overrides if not override.startswith(name)]
    return (*others, f"{name}[{','.join(map(str, indices))}]")


def jobs_of(units: Sequence[Unit], cells_per_job: int | None) -> list[list[Unit]]:
    """Units that one job does, one after another.

    Artifacts: those of one group. Evaluations: one configuration's cells, cut and brought together to `cells_per_job`
    where that is set, from units that need the same.
    """
    if not units or kind_of(units[0].stage) != CELLS:
        groups: dict[str, list[Unit]] = {}
        for unit in units:
            groups.setdefault(unit.group, []).append(unit)
        return list(groups.values())
    if cells_per_job is None:
        return [[unit] for unit in units]
    filled: list[list[Unit]] = []
    room, needs = 0, None
    for unit in units:
        start = 0
        while start < len(unit.keys):
            if not room or unit.needs != needs:
                filled.append([])
                room, needs = cells_per_job, unit.needs
            size = min(room, len(unit.keys) - start)
            filled[-1].append(part_of(unit, range(start, start + size)))
            start, room = start + size, room - size
    return filled


LIVE = (records.QUEUED, records.RUNNING)
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
    units: dict[str, list[Unit]] = field(default_factory=dict)  # of each stage, all
    arrays: list[Planned] = field(default_factory=list)
    launcher: str = "slurm"  # of conf/hydra/launcher: what jobs ask for
    max_array_size: int | None = None  # the site's word; null: ask the scheduler
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
    """`train,evaluate`, names of stages or of their commands, as stages in their order. Raises ConfigError."""
    stages, wanted = planned_stages(), names.split(",")
    known = dict.fromkeys(name for stage in stages for name in (stage.command, stage.name))
    if unknown := [name for name in wanted if name not in known]:
        raise ConfigError(f"stage {unknown[0]!r} is unknown. Known: {', '.join(known)}.")
    return [stage.name for stage in stages if {stage.name, stage.command} & set(wanted)]


def plan_study(stages: Sequence[str], arguments: Sequence[str]) -> Study:
    """Plan the stages of every combination of keys. Raises DilmError before anything is queued."""
    study, configs = _begin(with_sweep(checked(arguments)))
    reports = [stage for stage in stages if kind_of(stage) == REPORT]
    study.units = {stage: units_of(stage, configs) for stage in stages if stage not in reports}
    for stage, units in study.units.items():
        _arrange(study, stage, left_of(units, study.standing), configs[0][1].launcher.cells_per_job)
    for stage in reports:
        _collect(study, stage, configs[0][0])
    return study


def plan_sweep(command: str, arguments: Sequence[str], launcher: str) -> tuple[Study, list[tuple[Call, list[str]]]]:
    """Plan a command for every combination of keys, a job each. Raises DilmError before anything is queued.

    With the calls that need no job: with the live jobs that make what they would make, none where all is there.
    """
    study, configs = _begin(arguments, launcher)
    known: list[tuple[Call, list[str]]] = []
    groups: dict[tuple[str, ...], list[tuple[Call, ...]]] = {}
    for overrides, config in configs:
        call = call_of(command, overrides, config)
        states = [study.standing.of(stage, key) for stage, key in call.made]
        if not states or NEW in states or FAILED in states:
            groups.setdefault(_asking(overrides), []).append((call,))
        else:
            live = study.standing.live
            known.append((call, sorted({live[key].job.name for _, key in call.made if key in live})))
    for jobs in groups.values():
        asked = _asked(study, jobs[0][0].overrides, command)
        study.arrays.append(Planned(JobArray(command, study.root, tuple(jobs), asked), ""))
    return study, known


def _begin(arguments: Sequence[str], launcher: str = "slurm") -> tuple[Study, list[tuple[tuple[str, ...], Config]]]:
    """A study without units, and the configuration of every combination of keys."""
    composer = Composer()
    configs = [(tuple(overrides), composer.config(overrides)) for overrides in sweep(arguments)]
    root, first = _one_root(configs), configs[0][1]
    standing = Standing(root, force=True) if first.force else standing_of(root)
    return Study(root, standing, max_array_size=first.site.max_array_size, launcher=launcher), configs


def _one_root(configs: Sequence[tuple[Sequence[str], Config]]) -> Path:
    roots = {config.root for _, config in configs}
    if len(roots) > 1:
        raise ConfigError(f"root is {' and '.join(sorted(roots))}; all jobs of a study write below one root.")
    return Path(roots.pop())


def plan_retry(root: Path) -> Study:
    """Plan again exactly what has failed: by the keys of the jobs that were to make it."""
    standing, composer = standing_of(root), Composer()
    study = Study(root, standing)
    calls = _failed_calls(standing)
    per_job = None
    for stage in planned_stages():
        if stage.kind == REPORT:
            for call in calls.get(stage.name, [])[-1:]:
                _collect(study, stage.name, call.overrides)
            continue
        found: dict[str, Unit] = {}
        for call in calls.get(stage.name, []):
            keys, config = _again(stage, call, composer)
            per_job = config.launcher.cells_per_job
            study.max_array_size = config.site.max_array_size
            for unit in left_of(units_of(stage.name, [(keys, config)]), standing, (records.FAILED,)):
                found.setdefault(unit.keys[0], unit)
        study.units[stage.name] = list(found.values())
        _arrange(study, stage.name, study.units[stage.name], per_job)
    return study


def _again(stage: Stage, call: Call, composer: Composer) -> tuple[tuple[str, ...], Config]:
    """The keys of a call, and their configuration, to find its units by.

    A command may have been run by hand with a method that doesn't need the stage; the plan takes one that does.
    """
    keys = tuple(override for override in call.overrides if not override.startswith(("force=", "stages=")))
    config = composer.config(keys)
    if stage.serves(config.method):
        return keys, config
    return _again(stage, replace(call, overrides=(*keys, f"method={stage.methods[-1]}")), composer)


def _failed_calls(standing: Standing) -> dict[str, list[Call]]:
    """For every stage the calls that make something that has failed, the newest call of each key alone."""
    newest: dict[tuple[str, str], Call] = {}
    for verdict in standing.verdicts.values():
        for call in verdict.job.calls:
            newest |= {(stage, key): call for stage, keys in call.makes.items() for key in keys}
    found: dict[str, list[Call]] = {}
    for (stage, key), call in newest.items():
        known = found.setdefault(stage, [])
        if standing.of(stage, key) == records.FAILED and call not in known:
            known.append(call)
    return found


def _arrange(study: Study, stage: str, units: Sequence[Unit], cells_per_job: int | None) -> None:
    """Bring a stage's jobs into arrays: of one task, waiting for the same, asking for the same."""
    groups: dict[Alike, list[list[Unit]]] = {}
    for job in jobs_of(units, cells_per_job):
        groups.setdefault((job[0].task, *_needs(study, job), _asking(job[0].call.overrides)), []).append(job)
    for (_, needs, live, _), members in groups.items():
        calls = tuple(tuple(unit.call for unit in job) for job in members)
        asked = _asked(study, calls[0][0].overrides, stage_named(stage).command)
        array = JobArray(stage, study.root, calls, asked, tuple(sorted(live)))
        study.arrays.append(Planned(array, members[0][0].task, needs))
        for made in (name for job in members for unit in job for name in unit.keys):
            study.makers.setdefault(made, set()).add(len(study.arrays) - 1)


def _asking(overrides: Iterable[str]) -> tuple[str, ...]:
    return tuple(override for override in overrides if override.lstrip("+~").startswith(ASKING))


def _asked(study: Study, overrides: Sequence[str], command: str) -> dict[str, Any]:
    key = (command, _asking(overrides))
    if key not in study.asked:
        study.asked[key] = asked_for(overrides, command, study.launcher)
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
                before = stage_named(stage_named(unit.stage).needs[-1]).command
                raise MissingArtifactError(
                    str(study.root / folder), f"python tools/submit.py {before},{unit.stage}", "with these keys"
                )
    return frozenset(planned), frozenset(live)


def _to_wait_for(verdict: Verdict, key: str) -> str:
    """A live job's name, for a dependency. Raises ConfigError for one that no batch system runs."""
    if not scheduler_of(verdict.job.name).batch:
        raise ConfigError(
            f"{key} is being made by {verdict.job.name} on {verdict.job.host}, outside a batch system, and jobs can't "
            "wait for that; submit again when it is done."
        )
    return verdict.job.name


def _collect(study: Study, stage: str, overrides: tuple[str, ...]) -> None:
    """One job that brings all rows together, once every evaluation is done; none where the report is up to date."""
    command, needs = stage_named(stage).command, stage_named(stage).needs
    evaluations = {number for number, planned in enumerate(study.arrays) if planned.array.stage in needs}
    keys = [key for need in needs for unit in study.units.get(need, []) for key in unit.keys]
    holders = [study.standing.live[key] for key in keys if key in study.standing.live]
    if not evaluations and not holders and study.standing.of(stage, REPORT) in (records.DONE, *LIVE):
        return
    live = tuple(sorted({_to_wait_for(verdict, "the report's rows") for verdict in holders}))
    call = Call(command, overrides, makes={stage: [REPORT]})
    array = JobArray(stage, study.root, ((call,),), _asked(study, overrides, command), live)
    study.arrays.append(Planned(array, "", frozenset(evaluations)))


def parts_of(study: Study) -> list[list[JobArray]]:
    """Every planned array, cut to what the cluster takes. Raises SchedulerError where it doesn't tell."""
    if not study.arrays:
        return []
    largest = study.max_array_size or study.arrays[0].array.scheduler.max_array_size()
    return [list(chunks(planned.array, largest)) for planned in study.arrays]


def check_study(study: Study) -> None:
    """Ask the scheduler whether it would take every kind of job. Raises ConfigError, and nothing is queued."""
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
