"""The command line as a user meets it: one line and exit 2 for what they can mend, nothing written."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import forking
import pytest

from dilm.config.compose import check_override, load_task, rewrite
from dilm.core.errors import ConfigError
from dilm.data.corpus import find_place

REPOSITORY = Path(__file__).resolve().parents[2]


OFFLINE = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def dilm(command: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command from its start, with all that imports might say."""
    return subprocess.run(
        [sys.executable, "-m", f"dilm.{command}", *arguments],
        cwd=cwd,
        env=os.environ | OFFLINE,
        capture_output=True,
        text=True,
        timeout=300,
    )


def forked(command: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The same where what it makes is looked at."""
    return forking.run("-m", f"dilm.{command}", *arguments, cwd=cwd, env=os.environ | OFFLINE)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("tsak=sst2", "tsak is unknown. Did you mean 'task'?"),
        ("task=sst3", "task 'sst3' is unknown. Did you mean 'sst2'?"),
        ("task=sst2,sst3", "task 'sst3' is unknown"),
        ("learner=bert_bse", "learner 'bert_bse' is unknown. Did you mean 'bert_base'?"),
        ("learner@match.learner=minilmm", "learner 'minilmm' is unknown. Did you mean 'minilm'?"),
        ("pretrain.stpes=3", "pretrain.stpes is unknown. Did you mean 'steps'?"),
        ("dpc.x=3", "dpc.x is unknown: dpc has no parts."),
        ("+foo=3", "foo is unknown."),
        ("experiment=quickstat", "experiment 'quickstat' is unknown. Did you mean 'quickstart'?"),
    ],
)
def test_unknown_keys_and_options_get_a_suggestion(argument: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_override(argument)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "argument",
    [
        "task=sst2,qqp",
        "dpc=5,10",
        "hydra/launcher=basic",
        "hydra.job.chdir=true",
        "-m",
        "--help",
        "experiment=null",
        "task.path=/x",
        "~experiment",
    ],
)
def test_known_ones_pass(argument: str) -> None:
    check_override(argument)


def test_parts_that_are_groups_take_an_option() -> None:
    assert rewrite("match.learner=minilm") == "learner@match.learner=minilm"
    assert rewrite("generate.encoder=minilm") == "learner@generate.encoder=minilm"
    assert rewrite("match.learner.lr=1") == "match.learner.lr=1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dpc=five"], "dpc"),
        (["method=none"], "method 'none' is unknown"),
        (["task=sst2", "task.path=nowhere"], "nowhere/train.tsv.gz: there is no such file"),
        (["method=lm"], "lm-tiny-"),
        (["method=random", "dpc=5000"], "dpc=5000, but label 'negative' has only"),
    ],
)
def test_one_line_exit_two_and_nothing_written(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = dilm("generate", "experiment=tiny", f"cache={tmp_path / 'cache'}", *arguments, cwd=tmp_path)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1
    assert message in lines[0]
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file() and "logs" not in path.parts]


def test_a_missing_parent_names_the_command_that_makes_it(tmp_path: Path) -> None:
    done = forked("evaluate", "experiment=tiny", "method=random", f"cache={tmp_path}", cwd=tmp_path)
    assert done.returncode == 2
    keys = f"experiment=tiny method=random cache={tmp_path}"
    assert done.stderr.rstrip().endswith(f"Make it with: python -m dilm.generate {keys}")
    done = forked("train", "experiment=tiny", "stages=[match]", f"cache={tmp_path}", cwd=tmp_path)
    assert done.returncode == 2  # the same stages would lead here again
    assert done.stderr.rstrip().endswith(f"Make it with: python -m dilm.train experiment=tiny cache={tmp_path}")


def test_other_jobs_of_a_multirun_go_on_and_the_status_tells(tmp_path: Path) -> None:
    overrides = ["-m", "experiment=tiny", "method=lm,random", f"cache={tmp_path}"]
    done = forked("generate", *overrides, cwd=tmp_path)
    assert done.returncode == 2
    assert "method=lm: MissingArtifactError" in done.stderr or "method=lm" in done.stderr
    assert len(list((tmp_path / "runs" / "tiny").glob("random-dpc4-*"))) == 1


def test_help_names_groups_and_keys_without_loading_torch(tmp_path: Path) -> None:
    done = dilm("train", "--help", cwd=tmp_path)
    assert done.returncode == 0
    for word in (
        "gradient matching",
        "  task= ",
        "sst2",
        "pretrain.steps=80000",
        "python -m dilm.train -m",
        "Exit status",
    ):
        assert word in done.stdout


def test_help_that_nobody_reads_to_its_end_is_no_error(tmp_path: Path) -> None:
    """As behind `| head -1`: the pipe is closed before anything is written."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "dilm.train", "--help"], cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL], ids=lambda sent: sent.name)
def test_a_stopped_command_leaves_nothing_under_a_final_name_and_a_rerun_ends(
    tmp_path: Path, sent: signal.Signals
) -> None:
    arguments = ["experiment=tiny", "stages=[pretrain]", f"cache={tmp_path / 'cache'}", "pretrain.steps=300"]
    process = subprocess.Popen(
        [sys.executable, "-m", "dilm.train", *arguments],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    folder = tmp_path / "runs" / "tiny"
    deadline = time.monotonic() + 120
    while not list(folder.glob("*.tmp-*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=60)
    left = [path.name for path in folder.iterdir()]
    if sent == signal.SIGINT:
        assert process.returncode == 130
        assert errors == "interrupted; the same command goes on from what is complete\n"
        assert left == []
    else:
        assert process.returncode == -signal.SIGKILL
        assert all(".tmp-" in name or ".claim." in name for name in left)

    done = forked("train", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (made,) = folder.iterdir()
    assert {"model.safetensors", "config.json", "tokenizer.json", "metrics.jsonl", "provenance.json"} <= {
        path.name for path in made.iterdir()
    }


@pytest.mark.parametrize("command", ["train", "generate"])
def test_a_full_disk_is_one_line_and_leaves_nothing(tiny_disk: Path, tmp_path: Path, command: str) -> None:
    if command == "generate":
        (tiny_disk / "filler").write_bytes(b"0" * 30_000)
    few = ["pretrain.steps=2", "stages=[pretrain]", "method=random", "dpc=100", "n_datasets=20"]
    done = dilm(
        command, "experiment=tiny", f"root={tiny_disk / 'runs'}", f"cache={tmp_path / 'cache'}", *few, cwd=tmp_path
    )
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "no space is left on the device" in done.stderr
    left = {path.name for path in (tiny_disk / "runs").glob("tiny/*")}
    assert left == set()


def test_a_multirun_over_the_papers_tasks_needs_no_slurm(tmp_path: Path) -> None:
    if find_place(load_task("qqp"), "train", Path("none")) is None:
        pytest.skip("the rows of SST-2, QQP and MNLI can't be had here")
    overrides = [
        "-m",
        "experiment=tiny",
        "task=sst2,qqp,mnli",
        "stages=[pretrain]",
        "pretrain.steps=2",
        f"cache={tmp_path}",
    ]
    done = forked("train", *overrides, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.parent.name for path in tmp_path.glob("runs/*/lm-tiny-*")) == ["mnli", "qqp", "sst2"]


def test_prefetch_fills_the_cache_and_a_second_run_finds_it(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = forked("prefetch", "experiment=tiny", f"cache={cache}", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "task tiny: 1200 train rows (built)" in first.stdout
    found = sorted((cache / "models").iterdir())
    assert len(found) == 2
    assert all(str(folder) in first.stdout or folder.name.startswith("tiny-") for folder in found)
    again = forked("prefetch", "experiment=tiny", f"cache={cache}", cwd=tmp_path)
    assert again.stdout == first.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["nowhere"], "nowhere/rows is not there yet"), ([], "the following arguments are required: root")],
)
def test_collect_tells_what_is_missing(arguments: list[str], message: str, tmp_path: Path) -> None:
    collect = [sys.executable, str(REPOSITORY / "tools" / "collect.py"), *arguments]
    done = subprocess.run(collect, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "report").exists()
