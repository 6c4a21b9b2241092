"""The store as frames."""

import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nrt_analysis.frames import (
    HELD_OUT,
    STEP,
    STEP_METRICS,
    OpenRun,
    frame_of,
    open_runs,
    stacked,
    steps_frame,
    trace_frames,
    trace_steps,
    traces_frame,
)

from nrt_cli.errors import StoreError
from nrt_cli.store import Reference
from nrt_cli.text.questions import plain_text, questions


def test_runs_are_named_by_what_tells_them_apart(make_run):
    am, gm, other = make_run("a", "am"), make_run("b", "gm"), make_run("c", "am")
    assert list(open_runs([am.path, gm.path])) == ["am", "gm"]
    assert list(open_runs([am.path, other.path])) == ["a", "c"]
    with pytest.raises(StoreError, match="named twice"):
        open_runs([am.path, am.path])
    with pytest.raises(StoreError, match="no such run"):
        open_runs([am.path / "nowhere"])


def test_steps_have_the_metrics_and_the_reward_gain(make_run):
    run = make_run(steps=[{"reward": 0.75, "reward_base": 0.5, "distinct_ngrams": 0.9}, {"entropy": 1.5}])
    frame = steps_frame(run)
    assert frame["step"].tolist() == [1, 2]
    assert frame["reward_gain"].tolist() == pytest.approx([0.25, 0.1])
    assert frame["entropy"].tolist() == [2.0, 1.5]
    assert frame["distinct_ngrams"].tolist()[0] == 0.9
    assert math.isnan(frame["distinct_ngrams"].tolist()[1])


def test_health_comes_from_the_traces_where_the_metrics_lack_it(make_run, row):
    traces = [row(1, 0, 0, "abcde"), row(1, 0, 1, "abcd", stop="cap"), row(1, 5, 0, "xyxyxy"), row(1, 5, 1, "")]
    frame = steps_frame(make_run(steps=[{}, {}], traces={"step-000001": traces}))
    # 4-grams of example 0: abcd, bcde, abcd; of example 5: xyxy, yxyx, xyxy.
    assert frame["distinct_ngrams"].tolist()[0] == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert frame["truncated_share"].tolist()[0] == 0.25
    assert math.isnan(frame["truncated_share"].tolist()[1])  # nothing stored for step 2


def test_what_is_missing_is_said_with_the_command_that_makes_it(make_run):
    with pytest.raises(StoreError, match=r"nrt train --run .* --resume"):
        steps_frame(make_run("new"))
    with pytest.raises(StoreError, match="'sft' samples no traces"):
        steps_frame(make_run("sft", "sft", [{"loss": 1.0}]))
    bare = make_run("bare", steps=[{}])
    with pytest.raises(StoreError, match="--validation"):
        next(trace_frames(bare, HELD_OUT))
    with pytest.raises(StoreError, match=r"--set train\.trace_groups"):
        next(trace_frames(bare, STEP))


def test_held_out_scores(make_run):
    run = make_run(steps=[{}])
    run.append_metrics({"kind": "held_out", "step": 1, "gain": 0.5})
    (row,) = OpenRun(run.path).held_out.to_dict("records")
    assert (row["step"], row["gain"]) == (1, 0.5)
    assert math.isnan(row["null_logprob"])  # as it is after SFT


def test_traces_come_one_step_at_a_time(make_run, row):
    files = {f"step-00000{step}": [row(step, 0, k, "t") for k in range(2)] for step in (1, 2, 3)}
    run = make_run(traces=files | {"held-out-000000": [row(0, 9, 0, "h")]})
    assert trace_steps(run, STEP) == [1, 2, 3]
    assert trace_steps(run, HELD_OUT) == [0]
    frames = trace_frames(run, STEP)
    assert next(frames)["step"].tolist() == [1, 1]
    chosen = traces_frame(run, STEP, [1, 3], ("step", "k"))
    assert chosen.to_dict("list") == {"step": [1, 1, 3, 3], "k": [0, 1, 0, 1]}
    assert pd.isna(traces_frame(run, HELD_OUT)["gain"]).all()  # held-out traces are not scored


