"""What a few questions of a run's data say of it before it begins, thought about under its own settings.

Is there something to choose between, and would its scheme choose it? `nrt doctor` asks eight, `--forecast` a bank.

Shapes: K traces of a group, T answer tokens, eos included.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from nrt_cli import methods
from nrt_cli.checks.findings import WITH_TRACES, Checks, Finding, judged, ok, skipped, warning
from nrt_cli.commandline import settings
from nrt_cli.config import ObjectiveSection, RunConfig
from nrt_cli.data.examples import graded_pairs, suffix_of
from nrt_cli.errors import ConfigError
from nrt_cli.grading.accuracies import Graded, Question, answer_all, answer_cap
from nrt_cli.grading.grading import Pair, find, grade
from nrt_cli.measures.statistics import mean, share_over_rows
from nrt_cli.methods import Group, Method
from nrt_cli.models.loading import positions
from nrt_cli.objective.losses import group_advantage
from nrt_cli.records import ACCURACIES, Example, Request, RolloutGroup, Stop
from nrt_cli.text.pieces import pieces
from nrt_cli.training.start import Inputs
from nrt_cli.training.trainer import LocalTrainer

QUESTIONS = 8
"""Enough to tell never from often, and cheap."""

STEP = 1
"""Of the random streams: what is sampled here is what a first step would sample of these questions."""

CUT = 0.5
"""More cut traces than this: most answers are judged after a fragment. Measured with 91 % cut, nothing was learned."""

EMPTY = 0.5
"""More empty traces than this: for most of what is sampled there is nothing that a policy gradient could change."""

FAR = -5.0
"""Nats an answer token: a model that began at -4 learned to lead to its answers, and at -12 none did in 60 steps."""

QUIET = 0.5
"""Fewer groups with any advantage than this: more than half of what a step samples is thrown away."""

AGREES = 0.6
"""Of pairs of a right and a wrong trace, the share in which the right one must have the larger advantage: chance is a
half, and from eight questions less than this is not told from it."""

HARDER = "ask harder questions, or count the run as done: there is nothing to learn here."
EASIER = (
    "ask easier questions, take a larger model, or ask for a short way to write the working down: `nrt data prepare` "
    "with --suffix TEXT."
)

Mark = Literal["dead", "weak", "signal"]


@dataclass(frozen=True)
class SampledTrace:
    """A trace as far as it decides what is learned. `score` is that of the greedy answer after it; NaN: not graded."""

    tokens: int
    stop: Stop
    logprobs_T: tuple[float, ...]
    score: float


@dataclass(frozen=True)
class SampledGroup:
    """The traces of one question, and the log-probs of its answer's tokens after the null trace."""

    prompt_tokens: int
    null_logprobs_T: tuple[float, ...]
    traces: tuple[SampledTrace, ...]


@dataclass(frozen=True)
class Prospects:
    """Shares over traces, questions or pairs of traces; NaN where nothing was graded or there is no such pair."""

    questions: int
    traces: int
    length: float
    closed: float
    """Traces that sampled t_end, those that ran into the cap, those that ended by eos, and those of no token."""
    cut: float
    eos: float
    empty: float
    graded: int
    """Traces that have a score, of which `right` are right; and in `mixed` of the questions not all are alike."""
    right: int
    right_share: float
    mixed: float
    alive: float
    """Questions whose traces have advantages: not dead."""
    agrees: float
    """Of pairs of traces of one question of which one is better, how often that has the larger advantage; ties half."""
    pairs: int
    gain: float
    """log P(y*) after a trace minus after the null trace, in nats, and the share of traces where it is above 0."""
    helpful: float
    tokens: float
    """Tokens that one question takes in a step's forward pass: K times prompt, trace, answer and think tokens."""

    @property
    def mark(self) -> Mark:
        """Whether there is something to choose between, and the scheme chooses it."""
        if not self.alive or not self.right_share or not self.mixed:
            return "dead"
        # NaN, where nothing is graded, is no reason to doubt.
        return "weak" if self.alive < QUIET or self.agrees < AGREES else "signal"


