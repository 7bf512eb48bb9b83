"""Checkpoints, from which a killed training resumes exactly.

They are written beside the artifact in the making, to `<artifact>.state/step-N/`, and removed when it is complete. Each
has the engine's files, the stage's state, the metrics so far, and a manifest, written last, with every file's checksum:
a checkpoint that is cut short or altered is skipped, with a warning, for the one before it.
"""

import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dilm.artifacts.artifact import METRICS_FILE, Artifact
from dilm.config.schema import CheckpointConfig
from dilm.core import signals
from dilm.core.errors import ConfigError, TrainingError
from dilm.core.io import TEMPORARY, disk_full_named, new_folder, read_json, sha256_file, temporary_name, write_json
from dilm.core.signals import Stopped
from dilm.distributed.world import World
from dilm.training.deepspeed import STATE_TAG, DeepSpeedEngine
from dilm.training.engine import Engine

MANIFEST_FILE = "manifest.json"
STAGE_FILE = "stage.pt"
ENGINE_FOLDER = "engine"
SHARDED = ("zero1", "zero2", "zero3")  # whose checkpoints are cut by ranks


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is whole."""

    folder: Path
    step: int
    engine: str  # that wrote it: torch or zero0 to zero3
    ranks: int


class Checkpoints:
    """The checkpoints of one training. Every method is collective."""

    def __init__(self, artifact: Artifact, config: CheckpointConfig, world: World) -> None:
        self.folder = artifact.state
        self.config, self.world = config, world
        self._last = time.monotonic()
        self._told = self._again = False

    def due(self, step: int) -> bool:
        """Whether to write one after this step.

        By the number of steps, by the main process's clock (`checkpoint.minutes`), or for a signal that any rank got.
        """
        minutes = self.config.minutes
        late = self.world.main and minutes is not None and time.monotonic() - self._last >= 60 * minutes
        late, self._told, self._again = self.world.any(late, signals.told(), signals.told_again())
        return late or self._told or (self.config.steps is not None and step % self.config.steps == 0)

    def save(self, step: int, engine: Engine, stage: dict[str, Any], metrics: Path) -> None:
        """Write one: all ranks into one temporary folder, which is then renamed. Older ones are removed.

        `stage` is the stage's state, `metrics` the file of metrics so far. Raises Stopped, on all ranks, where a signal
        asked the run to stop, and DiskFullError where there is no space.
        """
        final = self.folder / f"step-{step:08d}"
        temporary = self.world.broadcast(temporary_name(final))
        about = {"step": step, "engine": kind(engine), "ranks": self.world.size}
        try:
            with disk_full_named(final):
                self._fill(temporary, engine, stage, metrics)
                if self.world.main:
                    _finish(temporary, final, about)
        finally:
            if self.world.main:
                shutil.rmtree(temporary, ignore_errors=True)
        if self.world.main:
            self._prune()
        self.world.barrier()
        self._last = time.monotonic()
        if self._told:
            raise Stopped(self._again)

    def _fill(self, folder: Path, engine: Engine, stage: dict[str, Any], metrics: Path) -> None:
        (folder / ENGINE_FOLDER).mkdir(parents=True, exist_ok=True)
        self.world.barrier()
        engine.save(folder / ENGINE_FOLDER)
        self.world.barrier()
        if self.world.main:
            torch.save(stage, folder / STAGE_FILE)
            if metrics.exists():
                shutil.copyfile(metrics, folder / METRICS_FILE)

    def resume(self, build: Callable[[bool], Engine], metrics: Path) -> tuple[Engine, int, dict[str, Any]]:
        """Build the engine, and bring it and the metrics back to the newest whole checkpoint.

        `build`'s argument says whether the engine is to read a universal checkpoint. Returns the engine, the steps
        already taken, and the stage's state (empty at the start). Raises ConfigError where another kind of engine wrote
        it, and TrainingError where it can't be converted for this number of ranks.
        """
        newest = self.world.broadcast(_newest(self.folder) if self.world.main else None)
        if newest is None:
            return build(False), 0, {}
        universal = newest.ranks != self.world.size and newest.engine in SHARDED
        if universal:
            self._convert(newest)
        engine = build(universal)
        if kind(engine) != newest.engine:
            raise ConfigError(
                f"{newest.folder} was written by engine={newest.engine}, and engine={kind(engine)} can't read it; "
                f"go on with engine={newest.engine}, or remove {self.folder} to begin anew."
            )
        engine.load(newest.folder / ENGINE_FOLDER)
        if self.world.main:
            print(f"going on from {newest.folder}")
            if (newest.folder / METRICS_FILE).exists():
                shutil.copyfile(newest.folder / METRICS_FILE, metrics)
        return engine, newest.step, torch.load(newest.folder / STAGE_FILE, weights_only=True, map_location="cpu")

    def _convert(self, checkpoint: Checkpoint) -> None:
        """Write a universal checkpoint beside the engine's own."""
        source = checkpoint.folder / ENGINE_FOLDER / STATE_TAG
        target = source.with_name(f"{STATE_TAG}_universal")
        failure = _to_universal(source, target) if self.world.main and not target.exists() else None
        if failure := self.world.broadcast(failure):
            raise TrainingError(f"{checkpoint.folder} can't be converted for {self.world.size} ranks: {failure}")

    def _prune(self) -> None:
        for old in _folders(self.folder)[self.config.keep :]:
            shutil.rmtree(old, ignore_errors=True)


def kind(engine: Engine) -> str:
    """The kind of an engine, torch or zero0 to zero3: what wrote a checkpoint must read it."""
    return f"zero{engine.stage}" if isinstance(engine, DeepSpeedEngine) else "torch"


def _folders(folder: Path) -> list[Path]:
    """The checkpoints' folders, newest first."""
    return sorted(folder.glob("step-????????"), reverse=True)


def _newest(folder: Path) -> Checkpoint | None:
    for leftover in folder.glob(f"*{TEMPORARY}*"):
        shutil.rmtree(leftover, ignore_errors=True)  # of a killed process
    for path in _folders(folder):
        try:
            manifest = _verified(path)
        except (OSError, ValueError, KeyError) as error:
            warnings.warn(f"{path} is not whole ({error}); taking the one before.", stacklevel=2)
            continue
        return Checkpoint(path, manifest["step"], manifest["engine"], manifest["ranks"])
    return None


def _verified(path: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = read_json(path / MANIFEST_FILE)
    for name, digest in manifest["files"].items():
        if sha256_file(path / name) != digest:
            raise ValueError(f"{name} is altered")
    return manifest


def _finish(temporary: Path, final: Path, about: dict[str, Any]) -> None:
    files = sorted(path for path in temporary.rglob("*") if path.is_file())
    digests = {str(path.relative_to(temporary)): sha256_file(path) for path in files}
    write_json(temporary / MANIFEST_FILE, about | {"files": digests})
    with new_folder(final) as ready:
        for entry in sorted(temporary.iterdir()):
            entry.rename(ready / entry.name)


def _to_universal(source: Path, target: Path) -> str | None:
    """DeepSpeed's conversion, in a separate process; the last line of its errors, or None where it went well."""
    temporary = temporary_name(target)
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    command += ["--input_folder", str(source), "--output_folder", str(temporary)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        shutil.rmtree(temporary, ignore_errors=True)
        return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    temporary.rename(target)
    return None
