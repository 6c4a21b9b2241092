"""All runs below some folders, followed while they train: numbers of every trace in memory, texts on disk.

Shapes: N traces of all runs. Nothing is copied and nothing is written to a run.
"""

import contextlib
import math
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nrt_cli.errors import StoreError
from nrt_cli.store import Run, find_runs
from nrt_cli.store.tables import open_table
from nrt_cli.text.questions import plain_text, questions

Pieces = Callable[[Path], Callable[[Sequence[int]], list[str]] | None]
"""A model's folder -> what cuts its token ids into texts; None where that is not known."""

PART = re.compile(r"(step|held-out|direct)-(\d{6,})")
KINDS = ("step", "held-out", "direct")
NUMBERS = (
    "run", "kind", "step", "example", "k", "row", "gain", "reward", "baseline", "advantage", "length", "forced", "dead",
    "clipped", "right", "leaked",
)  # fmt: skip
"""What is held of every trace; NaN is not measured, and what is true or false is 1 or 0."""
AT = {name: i for i, name in enumerate(NUMBERS)}
READ = (
    "example", "k", "stop", "gain", "reward", "reward_base", "reward_scaled", "reward_base_scaled", "advantage",
    "dead_group", "sampled", "thinking_score", "direct_score", "prompt", "trace", "answer",
)  # fmt: skip
TEXTS = ("prompt", "trace", "answer")

POLL = 0.5
"""Seconds between two looks at the runs that are known; `LOOK` between two at which runs there are."""
LOOK = 2.0
PAUSE = 0.1
"""Seconds after an answer in which no table is read: a page asks for one thing after another."""
KEPT = 128
"""Tables whose texts are kept, of those that were asked for last."""

Part = tuple[str, str]
"""A run's name and that of one of its tables."""


@dataclass
class Followed:
    """A run as it was last seen: the stamps of its tables and of its other records, and what could not be read."""

    run: Run
    number: int
    clips: bool = True
    parts: dict[str, tuple[int, int]] = field(default_factory=dict)
    records: tuple[Any, ...] = ()
    version: int = 0
    damaged: dict[str, str] = field(default_factory=dict)


