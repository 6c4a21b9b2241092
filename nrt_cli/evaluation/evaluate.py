"""`nrt eval`: documents of the benchmarks to a model, its replies to the graders, and scores with their errors."""

import contextlib
import signal
from functools import partial
from pathlib import Path
from typing import Any

from nrt_cli.backends.machine import use_processor
from nrt_cli.config import RunConfig
from nrt_cli.config.suite import select
from nrt_cli.errors import Interrupted, NrtError
from nrt_cli.evaluation.benchmark import Benchmark
from nrt_cli.evaluation.olmes import evaluate_with_olmes, versions
from nrt_cli.evaluation.scores import failed_row, head, outcome, score_row
from nrt_cli.evaluation.session import Job, Session
from nrt_cli.progress import EvalProgress
from nrt_cli.records import Reply
from nrt_cli.store.evals import Evaluation, document_hash


def evaluate(job: Job, config: RunConfig, display: EvalProgress) -> dict[str, Any]:
    """Run the benchmarks that are not in the store yet, and score all of them.

    A benchmark that cannot run, or fails, is reported in its row and named by the overall score, which is NaN then.

    Raises:
        NrtError: none of them can run, or the model cannot.
    """
    suite = [spec.under(config.eval) for spec in select(job.benchmarks)]
    session = Session(job, config, display)
    use_processor(config)
    if session.located.suffix:
        session.display.note(
            f"Benchmarks are asked as they stand, without the line that its training's questions ended in: "
            f"{session.located.suffix!r}."
        )
    rows: list[dict[str, Any]] = []
    problems: dict[str, NrtError] = {}
    try:
        if job.backend == "olmes":
            found = versions(config.eval.olmes)
            work = {spec.name: partial(evaluate_with_olmes, session, spec, found) for spec in suite}
        else:
            benchmarks = [Benchmark(spec) for spec in suite]
            work = {benchmark.name: partial(_evaluate, session, benchmark) for benchmark in benchmarks}
            session.reasoner.tokenizer  # noqa: B018  a model that cannot be asked is said before anything else is done
            for benchmark in benchmarks:  # what keeps one from running is found before the model is loaded
                try:
                    for sentence in benchmark.check(session.data_dir, job.allow_unsafe_code, config.eval.offline):
                        display.warn(sentence)
                except NrtError as error:
                    problems[benchmark.name] = error
            if len(problems) == len(suite):
                raise next(iter(problems.values()))
            for name, reason in problems.items():
                display.warn(f"{name} cannot run: {str(reason).removeprefix(f'{name}: ')}")
        for spec in suite:
            if problem := problems.get(spec.name):
                rows.append(failed_row(spec, problem))
                continue
            try:
                rows.append(work[spec.name]())
            except Exception as error:  # whatever goes wrong in a benchmark is its own matter
                rows.append(failed_row(spec, error))
                display.warn(f"{spec.name} failed: {rows[-1]['failed']}")
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped; what was answered is kept in {session.root}, the same command goes on.", signal.SIGINT
        ) from None
    of = {**session.described(), "engine": job.engine, "limit": job.limit, "results": str(session.root)}
    return outcome(of, rows)


def _evaluate(session: Session, benchmark: Benchmark) -> dict[str, Any]:
    section, think = session.config.eval, session.think and benchmark.thinks
    documents = benchmark.documents(session.data_dir, session.job.limit, section.seed, section.offline)
    about = session.described() | ({"file": str(Path(benchmark.spec.file).resolve())} if benchmark.spec.own else {})
    settings = session.settings(benchmark.settings, think)
    evaluation = Evaluation.create(session.root, benchmark.name, settings, about)
    with evaluation.writing():
        known = evaluation.documents()
        keys = [document_hash(document) for document in documents]
        todo = {key: document for key, document in zip(keys, documents, strict=True) if key not in known}
        session.display.begin(benchmark.name, len(documents), len(documents) - len(todo))
        if ":" in benchmark.spec.grader:  # a user's function may have changed since
            for key in filter(known.__contains__, keys):
                if (again := benchmark.grade(known[key], known[key].replies)) != known[key]:
                    evaluation.append(again)
                    known[key] = again
        if todo:
            caps = (section.max_trace_tokens, section.seed, section.max_answer_tokens, session.min_trace_tokens)
            requests = {
                key: benchmark.requests(document, session.reasoner.tokenizer, think, *caps)
                for key, document in todo.items()
            }
            of_request = {request.key: key for key, of_document in requests.items() for request in of_document}
            replies: dict[str, Reply] = {}
            with contextlib.closing(
                session.reasoner.run([request for of_document in requests.values() for request in of_document])
            ) as stream:
                for request, reply in stream:
                    replies[request.key] = reply
                    key = of_request[request.key]
                    if all(each.key in replies for each in requests[key]):
                        own = [replies.pop(each.key) for each in requests[key]]
                        known[key] = benchmark.grade(todo[key], own)
                        evaluation.append(known[key])
                        session.display.advance()
        row = score_row(head(benchmark.spec), [known[key] for key in keys], section.grading)
        row |= {"backend": session.job.backend, "cached": len(documents) - len(todo), "folder": str(evaluation.path)}
        evaluation.write_scores(row)
    session.display.end(row)
    return row
