"""The house rules of CONTRIBUTING.md, read off the source by AST: nothing here imports the project."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent

# Room -> the rooms it may import from; its own is always allowed. `cli` is the front door.
LEDGER = {"config", "records", "errors", "commandline"}
PURE = LEDGER | {"text", "measures", "methods", "objective", "files", "network", "console", "untrusted"}
ARROWS = {
    "errors": set(),
    "network": set(),
    "commandline": set(),
    "files": {"errors"},
    "untrusted": set(),
    "records": set(),
    "console": {"untrusted", "errors", "records"},
    "renamed": set(),
    "methods": {"errors", "config", "renamed", "measures"},
    # Of backends and methods their facts, which import nothing heavy.
    "config": {"errors", "methods", "backends", "files"},
    "measures": LEDGER,
    "text": LEDGER,
    "objective": LEDGER | {"text", "methods"},
    "grading": PURE,
    "store": LEDGER | {"measures", "text", "files"},
    "data": PURE | {"grading", "store"},
    "models": PURE | {"store"},
    "backends": PURE | {"models"},
    "progress": {"config", "records", "console", "methods"},
    "training": PURE | {"grading", "store", "data", "models", "backends", "progress"},
    "evaluation": PURE | {"grading", "store", "data", "models", "backends", "training", "progress"},
    "checks": PURE | {"grading", "store", "data", "models", "backends", "training", "evaluation", "progress"},
    "judging": PURE | {"store", "data"},
    "viewer": LEDGER | {"measures", "text", "files", "untrusted", "store"},
    "analysis": {
        "viewer",
        "text",
        "records",
        "errors",
        "files",
        "untrusted",
        "store",
        "measures",
        "methods",
        "config",
        "commandline",
    },
}
ROOMS = set(ARROWS)
ARROWS["workflows"] = ROOMS - {"analysis"}
ARROWS["commands"] = ARROWS["api"] = ROOMS | {"workflows"}
ARROWS["cli"] = {"commands", "console", "errors", "renamed", "untrusted", "__main__"}
ARROWS["__main__"] = {"cli"}
# Heavy packages -> the rooms that may import them, at the top or inside a function.
COMPUTE = {"methods", "objective", "models", "backends", "training"}
HEAVY = {
    "torch": COMPUTE | {"evaluation", "checks", "workflows"},
    **dict.fromkeys(("transformers", "tokenizers", "vllm", "verl", "ray", "tensordict"), COMPUTE),
    "lm_eval": {"evaluation"},
    "openai": {"judging"},
    "huggingface_hub": COMPUTE | {"data", "network", "evaluation"},
    **{package: {"analysis"} for package in ("pandas", "matplotlib", "wordcloud")},
}
# What a command imports only inside the function that needs it, so that `nrt --help` stays fast.
LATE = (ROOMS | {"workflows"}) - {"records", "errors", "commandline", "console", "progress", "methods", "untrusted"}
KEPT_OUT_OF_OBJECTIVE = {"transformers", "tokenizers", "logging", "pathlib", "os", "rich", "typer"}
# Folders of somebody's machine: a home, or the root of a work place.
LOCAL_PATH = re.compile(r"(?<![\w.~/])/(?:work|root|Users|home/\w+)/[\w.]")


def project_files() -> list[Path]:
    """Every file that is or would be committed; by walking where git or its folder is absent."""
    try:
        listing = subprocess.run(
            ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            capture_output=True,
            check=True,
        )
        # In a copy unpacked inside some other checkout, git answers for that one and may know none of our files.
        files = [ROOT / name for name in listing.stdout.decode().split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        files = []
    if ROOT / "pyproject.toml" not in files:
        files = [p for p in ROOT.rglob("*") if not _made_here(p.relative_to(ROOT))]
    return sorted(p for p in files if p.is_file() and not p.is_symlink())


def _made_here(path: Path) -> bool:
    """True for environments, caches and products, which no commit holds."""
    made = {"venv", "build", "dist", "runs", "__pycache__"}
    return any(part in made or (part.startswith(".") and part not in (".ci", ".gitignore")) for part in path.parts)


FILES = project_files()
PYTHON = [p for p in FILES if p.suffix == ".py"]
SOURCE = [p for p in PYTHON if p.relative_to(ROOT).parts[0] in ("nrt_cli", "analysis")]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def room_of(module: str) -> str | None:
    """`nrt_cli.objective.losses` -> `objective`, `nrt_analysis.frames` -> `analysis`; None: no room of ours."""
    first, _, rest = module.partition(".")
    if first == "nrt_analysis":
        return "analysis"
    return rest.partition(".")[0] or None if first == "nrt_cli" else None


def room_of_file(path: Path) -> str | None:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] == "analysis" else parts
    return room_of(".".join(part for part in parts if part != "__init__"))


def imports(path: Path, top_level: bool = False) -> Iterator[tuple[int, str]]:
    """(line, absolute module) of every import, inside functions too; `from nrt_cli import core` is `nrt_cli.core`."""
    package = path.relative_to(ROOT).parent.parts
    tree = tree_of(path)
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*parents, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def report(problems: list[str]) -> None:
    assert not problems, "\n" + "\n".join(problems)


@pytest.mark.parametrize("path", SOURCE, ids=name_of)
def test_imports_follow_the_arrows(path: Path) -> None:
    room = room_of_file(path)
    if room is None:
        return  # nrt_cli/__init__.py: the version, which everyone may read
    assert room in ARROWS, f"{name_of(path)}: {room!r} is no room yet; add it to ARROWS here and to CONTRIBUTING.md"
    report(
        [
            f"{name_of(path)}:{line} imports {module}, but {room!r} may import only {', '.join(sorted(ARROWS[room]))}"
            for line, module in imports(path)
            if (other := room_of(module)) not in (None, room, "__version__") and other not in ARROWS[room]
        ]
    )


@pytest.mark.parametrize("path", SOURCE, ids=name_of)
def test_heavy_packages_stay_in_their_rooms(path: Path) -> None:
    room = room_of_file(path)
    report(
        [
            f"{name_of(path)}:{line} imports {module}; only {', '.join(sorted(HEAVY[package]))} may import {package}"
            for line, module in imports(path)
            if (package := module.partition(".")[0]) in HEAVY and room not in HEAVY[package]
        ]
    )


@pytest.mark.parametrize("path", [p for p in SOURCE if room_of_file(p) in ("cli", "commands")], ids=name_of)
def test_commands_import_their_work_late(path: Path) -> None:
    report(
        [
            f"{name_of(path)}:{line} imports {module} at its top; move it into the function that needs it"
            for line, module in imports(path, top_level=True)
            # A table of facts, which imports nothing heavy.
            if room_of(module) in LATE and module != "nrt_cli.backends.BACKENDS"
        ]
    )


def _class_names(path: Path) -> Iterator[str]:
    """What the classes of a file set `name` to."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and node.value.value:
            yield from (str(node.value.value) for target in node.targets if ast.unparse(target) == "name")


