"""An interrupt that something swallows still ends the run."""

import signal
import subprocess
import sys

PROGRAM = """
import os, signal
from dilm.core import signals
from dilm.tracking.tracker import Progress
signals.listen()
with Progress(10, "work") as bar:
    bar.update()
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except:
        print("swallowed", flush=True)
    bar.update()
    print("went on")
"""


def test_a_swallowed_interrupt_is_raised_at_the_next_step() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.stdout == "swallowed\n"
    assert done.stderr.splitlines()[-1] == "KeyboardInterrupt"
    assert done.returncode in (1, 130, -signal.SIGINT)
