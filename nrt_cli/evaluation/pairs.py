"""`nrt eval --data`: a model's accuracies on a user's own question-answer pairs, with thinking and without."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from nrt_cli.backends.machine import use_processor
from nrt_cli.config import RunConfig
from nrt_cli.data.examples import graded_pairs, load_examples, suffix_of
from nrt_cli.errors import ConfigError, DataError
from nrt_cli.evaluation.scores import score_row
from nrt_cli.evaluation.session import Job, Session
from nrt_cli.grading.accuracies import Graded, Question, answer_all, answer_cap
from nrt_cli.grading.grading import find, grade
from nrt_cli.measures.held_out import ACCURACY_MEASURES, over_rows, shown
from nrt_cli.progress import EvalProgress
from nrt_cli.records import ACCURACIES, Document
from nrt_cli.store import Run
from nrt_cli.store.evals import Evaluation, document_hash

DATA = "data-"
"""What the name of an evaluation of pairs begins with."""

ANY = 1 << 30
"""No limit on tokens: what is evaluated must not depend on the model's tokenizer."""


def evaluate_pairs(
    job: Job, config: RunConfig, display: EvalProgress, file: Path, grader: str | None = None
) -> dict[str, Any]:
    """The accuracies of a model on the pairs of a prepared file, those that were measured before from the store.

    Args:
        grader: grades all pairs; None: what the file says, or what suits the answers of each source.

    Raises:
        NrtError: the file or the model cannot be read, or no grader suits the answers.
    """
    session = Session(job, config, display)
    use_processor(config)
    kinds = tuple(ACCURACIES) if session.think else ("direct",)
    name = f"{DATA}{file.stem}"
    if grader:
        find(grader)
    if not file.is_file():
        raise DataError(f"{file}: no such file; make one with `nrt data prepare`.")
    examples = load_examples(file, session.reasoner.tokenizer, ANY, ANY, config.data.strict)
    for text in examples.left_out(f"of {file}"):
        display.note(text)
    if (trained := session.located.suffix) and (given := suffix_of(file)) != trained:
        instead = f"end in {given!r}" if given else "do not"
        display.warn(
            f"the questions of its training ended in {trained!r}, those of {file} {instead}; `nrt data prepare "
            "--suffix` makes them alike."
        )
    chosen = np.arange(len(examples))
    if job.limit and job.limit < len(examples):
        chosen = np.sort(np.random.default_rng(config.eval.seed).permutation(len(examples))[: job.limit])
    rows = [examples[int(i)] for i in chosen]
    pairs = graded_pairs(file, [row.index for row in rows], grader)
    asked = [(row, pair) for row, pair in zip(rows, pairs, strict=True) if pair.grader != "none"]
    if not asked:
        raise ConfigError(
            f"{file}: its answers are not graded (grader `none`: named, or since they are no numbers, letters or short "
            "phrases); name one with --grader: number, math, choice, exact or module:function."
        )
    for pair in {pair.grader: pair for _, pair in asked}.values():
        grade(pair, pair.answer)  # one that fails does so before the model is asked
    questions = [Question(str(row.index), row.prompt_ids, pair) for row, pair in asked]
    documents = [
        Document(name, row.source, str(row.index), ({"role": "user", "content": pair.question},), pair.answer)
        for row, pair in asked
    ]
    trace_cap, run = config.eval.max_trace_tokens, session.located.run
    if run is not None:  # no more than it was trained with
        trace_cap = min(trace_cap, Run.open(run).config().rollout.max_trace_tokens)
    cap = answer_cap(max(len(row.answer_ids) for row, _ in asked), config.eval.max_answer_tokens or ANY)
    graders = sorted({question.pair.grader for question in questions})
    settings = session.settings({"data": examples.fingerprint, "graders": graders, "kinds": kinds}, session.think)
    settings |= {"max_trace_tokens": trace_cap, "max_answer_tokens": cap}
    evaluation = Evaluation.create(session.root, name, settings, session.described() | {"data": str(file)})
    with evaluation.writing():
        known = evaluation.documents()
        stored = all(document_hash(document) in known for document in documents)
        display.begin(file.name, len(kinds) * len(documents), len(kinds) * len(documents) if stored else 0)
        if stored:  # a grader, above all one of the user's own, may have changed since
            kept = [known[document_hash(document)] for document in documents]
            answered = [
                {
                    kind: Graded(reply, grade(question.pair, reply.answer))
                    for kind, reply in zip(old.scores, old.replies, strict=True)
                }
                for old, question in zip(kept, questions, strict=True)
            ]
        else:
            answered = answer_all(
                session.reasoner, questions, kinds, trace_cap, cap, session.min_trace_tokens, display.advance
            )
        documents = [
            replace(
                document,
                replies=tuple(each.reply for each in found.values()),
                extracted=tuple(each.grade.extracted[0] for each in found.values()),
                scores={kind: each.grade.score for kind, each in found.items()},
            )
            for document, found in zip(documents, answered, strict=True)
        ]
        for document in documents:
            if known.get(document_hash(document)) != document:
                evaluation.append(document)
        head = {"benchmark": name, "title": file.name, "domain": "question-answer pairs", "metric": kinds[0]}
        row = score_row({**head, "aggregation": "micro"}, documents)
        # Accuracies that were measured, and what thinking has over the others in pairs, with 95 % intervals.
        scores = [{f"{kind}_score": score for kind, score in document.scores.items()} for document in documents]
        means = [(measure, over_rows(measure, scores)) for measure in ACCURACY_MEASURES]
        measures = [
            {"key": m.key, "title": m.title, **asdict(mean), "text": shown(mean, m, m.difference)}
            for m, mean in means
            if mean.n
        ]
        evaluation.write_scores(row | {"measures": measures, "backend": "pairs"})
    display.end(row)
    return {
        **session.described(),
        "data": str(file),
        "graders": graders,
        "n": len(documents),
        "max_trace_tokens": trace_cap,
        "max_answer_tokens": cap,
        "measures": measures,
        "results": str(evaluation.path),
    }
