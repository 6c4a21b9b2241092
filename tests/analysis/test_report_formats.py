"""Reports as files: hostile text is shown and does nothing, the same store gives the same bytes, LaTeX compiles."""

import csv
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from nrt_analysis.document import Cell, Column, Document, Figure, Made, Row, Table
from nrt_analysis.formats import latex, markdown, pdf, spreadsheets
from typer.testing import CliRunner

from nrt_cli.cli import app
from nrt_cli.errors import ConfigError, StoreError
from nrt_cli.untrusted import visible

HOSTILE = [
    r"\input{/etc/passwd} $\frac{1}{0}$ 100% a_b^c ~ # & \end{document} \write18{id} ^^5cinput ]{",
    "<script>alert(1)</script><img src=x onerror=alert(2)> &lt;b&gt; <!-- --> javascript:alert(3)",
    "![x](http://example.org/leak.png) [y](http://example.org) **b** _i_ `c` | d | <u> http://example.org",
    "| a | b |\n|---|---|\n# heading\n- item\n> quote\n```\ncode",
    "=cmd|' /C calc'!A0",
    "+1+1",
    "@SUM(1)",
    "\t=1",
    "\x1b[31mred\x1b[2J \x07 \x00 \u202eright to left\u2028line",
    "中文 😀 é ő π ≤ „quoted“ -- --- ,, << >> `` ''",
    "[bold]rich[/bold]",
]


@pytest.fixture
def contents() -> Document:
    """Every place that text can come to, filled with all of it."""
    rows = tuple(
        Row((Cell(text), Cell("1.5", 1.5, 1.0, 2.0, place=1), Cell(reason=text), Cell(text, note=text)), section=text)
        for text in HOSTILE
    )
    hostile, wraps = Column(HOSTILE[0], "Group"), Column("Long", kind="long")
    columns = (Column("Text"), Column("Number", "Group", "number"), hostile, wraps)
    long = Table("table-10", "Table 10", HOSTILE[2], columns, rows, notes=tuple(HOSTILE))
    formula = Row((Cell("Σ c", math=r"\sum_j c_j"), Cell("-0.5", -0.5, place=2)))
    two, eight = (Column("f", math="f(c)"), Column("n", "", "number")), (Row((Cell("a"),) * 8),)
    short = Table("table-1", "Table 1", "x", two, (formula,), notes=("=1",))
    wide = Table("table-3", "Table 3", "x", tuple(Column(str(i), "AABBBCCD"[i]) for i in range(8)), eight)
    empty = Table("table-8", "Table 8", "x", columns, reason=HOSTILE[0])
    numbers = {"words": pd.DataFrame({"word": HOSTILE, "n": 1.5})}
    bare = Figure("figure-2", "Figure 2", HOSTILE[0], reason=HOSTILE[1])
    figures = (bare, Figure("figure-4", "Figure 4", "x", numbers=numbers))
    made = Made("0", "2026-01-01T00:00:00Z")
    return Document(HOSTILE[0], made, (), (short, wide, empty, long), figures, tuple(HOSTILE))


def test_markdown_has_no_markup_but_ours(contents):
    text = markdown.render(contents)["report.md"].decode()
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    inner = [child for token in tokens for child in token.children or []]
    assert {token.type for token in inner} <= {
        "text", "softbreak", "strong_open", "strong_close", "em_open", "em_close", "html_inline", "text_special",
    }  # fmt: skip
    assert {token.content for token in inner if token.type == "html_inline"} <= {"<br>", "<u>", "</u>"}
    assert not {"fence", "code_block", "html_block", "blockquote_open"} & {token.type for token in tokens}
    # Every row has as many cells as its heading.
    tables = [token.type for token in tokens if token.type in ("table_open", "tr_open", "th_open", "td_open")]
    assert tables.count("td_open") == 2 + 8 + 4 * 2 * len(HOSTILE)
    shown = "".join(token.content for token in inner if token.type in ("text", "text_special"))
    assert "<script>alert(1)</script>" in shown
    assert "![x](http://example.org/leak.png)" in shown


@given(st.text(max_size=60))
def test_any_text_is_shown_as_it_is_in_a_markdown_cell(text):
    table = Table("table-1", "T", "c", (Column("a"), Column("b")), (Row((Cell(f"x{text}x"), Cell("end"))),))
    made = Document("t", Made("0", ""), (), (table,), (), ())
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(markdown.render(made)["report.md"].decode())
    cells = [tokens[i + 1] for i, token in enumerate(tokens) if token.type == "td_open"]
    assert len(cells) == 2
    said = "".join("\n" if child.content == "<br>" else child.content for child in cells[0].children)
    assert re.sub(r"\s+", " ", said) == re.sub(r"\s+", " ", visible(f"x{text}x"))


