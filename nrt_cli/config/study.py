"""A study: the same data and starting model, several methods and seeds, evaluated and reported together.

A study is a YAML; `configs/study` has those that are shipped. Imports nothing heavy.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator

from nrt_cli import config as configs
from nrt_cli.config.schema import JudgeSection, RunConfig
from nrt_cli.config.suite import select
from nrt_cli.config.validation import FolderName, Section, Seed
from nrt_cli.errors import ConfigError
from nrt_cli.methods import METHODS

ALL = "all"
"""In `methods`: every method of this program that learns from questions and answers."""

ANSWERS = tuple(name for name, method in METHODS.items() if not method.text)


class PretrainSection(Section):
    """A tiny model made from nothing, of documents that a generator writes."""

    world: Literal["digits", "digits-2", "reports"] = Field(
        "digits-2",
        description="Whose documents: see nrt_cli/data/digits.py and reports.py. `digits`, the first version of the "
        "former, is no longer made.",
    )
    steps: int = Field(1300, ge=1, description="Optimiser steps.")
    batch_size: int = Field(12, ge=1, description="Documents per step.")
    first_share: float = Field(0.55, ge=0, le=1, description="Share of the steps that read the first mixture.")
    seed: Seed = Field(0, description="Decides its first weights and its documents.")


class StudyModel(Section):
    """The starting model of every run."""

    name: FolderName = Field(description="Names its folder, and the model in the report.")
    source: str | None = Field(
        None, description="What `nrt model prepare` takes: folder, GGUF file, builtin or hub id."
    )
    pretrain: PretrainSection | None = Field(None, description="Instead of a source.")
    init_start: str = Field("\n\n", description="As for `nrt model prepare`.")
    init_end: str = Field("\n", description="As for `nrt model prepare`.")

    @model_validator(mode="after")
    def _one_origin(self) -> "StudyModel":
        if (self.source is None) == (self.pretrain is None):
            raise ValueError("name either model.source or model.pretrain")
        return self


class StudyData(Section):
    """The pairs of every run, as for `nrt data prepare`."""

    sources: tuple[str, ...] = Field(
        min_length=1, description="Files, folders, hub ids or generators, as `nrt data prepare` takes them."
    )
    size: int | None = Field(None, ge=1, description="Use a random subset of this many pairs; null: all.")
    train: int | None = Field(
        None,
        ge=1,
        description="Train on exactly this many, none of them longer than the runs' caps, which drop the rest.",
    )
    stratify: bool = Field(False, description="Subset and split each source in its proportion.")
    validation: int | float = Field(64, ge=0, description="Questions to hold out: a number, or a share below 1.")
    held_out: tuple[str, ...] = Field(
        (), description="Sources of the held-out pairs, at most `validation` of them; none: a part of `sources`."
    )
    seed: Seed = Field(0, description="Decides the subset and the split.")
    selection: Literal["content", "train-test-split"] = Field(
        "content", description="How pairs are drawn: by what is in them, or as Hugging Face's train_test_split does."
    )
    duplicates: bool = Field(False, description="Keep rows that are the same.")
    spans: str | None = Field(
        None, description="Cut plain text into contexts and continuations, CONTEXT:CONTINUATION[:STRIDE] tokens."
    )
    suffix: str | None = Field(None, min_length=1, description="A last line for every question, held-out ones too.")

    @model_validator(mode="after")
    def _number_of_held_out(self) -> "StudyData":
        if self.held_out and not (isinstance(self.validation, int) and self.validation):
            raise ValueError("with data.held_out, data.validation is how many of its pairs are held out: a number")
        return self


class StudyEval(Section):
    """What every run is asked afterwards, as for `nrt eval`. Its other settings are those of `run.eval`."""

    benchmarks: tuple[str, ...] = Field((), description="all, names or category:NAME; none: no evaluation.")
    limit: int | None = Field(None, ge=1, description="Documents of each benchmark, a seeded sample; null: all.")
    engine: Literal["hf", "vllm"] = Field("hf", description="What answers: transformers, or vLLM on a GPU.")
    backend: Literal["lm-eval", "olmes"] = Field(
        "lm-eval", description="As for `nrt eval`; olmes: in the interpreter that run.eval.olmes.python names."
    )
    base: bool = Field(True, description="Ask the starting model too, which answers directly.")


class StudyQuestion(Section):
    """A question to the models of a study."""

    question: str = Field(description="What the models are asked.")
    answer: str | None = Field(None, description="Reference answer; without one, nothing is scored.")

    @field_validator("question", "answer")
    @classmethod
    def _not_blank(cls, text: str | None) -> str | None:
        if text is not None and not text.strip():
            raise ValueError("a question or answer is blank; write one or leave its line out")
        return text


class StudyAnalysis(Section):
    """What is looked into besides what the report makes of the runs by itself; all of it with the first seed's runs.

    Every question is answered by every model, for Table 10; one with a reference answer is scored on it, for Table 9.
    """

    tokens: int = Field(0, ge=0, description="Held-out pairs scored token by token, for Figure 3; needs sft.")
    ask: tuple[StudyQuestion, ...] = Field((), description="Questions, for Tables 9 and 10.")
    questions: int = Field(0, ge=0, description="Held-out questions, for Tables 9 and 10.")
    judge_max_cost: float = Field(
        0.0,
        ge=0,
        description="US dollars that one call may spend on an LLM judge of held-out traces, for Figures 2e and 2f; "
        "0: none is asked.",
    )
    judge: JudgeSection = JudgeSection()


class StudyBest(Section):
    """The best methods of another study, whose folder lies beside this one's."""

    of: FolderName = Field(description="The other study's folder; it has run before.")
    count: int = Field(5, ge=1, description="How many of its methods that reward traces.")


