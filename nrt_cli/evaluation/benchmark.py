"""A benchmark: rows, a prompt of each, and a grade of the replies to it. `evaluate.py` has the loop."""

import json
import logging
import random
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jinja2
import yaml
from jinja2.sandbox import ImmutableSandboxedEnvironment

from nrt_cli.backends.machine import version
from nrt_cli.config.suite import AS_PAIRS, BenchmarkSpec, Shots, select
from nrt_cli.errors import ConfigError, DataError, EvalError, NrtError
from nrt_cli.evaluation import olmes_grades
from nrt_cli.evaluation.benchmark_graders import grader_of, sentence_data
from nrt_cli.evaluation.rows import Row, read_rows
from nrt_cli.grading.grading import Grade, guess
from nrt_cli.records import OLMES, Document, Reply, Request
from nrt_cli.text.prompts import encode_within, prompt_text

NO_PART = {"files", "lm_eval_metrics", "lm_eval_tasks", "notes", "question", "reference", "rows", "title", "version"}
"""Keys of a benchmark that decide neither prompts nor grades, or are told otherwise: by its documents or `grading`."""


def load_suite(names: Sequence[str] = ("all",)) -> list["Benchmark"]:
    """The benchmarks that names mean, as `select` reads them. Raises ConfigError for an unknown one."""
    return [Benchmark(spec) for spec in select(names)]


