"""What a job's process does, however it was started: its rank, its record, and a truthful end.

Exit status: 0 done, 1 a bug (with its traceback), 2 something that the user can mend, 75 stopped by a signal and not
queued again, 130 interrupted. Torch-free: the commands load what they need.
"""

import errno
import logging
import os
import select
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import NoReturn

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from dilm.config.compose import one_line
from dilm.config.schema import Config
from dilm.core import signals
from dilm.core.errors import ConfigError, DilmError, DiskFullError, PlaceError, SchedulerError
from dilm.core.io import is_disk_full
from dilm.core.signals import Stopped
from dilm.launch.sweep import Composer
from dilm.scheduler import records
from dilm.scheduler.job import current_job, job_id, rank_variables, restarts, scheduler_of, submitted_job
from dilm.scheduler.records import Call

BUG, USER_ERROR, STOPPED, INTERRUPTED, READER_GONE = 1, 2, 75, 130, 141
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd")
ENVIRONMENT = {
    # Libraries that would report every model they load, or every device they don't find.
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "DS_LOG_LEVEL": "error",
    # Threads that wait spin for some microseconds, not for milliseconds: where cores are contended that takes five
    # times as long as one thread. Not spinning at all costs a quarter where they are free.
    "GOMP_SPINCOUNT": "1000",
    "HDF5_USE_FILE_LOCKING": "BEST_EFFORT",
}


def prepare() -> None:
    """Listen to signals, take the rank that the scheduler gives, and set what libraries read from the environment."""
    signals.listen(job=scheduler_of(job_id()).batch)
    os.environ.update(rank_variables())
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def prepare_work() -> None:
    """What a process that computes needs besides; one that only submits would hand it on to other machines."""
    if not any(Path(device).exists() for device in GPU_DEVICES):
        # Else DeepSpeed, which transformers imports, warns of its choice.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if folder := os.environ.get("TMPDIR"):  # a site's scratch, which the batch script made on the first node alone
        with suppress(OSError):
            Path(folder).mkdir(parents=True, exist_ok=True)


def rank() -> int:
    """This process's rank, 0 where it is alone."""
    return int(os.environ.get("RANK") or 0)


class Recorder:
    """The record of this process's job. The main rank keeps it; any rank may record a failure."""

    def __init__(self) -> None:
        self.root: Path | None = None
        self.calls: tuple[Call, ...] = ()
        self.max_requeues = 0

    def begin(self, root: Path, calls: tuple[Call, ...], after: tuple[str, ...] = ()) -> None:
        """Record that the job has started."""
        self.root, self.calls = root, calls
        if rank() == 0:
            log = records.log_file(job_id()) if "SUBMITIT_EXECUTOR" in os.environ else ""
            records.begin(root, calls, log=log, after=after, gpus=current_job().gpus, restarts=restarts())

    def add(self, config: Config, call: Call) -> None:
        """Record one more call of a process whose calls become known one by one."""
        self.max_requeues = config.launcher.max_requeues
        if self.root is None:
            self.begin(Path(config.root), (call,))
        elif call not in self.calls:
            self.calls = (*self.calls, call)
            if rank() == 0:
                records.extend(self.root, job_id(), call)

    def end(self, end: "Ending") -> None:
        """Record how the job ended: done by the main rank, failed by any. Never fails itself."""
        if self.root is None or (rank() and end.state != records.FAILED):
            return
        with suppress(OSError, DilmError):  # such as a full disk, which has been told
            if end.status == USER_ERROR and submitted_job() is None:
                records.forget(self.root, job_id())  # a terminal, where the user has read it
                return
            by = f"rank {rank()}: " if end.reason and rank() else ""
            records.finish(self.root, job_id(), end.state, by + end.reason)


@dataclass(frozen=True)
class Ending:
    """How a process ends: its exit status, and what the record says."""

    status: int
    state: str
    reason: str = ""


def user_error(error: BaseException) -> DilmError | None:
    """The error as one that the user can mend, told in one line; None for a bug."""
    if isinstance(error, DilmError):
        return error
    if isinstance(error, HydraException | OmegaConfBaseException):
        return ConfigError(one_line(error))
    if isinstance(error, OSError) and is_disk_full(error):  # of Hydra's own files; ours name theirs
        name = error.filename or "the disk"
        return DiskFullError(f"{name}: no space is left on the device; free some and run again.")
    if isinstance(error, OSError) and error.filename and error.errno in NOT_ALLOWED:
        return PlaceError(f"{error.filename}: {error.strerror}; mend its permissions, or name another place.")
    return None


