"""nrt in a notebook or a script: the functions that the commands call, and what methods are made of.

    import nrt_cli as nrt

    paths = {"model": {"path": "models/smollm2"}, "data": {"train": "data/mine/train.parquet"}}
    config = nrt.load_config("laptop", "method=am", **paths)
    run = nrt.train(config, "runs/am")
    run.steps.plot(x="step", y="gain")
    nrt.score("runs/am", "What is 12 + 30?", "42", traces=["12 + 30 = 42"])["traces"][0]["gain"]
    nrt.analyze("dynamics", "runs/am").figures["dynamics"].savefig("dynamics.png")

What a user can fix is raised as `nrt_cli.errors.NrtError`, whose text says what is wrong, where, and what to do. Every
logarithm is natural; what was not measured is NaN or None.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nrt_cli.methods import Group, Method, Rowwise, Signals, grader, reward

if TYPE_CHECKING:
    from nrt_analysis.document import Analysis
    from nrt_analysis.frames import OpenRun

    from nrt_cli.checks.findings import Finding
    from nrt_cli.config import RunConfig

__all__ = [
    "Group", "Method", "Rowwise", "Signals", "analyze", "doctor", "evaluate", "generate", "grader", "list_runs",
    "load_config", "open_run", "prepare_data", "prepare_model", "push", "reward", "score", "train",
]  # fmt: skip

PathLike = str | Path
Think = Literal["on", "off", "forced"]


def load_config(name: str | None = None, *overrides: str, **sections: Any) -> "RunConfig":
    """A run's config, validated: preset, then a YAML file or shipped config, then overrides, then whole sections.

    Args:
        name: such as "laptop", or a file; None is the preset nrt alone.
        overrides: as `--set` takes them: "rollout.group_size=4".
        sections: top-level keys: `method="am"`, `model={"path": "models/smollm2"}`.
    """
    from nrt_cli import config

    return config.load(name, overrides, **sections)


def prepare_data(
    sources: str | Sequence[str], out: PathLike, validation: int | float = 0, **settings: Any
) -> dict[str, Any]:
    """Question-answer pairs to `out/train.parquet` (and `validation.parquet`); the same call again changes nothing.

    Args:
        sources: files, folders, hub ids or `generated:sums?size=2000&seed=0`.
        validation: how many questions to hold out, with all their answers, or which share of them.
        settings: fields of `nrt_cli.data.prepare.Settings`.

    Returns the manifest that stands beside the files. Where it raises DataError, nothing at `out` has changed.
    """
    from nrt_cli.data.prepare import Settings, prepare

    given = [sources] if isinstance(sources, str) else list(sources)
    return prepare(given, Path(out), Settings(validation=validation, **settings))[0]


def prepare_model(source: str, out: PathLike, **settings: Any) -> Path:
    """Give a model think tokens, a pad token and a chat template, check it and write it to `out`, which is returned.

    Args:
        source: a folder, a GGUF file, a hub id or "builtin:smollm2-135m".
        settings: arguments of `nrt_cli.models.prepare.prepare_model`.

    Where it raises ModelError, `out` is as it was.
    """
    from nrt_cli.models.prepare import prepare_model as prepare

    return prepare(source, Path(out), **settings).folder


def train(config: "RunConfig | None", run: PathLike, resume: bool = False) -> "OpenRun":
    """Train, or with `resume` go on with, the run at `run`; a config of None is its own. Shows what `nrt train` shows.

    Raises StoreError where another run is or another process writes, TrainingError for a loss that is not finite or no
    memory, and Interrupted after Ctrl-C: everything is saved, and `resume=True` goes on exactly there.
    """
    from nrt_cli.progress import choose
    from nrt_cli.workflows.train import train as run_training

    run_training(Path(run), config, resume, lambda total, done: choose(False, total, done))
    return open_run(run)


def open_run(run: PathLike) -> "OpenRun":
    """A run's metrics, traces and evaluations as data frames. Raises StoreError for what is no run."""
    from nrt_analysis.frames import OpenRun

    return OpenRun(run)


def list_runs(folder: PathLike = "runs", method: str | None = None, tag: str | None = None) -> list[dict[str, Any]]:
    """The runs at or below a folder: `run`, `method`, `status`, `step`, `held_out`, `gain`, `tags`, `created`."""
    from nrt_cli.workflows.runs import list_runs as found

    return found(Path(folder), [method] if method else (), (), [tag] if tag else ())


