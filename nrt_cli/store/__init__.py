"""The run directory: the only reader and writer of a run's artifacts.

`README.md` beside this file describes its layout, every metric and trace column, and what a crash can leave. In short:
whole files and folders appear by rename, so a reader never sees half of one; lines are appended in one write.
"""

import contextlib
import errno
import filecmp
import math
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from nrt_cli.commandline import resume
from nrt_cli.errors import ConfigError, StoreError
from nrt_cli.files import damage, draft, read_record, record_of, record_text, sealed, sha256, sweep_drafts
from nrt_cli.measures.held_out import COLUMNS, Best, best_step
from nrt_cli.records import TRACE_COLUMNS, Status, TraceRow
from nrt_cli.store.files import (
    LOCK,
    OWNER,
    append_line,
    is_locked,
    lines,
    lines_backwards,
    now,
    reads,
    sole_writer,
    sweep,
    write,
    writes_to,
)
from nrt_cli.store.tables import open_table, write_table
from nrt_cli.text.questions import normalised

if TYPE_CHECKING:
    from nrt_cli.config import RunConfig

MANIFEST, METRICS, EVENTS, CONFIG = "manifest.json", "metrics.jsonl", "events.jsonl", "config.yaml"
FORMAT = "nrt-run-1"
WEIGHTS, TENSORS, STATE, SUMS = "model.safetensors", "tensors.safetensors", "state.json", "checksums.json"
KINDS = {kind: f'{{"kind": "{kind}", '.encode() for kind in ("train", "held_out")}
"""How a line of metrics begins, by its kind: no bit that flips makes one of the other."""
OF_WEIGHT = "weight."
"""How a weight's name begins among a checkpoint's tensors; its file has the names and the form of a model folder's."""

Content = Mapping[str, Any] | Callable[[Path], None]
"""What a checkpoint holds besides its state: tensors by name, or a function that writes files into a folder."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: the step it follows, its folder, its small state and its tensors by name.

    There are no tensors where an engine wrote files of its own into the folder.
    """

    step: int
    folder: Path
    state: dict[str, Any]
    tensors: dict[str, Any]


