"""Studies on a real Slurm: arrays cut to the cluster's size, failures counted and retried, chains, and templates."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from asking import all_ended, artifact, asked, jobs_of, rows_of, states, until
from conftest import CPUS, MAX_ARRAY_SIZE, REPOSITORY, Run

from dilm.artifacts.shards import read_shards, shard_table, write_shards
from dilm.core.io import read_json
from dilm.data.text_table import table

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm")]
WORDS = ["method=random", "evaluator=words"]
SHORT = ["pretrain.steps=100", "match.outer_steps=1", "match.inner_steps=1", "match.monitor_every=0"]


def status(run: Run, root: Path) -> dict[tuple[str, str], list[int]]:
    """Counts of done, running, queued and failed by stage and task, from the table that users read."""
    found = {}
    for line in run("tools/status.py", str(root)).stdout.splitlines():
        if line.startswith("│"):
            stage, task, *counts = [cell.strip() for cell in line.strip("│").split("│")][:6]
            found[stage, task] = [int(count or 0) for count in counts]
    return found


def spoil(folder: Path, datasets: range) -> None:
    """Give some data sets texts without a single word, which no counting of words can learn from."""
    shards = read_shards(folder)
    about = {name: value for name, value in read_json(folder / "index.json").items() if name in ("config", "science")}
    bare = [("!",) if number in datasets else text
            for number, text in zip(shards.dataset, shards.table.texts, strict=True)]  # fmt: skip
    rows = shard_table(
        table(shards.table.fields, bare, shards.table.labels),
        **{name: getattr(shards, name) for name in ("dataset", "index", "seed", "nll", "cluster")},
    )
    attributes = {"key": folder.name[-12:], "task": "tiny", "method": "random", "dpc": 4, "labels": ["a", "b"]}
    for file in folder.glob("*.h5"):
        file.unlink()
    write_shards(folder, rows, attributes, about)


@contextmanager
def nothing_starts() -> Iterator[None]:
    """For the block, jobs are queued and none is started."""
    update = ["scontrol", "update", "PartitionName=gpu"]
    subprocess.run([*update, "State=DOWN"], check=True)
    try:
        yield
    finally:
        subprocess.run([*update, "State=UP"], check=True)


def test_300_cells_in_30_jobs_of_which_a_tenth_fail(run: Run, root: Path, keys: list[str]) -> None:
    """... over arrays of at most eleven: the others are done, the counts right, and a retry runs exactly the failed."""
    grid = [*keys, *WORDS, "n_datasets=30", "n_seeds=10"]
    run("generate", *grid)
    spoil(artifact(root, "tiny/random-dpc4-*"), range(7, 10))

    plan = run("tools/submit.py", "evaluate", *grid, "launcher.cells_per_job=10", "--dry-run").stdout
    assert "300" in plan and "30 jobs" in plan and "nothing was queued" in plan
    assert len(jobs_of(root)) == 1  # the generation above
    with nothing_starts():  # so that none fails before it is asked what is in the queue
        run("tools/submit.py", "evaluate", *grid, "launcher.cells_per_job=10")
        again = run("tools/submit.py", "evaluate", *grid).stdout
    submitted = {name: job for name, job in jobs_of(root).items() if job.calls[0].command == "evaluate"}
    arrays = Counter(name.partition("_")[0] for name in submitted)
    assert sum(arrays.values()) == 30 and max(arrays.values()) <= MAX_ARRAY_SIZE and len(arrays) == 3

    assert "nothing to submit" in again  # all is in the queue
    until(all_ended, 300)
    assert status(run, root)["evaluate", "tiny"] == [270, 0, 0, 30]
    rows = rows_of(root)
    assert len(rows) == len({row["key"] for row in rows}) == 300
    assert {row["dataset"] for row in rows if row["status"] == "failed"} == {7, 8, 9}
    ends = Counter(states()[name] for name in submitted)
    assert ends == {"COMPLETED": 27, "FAILED": 3}

    failed = {str(row["key"]) for row in rows if row["status"] == "failed"}
    run("tools/status.py", str(root), "--retry-failed")
    until(all_ended, 300)
    again = Counter(str(row["key"]) for row in rows_of(root))
    assert {key for key, count in again.items() if count == 2} == failed
    assert again.total() == 330
    assert status(run, root)["evaluate", "tiny"] == [270, 0, 0, 30]


def test_two_relaunches_at_once_run_no_cell_twice(run: Run, root: Path, keys: list[str], slurm: Path) -> None:
    grid = [*keys, *WORDS, "n_datasets=10", "n_seeds=10"]
    run("generate", *grid)
    done = run("evaluate", *grid, f"evaluate.cells=[{','.join(map(str, range(5)))}]").stdout
    assert "5 cells evaluated" in done
    environment = os.environ | {"DILM_CACHE": str(root.parent / "cache")}
    command = [sys.executable, "-m", "dilm.evaluate", "-m", "hydra/launcher=slurm", *grid]
    both = [subprocess.Popen(command, cwd=root.parent, env=environment, stderr=subprocess.PIPE) for _ in range(2)]
    for process in both:
        process.communicate(timeout=200)
        assert process.returncode == 0
    rows = rows_of(root)
    assert len(rows) == len({row["key"] for row in rows}) == 100
    logs = "".join(path.read_text() for path in root.glob("jobs/*/*_log.out"))
    assert "5 found" in logs


def test_a_chain_ends_where_a_stage_fails(run: Run, root: Path, keys: list[str]) -> None:
    """The generator writes texts, but never enough well-formed ones for data sets of a thousand a class."""
    chain = [*keys, "method=lm", "dpc=1000", "pretrain.steps=5"]
    run("tools/submit.py", "train,generate,evaluate,collect", *chain)
    assert {job.state for job in jobs_of(root).values()} <= {"queued", "running"}
    until(all_ended, 300)
    by_command = {job.calls[0].command: name for name, job in jobs_of(root).items()}
    ends = {command: states()[name] for command, name in by_command.items()}
    assert ends == {"train": "COMPLETED", "generate": "FAILED", "evaluate": "CANCELLED", "collect": "CANCELLED"}
    counts = status(run, root)
    assert counts["pretrain", "tiny"] == [1, 0, 0, 0] and counts["generate", "tiny"] == [0, 0, 0, 1]
    assert counts["evaluate", "tiny"] == [0, 0, 0, 4]
    shown = run("tools/status.py", str(root)).stdout
    assert "DataError: only" in shown and f"never started: slurm-{by_command['generate']} did not end well" in shown
    plan = run("tools/status.py", str(root), "--retry-failed", "--dry-run").stdout
    assert re.search(r"generate tiny: 1 failed.*evaluate tiny: 4 failed", plan, re.DOTALL) and "pretrain" not in plan


def test_a_cancelled_chain_is_submitted_again_as_a_whole(run: Run, root: Path, keys: list[str], tmp_path: Path) -> None:
    """Also from another folder, and the report is made again when rows come."""
    chain = ["generate,evaluate,collect", *[key for key in keys if not key.startswith("root=")], *WORDS, "root=runs"]
    run("tools/submit.py", *chain)
    first = min(jobs_of(root), key=lambda name: int(name.partition("_")[0]))
    asked("scancel", first)
    until(all_ended)
    assert status(run, root) == {("generate", "tiny"): [0, 0, 0, 1], ("evaluate", "tiny"): [0, 0, 0, 4],
                                 ("collect", ""): [0, 0, 0, 1]}  # fmt: skip
    elsewhere = subprocess.run(
        [sys.executable, str(REPOSITORY / "tools" / "status.py"), str(root), "--retry-failed"], cwd="/", check=True
    )
    assert elsewhere.returncode == 0
    until(all_ended)
    assert status(run, root) == {("generate", "tiny"): [1, 0, 0, 0], ("evaluate", "tiny"): [4, 0, 0, 0],
                                 ("collect", ""): [1, 0, 0, 0]}  # fmt: skip
    assert "nothing to submit" in run("tools/submit.py", *chain).stdout
    for path in (root / "rows").glob("*.jsonl"):
        os.utime(path)
    assert "collect" in run("tools/submit.py", *chain, "--dry-run").stdout


def test_a_whole_study_and_its_report(run: Run, root: Path, keys: list[str]) -> None:
    pool = ["match.learners=pool", "match.pool_size=2"]
    grid = [*keys, "method=random,lm,dilm", *SHORT, *pool, "learner.freeze_encoder=true"]
    said = run("tools/submit.py", "train,generate,evaluate,collect", *grid).stdout
    assert said.count("generate tiny: ") == 3  # random at once, lm after pre-training, dilm after matching
    until(all_ended, 400)
    assert {states()[name] for name in jobs_of(root)} == {"COMPLETED"}
    assert status(run, root)["learners", "tiny"] == [2, 0, 0, 0]
    assert status(run, root)["evaluate", "tiny"] == [12, 0, 0, 0]
    assert "tiny, tiny (frozen encoder)" in (root / "report" / "tables.md").read_text()
    assert "nothing to submit" in run("tools/submit.py", "train,generate,evaluate,collect", *grid).stdout
    assert "GPU hours" in run("tools/status.py", str(root), "--cost").stdout
    key = rows_of(root)[0]["key"]
    log = run("tools/status.py", str(root), "--logs", str(key)).stdout
    assert "_log.err" in log


def test_what_is_missing_is_told_before_anything_is_queued(run: Run, root: Path, keys: list[str]) -> None:
    done = run("tools/submit.py", "evaluate", *keys, "method=dilm", status=2)
    assert "python tools/submit.py generate,evaluate" in done.stderr and not list(root.glob("jobs/*"))
    done = run("tools/submit.py", "trian", *keys, status=2)
    assert "ConfigError: stage 'trian' is unknown" in done.stderr
    done = run("tools/submit.py", "train", *keys, "tsak=sst2", status=2)
    assert "Did you mean 'task'?" in done.stderr
    assert "python tools/submit.py" in run("tools/status.py", str(root), status=2).stderr


def test_another_hosts_claim_is_taken_over_when_its_job_has_ended(run: Run, root: Path, keys: list[str]) -> None:
    from dilm.artifacts.locks import held, take

    claim = root / "claims" / "x"
    job = asked("sbatch", "--parsable", "--output=/dev/null", "--wrap=sleep 300").strip()
    until(lambda: states()[job] == "RUNNING")
    take(claim)
    file = claim.with_name("x.0")
    file.write_text(f'{{"job": "slurm-{job}", "host": "elsewhere", "pid": 1, "start": "1", "restarts": 0}}')
    with held(claim) as won:
        assert not won
    asked("scancel", job)
    until(lambda: states()[job] == "CANCELLED")
    from dilm.scheduler.slurm import _has_ended

    _has_ended.cache_clear()
    with held(claim) as won:
        assert won


TEMPLATES = sorted((REPOSITORY / "slurm").glob("*.sbatch"))


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_slurm_would_take_the_templates(template: Path) -> None:
    lines = template.read_text().splitlines()
    asked_for = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH --array")]
    limit = [] if not asked_for else ["--array=0-2"]  # this cluster takes arrays of eleven
    done = subprocess.run(["sbatch", "--test-only", *limit, str(template)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_templates_do_what_they_say(run: Run, root: Path, data: Path, tiny_cache: Path, tmp_path: Path) -> None:
    """The chain of `paper.sh` with tiny models, two tasks and methods, on stand-in GPUs."""
    checkout = tmp_path / "checkout"
    shutil.copytree(REPOSITORY / "slurm", checkout / "slurm")
    for name, array in (("pretrain", "0-0"), ("match", "0-0"), ("generate", "0-1"), ("evaluate_array", "0-1")):
        path = checkout / "slurm" / f"{name}.sbatch"
        text = re.sub(r"--array=\S+", f"--array={array}", path.read_text())
        text = text.replace("TASKS=(sst2 qqp mnli)", "TASKS=(tiny)").replace("(bert_base)", "(tiny)")
        text = re.sub(r"SIZES=\(.*\)", "SIZES=(5)", text).replace(
            "METHODS=(random k_centers lm dilm)", "METHODS=(random dilm)"
        )
        path.write_text(text.replace("dpc=5,10,20", "dpc=5").replace("--cpus-per-task=8", "--cpus-per-task=1"))
    environment = os.environ | {
        "DILM_DATA": str(data),
        "DILM_CACHE": str(tiny_cache),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "VIRTUAL_ENV": sys.prefix,
    }
    keys = [f"root={root}", *(key for key in CPUS if key.startswith(("experiment", "threads"))), *SHORT]
    paper = [str(checkout / "slurm" / "paper.sh"), *keys, "n_datasets=2", "n_seeds=1"]
    subprocess.run(paper, check=True, env=environment, cwd=tmp_path)
    until(all_ended, 500)
    ended = {job.calls[0].command: states()[name] for name, job in jobs_of(root).items()}
    assert ended == dict.fromkeys(("train", "generate", "evaluate", "collect"), "COMPLETED"), logs(checkout)
    assert status(run, root)["evaluate", "tiny"] == [4, 0, 0, 0]
    assert "tiny, tiny" in (root / "report" / "tables.md").read_text()


def logs(folder: Path) -> str:
    return "\n".join(path.read_text()[-1500:] for path in folder.glob("*.log"))


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_the_templates_are_clean() -> None:
    files = [str(path) for path in (REPOSITORY / "slurm").iterdir()]
    done = subprocess.run(["shellcheck", "-x", "-P", str(REPOSITORY / "slurm"), *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