def prospects(groups: Sequence[SampledGroup], method: Method, objective: ObjectiveSection) -> Prospects:
    """What groups say under a scheme and its way to make advantages; NaN for these where it needs more than answers."""
    traces = [trace for group in groups for trace in group.traces]
    by_group = [[t.score for t in group.traces if math.isfinite(t.score)] for group in groups]
    scores = [score for each in by_group for score in each]
    alive, wins = math.nan if method.asks else 0, []
    for group in () if method.asks else groups:
        # As the loss has them; a dead group has none.
        logprobs_KT = torch.tensor([trace.logprobs_T for trace in group.traces], dtype=torch.float64)
        null_T = torch.tensor(group.null_logprobs_T, dtype=torch.float64)
        signals = method.signals(Group.of(logprobs_KT, null_T, objective))
        shaped = group_advantage(signals, objective.baseline, objective.advantage, objective.std_floor)
        alive += not shaped.dead
        advantages = [0.0] * len(group.traces) if shaped.dead else shaped.advantage_K.tolist()
        each = list(zip(group.traces, advantages, strict=True))
        # For each pair of a better and a worse trace: 1 where the better one has the larger advantage, a half for ties.
        wins += [
            0.5 if ours == theirs else float(ours > theirs)
            for (better, ours), (worse, theirs) in product(each, each)
            if better.score > worse.score
        ]
    gains = [math.fsum(t.logprobs_T) - math.fsum(g.null_logprobs_T) for g in groups for t in g.traces]
    right = sum(score == 1 for score in scores)
    return Prospects(
        questions=len(groups),
        traces=len(traces),
        length=mean([trace.tokens for trace in traces]),
        closed=mean([trace.stop == "end" for trace in traces]),
        cut=mean([trace.stop == "cap" for trace in traces]),
        eos=mean([trace.stop == "eos" for trace in traces]),
        empty=mean([not trace.tokens for trace in traces]),
        graded=len(scores),
        right=right,
        right_share=right / len(scores) if scores else math.nan,
        mixed=mean([max(each) > min(each) for each in by_group if each]),
        alive=alive / len(groups),
        agrees=mean(wins),
        pairs=len(wins),
        gain=mean(gains),
        helpful=mean([gain > 0 for gain in gains]),
        tokens=math.fsum(g.prompt_tokens + t.tokens + 2 + len(t.logprobs_T) for g in groups for t in g.traces)
        / len(groups),
    )


@dataclass
class Interview:
    """A trainer and a few questions: how likely the right answer is after a trace, and what the model answers.

    Both are asked once of each trace, however often sampled. `ungraded` is why there are no scores, or "".
    """

    config: RunConfig
    trainer: LocalTrainer
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
    groups: list[SampledGroup] = field(default_factory=list)
    """What was sampled of the questions; none for SFT, or before `sampled`."""

    def sampled(self) -> "Interview":
        """With the groups that a first step would sample, where the method has traces."""
        if self.config.samples:
            self.groups = self.looked_at(self.trainer.sample(self.examples, STEP))
        return self

    @cached_property
    def prospects(self) -> Prospects:
        """What the groups say under the config's own scheme."""
        return prospects(self.groups, self.trainer.objective.method, self.config.objective)

    @property
    def graded(self) -> list[int]:
        """The questions that have a grader, by their place."""
        return [] if self.ungraded else [i for i, pair in enumerate(self.pairs) if pair.grader != "none"]

    def accuracies(self) -> list[dict[str, Graded]]:
        kinds = [kind for kind in ACCURACIES if kind != "other_trace"] if self.config.thinks else ["direct"]
        asked = [Question(str(i), self.examples[i].prompt_ids, self.pairs[i]) for i in self.graded]
        cap = self.config.rollout.max_trace_tokens
        return answer_all(self.trainer.backend.reasoner(), asked, kinds, cap, self.answer_cap)

    def looked_at(self, groups: Sequence[RolloutGroup]) -> list[SampledGroup]:
        """Groups of these questions, in their order, with what the model says of the answer after every trace."""
        # What is not known of a trace yet: log P of the answer after it, and the score of the greedy answer after it.
        traces = {(i, r.trace_ids): (group, r) for i, group in enumerate(groups) for r in group.rollouts}
        new = [place for place in traces if place not in self.known]
        rows = [self.trainer.layout.rows(RolloutGroup(traces[at][0].example, (traces[at][1],)))[0] for at in new]
        logprobs = self.trainer.answer_logprobs(rows, [self.examples[i] for i, _ in new])
        graded = set(self.graded)
        cap = self.answer_cap
        requests = [
            Request(str(number), self.examples[i].prompt_ids, think=True, trace_ids=ids, max_answer_tokens=cap)
            for number, (i, ids) in enumerate(new)
            if i in graded
        ]
        replies = {request.key: reply for request, reply in self.trainer.backend.reasoner().run(requests)}
        for number, (place, logprobs_T) in enumerate(zip(new, logprobs, strict=True)):
            reply = replies.get(str(number))
            score = grade(self.pairs[place[0]], reply.answer).score if reply else math.nan
            self.known[place] = logprobs_T, score
        rows = [self.trainer.layout.null_row(example) for example in self.examples]
        nulls = self.trainer.answer_logprobs(rows, self.examples)
        found = []
        for i, (group, null_T) in enumerate(zip(groups, nulls, strict=True)):
            traces_of = (SampledTrace(len(r.trace_ids), r.stop, *self.known[i, r.trace_ids]) for r in group.rollouts)
            found.append(SampledGroup(len(group.example.prompt_ids), null_T, tuple(traces_of)))
        return found


