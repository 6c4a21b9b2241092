"""`nrt eval --backend olmes`: OLMES asks and grades, its results come into the store."""

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nrt_cli.config.suite import BenchmarkSpec, select
from nrt_cli.errors import EvalError, NrtError
from nrt_cli.evaluation import olmes
from nrt_cli.evaluation.outputs import Output
from nrt_cli.evaluation.scores import LENGTHS, failed_row, score_row
from nrt_cli.evaluation.session import Session
from nrt_cli.store.evals import Evaluation, document_hash, settings_hash


def olmes_commands(session: Session) -> dict[str, str]:
    """The shell command of each benchmark, by name; run by hand, its output is found and read all the same."""
    found = olmes.versions(session.config.eval.olmes) if session.config.eval.olmes.python else {}
    return {
        spec.name: shlex.join(olmes.command(_call(session, spec, found), session.config.eval.olmes))
        for spec in select(session.job.benchmarks)
        if spec.olmes
    }


def evaluate_with_olmes(session: Session, suite: Sequence[BenchmarkSpec]) -> list[dict[str, Any]]:
    """A row per benchmark, one process of OLMES for each that has no output yet."""
    found = olmes.versions(session.config.eval.olmes)
    return [_guarded(session, spec, found) for spec in suite]


def _guarded(session: Session, spec: BenchmarkSpec, versions: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return _evaluate(session, spec, versions)
    except NrtError as error:
        row = failed_row(spec, error)
        session.display.warn(f"{spec.name} failed: {row['failed']}")
        return row


def _evaluate(session: Session, spec: BenchmarkSpec, versions: Mapping[str, Any]) -> dict[str, Any]:
    if not spec.olmes:
        raise EvalError(f"{spec.name}: is not in OLMES; evaluate it with --backend lm-eval.")
    call = _call(session, spec, versions)
    served = olmes.finished(call.output)
    if not served:
        session.display.note(f"{spec.name}: running OLMES, its log is {call.output / olmes.LOG}")
        olmes.run(olmes.command(call, session.config.eval.olmes), call.output)
    expected = min(session.job.limit or spec.instances, spec.instances)
    output = olmes.read_output(call.output, spec, expected)
    if output is None:
        raise EvalError(f"{call.output}: OLMES wrote no results of {spec.name}; see {olmes.LOG} there.")
    about = session.described() | {"versions": dict(versions)}
    row = keep(session.root, spec, output, _settings(session, spec, versions), about)
    row["cached"] = row["n"] if served else 0
    for difference in output.differences:
        session.display.warn(f"{spec.name}: {difference}")
    return row


def keep(
    root: Path, spec: BenchmarkSpec, output: Output, settings: Mapping[str, Any], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Put another harness's results into the store. The score is the harness's own; its error comes from ours."""
    row = score_row(spec, output.documents) | {"backend": about["backend"]}
    ours = row["score"]
    row |= {"score": output.score, "recomputed": ours, "differences": output.differences}
    if not math.isnan(ours) and abs(ours - output.score) > 1e-4:
        row["differences"] = [
            *output.differences,
            f"score {output.score:.4f}, recomputed from its documents {ours:.4f}",
        ]
    if not output.lengths:
        row |= dict.fromkeys(LENGTHS, math.nan)
    evaluation = Evaluation.create(root, spec.name, settings, about)
    with evaluation.writing():
        known = evaluation.documents()
        for document in output.documents:
            if document_hash(document) not in known:
                evaluation.append(document)
        row["folder"] = str(evaluation.path)
        evaluation.write_scores(row)
    return row


def _settings(session: Session, spec: BenchmarkSpec, versions: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that decides what OLMES answers and how it grades."""
    section = session.config.eval.olmes
    return {
        "benchmark": {"name": spec.name, "olmes": spec.olmes},
        "model": session.fingerprint,
        "backend": "olmes",
        "engine": session.job.engine,
        "think": session.think and spec.mode == "generate",
        "tokens": [session.about.think_start, session.about.think_end] if session.think else [],
        "max_length": section.max_length,
        "limit": session.job.limit,
        "seed": session.config.eval.seed,
        "versions": dict(versions),
    }


def _call(session: Session, spec: BenchmarkSpec, versions: Mapping[str, Any]) -> olmes.Call:
    """A fresh folder for every set of settings: OLMES itself takes up whatever it finds in its folder."""
    if session.job.think == "forced":
        raise EvalError("--think forced: OLMES cannot keep a model from an empty trace; use --think on or off.")
    digest = settings_hash(_settings(session, spec, versions))
    return olmes.Call(
        spec=spec,
        model=session.located.folder,
        about=session.about if session.think else None,
        engine=session.job.engine,
        limit=session.job.limit,
        seed=session.config.eval.seed,
        output=session.root / "olmes" / f"{spec.name}-{digest[:12]}",
    )
