"""What other people's code prints goes to a file; what ours says reaches the terminal."""

import subprocess
import sys
from pathlib import Path

import pytest

from nrt_cli import console
from nrt_cli.cli import main

PROGRAM = """
import os, subprocess, sys
from pathlib import Path
from nrt_cli import console
from nrt_cli.progress import print_json_line
with console.noise_to(Path(sys.argv[1]) / "logs" / "noise.log"):
    print("printed")
    sys.stderr.write("complained\\n")
    os.write(1, b"descriptor 1\\n")
    os.write(2, b"descriptor 2\\n")
    subprocess.run([sys.executable, "-c", "import sys; print('child'); sys.stderr.write('child complained\\\\n')"])
    assert console.is_quiet()
    console.note("a note")
    console.result({"a": 1}, False, lambda data: console.stdout.print("a result"))
    print_json_line({"step": 1})
assert not console.is_quiet()
print("after")
console.note("a note after")
"""


def test_noise_goes_to_the_file_and_words_to_the_terminal(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    for _ in range(2):  # a second time appends
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines() == ["a result", '{"step": 1}', "after"]
        assert done.stderr.splitlines() == ["a note", "a note after"]
    noise = (tmp_path / "logs" / "noise.log").read_text().splitlines()
    expected = ["printed", "complained", "descriptor 1", "descriptor 2", "child", "child complained"]
    assert sorted(noise) == sorted(expected * 2)


def test_streams_are_given_back_after_a_failure(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with console.noise_to(tmp_path / "log"):
            print("noise")
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    print("outside")
    console.note("said")
    assert capfd.readouterr() == ("outside\n", "said\n")
    assert (tmp_path / "log").read_text() == "noise\n"


def test_a_panel_is_not_mixed_with_noise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from nrt_cli.progress import LiveProgress

    with console.noise_to(tmp_path / "log"), LiveProgress(3):
        print("noise")
    assert "noise" not in "".join(capsys.readouterr())
    assert (tmp_path / "log").read_text() == "noise\n"


@pytest.mark.parametrize("words", [["train", "x" * 300], ["runs", "show", "x" * 300], ["data", "prepare", "x" * 300]])
def test_what_is_too_long_for_a_name_is_one_sentence(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    out = ["--out", "out"] if words[0] == "data" else []
    monkeypatch.setattr("sys.argv", ["nrt", *words, *out])
    with pytest.raises(SystemExit) as stop:
        main()
    told = capsys.readouterr().err
    assert stop.value.code in (1, 2)
    assert told.startswith("nrt: xxx")
    assert len(told.splitlines()) == 1
