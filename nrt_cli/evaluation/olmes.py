"""OLMES, the paper's own harness: its command, its version, and what it leaves behind.

It cannot share our environment, so it is a subprocess in the interpreter that `eval.olmes.python` names. The layout of
its output folder, its aliases and traps are those of its public repository at the time of writing.
"""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nrt_cli.config.schema import OlmesSection
from nrt_cli.config.suite import BenchmarkSpec, select
from nrt_cli.errors import EvalError
from nrt_cli.evaluation.scores import Output, combined, differences, json_lines, keep, numbers
from nrt_cli.evaluation.session import Session
from nrt_cli.records import Document, Reply
from nrt_cli.store.evals import settings_hash

WRAPPER = Path(__file__).with_name("olmes_wrapper.py")
METRICS = "metrics-all.jsonl"
DONE = "metrics.json"
"""What OLMES writes last."""
LOG = "nrt-olmes.log"

VERSIONS = """
import json, os, subprocess
from importlib import metadata
import oe_eval
found = {name: None for name in ("ai2-olmes", "lm_eval", "torch", "transformers", "vllm")}
for name in found:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
commit = None
try:
    origin = json.loads(metadata.distribution("ai2-olmes").read_text("direct_url.json") or "{}")
    commit = origin.get("vcs_info", {}).get("commit_id")
except metadata.PackageNotFoundError:
    pass
if commit is None:
    checkout = os.path.dirname(os.path.realpath(list(oe_eval.__path__)[0]))
    git = ["git", "-C", checkout, "rev-parse", "--show-toplevel", "HEAD"]
    asked = subprocess.run(git, capture_output=True, text=True)
    top, *head = asked.stdout.splitlines() or [""]
    # An environment inside some other checkout is not OLMES's own.
    commit = head[0] if head and os.path.realpath(top) == checkout else None
print(json.dumps({**found, "olmes commit": commit}))
"""

INSTALL = (
    "install OLMES from its git repository into an environment of its own and name that environment's interpreter, "
    "`--set eval.olmes.python=PATH/bin/python`"
)


def tasks(spec: BenchmarkSpec, limit: int | None) -> list[str]:
    """What `--task` gets: the benchmark's alias; under a limit, its subsets with their shares of it."""
    if limit is None:
        return [spec.olmes]
    if not spec.subsets:
        return [json.dumps({"task_name": spec.olmes, "limit": min(limit, spec.instances)})]
    share, extra = divmod(limit, len(spec.subsets))
    limits = [share + (i < extra) for i in range(len(spec.subsets))]
    names = [subtask(spec, subset) for subset in spec.subsets]
    return [json.dumps({"task_name": name, "limit": n}) for name, n in zip(names, limits, strict=True) if n]


def subtask(spec: BenchmarkSpec, subset: str) -> str:
    """OLMES's alias of one subset."""
    return (spec.olmes_subtask or spec.olmes).format(subset=subset)


def versions(section: OlmesSection) -> dict[str, str | None]:
    """Commit of OLMES and versions of what it computes with. Raises EvalError where it is not installed."""
    if section.python is None:
        raise EvalError(f"--backend olmes needs OLMES: {INSTALL}.")
    try:
        asked = subprocess.run([section.python, "-c", VERSIONS], capture_output=True, text=True, check=True)
        return dict(json.loads(asked.stdout))
    except OSError as error:
        raise EvalError(f"eval.olmes.python={section.python}: cannot be run ({error.strerror}); {INSTALL}.") from None
    except subprocess.CalledProcessError as error:
        reason = _last_line(error.stderr)
        raise EvalError(f"eval.olmes.python={section.python}: has no OLMES ({reason}); {INSTALL}.") from None
    except ValueError:
        raise EvalError(f"eval.olmes.python={section.python}: is not a Python interpreter; {INSTALL}.") from None


