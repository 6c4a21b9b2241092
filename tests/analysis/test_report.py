"""What a report says of a store whose every number is known."""

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from nrt_analysis.document import Document, Row, Table
from nrt_analysis.formats import markdown
from nrt_analysis.formats.page.texts import panels
from nrt_analysis.report.paper import paper
from nrt_analysis.report.paper_report import dynamics_figure, gather, tables
from nrt_analysis.report.run_cards import find_cards

from nrt_cli.config import resolve, to_yaml
from nrt_cli.config.study import StudyConfig, planned_runs
from nrt_cli.config.suite import ORDER
from nrt_cli.config.titles import TITLES
from nrt_cli.errors import StoreError
from nrt_cli.methods import FORMULAS
from nrt_cli.records import TraceRow
from nrt_cli.store import Run
from nrt_cli.store.evals import Evaluation, find_evaluations
from nrt_cli.store.judgements import Judgements
from nrt_cli.store.study import Outcome, Study

ENTROPY = {"entropy": 1.5, "trace_length": 30.0}


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., Run]:
    """Makes a run with a real config: `trained("am", seed=1, model="Llama-3.2-3B", gsm8k=0.5, ...)`."""

    def make(
        method: str = "am", seed: int = 0, model: str = "tiny", name: str = "", settings: Any = None, **scores: float
    ) -> Run:
        config = resolve({"method": method, "seed": seed, "model": {"path": f"models/{model}"}}, settings or {})
        prints = {"train": "data", "validation": "data", "model": model}
        manifest = {"method": method, "status": "finished", "steps": 2, "fingerprints": prints}
        run = Run.create(tmp_path / "runs" / (name or f"{model}-{method}-{seed}"), to_yaml(config), manifest)
        for step in (1, 2):
            run.append_metrics({"kind": "train", "step": step, **(ENTROPY if method != "sft" else {})})
        for benchmark, score in scores.items():
            scored(run, benchmark, score)
        return run

    return make


def scored(run: Run, benchmark: str, score: float, n: int = 400, limit: int | None = None, title: str = "") -> None:
    """An evaluation of a run's result, its error that of a share."""
    settings = {"benchmark": {"suite": {"name": benchmark, "instances": 400}}, "limit": limit, "backend": "lm-eval"}
    evaluation = Evaluation.create(run.path / "evals" / "export", benchmark, settings | {"model": run.path.name}, {})
    error = math.sqrt(score * (1 - score) / n)
    row = {"score": score, "error": error, "n": n, "title": title or benchmark, "truncated_share": 0}
    if benchmark in ORDER:  # Table 3 has OLMES's grades
        row |= {"score": score / 2, "strict_score": score / 2, "olmes_score": score, "olmes_error": error}
    evaluation.write_scores(row)


def rows(table: Table, *titles: str) -> list[Row]:
    """Rows by their first cell."""
    return [row for row in table.rows if row.cells[0].text in titles]


def cells_of(table: Table, title: str, *columns: str) -> list[Any]:
    (row,) = rows(table, title)
    names = [column.title for column in table.columns]
    return [row.cells[names.index(column)] for column in columns]


def named(found: Document | tuple[Table, ...]) -> dict[str, Table]:
    return {table.key: table for table in (found.tables if isinstance(found, Document) else found)}


def report(tmp_path: Path) -> dict[str, Table]:
    """The tables alone: figures take seconds to draw."""
    return named(tables(find_cards([tmp_path / "runs"])))


def test_table_3_has_the_papers_layout_and_marks_the_best_two_of_each_model(trained, tmp_path):
    for model, gsm8k in (("tiny", (0.10, 0.30, 0.20)), ("other", (0.90, 0.80, 0.70))):
        for method, score in zip(("sft", "am", "gm"), gsm8k, strict=True):
            trained(method, model=model, gsm8k=score)
    trained("logp", model="tiny", gsm8k=0.2)
    table = report(tmp_path)["table-3"]
    assert [*TITLES][:8] == [*paper()["methods"], "control"]
    theirs = {k: v.rstrip("*") for k, v in paper()["methods"].items()}
    assert {k: TITLES[k] for k in theirs if k not in ("p", "am")} == {
        k: v for k, v in theirs.items() if k not in ("p", "am")
    }
    names = ["Method", "BBH", "MMLU", "DROP", "PopQA", "TQA", "GSM8K", "MATH", "HEval", "IFEval", "Overall"]
    assert [column.title for column in table.columns] == names
    assert [column.group for column in table.columns[1:3]] == ["General Reasoning"] * 2
    assert [row.cells[0].text for row in table.rows][:7] == [TITLES[m] for m in paper()["methods"]]
    by_row = {(row.section, row.cells[0].text): row.cells[6] for row in table.rows}
    assert by_row["tiny", "RLPR (paper's version)"].text == "30.0"
    places = {key: cell.place for key, cell in by_row.items() if cell.text}
    assert places == {
        ("other", "SFT"): 1, ("other", "RLPR (paper's version)"): 2, ("other", "NRT-GM"): 0,
        ("tiny", "SFT"): 0, ("tiny", "JLB"): 2, ("tiny", "RLPR (paper's version)"): 1, ("tiny", "NRT-GM"): 2,
    }  # fmt: skip


