"""The commands under torchrun: what several processes write is what one process writes."""

import shutil
import subprocess
from pathlib import Path

import forking
import pytest
from safetensors.torch import load_file

from dilm.artifacts.rows import read_rows
from dilm.artifacts.shards import read_shards

pytestmark = pytest.mark.dist
KEYS = ["experiment=tiny", "threads=1", "pretrain.steps=100", "checkpoint.steps=10", "generate.batch=16"]


def run(root: Path, cache: Path, command: str, *keys: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    command_line = ["-m", f"dilm.{command}", *KEYS, *keys, f"root={root}", f"cache={cache}"]
    if ranks == 1:
        return forking.run(*command_line)
    start = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--rdzv-backend", "c10d"]
    return forking.run(*start, "--rdzv-endpoint", "127.0.0.1:0", *command_line)


def ended(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_cache: Path) -> Path:
    root = tmp_path_factory.mktemp("commands") / "runs"
    assert ended(run(root, tiny_cache, "train")).count("wrote") == 2
    return root


def test_two_ranks_write_the_same_shards_and_share_the_cells(trained: Path, tiny_cache: Path, tmp_path: Path) -> None:
    folders = []
    for ranks in (1, 2):
        root = tmp_path / f"ranks{ranks}"
        shutil.copytree(trained, root)
        said = ended(run(root, tiny_cache, "generate", ranks=ranks))
        assert said.count("wrote") == 2  # candidates and data sets, each told once
        ended(run(root, tiny_cache, "evaluate", "learner.freeze_encoder=true", ranks=ranks))
        assert [row.status for row in read_rows(root)] == ["done"] * 4
        folders.append(root)
    for name in ("candidates-dilm", "dilm-dpc4"):
        one, two = (next(root.glob(f"tiny/{name}-*")) for root in folders)
        assert read_shards(one).table.texts == read_shards(two).table.texts
        assert (one / "index.json").exists()
    values = [{row.cell.key: row.value for row in read_rows(root)} for root in folders]
    assert values[0] == values[1]


def test_lm_and_dilm_differ_in_what_they_write(trained: Path, tiny_cache: Path, tmp_path: Path) -> None:
    """At the paper's learning rate, in bf16: the change survives export and reloading."""
    root = tmp_path / "runs"
    keys = ["precision=bf16", "engine=zero1", "match.optimizer.lr=3e-7", "match.optimizer.warmup=0.0"]
    ended(run(root, tiny_cache, "train", *keys))
    for method in ("lm", "dilm"):
        ended(run(root, tiny_cache, "generate", *keys, f"method={method}"))
    lm, dilm = (read_shards(next(root.glob(f"tiny/candidates-{method}-*"))) for method in ("lm", "dilm"))
    assert len(lm) > 0
    assert lm.nll.tolist() != dilm.nll.tolist()  # nor need as many of them be well-formed


def test_an_infinite_loss_stops_with_the_step_and_keeps_the_checkpoint(tiny_cache: Path, tmp_path: Path) -> None:
    keys = ["pretrain.optimizer.lr=1e18", "pretrain.optimizer.warmup=0.5", "checkpoint.steps=1"]
    done = run(tmp_path, tiny_cache, "train", *keys)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("TrainingError: pretrain: the loss is ")
    assert "lower pretrain.optimizer.lr" in line
    assert not list(tmp_path.glob("tiny/lm-tiny-????????????"))
    assert list(tmp_path.glob("tiny/lm-tiny-*.state/step-*/manifest.json"))


def test_a_typo_in_deepspeeds_keys_is_told_before_anything_is_loaded(tiny_cache: Path, tmp_path: Path) -> None:
    done = run(tmp_path, tiny_cache, "train", "engine=zero2", "engine.deepspeed.zero_optimization.overlap_com=true")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "ConfigError: engine.deepspeed.zero_optimization.overlap_com is unknown. Did you mean 'overlap_c"
    )
    assert not (tmp_path / "tiny").exists()


def test_two_ranks_imitate_what_one_does(tiny_cache: Path, tmp_path: Path) -> None:
    """What teaches is chosen once, and each update's texts are dealt: the same generator, but for rounding."""
    keys = ["ablation=imitation", "precision=fp32", "generator.dropout=0", "match.lm_batch=4"]
    keys += ["match.taught_sets=2", "match.taught_dpc=3"]
    ended(run(tmp_path / "parent", tiny_cache, "train", *keys, "stages=[pretrain]"))
    roots = [tmp_path / name for name in ("parent", "ranks1", "ranks2")]
    for ranks, root in enumerate(roots[1:], start=1):
        shutil.copytree(roots[0], root)
        assert ended(run(root, tiny_cache, "train", *keys, ranks=ranks)).count("wrote") == 1
    places = [next(root.glob(f"tiny/{name}-*")) for root, name in zip(roots, ("lm", "dilm", "dilm"), strict=True)]
    before, one, two = (load_file(place / "model.safetensors") for place in places)
    apart, moved = (sum(float((own[name] - one[name]).square().sum()) for name in one) for own in (two, before))
    assert moved > 0
    assert apart < 1e-4 * moved  # a hundredth of the way
