"""`-m hydra/launcher=slurm` and `=local`: every combination of a sweep as a job of its own, planned, sent, waited for.

`tools/submit.py` plans and sends too, and returns. A sweep that was interrupted continues where it is: what is made
already is not sent again, and what live jobs are making is waited for.

The commands call `launch` themselves. Hydra instantiates launchers from the namespace `hydra_plugins` alone, which is
looked for on `sys.path`, so that a plugin can't stand inside this package.
"""

import sys
import time
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser

from dilm.config.compose import composed, options_of
from dilm.config.stages import job_commands
from dilm.core.errors import ConfigError, JobsFailedError
from dilm.launch import worker
from dilm.launch.plan import Study, check_study, plan_sweep, send
from dilm.launch.submit import wait
from dilm.scheduler.base import JobRef, Submission
from dilm.scheduler.job import cancel_commands, scheduler_named
from dilm.scheduler.records import DONE, ENDED, FAILED, QUEUED, Call, Job, finish, judge, log_file, write_queued

MULTIRUN = ("-m", "--multirun", "hydra.mode=MULTIRUN")  # the ways to ask for a sweep
ELSEWHERE = ("--config", "-cd", "-cn", "-cp", "--experimental-rerun")  # options of Hydra
Sent = list[tuple[Call, list[str]]]  # calls, and the names of the jobs that make what they make


def chosen_launcher(arguments: Sequence[str], command: str) -> str:
    """The launcher of `conf/hydra/launcher` that a sweep's keys choose; "" where Hydra runs it in this process.

    Raises ConfigError for an option that changes where configurations come from, which jobs would not know of.
    """
    options = [argument for argument in arguments if argument.startswith("-") and argument not in MULTIRUN]
    ours = [f"hydra/launcher={name}" for name in options_of("hydra/launcher")]
    if away := [option for option in options if option.startswith(ELSEWHERE) and set(ours) & set(arguments)]:
        raise ConfigError(f"{away[0]} does not reach the jobs of hydra/launcher; leave one of them away.")
    if options:  # such as --help, which are Hydra's
        return ""
    keys = [argument for argument in arguments if not argument.startswith("-")]
    parsed = OverridesParser.create().parse_overrides(keys)
    single = [key for key, override in zip(keys, parsed, strict=True) if not override.is_sweep_override()]
    chosen = str(composed(single, launcher="", command=command).hydra.runtime.choices["hydra/launcher"])
    return chosen if chosen in options_of("hydra/launcher") else ""


def launch(command: str, arguments: Sequence[str], launcher: str) -> None:
    """Run every combination of keys as a job, and wait for all. Raises JobsFailedError at the end if any failed."""
    if command not in job_commands():
        raise ConfigError(f"python -m dilm.{command} does not run as a job; leave hydra/launcher away.")
    keys = [argument for argument in arguments if not argument.startswith(("-", "hydra/launcher=", "hydra.mode="))]
    study, known = plan_sweep(command, keys, launcher)
    root, n_new = study.root, sum(len(planned.array.jobs) for planned in study.arrays)
    n_done = sum(not names for _, names in known)
    n_jobs = len(known) + n_new
    _say(f"{n_jobs} jobs: {n_done} done already, {len(known) - n_done} running or queued, {n_new} new")
    sent = [*known, *(_run_here(study) if launcher == "local" else _queue(study))]
    verdicts = _wait(study, sorted({name for _, names in sent for name in names}))
    failed = [(call, reason) for call, names in sent for state, reason in [_worst(verdicts, names)] if state != DONE]
    for call, reason in failed:
        _say(f"{call.command} {' '.join(call.overrides)}: {reason}")
    if failed:
        raise JobsFailedError(
            f"{len(failed)} of {n_jobs} jobs failed; `python tools/status.py {root}` tells more, and the same command "
            "runs what is not done."
        )


def _worst(verdicts: dict[str, tuple[str, str]], names: Sequence[str]) -> tuple[str, str]:
    return next((verdicts[name] for name in names if verdicts[name][0] != DONE), (DONE, ""))


def _queue(study: Study) -> Sent:
    """Queue the new jobs, in as few arrays as the cluster takes."""
    check_study(study)
    sent: Sent = []
    for planned, names in send(study):
        sent += [(calls[0], [name]) for calls, name in zip(planned.array.jobs, names, strict=True)]
        to = f" to {names[-1]}" if len(names) > 1 else ""
        _say(f"submitted {names[0]}{to}: {len(names)} jobs; logs in {study.root / 'jobs'}")
    return sent


def _wait(study: Study, names: Sequence[str]) -> dict[str, tuple[str, str]]:
    try:
        return wait(study.root, names)
    except KeyboardInterrupt:
        cancel = "; ".join(cancel_commands(names))
        _say(f"the jobs continue: `python tools/status.py {study.root}` shows them, `{cancel}` ends them")
        raise


def _run_here(study: Study) -> Sent:
    """Run the new jobs on this machine, one after another, each with as many processes as it would have GPUs."""
    local = scheduler_named("local")
    sent: Sent = []
    for planned in study.arrays:
        for calls in planned.array.jobs:
            arguments = [(str(study.root), calls)]
            submission = Submission(
                planned.array.stage, study.root / "jobs", worker.run_job, arguments, planned.array.asked
            )
            (name,) = local.submit(submission)
            write_queued(study.root, Job(name, QUEUED, calls, log=log_file(name), submitted=time.time()))
            log = study.root.absolute() / log_file(name)
            _say(f"job {len(sent) + 1} ({name}): {' '.join(calls[0].overrides)}; log: {log}")
            while local.status([JobRef(name)])[name].alive:
                time.sleep(0.2)
            if judge(study.root, [name])[name].state not in ENDED:
                finish(study.root, name, FAILED, f"ended without a word; its log is {log}")
            sent.append((calls[0], [name]))
    return sent


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