def test_what_was_stored_before_olmes_grades_counts_as_it_is(trained, tmp_path):
    evals = trained("am", gsm8k=0.5).path / "evals" / "export"
    for evaluation in find_evaluations(evals):
        evaluation.write_scores({"score": 0.25, "error": 0.1, "n": 400, "title": "GSM8K"})
    (cell,) = cells_of(report(tmp_path)["table-3"], "RLPR (paper's version)", "GSM8K")
    assert (cell.text, cell.note) == ("25.0", "not graded as OLMES grades")


def test_what_was_not_run_is_an_empty_cell_with_a_reason(trained, tmp_path):
    trained("am", gsm8k=0.5)
    table = report(tmp_path)["table-3"]
    gsm8k, math_, overall = cells_of(table, "RLPR (paper's version)", "GSM8K", "MATH", "Overall")
    assert (gsm8k.text, gsm8k.place) == ("50.0", 0)  # a lone value is not the best of anything
    assert (math_.text, math_.reason) == ("", "not evaluated")
    assert overall.reason.startswith("missing: mmlu, bbh")
    assert math.isnan(overall.value)
    assert {cell.reason for cell in rows(table, "NRT-GM")[0].cells[1:]} == {"not run"}


def test_overall_is_the_mean_of_all_nine_and_seeds_are_averaged(trained, tmp_path):
    shares = dict(zip(ORDER, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), strict=True))
    trained("am", 0, **shares)
    trained("am", 1, **{name: share + 0.1 for name, share in shares.items()})
    table = report(tmp_path)["table-3"]
    mmlu, overall = cells_of(table, "RLPR (paper's version)", "MMLU", "Overall")
    assert (mmlu.text, overall.text) == ("15.0", "55.0")
    assert overall.low < 45  # two seeds, 10 points apart, say little
    assert rows(table, "RLPR (paper's version)")[0].cells[0].note == "seeds 0, 1"


def test_a_row_lists_the_seeds_whose_numbers_it_holds(trained, tmp_path):
    trained("am", 0, gsm8k=0.9)
    trained("am", 1)
    trained("gm", 0, gsm8k=0.5, math=0.5)
    trained("gm", 1, gsm8k=0.7)
    trained("p", 0)
    trained("p", 1)
    table = report(tmp_path)["table-3"]
    notes = [
        rows(table, title)[0].cells[0].note
        for title in ("RLPR (paper's version)", "NRT-GM", "VeriFree (paper's version)")
    ]
    assert notes == ["seed 0", "seeds 0, 1", ""]
    (alone,) = cells_of(table, "RLPR (paper's version)", "GSM8K")
    assert (alone.text, alone.note) == ("90.0", "seed 0 only")
    both, one = cells_of(table, "NRT-GM", "GSM8K", "MATH")
    assert (both.text, both.note) == ("60.0", "")
    assert one.note == "seed 0 only"


def test_the_settings_that_most_runs_share_are_chosen_and_others_named(trained, tmp_path):
    for method in ("sft", "am"):
        scored(trained(method), "gsm8k", 0.5)
    run = trained("gm")
    scored(run, "gsm8k", 0.75)
    scored(run, "gsm8k", 0.25, n=40, limit=40)  # newer
    alone = trained("p")
    scored(alone, "gsm8k", 0.9, n=40, limit=40)
    table = report(tmp_path)["table-3"]
    assert cells_of(table, "NRT-GM", "GSM8K")[0].text == "75.0"
    assert cells_of(table, "VeriFree (paper's version)", "GSM8K")[0].note == "40 of 400 documents"
    assert any("limit" in note and "do not compare" in note for note in table.notes)


def test_own_benchmarks_stand_beside_table_3(trained, tmp_path):
    scored(trained("am"), "sums", 0.5, title="Sums")
    contents = report(tmp_path)
    assert "began from tiny" in contents["table-3-paper"].reason  # a model that the paper has not
    assert "14 of 21 rows" in contents["table-3-overall"].caption
    (cell,) = cells_of(contents["table-3-own"], "RLPR (paper's version)", "Sums")
    assert cell.text.startswith("50.0 [45.")
    assert all(not cell.text for row in contents["table-3"].rows for cell in row.cells[1:])


