"""Artifacts are made once, and whole."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dilm.artifacts import artifact as artifact_module
from dilm.artifacts.artifact import Artifact, make
from dilm.config.schema import plain
from dilm.core.errors import DiskFullError
from dilm.core.io import TEMPORARY, read_json
from tests.unit.artifacts.test_fingerprint import tiny_config


@pytest.fixture
def artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    monkeypatch.setattr(artifact_module, "_git_state", dict)
    monkeypatch.setattr(artifact_module, "POLL_SECONDS", 0.02)
    return Artifact(tmp_path / "tiny" / "toy-0123", "0123", {"stage": "toy"}, "make toy")


def building(content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "file").write_text(content) and None


def never(folder: Path) -> None:
    raise AssertionError("it is there already")


def beside(artifact: Artifact) -> list[str]:
    parent = artifact.folder.parent
    return sorted(path.name for path in parent.iterdir()) if parent.exists() else []


def test_an_artifact_is_made_once_and_then_found(artifact: Artifact) -> None:
    said: list[str] = []
    assert make(artifact, building("first"), tiny_config(), said.append)
    assert artifact.exists
    assert not make(artifact, never, tiny_config(), said.append)
    assert (artifact.folder / "file").read_text() == "first"
    assert said == [f"wrote {artifact.folder}", f"found {artifact.folder}"]
    assert beside(artifact) == ["toy-0123"]


def test_force_makes_it_again(artifact: Artifact) -> None:
    make(artifact, building("first"), tiny_config())
    assert make(artifact, building("second"), tiny_config(force=True))
    assert (artifact.folder / "file").read_text() == "second"
    assert beside(artifact) == ["toy-0123"]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_a_build_that_fails_leaves_nothing(artifact: Artifact, kind: type[BaseException]) -> None:
    def fail(folder: Path) -> None:
        (folder / "file").write_text("half")
        raise kind

    with pytest.raises(kind):
        make(artifact, fail, tiny_config())
    assert beside(artifact) == []
    assert make(artifact, building("whole"), tiny_config())


def test_a_forced_build_that_fails_leaves_the_old_artifact(artifact: Artifact) -> None:
    make(artifact, building("old"), tiny_config())
    with pytest.raises(AssertionError):
        make(artifact, never, tiny_config(force=True))
    assert (artifact.folder / "file").read_text() == "old"
    assert beside(artifact) == ["toy-0123"]


def test_a_full_disk_names_the_artifact_and_leaves_nothing(artifact: Artifact) -> None:
    def fill(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(DiskFullError, match="toy-0123: no space is left"):
        make(artifact, fill, tiny_config())
    assert beside(artifact) == []


def test_provenance_tells_how_it_was_made(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact_module, "_git_state", lambda: {"commit": "12ab", "dirty": True})
    config = tiny_config(dpc=7)
    make(artifact, building("first"), config)
    told = read_json(artifact.folder / "provenance.json")
    assert (told["key"], told["science"], told["config"]) == ("0123", {"stage": "toy"}, plain(config))
    assert told["code"] == {"version": artifact_module.__version__, "commit": "12ab", "dirty": True}
    assert set(told["packages"]) >= {"torch", "transformers", "numpy"}
    assert time.strptime(told["time"], "%Y-%m-%dT%H:%M:%SZ")


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_the_state_of_the_code_is_read_from_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_OPTIONAL_LOCKS", "0")
    state = artifact_module._git_state()
    assert state == {} or (len(state["commit"]) == 40 and isinstance(state["dirty"], bool))


def test_without_git_provenance_has_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert artifact_module._git_state() == {}


# Making among processes. A builder tells that it began, waits for a file named `go`, and appends to a common log.

BUILDER = """
import os, sys, time
from pathlib import Path
from dilm.artifacts import artifact as module
from dilm.config.schema import Config

module.POLL_SECONDS = 0.02
module._git_state = dict
folder, force = Path(sys.argv[1]), sys.argv[2] == "force"
artifact = module.Artifact(folder, "0123", {"stage": "toy"}, "make toy")


def build(temporary):
    (temporary / "first").write_text("whole")
    print("building", flush=True)
    while not (folder.parent / "go").exists():
        time.sleep(0.01)
    (temporary / "second").write_text("whole")
    with open(folder.parent / "log", "a") as log:
        log.write(f"{os.getpid()}\\n")


made = module.make(artifact, build, Config(force=force), lambda said: print(said, flush=True))
print(f"made {made}", flush=True)
"""

Builder = subprocess.Popen[str]


def builder(artifact: Artifact, force: bool = False) -> Builder:
    command = [sys.executable, "-c", BUILDER, str(artifact.folder), "force" if force else ""]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def line_of(process: Builder) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def ended(process: Builder) -> list[str]:
    lines, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return lines.splitlines()


def test_a_killed_builder_leaves_nothing_under_the_name_and_the_next_one_takes_over(artifact: Artifact) -> None:
    process = builder(artifact)
    try:
        assert line_of(process) == "building"
        assert not artifact.exists
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    left = beside(artifact)
    assert "toy-0123" not in left
    assert any(name.startswith(f"toy-0123{TEMPORARY}") for name in left)
    assert make(artifact, building("whole"), tiny_config())
    assert beside(artifact) == ["toy-0123"]


def test_a_builder_killed_in_a_forced_build_leaves_the_old_artifact(artifact: Artifact) -> None:
    make(artifact, building("old"), tiny_config())
    process = builder(artifact, force=True)
    try:
        assert line_of(process) == "building"
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert (artifact.folder / "file").read_text() == "old"
    assert make(artifact, building("new"), tiny_config(force=True))
    assert beside(artifact) == ["toy-0123"]


@pytest.mark.parametrize("force", [False, True])
def test_two_processes_at_once_build_once(artifact: Artifact, force: bool) -> None:
    first = builder(artifact, force)
    try:
        assert line_of(first) == "building"
        second = builder(artifact, force)
        try:
            said = line_of(second)
            assert f"is being made by job {artifact_module.locks.job_id().rpartition('-')[0]}-{first.pid} " in said
            assert not artifact.exists
            (artifact.folder.parent / "go").touch()
            assert ended(first) == [f"wrote {artifact.folder}", "made True"]
            assert ended(second) == [f"found {artifact.folder}", "made False"]
        finally:
            second.kill()
            second.communicate()
    finally:
        first.kill()
        first.communicate()
    assert (artifact.folder.parent / "log").read_text() == f"{first.pid}\n"
    assert beside(artifact) == ["go", "log", "toy-0123"]


def test_a_waiting_process_takes_over_when_the_builder_is_killed(artifact: Artifact) -> None:
    first = builder(artifact)
    second = None
    try:
        assert line_of(first) == "building"
        second = builder(artifact)
        assert "waiting for it" in line_of(second)
        os.kill(first.pid, signal.SIGKILL)
        assert line_of(second) == "building"
        (artifact.folder.parent / "go").touch()
        assert ended(second) == [f"wrote {artifact.folder}", "made True"]
    finally:
        for process in (first, second):
            if process is not None:
                process.kill()
                process.communicate()
    assert beside(artifact) == ["go", "log", "toy-0123"]
    assert sorted(path.name for path in artifact.folder.iterdir()) == ["first", "provenance.json", "second"]
    assert json.loads((artifact.folder / "provenance.json").read_text())["key"] == "0123"
