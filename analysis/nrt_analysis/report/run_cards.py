"""Which runs a report is about, what each of them is called, and what studies and other commands left beside them."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from nrt_analysis.report.paper import paper, paper_model
from nrt_cli import methods
from nrt_cli.config import RunConfig, flatten, read_yaml, recorded, validated
from nrt_cli.config.study import Planned, StudyConfig, Variant, planned_runs
from nrt_cli.config.titles import TITLES, is_control, method_title, run_title, thinks
from nrt_cli.errors import ConfigError, StoreError
from nrt_cli.files import damage, read_record
from nrt_cli.store import Run, find_runs
from nrt_cli.store.study import STUDY, Study

DECIDES = ("objective.", "optimiser.", "tokens.", "model.lora.", "data.max_")
"""Sections whose settings decide what a run learns, its seed aside, and with `DECIDES_TOO`, single ones."""

DECIDES_TOO = (
    "rollout.group_size", "rollout.temperature", "rollout.max_trace_tokens",
    "train.epochs", "train.steps", "train.batch_size", "train.minibatch_size",
)  # fmt: skip


@dataclass(frozen=True)
class RunCard:
    """One run, with what a page says of it. Traces and the rest are read from `run` where they are needed."""

    label: str
    """Unique in the report: model, method, seed."""
    run: Run
    study: Path | None
    """The study's folder, where it belongs to one."""
    model: str
    """Group: the starting model's name."""
    method: str
    """As configured: `sft`, `am`, ..., `module:function`."""
    title: str
    """As the paper calls it: `SFT`, `RLPR`, `NRT-WS (-log p)`; with the settings in which it differs from another run
    of its model and method."""
    samples: bool
    """Whether it sampled traces to learn from."""
    control: bool
    """Whether it sampled traces and learned nothing from their rewards."""
    thinks: bool
    """Whether its model learned to think before it answers."""
    seed: int
    status: str
    """`finished`, `running`, `stopped`, `failed`, ..."""
    manifest: Mapping[str, Any]
    settings: Mapping[str, Any]
    """The resolved config by dotted key; empty where it cannot be read."""
    sources: Sequence[Mapping[str, Any]]
    """The data sets that the training data was made from, by `name`: their `count` in all and its `percentage`, and how
    many are to `train` on; none where what `nrt data prepare` wrote beside the data is not there any more."""

    @cached_property
    def steps(self) -> list[dict[str, Any]]:
        """Metrics of the training steps, read once: many parts of a report ask, and the run may still go on."""
        return self.run.metrics()

    @cached_property
    def held_out(self) -> list[dict[str, Any]]:
        return self.run.metrics("held_out")

    @property
    def step(self) -> int:
        return int(self.steps[-1]["step"]) if self.steps else 0

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    @property
    def so_far(self) -> str:
        """How far a run that is not finished came."""
        return f"{self.label} is {self.status} after step {self.step} of {self.manifest.get('steps', '?')}"

    @property
    def pairs(self) -> Mapping[str, Any]:
        """What became of the training data: `examples`, `dropped`, and what of it is asked elsewhere too."""
        return self.manifest.get("data") or {}

    def fingerprint(self, of: str) -> str | None:
        """The digest of `train`, `validation` or `model`; None where the run does not say."""
        digest: str | None = self.manifest.get("fingerprints", {}).get(of)
        return digest


