"""The HTML page as text: what is in it, what cannot be, and how much of the store it shows."""

import base64
import hashlib
import json
import math
from dataclasses import replace
from html.parser import HTMLParser
from importlib.util import find_spec

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nrt_analysis.document import Cell, Column, Document, Figure, Made, Row, Table
from nrt_analysis.figures import COLUMN, new_figure
from nrt_analysis.formats import FORMATS, write
from nrt_analysis.formats import page as html
from nrt_analysis.formats import render as formats_of
from nrt_analysis.formats.page import payload, texts
from nrt_analysis.formats.page.payload import cases, sample_traces, scored_groups, series, spread
from nrt_analysis.report.paper_report import gather
from nrt_analysis.report.run_cards import find_cards

from nrt_cli.records import Document as Answered
from nrt_cli.records import Reply
from nrt_cli.store import Run
from nrt_cli.store.evals import Evaluation

HOSTILE = (
    "</script><script>window.pwned=1</script><img src=x onerror='window.pwned=2'><style>*{display:none}</style>"
    '<!-- {{ 7*7 }} ]]> \u202egnp.exe \x1b[31m \x00 & "quoted"'
)


def render(document, pieces=None):
    return html.render(document, pieces)["index.html"].decode()


def letters(folder):
    """A tokenizer whose tokens are characters: the fixture's ids are code points."""
    return lambda ids: [chr(i) for i in ids]