def generate(
    model: PathLike,
    question: str,
    think: Think = "on",
    max_trace_tokens: int | None = None,
    max_answer_tokens: int | None = None,
    temperature: float = 0.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Ask a model: `question`, `trace` (None where it answers directly) and `answer`.

    Args:
        model: RUN, RUN@STEP, a folder or "builtin:smollm2-135m".
        think: "on" as it was trained to, "off" never, "forced" without skipping it.
        max_trace_tokens: None is 256, or what the model has room for; so is it for the answer.
        temperature: 0 is greedy.
    """
    from nrt_cli.workflows.generate import Generator

    generator = Generator(model)
    said = generator.stream(question, think, max_trace_tokens, max_answer_tokens, temperature, seed)
    return generator.collect(question, think, said)


def score(
    model: PathLike, question: str, answer: str, traces: Sequence[str] = (), samples: int | None = None, **settings: Any
) -> dict[str, Any]:
    """What traces do for each token of an answer, and what every scheme makes of it (Table 9): as `nrt score --json`.

    Args:
        traces: as text; without any, `samples` of the model's own.
        settings: other arguments of `nrt_cli.workflows.scoring.score_answer`.

    Returns:
        `tokens`; `null` and each of `traces` with `logprobs`, `c`, `logprob` over answer tokens (eos included);
        each trace also `gains` in nats and `schemes`, by name: `reward`, `advantage`, `token_signals`, ...
    """
    from nrt_cli.workflows.scoring import score_answer

    return score_answer(str(model), question, answer, traces, samples, **settings)


def evaluate(
    model: PathLike, benchmarks: str | Sequence[str] = "all", limit: int | None = None, *overrides: str
) -> dict[str, Any]:
    """Score a model on benchmarks: as `nrt eval --json`. What is answered already comes from the store.

    Args:
        benchmarks: "all", names, "category:math" or a YAML of your own.
        limit: documents of each, a seeded sample.
        overrides: as `--set` takes them: "eval.data_dir=benchmarks".
    """
    from nrt_cli.evaluation.evaluate import evaluate as run_evaluation
    from nrt_cli.evaluation.session import Job
    from nrt_cli.progress import EvalProgress

    names = (benchmarks,) if isinstance(benchmarks, str) else tuple(benchmarks)
    with EvalProgress() as display:
        return run_evaluation(Job(str(model), names, limit), load_config(None, *overrides), display)


def analyze(name: Literal["dynamics", "vocab", "cases"], *runs: PathLike, **settings: Any) -> "Analysis":
    """What runs left behind, as a report: `.tables` of data frames and `.figures` of matplotlib figures, by name.

    Args:
        name: "dynamics" (Figure 2), "vocab" (Figure 4, one RUN or RUN@STEPS) or "cases" (Table 10).
        settings: `window` of dynamics; `top` of vocab; `n` of cases.
    """
    from nrt_analysis import case_report, dynamics_report, frames, vocabulary_report
    from nrt_analysis.document import Analysis

    from nrt_cli.errors import ConfigError
    from nrt_cli.store import Reference

    references = [Reference.parse(str(run)) for run in runs]
    if not runs or (name == "vocab" and len(runs) > 1):
        raise ConfigError(f"analyze({name!r}): name {'one run' if name == 'vocab' else 'one run or more'}.")
    if name == "dynamics":
        found = dynamics_report.dynamics(frames.open_runs([Path(run) for run in runs]), **settings)
    elif name == "vocab":
        found = vocabulary_report.vocabulary(references[0], **settings)
    elif name == "cases":
        found = case_report.stored_cases(references, **{"kind": frames.HELD_OUT, "n": 3, **settings})
    else:
        raise ConfigError(f"analyze({name!r}): unknown; choose dynamics, vocab or cases.")
    drawings = {figure.key: figure.drawing for figure in found.figures if figure.drawing}
    return Analysis(found.frames, drawings, found.notes, found.units)


def doctor(config: "RunConfig | None" = None) -> "list[Finding]":
    """Are machine, model, data and config fit to train? Findings have `check`, `verdict`, `found`, `do`, `details`."""
    from nrt_cli.checks.doctor import diagnose

    return list(diagnose(config))


def push(model: PathLike, out: PathLike | None = None, repo: str | None = None, **settings: Any) -> dict[str, Any]:
    """Write a model for others to a folder, or upload it to the hub's `repo`: with card and thinking chat template.

    `settings` are other arguments of `nrt_cli.workflows.push.push`.
    """
    from nrt_cli.workflows.push import push as run_push

    return run_push(str(model), None if out is None else Path(out), repo, **settings)