def test_a_run_without_policy_gradient_is_not_called_by_the_papers_name(trained, tmp_path):
    off = {"objective": {"weights": {"trace": 0.0}}}
    trained("ws-neg-log-p", name="control", settings=off)
    trained("gm")
    trained("gm", name="hot", settings={"rollout": {"temperature": 0.5}})
    titles = [card.title for card in find_cards([tmp_path / "runs"])]
    assert titles == ["NRT-GM", "NRT-GM [rollout.temperature=0.5]", "Control: no policy gradient"]
    trained("am", name="other control", settings=off)
    titles = [card.title for card in find_cards([tmp_path / "runs"])]
    assert titles[2:] == ["Control: no policy gradient [method=am]", "Control: no policy gradient"]


def test_a_study_names_its_variants_its_base_and_what_is_missing(tmp_path):
    study = tmp_path / "laptop"
    values = {
        "title": "Small",
        "model": {"name": "nano", "source": "somewhere"},
        "data": {"sources": ["generated:sums?size=9"]},
        "methods": ["am", "gm", "control", "fast", "slow", "p"],
        "variants": {
            "control": {"method": "gm", "objective": {"weights": {"trace": 0}}},
            "fast": {"method": "gm", "optimiser": {"lr": 0.5}},
            "slow": {"title": "NRT-GM, slowly", "method": "gm", "optimiser": {"lr": 1e-6}},
        },
        "seeds": [0],
    }
    study.mkdir()
    (study / "study.yaml").write_text(json.dumps(values))  # JSON is YAML
    Study(study).record("gm-s0", Outcome("failed", "the disk was full"))
    for run in planned_runs(StudyConfig.model_validate(values), study):
        if run.method in ("am", "control", "fast"):
            Study(study).record(run.name, Outcome("finished"))
            manifest = {"method": run.config.method, "status": "finished", "fingerprints": {}}
            scored(Run.create(study / "runs" / run.name, to_yaml(run.config), manifest), "sums", 0.5)
    left = study / "analysis" / "score"
    left.mkdir(parents=True)
    answer = {"question": "1 + 1?", "answer": "2", "method": "gm", "traces": [{"trace": "z", "logprob": 0.0}]}
    (left / "question-1.json").write_text(json.dumps([answer | {"model": f"{m}-s0"} for m in ("control", "fast")]))
    base = Evaluation.create(study / "evals" / "base", "sums", {}, {})
    base.write_scores({"score": 0.1, "error": 0.01, "n": 400, "title": "Sums"})
    found = find_cards([study])
    by_key = named(tables(found))
    table = by_key["table-3-own"]
    assert {card.model for card in found} == {"nano"}
    said = {row.cells[0].text: row.cells[1].text or row.cells[1].reason for row in table.rows}
    rest = ["NRT-GM, slowly", "Control: no policy gradient", "fast: NRT-GM"]
    assert sorted(said) == sorted(["Base", "VeriFree (paper's version)", "RLPR (paper's version)", "NRT-GM", *rest])
    assert [row.cells[0].text for row in by_key["table-9"].rows] == rest[1:]
    assert gather([study]).title == "Small"
    assert said["Base"].startswith("10.0 [")
    assert said["NRT-GM"] == "failed: the disk was full"
    assert said["VeriFree (paper's version)"] == said["NRT-GM, slowly"] == "not run yet"
    assert said["fast: NRT-GM"].startswith("50.0 [")


def test_ours_theirs_and_the_difference(trained, tmp_path):
    trained("ws-neg-log-p", model="Llama-3.2-3B", **dict.fromkeys(ORDER, 0.5))
    table = report(tmp_path)["table-3-paper"]
    by_name = {row.cells[1].text: row.cells for row in table.rows}
    # BBH: 39.1 in the paper
    _, _, ours, theirs, apart = by_name["BBH"]
    assert (ours.value, theirs.value) == pytest.approx((50, 39.1))
    # of 6,511 documents: 1.96 sqrt(.391 .609 / 6511) = 1.185 points; with ours by Newcombe's rule
    assert (theirs.low, theirs.high) == pytest.approx((39.1 - 1.185, 39.1 + 1.185), abs=0.02)
    assert apart.text.startswith("+10.9 [+5.9, ")
    assert apart.low == pytest.approx(10.9 - math.hypot(50 - ours.low, theirs.high - 39.1))
    assert apart.high == pytest.approx(10.9 + math.hypot(ours.high - 50, 39.1 - theirs.low))
    # GSM8K's 49.3 is 148 of 300: Wilson's (148 + 1.92 +- 1.96 sqrt(148 152 / 300 + 0.96)) / 303.84
    assert by_name["GSM8K"][3].text == "49.3 [43.7, 55.0]"
    assert "PopQA, GSM8K, IFEval: about 300 documents each, ±5.7 points at 50 %" in table.notes[0]
    # 39.9 is printed; 39.1 + 48.5 + 26.1 + 20.7 + 44.2 + 49.3 + 13.1 + 58.8 + 44.3 = 344.1
    assert by_name["Overall, as printed"][4].value == pytest.approx(10.1)
    assert by_name["Overall, mean of its nine"][4].value == pytest.approx(50 - 344.1 / 9)