METHODS = ROOT / "nrt_cli" / "methods"
BACKENDS = {folder.name for folder in (ROOT / "nrt_cli" / "backends").iterdir() if (folder / "facts.py").is_file()}
NAMES = BACKENDS | {name for path in METHODS.glob("*.py") for name in _class_names(path)}
# Words that are also a name, where they mean something else.
OTHER_MEANINGS = {
    "p": {"analysis/nrt_analysis/token_report.py"},  # a column of probabilities
    "logp": {"nrt_cli/progress.py", "analysis/nrt_analysis/formats/page/payload.py"},  # log P(y*), shortly
    "control": {"analysis/nrt_analysis/xray_report.py"},  # a changed trace
    "local": {"nrt_cli/backends/verl/settings.py"},  # Ray's address
}


COMMANDED = re.compile(r"\b(?:method|engine\.name)=([\w-]+)|--(?:method|engine|scheme) ([\w-]+)")
"""Commands that we print, whatever stands around them."""


def _deciding(path: Path) -> Iterator[tuple[ast.Constant, set[str]]]:
    """Texts of one word or that are split, with the names in them; what a person reads has spaces and is no prefix."""
    tree = tree_of(path)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        called = node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""
        if called == "split":
            node.func.value.split = True  # type: ignore[attr-defined]
        if called in ("startswith", "endswith", "removeprefix", "removesuffix") and isinstance(
            node.args[0], ast.Constant
        ):
            node.args[0].cut = str.startswith if "pre" in called or "start" in called else str.endswith
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            found = {node.value} & NAMES
            if " " not in node.value.strip() or hasattr(node, "split"):
                found |= {word.strip("-") for word in re.split(r"[^a-z_-]+", node.value)} & (NAMES - {"p", "control"})
            elif not node.value.startswith("Example: "):
                found |= {one or other for one, other in COMMANDED.findall(node.value)} & NAMES
            if hasattr(node, "cut") and len(node.value) > 1:
                found |= {name for name in NAMES if node.cut(name, node.value)}
            yield node, found


