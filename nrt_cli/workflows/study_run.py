"""What the processes of a study do: make what all runs begin from, ask the starting model, train and ask one run."""

import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from nrt_cli.commandline import nrt
from nrt_cli.config import RunConfig
from nrt_cli.config.study import PretrainSection, StudyConfig, StudyEval, StudyModel, planned_runs, uses_own_benchmark
from nrt_cli.data import digits
from nrt_cli.data.choose import Settings
from nrt_cli.data.prepare import Tokenizer, prepare, tokenizer_fingerprint
from nrt_cli.errors import ConfigError, EvalError
from nrt_cli.evaluation.benchmark import load_suite
from nrt_cli.evaluation.evaluate import evaluate
from nrt_cli.evaluation.session import Job
from nrt_cli.evaluation.tasks import Tell
from nrt_cli.models.loading import load_tokenizer
from nrt_cli.models.prepare import prepare_model
from nrt_cli.progress import EvalProgress, Progress
from nrt_cli.store.study import Study
from nrt_cli.training.pretraining import pretrain
from nrt_cli.workflows.study_plan import pair_settings
from nrt_cli.workflows.train import train

TRAINING = 0.9
"""Share of a run's work that is training, where it is evaluated afterwards."""


def make_inputs(folder: Path, study: StudyConfig, tell: Tell) -> str:
    """Benchmark documents, starting model and pairs; what is there already is kept."""
    model, data, settings = study.model, study.data, pair_settings(study)
    if model.pretrain and model.pretrain.world != digits.WORLD:
        return _inputs_of_before(folder, study)
    _check_benchmarks(folder, study)
    source = model.source or str(_pretrained(folder, model, tell))
    prepared = prepare_model(
        source, folder / "models" / model.name, init_start=model.init_start, init_end=model.init_end
    )
    tell(0.0, "pairs")
    tokenizer = None
    if settings.max_prompt_tokens:
        tokenizer = Tokenizer(load_tokenizer(prepared.folder), tokenizer_fingerprint(prepared.folder))
    if data.held_out:
        apart = Settings(size=int(data.validation), seed=data.seed, suffix=data.suffix)
        prepare(data.held_out, folder / "held-out", apart)
    prepare(data.sources, folder / "data", settings, tokenizer)
    return f"{model.name}: {prepared.metadata['parameters']:,} parameters"


def _inputs_of_before(folder: Path, study: StudyConfig) -> str:
    """What a study of an earlier version of the world has to stand on, since it is no longer made."""
    asked = [folder / "benchmarks" / "digits"] if uses_own_benchmark(study) else []
    if missing := [
        path for path in (folder / "data", folder / "models" / study.model.name, *asked) if not path.is_dir()
    ]:
        raise ConfigError(
            f"{missing[0]}: is not there, and this version of nrt makes the world {digits.WORLD!r} alone; name it as "
            f"model.pretrain.world in another --out. `{nrt('report', folder)}` shows the runs that are there."
        )
    return f"{study.model.name}: as it was made"


def _check_benchmarks(folder: Path, study: StudyConfig) -> None:
    """That what comes last can be done is said first. Writes the problems that nothing trains on as documents."""
    if uses_own_benchmark(study):
        rows = [{"question": digits.question(p), "answer": digits.answer(p)} for p in digits.held_out_problems()]
        Study(folder).write_documents("digits", "".join(json.dumps(row) + "\n" for row in rows))
    named = next(planned_runs(study, folder)).config.eval.data_dir
    for benchmark in load_suite(study.eval.benchmarks) if study.eval.benchmarks else ():
        benchmark.check(Path(named).expanduser() if named else None)


def _pretrained(folder: Path, model: StudyModel, tell: Tell) -> Path:
    """A model made from nothing, as a hub model would be."""
    made, section = folder / "models" / f"{model.name}-source", model.pretrain
    assert section is not None
    if made.is_dir():
        return made

    def progress(step: int, loss: float) -> None:
        if step % 10 == 0:
            tell(step / section.steps, f"pretraining, {loss:.2f} nats per token")

    pretrain(digits.vocabulary(), partial(_documents, section), section.steps, made, section.seed, progress)
    return made


def _documents(section: PretrainSection, step: int) -> list[tuple[str, str]]:
    mixture = digits.FIRST if step < section.first_share * section.steps else digits.THEN
    return list(digits.documents(section.seed, step * section.batch_size, section.batch_size, mixture))


def ask_base(folder: Path, study: StudyConfig, config: RunConfig, tell: Tell) -> str:
    """The starting model's scores, answering directly: it was never taught to think."""
    asked = study.eval
    out = folder / "evals" / "base"
    job = Job(config.model.path, asked.benchmarks, asked.limit, engine=asked.engine, think="off", out=out)
    return _ask(job, config, tell, 0.0)


def train_and_ask(run_path: Path, config: RunConfig, asked: StudyEval, tell: Tell) -> str:
    """Train a run, or what is missing of it, and evaluate it."""
    share = TRAINING if asked.benchmarks else 1.0
    started = (run_path / "manifest.json").is_file()
    # A run that is there goes on under the study's settings, which may name more steps than it had.
    train(run_path, config, started, partial(_TrainingTold, tell, share))
    if not asked.benchmarks:
        return ""
    job = Job(str(run_path), asked.benchmarks, asked.limit, engine=asked.engine)
    return _ask(job, config, tell, share)


def _ask(job: Job, config: RunConfig, tell: Tell, begin: float) -> str:
    outcome = evaluate(job, config, _AskingTold(tell, begin, len(load_suite(job.benchmarks))))
    if failed := [f"{row['benchmark']}: {row['failed']}" for row in outcome["benchmarks"] if row["failed"]]:
        raise EvalError(f"not evaluated: {'; '.join(failed)}")
    return ", ".join(_score(row) for row in outcome["benchmarks"])


def _score(row: Mapping[str, Any]) -> str:
    error = "" if math.isnan(row["error"]) else f" ± {100 * row['error']:.1f}"
    return f"{row['title']} {100 * row['score']:.1f}{error}"


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
