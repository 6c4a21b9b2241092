"""The nouns that travel between rooms: frozen, plain, free of torch.

A trace is token ids from sampling to loss; it is decoded only to be shown.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple

OLMES = "olmes"
"""Name of the score that OLMES gives a document, among its scores."""

ACCURACIES = {"thinking": "thinking", "null": "null trace", "direct": "direct", "other_trace": "other row's trace"}
"""The accuracies on question-answer pairs and what they are called; `grading.accuracies` defines them."""

Stop = Literal["end", "eos", "cap"]
"""Why a trace stopped: the policy sampled t_end, it sampled `eos`, or it ran into the length cap.

`eos` is any token that may not stand in a trace: one that ends the model's answers, or t_start.
"""

Fault = Literal["", "failed", "refused"]
"""Why an answer has no verdict but 0: its grader hung, crashed or gave no score; or it is no answer at all."""

Ended = Literal["finished", "failed", "interrupted"]
"""How work that was begun came to its end."""

Status = Literal["created", "running", "stopped", Ended]
"""Of a run; one that was killed is `stopped`, since it could not say so itself."""


@dataclass(frozen=True)
class Example:
    """One question-answer pair as token ids.

    `index` is the number of its row in the file, from 0. `prompt_ids` is x rendered up to where the assistant turn
    begins; `answer_ids` is y* with its closing eos; `trace_ids` is z*, () where none is trained on.
    """

    index: int
    source: str
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    trace_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What a verifier gives an answer, 0 to 1; 0 where it has a fault."""

    score: float
    fault: Fault = ""


@dataclass(frozen=True)
class SampledAnswer:
    """An answer that the policy sampled after a trace and t_end, and its verdict once there is one.

    `ids` are all that was sampled, with what ended it: a token that ends the model's answers where it is `finished`,
    else a think token, or nothing at the cap. `sampler_logprobs` are theirs, in nats.
    """

    ids: tuple[int, ...]
    sampler_logprobs: tuple[float, ...]
    finished: bool
    verdict: Verdict | None = None


@dataclass(frozen=True)
class Rollout:
    """One sampled trace z, without t_end, and the sampler's natural log-probabilities of what it sampled.

    `sampler_logprobs` has one entry per token that the policy sampled: those of z, and `ended_by`, what ended it. That
    is t_end, or another token that ends a trace (`stop` is then `eos`), in whose place t_end stands; None at the cap.
    """

    trace_ids: tuple[int, ...]
    sampler_logprobs: tuple[float, ...]
    stop: Stop
    ended_by: int | None = None
    answer: SampledAnswer | None = None
    guided: bool = False
    """Whether the policy saw y* when it sampled; then `sampler_logprobs` are what it said with y* in view."""

    @property
    def forced(self) -> bool:
        """True where t_end was appended by us instead of sampled by the policy."""
        return self.stop != "end"


@dataclass(frozen=True)
class RolloutGroup:
    """The K traces sampled for one example."""

    example: Example
    rollouts: tuple[Rollout, ...]


@dataclass(frozen=True)
class HeldOut:
    """Held-out scores: their means, and each example's log-probs per answer token, eos included.

    `answer_logprobs` are given the trace of the example's group, `null_logprobs` given the null trace. For SFT there
    are no groups: `answer_logprobs` are of the direct answer, and there is no null trace.
    """

    metrics: Mapping[str, float]
    answer_logprobs: tuple[tuple[float, ...], ...]
    groups: tuple[RolloutGroup, ...] = ()
    null_logprobs: tuple[tuple[float, ...], ...] = ()


class Column(NamedTuple):
    """A column of a stored table: its Arrow type, what its values are counted in, and what they are."""

    type: str
    unit: str
    what: str


def _column(type_: str, unit: str, what: str) -> Any:
    """A field of a table's row."""
    return field(default=None, metadata={"column": Column(type_, unit, what)})


