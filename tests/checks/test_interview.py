"""`nrt doctor` before its step, in words and numbers; `--forecast` against rollouts sampled and scored one by one."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from nrt_cli import methods
from nrt_cli.checks import interview
from nrt_cli.checks.forecast import forecast
from nrt_cli.checks.interview import SAMPLE, Interview, SampledGroup, SampledTrace, interview_of, prospects
from nrt_cli.data.prepare import Settings, prepare
from nrt_cli.grading.grading import Grade, Pair
from nrt_cli.records import Example, Request
from nrt_cli.training import start
from nrt_cli.training.trainer import LocalTrainer


def seen(config) -> dict:
    made = interview_of(config, LocalTrainer(config, 1), start.load_inputs(config))
    return {finding.check: finding for finding in SAMPLE.findings(made.sampled())}


@pytest.fixture
def odd_is_right(monkeypatch):
    """An untrained model is never right, so a reply of an odd number of letters is."""
    monkeypatch.setattr(interview, "grade", lambda pair, reply: Grade((reply,), {"odd": float(len(reply) % 2)}))


def test_what_is_sampled_is_what_a_first_step_would_sample(tiny_config, odd_is_right):
    config = tiny_config("method=am", "rollout.temperature=0.8")
    found = seen(config)
    assert list(found) == ["accuracy", "how traces end", "right traces", "answer's habit", "signal"]
    assert set(found["accuracy"].details) == {"thinking", "null", "direct"}
    assert found["accuracy"].details["direct"]["n"] == 8
    assert "8 held-out questions" in found["accuracy"].found
    engine, inputs = LocalTrainer(config, 1), start.load_inputs(config)
    groups = engine.sample([inputs.validation[i] for i in range(8)], 1)  # there are no more than eight
    ends, rollouts = found["how traces end"].details, [r for group in groups for r in group.rollouts]
    assert ends["traces"] == len(rollouts) == 32
    assert ends["cut"] == sum(r.stop == "cap" for r in rollouts)
    assert ends["closed"] + ends["cut"] + ends["eos"] == 32
    # A row for each trace comes first, then one for each eos.
    rows = [(g, row) for g in groups for row in engine.layout.rows(g)[: len(g.rollouts)]]
    logprobs = [plain(engine, row, len(g.example.answer_ids)) for g, row in rows]
    mean = sum(map(sum, logprobs)) / sum(map(len, logprobs))
    assert found["answer's habit"].details["per_token"]["after a trace"] == pytest.approx(mean, abs=1e-4)


def plain(engine, row, count) -> list[float]:
    """log p of a row's last tokens by the textbook: the whole row's logits."""
    logits = engine.backend.policy.model(torch.tensor([row.ids]), use_cache=False).logits[0].double().log_softmax(-1)
    return [float(logits[at - 1, row.ids[at]].detach()) for at in range(len(row.ids) - count, len(row.ids))]


def test_sft_is_asked_directly(tiny_config):
    found = seen(tiny_config("method=sft"))
    assert list(found) == ["accuracy", "answer's habit"]
    assert list(found["accuracy"].details) == ["direct"]
    assert list(found["answer's habit"].details["per_token"]) == ["directly"]


@pytest.mark.parametrize(
    "answer", ["A long answer in prose, of which no grader can say whether it is right at all.", "7"]
)
def test_answers_without_a_grader_are_left_out(tiny_config, tmp_path, answer):
    rows = [{"question": f"What is {i}?", "answer": f"{answer} {i}" if len(answer) > 1 else answer} for i in range(8)]
    (tmp_path / "prose.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare([str(tmp_path / "prose.jsonl")], tmp_path / "prose", Settings())
    config = tiny_config("method=am", f"data.train={tmp_path / 'prose' / 'train.parquet'}", "data.validation=null")
    found = seen(config)
    if answer == "7":
        assert "8 training questions" in found["accuracy"].found
        assert found["right traces"].found == "no trace of 32 was right: nothing to reinforce"
        assert "--suffix" in found["right traces"].do
    else:
        assert (found["accuracy"].verdict, found["right traces"].verdict) == ("skipped", "skipped")
        assert "no grader suits" in found["accuracy"].found
        assert "--grader" in found["accuracy"].do
        assert "pairs" not in found["signal"].found


def test_a_grader_that_is_not_there_is_a_reason(tiny_config):
    pairs = [Pair("1?", "1", "nowhere:grader")]
    assert "nowhere" in interview.why_ungraded(pairs)


# --- in words --------------------------------------------------------------------------------------------------------


def in_words(config, groups) -> dict:
    """The findings on groups that are made up."""
    made = Interview(
        config, SimpleNamespace(), [], SimpleNamespace(train=SimpleNamespace(longest_with=lambda _: 100)),
        [Pair("?", "1", "number")] * len(groups), "questions", None, "", 8,
    )  # fmt: skip
    made.groups, made.prospects = groups, prospects(groups, methods.get("logp"), config.objective)
    checks = ("how traces end", "right traces", "signal")
    return {check: finding for check in checks for finding in SAMPLE.looks[check](made)}


def made_up(*traces, stop="end", null=-10.0):
    return SampledGroup(5, (null,), tuple(SampledTrace(6, stop, (total,), score) for total, score in traces))


def test_each_advice_names_what_to_set(tiny_config):
    config = tiny_config("method=logp")
    cut = in_words(config, [made_up((-2.0, 1.0), (-3.0, 0.0), stop="cap")])
    assert cut["how traces end"].verdict == "warning"
    assert "100% were cut" in cut["how traces end"].do
    assert "--set rollout.max_trace_tokens=12" in cut["how traces end"].do
    assert (cut["right traces"].verdict, cut["signal"].verdict) == ("ok", "ok")
    assert "1 of 2 traces" in cut["right traces"].found
    all_right = in_words(config, [made_up((-2.0, 1.0), (-3.0, 1.0))])["right traces"]
    assert (all_right.verdict, "harder" in all_right.do) == ("warning", True)
    apart = in_words(config, [made_up((-2.0, 1.0), (-3.0, 1.0)), made_up((-2.0, 0.0), (-3.0, 0.0))])["right traces"]
    assert "nothing to choose between" in apart.found
    assert "--set rollout.group_size=8" in apart.do
    dead = in_words(config, [made_up((-12.0, 1.0), (-13.0, 0.0))])["signal"]
    assert (dead.verdict, "1 of 1 groups are dead" in dead.found) == ("warning", True)
    wrong = in_words(config, [made_up((-2.0, 0.0), (-3.0, 1.0))])["signal"]
    assert (wrong.verdict, "hardly tell right from wrong" in wrong.do) == ("warning", True)


def test_a_cap_is_raised_as_far_as_positions_reach(tiny_config):
    config = tiny_config("method=logp", "rollout.max_trace_tokens=300")  # the tiny model has 512 positions
    found = in_words(config, [made_up((-2.0, 1.0), (-3.0, 0.0), stop="cap")])["how traces end"]
    assert "--set rollout.max_trace_tokens=412" in found.do
    full = in_words(tiny_config("method=logp", "rollout.max_trace_tokens=412"), [made_up((-2.0, 1.0), stop="cap")])
    assert full["how traces end"].do == (
        "100% were cut: ask for a shorter form with `nrt data prepare` and --suffix TEXT."
    )


# --- forecast --------------------------------------------------------------------------------------------------------


FULL = pytest.mark.full


@pytest.mark.parametrize(
    ("cap", "size"), [pytest.param(6, 4, marks=FULL), (3, 4), (6, 2), pytest.param(12, 8, marks=FULL)]
)
def test_a_cell_is_what_a_plain_rollout_gives(tiny_config, odd_is_right, cap, size):
    """Sampled anew under the cell's own cap, scored row by row, answered one by one, and counted by hand."""
    config = tiny_config("method=ws-neg-log-p", "rollout.batch_rows=16")
    found = forecast(config, 5, lambda _: None)
    assert found.own.changes == {"method": "ws-neg-log-p", "rollout.temperature": 1.0,
                                 "rollout.max_trace_tokens": 6, "rollout.group_size": 4}  # fmt: skip
    (cell,) = [c for c in found.cells if c.changes == found.own.changes | {
        "rollout.max_trace_tokens": cap, "rollout.group_size": size}]  # fmt: skip
    engine = LocalTrainer(tiny_config("method=ws-neg-log-p", f"rollout.max_trace_tokens={cap}"), 1)
    examples = interview_of(config, engine, start.load_inputs(config), 5).examples
    longest = interview.answer_cap(max(len(e.answer_ids) for e in examples), config.longest_answer)
    groups = engine.backend.sampler.sample_groups(examples, 8, (config.seed, 0, 1))
    stops, gains, scores, live, pairs = [], [], [], 0, []
    for group in groups:
        null = plain(engine, engine.layout.null_row(group.example), len(group.example.answer_ids))
        rows = engine.layout.rows(group)
        for start_at in range(0, 8, size):
            block = range(start_at, start_at + size)
            c = [plain(engine, rows[k], len(null)) for k in block]
            right = [answered(engine, group.example, group.rollouts[k], longest) for k in block]
            rewards = [sum(-n * math.exp(x) for x, n in zip(each, null, strict=True)) for each in c]
            base = sum(-n * math.exp(n) for n in null)
            shaped = [max(0.0, reward - base) for reward in rewards]
            live += max(shaped) - min(shaped) > 1e-5 * max(*rewards, base)
            stops += [group.rollouts[k].stop for k in block]
            gains += [sum(each) - sum(null) for each in c]
            scores.append(right)
            pairs += [(shaped[i], shaped[j]) for i in range(size) for j in range(size) if right[i] > right[j]]
    seen = cell.found
    assert (seen.questions, seen.traces) == (len(scores), 40)
    assert seen.alive == pytest.approx(live / len(scores))
    assert seen.cut == pytest.approx(stops.count("cap") / 40)
    assert seen.closed == pytest.approx(stops.count("end") / 40)
    assert seen.gain == pytest.approx(sum(gains) / 40, abs=1e-4)
    assert seen.right_share == pytest.approx(sum(map(sum, scores)) / 40)
    assert 0 < seen.right_share < 1
    assert seen.mixed == pytest.approx(sum(0 < sum(right) < size for right in scores) / len(scores))
    assert seen.pairs == len(pairs)
    assert seen.agrees == pytest.approx(sum(0.5 if a == b else a > b for a, b in pairs) / len(pairs))


