"""Stages that are told to stop keep what they have, and go on from there to the same end."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dilm.artifacts.rows import read_rows
from dilm.config.schema import Config
from dilm.core import signals
from dilm.core.io import sha256_file
from dilm.core.signals import Stopped
from dilm.models.sampling import Sampler
from dilm.stages import evaluate, generate, train

Compose = Callable[..., Config]


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Arrange that USR2 has come at the n-th look from now on."""

    def arrange(n: int) -> None:
        looks = iter(range(1_000_000))

        def check_stop() -> None:
            if next(looks) >= n:
                raise Stopped(again=True)

        monkeypatch.setattr(signals, "check_stop", check_stop)

    yield arrange


def test_writing_goes_on_with_the_next_batch(
    tiny: Compose, stop_after: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keys = ["method=lm", "generate.batch=20", "pretrain.steps=100"]
    calm, cut = (tiny(*keys, f"root={tmp_path / name}") for name in ("calm", "cut"))
    for config in (calm, cut):
        train.pretrain(config)
    expected = generate.run(calm)
    stop_after(4)
    with pytest.raises(Stopped):
        generate.run(cut)
    (state,) = (tmp_path / "cut").glob("tiny/candidates-*.state")
    assert len(list(state.glob("part-*"))) == 4
    assert not [path for path in (tmp_path / "cut").glob("tiny/*") if ".claim" in path.name or ".tmp-" in path.name]

    written: list[int] = []
    real = Sampler.sample

    def counted(self: Sampler, label: int, *rest: object) -> object:
        written.append(label)
        return real(self, label, *rest)  # type: ignore[arg-type]

    monkeypatch.undo()
    monkeypatch.setattr(Sampler, "sample", counted)
    found = generate.run(cut)
    assert len(written) == 2 * 5 - 4  # two labels of a hundred texts
    assert not state.exists()
    shards = [sorted(artifact.folder.glob("shard-*.h5")) for artifact in (found, expected)]
    assert [sha256_file(file) for file in shards[0]] == [sha256_file(file) for file in shards[1]] != []


def test_evaluating_keeps_the_cells_that_are_done(
    tiny: Compose, stop_after: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny("method=random", "evaluator=words", "n_datasets=3", "n_seeds=3")
    generate.run(config)
    stop_after(5)
    with pytest.raises(Stopped):
        evaluate.run(config)
    assert len(read_rows(Path(config.root))) == 5
    monkeypatch.undo()
    outcome = evaluate.run(config)
    assert (outcome.done, outcome.found, outcome.elsewhere) == (4, 5, 0)


def test_a_wait_for_another_process_can_be_stopped(tiny: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that waits for an artifact until its time ends is queued again."""
    from dilm.artifacts.fingerprint import pretrain_artifact
    from dilm.artifacts.locks import held
    from dilm.data.corpus import split_hash

    config = tiny()
    artifact = pretrain_artifact(config, split_hash(config.task, "train", Path(str(config.cache))))
    with held(artifact.folder.with_name(f"{artifact.folder.name}.claim")):
        monkeypatch.setattr(signals, "_told", signal.SIGUSR2)
        with pytest.raises(Stopped) as caught:
            train.pretrain(config)
    assert caught.value.again
