"""`nrt judge`: LLMs score held-out traces (Appendix H, Table 8, Fig. 2e-f of the paper), and the run keeps the replies.

A judgement is found again by a digest of all that was asked, so that nothing is paid for twice: not by a rerun, not
where two checkpoints hold the same trace. Every reply is stored as it comes.
"""

import asyncio
import contextlib
import math
import signal
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nrt_cli.config.schema import JudgeSection
from nrt_cli.errors import BudgetError, ConfigError, EndpointError, Interrupted, NrtError
from nrt_cli.judging.api import Endpoint, ModelReply
from nrt_cli.judging.plan import Plan, Question
from nrt_cli.judging.prompts import read_verdict
from nrt_cli.store.files import now
from nrt_cli.store.judgements import Judgements

GIVE_UP = 5
"""Requests in a row, without one that went well, after which no more are made."""
BYTES_PER_TOKEN = 4
"""For the estimate of what is sent; the bound counts a token for each byte, which none has less of."""
FRAMING = 64
"""Tokens that a chat format may add around a turn."""
FREE = {"cost": 0.0, "input_tokens": 0, "output_tokens": 0}
"""What a judgement costs that was paid for elsewhere."""

Report = Callable[[str, int, int], None]
"""Called with what is done, how many requests of it, and of how many."""


@dataclass
class Outcome:
    """What came of it: requests answered and failed (by reason), traces whose judgement was known, dollars (NaN where
    a judge has no price or the endpoint does not count tokens), and why it ended early, if it did."""

    judged: int = 0
    reused: int = 0
    cost: float = 0.0
    failed: Counter[str] = field(default_factory=Counter)
    stopped: NrtError | None = None

    def require_whole(self) -> None:
        """Raise what stopped the work, or that some requests failed."""
        if self.stopped:
            raise self.stopped
        if self.failed:
            reason, _ = self.failed.most_common(1)[0]
            raise EndpointError(
                f"{self.failed.total()} traces were not judged ({reason}); the same command tries them again."
            )


def known_and_pending(plan: Plan) -> tuple[dict[str, dict[str, Any]], dict[str, list[Question]]]:
    """What was scored before in any of the runs, and the questions that have no score yet, both by key: the same
    trace at two checkpoints is one request."""
    records = (record for run in plan.runs for record in Judgements(run).records())
    known = {record["key"]: record for record in records if not math.isnan(record["score"])}
    pending: dict[str, list[Question]] = {}
    for question in plan.questions:
        if question.key not in known:
            pending.setdefault(question.key, []).append(question)
    return known, pending


def estimate(plan: Plan) -> list[dict[str, Any]]:
    """What is left to ask, by judge: traces, those known, requests, tokens and dollars. Asks nothing.

    Tokens sent are estimated from bytes; replies and dollars are upper bounds without repairs, NaN without a price.
    """
    _, pending = known_and_pending(plan)
    rows = []
    for judge in plan.settings.models:
        of_judge = sum(question.judge == judge for question in plan.questions)
        asked = [questions[0].prompt for questions in pending.values() if questions[0].judge == judge]
        sent = sum(map(about_tokens, asked))
        replied = len(asked) * plan.settings.max_output_tokens
        rows.append(
            {
                "judge": judge,
                "traces": of_judge,
                "judged before": of_judge - sum(len(qs) for qs in pending.values() if qs[0].judge == judge),
                "requests": len(asked),
                "input tokens (about)": sent,
                "output tokens (at most)": replied,
                "dollars (at most)": cost_of(plan.settings, judge, sent, replied) if asked else 0.0,
            }
        )
    return rows