def test_a_column_that_a_file_lacks_is_not_measured(make_run, row):
    """Trace files of other versions and engines may have fewer columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    run = make_run(traces={"step-000001": [row(1, 0, 0, "t")]})
    pq.write_table(pa.table({"step": [1], "trace": ["t"]}), run.path / "traces" / "step-000001.parquet")
    assert run.traces("step-000001", ("trace", "gain")) == [{"trace": "t", "gain": None}]


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("so 7.<|im_end|>", "so 7."),
        ("<s>[INST] hi [/INST] yes</s>", "hi   yes"),
        ("<start_of_turn>x<end_of_turn>", "x"),
        ("a < b and c > d, <<3*4=12>>12 <|> <b>", "a < b and c > d, <<3*4=12>>12 <|> <b>"),
    ],
)
def test_special_tokens_are_no_text(text, plain):
    assert plain_text(text) == plain


def test_questions_lose_the_chat_template():
    template = "<|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    asked = ["What is 3?", "What is 4?", "What\nis [this]?"]
    assert questions([template.format(q) for q in asked]) == asked
    mistral = "<s>[INST] {} [/INST]"
    assert questions([mistral.format(q) for q in ("a?", "ab?")]) == ["a?", "ab?"]
    assert questions(["<|user|>one<|end|>"]) == ["one"]


@pytest.mark.parametrize(
    ("text", "spans"),
    [("runs/a", None), ("runs/a@30", ((30, 30),)), ("runs/a@0,30", ((0, 0), (30, 30))), ("a@b@10-20", ((10, 20),))],
)
def test_references(text, spans):
    assert Reference.parse(text).spans == spans


def test_a_reference_chooses_among_what_there_is(tmp_path):
    assert Reference.parse("a").choose([3, 1]) == [1, 3]
    assert Reference.parse("a@1-3,9").choose([0, 2, 3, 9]) == [2, 3, 9]
    with pytest.raises(StoreError, match="steps 4 to 8; there is something for: 0, 9"):
        Reference.parse("a@4-8").choose([0, 9])
    with pytest.raises(StoreError, match=r"step 0; there is something for: 1, 2, 3, \.\.\., 30\."):
        Reference.parse("a@0").choose(range(1, 31))
    with pytest.raises(StoreError, match="such as a@30"):
        Reference.parse("a@last")
    (tmp_path / "b@7").mkdir()
    assert Reference.parse(str(tmp_path / "b@7")) == Reference(tmp_path / "b@7", None)


records = st.lists(st.dictionaries(st.sampled_from("abcd"), st.one_of(st.floats(), st.none()), max_size=4), max_size=4)


@given(records, st.lists(st.sampled_from("abcdef"), unique=True))
def test_a_frame_has_the_columns_asked_for_and_loses_none_that_rows_have(rows, columns):
    frame = frame_of(rows, columns)
    assert len(frame) == len(rows)
    assert set(frame) == set(columns) | {key for row in rows for key in row}
    for name in set(columns) - {key for row in rows for key in row}:
        assert frame[name].isna().all()
        assert frame[name].dtype == float or frame.empty  # so that means can be taken of it
    for name in {key for row in rows for key in row}:
        found = [row.get(name) for row in rows]
        assert all(
            a == b or (pd.isna(a) and (b is None or math.isnan(b))) for a, b in zip(frame[name], found, strict=True)
        )


@given(st.lists(st.integers(0, 3), max_size=4))
def test_stacked_frames_keep_their_rows_and_none_has_the_columns_all_the_same(sizes):
    frame = stacked((pd.DataFrame({"a": [size] * size}) for size in sizes), ["a"])
    assert list(frame) == ["a"]
    assert frame["a"].tolist() == [size for size in sizes for _ in range(size)]


@pytest.mark.parametrize("missing", [*STEP_METRICS, "distinct_ngrams"])
def test_a_metric_that_a_run_lacks_is_an_empty_column(make_run, missing):
    from nrt_analysis.dynamics_report import COLUMNS, dynamics

    run = make_run(steps=[{"distinct_ngrams": 0.5, "truncated_share": 0.0}] * 2)
    lines = [{key: value for key, value in r.items() if key != missing or key == "trace_length"} for r in run.metrics()]
    (run.path / "metrics.jsonl").unlink()
    for line in lines:
        run.append_metrics(line)
    frame = steps_frame(run)
    assert set(COLUMNS) <= set(frame)
    summary = dynamics({"run": run}).frames["summary"].set_index("metric")
    empty = {"reward": ["reward_gain"], "reward_base": ["reward_gain"]}
    empty |= {"trace_length": [], "answer_logprob_per_token": []}
    assert summary.index[summary["last"].isna()].tolist() == empty.get(missing, [missing])


def test_tables_without_rows_are_no_error_of_pandas(make_run):
    from nrt_analysis.case_report import stored_cases
    from nrt_analysis.frames import OpenRun

    run = make_run(steps=[{}], traces={"step-000001": [], "held-out-000001": []})
    assert traces_frame(run, STEP, None, ("trace", "gain")).columns.tolist() == ["trace", "gain"]
    assert "trace_ids" in traces_frame(run, STEP)
    with pytest.raises(StoreError, match="no example has stored traces"):
        stored_cases([Reference(run.path, None)], STEP, 3)
    opened = OpenRun(run.path)
    assert opened.held_out["gain"].tolist() == opened.evaluations["score"].tolist() == []
    assert OpenRun(make_run("new").path).steps["step"].tolist() == []
