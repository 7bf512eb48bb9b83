"""What a job asks Slurm for, from a site's file and a run's keys."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dilm.config.compose import composed
from dilm.config.schema import LauncherConfig, SiteConfig
from dilm.core.errors import ConfigError
from dilm.core.io import CONF_FOLDER
from dilm.launch.submit import asked_for, gpus_of, request, setup_lines, with_site
from dilm.launch.sweep import Composer

SITE = SiteConfig(
    partition="gpu",
    cpu_partition="short",
    constraint="nvlink",
    gpu_type="a100",
    cpus=16,
    mem_gb=64,
    minutes={"train": 100, "collect": 5},
    modules=["cuda/12", "gcc"],
    setup=["ulimit -n 9999"],
    scratch="/tmp/$USER",
    options={"mail-type": "FAIL"},
)


def test_a_job_asks_for_what_the_site_says() -> None:
    assert request(SITE, LauncherConfig(), "train") == {
        "partition": "gpu",
        "constraint": "nvlink",
        "nodes": 1,
        "tasks_per_node": 1,
        "cpus_per_task": 16,
        "gpus": 1,
        "gres": "gpu:a100:1",
        "mem_gb": 64,
        "timeout_min": 100,
        "signal_delay_s": 300,
    }


def test_a_run_asks_for_more_or_less() -> None:
    asked = request(SITE, LauncherConfig(nodes=2, gpus=8, cpus=4, mem_gb=100, minutes=8), "train")
    assert (asked["nodes"], asked["tasks_per_node"], asked["gres"], asked["cpus_per_task"]) == (2, 8, "gpu:a100:8", 4)
    assert (asked["mem_gb"], asked["timeout_min"]) == (100, 8)
    assert asked["signal_delay_s"] == 240  # no more than half of the time
    assert gpus_of(asked) == 16 == gpus_of({"nodes": 2, "gpus_per_node": 8, "gres": None})
    alone = request(SITE, LauncherConfig(gpus=0, tasks=3), "evaluate")
    assert (alone["gres"], alone["tasks_per_node"], alone["partition"], alone["constraint"]) == (None, 3, "short", None)
    assert alone["timeout_min"] == 60 and gpus_of(alone) == 0


def test_collecting_takes_one_small_process() -> None:
    asked = request(SITE, LauncherConfig(nodes=2, gpus=8), "collect")
    assert (asked["nodes"], asked["tasks_per_node"], asked["gres"], asked["timeout_min"]) == (1, 1, None, 5)
    assert (asked["partition"], asked["constraint"], asked["mem_gb"], asked["cpus_per_task"]) == (
        "short",
        None,
        None,
        1,
    )


def test_shell_lines_come_in_their_order() -> None:
    strict, source, modules, *rest = setup_lines(SITE, "train")
    assert strict == "set -e" and source.endswith("/slurm/env.sh") and Path(source.split()[1]).is_file()
    assert modules == "module load cuda/12 gcc"
    assert rest == ["ulimit -n 9999", 'export TMPDIR="/tmp/$USER"; mkdir -p "$TMPDIR"']
    assert "export SLURM_KILL_BAD_EXIT=0 SLURM_WAIT=0" in setup_lines(SITE, "evaluate")
    assert setup_lines(SITE, "evaluate", "local") == setup_lines(SITE, "train")


def test_what_is_given_by_hand_is_added_to_the_sites() -> None:
    asked = with_site({"setup": ["date"], "additional_parameters": {"requeue": False}}, SITE, "train")
    assert asked["setup"][-1] == "date" and "ulimit -n 9999" in asked["setup"]
    assert asked["additional_parameters"] == {"requeue": False, "mail-type": "FAIL"}


@pytest.mark.parametrize("site", sorted(path.stem for path in (CONF_FOLDER / "site").glob("*.yaml")))
def test_every_sites_file_composes(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "ada")
    asked = asked_for([f"site={site}", "launcher.nodes=2", "launcher.gpus=4"], "train")
    assert (asked["nodes"], asked["tasks_per_node"], gpus_of(asked)) == (2, 4, 8)
    assert asked["additional_parameters"]["requeue"] is True
    assert Composer().config([f"site={site}"]).site.name == site


def test_a_sites_cache_is_that_of_every_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "ada")
    assert Composer().config(["site=a100_example"]).cache == "/scratch/ada/dilm"
    assert Composer().config(["site=a100_example", "cache=/x"]).cache == "/x"


def test_keys_by_hand_win() -> None:
    asked = asked_for(["hydra.launcher.partition=debug", "hydra.launcher.comment=hi"], "train")
    assert (asked["partition"], asked["comment"]) == ("debug", "hi")
    tree = composed(["launcher.minutes=7"], "slurm", "evaluate")
    assert OmegaConf.select(tree, "hydra.launcher.timeout_min") == 7


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+site.minutes.trian=3", "site.minutes names 'trian'. Did you mean 'train'?"),
        ("site.minutes.train=0", "site.minutes.train is 0"),
        ("launcher.nodes=0", "launcher.nodes is 0"),
        ("launcher.gpus=-1", "launcher.gpus is -1"),
    ],
)
def test_what_no_job_could_ask_for_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Composer().config([override])
    assert message in str(caught.value)


def test_a_sites_ways_are_not_in_what_is_published() -> None:
    from dilm.config.schema import plain

    assert "site" not in plain(Composer().config(["site.setup=['export TOKEN=secret']"]))