def judge(plan: Plan, max_cost: float | None, report: Report) -> Outcome:
    """Ask what was not asked before, and store every reply as it comes.

    Args:
        max_cost: US dollars that this call may spend; None for no limit. A request is made only if it cannot exceed
            what is left, even at one token per byte and with a repair.

    Raises:
        ConfigError: an environment variable, the package or, under `max_cost`, a price is missing.
        StoreError: another process is judging one of the runs, or the disk takes no more.
        Interrupted: on Ctrl-C; what was judged is kept.
    """
    with contextlib.ExitStack() as locks:
        for run in plan.runs:
            locks.enter_context(Judgements(run).writing())
        before, pending = known_and_pending(plan)
        # Without an endpoint nothing is written.
        endpoint = Endpoint(plan.settings.timeout, plan.settings.retries) if pending else None
        for run in plan.runs:
            Judgements(run).keep_template(plan.template.digest[:12], plan.template.text, plan.template.suffix)
        outcome = Outcome(reused=sum(question.key in before for question in plan.questions))
        # A checkpoint gets the judgements that its very traces have elsewhere.
        records = [(run.path, record) for run in plan.runs for record in Judgements(run).records()]
        there = {(path, record["step"], record["example"], record["key"]) for path, record in records}
        for q in plan.questions:
            if q.key in before and (q.run.path, q.step, q.example, q.key) not in there:
                _store([q], before[q.key] | FREE)
        if endpoint:
            try:
                asyncio.run(_ask_all(plan, pending, endpoint, Budget(plan.settings, max_cost), outcome, report))
            except KeyboardInterrupt:
                raise Interrupted(
                    f"stopped after {outcome.judged} of {len(pending)} requests; what was judged is kept, the same "
                    "command goes on.",
                    signal.SIGINT,
                ) from None
        return outcome


def _store(questions: Sequence[Question], record: Mapping[str, Any]) -> None:
    """One record per checkpoint that holds the trace; the first of them has what it cost."""
    for i, q in enumerate(questions):
        Judgements(q.run).append({**record, "step": q.step, "example": q.example, **(FREE if i else {})})


async def _ask_all(
    plan: Plan,
    pending: Mapping[str, list[Question]],
    endpoint: Endpoint,
    budget: "Budget",
    outcome: Outcome,
    report: Report,
) -> None:
    """A few requests at a time, until all are made or something says to stop."""
    queue, in_a_row = iter(pending.values()), 0

    async def worker() -> None:
        nonlocal in_a_row
        for questions in queue:
            if outcome.stopped:  # requests under way end in peace: they are paid for
                return
            bound = budget.bound(questions[0], plan.template.repair(""))
            if not await budget.reserve(bound):
                outcome.stopped = outcome.stopped or BudgetError(
                    f"stopped at {dollars(budget.spent)}: the next request might exceed --max-cost {budget.limit:g}. "
                    "What was judged is kept; a higher limit goes on."
                )
                return
            replies: list[ModelReply] = []
            try:
                _store(questions, await _judgement(plan, endpoint, questions[0], replies))
                outcome.judged += 1
                in_a_row = 0
            except EndpointError as error:
                outcome.failed[str(error)] += 1
                in_a_row += 1
                if error.fatal or in_a_row >= GIVE_UP:
                    outcome.stopped = outcome.stopped or EndpointError(
                        f"the judge's endpoint gives no replies: {error}. What was judged is kept; the same command "
                        "goes on."
                    )
            except NrtError as error:  # the disk takes no more: so do the other workers not go on
                outcome.stopped = outcome.stopped or error
            finally:
                outcome.cost += await budget.settle(bound, questions[0], replies)
            report("judging", outcome.judged + outcome.failed.total(), len(pending))

    async with endpoint:
        await asyncio.gather(*(worker() for _ in range(plan.settings.concurrency)))


