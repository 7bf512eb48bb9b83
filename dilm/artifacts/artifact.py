"""Artifacts: what stands under its final name is complete, made once, and tells how it was made."""

import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from dilm import __version__
from dilm.artifacts import locks
from dilm.config.schema import Config, plain
from dilm.core import signals
from dilm.core.errors import MissingArtifactError
from dilm.core.io import REPOSITORY, TEMPORARY, new_folder, read_json, write_json
from dilm.core.signals import Stopped
from dilm.distributed.world import ALONE, World
from dilm.scheduler.job import job_id, restarts

POLL_SECONDS = 1.0
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "scikit-learn", "h5py", "hydra-core", "datasets")


@dataclass(frozen=True)
class Artifact:
    """Where an artifact is, or will be, and what determines it."""

    folder: Path
    key: str
    science: dict[str, Any]  # what the key hashes
    command: str  # makes it

    @property
    def exists(self) -> bool:
        """Whether it is there: what stands under its final name is complete."""
        return self.folder.is_dir()

    @property
    def state(self) -> Path:
        """Where the checkpoints stand while it is being made."""
        return self.folder.with_name(f"{self.folder.name}.state")

    def require(self) -> Path:
        """Its folder. Raises MissingArtifactError, which names the command that makes it."""
        if not self.exists:
            raise MissingArtifactError(str(self.folder), self.command)
        return self.folder


def make(
    artifact: Artifact,
    build: Callable[[Path], None],
    config: Config,
    say: Callable[[str], None] = print,
    world: World = ALONE,
) -> bool:
    """Make an artifact unless it is there; True if this call made it.

    `build` fills a temporary folder, the same on all ranks, which gets the final name at the end. Another process that
    is making the same artifact is waited for; where it dies, this one takes over.
    """
    folder = artifact.folder
    claim = folder.with_name(f"{folder.name}.claim")
    tell = say if world.main else _silent
    waiting = False
    force = config.force and not _made_by_this_job(artifact)
    if world.broadcast(artifact.exists and not force):
        tell(f"found {folder}")
        return False
    while True:
        if world.broadcast(signals.told()):
            raise Stopped(world.broadcast(signals.told_again()))
        with locks.held(claim) if world.main else nullcontext(False) as won:
            found, won = world.broadcast((artifact.exists and (waiting or not force), won))
            if found:
                tell(f"found {folder}")
                return False
            if won:
                _build(artifact, build, config, world)
                tell(f"wrote {folder}")
                return True
        if not waiting:
            tell(f"{folder} is being made by {locks.holder(claim)}; waiting for it")
            waiting = True
        time.sleep(POLL_SECONDS)


def _made_by_this_job(artifact: Artifact) -> bool:
    """Whether an earlier attempt of this very job has made it, before the job was queued again."""
    if not restarts() or not artifact.exists:
        return False
    made_by: object = read_json(artifact.folder / "provenance.json")["job"]
    return made_by == job_id()


def _silent(line: str) -> None:
    """What ranks other than the main one say."""


def _build(artifact: Artifact, build: Callable[[Path], None], config: Config, world: World) -> None:
    if world.main:
        for leftover in artifact.folder.parent.glob(f"{artifact.folder.name}{TEMPORARY}*"):
            shutil.rmtree(leftover, ignore_errors=True)  # of a killed process: the claim says that none is alive
    began = time.monotonic()
    with new_folder(artifact.folder) if world.main else nullcontext(artifact.folder) as temporary:
        build(world.broadcast(temporary))
        if world.main:
            seconds = round(time.monotonic() - began, 3)  # of the attempt that completed it
            write_json(temporary / "provenance.json", provenance(artifact, config) | {"seconds": seconds})
    if world.main:
        shutil.rmtree(artifact.state, ignore_errors=True)
    world.broadcast(None)  # no rank goes on before the artifact has its name


def provenance(artifact: Artifact, config: Config) -> dict[str, Any]:
    """How an artifact was made: key and what it hashes, resolved configuration, code and package versions."""
    return {
        "key": artifact.key,
        "science": artifact.science,
        "config": plain(config),
        **code_and_packages(),
        "job": job_id(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def code_and_packages() -> dict[str, Any]:
    """The version of this code, and of the packages that it stands on."""
    return {
        "code": {"version": __version__, **_git_state()},
        "packages": {name: metadata.version(name) for name in PACKAGES},
    }


def _git_state() -> dict[str, Any]:
    """Commit and whether files differ from it; nothing where the package is not a checkout."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "--no-optional-locks", "-C", str(REPOSITORY), *arguments],
                capture_output=True,
                text=True,
                timeout=20,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit, status = git("rev-parse", "HEAD"), git("status", "--porcelain")
    return {} if commit is None else {"commit": commit, "dirty": bool(status)}


METRICS_FILE = "metrics.jsonl"