class Page(HTMLParser):
    """What a browser's parser sees: elements with their attributes, and the text of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.inside = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.inside.append([tag, dict(attrs), ""])

    def handle_data(self, data):
        if self.cdata_elem:
            self.inside[-1][2] += data

    def texts(self, tag, **attrs):
        return [text for name, has, text in self.inside if name == tag and attrs.items() <= has.items()]

    @property
    def data(self):
        (text,) = self.texts("script", id="data")
        return json.loads(text)


@pytest.fixture
def scored_row(row):
    """A row of a training step: a trace of two tokens, an answer of three, gain 0.5 + 0.1 - 0.1 = 0.5."""

    def make(step, example, k, trace="ab", **more):
        about = {"answer_ids": [120, 121, 122]}
        about |= {"answer_logprobs": [-0.5, -1.0, -0.2], "null_logprobs": [-1.0, -1.1, -0.1]}
        about |= {"trace_entropies": [0.25, 2.0, 1.0], "token_signals": [1e-200, 0.5, 0.25], "gain": 0.5}
        about |= {"reward": 0.6, "reward_base": 0.5, "advantage": 1.0, "dead_group": False}
        return row(step, example, k, trace, **(about | more))

    return make


@pytest.fixture
def contents(make_run, scored_row):
    """Two runs with traces of two steps, groups of two."""

    def make(*tables, trace="ab", **more):
        for name, method in (("a", "am"), ("b", "ws-neg-log-p")):
            each = [(e, k) for e in (3, 5) for k in (0, 1)]
            traces = {f"step-{step:06d}": [scored_row(step, *one, trace) for one in each] for step in (1, 2)}
            run = make_run(name, method, [{"distinct_ngrams": 0.5, "truncated_share": 0.1}] * 2, traces)
            run.append_metrics({"kind": "held_out", "step": 0, "examples": 4, "answer_logprob": -20.0})
            run.append_metrics({"kind": "held_out", "step": 2, "examples": 4, "answer_logprob": -10.0 - len(method)})
        found = find_cards([run.path.parent])
        about = Made("0.0", "2026-01-01T00:00:00Z")
        return Document("A title", about, tuple(found), tables, (), ("mind this",), **more)

    return make


def test_the_same_contents_give_the_same_bytes(contents, tmp_path):
    made = contents()
    first, second = (write(made, tmp_path / name, ["html"], letters)[0].read_bytes() for name in ("one", "two"))
    assert first == second
    assert str(tmp_path / "one").encode() not in first


def test_nothing_is_loaded_and_the_policy_allows_only_what_is_inline(contents):
    page = Page(render(contents(), letters))
    places = [e[name] for _, e in page.elements for name in ("src", "href", "action", "data", "poster") if name in e]
    assert places
    assert all(place.startswith(("#", "data:image/")) for place in places)
    assert "url(" not in page.texts("style")[0]
    (policy,) = [e["content"] for tag, e in page.elements if e.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    (style,), (script,) = page.texts("style"), [text for tag, e, text in page.inside if tag == "script" and not e]
    for rule, text in (("style-src", style), ("script-src", script)):
        assert rules[rule] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    assert not any("style" in e or any(name.startswith("on") for name in e) for _, e in page.elements)


def test_hostile_text_is_text(contents, tmp_path):
    cell = Cell(HOSTILE, reason=HOSTILE, note=HOSTILE)
    columns = (Column(HOSTILE, HOSTILE), Column("n", kind="number"))
    table = Table(HOSTILE, HOSTILE, HOSTILE, columns, (Row((cell, Cell("", reason=HOSTILE)), HOSTILE),), (HOSTILE,))
    made = contents(table, Table("table-1", "empty", "nothing", columns, reason=f"`{HOSTILE}`"), trace=HOSTILE)
    for card in made.runs:
        card.run.update_manifest(command=HOSTILE, versions={HOSTILE: HOSTILE}, data={"dropped": {HOSTILE: 3}})
    names = {"title": HOSTILE, "model": HOSTILE, "settings": {HOSTILE: HOSTILE}}
    hostile = [
        replace(card, label=HOSTILE + str(i), manifest=card.run.manifest(), **names) for i, card in enumerate(made.runs)
    ]
    text = render(replace(made, title=HOSTILE, runs=tuple(hostile), notes=(HOSTILE,)), letters)
    page = Page(text)
    tags = [tag for tag, _ in page.elements]
    assert (tags.count("script"), tags.count("style"), tags.count("img")) == (2, 1, 0)
    assert page.data["traces"]["groups"][0]["traces"][0]["tokens"] == list(HOSTILE)
    assert page.data["runs"][0]["label"] == HOSTILE + "0"
    assert not set(text) & set("\x00\x1b")
    before, _, data = text.partition('id="data">')
    assert "\u202e" not in before
    data = data.partition("</script>")[0]  # no markup in it, and no infinity
    assert not set(data) & set("<>&'")
    json.loads(data, parse_constant=pytest.fail)


def test_a_trace_has_its_tokens_and_numbers(contents):
    made = contents()
    found = sample_traces(made.runs, letters)
    assert (found["shown"], found["stored"]) == (16, 16)
    a, b = (card.label for card in made.runs)
    groups = {(one["run"], one["step"]): one for one in reversed(found["groups"])}
    assert groups.keys() == {(a, 2), (a, 1), (b, 2), (b, 1)}
    group = groups[a, 2]
    assert (group["example"], group["question"]) == (3, "Question 3?")
    assert (group["answer"], group["base"]) == (list("xyz"), [-1.0, -1.1, -0.1])
    trace = group["traces"][1]
    assert (trace["k"], trace["tokens"], trace["entropy"], trace["length"]) == (1, ["a", "b"], [0.25, 2.0, 1.0], 2)
    assert (trace["after"], trace["signal"], trace["gain"]) == ([-0.5, -1.0, -0.2], [1e-200, 0.5, 0.25], 0.5)
    # Without a tokenizer, texts are whole and nothing is known of tokens.
    for pieces in (None, lambda folder: None):
        group = sample_traces(made.runs, pieces)["groups"][0]
        assert group["answer"] == ["answer 3"]
        assert (group["base"], group["traces"][0]["tokens"], group["traces"][0]["after"]) == ([], ["ab"], [])


def test_the_budget_is_shared_and_every_step_comes_before_second_groups(contents, monkeypatch):
    """A group is 2 traces of 2 + 3 tokens = 10; runs' last steps come first, so 25 tokens are three groups."""
    monkeypatch.setattr(payload, "BUDGET", 25)
    found = sample_traces(contents().runs, letters)
    assert sorted(one["step"] for one in found["groups"]) == [1, 2, 2]
    assert (found["shown"], found["stored"]) == (6, 16)


def test_long_traces_are_cut_and_say_how_long_they_were(make_run, scored_row):
    long = "x" * (payload.LONGEST + 7)
    row = scored_row(1, 0, 0, long, trace_entropies=[0.5] * (len(long) + 1))
    run = make_run("a", traces={"step-000001": [row]})
    (trace,) = sample_traces(find_cards([run.path]), letters)["groups"][0]["traces"]
    assert (len(trace["tokens"]), trace["length"]) == (payload.LONGEST, payload.LONGEST + 7)


@given(st.integers(0, 200), st.integers(2, 9))
def test_spread_keeps_both_ends_and_the_order(total, count):
    chosen = spread(range(total), count)
    assert len(chosen) == min(total, count)
    assert chosen == sorted(set(chosen))
    assert not total or (chosen[0], chosen[-1]) == (0, total - 1)


