"""OLMES, the paper's own harness: its command, its version, and what it leaves behind.

It cannot share our environment, so it is a subprocess in the interpreter that `eval.olmes.python` names. The layout of
its output folder, its aliases and traps are those of its public repository at the time of writing.
"""

import json
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from nrt_cli.config.schema import OlmesSection
from nrt_cli.config.suite import BenchmarkSpec, benchmark, select
from nrt_cli.errors import EvalError
from nrt_cli.evaluation.rows import Row, read_rows
from nrt_cli.evaluation.scores import Output, combined, differences, json_lines, keep, numbers
from nrt_cli.evaluation.session import Session
from nrt_cli.models.loading import positions
from nrt_cli.models.publish import config_for_all, tokenizer_for_all
from nrt_cli.models.sources import read_json
from nrt_cli.records import Document, Reply
from nrt_cli.store.evals import settings_hash

WRAPPER = Path(__file__).with_name("olmes_wrapper.py")
METRICS = "metrics-all.jsonl"
DONE = "metrics.json"
"""What OLMES writes last."""
LOG = "nrt-olmes.log"

VERSIONS = """
import json, os, subprocess
from contextlib import suppress
from importlib import metadata
import oe_eval
found, commit = dict.fromkeys(("ai2-olmes", "lm_eval", "torch", "transformers", "vllm")), None
for name in found:
    with suppress(metadata.PackageNotFoundError):
        found[name] = metadata.version(name)
with suppress(metadata.PackageNotFoundError):
    origin = json.loads(metadata.distribution("ai2-olmes").read_text("direct_url.json") or "{}")
    commit = origin.get("vcs_info", {}).get("commit_id")
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


def tasks(spec: BenchmarkSpec, limit: int | None, seed: int) -> tuple[int, list[str]]:
    """The seed that OLMES draws documents with, and what `--task` gets: the benchmark's alias, or its subsets' under a
    limit, each with its share of it."""
    start, numbers = spec.asked(spec.subsets or ("",), limit, seed)
    if limit is None:
        return start, [spec.olmes]
    # OLMES names the alias itself only where it stands alone.
    aliases = [(subtask(spec, subset), number) for subset, number in numbers.items() if number]
    return start, [json.dumps({"task_name": name, "limit": n, "metadata": {"alias": name}}) for name, n in aliases]


def subtask(spec: BenchmarkSpec, subset: str) -> str:
    """OLMES's alias of one subset."""
    return (spec.olmes_subtask or spec.olmes).format(subset=subset)


def versions(section: OlmesSection) -> dict[str, str | None]:
    """Commit of OLMES and versions of what it computes with. Raises EvalError where it is not installed."""
    return _told(section, "-c", VERSIONS)


def lacks(section: OlmesSection) -> dict[str, Any]:
    """What keeps OLMES from running the nine: missing modules, what else broke, unknown tasks, nltk's data; its GPUs.

    Raises EvalError as `versions` does.
    """
    suite = [spec for spec in select(["all"]) if spec.olmes]
    subtasks = [subtask(spec, subset) for spec in suite for subset in spec.subsets]
    return _told(section, str(WRAPPER), "lacks", *(spec.olmes for spec in suite), *subtasks)


def _told(section: OlmesSection, *arguments: str) -> dict[str, Any]:
    """The last line that OLMES's interpreter prints, as JSON."""
    if section.python is None:
        raise EvalError(f"--backend olmes needs OLMES: {INSTALL}.")
    try:
        asked = subprocess.run([section.python, *arguments], capture_output=True, text=True, check=True)
        return dict(json.loads(asked.stdout.splitlines()[-1]))
    except OSError as error:
        raise EvalError(f"eval.olmes.python={section.python}: cannot be run ({error.strerror}); {INSTALL}.") from None
    except subprocess.CalledProcessError as error:
        reason = _last_line(error.stderr)
        raise EvalError(f"eval.olmes.python={section.python}: has no OLMES ({reason}); {INSTALL}.") from None
    except (ValueError, IndexError):
        raise EvalError(f"eval.olmes.python={section.python}: is not a Python interpreter; {INSTALL}.") from None