@pytest.mark.parametrize("path", SOURCE, ids=name_of)
def test_methods_and_backends_are_named_in_their_own_files_alone(path: Path) -> None:
    """Whatever is done with the name: what is true of one stands among its facts, and is asked of those."""
    own = {name for name in BACKENDS if f"nrt_cli/backends/{name}/" in name_of(path)}
    if path.parent == METHODS:
        own |= NAMES - BACKENDS
    report(
        [
            f"{name_of(path)}:{node.lineno} names {name!r} in {node.value!r}; ask methods or backends for a fact"
            for node, names in _deciding(path)
            for name in names - own
            if name_of(path) not in OTHER_MEANINGS.get(name, ())
        ]
    )


@pytest.mark.parametrize("path", [p for p in SOURCE if room_of_file(p) == "objective"], ids=name_of)
def test_the_objective_is_tensors_only(path: Path) -> None:
    report(
        [
            f"{name_of(path)}:{line} imports {module}; the objective is functions of tensors"
            for line, module in imports(path)
            if module.partition(".")[0] in KEPT_OUT_OF_OBJECTIVE
        ]
    )


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_nothing_runs_code_from_data(path: Path) -> None:
    """Models, checkpoints and data come from strangers: no pickle, no remote code, no full torch.load."""
    forbidden = {"trust_remote_code": True, "weights_only": False}
    problems = [
        f"{name_of(path)}:{line} imports {module}, which runs code while it reads"
        for line, module in imports(path)
        if module.partition(".")[0] in ("pickle", "dill", "cloudpickle", "shelve", "marshal")
    ]
    for node in ast.walk(tree_of(path)):
        if not (isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant)):
            continue
        if node.arg in forbidden and node.value.value is forbidden[node.arg]:
            problems.append(f"{name_of(path)}:{node.value.lineno} sets {node.arg}={node.value.value}")
    report(problems)


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    problems = []
    for path in FILES:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # not text
        for number, line in enumerate(text.splitlines(), 1):
            if found := LOCAL_PATH.search(line):
                problems.append(f"{name_of(path)}:{number} names {found.group()}...; use a relative path or a setting")
    report(problems)


@pytest.mark.parametrize("prefix", ["/wo" + "rk/main", "see /ro" + "ot/x", "'/ho" + "me/ann/run'"])
def test_the_path_rule_sees_local_paths(prefix: str) -> None:
    assert LOCAL_PATH.search(prefix)


@pytest.mark.parametrize("text", ["frame/work/x", "https://example.org/home/ann/x", "~/work/x", "../work/x", "/home"])
def test_the_path_rule_leaves_other_text_alone(text: str) -> None:
    assert not LOCAL_PATH.search(text)


def test_every_room_is_in_the_contributors_guide() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    report([f"CONTRIBUTING.md does not describe {room!r}" for room in ARROWS if f"`{room}" not in guide])


def test_every_mutant_still_has_its_one_place() -> None:
    """They are run by hand (`tests/bench/mutants.py`), and would go stale unseen."""
    rows = yaml.safe_load((ROOT / "tests" / "bench" / "mutants.yaml").read_text(encoding="utf-8"))
    counts = {row["fault"]: (ROOT / row["file"]).read_text(encoding="utf-8").count(row["old"]) for row in rows}
    report(
        [f"mutants.yaml: {fault!r}: its place is found {count} times" for fault, count in counts.items() if count != 1]
        + [f"mutants.yaml: {row['fault']!r} changes nothing" for row in rows if row["new"] == row["old"]]
        + [
            f"mutants.yaml: {row['fault']!r} has no tests that are there"
            for row in rows
            if not row.get("tests") or not all((ROOT / path).exists() for path in row["tests"])
        ]
    )
