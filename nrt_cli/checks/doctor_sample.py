"""`nrt doctor`, before its trial step: eight questions of a run's data, thought about under its own settings.

Shapes: T answer tokens, eos included.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from nrt_cli.checks.findings import Finding
from nrt_cli.checks.prospects import AGREES, CUT, EMPTY, FAR, QUIET, Prospects, SampledGroup, SampledTrace, prospects
from nrt_cli.commandline import settings
from nrt_cli.config import RunConfig
from nrt_cli.data.examples import graded_pairs, suffix_of
from nrt_cli.errors import ConfigError
from nrt_cli.grading.accuracies import Graded, Question, answer_all, answer_cap
from nrt_cli.grading.grading import Pair, find, grade
from nrt_cli.measures.statistics import mean, share_over_rows
from nrt_cli.models.loading import positions
from nrt_cli.objective.rows import Row
from nrt_cli.records import ACCURACIES, Example, Request, RolloutGroup
from nrt_cli.text.pieces import pieces
from nrt_cli.training.local import LocalTrainer
from nrt_cli.training.start import Inputs

QUESTIONS = 8
"""Enough to tell never from often, and cheap."""

STEP = 1
"""Of the random streams: what is sampled here is what a first step would sample of these questions."""

WORST = 3
"""Answer tokens that are named as the least likely."""

HARDER = "ask harder questions, or count the run as done: there is nothing to learn here."
EASIER = (
    "ask easier questions, take a larger model, or ask for a short way to write the working down: `nrt data prepare` "
    "with --suffix TEXT."
)


@dataclass
class Interview:
    """An engine and a few questions: how likely the right answer is after a trace, and what the model answers.

    Both are asked once of each trace, however often that was sampled. `ungraded` is why there are no scores, "" where
    there are some.
    """

    config: RunConfig
    engine: LocalTrainer
    examples: list[Example]
    inputs: Inputs
    pairs: list[Pair]
    whose: str
    """What the questions are: held-out or training questions."""
    suffix: str | None
    ungraded: str
    answer_cap: int
    """Tokens that an answer may have."""
    known: dict[tuple[int, tuple[int, ...]], tuple[tuple[float, ...], float]] = field(default_factory=dict)

    @property
    def graded(self) -> list[int]:
        """The questions that have a grader, by their place."""
        return [] if self.ungraded else [i for i, pair in enumerate(self.pairs) if pair.grader != "none"]

    def longer(self) -> str:
        """The setting that doubles the cap, as far as the model has positions for it; "" where it has none."""
        rollout, limit = self.config.rollout, positions(self.config.model.path)
        room = math.inf if limit is None else limit - self.inputs.train.longest_with(lambda _: 0)
        if room <= rollout.max_trace_tokens:
            return ""
        wanted = {"rollout.max_trace_tokens": min(2 * rollout.max_trace_tokens, room)}
        if rollout.max_response_tokens is not None:
            wanted["rollout.max_response_tokens"] = rollout.max_response_tokens + rollout.max_trace_tokens
        return " ".join(settings(wanted))

    def accuracies(self) -> list[dict[str, Graded]]:
        """Greedy replies to the questions that have a grader, with thinking and without."""
        kinds = [kind for kind in ACCURACIES if kind != "other_trace"] if self.config.thinks else ["direct"]
        asked = [Question(str(i), self.examples[i].prompt_ids, self.pairs[i]) for i in self.graded]
        cap = self.config.rollout.max_trace_tokens
        return answer_all(self.engine.backend.reasoner(), asked, kinds, cap, self.answer_cap)

    def looked_at(self, groups: Sequence[RolloutGroup]) -> list[SampledGroup]:
        """Groups of these questions, in their order, with what the model says of the answer after every trace."""
        self._score([(i, r.trace_ids) for i, group in enumerate(groups) for r in group.rollouts], groups)
        nulls = self.logprobs([self.engine.layout.null_row(example) for example in self.examples], self.examples)
        return [
            SampledGroup(
                len(group.example.prompt_ids),
                null_T,
                tuple(
                    SampledTrace(len(rollout.trace_ids), rollout.stop, *self.known[i, rollout.trace_ids])
                    for rollout in group.rollouts
                ),
            )
            for i, (group, null_T) in enumerate(zip(groups, nulls, strict=True))
        ]

    def _score(self, places: Sequence[tuple[int, tuple[int, ...]]], groups: Sequence[RolloutGroup]) -> None:
        """Make known what is not: log P of the answer after a trace, and the score of the greedy answer after it."""
        new = [place for place in dict.fromkeys(places) if place not in self.known]
        examples = [self.examples[i] for i, _ in new]
        traces = {(i, r.trace_ids): (group, r) for i, group in enumerate(groups) for r in group.rollouts}
        alone = [RolloutGroup(group.example, (rollout,)) for group, rollout in (traces[place] for place in new)]
        logprobs = self.logprobs([self.engine.layout.rows(group)[0] for group in alone], examples)
        graded = set(self.graded)
        requests = {
            f"{i} {number}": Request(
                f"{i} {number}",
                self.examples[i].prompt_ids,
                think=True,
                trace_ids=trace_ids,
                max_answer_tokens=self.answer_cap,
            )
            for number, (i, trace_ids) in enumerate(new)
            if i in graded
        }
        replies = {request.key: reply for request, reply in self.engine.backend.reasoner().run(requests.values())}
        for number, (place, logprobs_T) in enumerate(zip(new, logprobs, strict=True)):
            reply = replies.get(f"{place[0]} {number}")
            score = grade(self.pairs[place[0]], reply.answer).score if reply else math.nan
            self.known[place] = logprobs_T, score

    def logprobs(self, rows: Sequence[Row], examples: Sequence[Example]) -> list[tuple[float, ...]]:
        """Of each row, the log-probs of the answer that ends it."""
        return [*self.engine.answer_logprobs(rows, examples)]


def interview_of(config: RunConfig, engine: LocalTrainer, inputs: Inputs, count: int = QUESTIONS) -> Interview:
    """`count` questions at random, of the held-out ones if there are any, and how they are graded."""
    examples, path, whose = inputs.train, config.data.train, "training questions"
    if inputs.validation is not None:
        examples, path, whose = inputs.validation, str(config.data.validation), "held-out questions"
    order = np.random.default_rng(config.seed).permutation(len(examples))
    chosen = [examples[int(i)] for i in sorted(order[:count])]
    pairs = graded_pairs(Path(path), [example.index for example in chosen])
    cap = answer_cap(max(len(example.answer_ids) for example in chosen), config.longest_answer)
    return Interview(config, engine, chosen, inputs, pairs, whose, suffix_of(Path(path)), _ungraded(pairs), cap)


def _ungraded(pairs: Sequence[Pair]) -> str:
    """Why none of the pairs can be graded; "" where some can."""
    try:
        for name in {pair.grader for pair in pairs}:
            find(name)
    except ConfigError as error:
        return str(error).rstrip(".")
    return "no grader suits these answers" if all(pair.grader == "none" for pair in pairs) else ""


# --- in words --------------------------------------------------------------------------------------------------------


def sample(interview: Interview) -> Iterator[Finding]:
    """What the questions show of a run that has not begun: accuracies, traces, the answer, the scheme's signal."""
    yield _accuracy(interview)
    layout = interview.engine.layout
    if not interview.config.samples:
        direct = interview.logprobs([layout.direct_row(example) for example in interview.examples], interview.examples)
        yield _habit(interview, {"directly": [[logprobs_T] for logprobs_T in direct]})
        return
    groups = interview.looked_at(interview.engine.sample(interview.examples, STEP))
    found = prospects(groups, interview.engine.objective.method, interview.config.objective)
    yield _ends(found, interview)
    yield _right(found, interview)
    after = [[trace.logprobs_T for trace in group.traces] for group in groups]
    yield _habit(interview, {"with the null trace": [[g.null_logprobs_T] for g in groups], "after a trace": after})
    yield _signal(found, interview)


