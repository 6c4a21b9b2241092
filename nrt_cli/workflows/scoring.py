"""Models opened for scoring, as the run that made them would: its think tokens, objective and rollout settings; and the
reward under a microscope: one question and answer, some traces, every scheme, token by token (Table 9).

Shapes: K traces of one group, T answer tokens, eos included.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nrt_cli import config as configs
from nrt_cli import console, methods
from nrt_cli.backends.local.scoring import Scorer
from nrt_cli.backends.machine import use_threads
from nrt_cli.config import DataSection, ModelSection, RolloutSection, RunConfig
from nrt_cli.config.titles import run_title
from nrt_cli.data.examples import load_examples
from nrt_cli.errors import ConfigError, DataError
from nrt_cli.methods import SCHEMES
from nrt_cli.models.metadata import read_metadata
from nrt_cli.objective.comparison import view_group
from nrt_cli.records import Example
from nrt_cli.store import Run
from nrt_cli.text.pieces import pieces, sentence_spans
from nrt_cli.text.prompts import encode_answer, render_prompt
from nrt_cli.text.questions import ending_in
from nrt_cli.training.locate import Located, locate_model

Report = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done and how much there is."""

SCORING_STREAM = 2
"""First part of the random streams' key, after the seed: training and held-out scoring have 0 and 1."""

DEFAULT_TRACE_CAP = 256
"""Cap on traces of models that no run trained; a run has its own."""


@dataclass(frozen=True)
class Subject:
    """A model to look into, not loaded yet. `config` is its run's, or the paper's defaults where there is no run."""

    located: Located
    config: RunConfig
    think_start: str | None
    think_end: str
    thinks: bool

    def open(self) -> Scorer:
        """Load it, on as many threads as its run had."""
        use_threads(self.config)
        bare = self.config.objective.null_trace == "bare"
        scorer = Scorer(self.section, self.think_start, self.think_end, bare)
        if reason := scorer.policy.no_packing:
            console.note(f"{self.located.ref}: nothing is packed, since {reason}")
        return scorer

    @cached_property
    def section(self) -> ModelSection:
        """Its folder, and the dtype that it is computed in."""
        return self.located.section()

    def rollout(self, max_trace_tokens: int | None = None, temperature: float | None = None) -> RolloutSection:
        """How its traces are sampled: as in its run, unless told otherwise."""
        given = {"max_trace_tokens": max_trace_tokens, "temperature": temperature}
        return self.config.rollout.model_copy(update={key: value for key, value in given.items() if value is not None})


def subject(ref: str | Path) -> Subject:
    """The model that DIR, RUN, RUN@STEP or builtin:NAME means. Raises ModelError or StoreError where there is none."""
    located = locate_model(ref)
    about = read_metadata(located.folder)
    if located.run is None:
        defaults = configs.resolve({"rollout": {"max_trace_tokens": DEFAULT_TRACE_CAP}})
        return Subject(located, defaults, about.think_start, about.think_end, about.thinks)
    config = Run.open(located.run).config()
    # What the run used, which may be less than what its starting model was prepared with.
    tokens = config.tokens
    return Subject(located, config, tokens.think_start, tokens.think_end, config.thinks)


def data_file(of: Subject, given: Path | None) -> Path:
    """The pairs to score: a file, or the held-out ones of the subject's run."""
    if given is None and of.located.run is None:
        raise ConfigError(f"{of.located.ref}: is no run, so its held-out data is unknown; name some with --data FILE.")
    if given is None and of.config.data.validation is None:
        raise ConfigError(f"{of.located.run}: was trained without held-out data; name some with --data FILE.")
    path = given or Path(str(of.config.data.validation))
    if not path.is_file():
        raise DataError(f"{path}: no such file; name one made by `nrt data prepare` with --data.")
    return path


def pick_examples(path: Path, count: int, seed: int, limits: DataSection, tokenizer: object) -> list[Example]:
    """`count` examples of a file at random, in the file's order; all of them where there are fewer.

    A larger count adds to the examples of a smaller one.
    """
    examples = load_examples(path, tokenizer, limits.max_prompt_tokens, limits.max_answer_tokens, limits.strict)
    for text in examples.left_out(f"of {path}"):
        console.note(text)
    order = np.random.default_rng(seed).permutation(len(examples))
    return [examples[int(i)] for i in sorted(order[:count])]


def in_parts(total: int, size: int) -> Iterator[tuple[int, slice]]:
    """(number, slice) of consecutive parts of at most `size`."""
    for number, start in enumerate(range(0, total, size)):
        yield number, slice(start, min(start + size, total))


def default_folder(ref: str | Path, analysis: str) -> Path:
    """Where an analysis of a model goes: into its run, else below the working directory."""
    return (locate_model(ref).run or Path()) / "analysis" / analysis


# --- one question ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """What is asked, what it is scored on, and which traces: those given, or `samples` of the model's own.

    `samples` None takes the group size of the model's run.
    """

    question: str
    answer: str
    traces: tuple[str, ...] = ()
    samples: int | None = None
    max_trace_tokens: int | None = None
    temperature: float | None = None
    seed: int = 0
    sentences: bool = False
    schemes: tuple[str, ...] = SCHEMES


@dataclass(frozen=True)
class AnswerScore:
    """An answer's tokens and its whole: log c, c, log P and P."""

    logprobs: list[float]
    c: list[float]
    logprob: float
    probability: float


@dataclass(frozen=True)
class SchemeScore:
    """What one scheme makes of a trace. An advantage is relative to a group: a single trace has none but `raw`."""

    reward: float
    log_reward: float
    reward_base: float
    clipped: float
    advantage: float | None
    dead_group: bool | None
    weights: list[float]
    token_signals: list[float]


