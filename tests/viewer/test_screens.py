"""What the screens show, by their addresses: against numbers written down in `worlds.py`."""

import json
import math
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import add_held_out, add_step, letters, make_run, opened, row

from nrt_cli.errors import ConfigError, StoreError
from nrt_cli.store import Run
from nrt_cli.viewer.library import AT, Library
from nrt_cli.viewer.screens import answer, first_of, smooth


def said(library, query):
    return [line["said"] for line in answer(library, query)["traces"]]


def test_runs_are_listed_with_what_they_have(world):
    a, b = answer(opened(world), "/runs")["runs"]
    assert (a["run"], a["step"], a["steps"], a["traces"], a["kinds"]) == ("a", 2, 2, 16, ["step", "held-out"])
    assert (a["answer_logprob"], a["accuracy"], b["accuracy"]) == (-3.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("kind=step&step=2&example=3", ["one 2", "two 2", "three 2"]),
        ("kind=step&step=2&example=3&sort=-reward", ["three 2", "two 2", "one 2"]),
        ("kind=step&gain=0..&sort=step&dead=0", ["one 1", "two 1", "one 2", "two 2"]),
        ("kind=step&gain=..-0.4&dead=0&step=1", ["three 1"]),
        ("kind=step&forced=1&example=4&sort=step", ["three 1", "three 2"]),
        ("kind=step&clipped=1&example=3&step=1", ["one 1"]),
        ("kind=held-out&step=2", ["a 2", "b 2"]),
        ("right=1", []),
        ("text=TWO&example=4", ["two 2", "two 1"]),
        ("length=7&example=3&step=1", ["three 1"]),
    ],
)
def test_lists_are_filtered_and_sorted(world, query, expected):
    assert said(opened(world), f"/list?run=a&{query}") == expected


def test_numbers_of_a_line(world):
    (line,) = answer(opened(world), "/list?run=a&kind=step&example=3&k=2&step=1")["traces"]
    expected = {"gain": -0.5, "reward": 3, "baseline": 1.5, "advantage": 1, "length": 7, "forced": 1, "dead": 0}
    assert {key: line[key] for key in expected} == expected
    assert (line["clipped"], line["right"], line["leaked"], line["question"]) == (
        0,
        None,
        0,
        "Question 3?",
    )


def test_an_answer_that_stands_in_the_trace_is_seen(tmp_path):
    run = make_run(tmp_path / "runs" / "a")
    rows = [row(1, e, 0, "it is xy", question="xy?" if e else "?") for e in (0, 1)]
    run.write_traces("step-000001", rows)
    lines = answer(opened(tmp_path / "runs"), "/list?sort=example")["traces"]
    assert [line["leaked"] for line in lines] == [1, 0]  # it is asked for in the second


def test_a_group_has_every_token_and_where_else_it_is(world):
    group = answer(opened(world), "/group?run=a&kind=step&step=1&example=3")
    assert (group["steps"], group["examples"], group["answer"]) == ([1, 2], [3, 4], ["x", "y"])
    assert (group["question"], group["base"]) == ("Question 3?", [-2.0, -2.0])
    one, _, three = group["traces"]
    assert (one["tokens"], one["after"], one["chance"]) == (list("one 1"), [-0.5, -2.0], [-0.5] * 6)
    assert (one["clipped"], three["clipped"], three["reward"], three["advantage"]) == (True, False, 3.0, 1.0)
    assert one["log_reward"] == pytest.approx(0.0, abs=1e-3)
    assert one["log_baseline"] == pytest.approx(np.log(1.5), abs=1e-3)
    held = answer(opened(world), "/group?run=a&example=8")  # held-out questions recur: they come first
    assert (held["kind"], held["step"], held["steps"], held["traces"][0]["right"]) == ("held-out", 2, [0, 2], 0.0)