def test_no_cell_of_a_spreadsheet_is_a_formula(contents):
    files = spreadsheets.render(contents)
    assert set(files) == {f"tables/table-{i}.csv" for i in (1, 3, 8, 10)} | {"figures/figure-4-words.csv"}
    for content in files.values():
        for row in csv.reader(io.StringIO(content.decode())):
            for cell in row:
                assert not cell.startswith(("=", "+", "@", "\t")), cell
                assert "\x1b" not in cell
    (_, first, *_) = csv.DictReader(io.StringIO(files["tables/table-10.csv"].decode()))
    assert (first["Group: Number"], first["Group: Number low"], first["Text"]) == ("1.5", "1.0", HOSTILE[1])
    assert next(csv.DictReader(io.StringIO(files["tables/table-1.csv"].decode())))["n"] == "-0.5"


def test_marks_go_on_after_z():
    rows = tuple(Row((Cell(reason=str(i)),)) for i in range(54))
    letters = list(Table("t", "t", "t", (Column("c"),), rows).marks.values())
    assert (letters[0], letters[25], letters[26], letters[52]) == ("a", "z", "aa", "ba")


def test_latex_escapes_all_that_it_would_interpret(contents):
    pytest.importorskip("pylatexenc")
    files = latex.render(contents)
    text = b"".join(files.values()).decode()
    ours = re.sub(r"\\input\{tables/table-\d+\}", "", text)
    assert "\\input" not in ours
    assert "\\write" not in ours
    assert text.count("\\end{document}") == 1
    assert r"\sum_j c_j" in text
    assert all(ord(c) < 128 for c in text)
    assert re.search(r"U\+4E2D", text)
    # Math only where it is ours.
    assert re.sub(r"\\\$|\{\\\$\}", "", text).count("$") == 4


@pytest.mark.slow
def test_latex_compiles_whatever_the_text(contents, tmp_path):
    pytest.importorskip("pylatexenc")
    if not shutil.which("pdflatex"):
        pytest.skip("no pdflatex here: apt-get install texlive-latex-recommended")
    contents = replace(contents, figures=contents.figures[:1])
    for name, content in latex.render(contents).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-recorder", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-3000:]
    read = (tmp_path / "paper.fls").read_text()
    assert "passwd" not in read
    assert "Misplaced" not in done.stdout


def test_a_pdf_takes_texts_that_are_higher_than_a_page(contents):
    pytest.importorskip("fpdf")
    tall = "\n".join("line") * 300
    rows = (Row((Cell(tall), Cell("1", 1.0), Cell("x" * 5000), Cell(tall)), section=tall), *contents.tables[-1].rows)
    made = replace(contents, tables=(replace(contents.tables[-1], rows=rows),), figures=())
    text = pdf.render(made)["report.pdf"]
    assert text == pdf.render(made)["report.pdf"]
    assert text.startswith(b"%PDF-")
    assert text.count(b"/Type /Page\n") > 1


@pytest.fixture
def runs(make_run, row) -> Path:
    """Two runs whose traces are hostile."""
    for name, method in (("a", "am"), ("b", "gm")):
        traces = [row(1, e, 0, text, question=f"{e}: {text}") for e, text in enumerate(HOSTILE)]
        run = make_run(f"runs/{name}", method, [{}], {"held-out-000001": traces, "step-000001": traces})
    return run.path.parent


PACKAGES = {"latex": "pylatexenc", "pdf": "fpdf"}


def digests(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_same_store_gives_the_same_bytes(runs, typed, tmp_path):
    formats = ["md", "csv", *(name for name, package in PACKAGES.items() if find_spec(package))]
    asked = ("report", runs, "--format", ",".join(formats))
    shown = typed(*asked, "--out", tmp_path / "one")
    record = json.loads(typed(*asked, "--out", tmp_path / "two", "--json"))
    assert "\x1b" not in shown
    assert "Every row is one seed" in shown
    assert "Written:" in shown
    one = digests(tmp_path / "one")
    assert one == digests(tmp_path / "two")
    assert {"report.md", "tables/table-3.csv", "tables/table-10.csv", "figures/figure-2.svg"} <= set(one)
    assert b"&lt;script&gt;" in one["report.md"]
    assert one.get("report.pdf", b"%PDF").startswith(b"%PDF")
    assert {f"table-{i}" for i in range(1, 11)} <= set(record["tables"])
    (first, *_) = record["tables"]["table-3"]["rows"]
    assert first["cells"]["Overall"] == {"text": "", "reason": "not run"}
    assert record["files"][0] == str(tmp_path / "two" / "report.md")


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (["--format", "htm"], ConfigError, "did you mean 'html'"),
        (["--format", ","], ConfigError, "no format is named"),
        (["nowhere", "--format", "md"], StoreError, "nowhere: no such study or run folder"),
    ],
)
def test_refusals_say_what_to_do(arguments, error, says, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=re.escape(says)):
        CliRunner().invoke(app, ["report", *arguments], catch_exceptions=False)
    assert not list(tmp_path.iterdir())
