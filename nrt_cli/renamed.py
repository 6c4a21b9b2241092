"""Modules that there were, refused with where their contents are now."""

from importlib.machinery import ModuleSpec
from typing import Any

MOVED = {
    "nrt_analysis": "analysis",
    "nrt_cli.methods, nrt_cli.objective and nrt_cli.measures": "core",
    "nrt_cli.backends, nrt_cli.models and nrt_cli.evaluation": "engines",
    "nrt_cli.evaluation": "evaluation.lm_eval workflows.comparison workflows.evaluate workflows.importing "
    "workflows.olmes workflows.pairs workflows.scores workflows.session workflows.tasks",
    "nrt_cli.checks": "workflows.doctor workflows.doctor_environment workflows.doctor_forecast workflows.doctor_model "
    "workflows.doctor_sample workflows.findings workflows.memory workflows.overlap workflows.prediction "
    "workflows.preflight",
    "nrt_cli.config": "config.base config.evaluation config.judging config.named config.parallel",
    "nrt_cli.data": "data.choose data.folder data.formats",
    "nrt_cli.grading": "text.graders text.grading text.mathematics",
    "nrt_cli.judging": "text.judging workflows.judge workflows.judge_plan",
    "nrt_cli.objective.rows": "objective.units",
    "nrt_cli.store": "store.bank store.parts store.reference store.reports",
    "nrt_cli.text.pieces": "text.copying",
    "nrt_cli.training": "backends.clock workflows.made workflows.models workflows.start workflows.traces",
    "nrt_cli.workflows.generate": "workflows.cases",
    "nrt_cli.workflows.scoring": "backends.local.scoring workflows.leakage workflows.schemes workflows.score "
    "workflows.tokens",
    "nrt_cli.workflows.speedrun": "config.speedrun workflows.speedrun_table",
    "nrt_cli.workflows.study": "workflows.reproduce workflows.study_analysis workflows.study_plan workflows.study_run",
}
"""Where they are now -> modules that there were, without the `nrt_cli.` before them."""


def moved(module: str) -> str:
    """Where a module's contents are now, as the end of a sentence; empty for one that never was."""
    old = module.removeprefix("nrt_cli.")
    return next((f"it is in {now} now" for now, names in MOVED.items() if old in names.split()), "")


class Moved:
    """The last finder that is asked: only what is nowhere else comes here."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.startswith("nrt_cli.") and (where := moved(name)):
            # Not ModuleNotFoundError, which `from nrt_cli.workflows import doctor` would replace by a poorer one.
            raise ImportError(f"there is no {name} any more: {where}", name=name)
        return None
