"""The real command as real processes, without paying for the imports of torch and transformers each time.

One process imports everything and then forks a child for every command: exit codes, signals, limits and standard
streams are the operating system's, only the start is quick.
"""

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

NURSERY = """
import json, os, resource, signal, sys, traceback
import torch
torch.set_num_threads(1)
import pyarrow as pa
import pyarrow.parquet
import transformers.models.llama.modeling_llama
import nrt_cli.workflows.train, nrt_cli.workflows.generate
from nrt_cli.cli import main

pa.array([[1]])  # looks for pandas, and imports it where it is

def child(order):
    signal.alarm(120)
    os.chdir(order["cwd"])
    for number, path in ((1, order["out"]), (2, order["err"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    if order["file_limit"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_limit"],) * 2)
    sys.path.insert(0, order["cwd"])
    sys.argv = ["nrt", *order["arguments"]]
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    if "wait" in order:
        print(os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1]), flush=True)
        continue
    pid = os.fork()
    if pid == 0:
        child(order)
    print(pid, flush=True)
"""


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
        code = int(self.ask({"wait": self.pid}))
        return Ended(code, self.out.read_text(), self.err.read_text())


class Nrt:
    """`nrt(...)` runs a command to its end, `nrt.start(...)` only begins it."""

    def __init__(self, ask: Callable[[dict[str, Any]], str], folder: Path) -> None:
        self.ask, self.folder, self.count = ask, folder, 0

    def start(self, *arguments: object, file_limit: int | None = None) -> Process:
        self.count += 1
        out, err = (self.folder / f".{self.count}.{name}" for name in ("out", "err"))
        order = {
            "arguments": list(map(str, arguments)),
            "cwd": str(self.folder),
            "out": str(out),
            "err": str(err),
            "file_limit": file_limit,
        }
        return Process(int(self.ask(order)), out, err, self.ask)

    def __call__(self, *arguments: object, file_limit: int | None = None) -> Ended:
        return self.start(*arguments, file_limit=file_limit).wait()


@pytest.fixture(scope="session")
def nursery() -> Iterator[Callable[[dict[str, Any]], str]]:
    """Sends an order to the process that forks commands; returns its answer."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "80"}
    command = [sys.executable, "-c", NURSERY]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
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


@pytest.fixture(scope="session")
def nrt_in(nursery: Callable[[dict[str, Any]], str]) -> Callable[[Path], Nrt]:
    """The command, in any folder."""
    return functools.partial(Nrt, nursery)


@pytest.fixture
def nrt(nrt_in: Callable[[Path], Nrt], tmp_path: Path) -> Nrt:
    """The command, in the test's own folder."""
    return nrt_in(tmp_path)


@pytest.fixture
def tiny_yaml(tiny_config: Callable[..., Any], tmp_path: Path) -> Path:
    """The tiny config as a file: method am, 3 steps of 4 prompts."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_config("method=am").model_dump(mode="json")))
    return path


def _trainer(tiny_config: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    from nrt_cli.progress import Progress
    from nrt_cli.store import Run
    from nrt_cli.workflows.train import train

    count = 0

    def make(*overrides: str) -> Run:
        nonlocal count
        count += 1
        path = folder / f"run-{count}"
        train(path, tiny_config(*overrides), False, Progress)
        return Run.open(path)

    return make


@pytest.fixture
def train_run(tiny_config: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Trains in this process: `train_run("method=gm")` -> its Run."""
    return _trainer(tiny_config, tmp_path)


@pytest.fixture(scope="module")
def shared_run(tiny_config: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """The same, once per module for the same settings: to read, not to write to."""
    return functools.cache(_trainer(tiny_config, tmp_path_factory.mktemp("shared")))


@pytest.fixture
def until() -> Callable[[Callable[[], Any]], Any]:
    """Waits for a condition by looking again and again; fails after a minute."""

    def wait(condition: Callable[[], Any]) -> Any:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if found := condition():
                return found
        raise AssertionError("what the test waited for did not happen")

    return wait
