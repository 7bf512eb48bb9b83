"""Make `.venv`, with the exact versions of requirements.lock; with --system, install Debian's packages for the tests.

`make install`, `make test` and `make quickstart` run this. It needs nothing but Python, and takes a moment when `.venv`
is up to date.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import re
import shutil
import site
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
PIP = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "install"]
LOCK = ROOT / "requirements.lock"
STAMP = VENV / "installed"
LOG = VENV / "install.log"
OLDEST = (3, 11)

# Debian's packages that tests use, by the command that each brings: a Slurm cluster, a browser, a checker of scripts.
SYSTEM = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
    "munged": "munge",
    "shellcheck": "shellcheck",
    "chromium": "chromium",
}


def main() -> None:
    """Read the options; install what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--torch",
        choices=["", "cpu", "keep"],
        default="",
        help="cpu: install a CPU build; keep: use the torch that this Python has; default: as .venv is, else cpu",
    )
    parser.add_argument("--torch-index", default="", help="URL of the package index that has the CPU builds of torch")
    parser.add_argument("--system", action="store_true", help="only install the tests' packages, where one may")
    options = parser.parse_args()
    if options.system:
        print(f"system-packages: {install_system()}")
    else:
        install(options.torch, options.torch_index)


def install(torch: str, torch_index: str) -> None:
    """Bring `.venv` up to date. An option that is "" stays as it was when `.venv` was made."""
    before = torch_of_venv()
    stamp = STAMP.read_text().split("\n") if before and STAMP.is_file() else ["", ""]
    torch = torch or before or "cpu"
    wanted = [digest(), torch_index or stamp[1]]
    if torch == before and stamp == wanted:
        print(".venv is up to date")
        return
    start = time.monotonic()
    if torch != before:
        make_venv(torch)
    STAMP.unlink(missing_ok=True)
    print("installing into .venv; this takes some minutes (.venv/install.log tells more)", flush=True)
    pip("--upgrade", "pip>=25", may_fail=True)  # an older pip fetches all of torch before it says which build it takes
    constraints = constraints_around_kept_torch() if torch == "keep" else LOCK
    if torch == "cpu":
        install_cpu_torch(wanted[1])
    pip("--editable", f"{ROOT}[test]", "--constraint", str(constraints))
    torch_version = run_in_venv("import torch; print(torch.__version__)")
    STAMP.write_text("\n".join(wanted))
    print(f"installed in {time.monotonic() - start:.0f} s, with torch {torch_version}", flush=True)


def torch_of_venv() -> str:
    """How `.venv` was made: cpu, keep, or "" when there is none."""
    settings = VENV / "pyvenv.cfg"
    if not (settings.is_file() and PYTHON.exists()):
        return ""
    return "keep" if re.search(r"include-system-site-packages\s*=\s*true", settings.read_text()) else "cpu"


def digest() -> str:
    """Hash of the files that decide what stands in `.venv`, and of the folder: the editable install points at it."""
    total = hashlib.sha256(str(ROOT).encode())
    for name in ("setup.cfg", "pyproject.toml", "requirements.lock", "tools/install.py"):
        total.update((ROOT / name).read_bytes())
    return total.hexdigest()


def make_venv(torch: str) -> None:
    """Make `.venv` anew; with torch "keep" it also sees the packages of this Python's own environment."""
    here = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < OLDEST:
        raise SystemExit(f"error: this is Python {here}; 3.11 to 3.13 is needed. Try: make install PYTHON=python3.11")
    if Path(sys.prefix).resolve() == VENV:
        raise SystemExit("error: .venv must be made anew, but it is active: run `deactivate` first.")
    if torch == "keep" and importlib.util.find_spec("torch") is None:
        raise SystemExit(f"error: TORCH=keep, but {sys.executable} has no torch. Activate the environment that has it.")
    print(f"making .venv with Python {here}", flush=True)
    inherit = ["--system-site-packages"] if torch == "keep" else []
    done = subprocess.run([sys.executable, "-m", "venv", "--clear", *inherit, str(VENV)], check=False)
    if done.returncode:
        raise SystemExit("error: no virtual environment was made; Debian and Ubuntu need the package python3-venv.")
    if torch == "keep" and sys.prefix != sys.base_prefix:
        # This Python is a virtual environment itself, and a virtual environment inherits from the system alone.
        lines = [f"import site; site.addsitedir({folder!r})\n" for folder in site.getsitepackages()]
        own = run_in_venv("import sysconfig; print(sysconfig.get_path('purelib'))")
        Path(own, "inherited.pth").write_text("".join(lines))


