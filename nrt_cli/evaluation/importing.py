"""`nrt eval import`: an output folder of OLMES or lm-eval into the store."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nrt_cli.commandline import this_command
from nrt_cli.config.suite import BenchmarkSpec, select
from nrt_cli.errors import EvalError
from nrt_cli.evaluation import lm_eval_output, olmes
from nrt_cli.evaluation.olmes_run import keep
from nrt_cli.evaluation.outputs import Output
from nrt_cli.evaluation.scores import outcome
from nrt_cli.evaluation.session import results_folder
from nrt_cli.training.locate import locate_model


def import_results(folder: Path, model: str | None, out: Path | None, warn: Callable[[str], None]) -> dict[str, Any]:
    """Read every benchmark of the suite that a folder has results of.

    Args:
        model: what they are results of; they are stored where `nrt eval` stores its own. None: below `evals/`.

    Raises:
        EvalError: the folder is of neither harness, has none of the benchmarks, or is damaged.
    """
    backend, read = _reader(folder)
    found = [(spec, output) for spec in select(["all"]) if (output := read(spec)) is not None]
    if not found:
        raise EvalError(f"{folder}: has results of none of the nine benchmarks.")
    located = locate_model(model) if model else None
    root = out or (results_folder(located) if located else Path("evals") / folder.resolve().name)
    about = {
        "model": {"given": model, "name": located.name if located else folder.resolve().name},
        "backend": backend,
        "imported": str(folder.resolve()),
        "command": this_command(),
    }
    rows = []
    for spec, output in found:
        rows.append(keep(root, spec, output, _settings(spec, output, backend), about | {"versions": output.versions}))
        for difference in rows[-1]["differences"]:
            warn(f"{spec.name}: {difference}")
    return outcome(about | {"limit": None, "results": str(root)}, rows)


def _reader(folder: Path) -> tuple[str, Callable[[BenchmarkSpec], Output | None]]:
    """Whose folder it is, and how one benchmark of it is read."""
    if (folder / olmes.METRICS).is_file():
        return "olmes", lambda spec: olmes.read_output(folder, spec, None)
    if file := lm_eval_output.results_file(folder):
        return "lm-eval", lambda spec: lm_eval_output.read_output(file, spec)
    raise EvalError(
        f"{folder}: no results of OLMES ({olmes.METRICS}) or lm-eval ({lm_eval_output.RESULTS}) there; "
        "name the folder that was its --output-dir or --output_path."
    )


def _settings(spec: BenchmarkSpec, output: Output, backend: str) -> dict[str, Any]:
    """What is known of how these answers came to be."""
    return {
        "benchmark": {"name": spec.name},
        "model": output.model,
        "backend": backend,
        "imported": True,
        "differences": output.differences,
        "versions": output.versions,
    }
