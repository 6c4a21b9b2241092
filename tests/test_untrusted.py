"""What a stranger wrote acts on no terminal, page or spreadsheet."""

import csv
import io
import json
import math
import random
from pathlib import Path
from typing import Any

import fuzz
import pyarrow.parquet as pq
import pytest
import yaml

from nrt_cli.config import dump_yaml, find_config, load, load_yaml, read_yaml
from nrt_cli.config.study import load_study
from nrt_cli.config.suite import select
from nrt_cli.data.prepare import Settings, prepare
from nrt_cli.errors import ConfigError, NrtError
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


ACTS = "a\x07b\u202egpj.\x1b[31mred\u200f"


@pytest.mark.parametrize(
    "words",
    [
        (f"x{ACTS}",),
        ("train", f"--{ACTS}"),
        ("train", "--steps", ACTS),
        ("config", "show", ACTS),
        ("config", "show", "laptop", "--set", f"method={ACTS}"),
        ("config", "show", "laptop", "--set", f"model.path={json.dumps(ACTS)}"),
        ("config", "diff", "laptop", ACTS),
        ("config", "explain", ACTS),
        ("help", ACTS),
        ("runs", "list", ACTS),
        ("train", "laptop", "--run", ACTS, "--model", "digits", "--dry-run"),
        ("reproduce", "laptop", "--dry-run", "--set", f"title={json.dumps(ACTS)}"),
        ("data", "prepare", ACTS, "--out", "made"),
    ],
    ids=str,
)
def test_nothing_that_acts_reaches_the_terminal(words: tuple[str, ...], nrt: Any) -> None:
    ended = nrt(*words)
    assert "Traceback" not in ended.err
    assert (ended.out + ended.err).replace("\n", "").isprintable()


@pytest.mark.parametrize("name", ["../../escape", "x" * 256, ACTS, "a/b", ".", "..", "", "-x", "a\nb"])
@pytest.mark.parametrize(
    "place", ["methods: [{}]", "later: [{}]", "variants: {{{}: {{method: am}}}}", "model: {{name: {}}}"]
)
def test_no_name_in_a_study_leads_out_of_its_folder(place: str, name: str, tmp_path: Path) -> None:
    key, values = next(iter(yaml.safe_load(place.format(json.dumps(name))).items()))
    study = read_yaml(find_config("study/laptop"))
    study[key] = study[key] | values if isinstance(values, dict) and key in study else values
    (tmp_path / "mine.yaml").write_text(dump_yaml(study))
    with pytest.raises(ConfigError, match="it names a folder, so write"):
        load_study(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("values", "read"),
    [(fuzz.CONFIG, load), (fuzz.STUDY, load_study), (fuzz.BENCHMARK, lambda name: select((name,)))],
    ids=["config", "study", "benchmark"],
)
def test_a_file_with_anything_in_it_is_read_or_refused(values: Any, read: Any, seed: int, tmp_path: Path) -> None:
    chance, refused = random.Random(seed), []
    for _ in range(40):
        file = tmp_path / "mutant.yaml"
        file.write_text(fuzz.mutated(values, chance))
        try:
            read(str(file))
        except NrtError as error:
            refused.append(str(error))
    assert len(refused) > 20
    assert not [told for told in refused if "\n" in told]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (fuzz.LAUGHS, "more than 100,000 values, its aliases written out"),
        ("&a [*a]", "more than 100,000 values"),
        ("a: &a {b: *a}", "more than 100,000 values"),
        ("[" * 10_000 + "]" * 10_000, "nested too deeply"),
        ('{"a":' * 10_000 + "1" + "}" * 10_000, "nested too deeply"),
        ("\n".join("  " * depth + "a:" for depth in range(1_000)), "nested too deeply"),
        ("9" * 5_000, "a number of 5,000 digits is too long"),
    ],
)
def test_yaml_that_takes_for_ever_is_refused_at_once(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_yaml(text, "mine.yaml")
    assert load_yaml("a: &a [1]\nb: [*a, *a]", "mine.yaml") == {"a": [1], "b": [[1], [1]]}


@pytest.mark.parametrize("seed", range(3))
def test_any_table_is_prepared_or_refused(seed: int, tmp_path: Path) -> None:
    """Columns of dates, structs, lists, bytes, decimals, maps and nothing, and JSON lines with anything in them."""
    chance, refused = random.Random(seed), []
    for number in range(20):
        table, lines = tmp_path / f"{number}.parquet", tmp_path / f"{number}.jsonl"
        pq.write_table(fuzz.strange_table(chance), table)
        lines.write_text(fuzz.mutated({"messages": [{"role": "user", "content": "q"}], "answer": "1"}, chance))
        for file in (table, lines):
            try:
                prepare([str(file)], tmp_path / f"out-{file.name}", Settings())
            except NrtError as error:
                refused.append(str(error))
    assert len(refused) > 20
    assert not [told for told in refused if "\n" in told]
