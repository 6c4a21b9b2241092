"""What each screen shows, ready for JSON, by the address that the browser has after its `#`: `/list?run=am&gain=..0`.

A screen is a function of the library and its parameters; what is not measured is None.
"""

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlencode

import numpy as np
from numpy.typing import NDArray

from nrt_cli.config import flatten
from nrt_cli.config.titles import run_title, thinks
from nrt_cli.errors import ConfigError, NrtError, StoreError
from nrt_cli.measures.collapse import WINDOW
from nrt_cli.measures.held_out import COLUMNS, measures
from nrt_cli.measures.statistics import mean_over_rows
from nrt_cli.records import Document, measured
from nrt_cli.store import Run
from nrt_cli.store.evals import find_evaluations
from nrt_cli.store.tables import open_table
from nrt_cli.text.questions import plain_text
from nrt_cli.viewer.library import AT, KINDS, NUMBERS, Library, by_part, finite, shorter

Given = Mapping[str, list[str]]
"""A screen's parameters: each may be given more than once."""
Value = TypeVar("Value")
Cutter = Callable[[Sequence[int]], list[str]]
"""Token ids -> the text of each."""

PAGE = 60
"""Traces of a list that are sent at once."""
HITS = 1000
"""Hits of a search after which it ends."""
MOST = 300
"""Points of a curve: a longer run's are every few steps."""
LONGEST = 2000
"""Tokens of a trace or an answer that are shown, and a quarter of the characters of one whose tokens are not known."""
FILTERS = tuple(name for name in NUMBERS if name not in ("run", "kind", "row"))
"""Numbers of a trace that a list is filtered and sorted by: `gain=0..`, `length=10..50`, `forced=1`, `sort=-reward`."""
ROW_COLUMNS = (
    "example", "source", "k", "prompt", "trace", "answer", "stop", "trace_ids", "answer_ids", "trace_entropies",
    "trace_logprobs", "sampler_logprobs", "answer_logprobs", "null_logprobs", "token_signals", "gain", "reward",
    "reward_base", "reward_scaled", "reward_base_scaled", "reward_log_scale", "advantage", "dead_group",
    "thinking_reply", "thinking_score", "direct_reply", "direct_score",
)  # fmt: skip


def answer(library: Library, query: str) -> dict[str, Any]:
    """What the screen at an address shows.

    Raises ConfigError for an address that is none, StoreError for what is gone.
    """
    given, show = parameters(query), SCREENS[_named(query)][0]
    found: dict[str, Any] = measured(show(library, given))
    return found


def _named(query: str) -> str:
    return query.lstrip("#").partition("?")[0].strip("/")


def parameters(query: str) -> Given:
    """What an address says of its screen."""
    name = _named(query)
    if name not in SCREENS:
        raise ConfigError(f"/{name}: there is no such screen; there are {', '.join(f'/{known}' for known in SCREENS)}.")
    given, known = parse_qs(query.partition("?")[2], keep_blank_values=True), SCREENS[name][1]
    if unknown := [key for key in given if key not in known]:
        raise ConfigError(f"/{name} has no {unknown[0]!r}; it has {', '.join(known) or 'no parameters'}.")
    return given


def address(screen: str, **given: Any) -> str:
    """The address of a screen."""
    return f"/{screen}?{urlencode({key: value for key, value in given.items() if value is not None}, doseq=True)}"


def one(given: Given, name: str, default: str | None = None) -> str | None:
    return given.get(name, [default])[-1]


def _whole(given: Given, name: str) -> int | None:
    text = one(given, name)
    if text is None:
        return None
    if not text.isdecimal() or len(text) > 9:
        raise ConfigError(f"{name}={text}: has to be a whole number.")
    return int(text)


def _chosen(library: Library, given: Given) -> list[str]:
    """The runs that are named, or the one that was made last."""
    if not library.runs:
        raise StoreError("there is no run here yet; `nrt train` makes one.")
    return given.get("run") or [max(library.runs, key=lambda name: library.runs[name].number)]


# --- runs ------------------------------------------------------------------------------------------------------------


