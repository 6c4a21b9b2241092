"""What a stranger wrote acts on no terminal, page or spreadsheet."""

import csv
import io
import math

import pytest

from nrt_cli.untrusted import csv_bytes, visible


@pytest.mark.parametrize(
    "formula",
    [
        "=1+1",
        "+1+1",
        "-1+cmd|' /C calc'!A0",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "\n=1",
        " =1",
        "\u3000=1",
        "\uff1d1",
        "\uff0b1",
    ],
)
def test_no_text_begins_a_formula(formula: str) -> None:
    rows = list(csv.reader(io.StringIO(csv_bytes(["a", formula], [[formula, "b"]]).decode(), newline="")))
    assert rows == [["a", f"'{visible(formula)}"], [f"'{visible(formula)}", "b"]]


def test_numbers_keep_every_digit_and_texts_their_line_ends() -> None:
    made = csv_bytes(["x"], [[-1 / 3], [math.nan], [None], [-2], ['a, "b"\nc'], ["-"]]).decode()
    assert made == 'x\n-0.3333333333333333\nNaN\nNaN\n-2\n"a, ""b""\nc"\n\'-\n'


def test_what_would_act_is_written_out() -> None:
    assert visible("a\x07\x1b[2J\r\u202eb\u2066\u200f\ud800\n\tc") == (
        r"a\x07\x1b[2J\x0d\x202eb\x2066\x200f\xd800" + "\n c"
    )