def test_what_an_xray_found_stands_beside_the_trace(world):
    one, other = (answer(opened(world), f"/group?run=a&example={e}")["traces"][0]["xray"] for e in (7, 8))
    assert (one["steps"], one["necessity"], one["kept"]) == (["a ", "2"], [3.0, -1.0], [-9.0, -6.0, -7.0])
    assert (one["decided"], one["smuggled"], other) == (1, 0.25, None)


def test_documents_that_a_model_loses_come_first(world):
    found = answer(opened(world), "/evals?benchmark=sums")
    assert [(one["model"], one["score"]) for one in found["scores"]] == [("a", 2 / 3), ("b", 2 / 3)]
    assert found["counts"] == {"lost": 1, "won": 1, "both wrong": 0, "both right": 1}
    assert [(one["id"], one["fate"]) for one in found["documents"]] == [
        ("q0", "lost"),
        ("q1", "won"),
        ("q2", "both right"),
    ]
    a, b = found["document"]["sides"]
    assert (a["model"], a["replies"][0]["read"], b["replies"][0]["read"]) == ("a", "4", "5")
    assert "what was read is '5'" in b["replies"][0]["why"]
    turned = answer(opened(world), "/evals?benchmark=sums&model=b&model=a&only=lost")
    assert [one["id"] for one in turned["documents"]] == ["q1"]
    assert [one["fate"] for one in answer(opened(world), "/evals?benchmark=sums&model=a")["documents"]] == [
        "wrong",
        "right",
        "right",
    ]


def test_without_a_tokenizer_a_text_is_whole_and_nothing_is_said_of_tokens(world):
    trace = answer(opened(world, None), "/group?run=a&kind=step&step=1&example=3")["traces"][0]
    assert (trace["tokens"], trace["after"], trace["chance"], trace["entropy"]) == (["one 1"], [], [], [])


def test_rewards_far_below_what_a_float_holds_have_a_place_on_the_log_scale(tmp_path):
    run = make_run(tmp_path / "runs" / "a")
    small = {"reward": 0.0, "reward_base": 0.0, "reward_log_scale": -2000.0}
    run.write_traces("step-000001", [row(1, 0, k, "t", **small) for k in (0, 1)])
    group = answer(opened(tmp_path / "runs"), "/group")
    assert [trace["log_reward"] for trace in group["traces"]] == pytest.approx(
        [np.log(1 / 3) - 2000, np.log(2 / 3) - 2000]
    )


def test_curves_have_means_remarks_and_only_settings_that_differ(world):
    found = answer(opened(world), "/curves?run=a&run=b")
    a, b = found["runs"]
    assert a["values"]["held_out:answer_logprob"] == {"step": [0, 2], "mean": [-5.0, -3.0]}
    assert a["values"]["gain"] == {"step": [1, 2], "raw": [1.0, 2.0], "mean": [1.0, 1.5]}
    assert [(one["kind"], one["step"]) for one in a["remarks"]] == [("checkpoint", 2)]
    assert (a["settings"], b["settings"]) == ({"seed": 0}, {"seed": 1})


def test_means_pass_over_what_is_not_measured():
    found = smooth(np.array([1.0, np.nan, 3.0, 5.0]), 2)
    assert found.tolist() == [1.0, 1.0, 3.0, 4.0]


@given(st.lists(st.sampled_from([0.0, 1.0, -1.0, 2.5, math.nan, math.inf, -math.inf]), max_size=30), st.integers(0, 35))
def test_the_first_of_many_are_those_of_a_stable_sort(values, count):
    x = np.array(values, dtype=np.float64)
    assert first_of(x, count).tolist() == np.argsort(x, kind="stable")[:count].tolist()


def test_two_runs_are_compared_in_pairs(world):
    found = answer(opened(world), "/compare?run=a&run=b&example=8")
    assert (found["steps"], found["examples"], found["step"]) == ([0, 2], [7, 8], 2)
    (accuracy,) = [one for one in found["differences"] if one["step"] == 2 and one["key"] == "accuracy_thinking"]
    assert (accuracy["value"], accuracy["low"], accuracy["high"], accuracy["n"]) == (1.0, 1.0, 1.0, 2)
    assert [side["traces"][0]["right"] for side in found["sides"]] == [0.0, 1.0]
    other = Run.open(world / "b")
    other.update_manifest(fingerprints={"validation": "other"})
    with pytest.raises(StoreError, match="other held-out questions"):
        answer(opened(world), "/compare?run=a&run=b")


