"""The reward under a microscope: one question and answer, some traces, every scheme, token by token (Table 9).

Shapes: K traces of one group, T answer tokens, eos included.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nrt_cli import methods
from nrt_cli.backends.local.scoring import Scorer
from nrt_cli.config import ObjectiveSection
from nrt_cli.config.titles import run_title
from nrt_cli.errors import ConfigError
from nrt_cli.methods import SCHEMES
from nrt_cli.objective.comparison import view_group
from nrt_cli.records import Example
from nrt_cli.text.pieces import pieces, sentence_spans
from nrt_cli.text.prompts import encode_answer, render_prompt
from nrt_cli.text.questions import ending_in
from nrt_cli.workflows.scoring import SCORING_STREAM, Subject, subject


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
class _Trace:
    ids: tuple[int, ...]
    stop: str
    """`given`, or why sampling stopped."""


def score_answer(ref: str, asked: Question) -> dict[str, Any]:
    """All numbers of one model, ready for JSON; logarithms are natural, what does not exist is None.

    A model that answers directly has no traces of its own: without any given, it is scored on y* given x alone.
    """
    of = subject(ref)
    if not asked.question.strip() or not asked.answer.strip():
        raise ConfigError("the question or the answer is empty; give both.")
    scorer = of.open()
    question = ending_in(asked.question, of.located.suffix)
    prompt = render_prompt(scorer.tokenizer, [{"role": "user", "content": question}])
    example = Example(0, "asked", tuple(prompt), tuple(encode_answer(scorer.tokenizer, asked.answer)))
    traces = _traces(scorer, of, asked, example)
    record = {
        "model": of.located.name,
        "folder": str(of.located.folder),
        "method": of.config.method if of.located.run else None,
        "title": run_title(of.config.method, of.config.model_dump()) if of.located.run else None,
        "question": question,
        "answer": asked.answer,
        "tokens": pieces(scorer.tokenizer, example.answer_ids),
        "token_ids": list(example.answer_ids),
        "objective": _objective(of.config.objective),
    }
    if not of.thinks:
        (direct,) = scorer.score([scorer.direct_row(example)])
        record["direct"] = _answer(direct.logprobs_T)
    if traces:
        record |= _score_group(scorer, of.config.objective, example, traces, asked)
    return record


def _traces(scorer: Scorer, of: Subject, asked: Question, example: Example) -> list[_Trace]:
    """The traces given, as text that stays text; else the model's own, if it thinks."""
    if asked.traces:
        if asked.samples or asked.max_trace_tokens or asked.temperature:
            raise ConfigError(
                "give either --trace or how to sample traces (--samples, --max-trace-tokens, --temperature): sampled "
                "traces and others are no group."
            )
        encode = scorer.tokenizer.encode
        return [
            _Trace(tuple(encode(t, add_special_tokens=False, split_special_tokens=True)), "given") for t in asked.traces
        ]
    if not of.thinks:
        return []
    rollout = of.rollout(asked.max_trace_tokens, asked.temperature)
    key = (asked.seed, SCORING_STREAM)
    (group,) = scorer.sample([example], asked.samples or rollout.group_size, rollout, key)
    return [_Trace(rollout.trace_ids, rollout.stop) for rollout in group.rollouts]


def _score_group(
    scorer: Scorer, objective: ObjectiveSection, example: Example, traces: Sequence[_Trace], asked: Question
) -> dict[str, Any]:
    """What every scheme says of the traces."""
    rows = [scorer.null_row(example), *(scorer.row(example, trace.ids) for trace in traces)]
    null, *given = (scores.logprobs_T.double() for scores in scorer.score(rows))
    logprobs_KT = torch.stack(given)
    records = [_trace_record(scorer, trace, logprobs_T, null) for trace, logprobs_T in zip(traces, given, strict=True)]
    for name in asked.schemes:
        for k, found in enumerate(_scheme(name, logprobs_KT, null, objective)):
            records[k]["schemes"][name] = found
    if asked.sentences:
        for record, trace in zip(records, traces, strict=True):
            record["sentences"] = _sentences(scorer, example, trace, record["logprob"])
    return {"null": _answer(null), "traces": records}


def _answer(logprobs_T: Tensor) -> dict[str, Any]:
    """An answer's tokens and its whole: log c, c, log P and P."""
    logprobs_T = logprobs_T.double()
    total = logprobs_T.sum()
    return {
        "logprobs": logprobs_T.tolist(),
        "c": logprobs_T.exp().tolist(),
        "logprob": float(total),
        "probability": float(total.exp()),
    }


def _trace_record(scorer: Scorer, trace: _Trace, logprobs_T: Tensor, null_T: Tensor) -> dict[str, Any]:
    gains_T = logprobs_T - null_T
    return {
        "trace": "".join(pieces(scorer.tokenizer, trace.ids)),
        "trace_tokens": len(trace.ids),
        "stop": trace.stop,
        **_answer(logprobs_T),
        "gains": gains_T.tolist(),
        "gain": float(gains_T.sum()),
        "schemes": {},
    }


def _scheme(name: str, logprobs_KT: Tensor, null_T: Tensor, objective: ObjectiveSection) -> list[dict[str, Any]]:
    """One scheme's numbers, trace by trace. An advantage is relative to a group: a single trace has none but `raw`."""
    view = view_group(methods.get(name), logprobs_KT, null_T, objective)
    alone = len(logprobs_KT) == 1 and objective.advantage != "raw"
    return [
        {
            "reward": float(view.reward.reward_K[k]),
            "log_reward": float(view.log_reward_K[k]),
            "reward_base": float(view.reward.base),
            "clipped": float(view.clipped_K[k]),
            "advantage": None if alone else float(view.advantage.advantage_K[k]),
            "dead_group": None if alone else view.advantage.dead,
            "weights": view.weight_KT[k].tolist(),
            "token_signals": view.reward.token_KT[k].tolist(),
        }
        for k in range(len(logprobs_KT))
    ]


def _sentences(scorer: Scorer, example: Example, trace: _Trace, logprob: float) -> list[dict[str, Any]]:
    """The gain of each sentence: log P(y*) given the whole trace, minus that given the trace without it, in nats."""
    texts = pieces(scorer.tokenizer, trace.ids)
    spans = sentence_spans(texts)
    rows = [scorer.row(example, (*trace.ids[:start], *trace.ids[end:])) for start, end in spans]
    return [
        {"sentence": "".join(texts[start:end]), "tokens": end - start, "gain": logprob - float(rest.logprobs_T.sum())}
        for (start, end), rest in zip(spans, scorer.score(rows), strict=True)
    ]


def _objective(objective: ObjectiveSection) -> dict[str, Any]:
    keys = ("baseline", "advantage", "std_floor", "weighted_sum", "weight_cap", "null_trace")
    return {key: getattr(objective, key) for key in keys}
