"""`nrt reproduce`: the same data and starting model, several methods and seeds, evaluated and looked into together.

Below stand what a study takes and the commands that it comes to; what its processes do; the study itself, which does
what is missing; and what is looked into afterwards with the first seed's runs on held-out pairs.
"""

import json
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from nrt_cli import console
from nrt_cli.backends.machine import use_processor
from nrt_cli.checks.estimate import describe, lengths_of_text, plan_for
from nrt_cli.commandline import nrt, pasted, settings
from nrt_cli.config import RunConfig, flatten, merge, read_yaml, to_yaml, validated
from nrt_cli.config.schema import EvalSection
from nrt_cli.config.study import (
    Planned,
    StudyConfig,
    StudyData,
    StudyModel,
    StudyQuestion,
    Variant,
    absolute,
    changed_sections,
    held_out_file,
    judged_runs,
    planned_runs,
    uses_own_benchmark,
)
from nrt_cli.data import digits, reports
from nrt_cli.data.prepare import Settings, Tokenizer, prepare, tokenizer_fingerprint
from nrt_cli.errors import ConfigError, EvalError, ModelError, NrtError
from nrt_cli.evaluation.benchmark import load_suite
from nrt_cli.evaluation.evaluate import evaluate
from nrt_cli.evaluation.olmes import versions
from nrt_cli.evaluation.rows import read_rows
from nrt_cli.evaluation.session import Job
from nrt_cli.evaluation.tasks import Task, Tell, run_tasks
from nrt_cli.files import record_text, sealed
from nrt_cli.judging.judge import BYTES_PER_TOKEN, cost_of
from nrt_cli.judging.plan import Plan as JudgePlan
from nrt_cli.judging.plan import make_plan, read_template
from nrt_cli.measures.statistics import mean
from nrt_cli.methods import facts
from nrt_cli.models.loading import load_tokenizer
from nrt_cli.models.metadata import model_fault
from nrt_cli.models.prepare import planned_rows, prepare_model
from nrt_cli.models.shapes import model_shape, source_shape
from nrt_cli.models.sources import tokenizer_here
from nrt_cli.progress import EvalProgress, Progress, StudyProgress
from nrt_cli.records import Ended, ModelShape, Plan, json_line
from nrt_cli.store import Run
from nrt_cli.store.evals import settings_hash
from nrt_cli.store.files import write, write_report
from nrt_cli.store.study import Outcome, Study
from nrt_cli.training.pretraining import pretrain
from nrt_cli.workflows.generate import generate_cases
from nrt_cli.workflows.scoring import Report, score_answer, score_tokens
from nrt_cli.workflows.train import train

WORLDS: Mapping[str, Any] = {world.WORLD: world for world in (digits, reports)}
"""Whose documents a tiny model may read, by `model.pretrain.world`."""

INPUTS, BASE = "inputs", "base"
"""Names of the tasks that are no runs."""

SAMPLED = 8
"""How many times the work of an answer a sampled row is, measured on the laptop study; only the ETA knows it."""

PRELOAD = ("nrt_cli.workflows.study", "transformers.models.llama.modeling_llama", "lm_eval.api.task")
"""What takes seconds to import."""


