"""`nrt push --gguf`: llama.cpp's converter, a stand-in for it, and what happens where there is none."""

import os
import sys
from pathlib import Path

import pytest

from nrt_cli.errors import ConfigError, ModelError
from nrt_cli.workflows.push import push

CONVERTER = """#!{python}
import pathlib, sys
folder, option, file = sys.argv[1:]
assert option == "--outfile"
assert (pathlib.Path(folder) / "tokenizer.json").is_file()
print("Loading", folder)
{then}
"""
WRITES = 'pathlib.Path(file).write_bytes(b"GGUF" + folder.encode())'


@pytest.fixture
def converter(tmp_path):
    def write(name, then=WRITES):
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(CONVERTER.format(python=sys.executable, then=then))
        file.chmod(0o755)
        return file

    return write


def test_a_converter_that_is_given_writes_the_file(converter, tiny_model_dir, tmp_path):
    for name in ("mine.py", "mine"):
        done = push(str(tiny_model_dir), tmp_path / name, gguf=True, converter=converter(name))
        assert f"{name}.gguf" in done["files"]
        assert (tmp_path / name / f"{name}.gguf").read_bytes().startswith(b"GGUF")
        assert f"{name}.gguf" in (tmp_path / name / "README.md").read_text()


@pytest.mark.parametrize("name", ["convert_hf_to_gguf.py", "convert-hf-to-gguf"])
def test_an_installed_one_is_found(name, converter, tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{converter(name).parent}{os.pathsep}{os.environ['PATH']}")
    assert "shared.gguf" in push(str(tiny_model_dir), tmp_path / "shared", gguf=True)["files"]


@pytest.mark.parametrize(
    ("then", "told"),
    [
        ("sys.exit('Model ABC is not supported')", "Model ABC is not supported"),
        ("import no_such_package", "No module named 'no_such_package'"),
        ("sys.exit(3)", "wrote no GGUF file (Loading"),
        ("", "wrote no GGUF file"),
    ],
)
def test_a_failure_is_told_and_nothing_is_left(then, told, converter, tiny_model_dir, tmp_path):
    with pytest.raises(ModelError) as failed:
        push(str(tiny_model_dir), tmp_path / "shared", gguf=True, converter=converter("c.py", then))
    assert told in str(failed.value)
    assert not (tmp_path / "shared").exists()


def test_where_there_is_none_that_is_said_first(tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"--converter FILE .*github\.com/ggml-org/llama\.cpp"):
        push("no such model, which is not looked at yet", tmp_path / "shared", gguf=True)
    with pytest.raises(ConfigError, match="no such file"):
        push(str(tiny_model_dir), tmp_path / "shared", gguf=True, converter=Path("elsewhere.py"))
    with pytest.raises(ConfigError, match="no effect without --gguf"):
        push(str(tiny_model_dir), tmp_path / "shared", converter=Path(__file__))
    not_runnable = tmp_path / "text"
    not_runnable.write_text("no program")
    with pytest.raises(ModelError, match="cannot be run"):
        push(str(tiny_model_dir), tmp_path / "shared", gguf=True, converter=not_runnable)
