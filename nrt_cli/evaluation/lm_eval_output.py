"""What `lm_eval --log_samples --output_path DIR` leaves behind."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nrt_cli.config.suite import BenchmarkSpec
from nrt_cli.errors import EvalError
from nrt_cli.evaluation.outputs import Output, combined, json_lines, numbers
from nrt_cli.records import Document, Reply

RESULTS = "results_*.json"
TASKS = {
    "mmlu": ("mmlu",),
    "bbh": ("bbh_cot_fewshot", "bbh_cot_zeroshot", "bbh_fewshot", "bbh_zeroshot", "bbh"),
    "drop": ("drop",),
    "popqa": ("popqa",),
    "truthfulqa": ("truthfulqa_mc2",),
    "gsm8k": ("gsm8k_cot_zeroshot", "gsm8k_cot", "gsm8k"),
    "math": ("minerva_math", "hendrycks_math"),
    "humaneval": ("humaneval",),
    "ifeval": ("ifeval",),
}
"""lm-eval's names of a benchmark's tasks; those of subsets begin so."""
METRICS = {
    "drop": ("f1",),
    "truthfulqa": ("acc", "mc2"),
    "math": ("math_verify", "exact_match"),
    "humaneval": ("pass_at_10", "pass@10"),
    "ifeval": ("prompt_level_loose_acc",),
}
"""lm-eval's names of a benchmark's metric, the best first; `exact_match` and `acc` for the rest."""
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
        config = {key: results.get(key) for key in ("lm_eval_version", "transformers_version", "git_hash")}
        model = str(results.get("model_name") or results.get("config", {}).get("model"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvalError(f"{file}: is not what lm-eval writes ({type(error).__name__}: {error}).") from None
    if not tasks:
        return None
    documents, scores, counts = [], [], []
    for task, subset in tasks.items():
        found = list(_documents(file, task, subset, spec))
        documents += found
        counts.append(len(found))
        scores.append(_own_score(file, results["results"][task], spec))
    score = combined(spec.aggregation, scores, counts)
    return Output(documents, score, list(_differences(results, tasks, spec)), model, config, False)


def _subset_of(task: str, spec: BenchmarkSpec) -> str | None:
    """Which subset of a benchmark a task is, "" for a benchmark without; None for a task of another benchmark."""
    for head in TASKS[spec.name]:
        if not spec.subsets and task == head:
            return ""
        if task.removeprefix(f"{head}_") in spec.subsets and task.startswith(f"{head}_"):
            return task.removeprefix(f"{head}_")
    # lm-eval calls this one subject by another name.
    return "counting_and_probability" if task.endswith("math_counting_and_prob") and spec.name == "math" else None


def _metrics(spec: BenchmarkSpec) -> tuple[str, ...]:
    return METRICS.get(spec.name, ("exact_match", "acc"))


def _own_score(file: Path, result: Mapping[str, Any], spec: BenchmarkSpec) -> float:
    """What lm-eval says of a task; its keys are `metric,filter`."""
    for metric in _metrics(spec):
        by_filter = {key.partition(",")[2]: key for key in result if key.partition(",")[0] == metric}
        for name in (*FILTERS, *by_filter):
            if name in by_filter:
                return float(result[by_filter[name]])
    raise EvalError(f"{file}: has no {' or '.join(_metrics(spec))} of {spec.name}.")


def _documents(file: Path, task: str, subset: str, spec: BenchmarkSpec) -> Iterator[Document]:
    date = file.stem.removeprefix("results_")
    path = file.with_name(f"samples_{task}_{date}.jsonl")
    if not path.is_file():
        raise EvalError(f"{path}: no such file; run lm-eval with --log_samples.")
    rows = json_lines(path)
    filters = {row["filter"] for row in rows}
    chosen = next((name for name in FILTERS if name in filters), min(filters, default=None))
    for row in rows:
        if row["filter"] == chosen:
            yield _document(row, subset, spec)


def _document(row: dict[str, Any], subset: str, spec: BenchmarkSpec) -> Document:
    scores = numbers({name: row.get(name) for name in row.get("metrics", [])})
    for metric in _metrics(spec):
        if metric in scores:
            scores[spec.metric] = scores[metric]
            break
    return Document(
        benchmark=spec.name,
        subset=subset,
        id=str(row["doc_id"]),
        messages=_prompt(row.get("arguments")),
        gold=row.get("target"),
        replies=tuple(_replies(row, spec)),
        extracted=tuple(str(found) for found in row.get("filtered_resps", [])) if spec.mode == "generate" else (),
        scores=scores,
    )


def _prompt(arguments: Any) -> tuple[Mapping[str, str], ...]:
    """The prompt of a document's first request, which is a list or, sanitised, a dict of `gen_args_0.arg_0`."""
    while isinstance(arguments, list | dict) and arguments:
        arguments = arguments[0] if isinstance(arguments, list) else next(iter(arguments.values()))
    return ({"role": "user", "content": arguments},) if isinstance(arguments, str) else ()


def _replies(row: Mapping[str, Any], spec: BenchmarkSpec) -> Iterator[Reply]:
    for responses in row.get("resps", []):
        for response in responses:
            if spec.mode == "generate":
                yield Reply(answer=str(response))
            else:
                yield Reply(logprob=float(response[0]))


def _differences(results: Mapping[str, Any], tasks: Mapping[str, str], spec: BenchmarkSpec) -> Iterator[str]:
    """In what the tasks' settings are not the suite's."""
    said = set()
    for task in tasks:
        config = results["configs"][task]
        generation = config.get("generation_kwargs") or {}
        pairs: list[tuple[str, Any, Any]] = [("num_fewshot", config.get("num_fewshot"), spec.shots)]
        if spec.mode == "generate":
            pairs += [
                ("max_gen_toks", generation.get("max_gen_toks"), spec.generation.max_tokens),
                ("temperature", generation.get("temperature"), spec.generation.temperature),
                ("repeats", config.get("repeats"), spec.generation.samples),
            ]
        said |= {
            f"{name} {found}, in the suite {wanted}" for name, found, wanted in pairs if found not in (None, wanted)
        }
    yield from sorted(said)