@pytest.mark.parametrize(
    "query", ["/list?gain=x", "/list?sort=prompt", "/list?kind=z", "/nothing", "/list?run_=a", "/group?step=-1"]
)
def test_an_address_that_is_none_is_named(world, query):
    with pytest.raises(ConfigError):
        answer(opened(world), query)


@pytest.mark.parametrize("name", ["../a", "/etc", "c", "a/../b", "a\x00"])
def test_a_name_is_looked_up_and_never_a_path(world, name):
    with pytest.raises(StoreError, match="no such run"):
        opened(world).followed(name)


def test_steps_that_are_redone_replace_those_that_were(world):
    library = opened(world)
    add_step(Run.open(world / "a"), 2, ("again", "two", "three"))
    library.refresh()
    library.read()
    assert said(library, "/list?run=a&kind=step&step=2&example=3&k=0") == ["again 2"]
    assert (library.table()[AT["run"]] == library.followed("a").number).sum() == 16


def test_a_run_that_is_deleted_is_gone_and_the_others_stay(world):
    library = opened(world)
    shutil.rmtree(world / "a")
    library.look()
    assert [one["run"] for one in answer(library, "/runs")["runs"]] == ["b"]
    with pytest.raises(StoreError, match="no such run"):
        answer(library, "/group?run=a")


def test_a_damaged_table_is_named_and_the_others_are_read(world):
    path = world / "a" / "traces" / "step-000001.parquet"
    path.write_bytes(path.read_bytes()[:-40] + b"\0" * 40)
    (world / "a" / "traces" / "step-000003.parquet").symlink_to("/etc/passwd")
    library = opened(world)
    (damaged,) = answer(library, "/runs")["runs"][0]["damaged"]
    assert "step-000001.parquet" in damaged
    assert answer(library, "/list?run=a")["found"] == 10


def test_a_run_that_says_odd_things_of_itself_hides_no_other(world):
    for i, odd in enumerate(
        ({"method": None}, {"method": ["x"]}, {"method": "am", "status": 7, "created": 5, "steps": {}})
    ):
        Run.create(world / f"odd{i}", "objective: 3\n" if i == 1 else "{}", {"status": "finished", **odd})
        (world / f"odd{i}" / "metrics.jsonl").write_text('{"kind": "train", "step": "x"}\n[]\n')
    names = [one["run"] for one in answer(opened(world), "/runs")["runs"]]
    assert {"a", "b"} <= set(names)


def test_nothing_of_a_run_is_written_or_touched(world):
    def state():
        return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in world.rglob("*") if p.is_file()}

    before = state()
    library = opened(world)
    for query in ("/runs", "/list?text=o", "/group", "/curves", "/compare?run=a&run=b", "/evals"):
        answer(library, query)
    assert state() == before


def test_a_new_step_is_seen_within_two_seconds(world, until):
    library = Library([world], letters)
    with library.following():
        until(lambda: library.runs and not library.left and library.table().shape[1] == 32)
        seen, run = library.version, Run.open(world / "a")
        add_step(run, 3)
        library.wait(seen, 2.0)
        until(lambda: said(library, "/list?run=a&step=3") != [])
        late = make_run(world / "late")
        add_held_out(late, 0, 0.0)
        until(lambda: "late" in library.runs and said(library, "/list?run=late") != [])


def test_the_command_prints_what_a_screen_shows(world, nrt):
    done = nrt("view", str(world), "--json", "/group?run=a&kind=step&step=1&example=3&k=1")
    assert json.loads(done.out)["traces"][1]["tokens"] == ["two 1"]
    assert nrt("view", str(world), "--json", "/grup").code != 0
