"""Sweeps: the combinations that Hydra itself would run, the launcher that is chosen, and a job for each combination."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from dilm.artifacts.fingerprint import content_hash, dataset_artifact
from dilm.config.compose import composed, options_of
from dilm.config.schema import Config
from dilm.config.validate import typed
from dilm.core.errors import ConfigError
from dilm.launch.hydra_launcher import chosen_launcher, launch
from dilm.launch.plan import plan_study, plan_sweep
from dilm.launch.sweep import Composer, sweep
from dilm.scheduler.records import Call, begin

Compose = Callable[..., Config]


@pytest.mark.parametrize(
    "arguments",
    [
        ["dpc=5,10", "task=sst2", "method=lm,dilm"],
        ["seed=range(0,3)", "dpc=choice(1,2)", "task.name='a,b'"],
        ["dpc=1,2", "dpc=3", "++site.options={a: 1}", "~experiment", "learner@match.learner=tiny,minilm"],
        ["dpc=sort(10,5)", "seed=shuffle(range(1))", "evaluate.cells=[1,2],[3]"],
    ],
)
def test_combinations_are_those_of_hydras_own_sweeper(arguments: list[str]) -> None:
    (expected,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(arguments), None)
    assert sweep(arguments) == [list(overrides) for overrides in expected]


def test_a_pattern_is_the_options_that_match() -> None:
    tables = [name for name in options_of("experiment") if name.startswith("paper/")]
    assert sweep(["experiment=glob(paper/*)"]) == [[f"experiment={name}"] for name in tables] and len(tables) > 2


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("dpc=interval(1,5)", r"dpc=interval\(1,5\): a sweep takes values, such as dpc=1,2"),
        ("dpc=[1", r"no viable alternative|mismatched input"),
    ],
)
def test_what_is_no_list_of_values_is_one_line(argument: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        sweep([argument])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-m", "hydra/launcher=slurm", "dpc=1,2"], "slurm"),
        (["--multirun", "task=glob(s*)", "hydra/launcher=local"], "local"),
        (["-m", "dpc=1,2"], ""),
        (["-m", "hydra/launcher=basic"], ""),
        (["-m", "hydra/launcher=slurm", "--help"], ""),
        (["hydra.mode=MULTIRUN", "hydra/launcher=slurm"], "slurm"),
        (["-m", "--config-dir=mine", "dpc=1,2"], ""),
    ],
)
def test_the_launcher_is_the_one_that_the_keys_choose(arguments: list[str], expected: str) -> None:
    assert chosen_launcher(arguments, "train") == expected


def test_options_that_would_not_reach_the_jobs_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"--config-dir=mine does not reach the jobs of hydra/launcher; leave one"):
        chosen_launcher(["-m", "hydra/launcher=slurm", "--config-dir=mine"], "train")


def test_a_command_that_is_no_job_has_no_launcher() -> None:
    with pytest.raises(ConfigError, match=r"python -m dilm\.prefetch does not run as a job; leave hydra/launcher away"):
        launch("prefetch", ["-m", "hydra/launcher=slurm"], "slurm")


def test_what_is_done_or_being_made_is_not_sent_again(tiny: Compose, tiny_cache: Path, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    keys = ["experiment=tiny", f"root={root}", f"cache={tiny_cache}", "threads=1", "method=random", "dpc=2,3,4"]
    study, known = plan_sweep("generate", keys, "slurm")
    assert known == []
    (planned,) = study.arrays  # jobs that ask for the same are one array
    assert [calls[0].overrides[-1] for calls in planned.array.jobs] == ["dpc=2", "dpc=3", "dpc=4"]
    assert planned.array.asked["name"] == "dilm-generate"

    configs = [tiny("method=random", f"dpc={dpc}") for dpc in (2, 3)]
    done, running = (dataset_artifact(config, content_hash(config)) for config in configs)
    done.folder.mkdir(parents=True)
    name = f"{running.folder.parent.name}/{running.folder.name}"
    job = begin(root, (Call("generate", (), "tiny", {"generate": [name]}),))  # of this process, which lives
    study, known = plan_sweep("generate", keys, "slurm")
    assert [(call.overrides[-1], names) for call, names in known] == [("dpc=2", []), ("dpc=3", [job.name])]
    assert [calls[0].overrides[-1] for calls in study.arrays[0].array.jobs] == ["dpc=4"]
    study, known = plan_sweep("generate", [*keys, "force=true"], "slurm")
    assert known == [] and len(study.arrays[0].array.jobs) == 3
    units = plan_study(["generate"], [*keys, "force=true"]).arrays
    assert sum(len(planned.array.jobs) for planned in units) == 3


def test_combinations_that_ask_for_other_machines_are_arrays_of_their_own(tmp_path: Path) -> None:
    keys = ["experiment=tiny", f"root={tmp_path}", "dpc=2,3", "method=random", "launcher.cpus=1,4", "site.gpus=0"]
    study, _ = plan_sweep("generate", keys, "slurm")
    assert [(planned.array.asked["cpus_per_task"], len(planned.array.jobs)) for planned in study.arrays] == [
        (1, 2),
        (4, 2),
    ]
    with pytest.raises(ConfigError, match=r"root is a and b; all jobs of a study write below one root"):
        plan_sweep("generate", ["experiment=tiny", "root=a,b"], "slurm")


def test_a_report_is_one_job(tmp_path: Path) -> None:
    study, known = plan_sweep("collect", [f"root={tmp_path}"], "slurm")
    ((call,),) = study.arrays[0].array.jobs
    assert known == [] and (call.makes, call.task) == ({"collect": ["report"]}, "")


def test_a_large_sweep_is_composed_much_faster_than_by_hydra_alone() -> None:
    """By the processor's time of one combination, so that a thousand are planned in seconds."""

    def seconds(compose: Callable[[list[str]], Config], n: int) -> float:
        compose([*keys, "dpc=1"])  # what is loaded and read once
        began = time.process_time()
        assert [compose([*keys, f"dpc={dpc}"]).dpc for dpc in range(1, n + 1)] == list(range(1, n + 1))
        return (time.process_time() - began) / n

    keys = ["experiment=paper", "method=lm"]
    assert 4 * seconds(Composer().config, 60) < seconds(lambda keys: typed(composed(keys)), 6)
