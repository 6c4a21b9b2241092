"""Damages every file of a finished world, and looks whether what reads it says so."""

import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nursery import Nrt
from world import RESUME, SMALL

START = (
    *("train", "--model", "model", "--data", "data/train.parquet", "--validation", "data/validation.parquet"),
    *("--method", "am", "--steps", "1", "--run", "second"),
    *(word for text in SMALL for word in ("--set", text)),
)
CHECK, SHOW, LIST = ("runs", "check", "run"), ("runs", "show", "run", "--json"), ("runs", "list", ".", "--json")
REPORT = ("report", "run", "--format", "md", "--out", "report")
READERS: dict[str, tuple[tuple[str, ...], ...]] = {
    r"data/": (START,),
    r"model/": (START,),
    r"run/checkpoints/": (CHECK, RESUME),
    r"run/(export|models)/": (CHECK, ("generate", "run", "What is 1 + 2?", "--max-trace-tokens", "4")),
    r"run/traces/": (CHECK, ("analyze", "schemes", "run"), REPORT),
    r"run/evals/": (CHECK, REPORT),
    r"run/judgements/": (CHECK, REPORT),
    r"run/metrics": (CHECK, SHOW, ("analyze", "dynamics", "run", "--json")),
    r"run/(config|manifest)": (CHECK, SHOW, LIST, RESUME),
    r"run/": (CHECK, SHOW),
}
"""How a file's name begins, the first that fits -> the commands that read it."""
TIMES = re.compile(r"\d+([.:]\d+)*( s\b)?")


@dataclass(frozen=True)
class Try:
    """What came of one: `harm` is empty where what reads the file says so, or says the same as before."""

    file: str
    how: str
    command: str
    harm: str
    what: str = ""


def damaged(content: bytes, kind: str, chance: random.Random, other: bytes) -> bytes:
    """A file's content after an accident."""
    if kind == "cut":
        return content[: chance.randrange(1, max(len(content), 2))]
    if kind == "line cut":  # what is valid again, more often than not
        lines = content.splitlines(keepends=True)
        return b"".join(lines[: chance.randrange(1, max(len(lines), 2))])
    if kind == "bit":
        at, bit = chance.randrange(max(len(content), 1)), 1 << chance.randrange(8)
        return content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :] if content else b"\0"
    return {"empty": b"", "swap": other}[kind]


def try_all(base: Path, scratch: Path, nrt_in: Callable[[Path], Nrt], count: int, seed: int) -> Iterator[Try]:
    """`count` accidents, every file in turn."""
    chance = random.Random(seed)
    files = [
        path.relative_to(base).as_posix()
        for folder in ("data", "model", "run")
        for path in sorted((base / folder).rglob("*"))
        if path.is_file() and path.name != ".lock" and path.stat().st_size and path.suffix not in (".log", ".md")
    ]
    wanted: dict[tuple[str, ...], str] = {}
    for index in range(count):
        name = files[index % len(files)]
        readers = next(commands for start, commands in READERS.items() if re.match(start, name))
        kind = ("bit", "cut", "line cut", "empty", "swap")[index // len(files) % 5]
        alike = [one for one in files if one != name and Path(one).suffix == Path(name).suffix]
        content, other = (base / name).read_bytes(), (base / chance.choice(alike or [name])).read_bytes()
        broken = damaged(content, kind, chance, other)
        if broken == content:
            continue
        for command in readers:
            folder = scratch / "damaged"
            if command not in wanted:
                wanted[command] = _said(_copy(base, folder), command, nrt_in)[1]
            (_copy(base, folder) / name).write_bytes(broken)
            code, said, err = _said(folder, command, nrt_in)
            harm = ""
            if "Traceback" in err:
                harm = "traceback"
            elif code == -14:
                harm = "hang"
            elif code == 0 and command == CHECK:
                harm = "missed"
            elif (
                code == 0
                and said != wanted[command]
                and TIMES.sub("#", Path(name).name) not in TIMES.sub("#", err) + said
            ):
                harm = "silent"
            yield Try(name, kind, " ".join(command[:2]), harm, " ".join(err.split())[-200:] if harm else "")


def _copy(base: Path, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder, copy_function=shutil.copyfile)
    return folder


def _said(folder: Path, command: tuple[str, ...], nrt_in: Callable[[Path], Nrt]) -> tuple[int, str, str]:
    ended = nrt_in(folder)(*command, seconds=120)
    made = sorted(path for path in (folder / "report").rglob("*.md")) if command == REPORT else []
    return ended.code, TIMES.sub("#", ended.out + "".join(path.read_text() for path in made)), ended.err