class Benchmark:
    """One benchmark. `check` it before a model is loaded; then `documents`, `requests` and `grade`."""

    def __init__(self, spec: BenchmarkSpec) -> None:
        self.spec, self.name, self.thinks = spec, spec.name, spec.mode == "generate"
        self.grader = grader_of(spec)
        shots = ("lm_eval",) if spec.examples and spec.examples.lm_eval_task else ()
        self._needed = (*shots, *self.grader.packages)
        self._rows: dict[str, Row] = {}
        self._read: tuple[Any, dict[str, list[Row]]] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides prompts, generation and grading, as JSON."""
        settings = {
            "suite": self.spec.model_dump(mode="json", exclude=NO_PART if self.spec.prefill else {*NO_PART, "prefill"}),
            "grading": self.spec.version,
            "versions": {name: version(name) for name in self._needed},
        }
        return settings | ({"sentences": sentence_data()} if self.spec.grader == "instructions" else {})

    def check(self, data_dir: Path | None, allow_unsafe_code: bool = False, offline: bool = False) -> list[str]:
        """Make sure that the benchmark can be run, without a model: sentences that a person should read.

        Raises DataError for missing documents, EvalError for a missing package or a sandbox with holes, and ConfigError
        where a user's own benchmark cannot be asked or graded as its file says.
        """
        for package in self._needed:
            if find_spec(package) is None:
                raise EvalError(
                    f"{self.name} needs {package.replace('_', '-')}, which is not installed; run "
                    "`pip install 'nrt-cli[eval]'`."
                )
        # Can every row be asked, and does its grader take a reference answer for right?
        file, grader, own = self.spec.file, self.spec.grader, self.spec.own
        for subset, found in self._all_rows(data_dir, offline).items():
            for number, row in enumerate(found, 1):
                reason = ""
                try:
                    if own and not messages(self.spec, subset, row)[-1]["content"].strip():
                        reason = "its prompt is empty"
                except OSError as error:
                    raise ConfigError(f"{file}: examples: lm-eval's file cannot be read ({error}).") from None
                except Exception as error:  # whatever a prompt of the user's own computes
                    raise DataError(f"{row.where}: cannot be put into the prompt of {file} ({error}).") from None
                try:
                    answer, grade = self.grader.gold(row), Grade()
                    if own and (grader in AS_PAIRS or ":" in grader):
                        if grader in AS_PAIRS or number == 1:
                            grade = self.grader.grade(row, answer, [answer], ())
                        if grader in AS_PAIRS and (grade.score != 1 or (grader == "choice" != guess([answer]))):
                            reason = f"{answer!r} is no reference answer that grader={grader} can compare with"
                    elif grader != "code":
                        patterns = self._patterns(subset)
                        reply = answer if own and grader == "phrase" else ""
                        empty = [reply] if self.thinks else [0.0] * len(row["mc2_targets"]["labels"])
                        if grader == "phrase" and not patterns:
                            reason = f"answers has no patterns for its subset {subset!r}"
                        elif not _says_something(answer):
                            reason = "no reference answer can be read in it, so that no reply would be right"
                        # These two read more of a row than its answer.
                        elif number == 1 or reply or grader in ("mc2", "instructions"):
                            grade = self.grader.grade(row, answer, empty, patterns)
                            if reply and grade.score != 1:
                                reason = f"{answer!r} is no reference answer that the patterns of `answers` find"
                    elif number == 1:
                        grade = self.grader.grade(row, answer, [], ())  # of no program: which scores there are
                except NrtError as error:  # a function of the user's own that fails
                    raise ConfigError(f"{file}: {error}") from None
                except Exception as error:  # whatever a grader does with a row that is not for it
                    reason = f"its columns are not those that grader={grader} reads ({error!r})"
                if own and grade.scores and self.spec.metric not in {*grade.scores, "accuracy"}:
                    raise ConfigError(f"{file}: metric={self.spec.metric}: {grader} gives {', '.join(grade.scores)}.")
                if reason:
                    raise DataError(f"{row.where}: {reason} ({file}).")
        if self.spec.grader == "code":
            from nrt_cli.grading.sandbox import missing

            holes = missing()
            if holes and not allow_unsafe_code:
                raise EvalError(
                    f"{self.name} runs code that a model wrote, and this platform cannot enforce: {'; '.join(holes)}; "
                    "leave the benchmark out, or accept the risk with --allow-unsafe-code."
                )
            return [f"{self.name}: code that a model wrote runs without: {'; '.join(holes)}."] if holes else []
        if self.spec.grader == "instructions" and sentence_data() == "untrained":
            return [
                f"{self.name}: nltk's punkt_tab is not here, so sentences are split without its list of abbreviations, "
                "which can change instructions about numbers of sentences or capital words; get it with "
                "`python -m nltk.downloader punkt_tab` or `pip install --no-deps llama-index-core`."
            ]
        return []

    def _patterns(self, subset: str) -> tuple[str, ...]:
        """Those that an answer of a subset is looked for with; none where the grader has its own."""
        return self.spec.answers.get(subset, self.spec.answers.get("*", ()))

    def _all_rows(self, data_dir: Path | None, offline: bool) -> dict[str, list[Row]]:
        """All rows by subset, read once."""
        if self._read is None or self._read[0] != (data_dir, offline):
            self._read = ((data_dir, offline), read_rows(self.spec, data_dir, offline))
        return self._read[1]

    def documents(
        self, data_dir: Path | None, limit: int | None = None, seed: int = 0, offline: bool = False
    ) -> list[Document]:
        """The documents to ask, unanswered: the same for every model and harness, in the data's order.

        `BenchmarkSpec.asked` says which they are under a limit. Raises DataError as `check` does.
        """
        rows = self._all_rows(data_dir, offline)
        # The data's own id where there is one, else the row's number; what is there twice gets both.
        column = self.spec.id_column or ""
        ids = {subset: [str(row.get(column, i)) for i, row in enumerate(found)] for subset, found in rows.items()}
        times = {subset: Counter(names) for subset, names in ids.items()}
        made = []
        start, numbers = self.spec.asked(list(rows), limit, seed)
        for subset, number in numbers.items():
            drawn: Sequence[int] = range(len(rows[subset]))
            if number is not None and number < len(drawn):
                drawn = sorted(random.Random(start).sample(drawn, number))
            for index in drawn:
                name, row = ids[subset][index], rows[subset][index]
                unique = name if times[subset][name] == 1 else f"{name}@{index}"
                identity = f"{subset}/{unique}" if subset else unique
                self._rows[identity] = row
                turns = tuple(messages(self.spec, subset, row))
                made.append(Document(self.name, subset, identity, turns, self.grader.gold(row)))
        return made

    def requests(
        self,
        document: Document,
        tokenizer: Any,
        think: bool,
        max_trace_tokens: int,
        seed: int,
        max_answer_tokens: int | None = None,
        min_trace_tokens: int = 0,
    ) -> list[Request]:
        """The calls of the model that a document takes, in the order in which `grade` wants their replies.

        A request's random stream is named by the seed, the prompt and the sample's number.

        Args:
            max_answer_tokens: lowers the benchmark's cap of an answer where it is smaller.
        """
        asked, key = self.spec.generation, f"{self.name}/{document.id}"
        prompt = prompt_text(tokenizer, [dict(turn) for turn in document.messages])
        prompt_ids = tuple(tokenizer.encode(prompt, add_special_tokens=False))
        if not self.thinks:
            # A reply begins with no space, as in OLMES.
            choices = [str(choice).lstrip() for choice in self._rows[document.id]["mc2_targets"]["choices"]]
            return [
                Request(f"{key}#{i}", prompt_ids, "loglikelihood", tuple(encode_within(tokenizer, choice, prompt)))
                for i, choice in enumerate(choices)
            ]
        stream = (seed, zlib.crc32(json.dumps(document.messages, ensure_ascii=False).encode()))
        request = Request(
            key=key,
            prompt_ids=prompt_ids,
            think=think,
            max_trace_tokens=max_trace_tokens if think else 0,
            max_answer_tokens=min(filter(None, (asked.max_tokens, max_answer_tokens))),
            stop=asked.stop,
            temperature=asked.temperature,
            top_p=asked.top_p,
            min_trace_tokens=min_trace_tokens if think else 0,
            # What follows a trace is encoded as in training: by itself.
            prefill_ids=tuple(encode_within(tokenizer, self.spec.prefill, "" if think else prompt)),
        )
        return [replace(request, key=f"{key}#{i}", seed_key=(*stream, i)) for i in range(asked.samples)]

    def grade(self, document: Document, replies: Sequence[Reply]) -> Document:
        """The document with its replies, what was found in them, and its scores, of the nine also OLMES's of the same
        answers. Reads answers, never traces.
        """
        row = self._rows[document.id]
        answers = [reply.answer if self.thinks else reply.logprob for reply in replies]
        grade = self.grader.grade(row, self.grader.gold(row), answers, self._patterns(document.subset))
        scores = {self.spec.metric: grade.score, **grade.scores}
        if not self.spec.olmes:
            scores.pop(OLMES, None)
        elif self.spec.grader in olmes_grades.SCORES:
            scores[OLMES] = olmes_grades.SCORES[self.spec.grader](row, document.subset, answers)
        else:
            scores.setdefault(OLMES, scores[self.spec.metric])
        return replace(document, replies=tuple(replies), extracted=grade.extracted, scores=scores)


def messages(spec: BenchmarkSpec, subset: str, row: Row) -> list[dict[str, str]]:
    """The turns of a row's prompt: description and worked examples, then the question."""
    shots = spec.examples or Shots()
    examples: Sequence[dict[str, Any]] = shots.examples
    description = spec.description
    if shots.lm_eval_task:
        file = _lm_eval_file(shots.lm_eval_task.replace("{subset}", subset))
        examples, description = file["fewshot_config"]["samples"], str(file.get("description", ""))
    turns, text = [], _template(description).render(row)
    for example in examples[: shots.count]:
        asked = text + _template(spec.prompt).render(example)
        if shots.multiturn:
            turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": example["target"]}]
            text = ""
        else:
            text = f"{asked}{shots.delimiter}{example['target']}\n\n"
    return [*turns, {"role": "user", "content": text + _template(spec.prompt).render(row)}]


def _says_something(answer: Any) -> bool:
    """Whether there is any text in a reference answer, which may be a list of lists."""
    return any(map(_says_something, answer)) if isinstance(answer, list) else bool(str(answer or "").strip())


def _written(value: Any) -> Any:
    """What a prompt writes for a value. Raises TemplateRuntimeError for what only Python would write so."""
    if value is None or isinstance(value, list | dict):
        what = "a list, to be written by `| join(', ')` or in a loop" if isinstance(value, list) else "no text"
        raise jinja2.TemplateRuntimeError(f"{value!r:.60} is {what}")
    return value


@cache
def _template(text: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, finalize=_written
    )
    return environment.from_string(text)


@cache
def _lm_eval_file(name: str) -> dict[str, Any]:
    """One of lm-eval's own task files."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    import lm_eval

    return dict(yaml.safe_load((Path(str(lm_eval.__file__)).parent / "tasks" / name).read_text(encoding="utf-8")))