def with_best(folder: Path, study: StudyConfig) -> StudyConfig:
    """The study with the methods that `best` means: those it began with, else the best that the other study found.

    Best are those that reward traces and whose runs all finished, by held-out accuracy with thinking, mean over seeds
    and over the scored steps but for that before the first: of two that end alike the one that was sooner there.

    Raises ConfigError where the other study has runs to do, only one seed, or too few methods.
    """
    if study.best is None:
        return study
    if Study(folder).config_path.is_file():
        begun = validated(StudyConfig, read_yaml(Study(folder).config_path), lambda _: str(folder))
        if begun.best == study.best:
            methods, variants = (*study.methods, *begun.methods), begun.variants | study.variants
            return study.model_copy(update={"methods": tuple(dict.fromkeys(methods)), "variants": variants})
    other = folder.parent / study.best.of
    first = nrt("reproduce", study.best.of, "--out", other)
    if not Study(other).config_path.is_file():
        raise ConfigError(f"{other}: this study takes the best methods of that one, which has not run: `{first}`.")
    found = validated(StudyConfig, read_yaml(Study(other).config_path), lambda _: str(other))
    outcomes, scores = Study(other).outcomes(), dict[str, list[float]]()
    for run in planned_runs(found, other):
        if run.name not in outcomes:
            raise ConfigError(f"{other}: {run.name} has not run, so nobody knows the best methods: `{first}` goes on.")
        if outcomes[run.name].status == "finished" and facts(run.config.method).policy_gradient:
            held_out = Run.open(other / "runs" / run.name).metrics("held_out")[1:]
            scores.setdefault(run.method, []).append(mean([row.get("accuracy_thinking", math.nan) for row in held_out]))
    if len(found.seeds) < 2:
        raise ConfigError(f"{other}: has one seed, which ranks nothing: what another seed changes is not known.")
    whole = {name: mean(each) for name, each in scores.items() if len(each) == len(found.seeds)}
    ranked = sorted((name for name in whole if math.isfinite(whole[name])), key=lambda name: -whole[name])
    if len(ranked) < study.best.count:
        raise ConfigError(
            f"{other}: {len(ranked)} methods have scores of every seed, and best.count={study.best.count}."
        )
    best = ranked[: study.best.count]
    variants = {name: found.variants[name] for name in best if name in found.variants} | study.variants
    return study.model_copy(update={"methods": tuple(dict.fromkeys((*study.methods, *best))), "variants": variants})


def plan_study(folder: Path, study: StudyConfig) -> dict[str, Any]:
    """What a study will take, as JSON has it, and the commands that come to the same; makes nothing, needs no network.

    Of `runs` each has its name and plan, or where the study makes its model itself, its steps (None where only the data
    tell); `total` is of all together, None without plans; `plan` describes the longest; `judges` say what asking each
    about all traces comes to at most, repairs not counted.
    """
    runs, data, model = list(planned_runs(study, folder)), study.data, study.model
    pair_settings(study)  # what cannot be meant is said first
    plans: dict[str, Plan] = {}
    longest: list[tuple[str, str]] = []
    if model.pretrain is None:
        use_processor(runs[0].config)
        examples = data.size if data.train is None else data.train  # None where the sources decide it
        if data.train is None and data.size and not data.held_out and data.selection != "train-test-split":
            examples = data.size - _held_out(data)
        made = all(source.startswith("generated:") for source in data.sources) and not data.spans
        lengths, shape = lengths_of_text(data.sources, data.suffix) if made else None, _shape(folder, model)
        plans = {run.name: plan_for(run.config, examples, lengths, shape=shape) for run in runs}
        longest = describe(max(plans.values(), key=lambda plan: plan.steps * plan.tokens))
        longest.append(("new rows", planned_rows(str(model.source), model.init_start, model.init_end)))
    steps = {run.name: plans[run.name].steps if plans else run.config.train.steps for run in runs}
    # What each judge would be asked, and cost where all texts reach their caps: the traces are not there yet.
    # Runs whose steps only the data tell are left out.
    judge, requests, tokens = study.analysis.judge, 0, 0
    for config, last in ((run.config, steps[run.name]) for run in judged_runs(study, folder)):
        if last is not None:
            traces = min(judge.n, config.train.validation_size, _held_out(data))
            asked = traces * len({0, last, *range(0, last, config.train.validate_every or last)})
            texts = config.data.max_prompt_tokens + config.rollout.max_trace_tokens + config.data.max_answer_tokens
            requests, tokens = requests + asked, tokens + asked * texts
    judges: list[dict[str, Any]] = []
    if requests:
        prompt = read_template(judge.template).prompt("", "", "")
        tokens += requests * math.ceil(len(prompt.encode()) / BYTES_PER_TOKEN)
        costs = ((model, cost_of(judge, model, tokens, requests * judge.max_output_tokens)) for model in judge.models)
        judges = [{"judge": model, "requests": requests, "dollars_most": dollars} for model, dollars in costs]
    totals = ("gpu_hours", "gpu_hours_most", "scoring", "disk")
    return {
        "study": str(folder),
        "title": study.title,
        "runs": [{"run": name} | (asdict(plans[name]) if plans else {"steps": steps[name]}) for name in steps],
        "total": {key: sum(getattr(plan, key) for plan in plans.values()) for key in totals} if plans else None,
        "plan": longest,
        "judges": judges,
        "commands": list(commands(folder, study, runs)),
    }


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


