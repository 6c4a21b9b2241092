"""`nrt reproduce --dry-run`: the commands that a study comes to, and what its runs will take."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nrt_cli.commandline import nrt, settings
from nrt_cli.config import flatten, merge
from nrt_cli.config.evaluation import EvalSection
from nrt_cli.config.study import Planned, StudyConfig, StudyData, StudyModel, Variant, planned_runs
from nrt_cli.workflows.preflight import describe, plan_for


def plan_study(folder: Path, study: StudyConfig) -> dict[str, Any]:
    """Runs with their predicted GPU-hours and disk, totals, and commands; makes nothing and needs no network.

    A model that the study makes itself has no plan: `total` is None then.
    """
    runs = list(planned_runs(study, folder))
    record: dict[str, Any] = {"study": str(folder), "title": study.title, "runs": [], "total": None, "plan": []}
    if study.model.pretrain is None:
        plans = {run.name: plan_for(run.config, _examples(study.data)) for run in runs}
        record["runs"] = [{"run": name, **asdict(plan)} for name, plan in plans.items()]
        record["plan"] = describe(max(plans.values(), key=lambda plan: plan.gpu_hours))
        totals = ("gpu_hours", "gpu_hours_most", "disk")
        record["total"] = {key: sum(getattr(plan, key) for plan in plans.values()) for key in totals}
    else:
        record["runs"] = [{"run": run.name, "steps": run.config.train.steps} for run in runs]
    return record | {"commands": list(commands(folder, study, runs))}


def commands(folder: Path, study: StudyConfig, runs: list[Planned]) -> Iterator[str]:
    """What one would type to the same end, in order; the inputs of a study that makes its model come from it alone."""
    data, model = study.data, study.model
    if model.source:
        options = {"--out": folder / "data", "--validation": data.validation, "--seed": data.seed, "--size": data.size}
        stratify = ["--stratify"] if data.stratify else []
        yield nrt("data", "prepare", *data.sources, *_options(options), *stratify)
        out = {"--out": folder / "models" / model.name}
        yield nrt("model", "prepare", model.source, *_options(out | _init(model)))
    for run in runs:
        yield nrt("train", *_train(folder, study, run))
    for run in runs if study.eval.benchmarks else ():
        asked = {"--model": folder / "runs" / run.name, "--benchmarks": ",".join(study.eval.benchmarks)}
        asked |= {"--limit": study.eval.limit, "--engine": study.eval.engine}
        yield nrt("eval", *_options(asked), *settings(_changed(run.config.eval)))
    yield nrt("report", folder)


def _examples(data: StudyData) -> int | None:
    """Pairs to train on; None where the sources decide it."""
    if data.size is None:
        return None
    held_out = data.validation if isinstance(data.validation, int) else round(data.validation * data.size)
    return data.size - held_out


def _init(model: StudyModel) -> dict[str, str]:
    """What think tokens start from, where that is not the default, as shells pass it on."""
    asked = {"init_start": model.init_start, "init_end": model.init_end}
    other = {key: text for key, text in asked.items() if text != StudyModel.model_fields[key].default}
    return {f"--{key.replace('_', '-')}": text.replace("\n", "\\n") for key, text in other.items()}


def _train(folder: Path, study: StudyConfig, run: Planned) -> list[str | Path]:
    given = flatten(merge(study.run, study.variants.get(run.method, Variant()).settings))
    data = run.config.data
    places: dict[str, Any] = {"--model": run.config.model.path, "--data": data.train, "--validation": data.validation}
    named = {"--run": folder / "runs" / run.name, "--method": run.config.method, "--seed": run.seed}
    others = {key: value for key, value in given.items() if key not in ("method", "seed")}
    return [*([study.recipe] if study.recipe else []), *_options(places | named), *settings(others)]


def _changed(section: EvalSection) -> dict[str, Any]:
    """Settings of `nrt eval`, which knows no recipe, that are not the default."""
    values, defaults = (flatten(each.model_dump(mode="json"), "eval.") for each in (section, EvalSection()))
    return {key: value for key, value in values.items() if value != defaults[key]}


def _options(given: Mapping[str, Any]) -> list[str | Path]:
    values = {
        key: value if isinstance(value, Path) else str(value) for key, value in given.items() if value is not None
    }
    return [part for pair in values.items() for part in pair]