def _accuracy(interview: Interview) -> Finding:
    """How often greedy answers are right, thinking and not."""
    if interview.ungraded:
        do = "name one, where there is one: `nrt data prepare` with --grader NAME (`nrt help evaluation`)."
        return Finding("accuracy", "skipped", f"not measured: {interview.ungraded}", do)
    answered = interview.accuracies()
    n, of_all = len(answered), len(interview.examples)
    shares = {kind: share_over_rows([each[kind].grade.score for each in answered]) for kind in answered[0]}
    each = ", ".join(
        f"{ACCURACIES[kind]} {share.value * n:.3g} ({100 * share.low:.0f} to {100 * share.high:.0f} %)"
        for kind, share in shares.items()
    )
    without = f" ({of_all - n} more have no grader)" if n < of_all else ""
    found = f"of {n} {interview.whose}{without} right, greedily: {each}; so few tell never from often, not 40 from 60 %"
    details = {kind: asdict(share) for kind, share in shares.items()}
    if all(share.value == 1 for share in shares.values()):
        return Finding("accuracy", "warning", f"{found}; all right already", HARDER, details)
    return Finding("accuracy", "ok", found, details=details)


def _ends(found: Prospects, interview: Interview) -> Finding:
    """How traces end, and whether the cap lets them."""
    rollout = interview.config.rollout
    counts = {name: round(getattr(found, name) * found.traces) for name in ("closed", "cut", "eos", "empty")}
    said = (
        f"{found.traces} traces of {found.length:.0f} tokens on average: {counts['closed']} closed by themselves, "
        f"{counts['cut']} were cut at {rollout.max_trace_tokens} tokens, {counts['eos']} ended by eos; "
        f"{counts['empty']} are empty"
    )
    details = counts | {"traces": found.traces, "length": found.length}
    if found.cut > CUT:
        asked = f"than {interview.suffix!r} does" if interview.suffix else "with `nrt data prepare` and --suffix TEXT"
        more = f", or allow more: {longer}" if (longer := interview.longer()) else ""
        do = f"{found.cut:.0%} were cut: ask for a shorter form {asked}{more}."
        return Finding("how traces end", "warning", said, do, details)
    if found.empty > EMPTY:
        do = "nothing is thought: ask for the working in the question, `nrt data prepare` with --suffix TEXT."
        return Finding("how traces end", "warning", said, do, details)
    do = "" if counts["closed"] else "closing is what the format term teaches (objective.weights.format)."
    return Finding("how traces end", "ok", said, do, details)


