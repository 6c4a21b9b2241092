"""A template is a stranger's program: it is rendered in a process with limits, which starts with the first one."""

import contextlib
import gc
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

from nrt_cli.errors import DataError, ModelError, first_line

CPU_SECONDS = 5.0
MEMORY = 2**30
"""Bytes beyond those that the process has when it begins."""
LONGEST = 10**7
"""Characters of what is rendered."""


class _Renderer:
    """A child of this process that calls a function as it is now; `key` tells functions apart."""

    def __init__(self, call: Callable[..., str], key: tuple[Any, ...]) -> None:
        self.key = key
        self._channel, theirs = socket.socketpair()
        self._pid = os.fork()
        if self._pid == 0:
            _serve(call, theirs)
        theirs.close()
        self._answers = self._channel.makefile(encoding="ascii")

    def ask(self, order: dict[str, Any]) -> dict[str, str] | None:
        """None where the child died of it."""
        with contextlib.suppress(OSError):
            self._channel.sendall(json.dumps(order).encode() + b"\n")
            if answer := self._answers.readline():
                return dict(json.loads(answer))
        self.close()
        return None

    def close(self) -> None:
        """The child ends where nobody can ask it any more."""
        self._answers.close()
        self._channel.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)


_renderer: _Renderer | None = None
_one_at_a_time = threading.Lock()


def rendered(tokenizer: Any, messages: Sequence[dict[str, str]], **how: Any) -> str:
    """The messages through a tokenizer's chat template; `how` is what `apply_chat_template` takes besides.

    Raises DataError where the template refuses the messages, and ModelError where it takes too long or too much memory.
    """
    call = partial(tokenizer.apply_chat_template, tokenize=False)
    key = (type(tokenizer), repr(tokenizer.chat_template), repr(tokenizer.special_tokens_map))
    try:
        return limited(call, key, {"conversation": list(messages), **how})
    except TimeoutError as error:
        raise ModelError(f"the model's chat template is refused: {error}.") from None
    except ValueError as error:
        raise DataError(f"The model's chat template refused the messages: {error}.") from None


def limited(call: Callable[..., str], key: tuple[Any, ...], given: Mapping[str, Any]) -> str:
    """What a function makes of some JSON values.

    Args:
        key: what tells the function from others that give other texts; the child that has one is kept.

    Raises ValueError with the reason where it fails, and TimeoutError where it takes too long or too much memory.
    """
    global _renderer
    if not hasattr(os, "fork"):  # Windows
        return call(**given)
    with _one_at_a_time:
        # A process that was forked from ours does not share its child.
        if _renderer is None or _renderer.key != (os.getpid(), *key):
            if _renderer and _renderer.key[0] == os.getpid():
                _renderer.close()
            _renderer = _Renderer(call, (os.getpid(), *key))
        answer = _renderer.ask(dict(given))
        if answer is None:
            _renderer = None
            raise TimeoutError(f"it takes more than {CPU_SECONDS:g} s, or {MEMORY >> 20} MiB")
    if "text" in answer:
        return answer["text"]
    raise ValueError(answer["refused"])


def _answer(call: Callable[..., str], given: dict[str, Any]) -> dict[str, str]:
    try:
        text = call(**given)
    except Exception as error:  # templates raise what they like, in jinja and in Python
        return {"refused": first_line(error)[:300].rstrip(".")}
    return {"text": text} if len(text) <= LONGEST else {"refused": f"it makes {len(text):,} characters"}


def _serve(call: Callable[..., str], channel: socket.socket) -> NoReturn:
    """What the child does: nothing of its parent's but the function is used, closed or cleaned up here."""
    try:
        gc.freeze()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
        for sent in (signal.SIGTERM, signal.SIGPROF):
            signal.signal(sent, signal.SIG_DFL)
        for standard in range(3):
            os.dup2(os.open(os.devnull, os.O_RDWR), standard)
        # Else a lock of the parent's would be held as long as the child lives.
        os.closerange(3, channel.fileno())
        os.closerange(channel.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
        _limit_memory()
        for line in _lines(channel):
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
            answer = _answer(call, json.loads(line))
            signal.setitimer(signal.ITIMER_PROF, 0)
            channel.sendall(json.dumps(answer).encode() + b"\n")
    finally:
        os._exit(0)


def _lines(channel: socket.socket) -> Iterator[str]:
    with channel.makefile(encoding="ascii") as orders:
        yield from orders


def _limit_memory() -> None:
    import resource

    with contextlib.suppress(OSError, ValueError), open("/proc/self/statm", encoding="ascii") as sizes:
        has = int(sizes.read().split()[0]) * resource.getpagesize()
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        limit = has + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit if most < 0 else min(limit, most), most))