def test_gains_over_sft_are_of_the_benchmarks_that_all_rows_have(trained, tmp_path):
    trained("sft", gsm8k=0.4, math=0.2, bbh=0.9)
    trained("am", gsm8k=0.6, math=0.3)
    table = report(tmp_path)["table-3-gain"]
    ours, theirs = cells_of(table, "RLPR (paper's version)", "tiny", "Llama-3.1-8B-Base")
    assert ours.value == pytest.approx(15)  # (20 + 10) / 2
    assert ours.low < 15 < ours.high
    # 41.2 + 58.7 + 32.5 + 29.3 + 45.6 + 65.0 + 27.8 + 77.8 + 61.3 = 439.2, SFT's 389.5
    assert theirs.value == pytest.approx((439.2 - 389.5) / 9)
    assert theirs.low < theirs.value - 1 < theirs.value + 1 < theirs.high  # it is uncertain too
    assert "over gsm8k, math" in table.notes[0].lower()


def test_table_1_has_a_users_own_scheme_and_says_what_trained_the_answer(trained, tmp_path):
    trained("sft")
    trained("am", settings={"preset": "as-run"})
    fixed = "Preset as-run: the reference answer is trained with the signal 1 for every token, whatever the scheme."
    assert report(tmp_path)["table-1"].notes[1:] == (fixed,)
    trained("gm", settings={"preset": "paper"})
    assert report(tmp_path)["table-1"].notes[1:] == (
        f"RLPR (paper's version), seed 0: {fixed[0].lower()}{fixed[1:]}",
        "NRT-GM, seed 0: preset paper: the reference answer is trained with the last column's signals.",
    )
    trained("builtins:sum")
    trained("builtins:max").update_manifest(title="Max", formulas=asdict(FORMULAS["am"]))
    written = [[cell.text for cell in row.cells] for row in report(tmp_path)["table-1"].rows]
    assert written.count(["builtins:sum", *["its code"] * 3]) == 1
    am = FORMULAS["am"]
    assert written.count([am.name, am.aggregation.text, am.reward.text, am.signal.text]) == 2
    assert "Max" in [card.title for card in find_cards([tmp_path])]