class Variant(Section):
    """Settings of one method's runs, as under `run`, and what they are called."""

    model_config = ConfigDict(extra="allow")

    title: str | None = Field(None, min_length=1, description="What the report calls these runs.")

    @property
    def settings(self) -> dict[str, Any]:
        """All of it but the title."""
        return self.model_extra or {}


class StudyConfig(Section):
    """Everything that decides what `nrt reproduce` does."""

    title: str = Field(min_length=1, description="What the report calls the study.")
    model: StudyModel
    data: StudyData
    recipe: str | None = Field(
        None, description="A config of `nrt train` that all runs begin from: a file or its name."
    )
    run: dict[str, Any] = Field({}, description="Settings of all runs, on top of the recipe.")
    methods: tuple[FolderName, ...] = Field(
        min_length=1,
        description="Methods, or names under `variants`; all: every one that learns from questions and answers.",
    )
    best: StudyBest | None = Field(None, description="After these methods, the best ones of another study.")
    later: tuple[FolderName, ...] = Field(
        (), description="More methods, whose runs begin when all seeds of `methods` have run."
    )
    variants: dict[FolderName, Variant] = Field({}, description="Settings of one method's runs, on top of the others.")
    seeds: tuple[Seed, ...] = Field((0, 1), min_length=1, description="Each method is trained once with each of them.")
    eval: StudyEval = StudyEval()
    analysis: StudyAnalysis = StudyAnalysis()
    jobs: int = Field(1, ge=1, description="Runs at a time.")

    @field_validator("methods", "later")
    @classmethod
    def _all_methods(cls, names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        before = info.data.get("methods", ()) if info.field_name == "later" else ()
        every = [ANSWERS if name == ALL else (name,) for name in names]
        return tuple(dict.fromkeys(name for names in every for name in names if name not in before))


class Planned(NamedTuple):
    """One run of a study."""

    name: str
    """Of its folder below `runs`."""
    method: str
    """As the study names it: a method or a variant."""
    seed: int
    config: RunConfig


FREE = ("title", "methods", "best", "later", "seeds", "variants", "eval", "analysis", "jobs")
"""Sections that may change when a study goes on: they add runs or documents to those there are."""


def load_study(name: str, overrides: Sequence[str] = (), jobs: int | None = None) -> StudyConfig:
    """A study by file or shipped name, with `--set` overrides. Raises ConfigError."""
    path, root = Path(name), configs.configs_dir() / "study"
    if not path.is_file():
        path = root / f"{name}.yaml"
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in root.glob("*.yaml")))
        raise ConfigError(f"{name}: no such study; give a YAML file or one of {shipped}.")
    values = configs.read_yaml(path)
    for text in overrides:
        values = configs.merge(values, configs.parse_override(text))
    if jobs is not None:
        values["jobs"] = jobs
    study = configs.validated(StudyConfig, values, lambda _: name)
    # What a run, a judge or a benchmark cannot mean is said before anything is begun.
    list(planned_runs(study, Path("study")))
    judge = study.analysis.judge
    if study.analysis.judge_max_cost and (unpriced := [model for model in judge.models if model not in judge.prices]):
        raise ConfigError(
            f"{name}: analysis.judge_max_cost needs what {unpriced[0]} costs, in dollars per million tokens in and "
            f"out: --set 'analysis.judge.prices={{{unpriced[0]}: [0.2, 0.5]}}'."
        )
    for spec in select(study.eval.benchmarks) if study.eval.benchmarks else ():
        if study.eval.backend == "olmes" and not spec.olmes:
            raise ConfigError(f"{name}: eval.backend=olmes: {spec.name} is not in OLMES; leave one of them out.")
    return study


