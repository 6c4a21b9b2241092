"""The suite on lm-eval's machinery: documents, prompts and scores, one document at a time.

lm-eval renders prompts and examples and holds the scorers; the loop over documents is ours (`workflows/evaluate`), so
that results can be stored as they come and an interrupted evaluation can go on. `adapter.py` is the other way round:
our generation behind lm-eval's own loop. Both give the same scores.
"""

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nrt_cli.config.suite import BenchmarkSpec, select
from nrt_cli.errors import EvalError
from nrt_cli.evaluation.lm_eval.rows import Row, read_rows
from nrt_cli.records import Document, Reply, Request

__all__ = ["Benchmark", "load_suite"]

GRADING = 1
"""Raised whenever our prompts or graders change, so that no score of older ones is used again."""


def load_suite(names: Sequence[str] = ("all",)) -> list["Benchmark"]:
    """The benchmarks that `all`, names and `category:NAME` mean. Raises ConfigError for an unknown name."""
    return [Benchmark(spec) for spec in select(names)]


class Benchmark:
    """One benchmark of the suite. `check` it before a model is loaded; then `documents`, `requests` and `grade`."""

    def __init__(self, spec: BenchmarkSpec) -> None:
        self.spec = spec
        self._rows: dict[str, Row] = {}
        self._tasks: dict[str, Any] = {}

    name = property(lambda self: self.spec.name)
    title = property(lambda self: self.spec.title)
    domain = property(lambda self: self.spec.domain)
    metric = property(lambda self: self.spec.metric)
    aggregation = property(lambda self: self.spec.aggregation)
    subsets = property(lambda self: self.spec.subsets)
    instances = property(lambda self: self.spec.instances)
    olmes = property(lambda self: self.spec.olmes)
    thinks = property(lambda self: self.spec.mode == "generate")

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that decides prompts, generation and grading, as JSON."""
        from nrt_cli.evaluation.lm_eval.scorers import PACKAGES, sentence_data

        packages = dict.fromkeys(("lm_eval", *PACKAGES.get(self.spec.grader, ())))
        settings = {
            "suite": self.spec.model_dump(mode="json", exclude={"files", "notes", "title", "question"}),
            "grading": GRADING,
            "versions": {name: version(name) for name in packages},
        }
        return settings | ({"sentences": sentence_data()} if self.spec.grader == "instructions" else {})

    def check(self, data_dir: Path | None, allow_unsafe_code: bool = False) -> list[str]:
        """Make sure that the benchmark can be run, without a model: sentences that a person should read.

        Raises DataError for missing documents and EvalError for a missing package or a sandbox with holes.
        """
        from nrt_cli.evaluation.lm_eval.scorers import PACKAGES, sentence_data

        for package in ("lm_eval", *PACKAGES.get(self.spec.grader, ())):
            if find_spec(package) is None:
                raise EvalError(
                    f"{self.name} needs {package.replace('_', '-')}, which is not installed; run "
                    "`pip install 'nrt-cli[eval]'`."
                )
        read_rows(self.name, data_dir)
        if self.spec.grader == "code":
            return self._check_sandbox(allow_unsafe_code)
        if self.spec.grader == "instructions" and sentence_data() == "untrained":
            return [
                f"{self.name}: nltk's punkt_tab is not here, so sentences are split without its list of abbreviations, "
                "which can change instructions about numbers of sentences or capital words; get it with "
                "`python -m nltk.downloader punkt_tab` or `pip install --no-deps llama-index-core`."
            ]
        return []

    def _check_sandbox(self, allow_unsafe_code: bool) -> list[str]:
        from nrt_cli.evaluation.sandbox import missing

        holes = missing()
        if holes and not allow_unsafe_code:
            raise EvalError(
                f"{self.name} runs code that a model wrote, and this platform cannot enforce: {'; '.join(holes)}; "
                "leave the benchmark out, or accept the risk with --allow-unsafe-code."
            )
        return [f"{self.name}: code that a model wrote runs without: {'; '.join(holes)}."] if holes else []

    def documents(self, data_dir: Path | None, limit: int | None = None, seed: int = 0) -> list[Document]:
        """The documents to ask, unanswered: the same for every model, and those of a smaller limit among them.

        A limit is spread over the subsets. Raises DataError as `check` does.
        """
        rows = read_rows(self.name, data_dir)
        chosen = _sample(rows, min(filter(None, (limit, self.spec.sample)), default=None), f"{seed}/{self.name}")
        made = []
        names = {subset: self._names(subset, found) for subset, found in rows.items()}
        for subset, index in chosen:
            identity, row = names[subset][index], rows[subset][index]
            self._rows[identity] = row
            made.append(self._document(subset, identity, row))
        return made

    def _names(self, subset: str, rows: Sequence[Row]) -> list[str]:
        """A name for each row, unique in the benchmark: the hub's id where there is one, else its number."""
        own = [str(row.get(self.spec.id_column or "", index)) for index, row in enumerate(rows)]
        times = Counter(own)
        unique = [name if times[name] == 1 else f"{name}@{index}" for index, name in enumerate(own)]
        return [f"{subset}/{name}" if subset else name for name in unique]

    def _document(self, subset: str, identity: str, row: Row) -> Document:
        from nrt_cli.evaluation.lm_eval.scorers import gold
        from nrt_cli.evaluation.lm_eval.tasks import context

        turns = json.loads(context(self.spec, self.task(subset, [row]), row))
        return Document(self.name, subset, identity, tuple(turns), gold(self.spec, row))

    def task(self, subset: str, rows: Sequence[Row]) -> Any:
        """The lm-eval task of a subset; `rows` are its documents where lm-eval's own loop is to go over them."""
        from nrt_cli.evaluation.lm_eval.tasks import make_task

        if subset not in self._tasks:
            self._tasks[subset] = make_task(self.spec, subset, rows)
        return self._tasks[subset]

    def requests(
        self,
        document: Document,
        tokenizer: Any,
        think: bool,
        max_trace_tokens: int,
        seed: int,
        max_answer_tokens: int | None = None,
    ) -> list[Request]:
        """The calls of the model that a document takes, in the order in which `grade` wants their replies.

        Args:
            max_answer_tokens: lowers the suite's cap of an answer where it is smaller.
        """
        from nrt_cli.evaluation.lm_eval.tasks import to_request

        row = self._rows[document.id]
        turns = json.dumps(document.messages, ensure_ascii=False)
        found = self.task(document.subset, [row]).construct_requests(row, turns, apply_chat_template=True)
        samples = self.spec.generation.samples
        instances = [found] * samples if self.thinks else found
        key = f"{self.name}/{document.id}"
        made = [to_request(each, tokenizer, key, seed, number) for number, each in enumerate(instances)]
        if not self.thinks:
            return made
        cap = min(filter(None, (self.spec.generation.max_tokens, max_answer_tokens)))
        traces = max_trace_tokens if think else 0
        return [replace(each, think=think, max_trace_tokens=traces, max_answer_tokens=cap) for each in made]

    def grade(self, document: Document, replies: Sequence[Reply]) -> Document:
        """The document with its replies, what was found in them, and its scores. Reads answers, never traces."""
        from nrt_cli.evaluation.lm_eval.scorers import GRADERS

        row = self._rows[document.id]
        answers = [reply.answer if self.thinks else reply.logprob for reply in replies]
        grade = GRADERS[self.spec.grader](self.spec, document.subset, row, answers)
        return replace(document, replies=tuple(replies), extracted=grade.extracted, scores=grade.scores)


def _sample(rows: Mapping[str, Sequence[Row]], limit: int | None, seed: str) -> list[tuple[str, int]]:
    """Which documents are asked, in the data's order: all, or a seeded sample that takes the subsets in turn."""
    everything = [(subset, index) for subset, found in rows.items() for index in range(len(found))]
    if limit is None or limit >= len(everything):
        return everything
    shuffled = {
        subset: random.Random(f"{seed}/{subset}").sample(range(len(found)), len(found))
        for subset, found in rows.items()
    }
    order = random.Random(seed).sample(list(rows), len(rows))
    rounds = range(max(map(len, shuffled.values())))
    turns = [(subset, shuffled[subset][turn]) for turn in rounds for subset in order if turn < len(shuffled[subset])]
    place = {turn: i for i, turn in enumerate(everything)}
    return sorted(turns[:limit], key=place.__getitem__)