def interview_of(config: RunConfig, trainer: LocalTrainer, inputs: Inputs, count: int = QUESTIONS) -> Interview:
    """`count` questions at random, of the held-out ones if there are any, and how they are graded."""
    examples, path, whose = inputs.train, config.data.train, "training questions"
    if inputs.validation is not None:
        examples, path, whose = inputs.validation, str(config.data.validation), "held-out questions"
    order = np.random.default_rng(config.seed).permutation(len(examples))
    chosen = [examples[int(i)] for i in sorted(order[:count])]
    pairs = graded_pairs(Path(path), [example.index for example in chosen])
    cap = answer_cap(max(len(example.answer_ids) for example in chosen), config.longest_answer)
    return Interview(config, trainer, chosen, inputs, pairs, whose, suffix_of(Path(path)), why_ungraded(pairs), cap)


def why_ungraded(pairs: Sequence[Pair]) -> str:
    """Why none of the pairs can be graded; "" where some can."""
    try:
        for name in {pair.grader for pair in pairs}:
            find(name)
    except ConfigError as error:
        return str(error).rstrip(".")
    return "no grader suits these answers" if all(pair.grader == "none" for pair in pairs) else ""


# --- in words: accuracies, traces, the answer, the scheme's signal ---------------------------------------------------

SAMPLE: Checks[Interview] = Checks()


@SAMPLE.check("accuracy")
def accuracy(interview: Interview) -> Finding:
    if interview.ungraded:
        do = "name one, where there is one: `nrt data prepare` with --grader NAME (`nrt help evaluation`)."
        return skipped(f"not measured: {interview.ungraded}", do)
    answered = interview.accuracies()
    n, more = len(answered), len(interview.examples) - len(answered)
    shares = {kind: share_over_rows([each[kind].grade.score for each in answered]) for kind in answered[0]}
    each = ", ".join(
        f"{ACCURACIES[kind]} {share.value * n:.3g} ({100 * share.low:.0f} to {100 * share.high:.0f} %)"
        for kind, share in shares.items()
    )
    found = f"of {n} {interview.whose}{f' ({more} more have no grader)' * bool(more)} right, greedily: {each}; "
    found += "so few tell never from often, not 40 from 60 %"
    details = {kind: asdict(share) for kind, share in shares.items()}
    done = all(share.value == 1 for share in shares.values())
    return judged(f"{found}; all right already" if done else found, HARDER if done else "", details)


@SAMPLE.check("how traces end", when=WITH_TRACES)
def ends(interview: Interview) -> Finding:
    """Whether the cap lets traces end by themselves."""
    found, rollout = interview.prospects, interview.config.rollout
    counts = {name: round(getattr(found, name) * found.traces) for name in ("closed", "cut", "eos", "empty")}
    said = (
        f"{found.traces} traces of {found.length:.0f} tokens on average: {counts['closed']} closed by themselves, "
        f"{counts['cut']} were cut at {rollout.max_trace_tokens} tokens, {counts['eos']} ended by eos; "
        f"{counts['empty']} are empty"
    )
    details = counts | {"traces": found.traces, "length": found.length}
    if found.cut > CUT:
        asked = f"than {interview.suffix!r} does" if interview.suffix else "with `nrt data prepare` and --suffix TEXT"
        do = f"{found.cut:.0%} were cut: ask for a shorter form {asked}"
        # Twice the cap, as far as the model has positions for it.
        limit = positions(interview.config.model.path)
        room = math.inf if limit is None else limit - interview.inputs.train.longest_with(lambda _: 0)
        if room > rollout.max_trace_tokens:
            longer = {"rollout.max_trace_tokens": min(2 * rollout.max_trace_tokens, room)}
            if rollout.max_response_tokens is not None:
                longer["rollout.max_response_tokens"] = rollout.max_response_tokens + rollout.max_trace_tokens
            do += f", or allow more: {' '.join(settings(longer))}"
        return warning(said, f"{do}.", details)
    if found.empty > EMPTY:
        do = "nothing is thought: ask for the working in the question, `nrt data prepare` with --suffix TEXT."
        return warning(said, do, details)
    return ok(
        said, "" if counts["closed"] else "closing is what the format term teaches (objective.weights.format).", details
    )


