"""What sampled groups say of a run, against arithmetic by hand and slow, obvious counting."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nrt_cli import methods
from nrt_cli.checks.forecast import cut_to, split
from nrt_cli.checks.interview import SampledGroup, SampledTrace, prospects
from nrt_cli.config import ObjectiveSection
from nrt_cli.methods import PAPER
from nrt_cli.records import Rollout

LOGP = methods.get("logp")
OBJECTIVE = ObjectiveSection()


def trace(total, score, tokens=3, stop="end"):
    return SampledTrace(tokens, stop, (total / 2, total / 2), score)


def group(*traces, null=-10.0):
    return SampledGroup(5, (null / 2, null / 2), traces)


def test_by_hand():
    """Of the first question one trace is right and the likeliest; in the second the scheme prefers the wrong one."""
    first = group(trace(-2.0, 1.0), trace(-4.0, 0.0, 0, "eos"), trace(-6.0, 0.0, 9, "cap"))
    second = group(trace(-3.0, 0.0), trace(-9.0, 1.0), trace(-20.0, 0.0, 9, "cap"))
    found = prospects([first, second], LOGP, OBJECTIVE)
    assert (found.questions, found.traces, found.graded, found.right) == (2, 6, 6, 2)
    assert found.closed == pytest.approx(3 / 6)
    assert found.cut == pytest.approx(2 / 6)
    assert found.eos == found.empty == pytest.approx(1 / 6)
    assert found.length == pytest.approx(27 / 6)
    assert (found.mixed, found.alive) == (1, 1)
    # First: 2 of 2. Second: -9 loses against -3 and wins against -20, which the clip takes to the null trace's -10.
    assert (found.agrees, found.pairs) == (3 / 4, 4)
    assert found.helpful == pytest.approx(5 / 6)
    assert found.gain == pytest.approx((8 + 6 + 4 + 7 + 1 - 10) / 6)
    # Prompt 5, think tokens 2, answer 2: 9 a trace besides its own tokens.
    assert found.tokens == pytest.approx((6 * 9 + 27) / 2)
    assert found.mark == "signal"


def test_marks():
    right, wrong = trace(-2.0, 1.0), trace(-4.0, 0.0)
    marks = {
        "none is right": ([wrong, trace(-3.0, 0.0)], "dead"),
        "all are right": ([right, trace(-3.0, 1.0)], "dead"),
        "all below the null trace": ([trace(-30.0, 1.0), trace(-20.0, 0.0)], "dead"),
        "the wrong one is preferred": ([trace(-4.0, 1.0), trace(-2.0, 0.0)], "weak"),
        "the right one is preferred": ([right, wrong], "signal"),
        "nothing is graded": ([trace(-2.0, math.nan), trace(-3.0, math.nan)], "signal"),
    }
    for traces, mark in marks.values():
        assert prospects([group(*traces)], LOGP, OBJECTIVE).mark == mark
    dead = group(trace(-30.0, 1.0), trace(-20.0, 0.0))
    assert prospects([group(right, wrong), dead, dead], LOGP, OBJECTIVE).mark == "weak"  # one in three


LOGPROBS = st.lists(st.floats(-30, 0), min_size=3, max_size=3)
TRACES = st.lists(st.tuples(LOGPROBS, st.sampled_from([0.0, 1.0, math.nan])), min_size=2, max_size=5)


@given(LOGPROBS, TRACES, st.sampled_from(PAPER))
def test_preferred_pairs_by_counting(null, traces, name):
    """Against rewards as the paper writes them, in plain floats: the clipped baseline, then who has more."""
    sampled = tuple(SampledTrace(1, "end", tuple(logprobs), score) for logprobs, score in traces)
    found = prospects([SampledGroup(1, tuple(null), sampled)], methods.get(name), OBJECTIVE)
    base = [math.exp(x) for x in null]

    def reward(logprobs):
        c = [math.exp(x) for x in logprobs]
        if name == "logp":
            return sum(logprobs)
        if name == "p":
            return math.prod(c)
        if name == "gm":
            return math.prod(c) ** (1 / 3)
        if name == "am":
            return sum(c) / 3
        return sum(x * (1 / b if name == "ws-inv-p" else -math.log(b)) for x, b in zip(c, base, strict=True))

    shaped = [max(0.0, reward(logprobs) - reward(null)) for logprobs, _ in traces]
    scores = [score for _, score in traces]
    pairs = [(i, j) for i in range(len(traces)) for j in range(len(traces)) if scores[i] > scores[j]]
    assert found.pairs == len(pairs)
    close = any(
        i != j and 0 < abs(shaped[i] - shaped[j]) <= 1e-5 * max(shaped) for i in range(len(shaped)) for j in range(i)
    )
    spread = max(shaped) - min(shaped)
    if pairs and not close and spread > 1e-4 * max(map(abs, [*(reward(c) for c, _ in traces), reward(null)])):
        wins = sum(0.5 if shaped[i] == shaped[j] else shaped[i] > shaped[j] for i, j in pairs)
        assert found.agrees == pytest.approx(wins / len(pairs))


def rollout(tokens, stop):
    return Rollout(tuple(range(tokens)), (-1.0,) * (tokens + (stop == "end")), stop)


@pytest.mark.parametrize(
    ("tokens", "stop", "cap", "left", "how"),
    [
        (3, "end", 4, 3, "end"),  # its t_end is the fourth token
        (3, "end", 3, 3, "cap"),  # of which there was no room for
        (3, "eos", 2, 2, "cap"),
        (0, "eos", 1, 0, "eos"),
        (6, "cap", 6, 6, "cap"),
        (6, "cap", 2, 2, "cap"),
        (4, "cap", 6, 4, "cap"),  # its answer left it less than the cap
    ],
)
def test_a_smaller_cap(tokens, stop, cap, left, how):
    found = cut_to(rollout(tokens, stop), cap)
    assert (len(found.trace_ids), found.stop) == (left, how)
    assert len(found.sampler_logprobs) == left + (how == "end")


@given(st.integers(0, 8), st.sampled_from(["end", "eos"]), st.integers(1, 8), st.integers(1, 8))
def test_cuts_compose(tokens, stop, one, other):
    assert cut_to(cut_to(rollout(tokens, stop), max(one, other)), min(one, other)) == cut_to(
        rollout(tokens, stop), min(one, other)
    )


def test_smaller_groups_are_disjoint():
    (five,) = split([group(*[trace(-i, 0.0) for i in range(5)])], 5)
    assert [[t.logprobs_T[0] for t in g.traces] for g in split([five], 2)] == [[0.0, -0.5], [-1.0, -1.5]]


def test_the_advantages_are_the_loss_s():
    """Not a second implementation: a scheme of a user's own is asked the same."""
    mine = methods.reward(lambda logprobs_KT, _: -logprobs_KT.sum(-1))  # the least likely is the best
    found = prospects([group(trace(-2.0, 1.0), trace(-4.0, 0.0), null=-1.0)], mine, OBJECTIVE)
    assert found.agrees == 0
    assert torch.is_grad_enabled()