def _right(found: Prospects, interview: Interview) -> Finding:
    """Whether the traces of a question differ in where they lead."""
    check, rollout = "right traces", interview.config.rollout
    if not found.graded:
        return Finding(check, "skipped", f"not measured: {interview.ungraded}", "see what is said of accuracy.")
    questions = len(interview.graded)
    mixed = round(found.mixed * questions)
    said = (
        f"{found.right} of {found.graded} traces lead to the right answer, greedily; in {mixed} of {questions} "
        "questions some do and some do not"
    )
    details = {"right": found.right, "traces": found.graded, "mixed": mixed, "questions": questions}
    if not found.right and not mixed:
        said = f"no trace of {found.graded} was right: nothing to reinforce"
        return Finding(check, "warning", said, EASIER, details)
    if found.right == found.graded:
        return Finding(check, "warning", f"all {found.graded} traces lead to the right answer", HARDER, details)
    if not mixed:
        more = {
            "rollout.group_size": 2 * rollout.group_size,
            "rollout.temperature": round(1.25 * rollout.temperature, 2),
        }
        do = f"sample more and more varied traces, {' '.join(settings(more))}, or mix in questions between the two."
        return Finding(check, "warning", f"{said}: nothing to choose between", do, details)
    return Finding(check, "ok", f"{said}: there is something to choose between", details=details)


def _habit(interview: Interview, logprobs: Mapping[str, Sequence[Sequence[Sequence[float]]]]) -> Finding:
    """How far answers are from what the model says.

    Args:
        logprobs: log-probs of each question's answer tokens by what they follow, once or once per trace.
    """
    means = {after: mean([x for each in found for row in each for x in row]) for after, found in logprobs.items()}
    last = [*logprobs][-1]
    of_text: dict[str, list[float]] = defaultdict(list)
    for example, rows in zip(interview.examples, logprobs[last], strict=True):
        for text, *of_token in zip(pieces(interview.engine.backend.tokenizer, example.answer_ids), *rows, strict=True):
            of_text[text] += of_token
    worst = sorted(((mean(values), text) for text, values in of_text.items()))[:WORST]
    said = "log P(y*) per token: " + ", ".join(f"{value:.2f} {after}" for after, value in means.items())
    said += f"; least likely {last}: " + ", ".join(f"{text!r} {value:.1f}" for value, text in worst)
    details = {"per_token": means, "worst": [{"text": text, "logprob": value} for value, text in worst]}
    far = max(means.values())
    if interview.config.samples and far < FAR:
        do = (
            f"at {far:.1f} nats a token the answer's form is far from what the model says: say the form in the "
            "question, `nrt data prepare` with --suffix TEXT."
        )
        return Finding("answer's habit", "warning", said, do, details)
    return Finding("answer's habit", "ok", said, details=details)


def _signal(found: Prospects, interview: Interview) -> Finding:
    """What the config's scheme makes of these traces."""
    config, check = interview.config, "signal"
    dead = round((1 - found.alive) * found.questions)
    said = (
        f"{config.method}: {dead} of {found.questions} groups are dead; after {found.helpful:.0%} of traces the answer "
        f"is likelier than after none ({found.gain:+.2g} nats on average)"
    )
    if found.pairs:
        said += (
            f"; the right one of a right and a wrong trace is preferred in {found.agrees:.0%} of {found.pairs} pairs"
        )
    details = asdict(found) | {"mark": found.mark}
    forecast = "--forecast beside this command looks for settings that do better."
    if found.alive < QUIET:
        more = settings({"rollout.group_size": 2 * config.rollout.group_size})
        do = f"most groups teach nothing as yet: try {' '.join(more)} or another method; {forecast}"
        return Finding(check, "warning", said, do, details)
    if found.agrees < AGREES:
        return Finding(check, "warning", said, f"rewards hardly tell right from wrong as yet; {forecast}", details)
    return Finding(check, "ok", said, details=details)
