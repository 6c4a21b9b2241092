"""Pieces of work side by side, each in a process of its own: what one of them does to its process harms no other.

A process that loses its parent ends, whatever it is doing: so nothing of a killed study goes on in the dark.
"""

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal, Protocol

from nrt_cli.errors import Interrupted, NrtError
from nrt_cli.records import Ended

Tell = Callable[[float, str], None]
"""Called by the work with the share of it that is done and what it does now."""


@dataclass(frozen=True)
class Task:
    """Work under a name. `work` is a function that a new process can import; it returns what to say at the end."""

    name: str
    work: Callable[[Tell], str]
    log: Path
    """Where its output goes."""


class Watcher(Protocol):
    """Who follows the tasks."""

    def progress(self, name: str, share: float, what: str) -> None: ...

    def ended(self, name: str, status: Ended, text: str) -> None: ...


Message = tuple[Ended | Literal["running"], float, str]
"""Status, share that is done, and what the work does or how it ended."""


@dataclass
class _Child:
    """A task's process and the last that it said."""

    task: Task
    process: Any
    last: Message = ("running", 0.0, "")


def run_tasks(tasks: Sequence[Task], at_once: int, watcher: Watcher, preload: Sequence[str] = ()) -> None:
    """Run all of them, in order, `at_once` at a time. One that fails is the watcher's to note.

    Args:
        preload: modules that are imported once, in a process from which those of the tasks are forked. For work that
            needs no GPU, whose state does not survive a fork.

    Raises:
        Interrupted: Ctrl-C or SIGTERM. The tasks are asked to stop and save; a second one kills them.
    """
    waiting, running = deque(tasks), dict[Connection, _Child]()
    # A fork of this process would take its threads and locks along.
    context: Any = get_context("forkserver" if preload else "spawn")
    if preload:
        context.set_forkserver_preload(list(preload))
    received = int(signal.SIGINT)

    def interrupt(number: int, _: object) -> None:
        """SIGTERM does what Ctrl-C does."""
        nonlocal received
        received = number
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGTERM, interrupt)
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                task = waiting.popleft()
                task.log.parent.mkdir(parents=True, exist_ok=True)
                messages, sender = context.Pipe(duplex=False)
                child = _Child(task, context.Process(target=_child, args=(task, sender), name=task.name))
                child.process.start()
                running[messages] = child
                sender.close()  # so that the end of the process is the end of the messages
            _listen(running, watcher, stopping=False)
    except KeyboardInterrupt:
        # An interrupt while they stop kills them.
        for child in running.values():
            child.process.terminate()
        with contextlib.suppress(KeyboardInterrupt):
            while running:
                _listen(running, watcher, stopping=True)
        raise Interrupted("stopped; what is done is kept, the same command goes on.", received) from None
    finally:
        for child in running.values():
            child.process.kill()
        signal.signal(signal.SIGTERM, old)


def _listen(running: dict[Connection, _Child], watcher: Watcher, stopping: bool) -> None:
    """Hand on what the children say until there is nothing to read; forget those that ended."""
    for connection in wait(list(running)):
        assert isinstance(connection, Connection)
        child = running[connection]
        try:
            child.last = connection.recv()
        except (EOFError, OSError):
            del running[connection]
            child.process.join()
            status, _, text = child.last
            if status == "running" and stopping:
                status, text = "interrupted", "stopped"
            elif status == "running":
                code = child.process.exitcode or 0
                how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                hint = ", often a sign of too little memory" if code == -signal.SIGKILL else ""
                status, text = "failed", f"its process {how}{hint}; what it said is in {child.task.log}"
            watcher.ended(child.task.name, status, text)
            continue
        status, share, text = child.last
        if status == "running":
            watcher.progress(child.task.name, share, text)


# --- in the new process ----------------------------------------------------------------------------------------------


def _child(task: Task, connection: Connection) -> None:
    os.setpgrp()  # Ctrl-C is the parent's; it passes on what it means

    def end_with_parent() -> None:
        parent: Any = parent_process()
        parent.join()
        os._exit(1)

    def tell(share: float, what: str) -> None:
        connection.send(("running", share, what))

    threading.Thread(target=end_with_parent, daemon=True).start()
    with task.log.open("ab", buffering=0) as log:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(log.fileno(), stream.fileno())
    status: Ended = "failed"
    try:
        status, text = "finished", task.work(tell)
    except (Interrupted, KeyboardInterrupt) as stopped:
        status, text = "interrupted", str(stopped)
    except NrtError as error:
        print(f"nrt: {error}", file=sys.stderr)
        text = str(error)
    except Exception as error:
        traceback.print_exc()
        text = f"{type(error).__name__}: {error}; more in {task.log}"
    with contextlib.suppress(OSError):  # a parent that is gone has nobody to tell
        connection.send((status, 1.0, text))
