"""`nrt reproduce --dry-run`: the commands that a study comes to, and what its runs will take."""

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nrt_cli.backends.machine import use_threads
from nrt_cli.checks.estimate import describe, lengths_of_text, plan_for
from nrt_cli.commandline import nrt, pasted, settings
from nrt_cli.config import flatten, merge
from nrt_cli.config.evaluation import EvalSection
from nrt_cli.config.study import Planned, StudyConfig, StudyData, StudyModel, Variant, judged_runs, planned_runs
from nrt_cli.data.choose import Settings
from nrt_cli.errors import ModelError
from nrt_cli.judging.judge import BYTES_PER_TOKEN, cost_of
from nrt_cli.judging.plan import read_template
from nrt_cli.models.prepare import planned_rows
from nrt_cli.models.shapes import model_shape, source_shape
from nrt_cli.models.sources import tokenizer_here
from nrt_cli.records import ModelShape


def plan_study(folder: Path, study: StudyConfig) -> dict[str, Any]:
    """Runs with their predicted GPU-hours and disk, totals, and commands; makes nothing and needs no network.

    A model that the study makes itself has no plan: `total` is None then.
    """
    runs = list(planned_runs(study, folder))
    pair_settings(study)  # what cannot be meant is said first
    record: dict[str, Any] = {"study": str(folder), "title": study.title, "runs": [], "total": None, "plan": []}
    if study.model.pretrain is None:
        use_threads(runs[0].config)
        shape, examples = _shape(folder, study.model), _examples(study.data)
        made = all(source.startswith("generated:") for source in study.data.sources)
        lengths = lengths_of_text(study.data.sources, study.data.suffix) if made else None
        plans = {run.name: plan_for(run.config, examples, lengths, shape=shape) for run in runs}
        record["runs"] = [{"run": name, **asdict(plan)} for name, plan in plans.items()]
        record["plan"] = describe(max(plans.values(), key=lambda plan: plan.steps * plan.tokens))
        totals = ("gpu_hours", "gpu_hours_most", "scoring", "disk")
        record["total"] = {key: sum(getattr(plan, key) for plan in plans.values()) for key in totals}
        rows = planned_rows(str(study.model.source), study.model.init_start, study.model.init_end)
        record["plan"].append(("new rows", rows))
    else:
        record["runs"] = [{"run": run.name, "steps": run.config.train.steps} for run in runs]
    record["judges"] = list(_judging(study, folder, {run["run"]: run["steps"] for run in record["runs"]}))
    return record | {"commands": list(commands(folder, study, runs))}


def _shape(folder: Path, model: StudyModel) -> ModelShape:
    """Of the starting model; before it is made, of what it is made from, whose vocabulary lacks a few tokens."""
    made, source = folder / "models" / model.name, str(model.source)
    with tokenizer_here(source) as found:
        here = [made, *([found.folder] if found and not found.gguf_file else [])]
        if there := next((place for place in here if (place / "config.json").is_file()), None):
            return replace(model_shape(str(there)), name=model.name)
    try:
        return model_shape(str(made))  # by its name
    except ModelError:
        return source_shape(source)


def judging_text(judge: str, requests: int, dollars: float) -> str:
    """What asking a judge comes to, in one line."""
    return (
        f"judging (Figures 2e and 2f): {requests:,} requests to {judge}, ${dollars:,.2f} at most without repairs; "
        "OPENAI_BASE_URL and OPENAI_API_KEY say where"
    )


def _judging(study: StudyConfig, folder: Path, steps: Mapping[str, int | None]) -> Iterator[dict[str, Any]]:
    """What each judge would be asked, and cost where all texts reach their caps: the traces are not there yet.

    Runs whose steps only the data tell are left out.
    """
    judge, requests, tokens = study.analysis.judge, 0, 0
    for run in judged_runs(study, folder):
        if (last := steps[run.name]) is None:
            continue
        train, data = run.config.train, run.config.data
        traces = min(judge.n, train.validation_size, _held_out(study.data))
        asked = traces * len({0, last, *range(0, last, train.validate_every or last)})
        requests += asked
        tokens += asked * (data.max_prompt_tokens + run.config.rollout.max_trace_tokens + data.max_answer_tokens)
    if requests:
        template, _ = read_template(judge.template)
        tokens += requests * math.ceil(len(template.prompt("", "", "").encode()) / BYTES_PER_TOKEN)
        for model in judge.models:
            cost = cost_of(judge, model, tokens, requests * judge.max_output_tokens)
            yield {"judge": model, "requests": requests, "dollars_most": cost}


def _held_out(data: StudyData) -> int:
    """Pairs that are held out, where that can be said before the sources are read."""
    if isinstance(data.validation, int):
        return data.validation
    return round(data.validation * data.size) if data.size else sys.maxsize