def test_table_4_is_the_manifest_of_the_data_that_was_trained_on(trained, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    composition = [{"source": "mine", "train": 30}, {"source": "ai2-adapt-dev/oasst1_converted", "train": 70}]
    settings = {"data": {"train": str(data / "train.parquet")}}
    trained("am", settings=settings)
    (data / "manifest.json").write_text(json.dumps({"composition": composition, "outputs": {"train.parquet": "data"}}))
    table = report(tmp_path)["table-4"]
    texts = [[cell.text for cell in row.cells] for row in table.rows]
    assert texts == [
        ["ai2-adapt-dev/oasst1_converted", "70", "70.00%", "1,606", "0.78%", texts[0][5]],
        ["mine", "30", "30.00%", "", "", ""],
        ["TOTAL", "100", "100.00%", "204,800", "100.00%", ""],
    ]
    # 70 of 100 by Wilson with Student's quantile is 60.3 to 78.2; the paper's 0.784 % is next to certain
    apart = table.rows[0].cells[5]
    assert apart.value == pytest.approx(70 - 100 * 1606 / 204800)
    assert (apart.low, apart.high) == pytest.approx((60.3 - 0.8, 78.2 - 0.8), abs=0.2)
    assert apart.text.startswith("+69.22 [+59.")
    (data / "manifest.json").write_text(json.dumps({"composition": composition, "outputs": {"train.parquet": "newer"}}))
    assert not report(tmp_path)["table-4"].rows


def test_table_4_beside_a_draw_of_the_same_mixture(trained, tmp_path):
    """Two sources are exchanged and one is missing; the one whose name is cut short in print is found."""
    data = tmp_path / "data"
    data.mkdir()
    trained("am", settings={"data": {"train": str(data / "train.parquet")}})
    counts = dict(paper()["composition"])
    short = next(name for name in counts if name.endswith("..."))
    full = short.removesuffix("...") + "_decontaminated_50k"
    counts[full] = counts.pop(short)
    flan, chat = "ai2-adapt-dev/flan_v2_converted", "ai2-adapt-dev/tulu_v3.9_wildchat_100k"
    counts[flan], counts[chat] = counts[chat] - 3000, counts[flan] + 3040
    repeated = "ai2-adapt-dev/tulu_hard_coded_repeated_10"
    del counts[repeated]
    composition = [{"source": name, "train": count} for name, count in counts.items()]
    (data / "manifest.json").write_text(json.dumps({"composition": composition, "outputs": {"train.parquet": "data"}}))
    apart = {row.cells[0].text: row.cells[5] for row in report(tmp_path)["table-4"].rows}
    assert apart[full].text.startswith("+0.00 [-")
    assert apart[chat].value == pytest.approx(100 * (20010 + 3040 - 19378) / 204800)
    assert 0 < apart[chat].low < apart[chat].high
    assert apart[flan].high < 0
    assert apart[repeated].value == pytest.approx(-100 * 40 / 204800)
    assert report(tmp_path)["table-4"].rows[-1].cells[1].text == "204,800"


def test_table_5_measures_lengths(trained, tmp_path, row):
    run = trained("am")
    run.write_traces("step-000001", [TraceRow(**row(1, 0, 0, "z", answer_ids=[1] * 99))])
    run.write_traces("step-000002", [TraceRow(**row(2, e, 0, "z", answer_ids=[1] * n)) for e, n in ((0, 3), (1, 4))])
    trace, answer = cells_of(report(tmp_path)["table-5"], "RLPR (paper's version), seed 0", "Trace", "Answer y*")
    assert (trace.text, answer.text) == ("30.0", "3.5")


def test_table_6_is_the_configs_of_the_runs_that_a_setting_concerns(trained, tmp_path):
    trained("sft", settings={"rollout": {"group_size": 3}, "optimiser": {"lr": 2e-5}})
    trained("am", settings={"rollout": {"group_size": 4}})
    trained("gm", settings={"rollout": {"group_size": 8}})
    table = report(tmp_path)["table-6"]
    (value, theirs) = cells_of(table, "Generations per Prompt (N)", "Value", "In the paper")
    assert (value.text, theirs.text) == ("4 (RLPR (paper's version), seed 0); 8 (NRT-GM, seed 0)", "8")
    (rate,) = cells_of(table, "Learning Rate", "Value")
    assert (rate.text, rate.note) == ("2e-05 (SFT, seed 0); 1e-05 (RLPR (paper's version), seed 0, NRT-GM, seed 0)", "")
    (cap,) = cells_of(table, "PPO Clip Ratio (High)", "Value")
    assert (cap.text, cap.note) == ("0.28", "")


def test_table_8_is_what_the_judge_was_asked(trained, tmp_path):
    run = trained("am")
    assert "nrt judge" in report(tmp_path)["table-8"].reason
    record = {"key": "k", "judge": "grok", "template": "abc", "temperature": 0.0, "step": 2, "example": 0, "score": 0.5}
    with Judgements(run).writing():
        Judgements(run).keep_template("abc", "prompt: |\n  Grade this.\n\n  {{ reasoning }}\nrepair: Again.\n")
        Judgements(run).append(record)
    contents = report(tmp_path)
    found = [(row.cells[0].text, row.cells[1].text) for row in contents["table-8"].rows]
    assert found == [("prompt", "Grade this."), ("", "{{ reasoning }}"), ("repair", "Again.")]
    assert "grok, temperature 0" in contents["table-8"].rows[0].section
    with Judgements(run).writing():
        Judgements(run).keep_template("def", "Grade {reasoning}:\n\n- now\n", ".txt")
        Judgements(run).append(record | {"template": "def", "template_name": "mine.txt"})
    *_, first, last = report(tmp_path)["table-8"].rows
    assert first.section.startswith("template mine.txt (def): grok")
    texts = [(row.cells[0].text, row.cells[1].text) for row in (first, last)]
    assert texts == [("prompt", "Grade {reasoning}:"), ("", "- now")]


def test_table_9_is_what_nrt_score_printed(trained, tmp_path):
    folder = trained("am").path / "analysis" / "score"
    folder.mkdir(parents=True)
    asked = {"question": "When?", "answer": "1852"}
    logprobs = [math.log(0.8), math.log(0.625)]  # 1852, eos: 0.8 * 0.625 = 0.5
    traces = [{"trace": "Braille.", "logprob": math.log(0.5), "logprobs": logprobs}, {"trace": "?", "logprob": 0.0}]
    direct = {"direct": {"logprob": -2000.0}}
    sft, gm = {"model": "sft", "method": "sft"} | direct, {"model": "x", "method": "gm", "traces": traces}
    records = [asked | sft, asked | gm]
    (folder / "braille.json").write_text(json.dumps(records))
    (folder / "other.json").write_text('{"not": "ours"}')
    found = [[cell.text for cell in row.cells] for row in report(tmp_path)["table-9"].rows]
    # 10^(-2000 / log 10) = 10^-868.589 = 2.58e-869
    assert found == [["SFT", "", "2.58e-869", ""], ["NRT-GM", "Braille.", "0.5000", "0.8000"]]


def test_tables_9_and_10_have_whole_texts_in_rows_of_some_lines(trained, tmp_path):
    folder = trained("am").path / "analysis"
    thought = "\n\n".join(" ".join(f"word{i}-{j}" for j in range(300)) for i in range(3)) + "x" * 4000
    record = {"question": "Q?", "answer": "A", "model": "x", "method": "gm"}
    left = {"score/q.json": [record | {"traces": [{"trace": thought, "logprob": -1.0, "logprobs": [-0.5, -0.5]}]}]}
    cases = [
        {"question": "Q?", "run": "sft", "trace": None, "answer": "Hi.", "cut": ""},
        {"question": "Q?", "run": "am", "trace": thought, "answer": thought, "cut": "trace, answer"},
    ]
    left["cases/cases.json"] = {"tables": {"cases": cases}}
    for name, content in left.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(json.dumps(content))
    found = report(tmp_path)
    nine, ten = ([[cell.text for cell in row.cells] for row in found[key].rows] for key in ("table-9", "table-10"))
    assert "".join("".join(row[1].split()) for row in nine) == "".join(thought.split())
    assert max(len(row[1]) for row in nine) <= 1500
    assert (nine[0][2:], nine[1][2:]) == (["0.3679", "0.6065"], ["", ""])
    assert ten[:2] == [["SFT", "reasoning", ""], ["SFT", "answer", "Hi."]]
    assert {what for _, what, _ in ten[2:]} == {"reasoning, cut at the cap", "answer, cut at the cap", ""}
    squeezed = "".join(thought.split())
    assert "".join("".join(text.split()) for _, _, text in ten[2:]) == squeezed * 2


def test_table_10_is_the_first_held_out_traces_that_runs_share(trained, tmp_path, row):
    for method, text in (("am", "short"), ("gm", "long thought")):
        run = trained(method)
        run.write_traces("held-out-000002", [TraceRow(**row(2, e, 0, f"{text} {e}")) for e in range(4)])
    table = report(tmp_path)["table-10"]
    first = [[cell.text for cell in r.cells] for r in table.rows if r.section == "tiny: Question 0?"]
    assert first == [
        ["reference", "answer", "answer 0"],
        ["RLPR (paper's version)", "reasoning", "short 0"],
        ["NRT-GM", "reasoning", "long thought 0"],
    ]
    assert len(table.rows) == 9


def test_figure_2_has_the_steps_of_every_run_that_thinks(trained, tmp_path):
    trained("sft")
    trained("am", 0)
    trained("am", 1)
    run = trained("gm")
    with Judgements(run).writing():
        Judgements(run).append({"key": "k", "judge": "j", "template": "t", "step": 2, "example": 0, "score": 0.5})
    figure = dynamics_figure(find_cards([tmp_path / "runs"]))
    assert "quality: j asked with t" in figure.notes
    frame = figure.numbers["steps"]
    assert list(frame["seed"]) == [0, 0, 1, 1, 0, 0]
    assert list(frame["trace_length"]) == [30.0] * 6
    assert list(figure.numbers["quality"]["quality"]) == [0.5]
    assert set(figure.files) == {"png", "pdf", "svg"}


def test_quality_asked_with_two_templates_is_two_panels_that_name_them(trained, tmp_path):
    run = trained("am")
    record = {"key": "k", "judge": "j", "step": 2, "example": 0}
    with Judgements(run).writing():
        Judgements(run).append(record | {"template": "abc", "template_name": "judge/trace-quality", "score": 0.2})
        Judgements(run).append(record | {"template": "def", "template_name": "$ta_ble$ 8.txt", "score": 0.9})
        Judgements(run).append(record | {"template": "def", "template_name": "$ta_ble$ 8.txt", "score": 0.7})
    figure = dynamics_figure(find_cards([tmp_path / "runs"]))
    quality = figure.numbers["quality"].set_index("asked")["quality"].to_dict()
    # Not their mean; judged again with the same template, the last counts.
    ours, theirs = "j asked with judge/trace-quality (abc)", "j asked with $ta_ble$ 8.txt (def)"
    assert quality == {ours: 0.2, theirs: 0.7}
    assert {f"quality: {ours}", f"quality: {theirs}"} <= set(figure.notes)
    words = "".join(re.findall(r"<!-- (.*?) -->", figure.files["svg"].decode()))
    assert "judge/trace-quality (abc)" in words.replace("\n", " ")


def test_what_cannot_be_drawn_says_why_and_a_report_of_nothing_is_an_error(trained, tmp_path):
    with pytest.raises(StoreError, match="no such study or run"):
        gather([tmp_path / "runs"])
    (tmp_path / "runs").mkdir()
    with pytest.raises(StoreError, match="no runs are there"):
        gather([tmp_path / "runs"])
    trained("sft")
    two, three, four, xray = gather([tmp_path / "runs"]).figures
    assert not two.files
    assert "sampled traces" in two.reason
    assert "nrt analyze tokens" in three.reason
    assert "samples traces" in four.reason
    assert "nrt analyze xray" in xray.reason


def test_models_of_one_name_are_two_groups(trained, tmp_path):
    trained("am", name="one", model="same")
    run = trained("am", name="two", model="same")
    run.update_manifest(fingerprints={"model": "0123456789", "train": "data"})
    assert {card.model for card in find_cards([tmp_path / "runs"])} == {"same (same)", "same (01234567)"}


def test_a_store_that_was_moved_gives_the_same_report(trained, tmp_path):
    run = trained("am", gsm8k=0.5, math=0.25)
    trained("gm", gsm8k=0.25)
    assert len(find_cards([run.path, tmp_path / "runs"])) == 2  # a run named twice counts once
    before = report(tmp_path)
    shutil.move(tmp_path / "runs", tmp_path / "moved")
    after = named(tables(find_cards([tmp_path / "moved"])))
    assert repr(after) == repr(before)  # NaN is not equal to itself


def test_what_training_data_asks_too_stands_beside_every_held_out_figure(trained, tmp_path):
    asked: dict[str, Any] = {"shared_with_validation": 2, "validation_questions": 64}
    asked |= {"shared_with_benchmarks": {"gsm8k": 3}, "benchmark_documents": {"gsm8k": 1319}}
    sentence = "In the training data too: 2 of 64 held-out questions; documents of benchmarks: gsm8k 3 of 1,319."
    runs = [trained("sft", gsm8k=0.4), trained("am", gsm8k=0.5)]
    for run in runs:
        run.append_metrics({"kind": "held_out", "step": 2, "examples": 32, "answer_logprob": -3.0})
    for table in tables(find_cards([tmp_path])):  # runs of an earlier version did not compare
        assert not any("In the training data too" in note for note in table.notes)
    runs[0].update_manifest(data=asked)
    (said,) = [n for n in named(gather([tmp_path]))["table-3"].notes if "In the training data too" in n]
    assert said == f"SFT, seed 0: {sentence}"
    runs[1].update_manifest(data=asked)
    contents = gather([tmp_path])
    for key in ("table-3", "table-3-gain"):
        assert sentence in named(contents)[key].notes
    assert any(note.startswith("2 of 64 held-out questions are in the training data") for note in contents.notes)
    (panel,) = [panel for panel in panels(contents) if panel.title == "Held-out log P(y*)"]
    assert sentence in panel.verdicts
    assert sentence in markdown.render(contents)["report.md"].decode()


@pytest.fixture
def asked(tmp_path, row):
    """Makes a run with four held-out pairs, before and after its steps: `asked("am", 0, (1, 1, 1, 0))`."""

    def made(method: str, seed: int, after: tuple[int, ...], status: str = "finished", at: int = 4) -> Path:
        manifest = {"method": method, "status": status, "steps": 4, "fingerprints": {"train": "d", "validation": "d"}}
        run = Run.create(tmp_path / f"{method}-s{seed}", f"method: {method}\nseed: {seed}\n", manifest)
        kinds = ("direct",) if method == "sft" else ("thinking", "direct")
        for step, scores in {0: (0, 1, 0, 0), at: after}.items():
            rows = [
                row(step, i, 0, "z", answer_logprobs=[-1.0, -float(step)], null_logprobs=[-9.0])
                | {f"{kind}_score": float(score) for kind in kinds}
                for i, score in enumerate(scores)
            ]
            name = "direct" if method == "sft" else "held-out"
            run.write_traces(f"{name}-{step:06d}", [TraceRow(**each) for each in rows])
            run.append_metrics({"kind": "held_out", "step": step, "answer_logprob": -1.0 - step, "examples": 4})
        if at:
            run.append_metrics({"kind": "train", "step": at, "entropy": 1.0})
        return run.path

    return made


def test_models_stand_beside_each_other_and_the_one_they_began_from(asked):
    one = asked("am", 0, (1, 1, 1, 0))
    assert "held-out-models" not in named(gather([one]))  # its own table says all
    table = named(gather([one, asked("am", 1, (1, 1, 1, 1)), asked("sft", 0, (0, 0, 0, 0))]))["held-out-models"]
    columns = [f"{column.group} {column.title}".strip() for column in table.columns]
    found = {(r.cells[0].text, r.cells[1].text): dict(zip(columns, r.cells, strict=True)) for r in table.rows}
    assert list(found) == [
        ("untrained", ""),
        ("SFT", "0"),
        ("RLPR (paper's version)", "0"),
        ("RLPR (paper's version)", "1"),
        ("RLPR (paper's version)", "mean"),
    ]
    thinking = [cells["Accuracy thinking"] for cells in found.values()]
    assert [cell.value for cell in thinking if cell.text] == [25.0, 75.0, 100.0, 87.5]
    assert found["SFT", "0"]["Accuracy thinking"].reason == "this model answers directly"
    assert [cells["Accuracy direct"].value for cells in found.values()] == [25.0, 0.0, 75.0, 100.0, 87.5]
    # Log P is of unlike things: SFT's follows the prompt, the others' a trace.
    direct = [cells["log P(y*) direct"].text.partition(" ")[0] for cells in found.values()]
    assert direct == ["-1.00", "-5.00", "", "", ""]
    assert [cells["log P(y*) sampled trace"].value for cells in found.values()][2:] == [-5.0] * 3
    assert found["RLPR (paper's version)", "mean"]["log P(y*) sampled trace"].text == "-5.00"


def test_the_last_record_of_a_run_that_is_not_finished_is_no_result(asked, tmp_path):
    asked("sft", 0, (1, 1, 1, 0))
    asked("sft", 1, (1, 0, 1, 0))
    asked("sft", 2, (0, 1, 0, 0), "interrupted", at=0)  # an untrained model's 25 %
    asked("am", 0, (1, 1, 1, 1), "failed", at=3)
    asked("am", 1, (1, 0, 1, 1), "failed", at=2)
    found = gather([tmp_path])
    tables = named(found)
    compared = tables["held-out-models"]
    accuracy = [c.title for c in compared.columns].index("direct")
    values = {(row.cells[0].text, row.cells[1].text): row.cells[accuracy].value for row in compared.rows}
    # Of SFT (75 + 50) / 2, without the 25; of RLPR, none of whose runs is finished, the one that came farthest.
    assert values == {
        ("untrained", ""): 25.0, ("SFT", "0"): 75.0, ("SFT", "1"): 50.0, ("SFT", "mean"): 62.5,
        ("RLPR (paper's version), unfinished: after step 3", "0"): 100.0,
    }  # fmt: skip
    notes = (
        "SFT, seed 2 is interrupted after step 0 of 4: left out.",
        "RLPR (paper's version), seed 0 is failed after step 3 of 4: its row, marked unfinished, has what there is.",
        "RLPR (paper's version), seed 1 is failed after step 2 of 4: left out.",
    )
    for key in ("table-3", "table-3-gain", "table-3-paper", "table-5", "held-out", "held-out-models"):
        assert [note for note in tables[key].notes if " of 4" in note] == list(notes)
    sections = [section for section, _ in tables["held-out"].sections()]
    assert sections == ["SFT, seed 0", "SFT, seed 1", "RLPR (paper's version), seed 0, unfinished: after step 3"]
    assert [row.cells[0].note for row in tables["table-5"].rows] == ["unfinished"]
    (accuracies,) = [panel for panel in panels(found) if panel.title == "Held-out accuracy"]
    direct = {dot.label: dot for dot in accuracies.dots if dot.section == "direct"}
    assert (direct["SFT"].after, direct["SFT"].value) == ((75.0, 50.0), 62.5)
    assert direct["RLPR (paper's version)"].text.endswith("100.0 [51.0, 100.0], unfinished")


def test_the_scores_of_a_run_that_is_not_finished_are_no_result(trained, tmp_path):
    for seed, sums in enumerate((0.5, 0.7, 0.1)):
        trained("sft", seed, gsm8k=sums).update_manifest(status="interrupted" if seed == 2 else "finished")
    trained("am", 0, gsm8k=0.9).update_manifest(status="failed")
    found = report(tmp_path)
    (sft,) = cells_of(found["table-3"], "SFT", "GSM8K")
    (rlpr,) = cells_of(found["table-3"], "RLPR (paper's version)", "GSM8K")
    assert (sft.text, sft.seeds, rlpr.text) == ("60.0", (50.0, 70.0), "90.0")
    assert [rows(found["table-3"], title)[0].cells[0].note for title in ("SFT", "RLPR (paper's version)")] == [
        "seeds 0, 1",
        "unfinished",
    ]
    gain = rows(found["table-3-gain"], "RLPR (paper's version)")[0].cells[1]
    assert (round(gain.value, 6), gain.text.endswith("], unfinished")) == (30.0, True)
