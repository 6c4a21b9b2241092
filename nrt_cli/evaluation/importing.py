"""`nrt eval import`: an output folder of OLMES or lm-eval into the store."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from nrt_cli.commandline import this_command
from nrt_cli.config.suite import BenchmarkSpec, select
from nrt_cli.errors import EvalError
from nrt_cli.evaluation import olmes
from nrt_cli.evaluation.scores import Output, combined, differences, json_lines, keep, numbers, outcome
from nrt_cli.evaluation.session import results_folder
from nrt_cli.records import Document, Reply
from nrt_cli.training.locate import locate_model

RESULTS = "results_*.json"
OTHER_METRICS = ("exact_match", "acc")
FILTERS = ("flexible-extract", "get-answer", "none")
"""Of several ways to extract an answer, the most lenient, as the suite's own is."""


def results_file(folder: Path) -> Path | None:
    """The newest results of a folder; lm-eval puts them one level down, in a folder named after the model."""
    found = [*folder.glob(RESULTS), *folder.glob(f"*/{RESULTS}")]
    return max(found, key=lambda path: path.name, default=None)


def read_output(file: Path, spec: BenchmarkSpec) -> Output | None:
    """One benchmark of a results file; None where no task is of it. Raises EvalError where its samples are missing."""
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        tasks = {task: subset for task in results["configs"] if (subset := _subset_of(task, spec)) is not None}
        versions = {key: results.get(key) for key in ("lm_eval_version", "transformers_version", "git_hash")}
        model = str(results.get("model_name") or results.get("config", {}).get("model"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvalError(f"{file}: is not what lm-eval writes ({type(error).__name__}: {error}).") from None
    if not tasks:
        return None
    metrics, generates = spec.lm_eval_metrics or (spec.metric, *OTHER_METRICS), spec.mode == "generate"
    documents: list[Document] = []
    scores: list[float] = []
    counts: list[int] = []
    for task, subset in tasks.items():
        path = file.with_name(f"samples_{task}_{file.stem.removeprefix('results_')}.jsonl")
        if not path.is_file():
            raise EvalError(f"{path}: no such file; run lm-eval with --log_samples.")
        if not (rows := json_lines(path)):
            raise EvalError(f"{path}: has no samples.")
        filters = {row["filter"] for row in rows}
        chosen = next((name for name in FILTERS if name in filters), min(filters, default=None))
        rows = [row for row in rows if row["filter"] == chosen]
        counts.append(len(rows))
        for row in rows:
            found = numbers({name: row.get(name) for name in row.get("metrics", [])})
            if metric := next((name for name in metrics if name in found), None):
                found[spec.metric] = found[metric]
            prompt = row.get("arguments")  # of the first request: a list or, sanitised, a dict of `gen_args_0.arg_0`
            while isinstance(prompt, list | dict) and prompt:
                prompt = prompt[0] if isinstance(prompt, list) else next(iter(prompt.values()))
            said = [response for responses in row.get("resps", []) for response in responses]
            documents.append(
                Document(
                    benchmark=spec.name,
                    subset=subset,
                    id=str(row["doc_id"]),
                    messages=({"role": "user", "content": prompt},) if isinstance(prompt, str) else (),
                    gold=row.get("target"),
                    replies=tuple(Reply(answer=str(r)) if generates else Reply(logprob=float(r[0])) for r in said),
                    extracted=tuple(map(str, row.get("filtered_resps", []))) if generates else (),
                    scores=found,
                )
            )
        # lm-eval's own score of the task, under `metric,filter`.
        own = {key.partition(",")[::2]: value for key, value in results["results"][task].items()}
        named = [(metric, name) for metric in metrics for name in (*FILTERS, *(other for _, other in own))]
        if not (there := [key for key in named if key in own]):
            raise EvalError(f"{file}: has no {' or '.join(metrics)} of {spec.name}.")
        scores.append(float(own[there[0]]))
    configs = [results["configs"][task] for task in tasks]
    return Output(
        documents,
        score=combined(spec.aggregation, scores, counts),
        differences=sorted({text for of_task in configs for text in differences(of_task, spec, "num_fewshot")}),
        model=model,
        versions=versions,
        lengths=False,
    )


def _subset_of(task: str, spec: BenchmarkSpec) -> str | None:
    """Which subset of a benchmark a task is, "" for a benchmark without; None for a task of another benchmark."""
    for head in spec.lm_eval_tasks or (spec.name,):
        if not spec.subsets and task == head:
            return ""
        if task.removeprefix(f"{head}_") in spec.subsets and task.startswith(f"{head}_"):
            return task.removeprefix(f"{head}_")
    # lm-eval calls this one subject by another name.
    return "counting_and_probability" if task.endswith("math_counting_and_prob") and spec.name == "math" else None


def import_results(
    folder: Path, model: str | None, out: Path | None, warn: Callable[[str], None], benchmarks: str = "all"
) -> dict[str, Any]:
    """Read every benchmark that a folder has results of.

    Args:
        model: what they are results of; they are stored where `nrt eval` stores its own. None: below `evals/`.
        benchmarks: those that are looked for, as `select` reads them; a user's own is the task of its name.

    Raises:
        EvalError: the folder is of neither harness, has none of the benchmarks, or is damaged.
    """
    suite, file = select([benchmarks]), results_file(folder)
    backend: Literal["olmes", "lm-eval"] = "olmes" if (folder / olmes.METRICS).is_file() else "lm-eval"
    outputs = []
    for spec in suite:
        try:
            if backend == "olmes":
                outputs.append(olmes.read_output(folder, spec, None))
            elif file:
                outputs.append(read_output(file, spec))
            else:
                raise EvalError(
                    f"{folder}: no results of OLMES ({olmes.METRICS}) or lm-eval ({RESULTS}) there; name the folder "
                    "that was its --output-dir or --output_path."
                )
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise EvalError(f"{folder}: what it has of {spec.name} is not what {backend} writes ({reason}).") from None
    found = [(spec, output) for spec, output in zip(suite, outputs, strict=True) if output is not None]
    if not found:
        names = "the nine benchmarks" if benchmarks == "all" else ", ".join(spec.name for spec in suite)
        raise EvalError(f"{folder}: has results of none of {names}; name one of your own with --benchmarks mine.yaml.")
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
        settings = {  # what is known of how these answers came to be
            "benchmark": {"name": spec.name},
            "model": output.model,
            "backend": backend,
            "imported": True,
            "differences": output.differences,
            "versions": output.versions,
        }
        of_own = {"file": str(Path(spec.file).resolve())} if spec.own else {}
        rows.append(keep(root, spec, output, settings, about | of_own | {"versions": output.versions}))
        for difference in rows[-1]["differences"]:
            warn(f"{spec.name}: {difference}")
    return outcome(about | {"limit": None, "results": str(root)}, rows)