def run(arguments: Sequence[str], output: Path) -> None:
    """Run OLMES; what it says goes to a log in the output folder. It ends with this process, however that ends.

    Raises EvalError where it fails.
    """
    output.mkdir(parents=True, exist_ok=True)
    log = output / LOG
    with log.open("a") as file:
        file.write(shlex.join(arguments) + "\n")
        file.flush()
        watched = os.environ | {"NRT_PARENT": str(os.getpid())}
        apart: Any = {"env": watched, "start_new_session": True, "stdin": subprocess.DEVNULL}
        process = subprocess.Popen(arguments, stdout=file, stderr=subprocess.STDOUT, **apart)
        try:
            code = process.wait()
        finally:
            if process.poll() is None:  # Ctrl-C; it has processes of its own
                os.killpg(process.pid, signal.SIGTERM)
    if code:
        reason = _last_line(log.read_text(encoding="utf-8", errors="replace"))
        raise EvalError(f"OLMES ended with exit code {code} ({reason}); its log is {log}.")


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
    # Under a limit, a subset may have fewer documents than its share.
    enough = len(tasks) >= len(spec.subsets[:expected]) if expected != spec.instances and spec.subsets else False
    if expected is not None and not (sum(counts) == expected or (enough and sum(counts) < expected)):
        raise EvalError(
            f"{folder}: OLMES scored {sum(counts)} documents of {spec.name}, not {expected}; see {LOG} there."
        )
    documents = [document for _, subset, record in tasks for document in _documents(folder, record, subset, spec)]
    if len(documents) != sum(counts):
        raise EvalError(f"{folder}: has {len(documents)} predictions of {spec.name} for {sum(counts)} documents.")
    others: list[str] = []  # in what settings are not the suite's
    for alias, subset, record in tasks:
        config = record.get("task_config", {})
        if alias not in (subtask(spec, subset), spec.olmes or spec.name):
            others.append(f"task {alias}, in the suite {subtask(spec, subset)}")
        others += differences(config, spec, "num_shots")
        ours = (record.get("model_config", {}).get("custom_kwargs") or {}).get("nrt") or {}
        if ours.get("thinks"):
            own = (
                f"{ours['trace_tokens']} tokens before the answer's"
                if ours["trace_tokens"]
                else "a share of the answer's"
            )
            others.append(f"budget of traces {own}")
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
    """One result of OLMES; its trace is known where our wrapper split it."""
    if "continuation" not in output:
        return Reply(logprob=output.get("sum_logits"))
    tokens, ours = int(output.get("num_tokens") or 0), output.get("nrt") or {}
    return Reply(
        trace=output.get("reasoning_content") or "",
        answer=output["continuation"],
        trace_tokens=ours.get("trace_tokens", 0),
        answer_tokens=ours.get("answer_tokens", tokens),
        stop=ours.get("trace_stop"),
        # What stopped at a string has one more text; transformers' number of tokens is that of its batch then.
        cut=cap is not None and tokens >= cap and "continuation_raw" not in output,
    )


# --- into the store


