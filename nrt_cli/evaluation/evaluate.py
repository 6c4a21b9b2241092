"""`nrt eval`: documents of the benchmarks to a model, its replies to the graders, and scores with their errors."""

import contextlib
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from nrt_cli.backends.machine import use_threads
from nrt_cli.config import RunConfig
from nrt_cli.config.suite import select
from nrt_cli.errors import Interrupted, NrtError
from nrt_cli.evaluation.benchmark import Benchmark
from nrt_cli.evaluation.olmes_run import evaluate_with_olmes
from nrt_cli.evaluation.scores import failed_row, outcome, score_row
from nrt_cli.evaluation.session import Job, Session
from nrt_cli.progress import EvalProgress
from nrt_cli.records import Document, Reply, Request
from nrt_cli.store.evals import Evaluation, document_hash


def evaluate(job: Job, config: RunConfig, display: EvalProgress) -> dict[str, Any]:
    """Run the benchmarks that are not in the store yet, and score all of them.

    A benchmark that cannot run, or fails, is reported in its row and named by the overall score, which is NaN then.

    Raises:
        NrtError: none of them can run, or the model cannot.
    """
    suite = select(job.benchmarks)
    session = Session(job, config, display)
    use_threads(config)
    if session.located.suffix:
        session.display.note(
            f"Benchmarks are asked as they stand, without the line that its training's questions ended in: "
            f"{session.located.suffix!r}."
        )
    try:
        if job.backend == "olmes":
            rows = evaluate_with_olmes(session, suite)
        else:
            rows = _evaluate_here(session, [Benchmark(spec) for spec in suite])
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped; what was answered is kept in {session.root}, the same command goes on.", signal.SIGINT
        ) from None
    head = {**session.described(), "engine": job.engine, "limit": job.limit, "results": str(session.root)}
    return outcome(head, rows)


def _evaluate_here(session: Session, suite: Sequence[Benchmark]) -> list[dict[str, Any]]:
    session.reasoner.tokenizer  # noqa: B018  a model that cannot be asked is said before anything else is done
    problems = {benchmark.name: _check(session, benchmark) for benchmark in suite}
    if all(problems.values()):
        raise next(error for error in problems.values() if error)
    for name, error in problems.items():
        if error:
            session.display.warn(f"{name} cannot run: {str(error).removeprefix(f'{name}: ')}")
    return [
        failed_row(benchmark.spec, problem) if (problem := problems[benchmark.name]) else _guarded(session, benchmark)
        for benchmark in suite
    ]


def _check(session: Session, benchmark: Benchmark) -> NrtError | None:
    """What keeps a benchmark from running, found before the model is loaded."""
    try:
        for sentence in benchmark.check(session.data_dir, session.job.allow_unsafe_code):
            session.display.warn(sentence)
    except NrtError as error:
        return error
    return None


def _guarded(session: Session, benchmark: Benchmark) -> dict[str, Any]:
    """A benchmark's row; whatever goes wrong in it is its own matter."""
    try:
        return _evaluate(session, benchmark)
    except Exception as error:
        row = failed_row(benchmark.spec, error)
        session.display.warn(f"{benchmark.name} failed: {row['failed']}")
        return row


def _evaluate(session: Session, benchmark: Benchmark) -> dict[str, Any]:
    documents = benchmark.documents(session.data_dir, session.job.limit, session.config.eval.seed)
    evaluation = Evaluation.create(session.root, benchmark.name, session.settings(benchmark), session.described())
    with evaluation.writing():
        known = evaluation.documents()
        keys = [document_hash(document) for document in documents]
        todo = [document for key, document in zip(keys, documents, strict=True) if key not in known]
        session.display.begin(benchmark.name, len(documents), len(documents) - len(todo))
        for answered in _answers(session, benchmark, todo):
            evaluation.append(answered)
            known[document_hash(answered)] = answered
            session.display.advance()
        row = score_row(benchmark.spec, [known[key] for key in keys])
        row |= {"backend": session.job.backend, "cached": len(documents) - len(todo), "folder": str(evaluation.path)}
        evaluation.write_scores(row)
    session.display.end(row)
    return row


def _answers(session: Session, benchmark: Benchmark, documents: Sequence[Document]) -> Iterator[Document]:
    """Each document, answered and graded, as soon as its last reply is there."""
    if not documents:
        return
    asked = {document.id: _requests(session, benchmark, document) for document in documents}
    of_key = {request.key: document for document in documents for request in asked[document.id]}
    replies: dict[str, Reply] = {}
    everything = [request for requests in asked.values() for request in requests]
    with contextlib.closing(session.reasoner.run(everything)) as stream:
        for request, reply in stream:
            replies[request.key] = reply
            document = of_key[request.key]
            keys = [each.key for each in asked[document.id]]
            if all(key in replies for key in keys):
                yield benchmark.grade(document, [replies.pop(key) for key in keys])


def _requests(session: Session, benchmark: Benchmark, document: Document) -> list[Request]:
    section, tokenizer = session.config.eval, session.reasoner.tokenizer
    think = session.think and benchmark.thinks
    caps = (section.max_trace_tokens, section.seed, section.max_answer_tokens)
    found = benchmark.requests(document, tokenizer, think, *caps)
    return [replace(request, min_trace_tokens=session.min_trace_tokens) if think else request for request in found]