def runs(library: Library, given: Given) -> dict[str, Any]:
    """Every run in a line: what it is, how far it is, its last held-out scores, how many traces are stored."""
    table = library.table()
    counts = dict(zip(*np.unique(table[AT["run"]], return_counts=True), strict=True))
    found = []
    for name, followed in sorted(library.runs.items()):
        run = followed.run
        # A run may go while it is read, and a stranger's may say anything.
        with contextlib.suppress(NrtError, OSError, ValueError, TypeError, LookupError, AttributeError):
            manifest, done = run.manifest(), run.last_metrics()
            scores = next(iter(run.last_metrics("held_out")), {})
            kinds = [kind for kind in KINDS if any(part.startswith(f"{kind}-") for part in followed.parts)]
            found.append(
                {
                    "run": name,
                    "title": _title(run, manifest),
                    "status": run.status(),
                    "step": done[-1]["step"] if done else 0,
                    "steps": manifest.get("steps"),
                    **{key: scores.get(key) for key in ("answer_logprob", "gain")},
                    "accuracy": scores.get("accuracy_thinking", scores.get("accuracy_direct")),
                    "traces": int(counts.get(followed.number, 0)),
                    "kinds": kinds,
                    "created": manifest.get("created"),
                    "damaged": list(followed.damaged.values()),
                }
            )
    return {"runs": found, "left": library.left}


def _title(run: Run, manifest: Mapping[str, Any]) -> str:
    return run_title(manifest["method"], run.settings(), own=manifest.get("title", ""))


# --- list ------------------------------------------------------------------------------------------------------------


def _matching(library: Library, given: Given) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """The table, and which of its traces pass the filters, as they are stored."""
    table = library.table()
    keep = np.isin(table[AT["run"]], [library.followed(name).number for name in _chosen(library, given)])
    if (kind := one(given, "kind")) is not None:
        if kind not in KINDS:
            raise ConfigError(f"kind={kind}: has to be one of {', '.join(KINDS)}.")
        keep &= table[AT["kind"]] == KINDS.index(kind)
    for name in FILTERS:
        for text in given.get(name, ()):
            low, dots, high = text.partition("..")
            try:
                ends = float(low or "-inf"), float((high or "inf") if dots else low)
            except ValueError:
                raise ConfigError(f"{name}={text}: has to be a number, or a range such as 0.5..2 or 0..") from None
            keep &= (table[AT[name]] >= ends[0]) & (table[AT[name]] <= ends[1])
    sort = one(given, "sort", "-step") or "-step"
    if sort.removeprefix("-") not in FILTERS:
        raise ConfigError(f"sort={sort}: has to be one of {', '.join(FILTERS)}, after a - for the largest first.")
    return table, np.flatnonzero(keep)


