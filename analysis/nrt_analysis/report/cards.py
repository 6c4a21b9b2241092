"""Which runs a report is about, and what each of them is called."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nrt_analysis.report.contents import RunCard
from nrt_analysis.report.paper import paper, paper_model
from nrt_analysis.report.studies import planned_title, study_config
from nrt_cli.config import RunConfig, flatten, read_yaml, recorded
from nrt_cli.config.titles import method_title, run_title
from nrt_cli.errors import ConfigError, StoreError
from nrt_cli.store import Run, find_runs
from nrt_cli.store.files import read_json
from nrt_cli.store.study import STUDY

DECIDES = ("objective.", "optimiser.", "tokens.", "model.lora.", "data.max_")
"""Sections whose settings decide what is learned, and with `DECIDES_TOO`, single ones."""

DECIDES_TOO = (
    "rollout.group_size", "rollout.temperature", "rollout.max_trace_tokens",
    "train.epochs", "train.steps", "train.batch_size", "train.minibatch_size",
)  # fmt: skip


def cards(paths: Sequence[Path]) -> list[RunCard]:
    """The runs of studies and folders, and single runs, each once: by model, method (the paper's order) and seed.

    Raises StoreError where a path does not exist or nothing is found.
    """
    runs: dict[Path, Run] = {}
    for path in paths:
        if not path.is_dir():
            raise StoreError(f"{path}: no such study or run folder; `nrt runs` lists the runs there are.")
        runs |= {run.path.resolve(): run for run in find_runs(path)}
    if not runs:
        places = ", ".join(map(str, paths))
        raise StoreError(f"{places}: no runs are there; `nrt reproduce laptop` or `nrt train` makes some.")
    return _labelled(sorted(_titled(_named_models([_card(run) for run in runs.values()])), key=_order))


def _order(card: RunCard) -> tuple[Any, ...]:
    """Models and methods as in the paper, its own first; then seeds."""
    models = [model["title"] for model in paper()["models"]]
    methods = list(paper()["methods"])
    title, known = paper_model(card.model), card.method in methods
    return (
        (0, models.index(title)) if title else (1, 0),
        card.model,
        # Variants, such as a control, come last.
        _plainness(card) == 2,
        (0, methods.index(card.method)) if known else (1, 0),
        (_plainness(card), card.title),
        card.seed,
        str(card.run.path),
    )


def _plainness(card: RunCard) -> int:
    """0 for the method as it is, 1 for one with other settings, 2 for a variant of a study."""
    return (
        0 if card.title == method_title(card.method) else 1 if card.title.startswith(method_title(card.method)) else 2
    )


def _card(run: Run) -> RunCard:
    manifest, config = run.manifest(), _config(run)
    above = run.path.resolve().parent.parent
    study = above if (above / STUDY).is_file() else None
    return RunCard(
        label="",
        run=run,
        study=study,
        model=_model_name(run, config, study),
        method=str(manifest["method"]),
        title=_title(run, str(manifest["method"]), config, study),
        seed=int(config.get("seed", 0)),
        status=run.status(),
        manifest=manifest,
        config=config,
        data=_data_manifest(config, manifest, study),
    )


def _title(run: Run, method: str, config: Mapping[str, Any], study: Path | None) -> str:
    """What the run's study calls it, or where it is no study's, what any run like it is called."""
    found = planned_title(study, run.path.resolve().name) if study else None
    return found or run_title(method, config)


def _config(run: Run) -> dict[str, Any]:
    """The run's config, with the defaults of keys that did not exist when it was written."""
    try:
        values = read_yaml(run.config_path)
    except ConfigError:
        return {}
    try:
        return recorded(values, origin=str(run.config_path)).model_dump(mode="json")
    except ConfigError:  # of another version
        return values


def _model_name(run: Run, config: Mapping[str, Any], study: Path | None) -> str:
    """The starting model's name: the study's, what `nrt model prepare` was given, or its folder's name."""
    if study and (asked := study_config(study)):
        return asked.model.name
    folder = str(config.get("model", {}).get("path", ""))
    for prepared in (run.export_path / "nrt.json", Path(folder) / "nrt.json"):
        try:
            source = str(read_json(prepared)["source"])
        except (OSError, ValueError, KeyError):
            continue
        return Path(source.removeprefix("builtin:")).name
    return Path(folder).name or "unknown"


def _data_manifest(config: Mapping[str, Any], manifest: Mapping[str, Any], study: Path | None) -> dict[str, Any]:
    """What `nrt data prepare` wrote beside the training data, if it still describes the file that was trained on."""
    train = Path(str(config.get("data", {}).get("train", "")))
    # A study that was moved has its data still, though not where the run says.
    for folder in (*([study / "data"] if study else []), train.parent):
        try:
            found = read_json(folder / "manifest.json")
            if found["outputs"][train.name] == manifest.get("fingerprints", {}).get("train"):
                return found
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return {}


# --- names -----------------------------------------------------------------------------------------------------------


def _named_models(found: list[RunCard]) -> list[RunCard]:
    """Groups are models, so two models of one name are told apart by their digests."""
    digests = defaultdict(set)
    for card in found:
        digests[card.model].add(_model_digest(card))
    return [
        replace(card, model=f"{card.model} ({_model_digest(card)[:8]})") if len(digests[card.model]) > 1 else card
        for card in found
    ]


def _model_digest(card: RunCard) -> str:
    return str(card.manifest.get("fingerprints", {}).get("model", "unknown"))


def deciding(card: RunCard) -> dict[str, Any]:
    """The settings that decide what a run learns, its seed aside."""
    flat = flatten(card.config)
    own = {key: value for key, value in flat.items() if key.startswith(DECIDES) or key in DECIDES_TOO}
    return {"method": card.method, **own}


def _titled(found: list[RunCard]) -> list[RunCard]:
    """Runs of one model and title that differ in more than the seed get those settings into their titles.

    The runs nearest to the paper's objective, then to its other settings, keep the plain title.
    """
    groups = defaultdict(list)
    for card in found:
        groups[card.model, card.title].append(card)
    plain = {key: _plainest(group) for key, group in groups.items()}
    titled = []
    for card in found:
        settings = deciding(plain[card.model, card.title])
        own = deciding(card)
        differing = [f"{key}={own.get(key)}" for key in own | settings if own.get(key) != settings.get(key)]
        title = f"{card.title} [{', '.join(differing)}]" if differing else card.title
        titled.append(replace(card, title=title))
    return titled


def _plainest(group: Sequence[RunCard]) -> RunCard:
    usual = flatten(RunConfig().model_dump(mode="json"))
    counts = Counter(_settings_key(card) for card in group)

    def distance(card: RunCard) -> tuple[int, int, int]:
        differing = [key for key, value in deciding(card).items() if usual.get(key) != value]
        objective = sum(key.startswith("objective.") for key in differing)
        return objective, len(differing), -counts[_settings_key(card)]

    return min(group, key=distance)


def _settings_key(card: RunCard) -> str:
    return json.dumps(deciding(card), sort_keys=True)


def _labelled(found: list[RunCard]) -> list[RunCard]:
    """Labels: title and seed, with the model where there are several; runs that share all of it get their path."""
    several = len({card.model for card in found}) > 1
    names = [f"{card.title}, seed {card.seed}" for card in found]
    if several:
        names = [f"{card.model}, {name}" for name, card in zip(names, found, strict=True)]
    counts = Counter(names)
    return [
        replace(card, label=f"{name} ({card.run.path})" if counts[name] > 1 else name)
        for name, card in zip(names, found, strict=True)
    ]
