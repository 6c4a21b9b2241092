"""`nrt runs`: what the runs below a folder are, and how they differ. Imports no torch."""

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nrt_cli import config as configs
from nrt_cli.commandline import nrt, resume
from nrt_cli.config.titles import run_title, thinks
from nrt_cli.errors import StoreError
from nrt_cli.measures.held_out import COLUMNS, before_and_after, shown
from nrt_cli.records import measured
from nrt_cli.store import Run, find_runs
from nrt_cli.store.evals import Evaluation, find_evaluations
from nrt_cli.store.housekeeping import size_of, tags_of

LAST = 10
"""Training steps that a metric's last mean is over."""

NOT_COMPARED = ("kind", "step")


def summary_of(run: Run) -> dict[str, Any]:
    """A run in a line: what it is, how far it is, its last held-out scores (None where there are none)."""
    manifest, done, held_out = run.manifest(), run.metrics(), run.metrics("held_out")
    last = held_out[-1] if held_out else {}
    return {
        "run": str(run.path),
        "method": manifest["method"],
        "title": run_title(manifest["method"], run.settings()),
        "status": run.status(),
        "step": done[-1]["step"] if done else 0,
        "steps": manifest.get("steps"),
        "held_out": last.get("answer_logprob"),
        "gain": last.get("gain"),
        "tags": tags_of(run),
        "created": manifest["created"],
    }