def test_scores_asked_for_are_in_the_same_form(contents, tmp_path):
    made = contents()
    scheme = {"reward": 1.0, "reward_base": 0.5, "advantage": None, "dead_group": None, "token_signals": [1.0, math.pi]}
    trace = {"trace": "12", "trace_tokens": 2, "stop": "given", "logprobs": [-0.5, -0.25], "gain": 1.5}
    trace |= {"schemes": {"am": scheme}}
    record = {"model": "m", "question": "q?", "tokens": ["4", "2"], "null": {"logprobs": [-1.0, -1.25]}}
    record |= {"traces": [trace]}
    folder = made.runs[0].run.path / "analysis" / "score"
    folder.mkdir(parents=True)
    (folder / "a.json").write_text(json.dumps([record, {"model": "direct"}, 3]))
    (folder / "b.json").write_text("{broken")
    (found,) = scored_groups(made.runs)
    assert found["run"] == "nrt score: m, am"
    assert found["answer"] == ["4", "2"]
    assert found["traces"][0]["signal"] == [1.0, 3.142]
    assert found["traces"][0]["log_reward"] == 0


def score_table(*scores, key="table-3-own", column="Overall"):
    rows = tuple(Row((Cell(name), Cell(str(v), v, low, high)), "M") for name, v, low, high in scores)
    return Table(key, "Ours", "", (Column("Method"), Column(column, kind="number")), rows)


TOP, LAST = ("A", 50.0, 45.0, 55.0), ("C", 20.0, 15.0, 25.0)


@pytest.mark.parametrize(
    ("scores", "verdict"),
    [
        ([TOP, ("B", 48.0, 44.0, 52.0), LAST], " has the highest score, {}, but its interval overlaps with that of B"),
        ([LAST, TOP], " leads with {}; no other interval reaches it (next: C, 20.0 [15.0, 25.0])."),
        ([TOP, ("B", *TOP[1:]), LAST], " and B share the highest score, {}."),
        (
            [TOP, ("B", 20.0, math.nan, math.nan)],
            " has the highest score, {}; without intervals, that settles nothing.",
        ),
    ],
)
def test_who_leads_is_said_where_intervals_settle_it(contents, scores, verdict):
    (said,) = texts.panels(contents(score_table(*scores)))[0].verdicts
    assert said.startswith("M: A" + verdict.format("50.0 [45.0, 55.0]"))


def test_a_leader_whose_seeds_others_reach_does_not_lead():
    dots = [
        texts.Dot("", "A", 100.0, 99.2, 100.0, after=(100.0, 100.0, 100.0)),
        texts.Dot("", "B", 70.0, 5.6, 98.9, after=(100.0, 99.6, 10.4)),
        texts.Dot("", "C", 9.8, 7.0, 13.5, after=(8.8, 9.2, 11.4)),
    ]
    said = "A has the highest score, 100.0 [99.2, 100.0], but single seeds of B do as well: the order is not settled."
    assert texts._verdict(dots) == said


def test_unmeasured_scores_are_not_drawn(contents):
    panels = texts.panels(contents(score_table(("A", math.nan, math.nan, math.nan))))
    assert [panel.title for panel in panels] == ["Held-out log P(y*)"]


@pytest.mark.parametrize("runs", [9, 10])
def test_what_is_said_of_many_runs_is_folded_behind_how_to_read_it(contents, monkeypatch, runs):
    made = contents()
    (panel,) = texts.panels(made)
    lines = ["How to read it", *(f"run {i} gained" for i in range(runs))]
    monkeypatch.setattr(texts, "panels", lambda document: [replace(panel, verdicts=lines)])
    text = render(made)
    assert all(text.count(f'<p class="verdict">{line}</p>') == 1 for line in lines)
    assert (f"<summary>{runs} more, one by one</summary>" in text) == (len(lines) > 10)


def test_held_out_scores_before_and_after_by_seed(contents):
    (panel,) = texts.panels(contents())
    ends = {dot.label: (dot.before, dot.after) for dot in panel.dots}
    assert ends == {"RLPR (paper's version)": ((-20.0,), (-12.0,)), "NRT-WS (-log p)": ((-20.0,), (-22.0,))}
    assert "no interval" in panel.verdicts[0]
    assert "flatters" in panel.verdicts[1]
    assert (panel.at(-22.0), panel.at(-12.0)) == ("2.00%", "98.00%")
    assert [dot.text for dot in panel.dots] == ["−20.0 → −12.0", "−20.0 → −22.0"]
    assert "SFT" not in " ".join(panel.verdicts)


