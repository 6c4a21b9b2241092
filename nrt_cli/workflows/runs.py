"""`nrt runs`: what the runs below a folder are, and how they differ. Imports no torch."""

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nrt_cli import config as configs
from nrt_cli.commandline import nrt, resume
from nrt_cli.config.titles import run_title, thinks
from nrt_cli.errors import Damage, NrtError, StoreError
from nrt_cli.files import read_record, sha256
from nrt_cli.measures.held_out import COLUMNS, Found, before_and_after
from nrt_cli.models.metadata import model_fault
from nrt_cli.records import measured
from nrt_cli.store import EVENTS, METRICS, Run, find_runs
from nrt_cli.store.evals import find_evaluations
from nrt_cli.store.files import reads
from nrt_cli.store.housekeeping import size_of, tags_of
from nrt_cli.store.judgements import Judgements, templates
from nrt_cli.store.study import Study
from nrt_cli.untrusted import csv_bytes

LAST = 10
"""Training steps that a metric's last mean is over."""

NOT_COMPARED = ("kind", "step")


def row_of(run: Run) -> dict[str, Any]:
    """A run in a line: what it is, how far it is, its last held-out scores (None where there are none)."""
    manifest, done = run.manifest(), run.last_metrics()
    last = next(iter(run.last_metrics("held_out")), {})
    return {
        "run": str(run.path),
        "method": manifest["method"],
        "title": run_title(manifest["method"], run.settings(), own=manifest.get("title", "")),
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
    """The runs below a folder, by `row_of`, that have one of the methods, one of the statuses, every tag and setting.

    Args:
        methods: names or the paper's names.
        where: settings such as `seed=1` or `rollout.group_size=8`.
    """
    wanted = {configs.resolve({"method": method}).method for method in methods}
    merged: dict[str, Any] = {}
    for text in where:
        merged = configs.merge(merged, configs.parse_override(text, "--where"))
    asked = configs.validated(configs.RunSettings, merged, lambda _: "--where")
    settings = configs.flatten(asked.model_dump(mode="json", exclude_unset=True))

    def has_settings(run: Run) -> bool:
        own = configs.flatten(configs.read_yaml(run.config_path)) if settings else {}
        return all(own.get(key) == value for key, value in settings.items())

    return [
        row
        for run in find_runs(root)
        for row in [row_of(run)]
        if (not methods or row["method"] in wanted)
        and (not statuses or row["status"] in statuses)
        and set(tags) <= set(row["tags"])
        and has_settings(run)
    ]


def describe(run: Run) -> dict[str, Any]:
    """Everything worth knowing of one run, as JSON has it: what was not measured is None."""
    manifest, config, row, best = run.manifest(), run.config(), row_of(run), run.best()
    if row["status"] == "finished":
        pairs = config.data.validation
        # On its own pairs, where they still are: benchmarks may want a network.
        own: list[str | Path] = ["--data", Path(pairs)] if pairs and Path(pairs).is_file() else []
        following = nrt("eval", "--model", run.path, *own)
    else:
        following = "wait: it is in training" if row["status"] in ("running", "created") else resume(run.path)
    measures = [
        {
            "key": one.measure.key,
            "title": one.measure.title,
            "unit": "share" if one.measure.share else "nats",
            **{when: asdict(getattr(one, when)) for when in ("before", "after", "change")},
            "text": one.text,
        }
        for one in held_out_measures(run)
    ]
    record: dict[str, Any] = measured(
        {
            **row,
            **{key: manifest.get(key) for key in ("command", "engine", "data", "fingerprints", "versions", "device")},
            "settings": {k: value for k, _, value in configs.diff(configs.resolve({"preset": config.preset}), config)},
            "metrics": _last_metrics(run),
            "held_out_scores": run.metrics("held_out"),
            "held_out_measures": measures,
            "evaluations": evaluations_of(run),
            "checkpoints": run.checkpoint_steps(),
            "best": asdict(best) if best else None,
            "traces": run.trace_names(),
            "analyses": sorted(path.name for path in run.path.glob("analysis/*") if path.is_dir()),
            "events": run.events(),
            # Bytes of each file and folder.
            "sizes": {path.name: size_of(path) for path in sorted(run.path.iterdir()) if path.name[0] != "."},
            "next": following,
        }
    )
    return record


def _last_metrics(run: Run) -> dict[str, float]:
    """Means over the last steps of every training metric."""
    records, means = run.last_metrics(count=LAST), {}
    for key in (key for key in (records[-1] if records else ()) if key not in NOT_COMPARED):
        values = [record[key] for record in records if key in record and not math.isnan(record[key])]
        means[key] = sum(values) / len(values) if values else math.nan
    return means


def evaluations_of(run: Run) -> list[dict[str, Any]]:
    """The finished evaluations `of` a run and of its checkpoints, and of their scores what there is."""
    keys = ("benchmark", "score", "error", "n", "metric", "backend")
    return [
        {"of": folder.name} | {key: scores.get(key) for key in keys}
        for folder in sorted(run.path.glob("evals/*"))
        for found in find_evaluations(folder)
        for scores in [found.scores() or {}]
    ]


def held_out_measures(run: Run) -> list[Found]:
    """What the held-out pairs say before and after training, each with its 95 % interval over the pairs; none where
    that is not stored."""
    scores = run.metrics("held_out")
    if not scores:
        return []
    first, last = (run.held_out_rows(scores[i]["step"], COLUMNS) for i in (0, -1))
    found = before_and_after(thinks(run.manifest()["method"], run.settings()), first, last)
    return [one for one in found if one.after.n]


def compare_runs(paths: Sequence[Path]) -> dict[str, list[Any]]:
    """The `runs` and their `status`, and what they differ on: a row for each key with one value per run, None for none.

    In `settings`, in `origins` (inputs, versions, machine), and in `metrics`: all scores, those that are the same too.
    """
    runs, origins, scores = [Run.open(path) for path in paths], [], []
    for run in runs:
        manifest, done = run.manifest(), run.last_metrics()
        origins.append(configs.flatten({k: manifest.get(k) or {} for k in ("versions", "device", "fingerprints")}))
        # Every number that a run ended with.
        ended: dict[str, Any] = {"steps done": done[-1]["step"] if done else 0}
        last = next(iter(run.last_metrics("held_out")), {})
        ended |= {f"held-out {k}": value for k, value in last.items() if k not in (*NOT_COMPARED, "examples")}
        ended |= {f"{found['benchmark']} ({found['of']})": found["score"] for found in evaluations_of(run)}
        scores.append(ended | _last_metrics(run))
    settings = [configs.flatten(run.config().model_dump(mode="json")) for run in runs]

    def aligned(columns: Sequence[Mapping[str, Any]], same: bool) -> list[dict[str, Any]]:
        """A row per key of any column, in the order in which they first come, with or without those that are `same`."""
        rows = {key: [column.get(key) for column in columns] for column in columns for key in column}
        return [
            {"key": key, "values": measured(values)}
            for key, values in rows.items()
            if same or any(value != values[0] for value in values)
        ]

    return {
        "runs": [str(path) for path in paths],
        "status": [run.status() for run in runs],
        "settings": aligned(settings, False),
        "origins": aligned(origins, False),
        "metrics": aligned(scores, True),
    }


# --- damage ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """What of a store is not as it was written: whose it is, and a sentence that names the file."""

    of: str
    what: str


def check(root: Path) -> list[Fault]:
    """What of the runs at or below a folder, and of the study that it may be, is not as it was written.

    Every file that carries a checksum, or of which another file has one, is read whole.
    """
    faults: list[Fault] = []

    @contextlib.contextmanager
    def looking(of: Path) -> Iterator[None]:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", Damage)
            try:
                yield
            except (NrtError, OSError) as error:
                faults.append(Fault(str(of), str(error)))
        faults.extend(Fault(str(of), str(one.message)) for one in told if issubclass(one.category, Damage))

    with looking(root):
        runs = find_runs(root)
    if (study := Study(root)).config_path.is_file():
        with looking(root):
            configs.read_yaml(study.config_path)
        with looking(root):
            study.outcomes()
    for folder in dict.fromkeys([root, *(run.path for run in runs)]):
        for path in sorted(folder.glob("analysis/*/*.json")):
            with looking(folder), reads(path, "the same command makes it again"):
                if path.read_bytes()[:1] != b"[":  # as `nrt score --json` prints it
                    found = read_record(path)
                    if not {"tables", "replies"} & found.keys():
                        raise ValueError("is another file than an analysis leaves")
                    for name, digest in found.get("files", {}).items():
                        if sha256(path.with_name(name)) != digest:
                            raise ValueError(f"is about another {name} than the one beside it")
    for run in runs:
        with looking(run.path):
            run.config()
        with looking(run.path):
            now, then = run.stored(), run.manifest().get("stored", {})
        changed = {name: now.get(name) for name, digest in then.items() if now.get(name) != digest}
        for name, digest in changed.items():
            how = "has another checksum than when the run finished" if digest else "is missing"
            faults.append(Fault(str(run.path), f"{run.path / name}: {how}; restore it from a copy."))
        with looking(run.path):
            kinds = {event.get("kind") for event in run.events()}
            if run.manifest().get("status") == "finished" and "finished" not in kinds:
                text = "does not say that the run finished, so it was cut; restore it from a copy."
                faults.append(Fault(str(run.path), f"{run.path / EVENTS}: {text}"))
        held_out = partial(run.metrics, "held_out")
        records = (partial(tags_of, run), Judgements(run).records, partial(templates, run))
        for read in records if METRICS in changed else (run.metrics, held_out, *records):
            with looking(run.path):
                read()
        for name in run.trace_names():
            with looking(run.path):
                if f"traces/{name}.parquet" not in changed:
                    run.traces(name)
        for step in run.checkpoint_steps():
            with looking(run.path):
                run.verify_checkpoint(step)
        for model in (*filter(Path.exists, [run.export_path]), *map(run.model_path, run.model_steps())):
            if fault := model_fault(model):
                faults.append(Fault(str(run.path), f"{fault}"))
        for folder in sorted(run.path.glob("evals/*")):
            with looking(run.path):
                for evaluation in find_evaluations(folder):
                    n, scores = len(evaluation.documents()), evaluation.scores() or {}
                    if scores.get("n", n) > n:
                        raise StoreError(
                            f"{evaluation.path}: {scores['n']} documents were scored and {n} are there; the same "
                            "`nrt eval` asks those that are missing."
                        )
    return list(dict.fromkeys(faults))


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
    return csv_bytes(columns, ([row.get(key) for key in columns] for row in rows))


def chosen_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs at or below each path, each once. Raises StoreError for a path without any."""
    found: dict[Path, Run] = {}
    for path in paths:
        below = find_runs(path)
        if not below:
            raise StoreError(f"{path}: no run there; `nrt runs FOLDER` lists those there are.")
        found |= {run.path.resolve(): run for run in below}
    return list(found.values())