def olmes_commands(session: Session) -> dict[str, str]:
    """The shell command of each benchmark, by name; run by hand, its output is found and read all the same."""
    found = versions(session.config.eval.olmes) if session.config.eval.olmes.python else {}
    suite = [spec.under(session.config.eval) for spec in select(session.job.benchmarks) if spec.olmes]
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
    row = keep(session.root, spec, output, settings, session.described())
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
    job, settled, about = session.job, session.config.eval, session.about
    section, thinks = settled.olmes, session.think and spec.mode == "generate"
    trace_tokens = settled.max_trace_tokens if section.trace_budget == "own" else None
    answer = spec.generation
    # In what settings differ from the suite, and so from OLMES's own.
    changed: dict[str, Any] = {}
    if spec.mode == "generate" and (settled.max_answer_tokens or answer.max_tokens) < answer.max_tokens:
        changed["max_gen_toks"] = settled.max_answer_tokens
    if answer.samples < benchmark(spec.name).generation.samples:
        changed["repeats"] = answer.samples
    if answer.temperature < benchmark(spec.name).generation.temperature:
        changed |= {"temperature": answer.temperature, "do_sample": answer.temperature > 0}
    reach = min(filter(None, (section.max_length, positions(session.located.folder))))
    settings = {
        "benchmark": {"name": spec.name, "olmes": spec.olmes},
        "model": session.fingerprint,
        "backend": "olmes",
        "engine": job.engine,
        "think": thinks,
        "tokens": [about.think_start, about.think_end],
        "trace_budget": section.trace_budget if thinks else None,
        "max_trace_tokens": trace_tokens if thinks else 0,
        "generation": changed,
        "max_length": reach,
        "limit": job.limit,
        "seed": settled.seed,
        "documents": None,
        "versions": dict(found),
    }
    local: dict[str, bytes] = {}
    if session.data_dir or settled.offline:
        found_rows = read_rows(spec, session.data_dir, settled.offline)
        local = {subset or "all": _lines(spec, rows) for subset, rows in found_rows.items()}
        settings["documents"] = {name: sha256(lines).hexdigest() for name, lines in local.items()}
    folder = session.root / "olmes" / f"{spec.name}-{settings_hash(settings)[:12]}"
    output = folder.absolute()
    if re.search(r"[=,\s]", str(output)):
        raise EvalError(f"{output}: OLMES reads =, commas and blanks in a path as its own; move or rename the folder.")
    model = _readable(session.located.folder.absolute(), output / "model")
    taught: dict[str, Any] = {}
    if local:
        documents = output / "documents"
        documents.mkdir(parents=True, exist_ok=True)
        for name, lines in local.items():
            (documents / f"{name}.jsonl").write_bytes(lines)
        taught["documents"] = {"folder": str(documents), "split": spec.hub.split if spec.hub else "test"}
    if spec.mode == "generate":
        tokens = {"start": about.think_start or "", "end": about.think_end, "stops": about.stops}
        taught["nrt"] = {**tokens, "trace_tokens": trace_tokens, "thinks": thinks}
    arguments = {"max_length": reach, **({"custom_kwargs": taught} if taught else {})}
    start, names = tasks(spec, job.limit, settled.seed)
    command = [
        *(section.python or "python", str(WRAPPER)),
        *("--model", str(model), "--model-type", job.engine, "--model-args", json.dumps(arguments)),
        *("--task", *names, "--random-subsample-seed", str(start)),
        *("--batch-size", str(section.batch_size), "--gpus", str(section.gpus), "--output-dir", str(output)),
    ]
    if changed:
        # What a task says for chat models counts last.
        command += ["--task-args", json.dumps({"chat_overrides": {"generation_kwargs": changed}})]
    return command, folder, settings


def _readable(model: Path, folder: Path) -> Path:
    """The model as transformers 4 reads it, which OLMES wants: its files, and its configs under older names."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in model.iterdir():
        told = {"config.json": config_for_all, "tokenizer_config.json": tokenizer_for_all}.get(file.name)
        if told:
            (folder / file.name).write_text(json.dumps(told(read_json(file))), encoding="utf-8")
        elif not (folder / file.name).is_symlink():
            (folder / file.name).symlink_to(file)
    return folder


def _lines(spec: BenchmarkSpec, rows: Sequence[Row]) -> bytes:
    """Local rows as OLMES reads them: with those of the hub's columns, too, that neither ask nor grade."""
    no_date = {"day": "", "month": "", "year": ""}
    told = []
    for each in rows:
        row: dict[str, Any] = dict(each)
        if spec.name == "popqa":
            row = {"id": None, "prop_id": 0, "obj": "", **row}
        elif spec.name == "humaneval":
            row = {"canonical_solution": "", **row}
        elif spec.name == "truthfulqa":
            row = {"mc1_targets": row["mc2_targets"], **row}
        elif spec.name == "drop" and "answers" in row:
            first, *others = row.pop("answers")
            n = len(others)
            row |= {"answer": {"number": "", "date": no_date, "spans": first}}
            row |= {"validated_answers": {"number": [""] * n, "date": [no_date] * n, "spans": others}}
            row = {"query_id": None, **row}
        told.append(json.dumps(row, ensure_ascii=False) + "\n")
    return "".join(told).encode()
