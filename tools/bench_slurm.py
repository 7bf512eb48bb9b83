"""What sending work to Slurm costs: `python tools/bench_slurm.py [--repeats 5] [key=value ...]`, on a login node.

Twice the same small evaluation (no torch, word counts): the time from the command line to the first line that runs on
the node, next to that of a bare `sbatch --wrap="srun date"`; and what a cell costs beyond its own work. Keys are a
site's: site=mine, launcher.gpus=0. Everything is written below ./bench-slurm, which is removed.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from dilm.artifacts.rows import read_rows
from dilm.scheduler.records import read_jobs

ROOT = Path("bench-slurm")
TOOLS = Path(__file__).resolve().parent
CELLS = (20, 10)  # data sets, seeds
KEYS = ["experiment=tiny", "method=random", "evaluator=words", f"n_datasets={CELLS[0]}", f"n_seeds={CELLS[1]}"]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("keys", nargs="*", metavar="key=value")
    given = parser.parse_intermixed_args()
    shutil.rmtree(ROOT, ignore_errors=True)
    try:
        found = [_once(number, [*KEYS, *given.keys]) for number in range(given.repeats)]
    finally:
        shutil.rmtree(ROOT, ignore_errors=True)
    bare, dilm, command, start, cell = (list(values) for values in zip(*found, strict=True))
    ratios = [ours / theirs for ours, theirs in zip(dilm, bare, strict=True)]
    print(f"medians of {given.repeats} (least to most), in seconds")
    for name, values in (
        ("bare sbatch to first line on the node", bare),
        ("tools/submit.py to first line on the node", dilm),
        ("  as a ratio", ratios),
        ("  of this, tools/submit.py itself", command),
        ("  of this, from the queue to the first line", start),
        ("a cell, beyond its own work", cell),
    ):
        print(f"{name:45} {statistics.median(values):8.4f}  ({min(values):.4f} to {max(values):.4f})")


def _once(number: int, keys: list[str]) -> tuple[float, float, float, float, float]:
    root = ROOT / str(number)
    keys = [*keys, f"root={root}"]
    _run("-m", "dilm.generate", *keys)
    bare = _bare(root / "bare.txt")
    began = time.time()
    _run(str(TOOLS / "submit.py"), "evaluate", *keys)
    returned = time.time()
    while not (ended := [job for job in read_jobs(root) if job.calls[0].command == "evaluate" and job.state == "done"]):
        time.sleep(0.1)
    (job,) = ended
    (attempt,) = job.attempts
    rows = read_rows(root)
    if len(rows) != CELLS[0] * CELLS[1] or attempt.end is None:
        sys.exit(f"{len(rows)} cells were evaluated; {job}")
    own = sum(row.seconds for row in rows)
    first = attempt.start - began
    return bare, first, returned - began, attempt.start - job.submitted, (attempt.end - attempt.start - own) / len(rows)


def _run(*arguments: str) -> None:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)


def _bare(output: Path) -> float:
    """Seconds from sbatch to a line that runs in a step of the job."""
    began = time.time()
    command = ["sbatch", "--cpus-per-task=1", "--output=/dev/null", f"--wrap=srun date +%s.%N > {output.resolve()}"]
    subprocess.run(command, check=True, capture_output=True)
    while not (output.is_file() and output.read_text().strip()):
        time.sleep(0.05)
    return float(output.read_text()) - began


if __name__ == "__main__":
    main()
