"""Commands as processes of their own that have torch and transformers from birth, forked off one that has loaded them.

A command spends most of a test's time in these imports. What it is otherwise stays: its own arguments, environment,
folder, output, modules of this package, and end, by Python's own shutdown. Not for tests of how a process starts, nor
for those that kill it.

Run as a program this file is the process that is forked off.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# What commands import sooner or later; what is missing here they import themselves. Nothing of this package.
PRELOADED = """
torch torch.distributed torch.distributed.tensor torch._dynamo transformers transformers.modeling_utils
transformers.optimization transformers.models.auto.modeling_auto transformers.models.auto.tokenization_auto
transformers.models.gpt2.modeling_gpt2 transformers.models.bert.modeling_bert tokenizers safetensors.torch accelerate
deepspeed sklearn.cluster sklearn.decomposition sklearn.feature_extraction.text sklearn.linear_model sklearn.pipeline
scipy.stats scipy.optimize pandas h5py hydra.main hydra.experimental submitit rich.console rich.table tqdm
""".split()
# Read when these are imported: another value needs another process to fork off.
READ_AT_IMPORT = ("CUDA", "DS_", "GOMP_", "HF_", "LD_", "MKL_", "OMP_", "OPENBLAS_", "PYTHON", "TOKENIZERS_", "TORCH",
                  "TRANSFORMERS_")  # fmt: skip
_parents: dict[frozenset[tuple[str, str]], "Parent"] = {}


def run(
    *command: str, cwd: Path | None = None, env: dict[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """`python *command`, with its output captured: `run("-m", "dilm.train", "task=tiny")`, `run("tools/x.py")`."""
    from dilm.launch.worker import GPU_DEVICES  # not where commands are forked off: they bring this package themselves

    env = dict(os.environ if env is None else env)
    if any(Path(device).exists() for device in GPU_DEVICES):  # a driver that is in use can't be forked
        plain = {"capture_output": True, "text": True, "timeout": timeout}
        return subprocess.run([sys.executable, *command], cwd=cwd, env=env, **plain)
    key = frozenset((name, value) for name, value in env.items() if name.startswith(READ_AT_IMPORT))
    if key not in _parents:
        _parents[key] = Parent(env)
    return _parents[key].run(list(command), str(cwd or Path.cwd()), env, timeout)


class Parent:
    """The process that commands are forked off. It ends with this one, or when its standard input does."""

    def __init__(self, env: dict[str, str]) -> None:
        from dilm.launch.worker import ENVIRONMENT

        # What every command sets for the libraries that it then imports.
        env = ENVIRONMENT | {"DS_ACCELERATOR": "cpu"} | env
        self.folder = tempfile.TemporaryDirectory(prefix="dilm-fork-")
        self.address = f"{self.folder.name}/socket"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(self.address)
            listener.listen()
            number = listener.fileno()
            command = [sys.executable, __file__, str(number)]
            streams = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL}
            self.process = subprocess.Popen(command, env=env, pass_fds=[number], **streams)
        atexit.register(self.end)

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.folder.cleanup()

    def run(
        self, command: list[str], cwd: str, env: dict[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        with contextlib.ExitStack() as stack:
            streams = [stack.enter_context(open(os.devnull, "rb"))]
            streams += [stack.enter_context(tempfile.TemporaryFile()) for _ in range(2)]
            link = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            link.settimeout(timeout)
            link.connect(self.address)
            # In a file: it is larger than a packet may be.
            with tempfile.NamedTemporaryFile("w", dir=self.folder.name) as asked:
                json.dump({"command": command, "cwd": cwd, "env": env}, asked)
                asked.flush()
                socket.send_fds(link, [asked.name.encode()], [stream.fileno() for stream in streams])
                pid = int(link.recv(64) or -1)
            assert pid > 0, "nothing is forked off any more"
            try:
                status = int(link.recv(64))
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(command, timeout) from None
            said = []
            for stream in streams[1:]:
                stream.seek(0)
                said.append(stream.read().decode())
        return subprocess.CompletedProcess(command, status, *said)


# The other side


def serve(number: int) -> dict[str, Any]:
    """Fork for every request. Returns in the child, with what it is to become."""
    for name in PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    listener = socket.socket(fileno=number)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(sys.stdin, selectors.EVENT_READ)
    while True:
        for event, _ in selector.select():
            if event.fileobj is sys.stdin:
                os._exit(0)
            elif event.fileobj is listener:
                link, _ = listener.accept()
                name, streams, *_ = socket.recv_fds(link, 4096, 3)
                request: dict[str, Any] = json.loads(Path(name.decode()).read_text())
                if (pid := os.fork()) == 0:
                    for own in (selector, listener, link):
                        own.close()
                    return request | {"streams": streams}
                for stream in streams:
                    os.close(stream)
                link.send(str(pid).encode())
                selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, link))
            else:
                selector.unregister(event.fd)
                os.close(event.fd)
                pid, link = event.data
                with contextlib.suppress(OSError), link:
                    link.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())


def become(request: dict[str, Any]) -> None:
    """Run a module or a file as Python does."""
    for number, stream in enumerate(request["streams"]):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    first, *arguments = request["command"]
    if first == "-m":
        sys.argv, sys.path[0] = arguments, request["cwd"]
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = [first, *arguments], str(Path(first).parent)
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    become(serve(int(sys.argv[1])))