def test_the_first_sentence_says_what_was_trained(contents):
    made = contents()
    assert (
        texts.trained(replace(made, runs=made.runs[:1]))
        == "One run of unknown: RLPR (paper's version), 2 training steps."
    )
    both = "2 runs of unknown: 2 methods (RLPR (paper's version), NRT-WS (-log p)), 1 seed, 2 training steps each."
    assert texts.trained(made) == both


def test_series_have_every_run_and_what_was_not_measured_is_null(make_run):
    run = make_run("a", steps=[{"gain": 1.0}, {"gain": math.nan}, {"gain": 3.0}])
    run.append_metrics({"kind": "held_out", "step": 0, "answer_logprob": -1.23456789})
    sft = make_run("s", "sft", steps=[{"answer_logprob_per_token": -2.0}])
    found = series(find_cards([run.path, sft.path]))
    assert [panel["key"] for panel in found["panels"]][:2] == ["held_out", "gain"]
    direct, thinking = (one["values"] for one in found["runs"])
    assert thinking["gain"] == {"step": [1, 2, 3], "raw": [1.0, None, 3.0], "mean": [1.0, 1.0, 2.0]}
    assert thinking["held_out"]["mean"] == [-1.235]
    assert direct["answer_logprob_per_token"]["mean"] == [-2.0]
    assert "gain" not in direct


def test_settings_that_differ_are_marked(contents):
    runs = [replace(card, settings={"a.b": i, "a.c": None}) for i, card in enumerate(contents().runs, 1)]
    found = texts.settings(runs)
    assert found == [("a.b", ("1", "2"), True), ("a.c", ("null", "null"), False)]


def test_runs_of_one_machine_are_named_together(contents):
    first, second = contents().runs
    other = replace(second, label="other", manifest={"device": {"name": "cuda"}})
    alike, (labels, facts) = texts.environments([first, second, other])
    assert (alike[0], labels) == ([first.label, second.label], ["other"])
    assert ("device: name", "cuda") in facts


def test_commands_are_of_the_studies_the_report_and_each_run(contents, tmp_path):
    first, second = contents().runs
    manifest = {"command": "nrt train x", "summary": {"seconds": 90.0}}
    studied = replace(first, study=tmp_path / "laptop", manifest=manifest)
    assert texts.whole_commands([studied, second]) == [
        ("the study laptop", "nrt reproduce laptop/study.yaml --out laptop"),
        ("this report", "nrt report laptop b"),
    ]
    odd = replace(second, run=Run(tmp_path / "more" / "-it's here"))
    assert texts.whole_commands([studied, odd])[1] == ("this report", """nrt report laptop 'more/-it'"'"'s here'""")
    assert texts.whole_commands([odd]) == [("this report", """nrt report './-it'"'"'s here'""")]
    assert texts.commands([studied]) == [(f"{first.label}, took 1.5 min", "nrt train x")]


def test_held_out_traces_side_by_side(make_run, row):
    am = {
        "held-out-000000": [row(0, e, 0, "before") for e in (1, 2)],
        "held-out-000030": [row(30, e, 0, f"am {e}") for e in (1, 2)],
    }
    gm = {"held-out-000020": [row(20, 2, 0, "gm<|im_end|>")]}
    runs = [make_run("a", "am", traces=am), make_run("b", "gm", traces=gm)]
    (case,) = cases(find_cards([run.path for run in runs]))
    assert (case["name"], case["question"], case["reference"]) == ("held-out example 2", "Question 2?", "answer 2")
    assert [(s["step"], s["trace"], s["before"]) for s in case["said"]] == [(30, "am 2", "before"), (20, "gm", None)]


def test_documents_that_all_runs_answered(make_run):
    runs = [make_run("a", "am"), make_run("b", "gm")]
    for run, ids in zip(runs, (("1", "2"), ("2", "3")), strict=True):
        evaluation = Evaluation.create(run.path / "evals" / "export", "gsm8k", {}, {})
        for key in ids:
            reply = Reply("thought", f"answer of {run.path.name}", 1, 3, "end")
            turns = ({"role": "user", "content": f"question {key}"},)
            evaluation.append(Answered("gsm8k", "", key, turns, "42", (reply,), ("41",), {"exact_match": 0.0}))
        evaluation.write_scores({"score": 0.0})
    (case,) = cases(find_cards([run.path for run in runs]))
    assert (case["name"], case["question"], case["reference"]) == ("gsm8k 2", "question 2", "42")
    said = [(s["answer"], s["score"], s["trace"]) for s in case["said"]]
    assert said == [(f"answer of {name}", 0.0, "thought") for name in "ab"]