@dataclass(frozen=True)
class SentenceScore:
    """The gain of a sentence: log P(y*) given the whole trace, minus that given the trace without it, in nats."""

    sentence: str
    tokens: int
    gain: float


@dataclass(frozen=True)
class TraceScore:
    """A trace, the answer given it as in `AnswerScore`, and what it adds to each token, in nats."""

    trace: str
    trace_tokens: int
    stop: str
    """`given`, or why sampling stopped."""
    logprobs: list[float]
    c: list[float]
    logprob: float
    probability: float
    gains: list[float]
    gain: float
    schemes: dict[str, SchemeScore] = field(default_factory=dict)
    sentences: list[SentenceScore] | None = None


@dataclass(frozen=True)
class Scored:
    """All numbers of one model; logarithms are natural. `direct` is of a model that answers directly; `null` and
    `traces` are None where there is no trace."""

    model: str
    folder: str
    method: str | None
    title: str | None
    question: str
    answer: str
    tokens: list[str]
    token_ids: list[int]
    objective: dict[str, Any]
    direct: AnswerScore | None = None
    null: AnswerScore | None = None
    traces: list[TraceScore] | None = None

    def record(self) -> dict[str, Any]:
        """As JSON has it, without what there is not."""
        found = {key: value for key, value in asdict(self).items() if value is not None or key in ("method", "title")}
        for trace in found.get("traces", ()):
            if trace["sentences"] is None:
                del trace["sentences"]
        return found


def score_answer(ref: str, asked: Question) -> Scored:
    """One model's numbers.

    A model that answers directly has no traces of its own: without any given, it is scored on y* given x alone.
    """
    of = subject(ref)
    if not asked.question.strip() or not asked.answer.strip():
        raise ConfigError("the question or the answer is empty; give both.")
    scorer, objective, trained = of.open(), of.config.objective, of.located.run is not None
    tokenizer = scorer.tokenizer
    question = ending_in(asked.question, of.located.suffix)
    prompt = render_prompt(tokenizer, [{"role": "user", "content": question}])
    example = Example(0, "asked", tuple(prompt), tuple(encode_answer(tokenizer, asked.answer)))
    sampled: list[tuple[tuple[int, ...], str]] = []
    if asked.traces:
        if asked.samples or asked.max_trace_tokens or asked.temperature:
            raise ConfigError(
                "give either --trace or how to sample traces (--samples, --max-trace-tokens, --temperature): sampled "
                "traces and others are no group."
            )
        for text in asked.traces:  # which stays text, whatever special token it spells
            ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
            sampled.append((tuple(ids), "given"))
    elif of.thinks:
        rollout = of.rollout(asked.max_trace_tokens, asked.temperature)
        key = (asked.seed, SCORING_STREAM)
        (group,) = scorer.sample([example], asked.samples or rollout.group_size, rollout, key)
        sampled = [(one.trace_ids, one.stop) for one in group.rollouts]
    direct = None if of.thinks else _answer(scorer.score([scorer.direct_row(example)])[0].logprobs_T.double())
    null, traces = None, None
    if sampled:
        rows = [scorer.null_row(example), *(scorer.row(example, ids) for ids, _ in sampled)]
        null_T, *given = (scores.logprobs_T.double() for scores in scorer.score(rows))
        null, traces = _answer(null_T), []
        for (ids, stop), logprobs_T in zip(sampled, given, strict=True):
            texts, answer, gains_T = pieces(tokenizer, ids), vars(_answer(logprobs_T)), logprobs_T - null_T
            sentences = None
            if asked.sentences:
                spans = sentence_spans(texts)
                cut = scorer.score([scorer.row(example, (*ids[:start], *ids[end:])) for start, end in spans])
                lost = [answer["logprob"] - float(rest.logprobs_T.sum()) for rest in cut]
                sentences = [
                    SentenceScore("".join(texts[start:end]), end - start, gain)
                    for (start, end), gain in zip(spans, lost, strict=True)
                ]
            gains, total = gains_T.tolist(), float(gains_T.sum())
            told = "".join(texts)
            traces.append(TraceScore(told, len(ids), stop, **answer, gains=gains, gain=total, sentences=sentences))
        alone = len(given) == 1 and objective.advantage != "raw"
        for name in asked.schemes:
            view = view_group(methods.get(name), torch.stack(given), null_T, objective)
            for k, trace in enumerate(traces):
                trace.schemes[name] = SchemeScore(
                    reward=float(view.reward.reward_K[k]),
                    log_reward=float(view.log_reward_K[k]),
                    reward_base=float(view.reward.base),
                    clipped=float(view.clipped_K[k]),
                    advantage=None if alone else float(view.advantage.advantage_K[k]),
                    dead_group=None if alone else view.advantage.dead,
                    weights=view.weight_KT[k].tolist(),
                    token_signals=view.reward.token_KT[k].tolist(),
                )
    keys = ("baseline", "advantage", "std_floor", "weighted_sum", "weight_cap", "null_trace")
    return Scored(
        model=of.located.name,
        folder=str(of.located.folder),
        method=of.config.method if trained else None,
        title=run_title(of.config.method, of.config.model_dump()) if trained else None,
        question=question,
        answer=asked.answer,
        tokens=pieces(tokenizer, example.answer_ids),
        token_ids=list(example.answer_ids),
        objective={key: getattr(objective, key) for key in keys},
        direct=direct,
        null=null,
        traces=traces,
    )


def _answer(logprobs_T: Tensor) -> AnswerScore:
    total = logprobs_T.sum()
    return AnswerScore(logprobs_T.tolist(), logprobs_T.exp().tolist(), float(total), float(total.exp()))
