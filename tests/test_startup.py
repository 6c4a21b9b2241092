"""Start-up: what `nrt` must not import before it knows that it has work to do. Timed by tests/bench/startup.py."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Each costs from a tenth of a second to several seconds to import.
HEAVY = {"torch", "transformers", "tokenizers", "pandas", "matplotlib", "pyarrow", "datasets", "accelerate", "numpy"}
# The config needs it, `--help` does not: it is half of what `nrt --help` would cost.
CONFIG_ONLY = {"pydantic", "pydantic_core"}

# What the console script does.
NRT = """
from nrt_cli.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
"""
REPORT = """
import json, sys
print("\\nLOADED " + json.dumps(sorted(name for name in sys.modules if "." not in name)))
"""


def loaded_by(script: str, *arguments: str, cwd: Path) -> set[str]:
    """Heavy modules in sys.modules after a script."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])  # found even where it is not installed
    done = subprocess.run(
        [sys.executable, "-c", script + REPORT, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.rpartition("LOADED ")[2])) & (HEAVY | CONFIG_ONLY)


@pytest.mark.slow
def test_asking_for_help_loads_nothing_heavy(tmp_path: Path) -> None:
    assert loaded_by(NRT, "--help", cwd=tmp_path) == set()


COMMANDS = "config data model train generate judge runs quickstart eval analyze score doctor push report reproduce"


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS.split())
def test_asking_a_command_for_help_loads_no_numerics(command: str, tmp_path: Path) -> None:
    # Typer itself imports pydantic once a group above the command has an option to read.
    assert loaded_by(NRT, command, "--help", cwd=tmp_path) <= CONFIG_ONLY


@pytest.mark.slow
def test_showing_a_config_loads_no_numerics(tmp_path: Path) -> None:
    assert loaded_by(NRT, "config", "show", cwd=tmp_path) <= CONFIG_ONLY


@pytest.mark.slow
@pytest.mark.parametrize(
    "module", ["nrt_cli", "nrt_cli.api", "nrt_cli.config", "nrt_cli.records", "nrt_cli.errors", "nrt_cli.console"]
)
def test_the_lowest_rooms_are_light(module: str, tmp_path: Path) -> None:
    assert loaded_by(f"import {module}", cwd=tmp_path) <= CONFIG_ONLY


# --- how OpenMP's threads wait for each other ------------------------------------------------------------------------

SPINS = "50000"
WAIT = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")


def read_in_a_new_process(script: str, **given: str) -> str:
    """What a script prints, error stream included, where of the settings of waiting only those given are set."""
    environment = {name: value for name, value in os.environ.items() if name not in WAIT}
    environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])} | given
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


# As C code and new processes see it, which is more than what os.environ says.
SEEN = f"""
import os, subprocess, sys
import {{module}}
child = "import os; print([os.environ.get(name) for name in {WAIT}])"
print(subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True).stdout)
assert "torch" not in sys.modules
"""


@pytest.mark.parametrize("module", ["nrt_cli", "nrt_cli.cli", "nrt_cli.config"])
def test_threads_that_wait_spin_for_a_short_time(module: str) -> None:
    assert read_in_a_new_process(SEEN.format(module=module)).strip() == str([SPINS, None, None])


@pytest.mark.parametrize("name", WAIT)
def test_what_a_user_says_of_waiting_is_kept(name: str) -> None:
    value = "passive" if name == "OMP_WAIT_POLICY" else "7"
    expected = [value if name == other else None for other in WAIT]
    assert read_in_a_new_process(SEEN.format(module="nrt_cli"), **{name: value}).strip() == str(expected)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="torch comes with GNU's OpenMP on Linux")
@pytest.mark.parametrize(
    ("given", "count"), [({}, SPINS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "0")]
)
def test_torchs_openmp_reads_it(given: dict[str, str], count: str) -> None:
    told = read_in_a_new_process("import nrt_cli, torch", OMP_DISPLAY_ENV="verbose", **given)
    assert re.findall(r"GOMP_SPINCOUNT = '(\d+)'", told) == [count]


# --- packages --------------------------------------------------------------------------------------------------------


def test_nothing_that_is_installed_is_called_as_a_strangers_package_may_be() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert [Path(package).name for package in build["packages"]] == ["nrt_cli", "nrt_analysis"]
    assert all((ROOT / package / "__init__.py").is_file() for package in build["packages"])
    # What an editable install puts on the path holds the same packages, and no others.
    found = {file.parent.name for folder in build["dev-mode-dirs"] for file in (ROOT / folder).glob("*/__init__.py")}
    assert found == {"nrt_cli", "nrt_analysis"}


@pytest.mark.slow
def test_a_folder_with_a_package_called_analysis_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "analysis").mkdir()
    (tmp_path / "analysis" / "__init__.py").write_text("WHOSE = 'a stranger'\n")
    script = """
import analysis, nrt_cli
from nrt_cli.errors import StoreError
assert analysis.WHOSE == "a stranger"
try:
    nrt_cli.analyze("dynamics", "nothing")
except StoreError:
    print("analysed", end="")
"""
    folders = os.pathsep.join([str(ROOT), str(ROOT / "analysis"), os.environ.get("PYTHONPATH", "")])
    for words, shown in ((["-c", script], "analysed"), (["-m", "nrt_cli", "analyze", "dynamics", "nothing"], "")):
        done = subprocess.run(
            [sys.executable, *words],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": folders},
        )
        assert done.stdout == shown, done.stderr
        assert shown or done.stderr.startswith("nrt: nothing"), done.stderr