def answered(engine, example: Example, rollout, cap) -> float:
    """1 where the greedy answer after a trace has an odd number of letters."""
    request = Request("", example.prompt_ids, think=True, trace_ids=rollout.trace_ids, max_answer_tokens=cap)
    ((_, reply),) = engine.backend.reasoner().run([request])
    return float(len(reply.answer) % 2)


@pytest.mark.slow
def test_the_command_shows_cells_and_what_to_paste(nrt, tiny_yaml):
    record = json.loads(nrt("doctor", tiny_yaml, "--method", "am", "--forecast", "--questions", 2, "--json").out)
    cells = record["cells"]
    assert all(cell["agrees"] is None for cell in cells if not cell["pairs"])  # not measured is null, never NaN
    assert len({(c["method"], c["rollout.temperature"], c["rollout.max_trace_tokens"], c["rollout.group_size"])
                for c in cells}) == len(cells) >= 6 * 2 * 3 * 2  # fmt: skip
    assert {cell["mark"] for cell in cells} <= {"dead", "weak", "signal"}
    assert [cell["cost"] for cell in cells if {key: cell[key] for key in record["own"]} == record["own"]] == [1]
    shown = nrt("doctor", tiny_yaml, "--method", "am", "--forecast", "--questions", 2)
    assert shown.code == 0
    assert sum(line.strip().startswith("> ") for line in shown.out.splitlines()) == 2  # once in each table
    assert "minutes at this machine's matmul rate" in shown.err
    assert "minutes left" in shown.err
    refused = nrt("doctor", tiny_yaml, "--method", "sft", "--forecast")
    assert (refused.code, "--method" in refused.err) == (2, True)