def first_of(values: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """Where the smallest values are, in order, and of equal ones the first; what is not measured comes last."""
    if count < len(values) and np.isfinite(last := np.partition(values, count)[count]):
        # The others need no order, of which a million take a while.
        below, equal = np.flatnonzero(values < last), np.flatnonzero(values == last)
        chosen = np.sort(np.concatenate([below, equal[: count - len(below)]]))
        return chosen[np.argsort(values[chosen], kind="stable")]
    return np.argsort(values, kind="stable")[:count]


def entry(library: Library, table: NDArray[np.float64], columns: Sequence[int]) -> list[dict[str, Any]]:
    """Some traces as lines of a list, in their order."""
    found: dict[int, dict[str, Any]] = {}
    for (name, part), those in by_part(library, table, columns).items():
        texts: dict[str, list[str]] = {}
        with contextlib.suppress(StoreError, OSError):
            texts = library.texts(name, part)
        for column in those:
            row = int(table[AT["row"], column])
            line: dict[str, Any] = {"run": name, "kind": part.rpartition("-")[0]}
            line |= {key: finite(table[AT[key], column]) for key in FILTERS}
            for key, of in (("said", "trace"), ("question", "question")):
                line[key] = shorter(plain_text(texts[of][row][:4000])) if texts and row < len(texts[of]) else ""
            found[column] = line
    return [found[column] for column in columns if column in found]


def list_(library: Library, given: Given) -> dict[str, Any]:
    """The traces that pass the filters, a page of them."""
    table, chosen = _matching(library, given)
    at = _whole(given, "at") or 0
    known = {"stored": int(table.shape[1]), "left": library.left}
    if one(given, "text"):
        hits = ordered(list(search(library, given)), one(given, "sort", "-step") or "-step")
        return known | {"found": len(hits), "at": at, "traces": hits[at : at + PAGE], "whole": len(hits) < HITS}
    sort = one(given, "sort", "-step") or "-step"
    values = table[AT[sort.removeprefix("-")]][chosen]
    order = first_of(-values if sort[0] == "-" else values, at + PAGE)
    traces = entry(library, table, chosen[order[at:]].tolist())
    return known | {"found": len(chosen), "at": at, "traces": traces, "whole": True}


def ordered(lines: list[dict[str, Any]], sort: str) -> list[dict[str, Any]]:
    """Lines of a list in an order, as `first_of` has it."""
    values = np.array([line[sort.removeprefix("-")] for line in lines], dtype=np.float64)
    return [lines[i] for i in first_of(-values if sort[0] == "-" else values, len(lines))]


def search(library: Library, given: Given) -> Iterator[dict[str, Any]]:
    """Traces with a text in their question, trace or answer, whatever its case, as they are found."""
    table, chosen = _matching(library, given)
    sought, hits = (one(given, "text") or "").casefold(), 0
    # The traces of a table stand together; the newest tables come first.
    where = table[[AT[name] for name in ("run", "kind", "step")]][:, chosen]
    for columns in reversed(np.split(chosen, np.flatnonzero(np.diff(where).any(axis=0)) + 1)):
        for (name, part), those in by_part(library, table, columns.tolist()).items():
            with contextlib.suppress(StoreError, OSError):
                rows = _holding(library, name, part, sought)
                found = [column for column in those if int(table[AT["row"], column]) in rows]
                for line in entry(library, table, found[: HITS - hits]):
                    hits += 1
                    yield line
        if hits >= HITS:
            return


def _holding(library: Library, name: str, part: str, sought: str) -> set[int]:
    """The rows of a table in whose texts something stands."""
    import pyarrow as pa
    import pyarrow.compute as pc

    with open_table(library.followed(name).run.path / "traces" / f"{part}.parquet", named=True) as file:
        columns = [one for one in ("trace", "answer", "prompt") if one in file.schema_arrow.names]
        table = file.read(columns=columns)
    found: set[int] = set()
    for column in columns:
        hits = pc.match_substring(table[column].cast(pa.large_string()), sought, ignore_case=True)
        found |= {i for i, hit in enumerate(hits.to_pylist()) if hit}
    return found


# --- group -----------------------------------------------------------------------------------------------------------


def group(library: Library, given: Given) -> dict[str, Any]:
    """One question's traces at a step, token by token, and at which other steps it was asked."""
    name = _chosen(library, given)[0]
    followed, table = library.followed(name), library.table()
    mine = table[:, table[AT["run"]] == followed.number]
    # Held-out questions recur.
    there = [name for name in ("held-out", *KINDS) if (mine[AT["kind"]] == KINDS.index(name)).any()]
    kind = one(given, "kind") or next(iter(there), KINDS[0])
    if kind not in KINDS:
        raise ConfigError(f"kind={kind}: has to be one of {', '.join(KINDS)}.")
    mine = mine[:, mine[AT["kind"]] == KINDS.index(kind)]
    step, example = _whole(given, "step"), _whole(given, "example")
    if not mine.size:
        raise StoreError(f"{name}: no traces of kind {kind} are stored (yet).")
    if example is None:
        at = mine[AT["step"]] == (mine[AT["step"]].max() if step is None else step)
        if not at.any():
            raise StoreError(f"{name}: no traces of step {step} are stored.")
        example = int(mine[AT["example"], at][0])
    steps = np.unique(mine[AT["step"], mine[AT["example"]] == example]).astype(int).tolist()
    if not steps:
        raise StoreError(f"{name}: question {example} is not among the stored traces.")
    step = steps[-1] if step is None else min(steps, key=lambda known: (abs(known - step), known))
    examples = list(dict.fromkeys(mine[AT["example"], mine[AT["step"]] == step].astype(int).tolist()))
    rows = library.group(name, f"{kind}-{step:06d}", example, ROW_COLUMNS)
    if not rows:
        raise StoreError(f"{name}: question {example} is no longer stored for step {step}.")
    where = {"run": name, "kind": kind, "step": step, "example": example, "steps": steps, "examples": examples}
    rows = looked_through(followed.run, f"{kind}-{step:06d}", rows)
    return where | group_of(rows, rows[0]["question"], library.cutter(followed.run), followed.clips)


def looked_through(run: Run, table: str, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a trace table, each with what `nrt analyze xray` found of it, None for nothing."""
    found = {}
    with contextlib.suppress(StoreError, OSError):
        found = {(row["example"], row["k"]): row for row in run.xray(table)}
    return [{**row, "xray": found.get((row["example"], row["k"]))} for row in rows]


def group_of(
    rows: Sequence[Mapping[str, Any]], question: str, cut: Cutter | None, clips: bool, most: int = LONGEST
) -> dict[str, Any]:
    """One question's rows of a trace table. Without a tokenizer, texts are one piece each and nothing is known of
    single tokens."""

    def texts(ids: Sequence[int] | None, text: str | None) -> list[str]:
        return cut((ids or ())[:most]) if cut and ids else [(text or "")[: 4 * most]]

    def numbers(values: Sequence[float] | None, form: Callable[[float], float | None]) -> list[float | None]:
        return [form(value) for value in (values or ())[: most + 1]] if cut else []

    first = rows[0]
    answer_ids = first["answer_ids"]
    return {
        "example": first["example"],
        "source": first["source"],
        "question": question[: 4 * most],
        "answer": texts(answer_ids, plain_text(first["answer"] or "") if not (cut and answer_ids) else None),
        "base": numbers(first["null_logprobs"], thousandths),
        "traces": [
            {
                "k": row["k"],
                "stop": row["stop"],
                "length": len(row["trace_ids"]) if row["trace_ids"] is not None else None,
                "tokens": texts(row["trace_ids"], row["trace"]) if row["trace"] is not None else None,
                "entropy": numbers(row["trace_entropies"], thousandths),
                "chance": numbers(row["trace_logprobs"] or row["sampler_logprobs"], thousandths),
                "after": numbers(row["answer_logprobs"], thousandths),
                "signal": numbers(row["token_signals"], four_digits),
                "dead": row["dead_group"],
                "clipped": clips and _clipped(row),
                "log_reward": log_of(row["reward_scaled"], row["reward_log_scale"]),
                "log_baseline": log_of(row["reward_base_scaled"], row["reward_log_scale"]),
                **{key: four_digits(row[key]) for key in ("gain", "reward", "reward_base", "advantage")},
                **_replied(row),
                "xray": _seen_in(row.get("xray")),
            }
            for row in rows
        ],
    }


def _seen_in(xray: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The steps of a trace, and what each does for the answer."""
    if not xray or not xray.get("steps"):
        return None
    lists = {key: [four_digits(value) for value in xray.get(key) or ()] for key in ("necessity", "needed", "kept")}
    numbers = {key: four_digits(xray.get(key)) for key in ("null_logprob", "smuggled")}
    return {"unit": xray["unit"], "steps": xray["steps"], "decided": xray.get("decided"), **lists, **numbers}


def _replied(row: Mapping[str, Any]) -> dict[str, Any]:
    """The greedy answer of a held-out question, and its grade."""
    kind = "thinking" if row["thinking_score"] is not None else "direct"
    return {"reply": (row[f"{kind}_reply"] or "")[: 4 * LONGEST] or None, "right": row[f"{kind}_score"]}


def _clipped(row: Mapping[str, Any]) -> bool | None:
    """Whether R' = max(0, R - R_base) cut a reward to 0; None where that is not stored."""
    scaled, base = row["reward_scaled"], row["reward_base_scaled"]
    return None if scaled is None or base is None else bool(scaled <= base)


def log_of(scaled: float | None, log_scale: float | None) -> float | None:
    """log R, also where R is below what a float holds; None for one that is not above 0."""
    return round(math.log(scaled) + (log_scale or 0.0), 4) if scaled and scaled > 0 else None


def thousandths(value: float) -> float | None:
    """A log-probability or an entropy to a thousandth of a nat."""
    return round(value, 3) if math.isfinite(value) else None


def four_digits(value: float | None) -> float | None:
    """A number to 4 significant digits: rewards and signals may lie far below 1."""
    return float(f"{value:.4g}") if value is not None and math.isfinite(value) else None


# --- curves ----------------------------------------------------------------------------------------------------------

PANELS: dict[str, tuple[str, str, str]] = {
    "held_out:answer_logprob": ("held-out log P(y*)", "nats per answer", "given a sampled trace; SFT: directly"),
    "held_out:null_logprob": ("held-out log P(y*), null trace", "nats per answer", "without having thought"),
    "held_out:gain": ("held-out gain", "nats per answer", "log P(y*) with a trace minus that without"),
    "held_out:accuracy_thinking": ("held-out accuracy", "share", "greedy answers that are right, after a trace"),
    "held_out:accuracy_direct": (
        "held-out accuracy, direct",
        "share",
        "greedy answers that are right, without thinking",
    ),
    "gain": ("training gain", "nats per answer", "mean over a step's traces"),
    "trace_length": ("trace length", "tokens", "mean over a step's traces"),
    "entropy": ("trace entropy", "nats per token", "mean exact entropy at sampled tokens"),
    "forced_share": ("forced ends", "share of traces", "whose end was put there"),
    "dead_groups": ("dead groups", "share of groups", "whose traces all have advantage 0"),
    "sampler_gap": ("sampler gap", "nats per token", "what trainer and sampler differ by"),
    "loss": ("loss", "-", "what is minimised"),
}
"""Curves: metric -> title, unit and what it is."""
REMARKS = ("collapse", "checkpoint", "resumed", "interrupted", "failed", "damaged checkpoint")


def curves(library: Library, given: Given) -> dict[str, Any]:
    """Some runs' metrics over steps, what happened to them, and the settings they differ in."""
    names = _chosen(library, given)
    found = [curve_of(name, library.followed(name).run.path, library.followed(name).records) for name in names]
    keys = dict.fromkeys(key for run in found for key in run["settings"])
    differ = {key for key in keys if len({repr(run["settings"].get(key)) for run in found}) > 1}
    lines = [run | {"settings": {k: v for k, v in run["settings"].items() if k in differ}} for run in found]
    return {"panels": panels(), "window": WINDOW, "runs": lines}


def panels() -> list[dict[str, Any]]:
    zero = ("held_out:gain", "gain", "trace_length", "entropy", "sampler_gap")
    return [
        {
            "key": key,
            "title": title,
            "unit": unit,
            "about": about,
            "share": "share" in unit,
            "zero": key in zero,
            "log": False,
        }
        for key, (title, unit, about) in PANELS.items()
    ]


@lru_cache(maxsize=64)
def curve_of(name: str, path: Path, seen: object) -> dict[str, Any]:
    """A run's curves; read once for each state of its records."""
    run = Run(path)
    manifest = run.manifest()
    values: dict[str, Any] = {}
    for kind, prefix, window in (("train", "", WINDOW), ("held_out", "held_out:", 1)):
        records = run.metrics(kind)
        for key in (
            key.removeprefix(prefix) for key in PANELS if key.startswith(prefix) and (prefix or ":" not in key)
        ):
            # A held-out measure may be taken at some of the steps only.
            of_key = [r for r in records if window > 1 or math.isfinite(r.get(key, math.nan))]
            raw, steps = np.array([r.get(key, math.nan) for r in of_key], dtype=float), [r["step"] for r in of_key]
            if np.isfinite(raw).any():
                keep, mean = spread(range(len(steps)), MOST), smooth(raw, window)
                lines = {"raw": raw, "mean": mean} if window > 1 else {"mean": mean}
                values[prefix + key] = {"step": [steps[i] for i in keep]} | {
                    line: [four_digits(float(of[i])) for i in keep] for line, of in lines.items()
                }
    last, remarks = 0, []
    for event in run.events():
        last = int(event.get("step") or last)
        if event.get("kind") in REMARKS:
            said = {key: value for key, value in event.items() if key not in ("time", "kind", "step")}
            remarks.append({"kind": event["kind"], "step": last, "time": event.get("time"), "text": _said(said)})
    settings = flatten(run.settings()) | {"method": manifest["method"]}
    return {
        "run": name,
        "title": _title(run, manifest),
        "values": values,
        "remarks": remarks,
        "settings": settings,
        "kinds": [kind for kind in KINDS if any(stem.startswith(f"{kind}-") for stem in run.trace_names())],
    }


def _said(event: Mapping[str, Any]) -> str:
    return str(event.get("seen") or "; ".join(f"{key} {value}" for key, value in event.items()))


def smooth(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """The mean of the last values at each; what is not measured is passed over."""
    there = np.isfinite(values)
    sums, counts = (np.concatenate([[0.0], np.cumsum(of)]) for of in (np.where(there, values, 0.0), there))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    with np.errstate(invalid="ignore"):
        found: NDArray[np.float64] = (sums[ends] - sums[starts]) / (counts[ends] - counts[starts])
    return found


def spread(values: Sequence[Value], count: int) -> list[Value]:
    """At most `count` of some values, evenly from the first to the last."""
    if len(values) <= count:
        return list(values)
    return [values[round(i * (len(values) - 1) / (count - 1))] for i in range(count)]


# --- two runs, one question ------------------------------------------------------------------------------------------


def compare(library: Library, given: Given) -> dict[str, Any]:
    """Two runs' held-out traces of the same questions, step by step, with what they differ by, in pairs."""
    names = given.get("run") or list(library.runs)[:2]
    if len(names) != 2:
        raise ConfigError("/compare wants two runs: /compare?run=A&run=B.")
    a, b = (library.followed(name) for name in names)
    prints = [one.run.manifest().get("fingerprints", {}).get("validation") for one in (a, b)]
    if None not in prints and prints[0] != prints[1]:
        raise StoreError("these two runs have other held-out questions: there is nothing to compare in pairs.")
    held = [{int(part.rpartition("-")[2]) for part in one.parts if not part.startswith("step-")} for one in (a, b)]
    if not (steps := sorted(held[0] & held[1])):
        raise StoreError("these two runs have no held-out scores of the same step.")
    step, example = _whole(given, "step"), _whole(given, "example")
    asked = steps[-1] if step is None else step
    step = min(steps, key=lambda known: abs(known - asked))
    found = difference_of(a.run.path, b.run.path, step, (a.records, b.records))
    examples = found["examples"]
    example = examples[0] if example is None else example
    if example not in examples:
        raise StoreError(f"question {example} is not held out in both runs.")
    sides = []
    for name in names:
        kind = "direct" if f"direct-{step:06d}" in library.followed(name).parts else "held-out"
        where = {"run": [name], "kind": [kind], "step": [str(step)], "example": [str(example)]}
        sides.append(group(library, where))
    return found | {"runs": list(names), "steps": steps, "step": step, "example": example, "sides": sides}


@lru_cache(maxsize=256)
def difference_of(one: Path, other: Path, step: int, seen: object) -> dict[str, Any]:
    """Of two runs after a step: the held-out `examples` that both have, and b - a of every measure over them, each with
    its 95 % interval over them."""
    a, b = Run(one), Run(other)
    both = thinks(a.manifest()["method"], a.settings()) and thinks(b.manifest()["method"], b.settings())
    rows = [{row["example"]: row for row in run.held_out_rows(step, COLUMNS)} for run in (a, b)]
    examples = [example for example in rows[0] if example in rows[1]]
    if not examples:
        raise StoreError(f"these two runs share no held-out question of step {step}.")
    differences = []
    for measure in measures(both):
        pairs = [(measure.of(rows[0][example]), measure.of(rows[1][example])) for example in examples]
        if values := [two - first for first, two in pairs if math.isfinite(two - first)]:
            found = mean_over_rows(values)
            ends = {key: four_digits(getattr(found, key)) for key in ("value", "low", "high")}
            of = {"step": step, "key": measure.key, "title": measure.title, "share": measure.share, "n": found.n}
            differences.append(of | ends)
    return {"examples": examples, "differences": differences}


# --- evaluations -----------------------------------------------------------------------------------------------------


def evals(library: Library, given: Given) -> dict[str, Any]:
    """Benchmarks of some runs; of one benchmark, its documents: those first that one model loses against the other."""
    found: dict[str, list[tuple[str, Any]]] = {}
    for name in given.get("run") or list(library.runs):
        run = library.followed(name).run
        for folder in sorted(run.path.glob("evals/*")):
            for evaluation in find_evaluations(folder):
                label = (
                    name if folder.name == "export" else f"{name}@{folder.name.removeprefix('step-').lstrip('0') or 0}"
                )
                found.setdefault(str(evaluation.about().get("benchmark")), []).append((label, evaluation))
    scores = [
        {"benchmark": benchmark, "model": label}
        | {key: (evaluation.scores() or {}).get(key) for key in ("score", "error", "n", "metric")}
        for benchmark, those in found.items()
        for label, evaluation in those
    ]
    benchmark = one(given, "benchmark")
    if benchmark is None:
        return {"scores": scores}
    if benchmark not in found:
        raise StoreError(f"{benchmark}: none of these runs has an evaluation of it.")
    models = dict(found[benchmark])
    chosen = (given.get("model") or list(models))[:2]
    if unknown := [label for label in chosen if label not in models]:
        raise StoreError(f"{unknown[0]}: there is no such model of {benchmark}.")
    answered = [models[label].documents() for label in chosen]
    metrics = [str((models[label].scores() or {}).get("metric")) for label in chosen]
    fates: dict[str, list[str]] = {fate: [] for fate in (FATES if len(chosen) > 1 else ("wrong", "right"))}
    for key in answered[0]:
        if all(key in documents for documents in answered):
            right = [_grade(of[key], metric) >= 0.5 for of, metric in zip(answered, metrics, strict=True)]
            fate = {(True, False): "lost", (False, True): "won", (False,): "wrong", (True,): "right"}.get(tuple(right))
            fates[fate or ("both right" if right[0] else "both wrong")].append(key)
    only = one(given, "only")
    if only is not None and only not in fates:
        raise ConfigError(f"only={only}: has to be one of {', '.join(fates)}.")
    keys = [(fate, key) for fate, those in fates.items() if only in (None, fate) for key in those]
    at = _whole(given, "at") or 0
    shown = one(given, "document") or (keys[at][1][:16] if at < len(keys) else None)
    whole = next((key for _, key in keys if shown and key.startswith(shown)), None)
    return {
        "scores": scores,
        "benchmark": benchmark,
        "models": list(models),
        "chosen": chosen,
        "counts": {fate: len(those) for fate, those in fates.items()},
        "found": len(keys),
        "at": at,
        "documents": [
            {
                "document": key[:16],
                "id": answered[0][key].id,
                "fate": fate,
                "question": shorter(_asked(answered[0][key])),
            }
            for fate, key in keys[at : at + PAGE]
        ],
        "document": None if whole is None else _document(whole, chosen, answered, metrics),
    }


FATES = ("lost", "won", "both wrong", "both right")
"""What became of a document from one model to the other; what is lost is seen first."""


def _grade(document: Document, metric: str) -> float:
    graded = document.scores.get(metric, next((score for score in document.scores.values() if score == score), 0.0))
    return float(graded if graded == graded else 0.0)


def _asked(document: Document) -> str:
    return str(document.messages[-1].get("content", "")) if document.messages else ""


def _document(
    key: str, chosen: Sequence[str], answered: Sequence[Mapping[str, Document]], metrics: Sequence[str]
) -> dict[str, Any]:
    """A document whole: what was asked, what is right, and of each model its replies and why they were graded so."""
    first = answered[0][key]
    gold = first.gold if isinstance(first.gold, str) else json.dumps(first.gold, ensure_ascii=False)
    sides = []
    for model, documents, metric in zip(chosen, answered, metrics, strict=True):
        document = documents[key]
        replies = []
        for reply, read in zip_longest(document.replies, document.extracted):
            if reply is None:
                continue
            why = "nothing in the answer could be read as one" if read is None else f"what was read is {read!r}"
            why = "the likeliest continuation is graded" if reply.logprob is not None else why
            why += "; the answer was cut at its cap" if reply.cut else ""
            texts = {"trace": reply.trace[:MOST_TEXT] if reply.stop else None, "answer": reply.answer[:MOST_TEXT]}
            replies.append(
                {**texts, "stop": reply.stop, "read": read, "why": f"{why}; what is right is {gold[:200]!r}."}
            )
        sides.append({"model": model, "metric": metric, "scores": dict(document.scores), "replies": replies[:8]})
    turns = [{key: str(text)[:MOST_TEXT] for key, text in message.items()} for message in first.messages]
    return {
        "document": key[:16],
        "id": first.id,
        "subset": first.subset,
        "turns": turns,
        "gold": gold[:MOST_TEXT],
        "sides": sides,
    }


MOST_TEXT = 4 * LONGEST
"""Characters of a text of an evaluation."""

SCREENS: dict[str, tuple[Callable[[Library, Given], dict[str, Any]], tuple[str, ...]]] = {
    "runs": (runs, ()),
    "list": (list_, ("run", "kind", *FILTERS, "text", "sort", "at")),
    "group": (group, ("run", "kind", "step", "example", "k", "shade", "by")),
    "curves": (curves, ("run",)),
    "compare": (compare, ("run", "step", "example")),
    "evals": (evals, ("run", "benchmark", "model", "only", "document", "at")),
}
"""Each screen's function and the parameters of its address; `k`, `shade` and `by` say what of a group is looked at."""
