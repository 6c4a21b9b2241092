"""What held-out pairs say of a run, by hand."""

import math

import pytest

from nrt_cli.measures.held_out import ACCURACY_MEASURES, before_and_after, over_rows, shown
from nrt_cli.records import ACCURACIES


def row(example, with_trace, with_null, **scores):
    return {"example": example, "answer_logprobs": with_trace, "null_logprobs": with_null} | {
        f"{kind}_score": scores.get(kind) for kind in ACCURACIES
    }


BEFORE = [
    row(0, [-2.0, -1.0], [-3.0, -1.0], thinking=0, null=0, direct=0, other_trace=0),
    row(1, [-4.0], [-4.5], thinking=0, null=1, direct=0, other_trace=0),
]
AFTER = [
    row(1, [-1.0], [-2.5], thinking=1, null=1, direct=0, other_trace=1),
    row(0, [-1.0, -1.0], [-1.0, -1.0], thinking=1, null=0, direct=0, other_trace=0),
]


def found(thinks=True, before=BEFORE, after=AFTER):
    return {one.measure.key: one for one in before_and_after(thinks, before, after)}


def test_means_before_and_after_and_changes_within_pairs():
    values = {key: (one.before.value, one.after.value, one.change.value) for key, one in found().items()}
    assert values == {
        "answer_logprob": (-3.5, -1.5, 2.0),
        "null_logprob": (-4.25, -2.25, 2.0),
        "gain": (0.75, 0.75, 0.0),
        "accuracy_thinking": (0, 1, 1),
        "accuracy_null": (0.5, 0.5, 0),
        "accuracy_direct": (0, 0, 0),
        "accuracy_other_trace": (0, 0.5, 0.5),
        "thinking_minus_null": (-0.5, 0.5, 1),
        "thinking_minus_direct": (0, 1, 1),
        "thinking_minus_other_trace": (0, 0.5, 0.5),
    }


def test_intervals_are_paired():
    # Both pairs gained 2 nats: what the pairs differ in is no part of the change's interval.
    change = found()["answer_logprob"].change
    assert change.n == 2
    assert (change.low, change.high) == (pytest.approx(1.0), pytest.approx(3.0))
    same = [row(i, [-float(i)], [-2.0]) for i in range(8)], [row(i, [1 - float(i)], [-2.0]) for i in range(8)]
    level = found(before=same[0], after=same[1])["answer_logprob"].change
    assert (level.value, level.low, level.high) == (1.0, 1.0, 1.0)


def test_what_was_not_measured_is_empty():
    old = [{"example": 0, "answer_logprobs": None, "null_logprobs": None}]
    assert all(one.after.n == 0 and math.isnan(one.after.value) for one in found(before=old, after=old).values())
    assert shown(found(before=old, after=old)["gain"].after, ACCURACY_MEASURES[0], False) == "-"


def test_sft_has_its_direct_answers():
    assert list(found(False)) == ["answer_logprob", "accuracy_direct"]


def test_accuracies_are_over_the_pairs_that_were_graded():
    some = [row(0, [-1.0], [-1.0], thinking=1), row(1, [-1.0], [-1.0])]
    accuracy = over_rows(ACCURACY_MEASURES[0], some)
    assert (accuracy.value, accuracy.n) == (1, 1)
    assert shown(accuracy, ACCURACY_MEASURES[0], False).startswith("100.0 [")