def find_cards(paths: Sequence[Path]) -> list[RunCard]:
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
    # Models of one name are told apart by their digests: they are groups.
    found, digests, groups = [_card(run) for run in runs.values()], defaultdict(set), defaultdict(list)
    for card in found:
        digests[card.model].add(card.fingerprint("model") or "unknown")
    for i, card in enumerate(found):
        if len(digests[card.model]) > 1:
            found[i] = replace(card, model=f"{card.model} ({(card.fingerprint('model') or 'unknown')[:8]})")
        groups[found[i].model, card.title].append(found[i])
    # Runs of one model and title that differ in more than the seed get those settings into their titles.
    usual, titled = flatten(RunConfig().model_dump(mode="json")), []
    for (_, title), group in groups.items():
        settings = [
            {"method": card.method}
            | {key: value for key, value in card.settings.items() if key.startswith(DECIDES) or key in DECIDES_TOO}
            for card in group
        ]

        def distance(own: dict[str, Any], all_settings: list[dict[str, Any]] = settings) -> tuple[int, int, int]:
            differing = [key for key, value in own.items() if usual.get(key) != value]
            objective = sum(key.startswith("objective.") for key in differing)
            return objective, len(differing), -all_settings.count(own)

        # The runs nearest to the paper's objective, then to its other settings, keep the plain title.
        plain = min(settings, key=distance)
        for card, own in zip(group, settings, strict=True):
            differing = [f"{key}={own.get(key)}" for key in own | plain if own.get(key) != plain.get(key)]
            titled.append(replace(card, title=f"{title} [{', '.join(differing)}]") if differing else card)
    found = sorted(titled, key=_order)
    # Labels: title and seed, with the model where there are several; runs that share all of it get their path.
    names = [f"{card.title}, seed {card.seed}" for card in found]
    if len({card.model for card in found}) > 1:
        names = [f"{card.model}, {name}" for name, card in zip(names, found, strict=True)]
    return [
        replace(card, label=f"{name} ({card.run.path})" if names.count(name) > 1 else name)
        for name, card in zip(names, found, strict=True)
    ]


def _order(card: RunCard) -> tuple[Any, ...]:
    """Models and methods as in the paper, its own first; then seeds."""
    models, known = [model["title"] for model in paper()["models"]], list(paper()["methods"])
    model, plain = paper_model(card.model), method_title(card.method)
    # 0 for the method as it is, 1 for one with other settings, 2 for a variant of a study, such as a control.
    unlike = 0 if card.title == plain else 1 if card.title.startswith(plain) else 2
    return (
        (0, models.index(model)) if model else (1, 0),
        card.model,
        unlike == 2,
        (0, known.index(card.method)) if card.method in known else (1, 0),
        (unlike, card.title),
        card.seed,
        str(card.run.path),
    )


def _card(run: Run) -> RunCard:
    manifest, method = run.manifest(), str(run.manifest()["method"])
    config: dict[str, Any] = {}
    with suppress(ConfigError):  # not there, or of another version
        config = read_yaml(run.config_path)
        # With the defaults of keys that did not exist when it was written.
        config = recorded(config, origin=str(run.config_path)).model_dump(mode="json")
    settings, above = flatten(config), run.path.resolve().parent.parent
    study = above if (above / STUDY).is_file() else None
    # What the run's study calls it, or where it is no study's, what any run like it is called.
    planned = planned_title(study, run.path.resolve().name) if study else None
    # The starting model's name: the study's, what `nrt model prepare` was given, or its folder's name.
    folder, asked = Path(str(settings.get("model.path", ""))), read_study(study)[0] if study else None
    name = asked.model.name if asked else ""
    for prepared in (run.export_path / "nrt.json", folder / "nrt.json"):
        with suppress(OSError, ValueError, KeyError):
            name = name or Path(str(read_record(prepared)["source"]).removeprefix("builtin:")).name
    # What `nrt data prepare` wrote beside the training data, if it still describes the file that was trained on. A
    # study that was moved has its data still, though not where the run says.
    train = Path(str(settings.get("data.train", "")))
    sources: list[dict[str, Any]] = []
    for place in (*([study / "data"] if study else []), train.parent):
        with suppress(OSError, ValueError, KeyError, TypeError):
            found = read_record(place / "manifest.json")
            if not sources and found["outputs"][train.name] == manifest.get("fingerprints", {}).get("train"):
                sources = [
                    {"count": 0, "percentage": 0.0, **part, "name": part["source"], "train": part["train"]}
                    for part in found["composition"]
                ]
    return RunCard(
        label="",
        run=run,
        study=study,
        model=name or folder.name or "unknown",
        method=method,
        title=planned or run_title(method, config, own=manifest.get("title", "")),
        samples=methods.facts(method).samples,
        control=is_control(method, config),
        thinks=thinks(method, config),
        seed=int(settings.get("seed", 0)),
        status=run.status(),
        manifest=manifest,
        settings=settings,
        sources=sources,
    )


def read_study(folder: Path) -> tuple[StudyConfig | None, tuple[Planned, ...]]:
    """What a study asked for, and its runs; None and none where that cannot be read."""
    path = Study(folder).config_path
    return _read_study(folder, path.stat().st_mtime_ns if path.exists() else 0)


