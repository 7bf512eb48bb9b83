"""Trainings killed without warning go on from their last checkpoint, and end where they would have ended."""

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import forking
import psutil
import pytest
import torch
from safetensors.torch import load_file

from dilm.core.io import sha256_file

pytestmark = pytest.mark.dist
TRAIN = ["-m", "dilm.train", "experiment=tiny", "threads=1"]
PRETRAIN = ["stages=[pretrain]", "pretrain.steps=120", "checkpoint.steps=5"]
MATCH = ["match.outer_steps=4", "match.inner_steps=6", "match.learner_steps=4", "checkpoint.steps=2"]


def torchrun(n: int) -> list[str]:
    """What stands between Python and a command of `n` ranks; nothing for a process alone."""
    start = ["-m", "torch.distributed.run", "--nproc-per-node", str(n), "--rdzv-backend", "c10d"]
    return [*start, "--rdzv-endpoint", "127.0.0.1:0"] if n else []


def train(root: Path, cache: Path, *keys: str, ranks: int = 0) -> str:
    done = forking.run(*torchrun(ranks), *TRAIN, f"root={root}", f"cache={cache}", *keys)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def killed(root: Path, cache: Path, name: str, at_least: int, *keys: str, ranks: int = 0) -> None:
    """Start a training, and kill all its processes at some moment after it has written checkpoint `at_least`."""
    command = [sys.executable, *torchrun(ranks), *TRAIN, f"root={root}", f"cache={cache}", *keys]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 200
        while not any(step >= at_least for step in steps(root, name)):
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.05))
    finally:
        # torchrun gives each rank a session of its own.
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for member in family:
            member.kill()
        psutil.wait_procs(family)
        process.wait()
    assert not artifacts(root, name), "it was complete before it was killed"


def steps(root: Path, name: str) -> list[int]:
    return [int(path.name[5:]) for path in root.glob(f"tiny/{name}-*.state/step-????????")]


def artifacts(root: Path, name: str) -> list[Path]:
    return [path for path in root.glob(f"tiny/{name}-tiny-*") if len(path.name) == len(f"{name}-tiny-") + 12]


def artifact(root: Path, name: str) -> Path:
    (found,) = artifacts(root, name)
    return found


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_cache: Path) -> Path:
    """Both stages in one process, undisturbed."""
    root = tmp_path_factory.mktemp("whole") / "runs"
    train(root, tiny_cache, *PRETRAIN)
    train(root, tiny_cache, "pretrain.steps=120", *MATCH)
    return root


@pytest.mark.parametrize(("name", "at_least"), [("lm", 10), ("lm", 60), ("dilm", 2), ("dilm", 14)])
def test_one_process_ends_with_the_same_bytes(
    whole: Path, tiny_cache: Path, tmp_path: Path, name: str, at_least: int
) -> None:
    root = tmp_path / "runs"
    keys = PRETRAIN
    if name == "dilm":
        keys = ["pretrain.steps=120", *MATCH]
        shutil.copytree(artifact(whole, "lm"), root / "tiny" / artifact(whole, "lm").name)
    killed(root, tiny_cache, name, at_least, *keys)
    said = train(root, tiny_cache, *keys)
    assert "going on from" in said
    found, expected = artifact(root, name), artifact(whole, name)
    assert sha256_file(found / "model.safetensors") == sha256_file(expected / "model.safetensors")
    assert metrics(found) == metrics(expected)
    assert not steps(root, name)  # checkpoints go when the artifact is complete
    assert not list(root.rglob("*.tmp-*"))