def _held_out(data: StudyData) -> int:
    """Pairs that are held out, where that can be said before the sources are read."""
    if isinstance(data.validation, int):
        return data.validation
    return round(data.validation * data.size) if data.size else sys.maxsize


def pair_settings(study: StudyConfig) -> Settings:
    """How the pairs are drawn. Where their number is exact, those that a run would drop as too long are dropped before.

    Raises DataError for settings that cannot be meant together.
    """
    asked = study.data.model_dump(exclude={"sources", "held_out"}) | ({"validation": 0} if study.data.held_out else {})
    if study.data.train is not None:
        configs = [run.config for run in planned_runs(study, Path())]
        asked["max_prompt_tokens"] = min(config.data.max_prompt_tokens for config in configs)
        asked["max_answer_tokens"] = min(config.longest_answer for config in configs)
    return Settings(**asked)


def commands(folder: Path, study: StudyConfig, runs: list[Planned]) -> Iterator[str]:
    """What one would type to the same end, in order; the inputs of a study that makes its model come from it alone."""
    data, model, looks, places = study.data, study.model, study.analysis, [folder / "runs" / run.name for run in runs]
    if model.source:
        made, drawn = folder / "models" / model.name, pair_settings(study)
        own = [key for key in ("init_start", "init_end") if getattr(model, key) != StudyModel.model_fields[key].default]
        # Line ends as shells pass them on.
        init = {f"--{key.replace('_', '-')}": getattr(model, key).replace("\n", "\\n") for key in own}
        yield nrt("model", "prepare", model.source, *_options({"--out": made} | init))
        if data.held_out:
            apart = {"--out": folder / "held-out", "--seed": data.seed, "--size": data.validation}
            apart |= {"--suffix": data.suffix, "--spans": data.spans, "--tokenizer": made if data.spans else None}
            yield nrt("data", "prepare", *data.held_out, *_options(apart))
        options = {
            "--out": folder / "data",
            "--validation": None if data.held_out else data.validation,
            "--seed": data.seed,
            "--size": data.size,
            "--train": data.train,
            "--selection": None if data.selection == "content" else data.selection,
            "--suffix": data.suffix,
            "--spans": data.spans,
            "--tokenizer": made if drawn.max_prompt_tokens or data.spans else None,
            "--max-prompt-tokens": drawn.max_prompt_tokens,
            "--max-answer-tokens": drawn.max_answer_tokens,
            "--stratify": data.stratify,
            "--keep-duplicates": data.duplicates,
        }
        yield nrt("data", "prepare", *data.sources, *_options(options))
    for run, place in zip(runs, places, strict=True):
        given = flatten(merge(study.run, study.variants.get(run.method, Variant()).settings))
        others = settings({key: value for key, value in given.items() if key not in ("method", "seed")})
        config, recipe = run.config, [study.recipe] if study.recipe else []
        inputs = {"--model": config.model.path, "--data": config.data.train, "--validation": config.data.validation}
        named = {"--run": place, "--method": config.method, "--seed": run.seed}
        yield nrt("train", *recipe, *_options(inputs | named), *others)
    if study.eval.benchmarks:
        asked = {"--benchmarks": ",".join(study.eval.benchmarks), "--limit": study.eval.limit}
        asked |= {"--backend": study.eval.backend, "--engine": study.eval.engine}
        if study.eval.base:  # it answers directly, as it was never taught to think
            base = {"--model": runs[0].config.model.path} | asked | {"--think": "off", "--out": folder / "evals/base"}
            yield nrt("eval", *_options(base), *_eval_settings(runs[0].config))
        for run, place in zip(runs, places, strict=True):
            yield nrt("eval", *_options({"--model": place} | asked), *_eval_settings(run.config))
    first = {folder / "runs" / run.name: run.config for run in runs if run.seed == study.seeds[0]}
    direct = [place for place, config in first.items() if not config.samples]
    thinking = [place for place in first if place not in direct]
    if looks.tokens and direct and thinking:
        scored = {"--baseline": direct[0], "--n": looks.tokens, "--out": folder / "analysis" / "tokens"}
        yield nrt("analyze", "tokens", *thinking, *_options(scored))
    where = folder / "analysis" / "score"
    for number, pair in enumerate((each for each in looks.ask if each.answer is not None), 1):
        score = nrt("score", *first, "--question", pair.question, "--answer", str(pair.answer), "--json")
        yield f"mkdir -p {pasted([str(where)])} && {score} > {pasted([str(where / f'question-{number}.json')])}"
    if looks.ask:
        texts = [word for each in looks.ask for word in ("--question", each.question)]
        config = list(first.values())[-1]
        cap = max(config.rollout.max_trace_tokens, config.data.max_answer_tokens)
        yield nrt("analyze", "cases", *first, *texts, "--max-tokens", str(cap), "--out", folder / "analysis" / "cases")
    if judged := judged_runs(study, folder):
        wanted, known = (each.model_dump(mode="json") for each in (looks.judge, judged[0].config.judge))
        others = settings({f"judge.{key}": value for key, value in wanted.items() if value != known[key]})
        asked_of = (folder / "runs" / run.name for run in judged)
        yield nrt("judge", *asked_of, "--max-cost", f"{looks.judge_max_cost:g}", *others)
    yield nrt("report", folder)