def commands(folder: Path, study: StudyConfig, runs: list[Planned]) -> Iterator[str]:
    """What one would type to the same end, in order; the inputs of a study that makes its model come from it alone."""
    data, model = study.data, study.model
    if model.source:
        made = folder / "models" / model.name
        yield nrt("model", "prepare", model.source, *_options({"--out": made} | _init(model)))
        if data.held_out:
            apart = {"--out": folder / "held-out", "--seed": data.seed, "--size": data.validation}
            apart |= {"--suffix": data.suffix}
            yield nrt("data", "prepare", *data.held_out, *_options(apart))
        drawn = pair_settings(study)
        options: dict[str, Any] = {"--out": folder / "data", "--validation": None if data.held_out else data.validation}
        options |= {"--seed": data.seed, "--size": data.size, "--train": data.train}
        options |= {"--selection": None if data.selection == "content" else data.selection}
        options |= {"--suffix": data.suffix, "--tokenizer": made if drawn.max_prompt_tokens else None}
        options |= {"--max-prompt-tokens": drawn.max_prompt_tokens, "--max-answer-tokens": drawn.max_answer_tokens}
        flags = {"--stratify": data.stratify, "--keep-duplicates": data.duplicates}
        yield nrt("data", "prepare", *data.sources, *_options(options), *(flag for flag, on in flags.items() if on))
    for run in runs:
        yield nrt("train", *_train(folder, study, run))
    if study.eval.benchmarks:
        asked = {"--benchmarks": ",".join(study.eval.benchmarks), "--limit": study.eval.limit}
        asked |= {"--engine": study.eval.engine}
        if study.eval.base:  # it answers directly, as it was never taught to think
            base = {"--model": runs[0].config.model.path} | asked | {"--think": "off", "--out": folder / "evals/base"}
            yield nrt("eval", *_options(base), *settings(_changed(runs[0].config.eval)))
        for run in runs:
            each = {"--model": folder / "runs" / run.name} | asked
            yield nrt("eval", *_options(each), *settings(_changed(run.config.eval)))
    first = [run for run in runs if run.seed == study.seeds[0]]
    places = [folder / "runs" / run.name for run in first]
    direct = [place for place, run in zip(places, first, strict=True) if run.config.method == "sft"]
    thinking = [place for place in places if place not in direct]
    if study.analysis.tokens and direct and thinking:
        scored = {"--baseline": direct[0], "--n": study.analysis.tokens, "--out": folder / "analysis" / "tokens"}
        yield nrt("analyze", "tokens", *thinking, *_options(scored))
    where, pairs = folder / "analysis" / "score", [(q.question, q.answer) for q in study.analysis.ask]
    for number, (question, answer) in enumerate(((q, a) for q, a in pairs if a is not None), 1):
        score = nrt("score", *places, "--question", question, "--answer", answer, "--json")
        yield f"mkdir -p {pasted([str(where)])} && {score} > {pasted([str(where / f'question-{number}.json')])}"
    if study.analysis.ask:
        named = [word for question, _ in pairs for word in ("--question", question)]
        cap = max(first[-1].config.rollout.max_trace_tokens, first[-1].config.data.max_answer_tokens)
        yield nrt("analyze", "cases", *places, *named, "--max-tokens", str(cap), "--out", folder / "analysis" / "cases")
    if judged := judged_runs(study, folder):
        limit = f"{study.analysis.judge_max_cost:g}"
        wanted, known = (each.model_dump(mode="json") for each in (study.analysis.judge, judged[0].config.judge))
        others = settings({f"judge.{key}": value for key, value in wanted.items() if value != known[key]})
        yield nrt("judge", *(folder / "runs" / run.name for run in judged), "--max-cost", limit, *others)
    yield nrt("report", folder)


def pair_settings(study: StudyConfig) -> Settings:
    """How the pairs are drawn. Where their number is exact, those that a run would drop as too long are dropped before.

    Raises DataError for settings that cannot be meant together.
    """
    asked = study.data.model_dump(exclude={"sources", "held_out"}) | ({"validation": 0} if study.data.held_out else {})
    if study.data.train is None:
        return Settings(**asked)
    configs = [run.config for run in planned_runs(study, Path())]
    return Settings(
        **asked,
        max_prompt_tokens=min(config.data.max_prompt_tokens for config in configs),
        max_answer_tokens=min(config.longest_answer for config in configs),
    )


def _examples(data: StudyData) -> int | None:
    """Pairs to train on; None where the sources decide it."""
    if data.train is not None:
        return data.train
    if data.size is None or data.held_out or data.selection == "train-test-split":
        return data.size
    return data.size - _held_out(data)


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
