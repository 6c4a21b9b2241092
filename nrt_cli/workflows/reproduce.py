"""`nrt reproduce`: a study's runs, those that are missing, side by side; then all of it stands in one folder."""

from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nrt_cli import console
from nrt_cli.commandline import nrt
from nrt_cli.config import RunConfig, read_yaml
from nrt_cli.config.study import (
    Planned,
    StudyConfig,
    absolute,
    changed_sections,
    parse_study,
    planned_runs,
    to_yaml,
)
from nrt_cli.errors import ConfigError, NrtError
from nrt_cli.evaluation.tasks import Status, Task, run_tasks
from nrt_cli.judging.plan import read_template
from nrt_cli.progress import StudyProgress
from nrt_cli.store.evals import settings_hash
from nrt_cli.store.study import Outcome, Study
from nrt_cli.workflows.study_run import ask_base, make_inputs, train_and_ask

INPUTS, BASE = "inputs", "base"
"""Names of the tasks that are no runs."""

SAMPLED = 8
"""How many times the work of an answer a sampled row is, measured on the laptop study; only the ETA knows it."""

PRELOAD = ("nrt_cli.workflows.study_run", "transformers.models.llama.modeling_llama", "lm_eval.api.task")
"""What takes seconds to import."""


def reproduce(folder: Path, study: StudyConfig, display: StudyProgress) -> dict[str, Any]:
    """Make what is missing of a study; returns how each run ended, by name.

    A run that fails does not stop the others; it is tried again when the study goes on.

    Raises:
        ConfigError: the folder holds another study.
        NrtError: the inputs of all runs cannot be made.
        Interrupted: a signal asked to stop; the same call goes on.
    """
    store, study = Study(folder), absolute(study)
    if study.analysis.judge_max_cost:
        read_template(study.analysis.judge.template)  # what comes last can be done
    with store.writing():
        _same_study(store, study)
        store.write_config(to_yaml(study))
        recorder = _Recorder(store, display)
        _make_inputs(store, study, recorder)
        planned = list(planned_runs(study, folder))
        tasks = _missing_tasks(store, study, planned, recorder)
        left = sum(task.name != BASE for task in tasks)
        console.note(
            f"{len(planned)} runs, {left} to do, {study.jobs} at a time; what they say is in {folder / 'logs'}"
        )
        work = {run.name: _work(run.config) for run in planned}
        work[BASE] = max(work.values()) / 10  # it is asked, not trained
        display.begin({task.name: work[task.name] for task in tasks})
        run_tasks(tasks, study.jobs, recorder, _preload(study))
    names = [BASE] * bool(study.eval.base and study.eval.benchmarks) + [run.name for run in planned]
    outcomes = store.outcomes()
    return {"study": str(folder), "runs": {name: vars(outcomes[name]) for name in names if name in outcomes}}


def _work(config: RunConfig) -> float:
    """About how much work a run is: its rows, of which a sampled one takes several times as long as an answer."""
    rows = (config.train.steps or config.train.epochs) * config.train.batch_size
    return rows if config.method == "sft" else rows * config.rollout.group_size * SAMPLED


def _preload(study: StudyConfig) -> Sequence[str]:
    on_cpu = all(run.config.model.device == "cpu" for run in planned_runs(study, Path()))
    return [name for name in PRELOAD if find_spec(name.partition(".")[0])] if on_cpu else ()


def _same_study(store: Study, study: StudyConfig) -> None:
    """Refuse a folder whose runs were made under other settings."""
    if not store.config_path.is_file():
        return
    before = absolute(parse_study(read_yaml(store.config_path), str(store.config_path)))
    if changed := changed_sections(before, study):
        raise ConfigError(
            f"{store.path}: holds a study with another {', '.join(changed)}; choose another --out, or go on with the "
            f"one that is there: `{nrt('reproduce', store.config_path, '--out', store.path)}`."
        )


class _Recorder:
    """Notes in the store how tasks ended, and hands on to the display what they say."""

    def __init__(self, store: Study, display: StudyProgress) -> None:
        self.store, self.display = store, display
        self.digests: dict[str, str] = {}
        self.progress = display.progress

    def ended(self, name: str, status: Status, text: str) -> None:
        self.store.record(name, Outcome(status, "" if status == "finished" else text, self.digests.get(name, "")))
        self.display.ended(name, status, text)


def _make_inputs(store: Study, study: StudyConfig, recorder: _Recorder) -> None:
    recorder.display.begin({INPUTS: 1.0})
    run_tasks(
        [Task(INPUTS, partial(make_inputs, store.path, study), store.log_path(INPUTS))], 1, recorder, _preload(study)
    )
    made = store.outcomes()[INPUTS]
    if made.status != "finished":
        raise NrtError(f"{store.path}: the study's inputs could not be made: {made.reason}")


def _missing_tasks(store: Study, study: StudyConfig, planned: list[Planned], recorder: _Recorder) -> list[Task]:
    """What has not been done under these settings."""
    asked = study.eval.model_dump(mode="json")
    # Without the folder's own path: a study that was moved is the same.
    settings = {run.name: run.config.model_dump(mode="json") for run in planned_runs(study, Path())}
    tasks = []
    if study.eval.base and study.eval.benchmarks:
        tasks.append(Task(BASE, partial(ask_base, store.path, study, planned[0].config), store.log_path(BASE)))
        recorder.digests[BASE] = settings_hash({"eval": asked, "run": settings[planned[0].name]["eval"]})
    for run in planned:
        work = partial(train_and_ask, store.runs_path / run.name, run.config, study.eval)
        tasks.append(Task(run.name, work, store.log_path(run.name)))
        recorder.digests[run.name] = settings_hash({"eval": asked, "run": settings[run.name]})
    known = store.outcomes()
    return [task for task in tasks if not _is_done(store, task.name, known.get(task.name), recorder.digests)]


def _is_done(store: Study, name: str, known: Outcome | None, digests: dict[str, str]) -> bool:
    there = name == BASE or store.holds(name)
    return there and known is not None and known.status == "finished" and known.digest == digests[name]