def _eval_settings(config: RunConfig) -> list[str]:
    """What `nrt eval`, which knows no recipe, has to be told."""
    values, defaults = (flatten(each.model_dump(mode="json"), "eval.") for each in (config.eval, EvalSection()))
    return settings({key: value for key, value in values.items() if value != defaults[key]})


def _options(given: Mapping[str, Any]) -> Iterator[str | Path]:
    """A command's options: none for None and False, no value for True."""
    for key, value in given.items():
        if value is not None and value is not False:
            yield key
            if value is not True:
                yield value if isinstance(value, Path) else str(value)


def make_inputs(folder: Path, study: StudyConfig, tell: Tell) -> str:
    """Benchmark documents, starting model and pairs; what is there already is kept."""
    model, data, drawn = study.model, study.data, pair_settings(study)
    section, source, made = model.pretrain, model.source, folder / "models" / model.name
    if section and section.world not in WORLDS:
        # What a study of an earlier version of the world has to stand on is no longer made.
        asked = [folder / "benchmarks" / "digits"] if uses_own_benchmark(study) else []
        if missing := [path for path in (folder / "data", made, *asked) if not path.is_dir()]:
            raise ConfigError(
                f"{missing[0]}: is not there, and this version of nrt makes the world {digits.WORLD!r}; name it "
                f"as model.pretrain.world in another --out. `{nrt('report', folder)}` shows the runs that are there."
            )
        return f"{model.name}: as it was made"
    if uses_own_benchmark(study):  # problems that nothing trains on
        rows = [{"question": digits.question(p), "answer": digits.answer(p)} for p in digits.held_out_problems()]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        write_report(folder / "benchmarks" / "digits", {"test.jsonl": lines.encode()})
    settings = next(planned_runs(study, folder)).config.eval
    data_dir = Path(settings.data_dir).expanduser() if settings.data_dir else None
    if study.eval.benchmarks and study.eval.backend == "olmes":
        versions(settings.olmes)
    for benchmark in load_suite(study.eval.benchmarks) if study.eval.benchmarks else ():  # what comes last can be done
        if study.eval.backend != "olmes":
            benchmark.check(data_dir, offline=settings.offline)
        elif data_dir or settings.offline:  # else OLMES reads the hub by itself
            read_rows(benchmark.spec, data_dir, settings.offline)
    if section:  # a model made from nothing, as a hub model would be
        new, steps = folder / "models" / f"{model.name}-source", section.steps
        source, world = str(new), WORLDS[section.world]

        def documents(step: int) -> list[tuple[str, str]]:
            mixture = world.FIRST if step < section.first_share * steps else world.THEN
            return list(world.documents(section.seed, step * section.batch_size, section.batch_size, mixture))

        def progress(step: int, loss: float) -> None:
            if step % 10 == 0:
                tell(step / steps, f"pretraining, {loss:.2f} nats per token")

        if not new.is_dir():
            pretrain(world.vocabulary(), documents, steps, new, section.seed, progress, world.POSITIONS)
    prepared = prepare_model(str(source), made, init_start=model.init_start, init_end=model.init_end)
    tell(0.0, "pairs")
    tokenizer = None
    if drawn.max_prompt_tokens or drawn.spans:
        tokenizer = Tokenizer(load_tokenizer(prepared.folder), tokenizer_fingerprint(prepared.folder))
    if data.held_out:
        apart = Settings(size=int(data.validation), seed=data.seed, suffix=data.suffix, spans=data.spans)
        prepare(data.held_out, folder / "held-out", apart, tokenizer if data.spans else None)
    prepare(data.sources, folder / "data", drawn, tokenizer)
    return f"{model.name}: {prepared.metadata['parameters']:,} parameters"