@dataclass(frozen=True)
class TraceRow:
    """A row of the trace table: a trace, or a direct answer of SFT. None is what was not measured.

    Types of the table's columns and their documentation in `nrt_cli/store/README.md` are these fields'.
    """

    step: int | None = _column("int64", "int", "the step that sampled the trace")
    example: int | None = _column("int64", "int", "the number of the example's row in the data, from 0")
    source: str | None = _column("string", "text", "the example's data source")
    k: int | None = _column("int64", "int", "which of the K traces of its group")
    prompt: str | None = _column("string", "text", "x, decoded with its special tokens, as are the next two")
    trace: str | None = _column("string", "text", "z")
    answer: str | None = _column("string", "text", "y*")
    stop: str | None = _column(
        "string",
        "text",
        "why the trace ended: `end` (it sampled `t_end`), `eos` (it sampled a token that ends the model's "
        "answers, or `t_start`; `t_end` stands in its place), or `cap`",
    )
    prompt_ids: Sequence[int] | None = _column("list<int32>", "ids", "x")
    trace_ids: Sequence[int] | None = _column("list<int32>", "ids", "z, without `t_end`")
    answer_ids: Sequence[int] | None = _column("list<int32>", "ids", "y* with its eos")
    sampler_logprobs: Sequence[float] | None = _column(
        "list<float>", "nats", "log p of what the sampler drew: z, and the token that ended it unless `stop` is `cap`"
    )
    sampled: Sequence[bool] | None = _column(
        "list<bool>",
        "bool",
        "over trace positions: whether the policy chose the token that is scored; False for an appended `t_end`, "
        "True where `objective.credit_eos` has the eos scored in its place",
    )
    trace_logprobs: Sequence[float] | None = _column(
        "list<float>", "nats", "over trace positions: log p under the policy being trained"
    )
    trace_entropies: Sequence[float] | None = _column("list<float>", "nats", "over trace positions: exact entropy")
    answer_logprobs: Sequence[float] | None = _column(
        "list<float>", "nats", "over answer tokens: log c, given the trace"
    )
    null_logprobs: Sequence[float] | None = _column(
        "list<float>", "nats", "over answer tokens: log c_base, given the null trace"
    )
    # Those of `p` lie far below what a float holds.
    token_signals: Sequence[float] | None = _column(
        "list<double>", "-", "over answer tokens: the factor (df/dc) c of the answer term"
    )
    gain: float | None = _column("double", "nats", "sum of `answer_logprobs` - sum of `null_logprobs`")
    sampled_answer: str | None = _column("string", "text", "the answer that was sampled after the trace, and judged")
    verdict: float | None = _column("double", "0 to 1", "its score by the row's grader")
    verdict_fault: str | None = _column(
        "string",
        "text",
        "why it has none but 0: `failed` (the grader hung, crashed or gave no score), `refused` (it was no answer: "
        "cut, empty, the question again, or several at once); empty otherwise",
    )
    reward: float | None = _column("double", "the scheme's", "R of the trace; may underflow to 0")
    reward_base: float | None = _column("double", "the scheme's", "R of the null trace; likewise")
    reward_scaled: float | None = _column(
        "double", "-", "`reward` divided by the group's largest: what advantages are made of"
    )
    reward_base_scaled: float | None = _column("double", "-", "`reward_base` divided by the same")
    reward_log_scale: float | None = _column("double", "nats", "log of what they were divided by")
    advantage: float | None = _column("double", "-", "A of the trace")
    dead_group: bool | None = _column("bool", "bool", "whether the whole group has no signal")
    grader: str | None = _column("string", "text", "how replies to the example are graded")
    thinking_reply: str | None = _column("string", "text", "the greedy answer that `accuracy_thinking` is of")
    thinking_score: float | None = _column("double", "0 to 1", "its grade")
    null_reply: str | None = _column("string", "text", "the greedy answer that `accuracy_null` is of")
    null_score: float | None = _column("double", "0 to 1", "its grade")
    direct_reply: str | None = _column("string", "text", "the greedy answer that `accuracy_direct` is of")
    direct_score: float | None = _column("double", "0 to 1", "its grade")
    other_trace_reply: str | None = _column("string", "text", "the greedy answer that `accuracy_other_trace` is of")
    other_trace_score: float | None = _column("double", "0 to 1", "its grade")