@SAMPLE.check("right traces", when=WITH_TRACES)
def right(interview: Interview) -> Finding:
    """Whether the traces of a question differ in where they lead."""
    found, rollout = interview.prospects, interview.config.rollout
    if not found.graded:
        return skipped(f"not measured: {interview.ungraded}", "see what is said of accuracy.")
    questions = len(interview.graded)
    mixed = round(found.mixed * questions)
    said = f"{found.right} of {found.graded} traces lead to the right answer, greedily; in {mixed} of {questions} "
    said += "questions some do and some do not"
    details = {"right": found.right, "traces": found.graded, "mixed": mixed, "questions": questions}
    if not found.right and not mixed:
        return warning(f"no trace of {found.graded} was right: nothing to reinforce", EASIER, details)
    if found.right == found.graded:
        return warning(f"all {found.graded} traces lead to the right answer", HARDER, details)
    if not mixed:
        hotter = round(1.25 * rollout.temperature, 2)
        more = settings({"rollout.group_size": 2 * rollout.group_size, "rollout.temperature": hotter})
        do = f"sample more and more varied traces, {' '.join(more)}, or mix in questions between the two."
        return warning(f"{said}: nothing to choose between", do, details)
    return ok(f"{said}: there is something to choose between", details=details)


@SAMPLE.check("answer's habit")
def habit(interview: Interview) -> Finding:
    """How far answers are from what the model says, by what they follow."""
    groups, trainer = interview.groups, interview.trainer
    # Log-probs of each question's answer tokens, once or once per trace.
    logprobs: dict[str, list[Sequence[Sequence[float]]]] = {}
    if groups:
        logprobs["with the null trace"] = [[group.null_logprobs_T] for group in groups]
        logprobs["after a trace"] = [[trace.logprobs_T for trace in group.traces] for group in groups]
    else:
        rows = [trainer.layout.direct_row(example) for example in interview.examples]
        logprobs["directly"] = [[each_T] for each_T in trainer.answer_logprobs(rows, interview.examples)]
    means = {after: mean([x for each in found for row in each for x in row]) for after, found in logprobs.items()}
    last = [*logprobs][-1]
    of_text: dict[str, list[float]] = defaultdict(list)
    for example, answers in zip(interview.examples, logprobs[last], strict=True):
        for text, *of_token in zip(pieces(trainer.backend.tokenizer, example.answer_ids), *answers, strict=True):
            of_text[text] += of_token
    worst = sorted(((mean(values), text) for text, values in of_text.items()))[:3]
    said = "log P(y*) per token: " + ", ".join(f"{value:.2f} {after}" for after, value in means.items())
    said += f"; least likely {last}: " + ", ".join(f"{text!r} {value:.1f}" for value, text in worst)
    details = {"per_token": means, "worst": [{"text": text, "logprob": value} for value, text in worst]}
    far = max(means.values())
    do = f"at {far:.1f} nats a token the answer's form is far from what the model says: say the form in the question, "
    do += "`nrt data prepare` with --suffix TEXT."
    return judged(said, do if groups and far < FAR else "", details)


@SAMPLE.check("signal", when=WITH_TRACES)
def signal(interview: Interview) -> Finding:
    """What the config's scheme makes of these traces."""
    found, config = interview.prospects, interview.config
    method = methods.loaded(config.method)
    if method.asks:
        return skipped(f"{config.method} needs {methods.asked(method)}", "see one group of a step below.")
    dead = round((1 - found.alive) * found.questions)
    said = (
        f"{config.method}: {dead} of {found.questions} groups are dead; after {found.helpful:.0%} of traces the answer "
        f"is likelier than after none ({found.gain:+.2g} nats on average)"
    )
    if found.pairs:
        said += f"; the right one of a right and a wrong trace is preferred in {found.agrees:.0%} of "
        said += f"{found.pairs} pairs"
    details = asdict(found) | {"mark": found.mark}
    do = ""
    if found.alive < QUIET:
        more = settings({"rollout.group_size": 2 * config.rollout.group_size})
        do = f"most groups teach nothing as yet: try {' '.join(more)} or another method"
    elif found.agrees < AGREES:
        do = "rewards hardly tell right from wrong as yet"
    return judged(said, do and f"{do}; --forecast beside this command looks for settings that do better.", details)
