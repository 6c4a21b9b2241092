"""OLMES, the paper's own harness: its command, its version, and what it leaves behind.

It cannot share our environment, so it is a subprocess in the interpreter that `eval.olmes.python` names. The layout of
its output folder, its aliases and traps are those of its public repository at the time of writing.
"""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nrt_cli.config.evaluation import OlmesSection
from nrt_cli.config.suite import BenchmarkSpec, select
from nrt_cli.errors import EvalError, NrtError
from nrt_cli.evaluation.outputs import Output, combined, differences, json_lines, keep, numbers
from nrt_cli.evaluation.scores import failed_row
from nrt_cli.evaluation.session import Session
from nrt_cli.models.metadata import Metadata
from nrt_cli.records import Document, Reply, Stop
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


@dataclass(frozen=True)
class Call:
    """One benchmark for OLMES: the model's folder, how it thinks (None: directly), and where the output goes."""

    spec: BenchmarkSpec
    model: Path
    about: Metadata | None
    engine: str
    limit: int | None
    seed: int
    output: Path


def command(call: Call, section: OlmesSection) -> list[str]:
    """The command, ready for a shell. Raises EvalError for a folder whose name OLMES would misread."""
    model, output = call.model.absolute(), call.output.absolute()
    for path in (model, output):
        if re.search(r"[=,\s]", str(path)):
            raise EvalError(
                f"{path}: OLMES reads =, commas and blanks in a path as its own; move or rename the folder."
            )
    arguments: dict[str, Any] = {"max_length": section.max_length}
    environment = []
    if call.about is not None:
        arguments["process_output"] = "nrt"
        environment = [f"NRT_THINK_START={call.about.think_start or ''}", f"NRT_THINK_END={call.about.think_end}"]
        environment.append(f"NRT_STOPS={json.dumps(call.about.stops)}")
    return [
        *(["env", *environment] if environment else []),
        *(section.python or "python", str(WRAPPER)),
        *("--model", str(model), "--model-type", call.engine, "--model-args", json.dumps(arguments)),
        *("--task", *tasks(call.spec, call.limit), "--random-subsample-seed", str(call.seed)),
        *("--batch-size", str(section.batch_size), "--gpus", str(section.gpus), "--output-dir", str(output)),
    ]


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

    Args:
        expected: how many documents there have to be.

    Raises:
        EvalError: a file is missing or damaged, or documents are missing: OLMES can exit well without having asked any.
    """
    path = folder / METRICS
    if not path.is_file():
        raise EvalError(f"{folder}: no {METRICS} there, so OLMES has not finished; see its log.")
    # The records of single tasks; suites have no index of their own.
    tasks = [record for record in json_lines(path) if isinstance(record.get("task_idx"), int)]
    records = [(subset, record) for record in tasks if (subset := _subset_of(record, spec)) is not None]
    if not records:
        return None
    counts = [record.get("num_instances", 0) for _, record in records]
    if expected is not None and sum(counts) != expected:
        raise EvalError(
            f"{folder}: OLMES scored {sum(counts)} documents of {spec.name}, not {expected}; see {LOG} there."
        )
    documents = [document for subset, record in records for document in _documents(folder, record, subset, spec)]
    if len(documents) != sum(counts):
        raise EvalError(f"{folder}: has {len(documents)} predictions of {spec.name} for {sum(counts)} documents.")
    score = combined(spec.aggregation, [record["metrics"]["primary_score"] for _, record in records], counts)
    differences = list(dict.fromkeys(text for _, record in records for text in _differences(record, spec)))
    return Output(documents, score, differences, str(records[0][1].get("model_config", {}).get("model")), {}, True)


def alias_of(record: Mapping[str, Any]) -> str:
    metadata = record.get("task_config", {}).get("metadata") or {}
    return str(metadata.get("alias") or record["task_name"])


def _subset_of(record: Mapping[str, Any], spec: BenchmarkSpec) -> str | None:
    """Which subset of a benchmark a task is, "" for a benchmark without; None for a task of another benchmark.

    A task counts by its name, whatever its regime is; another regime is among the differences.
    """
    name = alias_of(record).partition(":")[0]
    pattern = (spec.olmes_subtask or spec.olmes).partition(":")[0]
    if "{subset}" not in pattern:
        return "" if name == pattern else None
    head = pattern.removesuffix("{subset}")
    subset = name.removeprefix(head)
    return subset if name.startswith(head) and subset in spec.subsets else None


def _differences(record: Mapping[str, Any], spec: BenchmarkSpec) -> Iterator[str]:
    """In what a task's settings are not the suite's."""
    config, subset = record.get("task_config", {}), _subset_of(record, spec)
    generation = config.get("generation_kwargs") or {}
    if alias_of(record) not in (subtask(spec, subset or ""), spec.olmes):
        yield f"task {alias_of(record)}, in the suite {subtask(spec, subset or '')}"
    yield from differences(config, spec, "num_shots", "repeats")
    if spec.generation.temperature and generation.get("top_p") not in (None, spec.generation.top_p):
        yield f"top_p {generation['top_p']}, in the suite {spec.generation.top_p}"


def _documents(folder: Path, record: Mapping[str, Any], subset: str, spec: BenchmarkSpec) -> Iterator[Document]:
    name = record["task_name"]
    start = f"task-{record['task_idx']:03d}-"
    prompts: dict[Any, tuple[Mapping[str, str], ...]] = {}  # where OLMES kept its requests
    for path in folder.glob(f"{start}*-requests.jsonl"):
        for row in json_lines(path):
            context = row.get("request", {}).get("context", "")
            turns = context["messages"] if isinstance(context, dict) else [{"role": "user", "content": context}]
            prompts[row["doc_id"]] = tuple(turns)
    files = sorted(folder.glob(f"{start}*-predictions.jsonl"))
    if len(files) != 1:
        raise EvalError(f"{folder}: {len(files)} files of predictions for task {name}, expected one.")
    cap = (record["task_config"].get("generation_kwargs") or {}).get("max_gen_toks")
    primary = record["task_config"].get("primary_metric") or spec.metric
    for prediction in json_lines(files[0]):
        scores = numbers(prediction["metrics"])
        if primary in scores:
            scores[spec.metric] = scores[primary]
        outputs = prediction["model_output"]
        yield Document(
            benchmark=spec.name,
            subset=subset,
            # Native ids may repeat (one passage, many questions).
            id=f"{prediction['doc_id']}:{prediction.get('native_id')}",
            messages=prompts.get(prediction["doc_id"], ()),
            gold=prediction.get("label"),
            replies=tuple(_reply(output, cap) for output in outputs),
            extracted=tuple(
                None if (found := output.get("model_answer")) is None else str(found) for output in outputs
            ),
            scores=scores,
        )


def _reply(output: Mapping[str, Any], cap: int | None) -> Reply:
    """One result of OLMES; how its trace ended is known where our wrapper split it."""
    if "continuation" not in output:
        return Reply(logprob=output.get("sum_logits"))
    tokens, closed = int(output.get("num_tokens") or 0), output.get("nrt_trace_closed")
    full = cap is not None and tokens >= cap
    stop: Stop | None = None if closed is None else "end" if closed else "cap" if full else "eos"
    trace_tokens = int(output.get("nrt_trace_tokens") or 0)
    return Reply(
        trace=output.get("reasoning_content") or "",
        answer=output["continuation"],
        trace_tokens=trace_tokens,
        answer_tokens=max(0, tokens - trace_tokens - (closed is True)),
        stop=stop,
        cut=full,
    )


# --- into the store


def olmes_commands(session: Session) -> dict[str, str]:
    """The shell command of each benchmark, by name; run by hand, its output is found and read all the same."""
    found = versions(session.config.eval.olmes) if session.config.eval.olmes.python else {}
    return {
        spec.name: shlex.join(command(_call(session, spec, found), session.config.eval.olmes))
        for spec in select(session.job.benchmarks)
        if spec.olmes
    }


def evaluate_with_olmes(session: Session, suite: Sequence[BenchmarkSpec]) -> list[dict[str, Any]]:
    """A row per benchmark, one process of OLMES for each that has no output yet."""
    found = versions(session.config.eval.olmes)
    rows = []
    for spec in suite:
        try:
            rows.append(_evaluate(session, spec, found))
        except NrtError as error:
            rows.append(failed_row(spec, error))
            session.display.warn(f"{spec.name} failed: {rows[-1]['failed']}")
    return rows


def _evaluate(session: Session, spec: BenchmarkSpec, found: Mapping[str, Any]) -> dict[str, Any]:
    if not spec.olmes:
        raise EvalError(f"{spec.name}: is not in OLMES; evaluate it with --backend lm-eval.")
    call = _call(session, spec, found)
    served = (call.output / DONE).is_file()
    if not served:
        session.display.note(f"{spec.name}: running OLMES, its log is {call.output / LOG}")
        run(command(call, session.config.eval.olmes), call.output)
    expected = min(session.job.limit or spec.instances, spec.instances)
    output = read_output(call.output, spec, expected)
    if output is None:
        raise EvalError(f"{call.output}: OLMES wrote no results of {spec.name}; see {LOG} there.")
    about = session.described() | {"versions": dict(found)}
    row = keep(session.root, spec, output, _settings(session, spec, found), about)
    row["cached"] = row["n"] if served else 0
    for difference in output.differences:
        session.display.warn(f"{spec.name}: {difference}")
    return row


def _settings(session: Session, spec: BenchmarkSpec, found: Mapping[str, Any]) -> dict[str, Any]:
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
        "versions": dict(found),
    }


def _call(session: Session, spec: BenchmarkSpec, found: Mapping[str, Any]) -> Call:
    """A fresh folder for every set of settings: OLMES itself takes up whatever it finds in its folder."""
    if session.job.think == "forced":
        raise EvalError("--think forced: OLMES cannot keep a model from an empty trace; use --think on or off.")
    digest = settings_hash(_settings(session, spec, found))
    return Call(
        spec=spec,
        model=session.located.folder,
        about=session.about if session.think else None,
        engine=session.job.engine,
        limit=session.job.limit,
        seed=session.config.eval.seed,
        output=session.root / "olmes" / f"{spec.name}-{digest[:12]}",
    )
