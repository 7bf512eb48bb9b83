"""How many files of this package a command enters: `python tools/entered.py train experiment=tiny stages=[match]`.

Counted are files of which a function is called, in the process of the command itself; that a file is imported, or a
class of it defined, does not count. It tells how much of the house a newcomer walks through with one command.
"""

import argparse
import inspect
import runpy
import sys
import threading
from collections import defaultdict
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1] / "dilm"
COMPREHENSIONS = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")


def is_function(code: CodeType) -> bool:
    """Whether a code object is that of a function, rather than of a module, a class body or a comprehension."""
    return bool(code.co_flags & inspect.CO_OPTIMIZED) and code.co_name not in COMPREHENSIONS


def entered(command: str, arguments: list[str]) -> list[Path]:
    """Run a command to its end; the files of the package that it entered, relative to it, in their order."""
    codes: dict[CodeType, None] = {}

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            codes[frame.f_code] = None

    sys.argv = [f"{command}.py", *arguments]
    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        runpy.run_module(f"dilm.{command}", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    paths = {Path(code.co_filename).resolve() for code in codes if is_function(code)}
    return sorted(path.relative_to(PACKAGE) for path in paths if path.is_relative_to(PACKAGE))


def main() -> None:
    """Run the command that is named, and print the files by folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", help="train, generate, evaluate, ...")
    parser.add_argument("keys", nargs="*", help="keys of the command")
    given = parser.parse_args()
    sys.path.insert(0, str(PACKAGE.parent))
    paths = entered(given.command, given.keys)
    folders = defaultdict(list)
    for path in paths:
        folders[str(path.parent)].append(path.stem)
    for folder, names in sorted(folders.items()):
        print(f"{folder + '/':<14} {' '.join(names)}")
    print(f"{len(paths)} files entered by {given.command} {' '.join(given.keys)}")


if __name__ == "__main__":
    main()
