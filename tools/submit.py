"""Send a whole study to Slurm and return: every stage's jobs in arrays that wait for what they need.

    python tools/submit.py train,generate,evaluate,collect task=sst2,qqp method=random,dilm dpc=5,20 site=mine

Keys are those of the commands (python -m dilm.train --help), several values give every combination. What is done, or
being made by a live job, is left out; what is needed by several combinations is made once.
"""

import argparse
import sys
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from dilm.cli import run_tool
from dilm.launch.plan import NEW, Study, check_study, counted, plan_study, send, stages_named
from dilm.launch.submit import gpus_of, script
from dilm.scheduler import records

WIDTH = 400  # where there is no terminal: lines of a table are not broken, so that they can be searched
SHOWN = (NEW, records.QUEUED, records.RUNNING, records.DONE, records.FAILED)


def main(arguments: list[str]) -> None:
    """Plan, check, and submit."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit status: 0 submitted, or nothing to do; 2 something to mend, and nothing is queued.",
    )
    parser.add_argument(
        "stages", help="train (or pretrain, learners, match), generate, evaluate, collect; several with commas"
    )
    parser.add_argument("keys", nargs="*", metavar="key=value")
    parser.add_argument("--dry-run", action="store_true", help="show the plan and what sbatch would get; queue nothing")
    options = parser.parse_intermixed_args(arguments)
    study = plan_study(stages_named(options.stages), options.keys)
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    show(study, console)
    if not study.arrays:
        console.print(f"nothing to submit; python tools/collect.py {study.root} brings the results together")
        return
    if options.dry_run:
        show_scripts(study, console)
        console.print("nothing was queued (--dry-run)")
        return
    submit_all(study, console)


def submit_all(study: Study, console: Console) -> None:
    """Check with Slurm, queue, and say what was queued."""
    check_study(study)
    for planned, names in send(study):
        first, last = names[0], names[-1]
        console.print(
            f"{planned.array.stage} {planned.task}".strip() + f": {first}" + (f" to {last}" if last != first else "")
        )
    console.print(f"python tools/status.py {study.root} shows how they stand")


def show_scripts(study: Study, console: Console) -> None:
    """Print what sbatch would get: of each kind of array the whole text, of the others what they run."""
    shown: set[str] = set()
    for number, planned in enumerate(study.arrays):
        waits = [*planned.array.after, *(f"<array {before}>" for before in sorted(planned.needs))]
        array = replace(planned.array, after=tuple(waits))
        n_jobs = len(array.jobs)
        title = f"array {number}: {array.stage} {planned.task}, {n_jobs} job{'s' * (n_jobs > 1)}"
        console.rule(title + (f", after {', '.join(waits)}" if waits else ""), align="left")
        for calls in array.jobs[:3]:
            commands = "; ".join(f"{call.command} {' '.join(call.overrides)}" for call in calls)
            console.print(commands, markup=False, soft_wrap=True)
        if n_jobs > 3:
            console.print(f"... and {n_jobs - 3} more")
        if array.stage not in shown:
            shown.add(array.stage)
            console.print(script(array), markup=False, soft_wrap=True)
    console.print("arrays longer than the cluster's MaxArraySize are cut when they are submitted")


def show(study: Study, console: Console) -> None:
    """Print the plan: what is needed, how it stands, and what the jobs ask for."""
    table = Table(title=f"plan below {study.root}")
    for column in ("stage", "task", *SHOWN, "jobs", "GPUs a job", "GPU hours at most"):
        table.add_column(column, justify="left" if column in ("stage", "task") else "right")
    for stage, units in study.units.items():
        for task in dict.fromkeys(unit.task for unit in units):
            counts = counted([unit for unit in units if unit.task == task], study.standing)
            arrays = [planned.array for planned in study.arrays if (planned.array.stage, planned.task) == (stage, task)]
            n_jobs = sum(len(array.jobs) for array in arrays)
            gpus = sorted({gpus_of(array.asked) for array in arrays})
            hours = sum(len(array.jobs) * gpus_of(array.asked) * array.asked["timeout_min"] / 60 for array in arrays)
            numbers = [str(counts.get(state, 0) or "") for state in SHOWN]
            table.add_row(stage, task, *numbers, str(n_jobs), "/".join(map(str, gpus)), f"{hours:.1f}")
    console.print(table)
    waiting = sum(planned.array.stage == "collect" for planned in study.arrays)
    console.print(f"at most {study.gpu_hours:.1f} GPU hours" + (", then the report is made" if waiting else ""))


if __name__ == "__main__":
    run_tool(main)
