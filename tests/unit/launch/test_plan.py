"""The plan of a study: units told apart by content, cells cut into jobs, and what is left to do."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dilm.config.compose import composed
from dilm.config.schema import Config
from dilm.config.validate import typed
from dilm.launch.plan import Standing, Unit, counted, jobs_of, left_of, makes, part_of, standing_of, units_of
from dilm.launch.sweep import Composer, sweep
from dilm.scheduler.records import Call, Job, Verdict, begin, finish

Compose = Callable[..., Config]


def evaluation(name: str, size: int) -> Unit:
    keys = tuple(f"{name}{index}" for index in range(size))
    return Unit("evaluate", Call("evaluate", ("dpc=5",), "t", {"evaluate": list(keys)}), keys, (name,))


@given(sizes=st.lists(st.integers(1, 12), max_size=6), per_job=st.integers(1, 15))
def test_cells_are_cut_into_jobs_without_loss(sizes: list[int], per_job: int) -> None:
    units = [evaluation(chr(97 + index), size) for index, size in enumerate(sizes)]
    jobs = jobs_of(units, per_job)
    cells = [key for job in jobs for unit in job for key in unit.keys]
    assert sorted(cells) == sorted(key for unit in units for key in unit.keys)
    for job in jobs:
        assert 0 < sum(len(unit.keys) for unit in job) <= per_job
        assert len({unit.needs for unit in job}) == 1
        for unit in job:
            assert unit.call.makes == {"evaluate": list(unit.keys)}


def test_a_configuration_is_one_job_by_default() -> None:
    assert [len(job) for job in jobs_of([evaluation("a", 7), evaluation("b", 3)], None)] == [1, 1]


def test_a_part_of_a_part_counts_from_the_whole() -> None:
    twice = part_of(part_of(evaluation("c", 11), [2, 4, 6]), [1, 2])
    assert twice.keys == ("c4", "c6") and twice.call.overrides == ("dpc=5", "evaluate.cells=[4,6]")


def test_what_several_combinations_need_is_made_once(tiny: Compose) -> None:
    configs = [
        ((f"method={method}", f"dpc={dpc}"), tiny(f"method={method}", f"dpc={dpc}"))
        for method in ("random", "k_centers", "lm", "dilm")
        for dpc in (2, 4)
    ]
    units = {stage: units_of(stage, configs) for stage in ("pretrain", "match", "generate", "evaluate")}
    assert {stage: len(found) for stage, found in units.items()} == {
        "pretrain": 1,
        "match": 1,
        "generate": 8,
        "evaluate": 8,
    }
    assert units["match"][0].needs == units["pretrain"][0].keys
    needs = [unit.needs for unit in units["generate"]]
    assert needs[:4] == [()] * 4
    assert needs[4:] == [units["pretrain"][0].keys] * 2 + [units["match"][0].keys] * 2
    assert [unit.needs for unit in units["evaluate"]] == [unit.keys for unit in units["generate"]]
    # Sizes that are chosen from one pool of candidates go into one job, which writes it once.
    assert [len(job) for job in jobs_of(units["generate"], None)] == [1, 1, 1, 1, 2, 2]


def test_the_learners_of_a_pool_are_a_job_each(tiny: Compose) -> None:
    pool = ("match.learners=pool", "match.pool_size=3")
    configs = [((*pool, f"seed={seed}"), tiny(*pool, f"seed={seed}")) for seed in (0, 1)]
    units = units_of("learners", configs)  # which both runs share
    assert [unit.call.overrides[-2:] for unit in units] == [
        (f"match.trajectory={number}", "stages=[learners]") for number in range(3)
    ]
    assert [len(job) for job in jobs_of(units, None)] == [1, 1, 1]
    matchings = units_of("match", configs)
    assert len(matchings) == 2
    for unit in matchings:
        assert unit.needs[1:] == tuple(key for part in units for key in part.keys)
    assert makes(configs[0][1], "train")["learners"] == [key for unit in units for key in unit.keys]
    one = units[1].call
    assert makes(tiny(*one.overrides), "train") == one.makes
    assert [unit.keys for unit in units_of("learners", [(one.overrides, tiny(*one.overrides))])] == [units[1].keys]
    assert units_of("learners", [((), tiny(*pool, "method=lm")), ((), tiny())]) == []


def test_what_a_command_makes_is_what_the_plan_says(tiny: Compose) -> None:
    config = tiny("method=lm")
    made = makes(config, "train")
    assert list(made) == ["pretrain", "match"]
    assert made["pretrain"] == list(units_of("pretrain", [((), config)])[0].keys)
    assert makes(config, "evaluate")["evaluate"] == list(units_of("evaluate", [((), config)])[0].keys)
    assert makes(tiny("task.path=nowhere", "task.built=null"), "train") == {}


def test_how_things_stand(tiny: Compose, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    units = [evaluation("a", 4)]
    for name, state, keys in (("slurm-1", "failed", ["a1", "a2"]), ("slurm-2", "done", ["a2"])):
        begin(root, (Call("evaluate", (), "t", {"evaluate": keys}),), name=name)
        finish(root, name, state, "out of luck")
    standing = standing_of(root)
    assert counted(units, standing) == {"new": 2, "failed": 2}
    assert standing.failed == {"a1": "out of luck", "a2": "slurm-2 ended without it"}  # no row of it is there
    queued = Verdict(Job("slurm-3", "queued", ()), "queued")
    standing = Standing(root, frozenset({"a0"}), {"a1": ""}, {"a2": queued})
    assert counted(units, standing) == {"done": 1, "failed": 1, "queued": 1, "new": 1}
    (left,) = left_of(units, standing)
    assert left.keys == ("a1", "a3") and left.call.overrides[-1] == "evaluate.cells=[1,3]"
    (failed,) = left_of(units, standing, ("failed",))
    assert failed.keys == ("a1",)


def test_a_report_is_done_while_no_row_is_newer(tmp_path: Path) -> None:
    standing = Standing(tmp_path)
    assert standing.of("collect", "report") == "new"
    for name in ("report/index.html", "rows/rows-a.jsonl"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    os.utime(tmp_path / "rows" / "rows-a.jsonl", (1, 1))
    assert standing.of("collect", "report") == "done"
    os.utime(tmp_path / "report" / "index.html", (0, 0))
    assert standing.of("collect", "report") == "new"


@pytest.mark.parametrize(
    "overrides",
    [
        ["experiment=tiny", "dpc=7", "match.optimizer.lr=3e-5", "method=lm"],
        ["experiment=tiny", "task.max_length=30", "task=sst2", "learner.name='a b'", "pretrain.steps=${dpc}"],
        ["engine=zero2", "++engine.deepspeed.zero_optimization.overlap_comm=true", "evaluate.cells=[1,2]"],
        ["match.learner.max_length=9", "learner@match.learner=minilm", "++site.options={exclude: n1}", "cache=null"],
    ],
)
def test_composing_many_gives_what_hydra_gives(overrides: list[str]) -> None:
    composer = Composer()
    composer.config(["experiment=tiny"])
    assert composer.config(overrides) == typed(composed(overrides)) == composer.config(overrides)


def test_a_sweep_is_every_combination() -> None:
    assert sweep(["task=sst2,qqp", "dpc=5,10", "root=r"]) == [
        ["task=sst2", "dpc=5", "root=r"],
        ["task=sst2", "dpc=10", "root=r"],
        ["task=qqp", "dpc=5", "root=r"],
        ["task=qqp", "dpc=10", "root=r"],
    ]