async def _judgement(plan: Plan, endpoint: Endpoint, question: Question, replies: list[ModelReply]) -> dict[str, Any]:
    """The record of a trace: asked for once, once more where the reply is not what was asked for, then unscored,
    which the next call tries again.

    `replies` gets each reply as it comes, so that what was paid for is known whatever happens next.
    """
    settings, template = plan.settings, plan.template
    turns = [{"role": "user", "content": question.prompt}]
    verdict, reason = None, ""
    while verdict is None and len(replies) < 2:
        if replies:
            said = {"role": "assistant", "content": replies[-1].text or "(nothing)"}
            turns += [said, {"role": "user", "content": template.repair(reason)}]
        reply = await endpoint.ask(question.judge, turns, settings.temperature, settings.max_output_tokens)
        replies.append(reply)
        try:
            verdict = read_verdict(reply.text, question.shown)
        except ValueError as error:
            reason = f"{error}{f' (cut at {settings.max_output_tokens} tokens)' if reply.cut else ''}"
    sent, replied = _tokens(replies)
    return {
        "key": question.key,
        "judge": question.judge,
        "template": template.digest[:12],
        "template_name": template.name,
        "temperature": replies[-1].temperature,
        "score": verdict.score if verdict else math.nan,
        "reason": None if verdict else reason,
        "justification": verdict.justification if verdict else None,
        "flags": list(verdict.flags or ()) if verdict else [],
        "replies": [reply.text for reply in replies],
        "input_tokens": sent,
        "output_tokens": replied,
        "cost": cost_of(settings, question.judge, sent, replied),
        "time": now(),
    }


class Budget:
    """Dollars that may still be spent. A request reserves the most it can cost, and gives back what it did not."""

    def __init__(self, settings: JudgeSection, limit: float | None) -> None:
        if limit is not None and (unpriced := [name for name in settings.models if name not in settings.prices]):
            raise ConfigError(
                f"--max-cost needs what {unpriced[0]} costs, in dollars per million tokens in and out: "
                f"--set 'judge.prices={{{unpriced[0]}: [0.2, 0.5]}}'."
            )
        self.settings, self.limit = settings, limit
        self.spent = self.reserved = self.dearest = 0.0
        self.under_way = 0
        self.changed = asyncio.Condition()

    def bound(self, question: Question, repair: str) -> float:
        """The most that a question can cost: a token for every byte, full replies, and a repair.

        A judge that thinks may be charged for more than the cap on its replies; the dearest question so far stands in.
        """
        if self.limit is None:
            return 0.0
        cap, first = self.settings.max_output_tokens, len(question.prompt.encode()) + FRAMING
        second = first + cap + len(repair.encode()) + 1000 + 2 * FRAMING  # the reason in it is short
        most = cost_of(self.settings, question.judge, first + second, 2 * cap)
        return max(most, self.dearest)

    async def reserve(self, bound: float) -> bool:
        """Set the bound aside, waiting for requests under way to give back; False where it will never fit."""

        def fits() -> bool:
            return self.limit is None or self.spent + self.reserved + bound <= self.limit

        async with self.changed:
            await self.changed.wait_for(lambda: fits() or not self.under_way)
            if not fits():
                return False
            self.reserved += bound
            self.under_way += 1
            return True

    async def settle(self, bound: float, question: Question, replies: Sequence[ModelReply]) -> float:
        """Replace the bound by what the replies cost, where the endpoint counts that; returns the cost, or NaN.

        Where it counts fewer tokens than we do, ours are taken off what may be spent.
        """
        cost = cost_of(self.settings, question.judge, *_tokens(replies)) if replies else 0.0
        ours = (len(replies) * about_tokens(question.prompt), sum(about_tokens(reply.text) for reply in replies))
        counted = bound if math.isnan(cost) else max(cost, min(cost_of(self.settings, question.judge, *ours), bound))
        async with self.changed:
            self.under_way -= 1
            self.reserved = self.reserved - bound if self.under_way else 0.0  # exactly, whatever the sums round to
            self.spent, self.dearest = self.spent + counted, max(self.dearest, counted)
            self.changed.notify_all()
        return cost


def _tokens(replies: Sequence[ModelReply]) -> tuple[float, float]:
    """Tokens sent and replied."""
    return sum(reply.input_tokens for reply in replies), sum(reply.output_tokens for reply in replies)


def about_tokens(text: str) -> int:
    return math.ceil(len(text.encode()) / BYTES_PER_TOKEN)


def cost_of(settings: JudgeSection, judge: str, sent: float, replied: float) -> float:
    """Dollars for tokens; NaN where the judge has no price."""
    per_sent, per_reply = settings.prices.get(judge, (math.nan, math.nan))
    return (sent * per_sent + replied * per_reply) / 1e6


def dollars(amount: float) -> str:
    return "cost not known" if math.isnan(amount) else f"${amount:.4f}"