class Run:
    """One run directory. Open it to read at any time; hold `writing()` to add to it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    # --- opening ---------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: Path, config_yaml: str, manifest: Mapping[str, Any]) -> "Run":
        """A new run in an empty or missing folder; anything else there is refused, nothing is overwritten."""
        require_vacant(path)
        run = cls(path)
        with run.writing():
            # Another start may have been quicker.
            if require_vacant(path):
                damage(f"{path}: holds what is left of a start that was killed before it was a run; it is taken over.")
            write(path / CONFIG, sealed(config_yaml))
            write(path / MANIFEST, record_text(MANIFEST, {"format": FORMAT, "created": now(), **manifest}))
        return run

    @classmethod
    def open(cls, path: Path) -> "Run":
        """An existing run."""
        run = cls(path)
        if not path.is_dir():
            raise StoreError(f"{path}: no such run directory; `nrt runs` lists those there are.")
        if run.manifest().get("format") != FORMAT:
            raise StoreError(f"{path}: not a run of this program (format {run.manifest().get('format')!r}).")
        return run

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only writer. Raises StoreError where another process already is."""
        with sole_writer(self.path, f"{self.path}: another process is writing to this run; wait or stop it."):
            for folder in ("checkpoints", "post-mortem", "profiles", "traces"):
                sweep((self.path / folder).glob("*.tmp"))
            sweep_drafts(self.path / "models")  # which are made without this lock
            yield

    @property
    def being_written(self) -> bool:
        """Whether some process holds `writing()` now."""
        return is_locked(self.path)

    def status(self) -> Status:
        """What became of it."""
        status: Status = self.manifest()["status"]
        return "stopped" if status in ("created", "running") and not self.being_written else status

    # --- small records ---------------------------------------------------------------------------------------------

    def manifest(self) -> dict[str, Any]:
        """What the run is: versions, device, fingerprints, command, status. A mapping: older runs have fewer keys."""
        if not (self.path / MANIFEST).is_file():
            raise StoreError(f"{self.path}: not a run directory ({MANIFEST} is missing).")
        with reads(self.path / MANIFEST, "restore it from a copy, or remove the run"):
            return read_record(self.path / MANIFEST)

    def suffix(self) -> str | None:
        """The last line that all questions of its training data had; None where they had none in common."""
        suffix: str | None = (self.manifest().get("data") or {}).get("suffix")
        return suffix

    def update_manifest(self, **changes: Any) -> None:
        write(self.path / MANIFEST, record_text(MANIFEST, {**self.manifest(), **changes}))

    @property
    def config_path(self) -> Path:
        return self.path / CONFIG

    def settings(self) -> dict[str, Any]:
        """The run's nested settings as they are in its file; empty where that cannot be read."""
        from nrt_cli.config import read_yaml  # late: what only lists runs' folders need not wait for pydantic

        try:
            return read_yaml(self.config_path)
        except ConfigError as error:
            damage(f"{error} Its settings are not shown.")
            return {}

    def config(self, *changes: Mapping[str, Any]) -> "RunConfig":
        """Its config, with changes on top; keys that it is older than have their defaults. Raises ConfigError.

        Paths are absolute. Older runs have them as they were typed, in a folder that is not known: where they lead
        nowhere from this one, they are tried from the folders above the run.
        """
        from nrt_cli import config as configs  # late, as above

        def found(text: str) -> str:
            places = (str(folder / text) for folder in self.path.resolve().parents)
            return text if os.path.exists(text) else next(filter(os.path.exists, places), text)

        if self.config_path.is_file() and not self.config_path.stat().st_size:
            raise ConfigError(f"{self.config_path}: is damaged (it is empty); restore it from a copy.")
        stored = configs.map_paths(configs.read_yaml(self.config_path), found)
        return configs.recorded(stored, *changes, origin=str(self.config_path))

    def update_config(self, config_yaml: str) -> None:
        write(self.config_path, sealed(config_yaml))

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        append_line(self.path / METRICS, record)

    def metrics(self, kind: str = "train", names: Collection[str] = ()) -> list[dict[str, Any]]:
        """Records of one kind (`train`, `held_out`) in step order; of a step redone after a crash, the last one.

        Mappings: which metrics there are depends on the method, and older runs have fewer. Of long runs, the `names`
        alone take less memory than all.
        """
        path, others = self.path / METRICS, tuple(start for name, start in KINDS.items() if name != kind)
        with contextlib.suppress(StoreError):  # a damaged manifest has its own reader
            written = self.manifest().get("stored", {}).get(METRICS)
            # Lines have checksums; that the last ones are gone, only this tells.
            if written and _sum_of(path, path.stat().st_size if path.is_file() else 0) != written:
                damage(f"{path}: is damaged (its checksum differs); restore it from a copy.")
        read = (r for r in lines(path, unlike=others) if r.get("kind") == kind)
        by_step = {r["step"]: {name: r[name] for name in names if name in r} if names else r for r in read}
        return [_with_nan(by_step[step]) for step in sorted(by_step)]

    def last_metrics(self, kind: str = "train", count: int = 1) -> list[dict[str, Any]]:
        """The records of the last steps that were taken, as `metrics` has them; the rest of the file is not read."""
        path, others = self.path / METRICS, tuple(start for name, start in KINDS.items() if name != kind)
        found: dict[int, dict[str, Any]] = {}
        try:
            for at, line in lines_backwards(path, unlike=others):
                record = record_of(line, at)
                if record and record.get("kind") == kind:
                    found.setdefault(record["step"], record)
                    if len(found) == count:
                        break
        except ValueError:  # a damaged one: who reads all says which
            return self.metrics(kind)[-count:]
        return [_with_nan(found[step]) for step in sorted(found)]

    def stored(self) -> dict[str, str]:
        """Checksums of the metrics and of every trace table, by name: what a finished run has to have."""
        files = [self.path / METRICS, *sorted((self.path / "traces").glob("*.parquet"))]
        return {file.relative_to(self.path).as_posix(): sha256(file) for file in files if file.is_file()}

    def event(self, kind: str, **details: Any) -> None:
        append_line(self.path / EVENTS, {"time": now(), "kind": kind, **details})

    def events(self) -> list[dict[str, Any]]:
        return list(lines(self.path / EVENTS))

    # --- traces ----------------------------------------------------------------------------------------------------

    def write_traces(self, name: str, rows: Sequence[TraceRow]) -> None:
        """Sampled groups, one row per trace, as `traces/NAME.parquet`."""
        columns = {name: column.type for name, column in TRACE_COLUMNS.items()}
        write_table(self.path / "traces" / f"{name}.parquet", columns, map(vars, rows))

    def traces(self, name: str, columns: Sequence[str] | None = None, first: int | None = None) -> list[dict[str, Any]]:
        """The rows that `write_traces` wrote, with some or all of their columns; None where a file lacks one.

        Mappings, not `TraceRow`s: a reader names the columns that it needs, and has no others.
        With `first`, only so many rows are read, however long the file is.
        """
        path = self.path / "traces" / f"{name}.parquet"
        if not path.is_file():
            raise StoreError(f"{path}: no traces there; stored are {', '.join(self.trace_names()) or 'none'}.")
        # Pages have checksums of their own, what stands after them has none.
        written = self.manifest().get("stored", {}).get(f"traces/{path.name}")
        if written and sha256(path) != written:
            raise StoreError(f"{path}: is damaged (its checksum differs); restore it from a copy, or remove it.")
        wanted = list(TRACE_COLUMNS if columns is None else columns)
        with open_table(path, named=True) as file:
            there = [name for name in file.schema_arrow.names if name in wanted]
            if first is None:
                rows = file.read(columns=there).to_pylist()
            else:
                batches = file.iter_batches(batch_size=first, columns=there)
                rows = next((batch.to_pylist() for batch in batches), [])
        return [dict.fromkeys(wanted) | row for row in rows]

    def held_out_rows(self, step: int, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """What each held-out example scored after a step; nothing where that is not stored.

        Rows of SFT, which has no traces, are in a table of another name, so that nobody takes them for traces. A run
        from before these records has traces whose scores are None.
        """
        names = [name for name in (f"held-out-{step:06d}", f"direct-{step:06d}") if name in self.trace_names()]
        return self.traces(names[0], columns) if names else []

    def xray(self, name: str) -> list[dict[str, Any]]:
        """What `nrt analyze xray` found of a trace table's traces (`XrayRow`), each once: as it was scored last.

        Nothing where the table was not looked into. A trace is known by its `step`, `example` and `k`.
        """
        found = {}
        parts = (self.path / "analysis" / "xray" / "scored").glob(f"{name}-*/part-*.parquet")
        for part in sorted(parts, key=lambda part: (part.stat().st_mtime_ns, part)):
            with open_table(part, named=True) as file:
                rows = file.read().to_pylist()
            found.update({(row["step"], row["example"], row["k"]): row for row in rows})
        return [found[where] for where in sorted(found)]

    def count_traces(self, name: str) -> int:
        """How many rows `write_traces` wrote, from the file's foot alone."""
        with open_table(self.path / "traces" / f"{name}.parquet", named=True) as file:
            return int(file.metadata.num_rows)

    def trace_names(self) -> list[str]:
        return sorted(p.stem for p in (self.path / "traces").glob("*.parquet"))

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def save_checkpoint(self, step: int, state: Mapping[str, Any], content: Content, keep: int) -> Path:
        """Write a checkpoint completely, then make it appear, then drop all but the newest `keep` and the best."""
        folder = self._save(self.checkpoint_path(step), {"step": step, **state}, content)
        self.drop_checkpoints(step, keep)
        return folder

    def drop_checkpoints(self, step: int, keep: int) -> None:
        """Delete the checkpoints up to a step but for the newest `keep` and the best."""
        best = self.best()
        # Later ones are damaged, or this step would not have been taken again: they must not crowd out whole ones.
        for old in [s for s in self.checkpoint_steps() if s <= step][:-keep]:
            if best is None or old != best.step:
                shutil.rmtree(self.checkpoint_path(old), ignore_errors=True)

    def best(self) -> Best | None:
        """The best step whose model is still here, of those with held-out rows; None where nothing was measured.

        It is worked out from what is stored each time, so no crash can leave a wrong note of it.
        """
        scored = {record["step"] for record in self.metrics("held_out")}
        here = {*self.checkpoint_steps(), *self.model_steps(), self.exported_step()}
        rows = {step: self.held_out_rows(step, (*COLUMNS, "prompt")) for step in sorted(scored & here)}
        # The rows of every other question choose, however often and however it is asked.
        asked = {row["example"]: normalised(row["prompt"] or "") for step in rows for row in rows[step]}
        questions = dict.fromkeys(asked[example] for example in sorted(asked))
        choosing = set(list(questions)[::2])
        return best_step(rows, {example for example, question in asked.items() if question in choosing})

    def save_post_mortem(self, step: int, state: Mapping[str, Any], content: Content) -> Path:
        """The state of a failed step, for inspection; never resumed from."""
        return self._save(self.path / "post-mortem" / f"step-{step:06d}", {"step": step, **state}, content)

    def _save(self, target: Path, state: Mapping[str, Any], content: Content) -> Path:
        from safetensors.torch import save_file

        with writes_to(self.path), draft(target, locked=True) as folder:
            if callable(content):
                content(folder)
            else:
                size, free = sum(t.numel() * t.element_size() for t in content.values()), shutil.disk_usage(folder).free
                if free < size:
                    raise OSError(errno.ENOSPC, f"{size} bytes needed, {free} free")
                tensors = {name: t.contiguous() for name, t in content.items()}
                weights = {name: tensors.pop(name) for name in list(tensors) if name.startswith(OF_WEIGHT)}
                weights = {name.removeprefix(OF_WEIGHT): t for name, t in weights.items()}
                save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
                save_file(tensors, folder / TENSORS)
            (folder / STATE).write_text(record_text(STATE, state), encoding="utf-8")
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            sums = {path.relative_to(folder).as_posix(): sha256(path) for path in files}
            (folder / SUMS).write_text(record_text(SUMS, sums), encoding="utf-8")
        return target

    def checkpoint_steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first, unverified."""
        return _steps_in(self.path / "checkpoints")

    def latest_checkpoint(self, complain: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint whose checksums hold; each damaged one is named through `complain` and skipped."""
        for step in reversed(self.checkpoint_steps()):
            try:
                return self.load_checkpoint(step)
            except StoreError as error:
                complain(str(error))
        return None

    def verify_checkpoint(self, step: int) -> dict[str, str]:
        """Its files with their checksums. Raises StoreError naming the damaged or missing file."""
        folder = self.checkpoint_path(step)
        with reads(folder / SUMS, "another checkpoint has to do"):
            sums: dict[str, str] = read_record(folder / SUMS)
        if STATE not in sums:
            raise StoreError(f"{folder / SUMS} is damaged ({STATE} is not in it).")
        for name, checksum in sums.items():
            if not (folder / name).is_file():
                raise StoreError(f"{folder / name} is missing.")
            if sha256(folder / name) != checksum:
                raise StoreError(f"{folder / name} is damaged (its checksum differs).")
        return sums

    def load_checkpoint(self, step: int) -> Checkpoint:
        """A checkpoint by step, verified. Raises StoreError naming the damaged or missing file."""
        from safetensors.torch import load_file

        folder, sums = self.checkpoint_path(step), self.verify_checkpoint(step)
        try:
            tensors = load_file(folder / TENSORS) if TENSORS in sums else {}
            if WEIGHTS in sums:  # older runs have all tensors in one file
                tensors |= {OF_WEIGHT + name: t for name, t in load_file(folder / WEIGHTS).items()}
            return Checkpoint(step, folder, read_record(folder / STATE), tensors)
        except OSError as error:
            raise StoreError(f"{folder} is not a whole checkpoint ({error.strerror or error}).") from None
        except (ValueError, SafetensorError):
            raise StoreError(f"{folder} is not a whole checkpoint (a file in it cannot be read).") from None

    def checkpoint_path(self, step: int) -> Path:
        return self.path / "checkpoints" / f"step-{step:06d}"

    # --- the trained model -----------------------------------------------------------------------------------------

    @property
    def export_path(self) -> Path:
        return self.path / "export"

    def write_model(self, step: int, save: Callable[[Path], None], export: bool = False) -> Path:
        """Let `save` fill a folder with a step's model, then make it appear: a checkpoint's, or the run's `export/`.

        No lock for the first: training may go on.
        """
        target = self.export_path if export else self.model_path(step)
        with writes_to(self.path), draft(target, locked=export) as folder:
            save(folder)
            # A model's weights and a checkpoint's are one file where they are the same, as in float32.
            known, new = self.checkpoint_path(step) / WEIGHTS, folder / WEIGHTS
            if known.is_file() and new.is_file() and filecmp.cmp(known, new, shallow=False):
                with contextlib.suppress(OSError):  # a file system without hard links
                    link = new.with_suffix(".link")
                    os.link(known, link)
                    link.replace(new)
        return target

    def write_profile(self, step: int, save_trace: Callable[[str], None], table: str) -> Path:
        """Where the time of a step went: a table, and a trace that `save_trace` writes to the path it is given."""
        with writes_to(self.path), draft(self.path / "profiles" / f"step-{step:06d}", locked=True) as folder:
            save_trace(str(folder / "trace.json"))
            (folder / "table.txt").write_text(table, encoding="utf-8")
        return self.path / "profiles" / f"step-{step:06d}"

    def exported_step(self) -> int | None:
        """The step whose model is in `export/`; None where there is none."""
        steps: int | None = self.manifest().get("summary", {}).get("steps")
        return steps if self.export_path.is_dir() else None

    def model_steps(self) -> list[int]:
        """Steps that `write_model` has written."""
        return _steps_in(self.path / "models")

    def model_path(self, step: int) -> Path:
        return self.path / "models" / f"step-{step:06d}"


@dataclass(frozen=True)
class Reference:
    """`RUN@STEPS` as typed on a command line: a run's folder and the spans of steps asked for, both ends included.

    `spans` is None where none were named.
    """

    path: Path
    spans: tuple[tuple[int, int], ...] | None

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """`runs/a`, `runs/a@30`, `runs/a@0,30`, `runs/a@10-20`, or `runs/a@best`, which becomes its step.

        A folder whose own name has an @ is that folder.
        """
        path, at, steps = text.rpartition("@")
        if not at or Path(text).is_dir():
            return cls(Path(text), None)
        if steps == "best":
            best = Run.open(Path(path)).best()
            if best is None:
                raise StoreError(
                    f"{text}: no stored model of this run has held-out rows to compare; a run has them with "
                    "data.validation, if it was not made by an older version."
                )
            return cls(Path(path), ((best.step, best.step),))
        if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", steps):
            raise StoreError(f"{text}: after @ come steps, such as {path}@30, {path}@0,30 or {path}@10-20, or best.")
        ends = [span.split("-") for span in steps.split(",")]
        return cls(Path(path), tuple((int(span[0]), int(span[-1])) for span in ends))

    def choose(self, available: Sequence[int]) -> list[int]:
        """The steps asked for among those there are, in order; all of them where none were named.

        Raises StoreError where a span holds none of them.
        """
        for first, last in self.spans or ():
            if not any(first <= step <= last for step in available):
                asked = f"step {first}" if first == last else f"steps {first} to {last}"
                steps = list(map(str, sorted(available)))
                there = ", ".join(steps if len(steps) <= 8 else [*steps[:3], "...", steps[-1]]) or "none"
                raise StoreError(f"{self.path}: nothing is stored for {asked}; there is something for: {there}.")
        return [s for s in sorted(available) if self.spans is None or any(a <= s <= b for a, b in self.spans)]


@cache
def _sum_of(path: Path, size: int) -> str:
    """Of a file that grows: once for each of its sizes."""
    return sha256(path) if size else ""


def _with_nan(record: dict[str, Any]) -> dict[str, Any]:
    if None not in record.values():
        return record
    return {key: math.nan if value is None else value for key, value in record.items()}


def require_vacant(path: Path) -> set[str]:
    """Refuse a place where no new run can begin; what a start that was killed left there of its own."""
    if path.is_file():
        raise StoreError(f"{path}: is a file; choose another --run folder.")
    if (path / MANIFEST).is_file():
        raise StoreError(
            f"{path}: holds a run already; go on with it: `{resume(path)}`, or choose another --run folder."
        )
    with writes_to(path):
        found = {p.name for p in path.iterdir()} if path.is_dir() else set()
    # A start that was killed before its manifest leaves its lock, and perhaps a config and half of either.
    ours = {LOCK, OWNER, CONFIG, f"{CONFIG}.tmp", f"{MANIFEST}.tmp"} if found & {LOCK, OWNER} else set()
    if found - ours:
        raise StoreError(f"{path}: is not empty and not a run; choose another --run folder.")
    return found - {LOCK, OWNER}


def find_runs(root: Path) -> list[Run]:
    """Every run at or below a folder, by path; a damaged one is left out, with a warning.

    Hidden folders and the insides of runs are not searched.
    """
    found: list[Run] = []
    for folder, below, files in os.walk(root):
        # A start that was killed early has no manifest yet, prepared data has one of its own.
        ours, made = {CONFIG, MANIFEST} & {*files}, {METRICS, EVENTS, "checkpoints", "traces", "export"}
        made &= {*files, *below}
        if len(ours) == 2 or (ours and made):
            run = Run(Path(folder))
            try:
                if run.manifest().get("format") == FORMAT:
                    found.append(run)
                    below.clear()
                elif len(ours) == 2 and made:
                    raise StoreError(f"{run.path / MANIFEST}: is not that of a run; restore it from a copy.")
            except StoreError as error:
                damage(f"{error} This run is left out.")
                below.clear()
        below[:] = [name for name in below if not name.startswith(".")]
    return sorted(found, key=lambda run: run.path)


def _steps_in(folder: Path) -> list[int]:
    """The steps that a folder holds something of, oldest first."""
    found = folder.glob("step-*")
    return sorted(int(p.name.removeprefix("step-")) for p in found if p.name.removeprefix("step-").isdigit())