def as_line(error: DilmError) -> str:
    """The error's one line."""
    return f"{type(error).__name__}: {error}"


def reader_gone(error: BaseException) -> bool:
    """Whether nobody reads what is printed any more, as behind `| head`. Nothing more is printed then."""
    output = sys.stdout.fileno()
    poll = select.poll()
    poll.register(output, 0)
    gone = isinstance(error, BrokenPipeError) and any(events & select.POLLERR for _, events in poll.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return gone


def ending(error: BaseException, recorder: Recorder) -> Ending:
    """Tell the user what happened, and how the process is to end."""
    if reader_gone(error):
        return Ending(READER_GONE, records.FAILED, "nobody reads what it prints")
    if isinstance(error, Stopped) or _left_by_peers(error):
        return _stop(error.again if isinstance(error, Stopped) else signals.told_again(), recorder)
    if isinstance(error, KeyboardInterrupt):
        print("interrupted; the same command goes on from what is complete", file=sys.stderr)
        return Ending(INTERRUPTED, records.FAILED, "interrupted")
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        return Ending(status, records.FAILED if status else records.DONE, f"exit status {status}" if status else "")
    if mendable := user_error(error):
        print(as_line(mendable), file=sys.stderr)
        return Ending(USER_ERROR, records.FAILED, as_line(mendable))
    traceback.print_exception(error)
    return Ending(BUG, records.FAILED, f"{type(error).__name__}: {error}".splitlines()[0])


def _left_by_peers(error: BaseException) -> bool:
    """Whether ranks were told to stop, and this one's peers have gone before it."""
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    return signals.told() and not alone and isinstance(error, Exception) and user_error(error) is None


def _stop(again: bool, recorder: Recorder) -> Ending:
    """After a signal: the main rank queues the job again, the others leave quietly so as not to end it before."""
    if rank():
        return Ending(0, records.DONE)
    stopped = "stopped by a signal" if again else "stopped by SIGTERM"
    scheduler = scheduler_of(job_id())
    if not again or not scheduler.batch:
        print(f"{stopped}; the same command goes on from here", file=sys.stderr)
        return Ending(STOPPED, records.PREEMPTED, stopped)
    if restarts() >= recorder.max_requeues:
        reason = f"{stopped}, and queued again {restarts()} times already; raise launcher.max_requeues"
        print(reason, file=sys.stderr)
        return Ending(STOPPED, records.FAILED, reason)
    preempted = Ending(0, records.PREEMPTED, stopped)
    recorder.end(preempted)
    try:
        scheduler.requeue(job_id())
    except SchedulerError as error:
        print(as_line(error), file=sys.stderr)
        return Ending(STOPPED, records.FAILED, f"{stopped}, and not queued again: {error}")
    print(f"{stopped}; queued again, to go on from here", file=sys.stderr)
    return preempted


def leave(status: int) -> NoReturn:
    """End this process with an exit status that nothing can change.

    Of several ranks without Python's own shutdown: threads of the collective library would then abort the process,
    one time in fifty on busy cores, after all work is done.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        sys.exit(status)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def run_job(root: str, calls: tuple[Call, ...], after: tuple[str, ...] = ()) -> NoReturn:
    """The whole life of one process of a submitted job: run its calls one after another, and tell the truth.

    A call that fails doesn't keep the next from running.
    """
    recorder = Recorder()
    failures: list[Ending] = []
    try:
        prepare()
        prepare_work()
        recorder.begin(Path(root), calls, after)
        composer = Composer()
        for call in calls:
            _run_call(call, composer, recorder, failures)
        end = failures[0] if failures else Ending(0, records.DONE)
    except BaseException as error:
        end = ending(error, recorder)
    recorder.end(end)
    leave(end.status)


def _run_call(call: Call, composer: Composer, recorder: Recorder, failures: list[Ending]) -> None:
    print(f"{call.command} {' '.join(call.overrides)}", flush=True)
    try:
        config = composer.config(call.overrides)
        recorder.max_requeues = config.launcher.max_requeues
        resolve_name(f"dilm.{call.command}:run")(config)  # by name: commands stand above what submits them
    except Exception as error:
        # What waits for this rank in a collective call must not wait for ever.
        if isinstance(error, Stopped) or os.environ.get("WORLD_SIZE", "1") != "1":
            raise
        failures.append(ending(error, recorder))