@cache
def _read_study(folder: Path, _: int) -> tuple[StudyConfig | None, tuple[Planned, ...]]:
    """Read once, for as long as its file is not written again."""
    try:
        study = validated(StudyConfig, read_yaml(Study(folder).config_path), lambda _: str(folder))
        return study, tuple(planned_runs(study, folder))
    except ConfigError:  # damaged, or of another version
        return None, ()


def planned_title(folder: Path, run: str) -> str | None:
    """What a study calls one of its runs; None for a run that it did not plan."""
    study, runs = read_study(folder)
    planned = next((one for one in runs if one.name == run), None)
    if study is None or planned is None:
        return None
    variant = study.variants.get(planned.method, Variant())
    # Only a variant that names a method is another one than it is called.
    named = planned.method if "method" in variant.settings else ""
    return variant.title or run_title(planned.config.method, planned.config.model_dump(), named)


def with_results(cards: Sequence[RunCard]) -> list[RunCard]:
    """The runs whose last records are results: of each model and title those that are finished.

    Where none is, the one that came farthest stands in, to be marked unfinished.
    """
    arms: dict[tuple[str, str], list[RunCard]] = {}
    for card in cards:
        arms.setdefault((card.model, card.title), []).append(card)
    farthest = {arm: max(of, key=lambda card: (card.finished, card.step)) for arm, of in arms.items()}
    return [card for card in cards if card.finished or card is farthest[card.model, card.title]]


def first_seeds(cards: Sequence[RunCard]) -> list[RunCard]:
    """Of each model and title the first run that has results: it stands for its other seeds."""
    first: dict[tuple[str, str], RunCard] = {}
    for card in with_results(cards):
        first.setdefault((card.model, card.title), card)
    return list(first.values())


def unfinished(cards: Sequence[RunCard]) -> Iterator[tuple[Path, Planned, str]]:
    """Planned runs of the studies that are not finished, and why."""
    for folder in dict.fromkeys(card.study for card in cards if card.study):
        outcomes = Study(folder).outcomes()
        for planned in read_study(folder)[1]:
            outcome = outcomes.get(planned.name)
            if outcome is None:
                yield folder, planned, "not run yet"
            elif outcome.status != "finished":
                yield folder, planned, f"{outcome.status}: {outcome.reason}" if outcome.reason else outcome.status
            else:
                try:
                    Run.open(folder / "runs" / planned.name)
                except StoreError as error:  # since it finished
                    yield folder, planned, str(error)


def stored_analyses(cards: Sequence[RunCard], name: str) -> Iterator[tuple[Path, Any]]:
    """The readable JSON files of `analysis/NAME`, of studies and then of runs, in order of their paths."""
    studies = {card.study for card in cards if card.study}
    for folder in (*sorted(studies), *sorted({card.run.path.resolve() for card in cards} - studies)):
        for path in sorted((folder / "analysis" / name).glob("*.json")):
            try:
                # As `nrt score --json` prints it, or a record of ours.
                text = path.read_text(encoding="utf-8")
                found = json.loads(text) if text.startswith("[") else read_record(path)
                yield path, found.get("replies", found) if isinstance(found, dict) else found
            except (OSError, ValueError) as error:
                damage(f"{path}: {error}; it is left out.")


def in_words(error: Exception, cards: Sequence[RunCard]) -> str:
    """What an error says, with the names that a report gives runs in place of where they are, and no full stop."""
    text = str(error).removesuffix(".")
    for card in cards:
        text = text.replace(str(card.run.path), card.label)
    return text


def title_of(label: str, cards: Sequence[RunCard], found: Path | None = None) -> str:
    """What a report calls the run that another analysis called by its method, its folder or its path.

    Args:
        found: the file of that analysis: of several runs with one name, it is about the one that it lies beside.
    """
    path, _, _ = label.partition("@")
    beside = [card for card in cards if found and {card.study, card.run.path.resolve()} & set(found.parents)]
    for card in (*beside, *cards):
        if path in (str(card.run.path), card.run.path.resolve().name):
            several = sum(other.title == card.title and other.model == card.model for other in cards) > 1
            return f"{card.title}, seed {card.seed}" if several else card.title
    return TITLES.get(path, label)