class Library:
    """The runs below some folders; `refresh` looks once, `following` keeps looking."""

    def __init__(self, roots: Sequence[Path], pieces: Pieces | None = None) -> None:
        self.roots, self.pieces = list(roots), pieces
        self.runs: dict[str, Followed] = {}
        self._chunks: dict[Part, NDArray[np.float64]] = {}
        self._waiting: OrderedDict[Part, None] = OrderedDict()
        self._table: NDArray[np.float64] | None = None
        self._texts: OrderedDict[tuple[Part, tuple[int, int]], dict[str, list[str]]] = OrderedDict()
        self._lock, self._told = threading.RLock(), threading.Condition()
        self.version = self._numbers = self._answering = 0
        self._answered = -math.inf

    # --- what there is -----------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Find the runs that there are now; those that are gone are forgotten."""
        found: dict[str, Run] = {}
        for root in self.roots:
            for run in find_runs(root):
                below = os.path.relpath(run.path, root)
                name = run.path.resolve().name if below == "." else below
                name = name if len(self.roots) == 1 or below == "." else str(root / below)
                while name in found:
                    name += "~"
                # A name's bytes may be no text.
                found[name.encode(errors="backslashreplace").decode()] = run
        with self._lock:
            for name in [name for name in self.runs if name not in found]:
                self._forget(name)
            new = [
                (str(run.manifest().get("created")), name, run) for name, run in found.items() if name not in self.runs
            ]
            for _, name, run in sorted(new, key=lambda one: one[:2]):
                self._numbers += 1
                self.runs[name] = Followed(run, self._numbers, clips(run))
                self._changed(name)

    def _forget(self, name: str) -> None:
        del self.runs[name]
        self._drop([part for part in (*self._chunks, *self._waiting) if part[0] == name])
        self._changed(None)

    def _drop(self, parts: Iterable[Part]) -> None:
        for part in parts:
            self._chunks.pop(part, None)
            self._waiting.pop(part, None)
            self._table = None

    def _changed(self, name: str | None) -> None:
        self.version += 1
        if name in self.runs:
            self.runs[name].version = self.version
        with self._told:
            self._told.notify_all()

    def refresh(self) -> None:
        """See which tables and records of the known runs are new or changed, and read the numbers of those tables."""
        for name, followed in list(self.runs.items()):
            path = followed.run.path
            try:
                parts = dict(_parts(path / "traces"))
                records = tuple(map(_stamp, (path, *(path / one for one in WATCHED), *sorted(path.glob("evals/*/*")))))
            except OSError:
                continue  # deleted while it is looked at; `look` will not find it
            with self._lock:
                new = [part for part, stamp in parts.items() if followed.parts.get(part) != stamp]
                gone = followed.parts.keys() - parts.keys()
                self._drop([(name, part) for part in (*new, *gone)])
                followed.parts = parts
                for part in gone:
                    followed.damaged.pop(part, None)
                for part in sorted(new, key=lambda part: part.rpartition("-")[2]):
                    self._waiting[name, part] = None
                if records != followed.records or gone:
                    followed.records = records
                    self._changed(name)

    def read(self, seconds: float = math.inf, workers: int = 2) -> None:
        """Read the numbers of the tables that wait for it, the newest first, and begin no other after some seconds."""
        end = time.monotonic() + seconds
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(self._read_until, [end] * workers))

    def _read_until(self, end: float) -> None:
        while (now := time.monotonic()) < end:
            if self._answering or now - self._answered < PAUSE:
                time.sleep(PAUSE / 10)  # who waits for a screen comes first
                continue
            with self._lock:
                if not self._waiting:
                    return
                name, part = self._waiting.popitem()[0]
                followed = self.runs.get(name)
            if followed is None:
                continue
            fault, chunk = "", np.empty((len(NUMBERS), 0))
            try:
                chunk = _numbers(followed, part)
            except (StoreError, OSError) as error:
                fault = str(error)
            with self._lock:
                if self.runs.get(name) is followed and part in followed.parts:
                    self._chunks[name, part] = chunk
                    self._table = None
                    if fault:
                        followed.damaged[part] = fault
                    else:
                        followed.damaged.pop(part, None)
                    self._changed(name)

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """Keep looking, in a thread of its own, until the block ends."""
        stop = threading.Event()

        def keep() -> None:
            due = time.monotonic()
            while True:
                with contextlib.suppress(OSError, StoreError):
                    if (begin := time.monotonic()) >= due:
                        self.look()
                        # A large tree of other things takes long to look through.
                        due = begin + max(LOOK, 10 * (time.monotonic() - begin))
                    self.refresh()
                    if self._waiting:
                        self.read(POLL)
                if stop.wait(0 if self._waiting else POLL):
                    return

        thread = threading.Thread(target=keep, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """While something is answered, no table is read for the first time."""
        self._answering += 1
        try:
            yield
        finally:
            self._answering -= 1
            self._answered = time.monotonic()

    def wait(self, version: int, seconds: float) -> None:
        """Return once something has changed since a version, or after some seconds."""
        with self._told:
            self._told.wait_for(lambda: self.version != version, seconds)

    # --- what is asked of it -----------------------------------------------------------------------------------------

    def followed(self, name: str) -> Followed:
        """A run by its name here. No path is made of the name, so none leads out of the folders."""
        if name not in self.runs:
            raise StoreError(f"{name}: there is no such run here (any more).")
        return self.runs[name]

    @property
    def left(self) -> int:
        """Tables whose numbers are still to be read."""
        return len(self._waiting)

    def table(self) -> NDArray[np.float64]:
        """The numbers of all traces that were read: a row per name in `NUMBERS`, a column per trace, step by step."""
        with self._lock:
            if self._table is None:
                parts = sorted(self._chunks, key=lambda part: (self.runs[part[0]].number, part[1]))
                chunks = [self._chunks[part] for part in parts]
                self._table = np.concatenate(chunks, axis=1) if chunks else np.empty((len(NUMBERS), 0))
            return self._table

    def texts(self, name: str, part: str) -> dict[str, list[str]]:
        """The `question` and the `trace` of a table's rows."""
        followed = self.followed(name)
        key = ((name, part), followed.parts.get(part, (0, 0)))
        with self._lock:
            if key in self._texts:
                self._texts.move_to_end(key)
                return self._texts[key]
        with open_table(followed.run.path / "traces" / f"{part}.parquet", named=True) as file:
            prompts, traces = ([text or "" for text in _column(file, name)] for name in ("prompt", "trace"))
        found = {"question": questions(prompts), "trace": traces}
        with self._lock:
            self._texts[key] = found
            while len(self._texts) > KEPT:
                self._texts.popitem(last=False)
        return found

    def group(self, name: str, part: str, example: int, columns: Sequence[str]) -> list[dict[str, Any]]:
        """Some columns of one example's rows, and its `question`; the others' long lists are not unpacked."""
        asked = self.texts(name, part)["question"]
        with open_table(self.followed(name).run.path / "traces" / f"{part}.parquet", named=True) as file:
            table = file.read(columns=[one for one in columns if one in file.schema_arrow.names], use_threads=False)
            rows = [i for i, one in enumerate(table["example"].to_pylist()) if one == example]
            found = table.take(rows).to_pylist()
        whole: dict[str, Any] = dict.fromkeys(columns)
        return [whole | row | {"question": asked[i]} for i, row in zip(rows, found, strict=True)]

    def cutter(self, run: Run) -> Callable[[Sequence[int]], list[str]] | None:
        """What cuts a run's token ids into texts."""
        folders = (run.export_path, Path(str(setting(run, "model", "path", ""))))
        return next((found for folder in folders if self.pieces and (found := self.pieces(folder))), None)


def clips(run: Run) -> bool:
    """Whether its advantages are of max(0, R - R_base)."""
    return bool(setting(run, "objective", "baseline", "clip") == "clip")


def setting(run: Run, section: str, key: str, default: Any) -> Any:
    """A run's setting as its file has it, whatever a stranger wrote there."""
    found = run.settings().get(section)
    return found.get(key, default) if isinstance(found, Mapping) else default


WATCHED = ("metrics.jsonl", "events.jsonl", "manifest.json", "evals", "analysis/xray/scored", "checkpoints", ".lock")


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return (0, 0)
    return (found.st_mtime_ns, found.st_size)


def _parts(folder: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """The tables of a run with their stamps. Links are no tables: they may lead anywhere."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            name, _, suffix = entry.name.rpartition(".")
            if suffix == "parquet" and PART.fullmatch(name) and entry.is_file(follow_symlinks=False):
                found = entry.stat(follow_symlinks=False)
                yield name, (found.st_mtime_ns, found.st_size)


def _column(file: Any, name: str) -> list[Any]:
    if name not in file.schema_arrow.names:
        return [None] * file.metadata.num_rows
    values: list[Any] = file.read(columns=[name]).column(0).to_pylist()
    return values


def _numbers(followed: Followed, part: str) -> NDArray[np.float64]:
    """The numbers of a table's traces, as `Library.table` has them."""
    import pyarrow.compute as pc

    match = PART.fullmatch(part)
    assert match is not None
    path = followed.run.path / "traces" / f"{part}.parquet"
    with open_table(path, named=True) as file:
        there = [name for name in READ if name in file.schema_arrow.names]
        table = file.read(columns=there, use_threads=False)
        lengths = pc.list_value_length(table["sampled"]) if "sampled" in there else None
        if (lengths is None or lengths.null_count) and "trace_ids" in file.schema_arrow.names:
            lengths, end = pc.list_value_length(file.read(columns=["trace_ids"]).column(0)), 0
        else:
            end = 1  # `sampled` has the trace's end too
    size = table.num_rows

    def number(name: str) -> NDArray[np.float64]:
        if name not in there:
            return np.full(size, math.nan)
        return _floats(table[name])

    out = np.full((len(NUMBERS), size), math.nan)
    out[AT["run"]], out[AT["kind"]], out[AT["row"]] = followed.number, KINDS.index(match[1]), np.arange(size)
    pairs = {"baseline": "reward_base", "dead": "dead_group"}
    out[AT["step"]] = int(match[2])
    for name in ("example", "k", "gain", "reward", "baseline", "advantage", "dead"):
        out[AT[name]] = number(pairs.get(name, name))
    if lengths is not None:
        out[AT["length"]] = _floats(lengths) - end
    stops = table["stop"].to_pylist() if "stop" in there else [None] * size
    out[AT["forced"]] = [math.nan if stop is None else stop != "end" for stop in stops]
    if followed.clips:
        scaled, base = number("reward_scaled"), number("reward_base_scaled")
        out[AT["clipped"]] = np.where(np.isfinite(scaled) & np.isfinite(base), scaled <= base, math.nan)
    out[AT["right"]] = number("direct_score" if match[1] == "direct" else "thinking_score")
    texts = [table[name].to_pylist() if name in there else [None] * size for name in TEXTS]
    out[AT["leaked"]] = [_leaked(*row) for row in zip(*texts, strict=True)]
    return out


def _floats(column: Any) -> NDArray[np.float64]:
    """An Arrow column's numbers; null is NaN. Arrow's own conversion would import pandas."""
    return np.array(column.to_pylist(), dtype=np.float64)


def _leaked(prompt: str | None, trace: str | None, answer: str | None) -> float:
    """Whether the whole reference answer stands in the trace, and not in the question; NaN where nothing is said."""
    said = plain_text(answer or "")
    if not said or trace is None:
        return math.nan
    return said in trace and said not in (prompt or "")


def finite(value: float) -> float | None:
    """A number for JSON, to 6 significant digits where it is no whole one; None where there is none."""
    if not math.isfinite(value):
        return None
    return int(value) if value == int(value) else float(f"{value:.6g}")


def shorter(text: str, most: int = 200) -> str:
    """The beginning of a text, on one line."""
    return " ".join(text[: 4 * most].split())[:most]


def by_part(library: Library, table: NDArray[np.float64], columns: Sequence[int]) -> Mapping[Part, list[int]]:
    """Some traces by the table that they are stored in, in the order in which they come."""
    names = {followed.number: name for name, followed in library.runs.items()}
    found: dict[Part, list[int]] = {}
    for column in columns:
        run, kind, step = (int(table[AT[name], column]) for name in ("run", "kind", "step"))
        if run in names:
            found.setdefault((names[run], f"{KINDS[kind]}-{step:06d}"), []).append(column)
    return found
