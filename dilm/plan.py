"""The plan of a study: from combinations of keys to what is to be made, what of it is there, and jobs for the rest.

A stage's *unit* is one artifact, or the cells of one evaluation. Units are told apart by content: combinations that
need the same generator make it once. Torch-free.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dilm.artifacts import Artifact
from dilm.cells import evaluation_cells
from dilm.config import GENERATOR_METHODS, Config
from dilm.data import split_hash
from dilm.errors import DilmError
from dilm.jobs import DONE, FAILED, Call, Verdict, judge
from dilm.lineage import (
    candidates_artifact,
    dataset_artifact,
    generator_artifact,
    match_artifact,
    pool_artifacts,
    pretrain_artifact,
)
from dilm.results import Row, read_rows, rows_folder
from dilm.sources import cache_folder

STAGES = ("pretrain", "learners", "match", "generate", "evaluate", "collect")
COMMAND_OF = dict(zip(STAGES, ("train", "train", "train", "generate", "evaluate", "collect"), strict=True))
NEW = "new"
REPORT = "report"  # folder of what `collect` makes


def named(artifact: Artifact) -> str:
    """An artifact's folder, relative to root."""
    return f"{artifact.folder.parent.name}/{artifact.folder.name}"


def makes(config: Config, command: str) -> dict[str, list[str]]:
    """What a command makes, by stage: folders of artifacts, keys of cells. Nothing where the rows can't be read."""
    if command == "collect":
        return {"collect": [REPORT]}
    try:
        cache = cache_folder(config.cache)
        data_hash = split_hash(config.task, "train", cache)
        if command == "train":
            made = {
                "pretrain": [named(pretrain_artifact(config, data_hash))],
                "learners": _teachers(config, data_hash),
                "match": [named(match_artifact(config, data_hash))],
            }
            return {stage: made[stage] for stage in config.stages if made[stage]}
        if command == "generate":
            return {"generate": [named(dataset_artifact(config, data_hash))]}
        cells = evaluation_cells(config, data_hash, split_hash(config.task, "dev", cache))
        return {"evaluate": [cell.key for cell in cells]}
    except DilmError:
        return {}  # the command itself meets the error, and tells it


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
        for unit in _BUILDERS[stage](tuple(overrides), config):
            found.setdefault(unit.keys, unit)
    return list(found.values())


def _hash(config: Config, split: str = "train") -> str:
    return split_hash(config.task, split, cache_folder(config.cache))


def _artifact_unit(
    stage: str, overrides: tuple[str, ...], config: Config, artifact: Artifact, needs: tuple[str, ...], group: str = ""
) -> Unit:
    keys = (*overrides, f"stages=[{stage}]") if COMMAND_OF[stage] == "train" else overrides
    name = named(artifact)
    call = Call(COMMAND_OF[stage], keys, config.task.name, {stage: [name]})
    return Unit(stage, call, (name,), needs, group or name)


def _pretrain(overrides: tuple[str, ...], config: Config) -> list[Unit]:
    if config.method not in GENERATOR_METHODS:
        return []
    return [_artifact_unit("pretrain", overrides, config, pretrain_artifact(config, _hash(config)), ())]


def _matches(config: Config, data_hash: str) -> bool:
    """Whether the method needs a matched generator."""
    wanted = match_artifact(config, data_hash)
    return config.method in GENERATOR_METHODS and generator_artifact(config, data_hash) == wanted


def _teachers(config: Config, data_hash: str) -> list[str]:
    """The last of what is made for each trajectory of the pool, or for the one that is asked for."""
    pool = [named(teacher) for _, teacher in pool_artifacts(config, data_hash)]
    number = config.match.trajectory
    return pool if number is None or not pool else [pool[number]]