def absolute(study: StudyConfig) -> StudyConfig:
    """The study as it is to be kept: files and folders that are there mean the same from any folder."""
    values, change = study.model_dump(), configs.absolute_path
    data, judge = values["data"], values["analysis"]["judge"]
    for section, key in ((values["model"], "source"), (values, "recipe"), (judge, "template")):
        section[key] = section[key] and change(section[key])
    for key in ("sources", "held_out"):
        data[key] = tuple(map(change, data[key]))
    return StudyConfig.model_validate(values)


def planned_runs(study: StudyConfig, folder: Path) -> Iterator[Planned]:
    """Every run of a study in `folder`, in the order of work: all methods of a seed before the next seed's, then so the
    methods that come later. Raises ConfigError."""
    places = {
        "model": {"path": str(folder / "models" / study.model.name)},
        "data": {"train": str(folder / "data" / "train.parquet")},
    }
    if study.data.validation:
        places["data"]["validation"] = str(folder / held_out_file(study.data))
    benchmarks = {"eval": {"data_dir": str(folder / "benchmarks")}} if uses_own_benchmark(study) else {}
    recipe = configs.read_yaml(configs.find_config(study.recipe)) if study.recipe else {}
    for methods in (study.methods, study.later):
        for seed, method in product(study.seeds, methods):
            named = {"method": method, "seed": seed}
            layers = (recipe, places, benchmarks, study.run, named, study.variants.get(method, Variant()).settings)
            name = f"{method.replace(':', '.')}-s{seed}"
            yield Planned(name, method, seed, configs.resolve(*layers, origin=f"run {name}"))


def judged_runs(study: StudyConfig, folder: Path) -> list[Planned]:
    """Runs whose held-out traces a judge is asked about: the first seed's, but for SFT, which has none."""
    asked = [run for run in planned_runs(study, folder) if run.seed == study.seeds[0] and run.config.thinks]
    return asked if study.analysis.judge_max_cost else []


def held_out_file(data: StudyData) -> Path:
    """Where in a study's folder its held-out pairs are."""
    return Path("held-out/train.parquet") if data.held_out else Path("data/validation.parquet")


def uses_own_benchmark(study: StudyConfig) -> bool:
    """Whether a benchmark is asked whose documents the study writes itself."""
    asked = study.eval.benchmarks
    return bool(asked) and any(spec.name == "digits" for spec in select(asked))


def changed_sections(before: StudyConfig, now: StudyConfig) -> list[str]:
    """Names of the sections outside `FREE` in which two studies differ: their runs cannot stand side by side."""
    one, other = before.model_dump(mode="json"), now.model_dump(mode="json")
    return [key for key in one if key not in FREE and one[key] != other[key]]