def test_matching_with_a_pool_of_learners_ends_with_the_same_bytes(
    whole: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    keys = ["pretrain.steps=120", *MATCH, "match.learners=pool", "match.pool_size=2"]
    straight, root = tmp_path / "straight", tmp_path / "killed"
    for each in (straight, root):
        shutil.copytree(artifact(whole, "lm"), each / "tiny" / artifact(whole, "lm").name)
    train(straight, tiny_cache, *keys)
    train(root, tiny_cache, *keys, "match.trajectory=1", "stages=[learners]")  # as a job of an array does
    assert [path.name[:14] for path in root.glob("tiny/teacher-*")] == ["teacher-tiny-1"]
    killed(root, tiny_cache, "dilm", 14, *keys)
    assert "going on from" in train(root, tiny_cache, *keys)
    found, expected = artifact(root, "dilm"), artifact(straight, "dilm")
    assert sha256_file(found / "model.safetensors") == sha256_file(expected / "model.safetensors")
    assert metrics(found) == metrics(expected)


@pytest.mark.parametrize("stage", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_one_process_of_deepspeed_ends_with_the_same_bytes(tiny_cache: Path, tmp_path: Path, stage: int) -> None:
    """In bf16, whose masters, sums and moments are files of their own."""
    keys = ["stages=[pretrain]", "pretrain.steps=12", "checkpoint.steps=3", "precision=bf16", f"engine=zero{stage}"]
    train(tmp_path / "straight", tiny_cache, *keys)
    killed(tmp_path / "killed", tiny_cache, "lm", 6, *keys)
    assert "going on from" in train(tmp_path / "killed", tiny_cache, *keys)
    straight, resumed = (artifact(tmp_path / name, "lm") for name in ("straight", "killed"))
    assert sha256_file(resumed / "model.safetensors") == sha256_file(straight / "model.safetensors")
    assert metrics(resumed) == metrics(straight)


def distance(found: Path, expected: Path, start: Path) -> float:
    """Relative to how far training went: ‖Δ − Δ_ref‖ / ‖Δ_ref‖."""
    a, b, zero = (load_file(folder / "model.safetensors") for folder in (found, expected, start))
    assert a.keys() == b.keys()
    apart = sum(float((a[name] - b[name]).square().sum()) for name in b)
    moved = sum(float((b[name] - zero[name]).square().sum()) for name in b)
    return (apart / moved) ** 0.5


RANKS = ["generator.dropout=0.0", "pretrain.steps=12", "pretrain.optimizer.lr=1e-3", "checkpoint.steps=4"]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory, tiny_cache: Path) -> Path:
    """Pre-trained by two ranks, undisturbed."""
    root = tmp_path_factory.mktemp("two") / "runs"
    train(root, tiny_cache, "stages=[pretrain]", *RANKS, "engine=zero1", ranks=2)
    train(root, tiny_cache, "stages=[pretrain]", *RANKS[:1], "pretrain.steps=1", "pretrain.optimizer.lr=1e-30")
    return root


@pytest.mark.parametrize("stage", [1, pytest.param(2, marks=pytest.mark.slow), 3])
def test_a_checkpoint_of_two_ranks_resumes_with_one_and_with_four(
    two_ranks: Path, tiny_cache: Path, tmp_path: Path, stage: int
) -> None:
    keys = ["stages=[pretrain]", *RANKS, f"engine=zero{stage}"]
    killed(tmp_path / "killed", tiny_cache, "lm", 4, *keys, ranks=2)
    start, expected = sorted(artifacts(two_ranks, "lm"), key=lambda path: len(metrics(path)))
    for ranks in (1, 4):
        root = tmp_path / f"ranks{ranks}"
        shutil.copytree(tmp_path / "killed", root)
        shutil.rmtree(root / "tiny" / "claims", ignore_errors=True)
        said = train(root, tiny_cache, *keys, ranks=ranks)
        assert said.count("going on from") == 1
        assert distance(artifact(root, "lm"), expected, start) <= 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_a_bf16_checkpoint_resumes_with_other_ranks(
    two_ranks: Path, tiny_cache: Path, tmp_path: Path, stage: int
) -> None:
    """bf16 rounds each rank's sums: the end is that of an undisturbed run within 5% of the way."""
    keys = ["stages=[pretrain]", *RANKS, f"engine=zero{stage}", "precision=bf16"]
    train(tmp_path / "straight", tiny_cache, *keys, ranks=2)
    killed(tmp_path / "killed", tiny_cache, "lm", 4, *keys, ranks=2)
    assert train(tmp_path / "killed", tiny_cache, *keys, ranks=1).count("going on from") == 1
    start, _ = sorted(artifacts(two_ranks, "lm"), key=lambda path: len(metrics(path)))
    assert distance(artifact(tmp_path / "killed", "lm"), artifact(tmp_path / "straight", "lm"), start) <= 5e-2


@pytest.mark.parametrize("stage", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_two_ranks_go_on_matching(two_ranks: Path, tiny_cache: Path, tmp_path: Path, stage: int) -> None:
    """Pool, learner and generator come back on both ranks; without new texts, which rounding could change."""
    keys = [*RANKS, *MATCH, f"engine=zero{stage}", "match.regenerate_every=4", "match.optimizer.lr=1e-3"]
    roots = [tmp_path / name for name in ("straight", "killed")]
    _, parent = sorted(artifacts(two_ranks, "lm"), key=lambda path: len(metrics(path)))
    for root in roots:
        shutil.copytree(parent, root / "tiny" / parent.name)
    train(roots[0], tiny_cache, *keys, ranks=2)
    killed(roots[1], tiny_cache, "dilm", 8, *keys, ranks=2)
    assert train(roots[1], tiny_cache, *keys, ranks=2).count("going on from") == 1
    straight, resumed = (artifact(root, "dilm") for root in roots)
    assert distance(resumed, straight, parent) <= 1e-3
    ends = [[line["loss"] for line in metrics(folder) if "loss" in line] for folder in (resumed, straight)]
    assert ends[0] == pytest.approx(ends[1], rel=1e-3)


def test_weights_move_at_the_papers_learning_rate_in_bf16(whole: Path, tiny_cache: Path, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    shutil.copytree(artifact(whole, "lm"), root / "tiny" / artifact(whole, "lm").name)
    # The parent of a bf16 run is another artifact, of two steps here.
    keys = [
        "precision=bf16",
        "engine=zero1",
        "pretrain.steps=2",
        "match.optimizer.lr=3e-7",
        "match.optimizer.warmup=0.0",
    ]
    train(root, tiny_cache, *keys)
    after = load_file(artifact(root, "dilm") / "model.safetensors")
    (parent,) = (path for path in artifacts(root, "lm") if path.name != artifact(whole, "lm").name)
    before = load_file(parent / "model.safetensors")
    moved = {name: float((after[name] - before[name]).abs().max()) for name in after}
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    assert sum(distance > 0 for distance in moved.values()) > 0.9 * len(moved)
    assert max(moved.values()) <= 6 * 3e-7 * 1.1  # six updates of AdamW
    # In bf16 alone hardly any weight would have moved: one step is far below half a unit in the last place.
    rounded = [(before[name].bfloat16() != (before[name].bfloat16() - 3e-7)).float().mean() for name in before]
    assert float(torch.stack(rounded).mean()) < 0.2
