"""What `nrt judge` is going to ask: which traces, of which checkpoints, by which judges."""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nrt_cli import config as configs
from nrt_cli.config.schema import JudgeSection
from nrt_cli.data.examples import read_texts
from nrt_cli.data.sources import file_sha256
from nrt_cli.errors import ConfigError, DataError, StoreError
from nrt_cli.judging.prompts import JudgePrompt
from nrt_cli.store import Reference, Run
from nrt_cli.store.judgements import held_out_steps, held_out_traces

SHIPPED = "judge/trace-quality"


@dataclass(frozen=True)
class Question:
    """One trace for one judge. `shown` is problem, trace and reference answer, `key` a digest of all that is asked."""

    run: Run
    step: int
    example: int
    judge: str
    shown: tuple[str, str, str]
    prompt: str
    key: str


@dataclass(frozen=True)
class Plan:
    """Every trace to be judged. `steps` are by run, in the order given; `notes` what a person should know of it."""

    settings: JudgeSection
    template: JudgePrompt
    steps: tuple[tuple[Run, tuple[int, ...]], ...]
    questions: tuple[Question, ...]
    notes: tuple[str, ...]

    @property
    def runs(self) -> list[Run]:
        return [run for run, _ in self.steps]


def make_plan(references: Sequence[str], changes: Sequence[Mapping[str, Any]]) -> Plan:
    """The plan for `RUN@STEPS` texts, with the judge settings of the runs and `changes` on top.

    The sample is drawn by seed and example alone, from the examples whose traces every checkpoint has: it is the same
    for all of them, and that of a larger n contains that of a smaller one. Raises StoreError for what is not stored,
    with the command that stores it, and ConfigError for settings that cannot be meant.
    """
    steps: list[tuple[Run, tuple[int, ...]]] = []
    for reference in map(Reference.parse, references):
        run = Run.open(reference.path)
        if run.path.resolve() in [other.path.resolve() for other, _ in steps]:
            raise ConfigError(f"{run.path} is named twice; give all its steps at once, such as RUN@0,30.")
        try:
            steps.append((run, tuple(reference.choose(held_out_steps(run)))))
        except StoreError as error:
            raise StoreError(
                f"{error} Held-out traces are stored before the first and after the last step, and every N steps with "
                "`nrt train ... --set train.validate_every=N`."
            ) from None

    runs = [run for run, _ in steps]
    first = runs[0]
    settings: JudgeSection = first.config(*changes).judge
    for run in runs:
        for key, value in run.config(*changes).judge:
            if value != getattr(settings, key):
                raise ConfigError(
                    f"{run.path} has judge.{key}={value} and {first.path} has {getattr(settings, key)}; judge them "
                    f"alike: --set judge.{key}=..."
                )
    template = read_template(settings.template)

    traces = [(run, step, held_out_traces(run, step)) for run, of_run in steps for step in of_run]
    common = set.intersection(*(set(rows) for _, _, rows in traces))
    # Example numbers of other data mean other questions: known by its digest, and by what is stored of it.
    data = {run.path: run.manifest().get("fingerprints", {}).get("validation") for run in runs}
    for run, _, rows in traces:
        pairs = [[(stored[i].prompt, stored[i].answer) for i in common] for stored in (rows, traces[0][2])]
        if data[run.path] != data[first.path] and (not common or pairs[0] != pairs[1]):
            raise StoreError(
                f"{run.path} and {first.path} have held out different data, so their traces answer different "
                "questions; judge them one at a time."
            )
    sample = draw(common, settings.n, settings.seed)

    notes: list[str] = []
    texts: dict[int, tuple[str, str]] = {}  # question and answer as they were written
    for run in runs:
        path = Path(run.config().data.validation or "")
        with contextlib.suppress(DataError, OSError):
            if path.is_file() and file_sha256(path) == data[run.path]:
                texts = read_texts(path, set(sample))
                break
    else:
        notes.append(
            "the validation data of the run is gone or changed, so judges see problem and answer as they "
            "are stored, with the marks of the model's chat template."
        )
    if len(sample) < settings.n:
        notes.append(
            f"{len(sample)} held-out examples have a trace in every checkpoint, fewer than judge.n={settings.n}; "
            "train.validation_size decides how many are stored."
        )

    questions = []
    for example in sample:  # the outer loop: what a limit cuts off is cut off everywhere
        for run, step, rows in traces:
            row = rows[example]
            problem, answer = texts.get(example) or (str(row.prompt), str(row.answer))
            shown = (problem, str(row.trace), answer)
            prompt = template.prompt(*shown)
            for judge in settings.models:
                asked = [judge, settings.temperature, settings.max_output_tokens, template.digest, prompt]
                key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
                questions.append(Question(run, step, example, judge, shown, prompt, key))
    return Plan(settings, template, tuple(steps), tuple(questions), tuple(notes))


def draw(examples: Iterable[int], n: int, seed: int) -> list[int]:
    """At most n examples in an order that depends on seed and example number alone."""
    return sorted(examples, key=lambda example: (np.random.default_rng((seed, example)).random(), example))[:n]


def read_template(name: str) -> JudgePrompt:
    """A YAML of two Jinja texts, or in a file of any other name one prompt, as Table 8 is. Raises ConfigError."""
    try:
        path = configs.find_config(name)
    except ConfigError:
        raise ConfigError(f"judge.template={name!r}: no such file; the shipped template is {SHIPPED}.") from None
    try:
        # With the line ends of Unix, and without a byte order mark.
        text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text; save it as UTF-8.") from None
    called = name if configs.configs_dir() in path.parents else path.name
    if path.suffix not in (".yaml", ".yml"):
        repair = configs.read_yaml(configs.find_config(SHIPPED))["repair"]
        return JudgePrompt({"prompt": text, "repair": repair}, str(path), True, called, text)
    texts = configs.load_yaml(text, str(path))
    return JudgePrompt(texts if isinstance(texts, dict) else {}, str(path), False, called, text)