def train_and_ask(run: Path | None, job: Job, config: RunConfig, tell: Tell) -> str:
    """Train a run, or what is missing of it, and evaluate it; the starting model, no run, is evaluated alone."""
    begin = 0.0
    if run:
        begin = 0.9 if job.benchmarks else 1.0  # the share of a run's work that is training
        started = (run / "manifest.json").is_file()
        # A run that is there goes on under the study's settings, which may name more steps than it had.
        train(run, config, started, partial(_TrainingTold, tell, begin))
    if not job.benchmarks:
        return ""
    rows = evaluate(job, config, _AskingTold(tell, begin, len(load_suite(job.benchmarks))))["benchmarks"]
    if failed := [f"{row['benchmark']}: {row['failed']}" for row in rows if row["failed"]]:
        raise EvalError(f"not evaluated: {'; '.join(failed)}")
    errors = ["" if math.isnan(row["error"]) else f" ± {100 * row['error']:.1f}" for row in rows]
    return ", ".join(f"{row['title']} {100 * row['score']:.1f}{e}" for row, e in zip(rows, errors, strict=True))


class _TrainingTold(Progress):
    """Steps as shares of a task; the lines go to its log."""

    def __init__(self, tell: Tell, share: float, steps: int, done: int) -> None:
        super().__init__(steps, done)
        self.tell, self.share = tell, share

    def step(self, record: dict[str, Any], sample: dict[str, str] | None) -> None:
        super().step(record, sample)
        self.tell(self.share * self.done / self.steps, f"step {self.done} of {self.steps}")


