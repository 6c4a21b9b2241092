"""The X-ray of traces: which steps the answer needs, when it is decided, and whether it was computed or smuggled in.

Every variant of a trace is a row of the tokens that were sampled: a step is a span of them, and nothing that was
decoded is encoded again. What a number means stands in `nrt_cli/measures/xray.py`, what is stored in `XrayRow`.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np

from nrt_cli import console
from nrt_cli.config import RolloutSection
from nrt_cli.data.sources import file_sha256
from nrt_cli.errors import ConfigError, ModelError, StoreError
from nrt_cli.measures.xray import DECIDED, MATTERS, decided_at, lasting, needed, smuggled_share
from nrt_cli.models.loading import load_tokenizer
from nrt_cli.objective.rows import Row, trace_prompt
from nrt_cli.records import TRACE_COLUMNS, XRAY_COLUMNS, Example, Rollout, RolloutGroup, XrayRow
from nrt_cli.store import Reference, Run
from nrt_cli.store.tables import open_table
from nrt_cli.text import tampering
from nrt_cli.text.pieces import copied_share, joined_spans, pieces, sentence_spans, word_spans, words
from nrt_cli.training.traces import trace_rows
from nrt_cli.workflows.scoring import (
    SCORING_STREAM,
    Report,
    Scorer,
    Subject,
    asked_example,
    data_file,
    fill,
    given_traces,
    pick_examples,
)

Unit = Literal["sentence", "word"]
UNITS = {"sentence": sentence_spans, "word": word_spans}

PART = 8
"""Traces, each with all its variants, that are scored and stored together."""

COLUMNS = {name: TRACE_COLUMNS[name].type for name in (
    "step", "example", "source", "k", "prompt", "trace", "answer", "prompt_ids", "trace_ids", "answer_ids",
)}  # fmt: skip
"""What is read of a trace table."""

Traces = Sequence[dict[str, Any]]
"""Rows of a trace table, with `COLUMNS`."""


def xray(
    ref: str,
    folder: Path,
    report: Report,
    traces: str | None = None,
    data: Path | None = None,
    asked: tuple[str, str, Sequence[str]] | None = None,
    limit: int = 100,
    unit: Unit | None = None,
    max_steps: int = 32,
    seed: int = 0,
    samples: int | None = None,
    max_trace_tokens: int | None = None,
    temperature: float | None = None,
) -> list[tuple[str, list[Path]]]:
    """Look into traces; for each model that looked, its name and its tables of `XrayRow`s.

    Of a run without more, these are the held-out traces of each checkpoint that is kept; of RUN@STEP, that step's.

    Args:
        ref: RUN, RUN@STEP, or with `data` or `asked` any model that thinks.
        traces: name of a trace table of the run instead.
        data: pairs that the model samples traces for; `limit` of them at random.
        asked: question, answer, and traces of it; without any, the model samples some.
        limit: traces of each table, evenly spaced over those there are.
        unit: what a step is; None: a sentence, or a word where most traces have but one sentence.
        max_steps: a trace of more has neighbours joined.
        samples: how many traces of a question are sampled; None is one, and for a single question the run's group size.
    """
    if data or asked:
        of = Subject(ref)
        if not of.thinks:
            raise ConfigError(f"{ref}: answers directly, so that it has no traces; name a model that thinks.")
        rollout = of.rollout(max_trace_tokens, temperature)
        if asked:
            name, rows = _asked(of, *asked, samples or rollout.group_size, rollout, seed)
        else:
            name, rows = (
                "sampled",
                _sampled(of, folder, report, data_file(of, data), limit, samples or 1, rollout, seed),
            )
        tables = [(of, name, rows)]
    else:
        tables = [(of, name, _stored(of, name, limit)) for of, name in _tables(ref, traces)]
    if unit is None:
        tokenizer = load_tokenizer(tables[-1][0].located.folder)  # a run has one
        count = [len(sentence_spans(pieces(tokenizer, row["trace_ids"]))) for _, _, rows in tables for row in rows]
        unit = "word" if count and median(count) < 2 else "sentence"
    found = []
    for of, name, rows in tables:
        identity = json.dumps([[row["example"], row["k"], list(row["trace_ids"])] for row in rows])
        settings = {
            "traces": hashlib.sha256(identity.encode()).hexdigest(),
            "unit": unit,
            "most": max_steps,
            "seed": seed,
        }

        def look(scorer: Scorer, part: slice, of: Subject = of, name: str = name, rows: Traces = rows) -> Any:
            where = {"traces": name, "model_step": of.located.step, "unit": unit}
            return [vars(row) | where for row in look_into(scorer, rows, part, unit, max_steps, seed)]

        columns, what = {name: column.type for name, column in XRAY_COLUMNS.items()}, f"{of.located.name}, {name}"
        found.append((of.located.name, fill(of, folder, name, settings, columns, what, len(rows), PART, look, report)))
    return found


def _tables(ref: str, traces: str | None) -> list[tuple[Subject, str]]:
    """The models of a run that look, each with the trace table it looks into."""
    named = Reference.parse(ref)
    run = Run.open(named.path) if (named.path / "manifest.json").is_file() else None
    if run is None:
        raise ConfigError(f"{ref}: is no run, so that no traces of it are stored; give it some with --data FILE.")
    if not run.config().thinks:
        raise ConfigError(f"{ref}: its method samples no traces; name a run whose method does.")
    there, exported = run.trace_names(), run.exported_step()

    def missing(name: str) -> StoreError:
        return StoreError(
            f"{run.path}: no traces {name} are stored (there are {', '.join(there) or 'none'}); name others with "
            "--traces, or train with --validation FILE, which stores held-out traces."
        )

    if traces or named.spans:
        of = Subject(ref)
        if (name := traces or f"held-out-{of.located.step or 0:06d}") not in there:
            raise missing(name)
        return [(of, name)]
    found = []
    for step in sorted({0, *run.checkpoint_steps(), *run.model_steps(), exported or 0}):
        if (name := f"held-out-{step:06d}") in there:
            try:
                found.append((Subject(str(named.path) if step == exported else f"{named.path}@{step}"), name))
            except ModelError as error:  # such as the model that it began from, which was moved
                console.note(f"{name} is left out: {error}")
    if not found:
        raise missing(f"held-out-{exported or 0:06d}")
    return found


def _stored(of: Subject, name: str, limit: int) -> Traces:
    assert of.located.run is not None
    if not (stored := Run.open(of.located.run).traces(name, tuple(COLUMNS))):
        raise StoreError(f"{of.located.run}: the table {name} holds no traces; name another with --traces.")
    return [stored[i] for i in np.linspace(0, len(stored) - 1, min(limit, len(stored))).astype(int)]


def _sampled(
    of: Subject, folder: Path, report: Report, file: Path, count: int, samples: int, rollout: RolloutSection, seed: int
) -> Traces:
    """Traces that a model samples for pairs of a file, kept beside what is found of them."""
    limits = of.config.data
    examples = pick_examples(file, count, seed, limits, load_tokenizer(of.located.folder))
    settings = {"data": file_sha256(file), "count": count, "seed": seed, "samples": samples}
    settings |= {"limits": [limits.max_prompt_tokens, limits.max_answer_tokens]}
    settings |= {"cap": rollout.max_trace_tokens, "temperature": rollout.temperature}

    def rows(scorer: Scorer, part: slice) -> list[dict[str, Any]]:
        groups = scorer.sample(examples[part], samples, rollout, (seed, SCORING_STREAM))
        return _rows(of, groups, scorer.tokenizer)

    what, found = f"{of.located.name}, sampling", list[dict[str, Any]]()
    for part in fill(of, folder, "traces", settings, COLUMNS, what, len(examples), PART, rows, report):
        with open_table(part, named=True) as table:
            found += table.read().to_pylist()
    return found


def _asked(
    of: Subject, question: str, answer: str, texts: Sequence[str], samples: int, rollout: RolloutSection, seed: int
) -> tuple[str, Traces]:
    """One question's traces: given, or the model's own."""
    example, tokenizer = asked_example(of, question, answer), load_tokenizer(of.located.folder)
    if texts:
        given = tuple(Rollout(ids, (), "end") for ids in given_traces(tokenizer, texts))
        return "given", _rows(of, [RolloutGroup(example, given)], tokenizer)
    return "sampled", _rows(of, of.open().sample([example], samples, rollout, (seed, SCORING_STREAM)), tokenizer)


def _rows(of: Subject, groups: Sequence[RolloutGroup], tokenizer: Any) -> list[dict[str, Any]]:
    rows = (replace(row, step=of.located.step) for row in trace_rows(0, groups, None, tokenizer))
    return [{name: value for name, value in vars(row).items() if name in COLUMNS} for row in rows]


def look_into(scorer: Scorer, rows: Traces, part: slice, unit: Unit, max_steps: int, seed: int) -> list[XrayRow]:
    """What is found of some of the traces; another question's trace is the next one's among all of them."""
    looks = [_Look(scorer, rows, i, unit, max_steps, seed) for i in range(*part.indices(len(rows)))]
    for rounds in (_Look.variants, _Look.within_steps):
        asked = [rounds(look) for look in looks]
        scores = iter(scorer.score([row for of in asked for row in of.values()]))
        for look, of in zip(looks, asked, strict=True):
            look.scored |= {key: next(scores)[0].double().numpy(force=True) for key in of}
    return [look.found() for look in looks]


class _Look:
    """One trace: the rows that it asks for, and what their log-probabilities say."""

    def __init__(self, scorer: Scorer, rows: Traces, i: int, unit: Unit, max_steps: int, seed: int) -> None:
        self.scorer, self.trace = scorer, rows[i]
        row, tokenizer = rows[i], scorer.tokenizer
        self.example = Example(row["example"], row["source"], tuple(row["prompt_ids"]), tuple(row["answer_ids"]))
        self.ids = tuple(row["trace_ids"])
        self.texts = pieces(tokenizer, self.ids)
        self.spans = joined_spans(UNITS[unit](self.texts), max_steps)
        others = [other for other in (*rows[i + 1 :], *rows[:i]) if other["prompt_ids"] != row["prompt_ids"]]
        self.controls = {
            "shuffled": tampering.shuffled(self.ids, self.spans, (seed, row["example"], row["k"])),
            "changed": tampering.changed(tokenizer, self.ids, row["prompt_ids"]),
            "masked": tampering.masked(tokenizer, self.ids, row["answer"], row["prompt"]),
            "swapped": tuple(others[0]["trace_ids"]) if others else None,
            "filler": tampering.filler(tokenizer, self.ids) if self.ids else None,
        }
        self.scored: dict[tuple[str, int], np.ndarray] = {}

    def variants(self) -> dict[tuple[str, int], Row]:
        """The whole trace, whose own tokens are scored too, and after it what shares less and less of its beginning."""
        whole, ids, spans = self.scorer.row(self.example, self.ids), self.ids, self.spans
        opening = len(trace_prompt(self.example, self.scorer.tokens))
        rows = {("kept", len(spans)): replace(whole, scored_from=opening)}
        cut = {("kept", n): ids[: spans[n][0]] for n in reversed(range(len(spans)))}
        cut |= {("without", n): ids[: spans[n][0]] + ids[spans[n][1] :] for n in reversed(range(len(spans)))}
        rows |= {
            ("altered", n): replace(self.scorer.row(self.example, self._altered(n)), scored_from=opening + end)
            for n, (_, end) in enumerate(spans)
            if self._altered(n) != ids
        }
        cut |= {(name, 0): control for name, control in self.controls.items() if control is not None}
        rows |= {key: self.scorer.row(self.example, kept) for key, kept in cut.items()}
        return rows | {("null", 0): self.scorer.layout.null_row(self.example)}

    def _altered(self, n: int) -> tuple[int, ...]:
        """The trace with other numbers and names in one step."""
        start, end = self.spans[n]
        return self.ids[:start] + (self.controls["changed"] or self.ids)[start:end] + self.ids[end:]

    def within_steps(self) -> dict[tuple[str, int], Row]:
        """The trace up to each word within the steps that raise log P(y*) most."""
        ends = [end for n in self._raising() for end in self._word_ends(n)[:-1]]
        return {("up to", end): self.scorer.row(self.example, self.ids[:end]) for end in reversed(ends)}

    def _word_ends(self, n: int) -> list[int]:
        start, end = self.spans[n]
        return [start + stop for _, stop in word_spans(self.texts[start:end])]

    def _raising(self) -> list[int]:
        """Steps that bring a lasting `DECIDED` of what the trace tells; none where that is hardly anything, or where
        there is no other question's trace to tell it from the form of an answer."""
        if ("swapped", 0) not in self.scored:
            return []
        rises = np.diff(lasting([self._told("kept", n) for n in range(len(self.spans) + 1)]))
        return [n for n, rise in enumerate(rises) if rise >= DECIDED * rises.sum()] if rises.sum() >= MATTERS else []

    def _told(self, name: str, n: int) -> float:
        """log P(y*) where no token of the answer has less than a trace gives it that knows nothing of the question.

        What the form of an answer gains by any text before it, and loses by one that was cut, is so left out.
        """
        size = len(self.example.answer_ids)
        known = [self.scored[key][-size:] for key in (("null", 0), ("filler", 0), ("swapped", 0)) if key in self.scored]
        return float(np.max([self.scored[name, n][-size:], *known], 0).sum())

    def _answer(self, name: str, n: int = 0) -> float:
        """log P(y*)."""
        return float(self.scored[name, n][-len(self.example.answer_ids) :].sum())

    @property
    def kept(self) -> list[float]:
        return [self._answer("kept", n) for n in range(len(self.spans) + 1)]

    def found(self) -> XrayRow:
        row, kept, spans = self.trace, self.kept, self.spans
        said, question, answer = ([word for word, _, _ in words(row[name])] for name in ("trace", "prompt", "answer"))
        necessity = [kept[-1] - self._answer("without", n) for n in range(len(spans))]
        gains, surprises = self._words()
        made: dict[str, Any] = {name: self._answer(name) for name, ids in self.controls.items() if ids is not None}
        return XrayRow(
            step=row["step"],
            example=row["example"],
            k=row["k"],
            steps=["".join(self.texts[start:end]) for start, end in spans],
            ends=[end for _, end in spans],
            necessity=necessity,
            needed=needed(necessity, self._falls()),
            kept=kept,
            null_logprob=self._answer("null"),
            decided=decided_at(kept),
            gained=sum(gains) if gains else None,
            smuggled=smuggled_share(gains, surprises) if gains else None,
            copied=copied_share(answer, said, question, 1),
            **made,
        )

    def _falls(self) -> np.ndarray:
        """[N, N + 1], as `needed` takes them. A token was expected if it was about certain: such as a result is, but
        not a choice of words, which anything before it may sway."""
        falls_NN = np.full((len(self.spans), len(self.spans) + 1), -np.inf)
        whole = self.scored["kept", len(self.spans)]
        for n, (_, end) in enumerate(self.spans):
            if (altered := self.scored.get(("altered", n))) is not None:
                fallen = np.where(whole >= -MATTERS, whole, -np.inf)[end:] - altered
                for j, (start, stop) in enumerate(self.spans[n + 1 :], n + 1):
                    falls_NN[n, j] = fallen[start - end : stop - end].max()
                falls_NN[n, -1] = self.kept[-1] - self._answer("altered", n)
        return falls_NN

    def _words(self) -> tuple[list[float], list[float]]:
        """Of the words of the steps that tell most: by how much each raises what is told, and how much it surprises."""
        gains, surprises, logprobs = list[float](), list[float](), self.scored["kept", len(self.spans)]
        last = lasting([self._told("kept", n) for n in range(len(self.spans) + 1)])
        for n in self._raising():
            ends = self._word_ends(n)
            told = [self._told("up to", end) for end in ends[:-1]]
            # What is lost between words of one step, and found again in it, is no rise either.
            gains += np.diff([last[n], *np.maximum(lasting([*told, last[n + 1]]), last[n])]).tolist()
            surprises += [-float(logprobs[start:end].sum()) for start, end in pairwise([self.spans[n][0], *ends])]
        return gains, surprises
