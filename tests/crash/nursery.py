"""The real command as real processes, without paying for the imports of torch and transformers each time.

One process imports what earlier commands did and forks a child for every command: exit codes, signals, limits
and standard streams are the operating system's, only the start is quick. A child can be told to die, or to find the
disk full, at the nth time that it changes a name in its folder.
"""

import contextlib
import errno
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

CHANGES = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate")
"""Audit events of Python that a file system remembers; of `open`, those that write. `os.replace` is an `os.rename`."""


MODULES = ".modules"
"""Ends the name of the file in which a command leaves what it imported."""

APART = ("ray", "verl", "vllm")
"""Packages with threads and settings of their own, which a fork must not have."""


class Ended(NamedTuple):
    code: int
    out: str
    err: str


@dataclass
class Process:
    """A command that runs."""

    pid: int
    out: Path
    err: Path
    ask: Callable[[dict[str, Any]], str]

    def kill(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> Ended:
        code = int(self.ask({"wait": self.pid, "modules": str(self.out.with_suffix(MODULES))}))
        return Ended(code, self.out.read_text(errors="replace"), self.err.read_text(errors="replace"))


class Nrt:
    """`nrt(...)` runs a command to its end, `nrt.start(...)` only begins it.

    Args of both:
        file_limit: bytes that a file may have.
        trap: {"kill": n} or {"full": n}, from 0, or {"count": path}, where the number of changes is written at the end.
        seconds: after which an alarm ends it.
    """

    def __init__(self, ask: Callable[[dict[str, Any]], str], folder: Path) -> None:
        self.ask, self.folder, self.count = ask, folder, 0

    def start(self, *arguments: object, **limits: Any) -> Process:
        self.count += 1
        out, err = (self.folder / f".{self.count}.{name}" for name in ("out", "err"))
        order = {"arguments": list(map(str, arguments)), "cwd": str(self.folder), "out": str(out), "err": str(err)}
        return Process(int(self.ask({**order, **limits})), out, err, self.ask)

    def __call__(self, *arguments: object, **limits: Any) -> Ended:
        return self.start(*arguments, **limits).wait()


@contextlib.contextmanager
def opened() -> Iterator[Callable[[dict[str, Any]], str]]:
    """Sends an order to the process that forks commands; returns its answer."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "80"}
    with subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "ready\n"

        def ask(order: dict[str, Any]) -> str:
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
            return process.stdout.readline()

        yield ask
        process.stdin.close()


def _trap(kill: int | None = None, full: int | None = None, count: str | None = None) -> Callable[[], None]:
    """Returns what to call at the end."""
    seen, folder = 0, os.getcwd()

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in CHANGES or (event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            return
        if not isinstance(args[0], str | bytes | os.PathLike):
            return
        path = os.fsdecode(args[0])
        if os.path.isabs(path) and not path.startswith(folder):
            return
        if kill == seen:
            os.killpg(os.getpid(), signal.SIGKILL)
        if full is not None and seen >= full and event not in ("os.remove", "os.rmdir"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        seen += 1

    def note() -> None:
        if count:
            Path(count).write_text(str(seen))

    sys.addaudithook(hook)
    return note


def _child(main: Callable[[], None], order: dict[str, Any]) -> None:
    os.setsid()  # so that what it started dies with it
    signal.alarm(order.get("seconds", 120))
    os.chdir(order["cwd"])
    for number, path in ((1, order["out"]), (2, order["err"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    if limit := order.get("file_limit"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.path.insert(0, order["cwd"])
    sys.argv = ["nrt", *order["arguments"]]
    code, end = 0, _trap(**order.get("trap", {}))
    try:
        main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    end()
    if not (limit or order.get("trap")):  # its last change was the command's own
        names = [name for name in sys.modules if name.partition(".")[0] not in APART]
        Path(order["out"]).with_suffix(MODULES).write_text("\n".join(names))
    os._exit(code)


def _serve() -> None:
    import pyarrow as pa
    import pyarrow.parquet
    import torch

    from nrt_cli.cli import main

    torch.set_num_threads(1)
    pa.array([[1]])  # looks for pandas, and imports it where it is
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            code = os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])
            modules = Path(order["modules"])
            for name in modules.read_text().split("\n") if modules.exists() else ():
                with contextlib.suppress(Exception):
                    importlib.import_module(name)
            modules.unlink(missing_ok=True)
            print(code, flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            _child(main, order)
        print(pid, flush=True)


if __name__ == "__main__":
    _serve()