class _AskingTold(EvalProgress):
    """Answered documents as shares of a task."""

    def __init__(self, tell: Tell, begin: float, benchmarks: int) -> None:
        self.tell, self.at, self.room = tell, begin, (1 - begin) / benchmarks

    def advance(self) -> None:
        super().advance()
        # Few messages: the parent has better things to do than to read thousands.
        if self.done % max(1, self.total // 20) == 0:
            self.tell(self.at + self.room * self.done / self.total, f"{self.benchmark}: {self.done} of {self.total}")

    def end(self, row: Mapping[str, Any]) -> None:
        super().end(row)
        self.at += self.room


class _Recorder:
    """Notes in the store how tasks ended, and hands on to the display what they say."""

    def __init__(self, store: Study, display: StudyProgress) -> None:
        self.store, self.display, self.progress = store, display, display.progress
        self.digests: dict[str, str] = {}

    def ended(self, name: str, status: Ended, text: str) -> None:
        self.store.record(name, Outcome(status, "" if status == "finished" else text, self.digests.get(name, "")))
        self.display.ended(name, status, text)


def reproduce(folder: Path, study: StudyConfig, display: StudyProgress) -> dict[str, Outcome]:
    """Make what is missing of a study; returns how each run ended, by name.

    A run that fails does not stop the others; it is tried again when the study goes on.

    Raises:
        ConfigError: the folder holds another study.
        NrtError: the inputs of all runs cannot be made.
        Interrupted: a signal asked to stop; the same call goes on.
    """
    store, study = Study(folder), absolute(study)
    planned = list(planned_runs(study, folder))
    if study.analysis.judge_max_cost:
        read_template(study.analysis.judge.template)  # what comes last can be done
    on_cpu = all(run.config.model.device == "cpu" for run in planned)
    preload = [name for name in PRELOAD if find_spec(name.partition(".")[0])] if on_cpu else ()
    with store.writing():
        if store.config_path.is_file():
            before = absolute(validated(StudyConfig, read_yaml(store.config_path), lambda _: str(store.config_path)))
            if changed := changed_sections(before, study):
                again = nrt("reproduce", store.config_path, "--out", store.path)
                raise ConfigError(
                    f"{store.path}: holds a study with another {', '.join(changed)}; choose another --out, or go on "
                    f"with the one that is there: `{again}`."
                )
        write(store.config_path, sealed(to_yaml(study)))
        recorder = _Recorder(store, display)
        display.begin({INPUTS: 1.0})
        make = Task(INPUTS, partial(make_inputs, store.path, study), store.log_path(INPUTS))
        run_tasks([make], 1, recorder, preload)
        if (made := store.outcomes()[INPUTS]).status != "finished":
            raise NrtError(f"{store.path}: the study's inputs could not be made: {made.reason}")

        # What has not been done under these settings: without the folder's own path, lest a moved study be another.
        asked = study.eval.model_dump(mode="json")
        own = {run.name: run.config.model_dump(mode="json") for run in planned_runs(study, Path())}
        given: dict[str, Any] = {key: getattr(study.eval, key) for key in ("benchmarks", "limit", "engine", "backend")}
        tasks: list[Task] = []
        if study.eval.base and study.eval.benchmarks:  # it answers directly, as it was never taught to think
            config = planned[0].config
            job = Job(config.model.path, **given, think="off", out=store.path / "evals" / "base")
            tasks.append(Task(BASE, partial(train_and_ask, None, job, config), store.log_path(BASE)))
            recorder.digests[BASE] = settings_hash({"eval": asked, "run": own[planned[0].name]["eval"]})
        work: dict[str, float] = {}
        for run in planned:
            place = store.path / "runs" / run.name
            train_one = partial(train_and_ask, place, Job(str(place), **given), run.config)
            tasks.append(Task(run.name, train_one, store.log_path(run.name)))
            recorder.digests[run.name] = settings_hash({"eval": asked, "run": own[run.name]})
            # About how much work it is: its rows, of which a sampled one takes several times as long as an answer.
            rows, one = run.config.train.steps or run.config.train.epochs, run.config.rollout.group_size * SAMPLED
            work[run.name] = rows * run.config.train.batch_size * (one if run.config.samples else 1)
        work[BASE] = max(work.values()) / 10  # it is asked, not trained
        names, outcomes = [task.name for task in tasks], store.outcomes()
        done = {
            name
            for name, known in outcomes.items()
            if known.status == "finished" and known.digest == recorder.digests.get(name)
            if name == BASE or _whole(store.path / "runs" / name)
        }
        tasks = [task for task in tasks if task.name not in done]
        left, logs = sum(task.name != BASE for task in tasks), folder / "logs"
        console.note(f"{len(planned)} runs, {left} to do, {study.jobs} at a time; what they say is in {logs}")
        display.begin({task.name: work[task.name] for task in tasks})
        run_tasks(tasks, study.jobs, recorder, preload)
    outcomes = store.outcomes()
    return {name: outcomes[name] for name in names if name in outcomes}


def _whole(run: Path) -> bool:
    """Whether a run is as it was left when it finished; one that is not goes on, or its log says why it cannot."""
    try:
        found = Run.open(run)
        found.config()
        return found.manifest()["status"] == "finished" and model_fault(found.export_path) is None
    except NrtError:
        return False


def first_runs(folder: Path, study: StudyConfig) -> dict[str, Planned]:
    """The finished runs of the first seed by their folders, as the study orders them."""
    outcomes = Study(folder).outcomes()
    finished = {name for name, outcome in outcomes.items() if outcome.status == "finished"}
    runs = [run for run in planned_runs(study, folder) if run.seed == study.seeds[0] and run.name in finished]
    return {str(folder / "runs" / run.name): run for run in runs}


def score_pairs(folder: Path, study: StudyConfig, report: Report) -> list[tuple[str, list[Path]]]:
    """Held-out pairs token by token, the SFT run's first; none where that, or another to compare, is missing."""
    runs = first_runs(folder, study)
    direct, thinking = ([p for p, run in runs.items() if run.config.thinks == thinks] for thinks in (False, True))
    if not (study.analysis.tokens and direct and thinking):
        return []
    return score_tokens(direct[0], thinking, folder / "analysis" / "tokens", report, count=study.analysis.tokens)


def judge_plan(folder: Path, study: StudyConfig) -> JudgePlan | None:
    """What a judge is to be asked about the finished runs; None where none is asked, or none has finished."""
    judged = {run.name for run in judged_runs(study, folder)}
    runs = [place for place, run in first_runs(folder, study).items() if run.name in judged]
    return make_plan(runs, [{"judge": study.analysis.judge.model_dump()}]) if runs else None


def score_questions(folder: Path, study: StudyConfig, report: Report) -> None:
    """Questions with a reference answer under every method, each as the JSON that `nrt score ... --json` prints."""
    runs = first_runs(folder, study)
    scored = [(asked.question, asked.answer) for asked in questions(folder, study) if asked.answer is not None]
    for number, pair in enumerate(scored, 1):
        records: list[dict[str, Any]] = []
        for done, place in enumerate(runs, 1):
            # In a line what is not finite is null.
            records.append(json.loads(json_line(score_answer(place, *pair))))
            report(f"question {number}", done, len(runs))
        name = f"question-{number}.json"
        write_report(folder / "analysis" / "score", {name: record_text(name, {"replies": records}).encode()})


def answer_questions(folder: Path, study: StudyConfig, report: Report) -> list[dict[str, str | None]]:
    """What every method thinks and answers to the questions, as `generate_cases` has it; up to the caps of training."""
    asked, runs = [each.question for each in questions(folder, study)], first_runs(folder, study)
    rows: list[dict[str, str | None]] = []
    for done, (place, run) in enumerate(runs.items() if asked else (), 1):
        caps = (run.config.rollout.max_trace_tokens, run.config.data.max_answer_tokens)
        rows += generate_cases({run.name: place}, asked, *caps, lambda _: None)
        report("answers", done, len(runs))
    return sorted(rows, key=lambda row: asked.index(str(row["question"])))


def questions(folder: Path, study: StudyConfig) -> list[StudyQuestion]:
    """Those that the study names, then the first held-out ones, which are ordered at random."""
    found, path = list(study.analysis.ask), folder / held_out_file(study.data)
    if study.analysis.questions and path.is_file():
        rows = pq.read_table(path, columns=["prompt", "reward_model"]).slice(0, study.analysis.questions)
        pairs = [(row["prompt"][-1]["content"], row["reward_model"]["ground_truth"]) for row in rows.to_pylist()]
        found += [StudyQuestion(question=question, answer=answer) for question, answer in pairs]
    return found