TRACE_COLUMNS: dict[str, Column] = {each.name: each.metadata["column"] for each in fields(TraceRow)}


@dataclass(frozen=True)
class XrayRow:
    """What `nrt analyze xray` found of one trace; its N steps are spans of its tokens. None is what was not measured.

    As with `TraceRow`, the types of the table's columns and their documentation are these fields'.
    """

    traces: str | None = _column(
        "string", "text", "the trace table that it is from; `sampled` or `given` for one that is in none"
    )
    step: int | None = _column("int64", "int", "the step that sampled the trace, as in the trace table")
    example: int | None = _column("int64", "int", "the number of the example's row in the data, likewise")
    k: int | None = _column("int64", "int", "which of the example's traces, likewise")
    model_step: int | None = _column("int64", "int", "the step whose model scored it")
    unit: str | None = _column("string", "text", "what a step is: a `sentence` or a `word`")
    steps: Sequence[str] | None = _column("list<string>", "text", "the steps; joined, they are z")
    ends: Sequence[int] | None = _column(
        "list<int32>", "tokens", "how much of `trace_ids` each step and those before are"
    )
    necessity: Sequence[float] | None = _column(
        "list<double>", "nats", "of each step: log P(y*) given the trace - log P(y*) given the trace without the step"
    )
    needed: Sequence[float] | None = _column(
        "list<double>",
        "nats",
        "of each step: the same, or what changing its numbers and names takes from the answer or from a later "
        "step that is needed, whichever is most",
    )
    kept: Sequence[float] | None = _column(
        "list<double>", "nats", "log P(y*) given the first n steps alone, for n = 0 to N: the last is that of the trace"
    )
    null_logprob: float | None = _column("double", "nats", "log P(y*) given the null trace")
    decided: int | None = _column(
        "int64", "steps", "the first n from which the answer is decided (`nrt help analysis`)"
    )
    gained: float | None = _column(
        "double",
        "nats",
        "what the words that tell most of y* add to log P(y*) for good",
    )
    smuggled: float | None = _column(
        "double",
        "share",
        "of `gained`: what those words' own surprise pays for: they were told or guessed, the rest was computed",
    )
    shuffled: float | None = _column("double", "nats", "log P(y*) given the steps in another order")
    changed: float | None = _column("double", "nats", "log P(y*) given the trace with other numbers and names")
    masked: float | None = _column(
        "double", "nats", "log P(y*) given the trace without the words that the answer has and the question has not"
    )
    swapped: float | None = _column("double", "nats", "log P(y*) given another question's trace")
    filler: float | None = _column("double", "nats", "log P(y*) given as many full stops")
    copied: float | None = _column(
        "double", "share", "of the answer's words that the question has not: those that the trace has"
    )


XRAY_COLUMNS: dict[str, Column] = {each.name: each.metadata["column"] for each in fields(XrayRow)}


@dataclass(frozen=True)
class Request:
    """One call of a model: an answer to generate, with or without a trace before it, or a continuation to score.

    `prompt_ids` is x rendered up to where the assistant turn begins, without t_start. What is generated depends on
    the request alone, never on what is computed beside it: `seed_key` names its random stream. `temperature` 0 is
    greedy. With `min_trace_tokens` 1, the trace may not be skipped. `trace_ids` is a trace that is given, () the null
    trace; None lets the model think for itself. The reply goes on from `prefill_ids`, which begin the answer.
    """

    key: str
    prompt_ids: tuple[int, ...]
    mode: Literal["generate", "loglikelihood"] = "generate"
    continuation_ids: tuple[int, ...] = ()
    think: bool = False
    max_trace_tokens: int = 0
    max_answer_tokens: int = 0
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    seed_key: tuple[int, ...] = ()
    min_trace_tokens: int = 0
    trace_ids: tuple[int, ...] | None = None
    prefill_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Reply:
    """What a model made of a request. `answer` is what graders see; the trace is stored beside it.

    `stop` says how the trace ended and is None where there was none; `cut` is True for an answer that ran into its
    cap; `logprob` is the continuation's, in nats, and None for generated text.
    """

    trace: str = ""
    answer: str = ""
    trace_tokens: int = 0
    answer_tokens: int = 0
    stop: Stop | None = None
    cut: bool = False
    logprob: float | None = None
    trace_ids: tuple[int, ...] = field(default=(), compare=False, repr=False)

    @property
    def forced(self) -> bool:
        """True where t_end was appended by us instead of sampled by the policy."""
        return self.stop in ("eos", "cap")