def _learners(overrides: tuple[str, ...], config: Config) -> list[Unit]:
    data_hash, key = _hash(config), "match.trajectory="
    if not _matches(config, data_hash):
        return []
    others = tuple(override for override in overrides if not override.startswith(key))
    first = config.match.trajectory or 0
    units = []
    for number, teacher in enumerate(_teachers(config, data_hash), first):
        call = Call(
            "train", (*others, f"{key}{number}", "stages=[learners]"), config.task.name, {"learners": [teacher]}
        )
        units.append(Unit("learners", call, (teacher,), group=teacher))
    return units


def _match(overrides: tuple[str, ...], config: Config) -> list[Unit]:
    data_hash = _hash(config)
    if not _matches(config, data_hash):
        return []
    needs = (named(pretrain_artifact(config, data_hash)), *_teachers(config, data_hash))
    return [_artifact_unit("match", overrides, config, match_artifact(config, data_hash), needs)]


def _generate(overrides: tuple[str, ...], config: Config) -> list[Unit]:
    data_hash = _hash(config)
    if config.method not in GENERATOR_METHODS:
        return [_artifact_unit("generate", overrides, config, dataset_artifact(config, data_hash), ())]
    needs = (named(generator_artifact(config, data_hash)),)
    group = named(candidates_artifact(config, data_hash))
    return [_artifact_unit("generate", overrides, config, dataset_artifact(config, data_hash), needs, group)]


def _evaluate(overrides: tuple[str, ...], config: Config) -> list[Unit]:
    data_hash = _hash(config)
    keys = tuple(cell.key for cell in evaluation_cells(config, data_hash, _hash(config, "dev")))
    call = Call("evaluate", overrides, config.task.name, {"evaluate": list(keys)})
    return [Unit("evaluate", call, keys, (named(dataset_artifact(config, data_hash)),))]


_BUILDERS: dict[str, Callable[[tuple[str, ...], Config], list[Unit]]] = {
    "pretrain": _pretrain,
    "learners": _learners,
    "match": _match,
    "generate": _generate,
    "evaluate": _evaluate,
}


@dataclass(frozen=True)
class Standing:
    """What is there already, what live jobs are making, and what has failed."""

    root: Path
    done_cells: frozenset[str] = frozenset()
    failed: Mapping[str, str] = field(default_factory=dict)  # key: why
    live: Mapping[str, Verdict] = field(default_factory=dict)  # key: the job that is making it
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)  # of all jobs, oldest first
    rows: Sequence[Row] = ()

    def of(self, stage: str, key: str) -> str:
        """`done`, `running`, `queued`, `failed` or `new`."""
        if self._is_there(stage, key):
            return DONE
        if key in self.live:
            return self.live[key].state
        return FAILED if key in self.failed else NEW

    def _is_there(self, stage: str, key: str) -> bool:
        if stage == "evaluate":
            return key in self.done_cells
        return report_is_current(self.root) if stage == "collect" else (self.root / key).is_dir()


def report_is_current(root: Path) -> bool:
    """Whether no row is newer than the report."""
    try:
        made = (root / REPORT / "index.html").stat().st_mtime
    except FileNotFoundError:
        return False
    return all(path.stat().st_mtime <= made for path in rows_folder(root).glob("rows-*.jsonl"))


def standing_of(root: Path) -> Standing:
    """How everything below a root stands, by its files and one question to Slurm."""
    verdicts = judge(root)
    rows = read_rows(root)
    done = frozenset(row.key for row in rows if row.status == DONE)
    failed: dict[str, str] = {}
    live: dict[str, Verdict] = {}
    for verdict in verdicts.values():
        for stage, key in verdict.job.made:
            failed.pop(key, None)
            if verdict.live:
                live[key] = verdict
            elif verdict.state != DONE:
                failed[key] = verdict.reason
            elif stage == "evaluate" and key not in done:
                failed[key] = f"{verdict.job.name} ended without it"
    failed |= {row.key: row.error or "" for row in rows if row.status == FAILED}
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
    if not units or units[0].stage != "evaluate":
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