def list_runs(
    root: Path,
    methods: Sequence[str] = (),
    statuses: Sequence[str] = (),
    tags: Sequence[str] = (),
    where: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """`summary_of` each run below a folder that has one of the methods, one of the statuses, every tag and setting.

    Args:
        methods: names or the paper's names.
        where: settings such as `seed=1` or `rollout.group_size=8`.
    """
    wanted_methods = {configs.resolve({"method": method}).method for method in methods}
    settings = _settings(where)
    found = []
    for run in find_runs(root):
        record = summary_of(run)
        if (
            (not methods or record["method"] in wanted_methods)
            and (not statuses or record["status"] in statuses)
            and set(tags) <= set(record["tags"])
            and (not settings or _has(run, settings))
        ):
            found.append(record)
    return found


def _settings(where: Sequence[str]) -> dict[str, Any]:
    """The settings that are asked for, by key."""
    merged: dict[str, Any] = {}
    for text in where:
        merged = configs.merge(merged, configs.parse_override(text, "--where"))
    asked = configs.validated(configs.RunSettings, merged, lambda _: "--where")
    return configs.flatten(asked.model_dump(mode="json", exclude_unset=True))


def _has(run: Run, settings: Mapping[str, Any]) -> bool:
    own = configs.flatten(configs.read_yaml(run.config_path))
    return all(own.get(key) == value for key, value in settings.items())


# --- one run ---------------------------------------------------------------------------------------------------------


def describe(run: Run) -> dict[str, Any]:
    """Everything worth knowing of one run, ready for JSON; what was not measured is None."""
    manifest, events = run.manifest(), run.events()
    config = run.config()
    record = summary_of(run) | {
        "command": manifest.get("command"),
        "engine": manifest.get("engine"),
        "data": manifest.get("data"),
        "fingerprints": manifest.get("fingerprints"),
        "versions": manifest.get("versions"),
        "device": manifest.get("device"),
        "settings": _unlike_preset(config),
        "metrics": _last_metrics(run),
        "held_out_scores": run.metrics("held_out"),
        "held_out_measures": held_out_measures(run),
        "evaluations": [_evaluation(run, found) for found in evaluations_of(run)],
        "checkpoints": run.checkpoint_steps(),
        "best": asdict(best) if (best := run.best()) else None,
        "traces": run.trace_names(),
        "analyses": sorted(path.name for path in run.path.glob("analysis/*") if path.is_dir()),
        "events": events,
        "sizes": {path.name: size_of(path) for path in sorted(run.path.iterdir()) if not path.name.startswith(".")},
        "next": _next(run, run.status()),
    }
    cleaned: dict[str, Any] = measured(record)
    return cleaned


def _unlike_preset(config: configs.RunConfig) -> dict[str, Any]:
    plain = configs.resolve({"preset": config.preset})
    return {key: value for key, _, value in configs.diff(plain, config)}


def _last_metrics(run: Run) -> dict[str, float]:
    """Means over the last steps of every training metric."""
    records = run.metrics()[-LAST:]
    keys = [key for key in (records[-1] if records else ()) if key not in NOT_COMPARED]
    return {key: _mean([record[key] for record in records if key in record]) for key in keys}


def _mean(values: Sequence[float]) -> float:
    found = [value for value in values if not math.isnan(value)]
    return sum(found) / len(found) if found else math.nan


def evaluations_of(run: Run) -> list[Evaluation]:
    """The run's finished evaluations, those of its checkpoints too."""
    return [found for folder in sorted(run.path.glob("evals/*")) for found in find_evaluations(folder)]


def held_out_measures(run: Run) -> list[dict[str, Any]]:
    """What the held-out pairs say before and after training, each with its 95 % interval over the pairs; none where
    that is not stored."""
    scores = run.metrics("held_out")
    if not scores:
        return []
    first, last = (run.held_out_rows(scores[i]["step"], COLUMNS) for i in (0, -1))
    found = before_and_after(thinks(run.manifest()["method"], run.settings()), first, last)
    return [
        {
            "key": one.measure.key,
            "title": one.measure.title,
            "unit": "share" if one.measure.share else "nats",
            **{when: asdict(getattr(one, when)) for when in ("before", "after", "change")},
            "text": {
                "before": shown(one.before, one.measure, one.measure.difference),
                "after": shown(one.after, one.measure, one.measure.difference),
                "change": shown(one.change, one.measure, True),
            },
        }
        for one in found
        if one.after.n
    ]


def _evaluation(run: Run, found: Evaluation) -> dict[str, Any]:
    scores = found.scores() or {}
    keys = ("benchmark", "score", "error", "n", "metric", "backend")
    return {"of": found.path.parent.relative_to(run.path / "evals").as_posix()} | {k: scores.get(k) for k in keys}


def _next(run: Run, status: str) -> str:
    if status == "finished":
        pairs = run.config().data.validation
        # On its own pairs, where they still are: benchmarks may want a network.
        own: list[str | Path] = ["--data", Path(pairs)] if pairs and Path(pairs).is_file() else []
        return nrt("eval", "--model", run.path, *own)
    if status in ("running", "created"):
        return "wait: it is in training"
    return resume(run.path)


# --- several runs ----------------------------------------------------------------------------------------------------


def compare_runs(paths: Sequence[Path]) -> dict[str, Any]:
    """Settings, inputs and versions on which runs differ, and all their scores: one value per run, None for none."""
    runs = [Run.open(path) for path in paths]
    settings = [configs.flatten(run.config().model_dump(mode="json")) for run in runs]
    manifests = [run.manifest() for run in runs]
    origins = [
        configs.flatten({key: m.get(key) or {} for key in ("versions", "device", "fingerprints")}) for m in manifests
    ]
    record = {
        "runs": [str(path) for path in paths],
        "status": [run.status() for run in runs],
        "settings": [row for row in _aligned(settings) if _differs(row)],
        "origins": [row for row in _aligned(origins) if _differs(row)],
        "metrics": _aligned([dict(_scores(run)) for run in runs]),
    }
    cleaned: dict[str, Any] = measured(record)
    return cleaned


def _aligned(columns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row per key of any column, in the order in which they first come."""
    keys = dict.fromkeys(key for column in columns for key in column)
    return [{"key": key, "values": [column.get(key) for column in columns]} for key in keys]


def _differs(row: Mapping[str, Any]) -> bool:
    return any(value != row["values"][0] for value in row["values"])


def _scores(run: Run) -> Iterator[tuple[str, float]]:
    """Every number that a run ended with."""
    done, held_out = run.metrics(), run.metrics("held_out")
    yield "steps done", done[-1]["step"] if done else 0
    for key, value in (held_out[-1] if held_out else {}).items():
        if key not in (*NOT_COMPARED, "examples"):
            yield f"held-out {key}", value
    for evaluation in evaluations_of(run):
        found = _evaluation(run, evaluation)
        yield f"{found['benchmark']} ({found['of']})", found["score"]
    yield from _last_metrics(run).items()


# --- export ----------------------------------------------------------------------------------------------------------


def metrics_csv(runs: Sequence[Run]) -> bytes:
    """Every metrics record of some runs as CSV: run, method, kind, step, then all metrics; `NaN` for none."""
    rows = [
        {"run": str(run.path), "method": run.manifest()["method"], **record}
        for run in runs
        for kind in ("train", "held_out")
        for record in run.metrics(kind)
    ]
    columns = dict.fromkeys(["run", "method", "kind", "step", *(key for row in rows for key in row)])
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="NaN", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "NaN" if value != value else value for key, value in row.items()} for row in rows)
    return text.getvalue().encode()


def chosen_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs at or below each path, each once. Raises StoreError for a path without any."""
    found: dict[Path, Run] = {}
    for path in paths:
        below = find_runs(path)
        if not below:
            raise StoreError(f"{path}: no run there; `nrt runs FOLDER` lists those there are.")
        found |= {run.path.resolve(): run for run in below}
    return list(found.values())
