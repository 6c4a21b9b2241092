"""The signs of collapse, by hand arithmetic."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrt_cli.measures.collapse import (
    CLEARLY,
    FALLEN,
    GONE,
    SIGNS,
    SPREADS,
    WINDOW,
    Sentinel,
    distinct_ngrams,
    trace_health,
    watched,
)
from nrt_cli.records import Example, Rollout, RolloutGroup


def group(*traces, stop="end"):
    rollouts = tuple(Rollout(tuple(trace), (), stop) for trace in traces)
    return RolloutGroup(Example(0, "test", (1,), (2,)), rollouts)


def test_distinct_ngrams_are_counted_within_a_group():
    # Bigrams: 12 23 31 12 23 of the first trace, 12 of the second: 6, of which 12 23 31 are distinct.
    assert distinct_ngrams([[[1, 2, 3, 1, 2, 3], [1, 2]]], n=2) == 3 / 6
    # The same trace in two groups repeats nothing within either.
    assert distinct_ngrams([[[1, 2, 3]], [[1, 2, 3]]], n=2) == 1.0
    # Mean over groups: 1 of 3 and 1 of 1.
    assert distinct_ngrams([[[7, 7, 7, 7]], [[1, 2]]], n=2) == pytest.approx((1 / 3 + 1) / 2)


def test_groups_without_ngrams_are_left_out():
    assert distinct_ngrams([[[1, 2, 3]], [[1], []]], n=2) == 1.0
    assert math.isnan(distinct_ngrams([[[1, 2, 3]]], n=4))
    assert math.isnan(distinct_ngrams([]))


@given(st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=1, max_size=4), st.integers(1, 4))
def test_distinct_ngrams_against_strings(traces, n):
    """A slow reference: n-grams as text."""
    grams = ["-".join(map(str, trace[i : i + n])) for trace in traces for i in range(len(trace)) if i + n <= len(trace)]
    share = distinct_ngrams([traces], n)
    assert share == len(dict.fromkeys(grams)) / len(grams) if grams else math.isnan(share)


def test_trace_health():
    groups = [group([1, 2, 3, 4, 5], stop="cap"), group([1, 1, 1, 1, 1], [9], stop="end")]
    # 4-grams: 2 of 2, and 1 of 2.
    assert trace_health(groups) == {"truncated_share": 1 / 3, "distinct_ngrams": 0.75}
    assert trace_health([]) == {}  # SFT


def idle(step, **changes):
    """A step of a run whose traces do not help."""
    return {"step": step, "trace_length": 40.0, "entropy": 2.0, "distinct_ngrams": 0.9, "gain": -1.0, **changes}


def feed(sentinel, steps, **changes):
    return [fall for step in steps for fall in sentinel.add(idle(step, **changes))]


def held_out(step, share, n=64):
    return {"kind": "held_out", "step": step, "accuracy_thinking": share, "graded": n}


def test_a_steady_run_is_left_alone():
    assert feed(Sentinel(), range(1, 200)) == []


@pytest.mark.parametrize("sign", ["trace_length", "entropy", "distinct_ngrams"])
def test_a_fall_is_seen_when_the_mean_of_the_window_is_below_the_limit(sign):
    sentinel = Sentinel()
    start = idle(0)[sign]
    assert feed(sentinel, range(1, WINDOW + 1)) == []
    # With i of the 10 steps at 0, the mean is (10 - i) / 10 of the start: below half from i = 6 on.
    falls = feed(sentinel, range(WINDOW + 1, WINDOW + 30), **{sign: 0.0})
    assert [fall.step for fall in falls] == [WINDOW + 6]
    assert (falls[0].sign, falls[0].start, falls[0].limit) == (
        sign,
        pytest.approx(start),
        pytest.approx(FALLEN * start),
    )
    assert falls[0].now == pytest.approx(0.4 * start)
    assert str(falls[0]).startswith(
        f"{SIGNS[sign]} fell to {0.4 * start:.3g} (mean of the last 10 steps) from {start:.3g} "
    )


@pytest.mark.parametrize(
    ("sign", "begin", "gain"),
    [
        *((sign, gain, gain) for sign in ("trace_length", "entropy", "distinct_ngrams") for gain in (0.5, 3.0)),  # help
        ("entropy", -10.0, -5.0),  # the gain rises meanwhile
        ("distinct_ngrams", -10.0, -5.0),
    ],
)
def test_traces_that_help_or_come_to_may_become_short_certain_and_alike(sign, begin, gain):
    sentinel = Sentinel()
    feed(sentinel, range(1, 11), gain=begin)
    assert feed(sentinel, range(11, 60), gain=gain, **{sign: 0.0}) == []


def test_a_gain_that_rises_to_0_with_traces_that_vanish_is_no_learning():
    sentinel = Sentinel()
    feed(sentinel, range(1, 11), gain=-10.0)
    assert feed(sentinel, range(11, 40), gain=-1.0, trace_length=GONE * 40) == []
    (fall,) = feed(sentinel, range(40, 60), gain=0.0, trace_length=1.0)
    assert (fall.sign, fall.limit) == ("trace_length", pytest.approx(GONE * 40))
    assert "gain over the null trace -0.9 nats (from -10)" in str(fall)


def test_the_gain_may_be_negative_and_falls_by_the_spread_of_the_start():
    sentinel = Sentinel()
    gains = [-11.0, -9.0] * (WINDOW // 2)  # mean -10; sample variance 10 / 9
    for step, gain in enumerate(gains, 1):
        assert sentinel.add(idle(step, gain=gain)) == []
    limit = -10 - SPREADS * math.sqrt(10 / 9)
    assert feed(sentinel, range(WINDOW + 1, WINDOW + 21), gain=limit + 0.01) == []
    # One step at limit - 0.21 makes the mean of ten 0.012 lower: just below.
    (fall,) = feed(sentinel, [WINDOW + 21], gain=limit - 0.21)
    assert (fall.sign, fall.limit) == ("gain", pytest.approx(limit))


def test_a_gain_that_falls_and_still_helps_is_no_collapse():
    sentinel = Sentinel()
    feed(sentinel, range(1, 11), gain=9.0)
    assert feed(sentinel, range(11, 40), gain=2.0) == []
    assert [fall.sign for fall in feed(sentinel, range(40, 60), gain=-0.1)] == ["gain"]


def test_each_sign_is_reported_once_even_if_it_recovers():
    sentinel = Sentinel()
    feed(sentinel, range(1, 11))
    assert len(feed(sentinel, range(11, 31), entropy=0.1)) == 1
    assert feed(sentinel, range(31, 61)) == []
    assert feed(sentinel, range(61, 91), entropy=0.1) == []


# --- held-out accuracy -----------------------------------------------------------------------------------------------


def test_an_accuracy_clearly_above_the_starts_outweighs_every_sign():
    sentinel = Sentinel()
    assert sentinel.add(held_out(0, 0.1)) == []
    feed(sentinel, range(1, 11))
    assert sentinel.add(held_out(10, 0.5)) == []
    assert feed(sentinel, range(11, 40), entropy=0.0, trace_length=0.0, gain=-50.0) == []


def test_an_accuracy_within_noise_of_the_starts_outweighs_none():
    sentinel = Sentinel()
    sentinel.add(held_out(0, 6 / 64))
    feed(sentinel, range(1, 11))
    sentinel.add(held_out(10, 10 / 64))
    assert [fall.sign for fall in feed(sentinel, range(11, 40), entropy=0.0)] == ["entropy"]


def test_what_was_learned_and_is_lost_again_is_a_collapse():
    sentinel = Sentinel()
    shares = [0.1, 0.6, 0.9, 0.5, 0.12]
    found = [sentinel.add(held_out(10 * i, share)) for i, share in enumerate(shares)]
    assert found[:4] == [[]] * 4
    ((fall,),) = found[4:]
    assert (fall.sign, fall.step, fall.start, fall.now) == ("accuracy_thinking", 40, 0.1, 0.12)
    assert fall.now < fall.limit
    assert str(fall) == "held-out accuracy is back at 12%, where the run began (10%), from 90% at its best"


def test_three_answers_are_too_few_to_say_anything():
    sentinel = Sentinel()
    for step, share in enumerate([0.0, 2 / 3, 0.0]):
        assert sentinel.add(held_out(step, share, n=3)) == []


# --- what is not there -----------------------------------------------------------------------------------------------


def test_what_was_not_measured_is_passed_over():
    sentinel = Sentinel()
    assert feed(sentinel, range(1, 40), distinct_ngrams=math.nan, entropy=math.nan) == []
    assert (
        sentinel.add({"kind": "held_out", "step": 40, "answer_logprob": -3.0}) == []
    )  # before accuracies were measured
    short = Sentinel()
    feed(short, range(1, 11))
    # Once traces are too short for an n-gram, their share is not measured; their length tells.
    falls = feed(short, range(11, 40), distinct_ngrams=math.nan, trace_length=1.0)
    assert [fall.sign for fall in falls] == ["trace_length"]
    assert Sentinel().add({"step": 1}) == []  # a run recorded before these metrics were


steps = st.tuples(st.floats(0.1, 100), st.sampled_from([-9.0, -3.0, -1.0, 0.0, 0.5]))


@given(st.lists(steps, min_size=WINDOW + 1, max_size=40))
def test_the_verdict_is_that_of_the_definition(course):
    """A slow reference over the whole history at every step."""

    def mean(values):
        return math.fsum(values) / len(values)

    def error(values):
        return math.sqrt(math.fsum((v - mean(values)) ** 2 for v in values) / (len(values) - 1) / len(values))

    expected = None
    lengths, gains = zip(*course, strict=True)
    for t in range(WINDOW + 1, len(course) + 1):
        begin, now = gains[:WINDOW], gains[t - WINDOW : t]
        helps = mean(now) > CLEARLY * error(now)
        rose = mean(now) - mean(begin) > CLEARLY * math.hypot(error(begin), error(now))
        part = GONE if rose else FALLEN
        if expected is None and not helps and mean(lengths[t - WINDOW : t]) < part * mean(lengths[:WINDOW]):
            expected = t
    sentinel = Sentinel()
    falls = [
        fall
        for t, (length, gain) in enumerate(course, 1)
        for fall in sentinel.add({"step": t, "trace_length": length, "gain": gain})
        if fall.sign == "trace_length"
    ]
    assert [fall.step for fall in falls] == ([] if expected is None else [expected])


@pytest.mark.parametrize(
    ("shares", "said_at"),
    [
        # (step, share of 64), of a run of 80 steps. Noise of 11 % and 10 % of 64: with two trials more, 0.122 and 0.112
        # of 66, whose standard errors are 0.040 and 0.039, together 0.056.
        ({0: 0.11, 20: 0.12, 40: 0.14, 60: 0.09, 80: 0.10}, 80),
        ({0: 0.11, 20: 0.09, 40: 0.03, 60: 0.09, 80: 0.98}, None),  # late, but learned
        ({0: 0.11, 60: 0.12, 80: 0.19}, None),  # 0.076 above: more than the noise, though not clearly above
        ({0: 0.11, 79: 0.11}, None),  # not ended
        ({0: 0.0, 60: 0.0, 80: 0.0}, None),  # an accuracy that never left 0 says nothing
        ({0: 0.98, 60: 0.98, 80: 0.97}, None),  # no room above
        ({0: 0.11, 20: 0.9, 40: 0.11}, 40),  # learned and lost
    ],
)
def test_a_run_that_ends_no_better_than_it_began_is_told(shares, said_at):
    sentinel = Sentinel(80)
    falls = [fall for step, share in shares.items() for fall in sentinel.add(held_out(step, share))]
    assert [fall.step for fall in falls] == ([] if said_at is None else [said_at])
    assert all(fall.sign == "accuracy_thinking" for fall in falls)


def test_nobody_knows_the_end_of_a_run_whose_steps_are_not_known_and_short_ones_are_not_judged():
    for sentinel in (Sentinel(), Sentinel(3), Sentinel(2 * WINDOW - 1)):
        assert [sentinel.add(held_out(step, 0.11)) for step in (0, 2, 3, 19)] == [[]] * 4


def test_records_come_in_the_order_in_which_they_were_made():
    found = watched([{"step": 1}, {"step": 2}], [{"step": 0, "kind": "held_out"}, {"step": 2, "kind": "held_out"}])
    assert [(record["step"], record.get("kind")) for record in found] == [
        (0, "held_out"),
        (1, None),
        (2, None),
        (2, "held_out"),
    ]


# --- runs that were trained ------------------------------------------------------------------------------------------

TRAINED = [json.loads(line) for line in (Path(__file__).parent / "collapse_runs.jsonl").read_text().splitlines()]
"""Runs of the laptop study's recipe, some made to collapse, from tests/bench/sentinel.py: the signs by step, held-out
accuracy, whether it ended clearly above chance and the start, and the first warning."""


def first_warning(run, with_accuracy):
    signs = [sign for sign in SIGNS if sign in run]
    rows = [dict(zip(signs, row, strict=True)) for row in zip(*(run[sign] for sign in signs), strict=True)]
    steps = [
        {"step": step, **{sign: math.nan if value is None else value for sign, value in row.items()}}
        for step, row in enumerate(rows, 1)
    ]
    shares = run["accuracy"].items() if with_accuracy else ()
    sentinel = Sentinel(80)
    for record in watched(steps, [held_out(int(step), share) for step, share in shares]):
        if falls := sentinel.add(record):
            return f"{falls[0].sign} at {falls[0].step}"
    return ""


@pytest.mark.parametrize("run", TRAINED, ids=[run["run"] for run in TRAINED])
def test_trained_runs(run):
    assert first_warning(run, with_accuracy=True) == run["warned"]
    if run["learned"]:  # whatever was measured
        assert first_warning(run, with_accuracy=True) == first_warning(run, with_accuracy=False) == ""
