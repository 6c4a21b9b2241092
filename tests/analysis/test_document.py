"""Reports: files, JSON, and figures whose bytes depend on their numbers alone."""

import csv
import hashlib
import io
import json
import math
from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb
from nrt_analysis import formats
from nrt_analysis.document import section, shown
from nrt_analysis.figures import COLUMN, DPI, draws, font_for, line_style, new_figure, render
from nrt_analysis.formats.spreadsheets import to_csv

FRAME = pd.DataFrame({"run": ["a|b", "<i>\n"], "value": [1 / 3, math.nan], "n": [2, 3]})


def test_values_are_shown_short_and_a_csv_keeps_every_digit():
    rows = list(csv.DictReader(io.StringIO(to_csv(FRAME).decode())))
    assert float(rows[0]["value"]) == 1 / 3
    assert rows[1]["value"] == "NaN"
    assert rows[1]["run"] == "<i>\n"

    assert [shown(v) for v in (0.5, math.nan, None, 12345.678, 7, "x")] == ["0.5", "-", "-", "1.235e+04", "7", "x"]


def test_a_section_as_files_and_json(tmp_path):
    report = section("things", {"summary": FRAME, "things": FRAME}, {}, ["said"])
    files = formats.render(report, ("csv", "md"))
    assert set(files) == {"things-summary.csv", "things.csv", "things.json", "things.md"}
    record = json.loads(files["things.json"])
    others = {
        name: hashlib.sha256(files[name]).hexdigest() for name in ("things-summary.csv", "things.csv", "things.md")
    }
    assert record.pop("files") == others
    assert len(record.pop("checksum")) == 64
    assert record == report.record()
    assert record["tables"]["summary"][1] == {"run": "<i>\n", "value": None, "n": 3}
    lines = files["things.md"].decode().splitlines()
    assert {"# things", "- said", "## things: summary", "| run | value | n |"} <= set(lines)
    assert "| a\\|b | 0.3333 | 2 |" in lines
    assert "| &lt;i&gt;<br> | - | 3 |" in lines  # text cannot break the table
    folder = tmp_path / "deep" / "er"
    paths = formats.write(report, folder, ("csv", "md"))
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in paths)
    assert paths[0].read_bytes() == files[paths[0].name]
    # Written again, with figures: other files are left alone, and what is new replaces what was.
    (folder / "mine.txt").write_text("kept")
    drawings = {name: new_figure(1, 1, COLUMN, 2.5)[0] for name in ("things", "more")}
    formats.write(section("things", {"summary": FRAME}, drawings, ["more"]), folder, ("csv", "md", "html"))
    assert {"mine.txt", "things.png", "things-more.svg", "things-more.pdf"} <= {p.name for p in folder.iterdir()}
    assert (folder / "things.md").read_bytes().count(b"![") == 2


def drawn(height: float) -> dict[str, bytes]:
    figure, axes = new_figure(1, 1, COLUMN, 2.5)
    axes[0, 0].plot([0, 1], [0, height])
    return render(figure)


def test_figures_are_their_numbers_and_leave_no_trace_in_matplotlibs_settings():
    before = dict(mpl.rcParams)
    first, again, other = drawn(1.0), drawn(1.0), drawn(2.0)
    assert dict(mpl.rcParams) == before
    assert first == again
    assert first["png"] != other["png"]
    assert first["png"].startswith(b"\x89PNG")
    assert first["pdf"].startswith(b"%PDF")
    # Bytes 16 to 20 of a PNG are its width: a column at the resolution of print.
    assert int.from_bytes(first["png"][16:20], "big") == int(COLUMN * DPI)


def test_lines_differ_in_grey_and_in_dash():
    styles = [line_style(i) for i in range(4)]
    greys = [float(np.dot(to_rgb(s["color"]), (0.299, 0.587, 0.114))) for s in styles]
    neighbours = [abs(a - b) for a, b in pairwise(greys)]
    assert min(neighbours) > 0.15
    assert len({str(s["linestyle"]) for s in styles}) == 4


def test_fonts_are_chosen_by_what_they_draw():
    font = font_for(["word", "слово", "λέξη"])
    assert all(draws(font, text) for text in ("word", "слово", "λέξη"))
    assert not draws(font, "\U000f0000")  # private use: nobody draws it