def test_a_run_that_has_nothing_yet_is_a_page(make_run):
    found = tuple(find_cards([make_run("a").path]))
    text = render(Document("t", Made("0", "-"), found, (), (), ()), letters)
    assert "Nothing was measured yet" in text


def test_every_format_shows_any_number_of_tables_and_figures_whatever_they_are_called(contents):
    """What a contributor adds to a report reaches all of its formats, without a line in any of them."""
    columns, row = (Column("Method"), Column("Score", kind="number")), Row((Cell("a"), Cell("1.0", 1.0)))
    tables = [Table(f"table-{i}", f"My table {i}", "c", columns, (row,)) for i in (*range(11, 25), 90, "x")]
    numbers = {"behind": pd.DataFrame({"n": [1]})}
    figures = [
        Figure(f"figure-{i}", f"My figure {i}", "c", new_figure(1, 1, COLUMN, 2.5)[0], numbers)
        for i in (5, 8, 22, "mine")
    ]
    empty = Figure("figure-7", "My empty figure", "c", reason="`nrt nothing` draws it")
    packages = {"latex": "pylatexenc", "pdf": "fpdf"}
    formats = [name for name in FORMATS if name not in packages or find_spec(packages[name])]
    files = formats_of(replace(contents(*tables), figures=(*figures, empty)), formats)
    assert {f"tables/{table.key}.csv" for table in tables} <= files.keys()
    assert {f"figures/{figure.key}{end}" for figure in figures for end in (".svg", "-behind.csv")} <= files.keys()
    page, text, paper = (files.get(name, b"").decode() for name in ("index.html", "report.md", "paper.tex"))
    for part in (*tables, *figures, empty):
        assert page.count(f'id="{part.key}"') == 1
        assert f"## {part.title}\n" in text
        assert not paper or part.key in paper or part is empty
    assert "<summary>My empty figure: empty: <code>nrt nothing</code> draws it</summary>" in page
    assert page.count("data:image/svg") == text.count(".png)") == len(figures)
    assert files.get("report.pdf", b"/Type /Page\n" * 9).count(b"/Type /Page\n") > len(figures)


def test_what_is_empty_is_folded_into_a_line_that_says_what_fills_it(contents):
    columns, row = (Column("Method"), Column("Score", kind="number")), Row((Cell("a"), Cell(reason="not run")))
    bare = Table("table-5", "Bare", "c", columns, reason="`nrt judge` does")
    page = render(contents(Table("table-3", "Unasked", "c", columns, (row,)), bare))
    assert "<summary>Unasked: empty: no run was asked" in page
    assert "<summary>Bare: empty: <code>nrt judge</code> does</summary>" in page


def test_held_out_pairs_are_shown_with_paired_intervals_where_rows_are_stored(make_run):
    scores = {"thinking": 1.0, "null": 0.0, "direct": 0.0, "other_trace": 0.0}
    names = {f"{kind}_score": score for kind, score in scores.items()}
    names |= {"k": 0, "source": "s", "prompt": "Q", "trace": "z", "answer": "A", "stop": "end"}
    rows = [{"example": i, "answer_logprobs": [-1.0 - i], "null_logprobs": [-3.0 - i], **names} for i in range(4)]
    before = [row | {"answer_logprobs": [-3.0 - row["example"]], "thinking_score": 0.0} for row in rows]
    run = make_run("a", steps=[{"gain": 1.0}], traces={"held-out-000000": before, "held-out-000001": rows})
    for step, value in ((0, -4.5), (1, -2.5)):
        run.append_metrics({"kind": "held_out", "step": step, "answer_logprob": value, "examples": 4, "graded": 4})
    made = gather([run.path])
    accuracy, likelihood, gain = texts.panels(made)
    assert (likelihood.dots[0].before, likelihood.dots[0].after) == ((-4.5,), (-2.5,))
    assert gain.dots[0].text == "0.0 → 2.0 [2.0, 2.0]"
    assert [dot.section for dot in accuracy.dots] == ["thinking", "null trace", "direct", "other row's trace"]
    assert [dot.after for dot in accuracy.dots] == [(100.0,), (0.0,), (0.0,), (0.0,)]
    assert "thinking − null trace +100.0 [" in accuracy.verdicts[1]
    table = next(table for table in made.tables if table.key == "held-out")
    assert {row.cells[0].text: row.cells[3].value for row in table.rows}["gain of thinking"] == 2.0
    text = render(made)
    assert "0.0 → 2.0 [2.0, 2.0]" in text
    assert "\\xa0" not in text