def constraints_around_kept_torch() -> Path:
    """Write the lock file without torch and what torch itself requires; it pins torch to the version that is here."""
    code = (
        "import importlib.metadata as m, json; "
        "torch = m.distribution('torch'); print(json.dumps([torch.version, torch.requires or []]))"
    )
    version, requirements = json.loads(run_in_venv(code))
    always = [requirement for requirement in requirements if "extra ==" not in requirement]
    free = {"torch"} | {normalised(re.split(r"[^\w.-]", requirement)[0]) for requirement in always}
    lines = [line for line in LOCK.read_text().splitlines() if normalised(line.split("==")[0]) not in free]
    path = VENV / "constraints.txt"
    path.write_text("\n".join([*lines, f"torch=={version}", ""]))
    return path


def normalised(name: str) -> str:
    """The form of a package's name in which equal names are equal."""
    return re.sub(r"[-_.]+", "-", name).lower()


def install_cpu_torch(index: str) -> None:
    """Install the locked torch as a CPU build if pip can see one; warn before it takes a CUDA build."""
    pinned = next(line for line in LOCK.read_text().splitlines() if line.startswith("torch=="))
    source = ["--index-url", index] if index else []
    for requirement in (f"{pinned}+cpu", pinned):
        found = what_pip_would_take(requirement, source)
        if found is None:
            continue
        if found and wants_cuda(found[0]["metadata"]):
            file = found[0]["download_info"]["url"].rsplit("/", 1)[-1]
            print(f"WARNING: pip sees no CPU build of torch here; {file} is a CUDA build: gigabytes to download.")
            print(
                "Going on in 5 seconds; stop it to give TORCH_INDEX=<url of an index of CPU builds>, or TORCH=keep.",
                flush=True,
            )
            time.sleep(5)
        pip("--no-deps", requirement, *source)
        return
    pip("--no-deps", pinned, *source)  # shows pip's own message


def what_pip_would_take(requirement: str, source: list[str]) -> list[dict[str, Any]] | None:
    """Entries of pip's report on a dry run: none if it is installed already; None if pip finds no such file."""
    options = ["--quiet", "--dry-run", "--report", "-", "--no-deps", "--use-feature=fast-deps", *source]
    done = subprocess.run([*PIP, *options, requirement], capture_output=True, text=True, check=False, env=environment())
    if done.returncode:
        return None
    entries: list[dict[str, Any]] = json.loads(done.stdout)["install"]
    return entries


def wants_cuda(metadata: dict[str, Any]) -> bool:
    """Whether a build of torch brings CUDA (or ROCm) here, told by its local version or by the packages it requires."""
    local = metadata["version"].partition("+")[2]
    if local:
        return not local.startswith("cpu")
    return sys.platform == "linux" and any(
        re.match(r"nvidia-|cuda-|triton", requirement) for requirement in metadata.get("requires_dist", [])
    )


def pip(*arguments: str, may_fail: bool = False) -> None:
    """Run `pip install` in `.venv`. What it prints goes to the log file; the end of that is shown if it fails."""
    with LOG.open("ab") as log:
        command = [*PIP, "--progress-bar", "off", *arguments]
        done = subprocess.run(command, check=False, env=environment(), stdout=log, stderr=subprocess.STDOUT)
    if done.returncode and not may_fail:
        print("".join(LOG.read_text(errors="replace").splitlines(keepends=True)[-20:]), flush=True)
        raise SystemExit("error: pip failed (see .venv/install.log). Run it again to go on, or after `make clean`.")


def environment() -> dict[str, str]:
    """The environment for pip: DeepSpeed compiles nothing, and a site's `user = true` doesn't break the install."""
    return {**os.environ, "DS_BUILD_OPS": "0", "PIP_USER": "0"}


def run_in_venv(code: str) -> str:
    """What a line of Python prints in `.venv`."""
    return subprocess.run([str(PYTHON), "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def install_system() -> str:
    """Install what the tests use where apt-get may; returns one line that says what it did, or why not."""
    path = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"
    missing = [command for command in SYSTEM if shutil.which(command, path=path) is None]
    if not missing:
        return "nothing to do"
    skipped = f"not installed ({', '.join(missing)} missing, so tests that need them are skipped): "
    if shutil.which("apt-get") is None:
        return skipped + "there is no apt-get here"
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if root and (shutil.which("sudo") is None or not quietly("sudo", "-n", "true")):
        return skipped + "that needs root or passwordless sudo"
    waits = ["-o", "DPkg::Lock::Timeout=120", "-o", "Acquire::http::Timeout=30", "-o", "Acquire::Retries=1"]
    apt = [*root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", *waits]
    packages = [SYSTEM[command] for command in missing]
    fetch = [*apt, "install", "-y", "--no-install-recommends", *packages]
    if quietly(*fetch) or (quietly(*apt, "update") and quietly(*fetch)):
        return f"installed {', '.join(packages)}"
    return skipped + "apt-get failed"


def quietly(*command: str) -> bool:
    """Whether a command succeeds within ten minutes; it prints nothing and reads nothing."""
    try:
        done = subprocess.run(command, check=False, capture_output=True, stdin=subprocess.DEVNULL, timeout=600)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("stopped; run it again to go on.") from None
