"""Kills commands at each change of their folder and at random moments, fills their disk, and lets them go on."""

import contextlib
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import world
from nursery import Ended, Nrt


@dataclass(frozen=True)
class Work:
    """A command, how one goes on with it, where its result lies, and what of the finished world it begins without."""

    name: str
    command: tuple[str, ...]
    again: tuple[str, ...]
    result: str
    without: tuple[str, ...]


WORKS = (
    Work("data prepare", world.DATA, world.DATA, "data", ("data", "run", "shared")),
    Work("model prepare", world.MODEL, world.MODEL, "model", ("model", "run", "shared")),
    Work("train", world.TRAIN, world.RESUME, "run", ("run", "shared")),
    Work("eval", world.EVAL, world.EVAL, "run/evals", ("run/evals", "shared")),
    Work("judge", world.JUDGE, world.JUDGE, "run/judgements", ("run/judgements", "run/analysis", "shared")),
    Work("push", world.PUSH, world.PUSH, "shared", ("shared",)),
    Work("reproduce", world.STUDY, world.STUDY, "study", ("run", "shared")),
)
HARMS = ("lost", "wrong", "traceback", "hang", "left")


@dataclass(frozen=True)
class Try:
    """What came of one: `harm` is empty where the end is that of an undisturbed run and nothing is left lying."""

    work: str
    how: str
    harm: str
    what: str = ""


def try_all(base: Path, scratch: Path, nrt_in: Callable[[Path], Nrt], count: int, seed: int) -> Iterator[Try]:
    """`count` disturbances, shared out over the works: half at changes of the folder, a quarter at random moments, a
    quarter with the disk full from a change on."""
    chance = random.Random(seed)
    parts = [1 if work.name == "reproduce" else 8 for work in WORKS]  # one of those takes as long as ten others
    ends = [round(count * part / sum(parts)) for part in accumulate(parts)]
    for work, (begin, end) in zip(WORKS, pairwise((0, *ends)), strict=True):
        whole = _fresh(base, scratch / "tried", work)
        nrt = nrt_in(whole)
        began = time.monotonic()
        ended = nrt(*work.command, trap={"count": str(whole / "changes.out")}, seconds=600)
        seconds = time.monotonic() - began
        if ended.code:
            raise RuntimeError(f"{work.name}: {ended.err}")
        changes, wanted = int((whole / "changes.out").read_text()), world.content(whole / work.result)
        points = list(range(changes))
        chance.shuffle(points)
        for index in range(end - begin):
            at = points[index % changes]
            kind = ("kill", "kill", "moment", "full")[index % 4]
            moment = chance.random() * seconds
            how = f"{kind} {moment:.2f} s" if kind == "moment" else f"{kind} {at}"
            yield Try(work.name, how, *_try(base, scratch / "tried", nrt_in, work, kind, at, moment, wanted))


def _fresh(base: Path, folder: Path, work: Work) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    gone = {base / name for name in work.without}
    shutil.copytree(
        base, folder, copy_function=_link, ignore=lambda at, names: [n for n in names if Path(at, n) in gone]
    )
    return folder


def _link(source: str, target: str) -> None:
    # Copies, not links: what is appended to must not change the world that others begin from.
    shutil.copyfile(source, target)


def _try(
    base: Path,
    folder: Path,
    nrt_in: Callable[[Path], Nrt],
    work: Work,
    kind: str,
    at: int,
    moment: float,
    wanted: dict[str, str],
) -> tuple[str, str]:
    nrt = nrt_in(_fresh(base, folder, work))
    before = {path for path in folder.rglob("*") if path.name.endswith(".tmp")}
    if kind == "moment":
        process = nrt.start(*work.command, seconds=600)
        time.sleep(moment)
        with contextlib.suppress(ProcessLookupError):
            process.kill(signal.SIGKILL)
        first = process.wait()
    else:
        first = nrt(*work.command, trap={kind: at}, seconds=600)
    if "Traceback" in first.err:
        return "traceback", _last(first)
    last: Any = None
    for command in (work.again, work.command):
        last = nrt(*command, seconds=600)
        if last.code == 0:
            break
        if last.code == -signal.SIGALRM:
            return "hang", " ".join(command)
        if "Traceback" in last.err:
            return "traceback", _last(last)
    got = world.content(folder / work.result)
    if last.code and got != wanted:  # killed when all was done, a command may refuse to do it again
        return "lost", _last(last)
    if different := sorted(name for name in wanted.keys() | got.keys() if wanted.get(name) != got.get(name)):
        left = [name for name in different if ".tmp" in name]
        return ("left", left[0]) if left == different else ("wrong", ", ".join(different[:4]))
    if left := {path for path in folder.rglob("*") if path.name.endswith(".tmp")} - before:
        return "left", str(left.pop().relative_to(folder))
    return "", ""


def _last(ended: Ended) -> str:
    return " ".join(ended.err.split())[-300:]