@dataclass(frozen=True)
class Document:
    """One question of a benchmark, and once it is answered and graded, what came of it.

    `id` is unique in the benchmark and the same for every model; `subset` is "" where there are none. `messages` are
    the turns of the prompt; `gold` is JSON. `scores` has the benchmark's metrics, each in [0, 1], for one of the nine
    also what OLMES gives it (`OLMES`); `extracted` is what the grader found in each reply, None for nothing.
    """

    benchmark: str
    subset: str
    id: str
    messages: tuple[Mapping[str, str], ...]
    gold: Any
    replies: tuple[Reply, ...] = ()
    extracted: tuple[str | None, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelShape:
    """What of a decoder decides its memory and work. `parameters` counts a tied head once."""

    name: str
    parameters: int
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool


@dataclass(frozen=True)
class Overlap:
    """What of the training data is asked elsewhere too.

    `shared_with_validation` counts the held-out questions that are trained on, of `validation_questions`; None where
    nothing is held out. `shared_with_benchmarks` counts each benchmark's documents that stand in the training data, of
    `benchmark_documents`; a benchmark is left out where none of its documents are on this machine.
    """

    shared_with_validation: int | None
    validation_questions: int
    shared_with_benchmarks: Mapping[str, int]
    benchmark_documents: Mapping[str, int]


@dataclass(frozen=True)
class Gpu:
    """A device: bytes of memory, products per second at the compute dtype, and bytes per second of its memory.

    The last two are NaN where they are not known, and so is then every time predicted from them.
    """

    name: str
    memory: float
    flops: float = math.nan
    bandwidth: float = math.nan


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of a prompt, an answer with its eos, and a trace; and where the numbers are from."""

    prompt: float
    answer: float
    trace: float
    source: str


@dataclass(frozen=True)
class Plan:
    """What a training run will take, predicted before it starts.

    `tokens` are of a step at the expected lengths, `tokens_most` where every row is as long as the caps allow, and
    likewise `gpu_hours` and `gpu_hours_most` of the whole run; `scoring` is the seconds of its held-out scores, NaN
    where not predicted. `memory` lists the update's parts in bytes per GPU, whose sum is `memory_update`;
    `memory_rollout` is what rollouts take, and `memory_host` what states take that a GPU leaves to the CPU's memory.
    `disk` is the most bytes of the run directory, `disk_kept` what is left.
    """

    method: str
    engine: str
    model: ModelShape
    gpu: Gpu
    nodes: int
    gpus: int
    tensor: int
    sequence: int
    lengths: Lengths
    examples: int
    steps: int
    updates: int
    sequences: int
    tokens: float
    tokens_most: float
    memory: tuple[tuple[str, float], ...]
    memory_update: float
    memory_rollout: float
    memory_host: float
    seconds: float
    scoring: float
    gpu_hours: float
    gpu_hours_most: float
    disk: float
    disk_kept: float
    assumptions: tuple[str, ...]

    @property
    def memory_peak(self) -> float:
        """Bytes per GPU at the worst moment."""
        return max(self.memory_update, self.memory_rollout)

    @property
    def fits(self) -> bool:
        return self.memory_peak <= self.gpu.memory


def json_line(record: Mapping[str, Any]) -> str:
    """A record as one line of JSON. What is not finite (NaN: not measured) becomes null, which all readers know."""
    return json.dumps(measured(record), ensure_ascii=False, default=float)


def measured(value: Any) -> Any:
    """A value with None for every number in it that is not finite, which JSON does not know."""
    if isinstance(value, Mapping):
        return {key: measured(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [measured(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