def run(arguments: Sequence[str], output: Path) -> None:
    """Run OLMES; what it says goes to a log in the output folder. Raises EvalError where it fails."""
    output.mkdir(parents=True, exist_ok=True)
    log = output / LOG
    with log.open("a") as file:
        file.write(shlex.join(arguments) + "\n")
        file.flush()
        done = subprocess.run(arguments, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    if done.returncode:
        reason = _last_line(log.read_text(encoding="utf-8", errors="replace"))
        raise EvalError(f"OLMES ended with exit code {done.returncode} ({reason}); its log is {log}.")


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it said nothing")


# --- what it left behind


def read_output(folder: Path, spec: BenchmarkSpec, expected: int | None) -> Output | None:
    """One benchmark of an output folder; None where OLMES ran no task of it.

    A task counts by its name, whatever its regime is; another regime is among the differences.

    Args:
        expected: how many documents there have to be.

    Raises:
        EvalError: a file is missing or damaged, or documents are missing: OLMES can exit well without having asked any.
    """
    path = folder / METRICS
    if not path.is_file():
        raise EvalError(f"{folder}: no {METRICS} there, so OLMES has not finished; see its log.")
    pattern = (spec.olmes_subtask or spec.olmes or spec.name).partition(":")[0]
    tasks: list[tuple[str, str, dict[str, Any]]] = []  # alias and subset, "" for a benchmark without
    for record in json_lines(path):
        if isinstance(record.get("task_idx"), int):  # a single task; suites have no index of their own
            metadata = record.get("task_config", {}).get("metadata") or {}
            alias = str(metadata.get("alias") or record["task_name"])
            name, subsets = alias.partition(":")[0], spec.subsets if "{subset}" in pattern else ("",)
            subset = next((each for each in subsets if pattern.format(subset=each) == name), None)
            if subset is not None:
                tasks.append((alias, subset, record))
    if not tasks:
        return None
    counts = [record.get("num_instances", 0) for *_, record in tasks]
    if expected is not None and sum(counts) != expected:
        raise EvalError(
            f"{folder}: OLMES scored {sum(counts)} documents of {spec.name}, not {expected}; see {LOG} there."
        )
    documents = [document for _, subset, record in tasks for document in _documents(folder, record, subset, spec)]
    if len(documents) != sum(counts):
        raise EvalError(f"{folder}: has {len(documents)} predictions of {spec.name} for {sum(counts)} documents.")
    others: list[str] = []  # in what settings are not the suite's
    for alias, subset, record in tasks:
        config = record.get("task_config", {})
        if alias not in (subtask(spec, subset), spec.olmes):
            others.append(f"task {alias}, in the suite {subtask(spec, subset)}")
        others += differences(config, spec, "num_shots")
        top_p = (config.get("generation_kwargs") or {}).get("top_p")
        if spec.generation.temperature and top_p not in (None, spec.generation.top_p):
            others.append(f"top_p {top_p}, in the suite {spec.generation.top_p}")
    return Output(
        documents,
        score=combined(spec.aggregation, [record["metrics"]["primary_score"] for *_, record in tasks], counts),
        differences=list(dict.fromkeys(others)),
        model=str(tasks[0][2].get("model_config", {}).get("model")),
        versions={},
        lengths=True,
    )


def _documents(folder: Path, record: Mapping[str, Any], subset: str, spec: BenchmarkSpec) -> Iterator[Document]:
    start = f"task-{record['task_idx']:03d}-"
    prompts: dict[Any, tuple[Mapping[str, str], ...]] = {}  # where OLMES kept its requests
    for path in folder.glob(f"{start}*-requests.jsonl"):
        for row in json_lines(path):
            context = row.get("request", {}).get("context", "")
            turns = context["messages"] if isinstance(context, dict) else [{"role": "user", "content": context}]
            prompts[row["doc_id"]] = tuple(turns)
    files = sorted(folder.glob(f"{start}*-predictions.jsonl"))
    if len(files) != 1:
        raise EvalError(f"{folder}: {len(files)} files of predictions for task {record['task_name']}, expected one.")
    cap = (record["task_config"].get("generation_kwargs") or {}).get("max_gen_toks")
    primary = record["task_config"].get("primary_metric") or spec.metric
    for prediction in json_lines(files[0]):
        scores = numbers(prediction["metrics"])
        if primary in scores:
            scores[spec.metric] = scores[primary]
        outputs = prediction["model_output"]
        found = [output.get("model_answer") for output in outputs]
        yield Document(
            benchmark=spec.name,
            subset=subset,
            # Native ids may repeat (one passage, many questions).
            id=f"{prediction['doc_id']}:{prediction.get('native_id')}",
            messages=prompts.get(prediction["doc_id"], ()),
            gold=prediction.get("label"),
            replies=tuple(_reply(output, cap) for output in outputs),
            extracted=tuple(None if answer is None else str(answer) for answer in found),
            scores=scores,
        )


def _reply(output: Mapping[str, Any], cap: int | None) -> Reply:
    """One result of OLMES; how its trace ended is known where our wrapper split it."""
    if "continuation" not in output:
        return Reply(logprob=output.get("sum_logits"))
    tokens, closed = int(output.get("num_tokens") or 0), output.get("nrt_trace_closed")
    full = cap is not None and tokens >= cap
    trace_tokens = int(output.get("nrt_trace_tokens") or 0)
    return Reply(
        trace=output.get("reasoning_content") or "",
        answer=output["continuation"],
        trace_tokens=trace_tokens,
        answer_tokens=max(0, tokens - trace_tokens - (closed is True)),
        stop=None if closed is None else "end" if closed else "cap" if full else "eos",
        cut=full,
    )


# --- into the store


def olmes_commands(session: Session) -> dict[str, str]:
    """The shell command of each benchmark, by name; run by hand, its output is found and read all the same."""
    found = versions(session.config.eval.olmes) if session.config.eval.olmes.python else {}
    suite = [spec for spec in select(session.job.benchmarks) if spec.olmes]
    return {spec.name: shlex.join(_call(session, spec, found)[0]) for spec in suite}


def evaluate_with_olmes(session: Session, spec: BenchmarkSpec, found: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a benchmark, from OLMES of the versions `found`: in a process, unless its output is there."""
    if not spec.olmes:
        raise EvalError(f"{spec.name}: is not in OLMES; evaluate it with --backend lm-eval.")
    command, folder, settings = _call(session, spec, found)
    served = (folder / DONE).is_file()
    if not served:
        session.display.note(f"{spec.name}: running OLMES, its log is {folder / LOG}")
        run(command, folder)
    output = read_output(folder, spec, min(session.job.limit or spec.instances, spec.instances))
    if output is None:
        raise EvalError(f"{folder}: OLMES wrote no results of {spec.name}; see {LOG} there.")
    row = keep(session.root, spec, output, settings, session.described() | {"versions": dict(found)})
    for difference in output.differences:
        session.display.warn(f"{spec.name}: {difference}")
    return row | {"cached": row["n"] if served else 0}


def _call(session: Session, spec: BenchmarkSpec, found: Mapping[str, Any]) -> tuple[list[str], Path, dict[str, Any]]:
    """The command for one benchmark, ready for a shell; the folder that it writes to; all that decides its results.

    Every set of settings has a fresh folder: OLMES itself takes up whatever it finds in its folder. Raises EvalError
    for a folder whose name OLMES would misread.
    """
    if session.job.think == "forced":
        raise EvalError("--think forced: OLMES cannot keep a model from an empty trace; use --think on or off.")
    job, section, about, seed = session.job, session.config.eval.olmes, session.about, session.config.eval.seed
    settings = {
        "benchmark": {"name": spec.name, "olmes": spec.olmes},
        "model": session.fingerprint,
        "backend": "olmes",
        "engine": job.engine,
        "think": session.think and spec.mode == "generate",
        "tokens": [about.think_start, about.think_end] if session.think else [],
        "max_length": section.max_length,
        "limit": job.limit,
        "seed": seed,
        "versions": dict(found),
    }
    folder = session.root / "olmes" / f"{spec.name}-{settings_hash(settings)[:12]}"
    model, output = session.located.folder.absolute(), folder.absolute()
    for path in (model, output):
        if re.search(r"[=,\s]", str(path)):
            raise EvalError(
                f"{path}: OLMES reads =, commas and blanks in a path as its own; move or rename the folder."
            )
    arguments: dict[str, Any] = {"max_length": section.max_length}
    environment = []
    if session.think:
        arguments["process_output"] = "nrt"
        environment = ["env", f"NRT_THINK_START={about.think_start or ''}", f"NRT_THINK_END={about.think_end}"]
        environment.append(f"NRT_STOPS={json.dumps(about.stops)}")
    command = [
        *(*environment, section.python or "python", str(WRAPPER)),
        *("--model", str(model), "--model-type", job.engine, "--model-args", json.dumps(arguments)),
        *("--task", *tasks(spec, job.limit), "--random-subsample-seed", str(seed)),
        *("--batch-size", str(section.batch_size), "--gpus", str(section.gpus), "--output-dir", str(output)),
    ]
    return command, folder, settings
