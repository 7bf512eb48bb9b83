"""How jobs below a root stand: a line for each stage and task, from files and one question to Slurm.

python tools/status.py runs                  cells and artifacts done, running, queued, failed
python tools/status.py runs --retry-failed   submit exactly what has failed again
python tools/status.py runs --logs 4711_3    the end of a job's log (also by a cell's or an artifact's key)
"""

import argparse
import sys
import time
from collections import deque
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dilm.cli import run_tool
from dilm.core.errors import MissingArtifactError
from dilm.launch.plan import NEW
from dilm.launch.status import costs, lines_of, log_of
from dilm.scheduler.records import DONE, FAILED, QUEUED, RUNNING

LOG_LINES = 40
WIDTH = 400  # where there is no terminal: lines of a table are not broken, so that they can be searched
STATES = (DONE, RUNNING, QUEUED, FAILED)


def main(arguments: list[str]) -> None:
    """Show, retry, or tail."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit status: 0, or 2 for something to mend.",
    )
    parser.add_argument("root", type=Path, nargs="?", default=Path("runs"), help="as root= of the commands (runs)")
    parser.add_argument("--watch", type=float, nargs="?", const=30.0, metavar="SECONDS", help="again and again (30)")
    parser.add_argument("--retry-failed", action="store_true", help="submit what has failed again, and nothing else")
    parser.add_argument("--dry-run", action="store_true", help="with --retry-failed: show what would be submitted")
    parser.add_argument("--logs", metavar="KEY", help="a job's id, or the beginning of a cell's or artifact's key")
    parser.add_argument("--cost", action="store_true", help="GPU hours by stage")
    options = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    if not (options.root / "jobs").is_dir() and not (options.root / "rows").is_dir():
        raise MissingArtifactError(str(options.root / "jobs"), "python tools/submit.py", f"... root={options.root}")
    if options.logs:
        tail(log_of(options.root, options.logs), console, options.watch)
    elif options.retry_failed:
        retry(options.root, console, options.dry_run)
    elif options.watch:
        with Live(console=console, auto_refresh=False) if console.is_terminal else nullcontext() as live:
            while True:
                table = shown(options.root, options.cost)
                live.update(table, refresh=True) if live else console.print(table)
                time.sleep(options.watch)
    else:
        console.print(shown(options.root, options.cost))


def shown(root: Path, cost: bool) -> Group:
    """The table, the last error (or why it waits) of each line that has one, and the costs where asked."""
    table = Table(title=f"{root} at {time.strftime('%H:%M:%S')}")
    for column in ("stage", "task", *STATES, "time", "nodes"):
        table.add_column(column, justify="right" if column in (*STATES, "time") else "left", no_wrap=True)
    parts: list[Table | Text] = [table]
    for line in lines_of(root):
        counts = [str(line.counts.get(state) or "") for state in STATES]
        nodes = ", ".join(line.nodes[-2:]) + (", ..." if len(line.nodes) > 2 else "")
        table.add_row(line.stage, line.task, *counts, str(timedelta(seconds=round(line.seconds))), nodes)
        gone = line.counts.get(NEW, 0)
        remark = line.error or (f"{gone} made once are gone" if gone else line.waits and f"waits: {line.waits}")
        if remark:
            parts.append(Text(f"{line.stage} {line.task}: {remark.splitlines()[0]}"))
    return Group(*parts, *([_costs(root)] if cost else []))


def _costs(root: Path) -> Table:
    hours = Table(title="GPU hours")
    for column in ("stage", "used", "of these in attempts that did not end well"):
        hours.add_column(column, justify="left" if column == "stage" else "right")
    found = costs(root)
    for line in found:
        hours.add_row(line.stage, f"{line.used:.2f}", f"{line.wasted:.2f}")
    hours.add_row("all", f"{sum(line.used for line in found):.2f}", f"{sum(line.wasted for line in found):.2f}")
    return hours


def retry(root: Path, console: Console, dry_run: bool) -> None:
    """Submit what has failed again."""
    from dilm.launch.plan import check_study, plan_retry, send  # composes, which a table need not wait for

    study = plan_retry(root)
    if not study.arrays:
        failed = len(study.standing.failed)
        other = f"; {failed} are made by no configuration any more" if failed else ""
        console.print(f"nothing has failed that could be run again{other}")
        return
    for planned in study.arrays:
        cells = sum(len(keys) for calls in planned.array.jobs for call in calls for keys in call.makes.values())
        console.print(f"{planned.array.stage} {planned.task}: {cells} failed, {len(planned.array.jobs)} jobs")
    if dry_run:
        console.print("nothing was queued (--dry-run)")
        return
    check_study(study)
    for planned, names in send(study):
        console.print(f"{planned.array.stage} {planned.task}: submitted {names[0]} to {names[-1]}")


def tail(path: Path, console: Console, watch: float | None) -> None:
    """Print the end of a log; with `watch`, what comes to it as well."""
    if not path.is_file():
        raise MissingArtifactError(str(path), "the job has not started; look again", "later")
    console.print(Text(str(path), style="bold"))
    with open(path, encoding="utf-8", errors="replace") as stream:
        sys.stdout.writelines(deque(stream, LOG_LINES))
        while watch:
            sys.stdout.writelines(stream)
            sys.stdout.flush()
            time.sleep(1)


if __name__ == "__main__":
    run_tool(main)
