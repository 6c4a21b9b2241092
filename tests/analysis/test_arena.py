"""Method against method: hand arithmetic, and planted runs where one is better, as good, or too noisy to say."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nrt_analysis.document import Table
from nrt_analysis.intervals import holm, paired_over_seeds
from nrt_analysis.report.arena_tables import arena_table, arenas, pairs_table
from nrt_analysis.report.run_cards import find_cards

from nrt_cli.measures.leakage import tells
from nrt_cli.records import TraceRow
from nrt_cli.store import Run

QUESTIONS = 40


def test_two_seeds_by_hand() -> None:
    """Two seeds, four rows, in nats: d = (1, 3), so s^2 / S = 2 / 2 = 1; of the rows 1, 2, 2, 3, v / N = (2/3) / 4."""
    of = np.array([[0.0, 1.0, 1.0, 2.0], [2.0, 3.0, 3.0, 4.0]])
    found = paired_over_seeds(of, np.zeros((2, 4)), share=False)
    assert (found.value, found.seeds, found.rows) == (2.0, 2, 4)
    error = math.sqrt(1 + 1 / 6)
    free = (1 + 1 / 6) ** 2 / (1**2 / 1 + (1 / 6) ** 2 / 3)  # Welch and Satterthwaite: 1.349
    assert free == pytest.approx(1.3487, abs=1e-4)
    # Student's t of 1.3487 degrees has its 97.5 % point at 7.06 (12.71 for one degree, 4.30 for two).
    half = (found.high - found.low) / 2
    assert half / error == pytest.approx(7.06, abs=0.01)
    assert found.low + found.high == pytest.approx(4.0)
    assert 0.05 < found.p < 0.3
    # What would have been shown is the noncentrality's multiple: 16.33 for one degree, 5.65 for two.
    assert 5.65 < found.least / error < 16.33


def test_shares_that_never_differ_are_not_certain_to() -> None:
    """Two rows more that differ by -1 and 1 in half a row each: of 38 rows alike, v / N = (1 / 40) / 40."""
    found = paired_over_seeds(np.ones((3, 38)), np.ones((3, 38)), share=True)
    assert found.value == 0
    assert found.p == 1
    # No seed differs: all of the error is the rows', with 37 degrees of freedom, t = 2.026.
    assert found.high == pytest.approx(2.026 / 40, rel=1e-3)
    assert found.low == -found.high
    assert found.least == pytest.approx((2.026 + 0.851) / 40, rel=0.01)  # about t(0.975) + t(0.8) where f is large


@pytest.mark.parametrize(("seeds", "multiple"), [(3, 5.653), (5, 3.761), (10, 3.150)])
def test_the_smallest_difference_is_found_in_four_of_five_repetitions(seeds: int, multiple: float) -> None:
    """Seeds drawn from a normal around exactly that difference; a million rows would add nothing, so rows are alike."""
    generator = np.random.default_rng(0)
    spread = 2.0
    least = multiple * spread / math.sqrt(seeds)
    drawn = generator.normal(least, spread, size=(4000, seeds))
    shown = 0
    for d_S in drawn:
        found = paired_over_seeds(np.repeat(d_S[:, None], 2, axis=1), np.zeros((seeds, 2)), share=False)
        shown += found.p < 0.05
    assert shown / len(drawn) == pytest.approx(0.8, abs=0.02)


def test_one_seed_has_no_interval() -> None:
    found = paired_over_seeds(np.ones((1, 9)), np.zeros((1, 9)), share=True)
    assert found.value == 1
    assert all(map(math.isnan, (found.low, found.high, found.p, found.least)))


@given(st.integers(2, 5), st.integers(2, 8), st.integers(0, 2**32))
def test_turned_round_a_pair_says_the_opposite(seeds: int, rows: int, drawn: int) -> None:
    generator = np.random.default_rng(drawn)
    one, other = (generator.integers(0, 2, (seeds, rows)).astype(float) for _ in range(2))
    found, turned = paired_over_seeds(one, other, True), paired_over_seeds(other, one, True)
    assert turned.value == -found.value
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))
    assert turned.p == pytest.approx(found.p)
    assert turned.least == pytest.approx(found.least)


def test_holms_p_by_hand() -> None:
    a, b, c, d = ("a", "b"), ("a", "c"), ("b", "c"), ("b", "d")
    # 3 x 0.01; then 2 x 0.03; then 0.04, which may not be below the one before.
    assert holm({a: 0.03, b: 0.01, c: 0.04, d: math.nan}) == pytest.approx(
        {a: 0.06, b: 0.03, c: 0.06, d: math.nan}, nan_ok=True
    )


def test_a_trace_tells_the_answer_where_it_has_four_of_its_words_in_a_row() -> None:
    question, answer = "Q : 3 + 4 + 9 + 1 ?", "A : the sum of 3 , 4 , 9 , 1 ends in 7 .<eos>"
    assert tells(question, "so 3 + 4 = 7 , 7 + 9 = 6 , 6 + 1 = 7 .", answer) == 0
    assert tells(question, "3 + 4 + 9 + 1", answer) == 0  # these are the question's
    assert tells(question, "well , 1 ends in 7 .", answer) == 1
    assert math.isnan(tells(question, "it is 7", "7"))


# --- planted runs ----------------------------------------------------------------------------------------------------


@pytest.fixture
def plant(tmp_path: Path) -> Callable[..., None]:
    """`plant("am", seed, scores)`: a finished run whose held-out questions were answered so, 1 for right."""

    def make(method: str, seed: int, scores: Sequence[int], **more: Any) -> None:
        about = {"method": method, "status": "finished", "fingerprints": {"train": "t", "validation": "v"}}
        run = Run.create(tmp_path / f"{method}-s{seed}", f"method: {method}\nseed: {seed}\n", about)
        kind = "direct" if method == "sft" else "thinking"
        for step in (0, 8):
            share = sum(scores) / len(scores) if step else 0.1
            scored = {f"accuracy_{kind}": share, "graded": len(scores)}
            scored |= {} if method == "sft" else {"trace_length": 9.0 + seed, "gain": 1.5 + seed}
            run.append_metrics({"kind": "held_out", "step": step, "examples": len(scores), **scored})
            rows = [
                TraceRow(
                    **{"step": step, "example": i, "source": "t", "k": 0, "prompt": f"Q {i}", "stop": "end"},
                    **{"trace": more.get("trace", "a b c d"), "answer": "it is w x y z", "trace_ids": [1]},
                    **{"answer_logprobs": [-1.0], "null_logprobs": [-2.0], f"{kind}_score": float(score)},
                )
                for i, score in enumerate(scores)
            ]
            run.write_traces(f"{'direct' if method == 'sft' else 'held-out'}-{step:06d}", rows)
        for step in range(1, 9):
            dead = {} if method == "sft" else {"dead_groups": 0.25, "trace_length": 9.0}
            run.append_metrics({"kind": "train", "step": step, "loss": 1.0, **dead})
        if more.get("collapsed"):
            run.event("collapse", sign="entropy", start=2.0, now=0.5, limit=1.0, seen="fell")

    return make


def right(count: int, first: int = 0) -> list[int]:
    """`count` of the questions right, from `first` on."""
    return [int(first <= i < first + count) for i in range(QUESTIONS)]


def cell(table: Table, row: str, column: str) -> str:
    names = table.names()
    (found,) = (one for one in table.rows if one.cells[0].text == row)
    return found.cells[names.index(column)].text


def test_planted_better_alike_and_too_noisy(plant: Callable[..., None], tmp_path: Path) -> None:
    noisy = (38, 6, 30)
    for seed in range(3):
        plant("logp", seed, right(36, seed))  # 90 %
        plant("p", seed, right(36, seed))  # the same, question by question
        plant("gm", seed, right(12 + seed))  # 30 to 35 %: clearly worse with every seed
        plant("am", seed, right(noisy[seed]))  # 62 % on average, and nobody knows
        plant("sft", seed, right(4))
    (arena,) = arenas(find_cards([tmp_path]))
    assert arena.verdict(("JLB", "NRT-GM")) == "better"
    assert arena.verdict(("JLB", "SFT")) == "better"
    assert arena.pairs["JLB", "NRT-GM"].value == pytest.approx((36 - 13) / QUESTIONS)
    equal = next(pair for pair in arena.pairs if {*pair} == {arena.entrants[1].title, arena.entrants[2].title})
    assert arena.pairs[equal].value == 0
    table, pairs = arena_table([arena]), pairs_table([arena])
    assert table
    assert pairs
    names = [row.cells[0].text for row in table.rows]
    assert names[0] == "JLB"
    assert names[-1] == "SFT"
    rlpr = next(name for name in names if name.startswith("RLPR"))
    assert cell(table, rlpr, "Against the best: Verdict") == "not told apart"
    apart = arena.pairs["JLB", rlpr]
    assert apart.least > apart.value  # what these seeds would have shown is more than what there is
    assert cell(table, "NRT-GM", "Against the best: Verdict") == "worse"
    assert cell(table, "NRT-GM", "Against the best: Difference [95 %]").startswith("-57.5 [-")
    assert len(pairs.rows) == 10
    # Two that answered all 40 alike: E = 1 / 42, of 39 degrees, so +- 2.02 / 42 = 4.8 points, within 5.
    assert arena.verdict(equal) == "alike"
    assert arena.pairs[equal].high == pytest.approx(2.023 / 42, rel=1e-3)


def test_alike_needs_questions_enough(plant: Callable[..., None], tmp_path: Path) -> None:
    for seed in range(3):
        for method in ("logp", "gm"):
            plant(method, seed, right(30)[:30])
    (arena,) = arenas(find_cards([tmp_path]))
    assert arena.pairs["JLB", "NRT-GM"].high == pytest.approx(2.045 / 32, rel=1e-3)
    assert arena.verdict(("JLB", "NRT-GM")) == "not told apart"


def test_beside_every_score_is_what_its_traces_are(plant: Callable[..., None], tmp_path: Path) -> None:
    for seed in range(2):
        plant("logp", seed, right(20), trace="well w x y z", collapsed=seed == 1)
        plant("sft", seed, right(20))
    (arena,) = arenas(find_cards([tmp_path]))
    table = arena_table([arena])
    assert table
    beside = [cell(table, "JLB", f"Traces: {name}") for name in ("Gain", "Collapsed", "Length", "Dead", "Tell")]
    assert beside == ["+2.0", "1 of 2", "9.5", "25%", "100%"]
    sft = next(row for row in table.rows if row.cells[0].text == "SFT")
    assert {one.reason for one in sft.cells[-5:]} == {"it samples no traces"}


def test_one_seed_ranks_nothing_and_says_why(plant: Callable[..., None], tmp_path: Path) -> None:
    plant("sft", 0, right(4))
    plant("logp", 0, right(20))
    plant("gm", 0, right(36))
    found = arenas(find_cards([tmp_path]))
    table = arena_table(found)
    assert table
    assert [row.cells[0].text for row in table.rows] == ["SFT", "JLB", "NRT-GM"]  # the order of methods, not of scores
    assert all(not row.cells[i].text for row in table.rows for i in (4, 5, 6))
    assert any("one seed: what another would have changed is not known" in note for note in table.notes)
    assert pairs_table(found) is None


def test_only_seeds_and_questions_that_both_have_are_compared(plant: Callable[..., None], tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        plant("logp", seed, right(30))
    for seed in (1, 2, 5):
        plant("gm", seed, right(30)[:20])
    (arena,) = arenas(find_cards([tmp_path]))
    (found,) = arena.pairs.values()
    assert (found.seeds, found.rows, found.value) == (2, 20, 0)
