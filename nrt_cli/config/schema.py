"""The schema of a run's configuration: every section, its defaults, and what cannot be meant together.

A default is what a run does whose config is older than its key; presets (`configs/presets`) say what they do otherwise.
Row numbers refer to the decisions table in CONTRIBUTING.md.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from nrt_cli import methods
from nrt_cli.backends import BACKENDS, Facts
from nrt_cli.config.validation import Section, Seed, nearest
from nrt_cli.methods import METHODS, own_name


class LoraSection(Section):
    """A trained update of low rank (LoRA), in place of training all weights."""

    rank: int | None = Field(
        None,
        ge=1,
        description="Rank of a trained update of every linear layer, beside frozen weights; the think tokens' own rows "
        "are trained too. null trains all weights.",
    )
    alpha: float = Field(32.0, gt=0, description="The update is multiplied by alpha / rank.")


class ModelSection(Section):
    """The starting model, and how it is computed with."""

    path: str = Field("", description="Folder made by `nrt model prepare`.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Compute dtype; auto is bfloat16 where the hardware multiplies it, and is recorded as what it is. "
        "bfloat16 keeps float32 master weights in the optimiser.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto is cuda where there is a GPU, else cpu.")
    lora: LoraSection = LoraSection()
    gradient_checkpointing: bool = Field(False, description="Recompute activations in the backward pass.")


class DataSection(Section):
    """Question-answer pairs to train on and to hold out."""

    train: str = Field(
        "",
        description="Parquet written by `nrt data prepare`, or `generated:NAME?size=N`; `...&suffix=TEXT` ends each "
        "question with a line more.",
    )
    validation: str | None = Field(
        None, description="Parquet, or `generated:NAME?size=N`, that is held out; null for none."
    )
    max_prompt_tokens: int = Field(4096, ge=1, description="Longer prompts are dropped before training.")
    max_answer_tokens: int = Field(4096, ge=1, description="Longer answers (eos included) are dropped before training.")
    strict: bool = Field(False, description="Stop at a row that cannot be read, instead of leaving it out.")
    traces: bool = Field(
        False, description="sft: train on the reference traces that rows have, before their answers (Eq. 1, row 28)."
    )


class TokensSection(Section):
    """The special tokens that a trace stands between."""

    think_start: str | None = Field(
        "<|think_start|>", min_length=1, description="Begins the trace; null: it follows the prompt directly (row 11)."
    )
    think_end: str = Field("<|think_end|>", min_length=1, description="Ends the trace; y* follows it.")


class Weights(Section):
    """Weights of the loss terms (row 20)."""

    trace: float = Field(1.0, ge=0, description="Policy gradient on the trace; 0 is the control run.")
    answer: float = Field(1.0, ge=0, description="Cross-entropy of y*, each token by its signal.")
    format: float = Field(0.3, ge=0, description="Cross-entropy of the think tokens (Eq. 11).")


_WEIGHTED = ", ".join(name for name, method in METHODS.items() if "weight_cap" in method.reads)


class ObjectiveSection(Section):
    """How traces are rewarded, and what is learned from them and from y*."""

    token_signal: Literal["shared", "derived", "fixed"] = Field(
        "derived",
        description="What multiplies an answer token's cross-entropy (row 1). shared: 1 on average over a group's "
        "traces, most of it where the trace made the token likely. derived: Eq. 8's (df/dc_i) c_i. fixed: 1, plain SFT "
        "on y*.",
    )
    balance: Literal["off", "auto"] = Field(
        "off",
        description="auto: a group's answer term is weighed down, beyond its weight, where it would pull harder than "
        "a tenth of what the trace term can; off: its weight alone counts (row 20).",
    )
    baseline: Literal["clip", "none"] = Field(
        "clip", description="clip: R' = max(0, R - R_base), Eq. 9; none: R' = R (row 3)."
    )
    advantage: Literal["std", "unbiased-std", "rloo", "mean", "raw", "scaled"] = Field(
        "std",
        description="How R' becomes A within a group: Eq. 10 with population or sample std, leave-one-out, "
        "mean-centred, R' itself (row 4), or R' over its std without centring, within -1 and 1 (row 34).",
    )
    std_floor: float = Field(1e-6, ge=0, description="A group whose std is at most this share of its scale gets A = 0.")
    weight_cap: float | None = Field(None, gt=0, description=f"Upper bound on the weights of {_WEIGHTED}.")
    weighted_sum: Literal["sum", "mean"] = Field(
        "sum", description=f"mean divides the weighted sums of {_WEIGHTED} by T (row 7)."
    )
    ratio: Literal["ppo", "cispo", "sequence"] = Field(
        "ppo",
        description="Importance ratio: of each trace token, bounded as in PPO or CISPO, or Eq. 8's of the whole trace "
        "(row 8).",
    )
    clip_low: float = Field(0.2, ge=0, lt=1, description="ppo and cispo: ratios are bounded below by 1 - clip_low.")
    clip_high: float = Field(0.28, ge=0, description="ppo and cispo: ratios are bounded above by 1 + clip_high.")
    credit_forced_end: bool = Field(False, description="Policy gradient also on a t_end nobody sampled (row 9).")
    credit_eos: bool = Field(
        False, description="Policy gradient also on an eos that was sampled and ended a trace (row 30)."
    )
    format: Literal["both", "missed-end"] = Field(
        "both", description="Which think tokens Eq. 11 supervises: both, or t_end where it was not sampled (row 10)."
    )
    null_trace: Literal["think", "bare"] = Field("think", description="bare: no t_start in the null sequence (row 12).")
    length_divisor: Literal["cap"] | Annotated[int, Field(ge=1)] = Field(
        "cap", description="Dr.GRPO's constant divisor; cap = rollout.max_trace_tokens (row 16)."
    )
    tis_cap: float | None = Field(
        None,
        gt=0,
        description="Truncated importance sampling: upper bound on the trainer's probability of a trace token over the "
        "sampler's, which multiplies its term; null is off (row 18).",
    )
    kl_weight: float = Field(0.0, ge=0, description="KL to the starting model on sampled trace tokens (row 19).")
    entropy_weight: float = Field(0.0, ge=0, description="Bonus for trace entropy (row 19).")
    reward_kl: float = Field(
        0.05, ge=0, description="What a nat of a trace's divergence from the starting model costs in R (row 36)."
    )
    guided_share: float = Field(
        0.5, gt=0, lt=1, description="Share of a group's traces that are sampled with y* in view, one at least."
    )
    follower_keep: float = Field(
        0.9,
        ge=0,
        le=1,
        description="Methods with a slow copy of the policy: the share of itself that it keeps each time.",
    )
    follower_every: int = Field(100, ge=1, description="The same: optimiser steps between two such moves.")
    weights: Weights = Weights()


SLACK = 16
"""Tokens that an answer may have beyond its reference, or the longest of them: it may be said in other words."""


class RolloutSection(Section):
    """How traces are sampled."""

    group_size: int = Field(8, ge=1, description="K, traces per prompt.")
    temperature: float = Field(
        1.0, gt=0, description="Divides the logits that traces are sampled from; they are scored at it too."
    )
    max_trace_tokens: int = Field(2048, ge=1, description="A longer trace is cut there and t_end appended (row 13).")
    max_response_tokens: int | None = Field(
        None,
        ge=3,
        description="Most tokens of a trace, its t_end and y* together: a trace is sampled up to what its y* leaves, "
        "and a y* that leaves nothing is dropped before training; null: each to its own cap (row 24).",
    )
    max_answer_tokens: int | None = Field(
        None,
        ge=1,
        description="Methods with a verifier: a longer sampled answer is cut there, and a cut one is worth nothing; "
        f"null: {SLACK} tokens more than the row's reference answer.",
    )
    batch_rows: int | None = Field(
        None, ge=1, description="Traces decoded together; null: 64, with vLLM on a GPU 512, verl on a CPU 16."
    )
    engine: Literal["auto", "native", "vllm"] = Field(
        "auto", description="What decodes; auto is vllm on a GPU where it is installed, else native, and is recorded."
    )
    cache_share: float | None = Field(
        None, gt=0, lt=1, description="vllm: share of the device's memory for keys and values; null is 0.2."
    )

    def trace_cap(self, answer_tokens: int) -> int:
        """Most tokens of a trace before a y* of so many, its eos included; one where no room is left."""
        if self.max_response_tokens is None:
            return self.max_trace_tokens
        return max(1, min(self.max_trace_tokens, self.max_response_tokens - 1 - answer_tokens))

    def answer_cap(self, answer_tokens: int) -> int:
        """Most tokens of an answer that is sampled where the reference has so many."""
        return self.max_answer_tokens or answer_tokens + SLACK


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimiserSection(Section):
    """AdamW and its learning rate."""

    lr: float = Field(1e-5, gt=0, description="Learning rate, after warm-up and before decay (row 17).")
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="Decay of the mean gradient and of its square (row 17).")
    eps: float = Field(
        1e-8, gt=0, description="Added to the root of the mean square, so that nothing is divided by 0 (row 17)."
    )
    weight_decay: float = Field(0.01, ge=0, description="Decoupled weight decay.")
    clip_norm: float = Field(1.0, gt=0, description="A gradient with a larger norm is scaled down to it.")
    schedule: Literal["constant", "cosine", "linear"] = Field(
        "constant", description="The rate after warm-up: constant, or falling to 0 at the last step."
    )
    warmup: float = Field(0.0, ge=0, lt=1, description="Share of the steps over which the rate rises from 0.")
    states: Literal["float32", "8bit", "cpu"] = Field(
        "float32",
        description="Where and how AdamW keeps its moments: float32 beside the model; in 8 bits (bitsandbytes, paged "
        "on a GPU); or, with the float32 weights, in the CPU's memory and arithmetic, where gradients go once a step.",
    )


class TrainSection(Section):
    """How long training goes, in what batches, and what it leaves behind."""

    epochs: int = Field(1, ge=1, description="Times that all pairs are trained on.")
    steps: int | None = Field(
        None, ge=1, description="Training steps, whatever epochs says; null: as many as these take."
    )
    batch_size: int = Field(256, ge=1, description="Prompts per step.")
    minibatch_size: int | None = Field(64, ge=1, description="Prompts per optimiser step; null: the whole batch.")
    micro_batch_tokens: int = Field(16384, ge=1, description="Tokens per forward pass; results do not depend on it.")
    checkpoint_every: int = Field(50, ge=1, description="Steps between checkpoints; the last step has one too.")
    keep_checkpoints: int = Field(2, ge=1, description="Newest checkpoints that are kept, beside the best one.")
    validate_every: int | None = Field(None, ge=1, description="Steps between held-out scores; null: first and last.")
    validation_size: int = Field(64, ge=1, description="Held-out examples scored.")
    trace_groups: int = Field(32, ge=0, description="Groups per step whose traces are stored.")
    on_collapse: Literal["warn", "stop"] = Field(
        "warn", description="What to do when traces collapse: shorter, less varied or less useful, and nothing learned."
    )
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads; null: as many as physical cores.")


def _known_backend(name: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{name!r} is unknown{nearest(name, list(BACKENDS))}; choose one of {', '.join(BACKENDS)}")
    return name


class EngineSection(Section):
    """Where training is computed."""

    name: Annotated[str, AfterValidator(_known_backend)] = Field(
        next(name for name, facts in BACKENDS.items() if not facts.DISTRIBUTED),
        description="; ".join(f"{name}: {facts.SUMMARY}" for name, facts in BACKENDS.items()) + ".",
        json_schema_extra={"enum": [*BACKENDS]},
    )
    packing: Literal["auto", "off"] = Field(
        "auto", description="Compute what a group's rows share once, where the architecture allows it exactly."
    )
    patience: float = Field(3600.0, gt=0, description="verl: seconds that anything waited for may take.")


class ParallelSection(Section):
    """Settings of the verl engine alone; none changes what a step computes, up to rounding."""

    nodes: int = Field(1, ge=1, description="Machines of the Ray cluster that train.")
    gpus_per_node: int = Field(1, ge=1, description="One rank each; without a GPU, that many ranks on the CPU.")
    tensor: int = Field(1, ge=1, description="GPUs that share one copy of the sampler's weights (vLLM).")
    sequence: int = Field(1, ge=1, description="GPUs that share one row of the update (Ulysses).")
    offload: bool = Field(False, description="Weights and moments wait in the CPU's memory between phases.")

    @property
    def ranks(self) -> int:
        """Processes that train, over all nodes."""
        return self.nodes * self.gpus_per_node


class TrackSection(Section):
    """Experiment trackers that metrics are sent to."""

    to: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = Field((), description="Which ones.")
    project: str = Field("nrt", description="Their project, or MLflow's experiment; TensorBoard has none.")


class OlmesSection(Section):
    """Where OLMES is, which cannot share this environment, and what it may use."""

    python: str | None = Field(
        None, description="The Python interpreter of the environment that OLMES is installed in."
    )
    max_length: int = Field(
        8192, ge=1, description="Most tokens of prompt and generation; OLMES's own default is 2048."
    )
    trace_budget: Literal["own", "shared"] = Field(
        "own",
        description="own: eval.max_trace_tokens, then OLMES's budget and stop strings for the answer alone; shared: "
        "OLMES to the letter, which counts both in one, 15 tokens in PopQA, and an unclosed trace as an empty answer.",
    )
    batch_size: int = Field(8, ge=1, description="For model type hf; vllm batches by itself.")
    gpus: int = Field(1, ge=0, description="GPUs that OLMES may use; 0: the CPU.")


class EvalSection(Section):
    """Settings of `nrt eval`; none changes what training does."""

    data_dir: str | None = Field(
        None, description="Folder of local benchmark rows, one folder per benchmark; null: the hub's datasets."
    )
    offline: bool = Field(
        False, description="Documents that data_dir has no folder of come from a package on this machine, not the hub."
    )
    seed: Seed = Field(0, description="Seed of --limit's sample of documents (0: OLMES's own) and of sampled answers.")
    grading: Literal["strict", "olmes"] = Field(
        "strict",
        description="Which grades are shown; both are stored. olmes: OLMES's, oddities and all, as in Table 3.",
    )
    max_trace_tokens: int = Field(2048, ge=1, description="Think budget; then t_end is forced.")
    max_answer_tokens: int | None = Field(None, ge=1, description="Lowers every benchmark's own cap, for smoke tests.")
    max_samples: int | None = Field(
        None, ge=1, description="Lowers every number of samples, likewise; pass@10 takes 10."
    )
    math_greedy: bool = Field(False, description="MATH greedily, as OLMES had it until May 2025, and not at 0.7.")
    batch_rows: int | None = Field(
        None,
        ge=1,
        description="Answers generated together; results do not depend on it; null: 16, with vLLM on a GPU 512.",
    )
    olmes: OlmesSection = OlmesSection()


Price = Annotated[float, Field(ge=0)]


class JudgeSection(Section):
    """Settings of `nrt judge`; none changes what training does. The defaults are Appendix H's where it names one."""

    models: tuple[str, ...] = Field(
        ("grok-4.1-fast",), min_length=1, description="The judges, by the names that the endpoint knows them by."
    )
    template: str = Field(
        "judge/trace-quality",
        description="What a judge is asked: a YAML like the shipped one, or one prompt as text, such as Table 8's.",
    )
    n: int = Field(100, ge=1, description="Held-out examples judged per checkpoint, the same for all of them.")
    seed: Seed = Field(0, description="Decides which examples.")
    temperature: float | None = Field(0.0, ge=0, description="null: not sent, as to judges that refuse one.")
    max_output_tokens: int = Field(2048, ge=1, description="Cap on a judge's reply.")
    concurrency: int = Field(8, ge=1, description="Requests under way at a time.")
    timeout: float = Field(120.0, gt=0, description="Seconds to wait for a reply.")
    retries: int = Field(6, ge=0, description="Tries after a first one that the endpoint could not serve.")
    prices: dict[str, tuple[Price, Price]] = Field(
        {"grok-4.1-fast": (0.20, 0.50)},
        description="US dollars per million tokens in and out, by judge. They change: check them with the provider.",
    )

    @field_validator("models")
    @classmethod
    def _each_once(cls, models: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(models)) < len(models):
            raise ValueError("a judge is named twice, which would count as agreement; name each once")
        return models


class RunSettings(Section):
    """The settings of a training run, each by itself."""

    preset: Literal["nrt", "paper", "as-run", "reference"] = Field(
        "paper", description="Whose settings the others differ from; a run that names none has nrt (row 22)."
    )
    method: Annotated[str, AfterValidator(own_name)] = Field(
        methods.DEFAULT,
        description="One of `nrt train --help`, a paper's name of it, module:function or module:Class.",
        json_schema_extra={"enum": [*METHODS, "module:function", "module:Class"]},
    )
    seed: Seed = Field(0, description="Decides the order of the data and what is sampled.")
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    tokens: TokensSection = TokensSection()
    objective: ObjectiveSection = ObjectiveSection()
    rollout: RolloutSection = RolloutSection()
    optimiser: OptimiserSection = OptimiserSection()
    train: TrainSection = TrainSection()
    engine: EngineSection = EngineSection()
    parallel: ParallelSection = ParallelSection()
    verl: dict[str, Any] = Field(
        {}, description="Any setting of verl's own, by its path there; what one of the keys here decides is refused."
    )
    track: TrackSection = TrackSection()
    eval: EvalSection = EvalSection()
    judge: JudgeSection = JudgeSection()


class RunConfig(RunSettings):
    """Everything that decides what a training run does: settings that can all be meant together."""

    @model_validator(mode="after")
    def _no_contradictions(self) -> "RunConfig":
        for problem in _contradictions(self):
            raise ValueError(problem)
        return self

    @property
    def thinks(self) -> bool:
        """Whether the model learns to think before it answers."""
        return self.samples or self.data.traces

    @property
    def samples(self) -> bool:
        """Whether training samples traces."""
        return methods.facts(self.method).samples

    @property
    def asks(self) -> frozenset[str]:
        """What has to be computed besides the policy's own log-probs (`methods.ASKS`); a user's method is imported."""
        asks = methods.loaded(self.method).asks
        asks |= {"answers"} if "verdicts" in asks else set()  # which are sampled to be judged
        return asks | {"reference"} if self.objective.kl_weight else asks

    @property
    def backend(self) -> Facts:
        """Where it is computed."""
        return BACKENDS[self.engine.name]

    @property
    def longest_answer(self) -> int:
        """Most tokens of a y* that is trained on: it leaves a response a token of trace and its t_end."""
        bound, own = self.rollout.max_response_tokens, self.data.max_answer_tokens
        return own if bound is None else min(own, bound - 2)

    @property
    def longest_response(self) -> int:
        """Most tokens of t_start, a trace, t_end and y*, or the answer that is sampled in its place."""
        bound, apart = self.rollout.max_response_tokens, self.rollout.max_trace_tokens + self.longest_answer + 2
        return self.more_than_answer + (apart if bound is None else min(apart, bound + 1))

    @property
    def more_than_prompt(self) -> int:
        """Most tokens that a prompt which shows y* has beyond the longest x."""
        return self.data.max_prompt_tokens + self.longest_answer if "guide" in self.asks else 0

    @property
    def more_than_answer(self) -> int:
        """Most tokens that a sampled answer, where the method asks for one, has beyond the longest y*."""
        most = self.rollout.answer_cap(self.longest_answer) if "answers" in self.asks else 0
        return max(0, most - self.longest_answer)


def idle(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Keys and sections that nothing reads beside the other settings, and why. A file may have them for other methods
    than the one that is trained, so only who names one for this run is refused."""
    method, objective, facts = f"on method {config.method!r}", config.objective, methods.facts(config.method)
    if not facts.samples:
        yield "rollout.group_size", f"{method}, which samples no traces"
        unread = [name for name in ObjectiveSection.model_fields if name != "null_trace"]
        yield from ((f"objective.{name}", f"{method}, which samples no traces") for name in unread)
    elif config.method in METHODS:
        yield from (
            (f"objective.{key}", method) for each in METHODS.values() for key in each.reads if key not in facts.reads
        )
        if "answers" not in config.asks:
            yield "rollout.max_answer_tokens", f"{method}, which samples no answers"
        if "follower" not in facts.asks:
            yield from ((f"objective.follower_{key}", f"{method}, which has no slow copy") for key in ("keep", "every"))
    if objective.advantage not in ("std", "unbiased-std", "scaled"):
        yield "objective.std_floor", f"with objective.advantage={objective.advantage}"
    if objective.ratio == "sequence":
        yield from ((f"objective.{key}", "with objective.ratio=sequence") for key in ("clip_low", "clip_high"))
    if config.model.lora.rank is None:
        yield "model.lora.alpha", "without model.lora.rank"
    if config.train.steps is not None:
        yield "train.epochs", "beside train.steps"
    if config.data.validation is None and not config.data.train.startswith(
        "generated:"
    ):  # of which a share is held out
        yield from ((f"train.{key}", "without data.validation") for key in ("validate_every", "validation_size"))


def _contradictions(config: RunConfig) -> Iterator[str]:
    """Sentences about settings that cannot all be meant."""
    method, objective, rollout, train = config.method, config.objective, config.rollout, config.train
    facts = methods.facts(method)
    if method not in METHODS and ":" not in method:
        hint = nearest(method, [*METHODS, *methods.ALIASES])
        yield f"method {method!r} is unknown{hint}; choose one of {', '.join(METHODS)} or module:function"
    if facts.samples and rollout.group_size == 1 and objective.advantage != "raw":
        yield (
            f"rollout.group_size=1 leaves objective.advantage={objective.advantage} nothing to compare a trace with, "
            "so every advantage is 0; use a larger group or objective.advantage=raw"
        )
    if "guide" in facts.asks and rollout.group_size == 1:
        yield (
            f"rollout.group_size=1 leaves method {method!r} either a trace that sees the answer or one that does not; "
            "use a larger group"
        )
    if train.minibatch_size is not None and train.minibatch_size > train.batch_size:
        yield (
            f"train.minibatch_size={train.minibatch_size} is larger than train.batch_size={train.batch_size}; "
            "lower it or set it to null"
        )
    if train.minibatch_size is not None and train.batch_size % train.minibatch_size:
        yield (
            f"train.batch_size={train.batch_size} is not a multiple of train.minibatch_size={train.minibatch_size}, "
            "so one optimiser step would weigh its prompts differently"
        )
    if objective.weight_cap is not None and "weight_cap" not in facts.reads and method in METHODS:
        yield f"objective.weight_cap has no effect on method {method!r}, which does not read it; remove it"
    if not facts.samples:
        for key in ("tis_cap", "kl_weight", "entropy_weight"):
            if getattr(objective, key):
                yield f"objective.{key} has no effect on method {method!r}, which samples no traces; remove it"
        if rollout.engine == "vllm":
            yield f"rollout.engine=vllm has no effect on method {method!r}, which samples no traces; remove it"
        if train.on_collapse != "warn":
            yield f"train.on_collapse has no effect on method {method!r}, which samples no traces; remove it"
    if config.data.traces and facts.samples:
        yield f"data.traces has no effect on method {method!r}, which samples traces of its own; remove it"
    if rollout.cache_share is not None and rollout.engine != "vllm":
        yield "rollout.cache_share has no effect without rollout.engine=vllm; remove it or name that engine"
    yield from config.backend.contradictions(config)
    if config.tokens.think_start == config.tokens.think_end:
        yield "tokens.think_start and tokens.think_end must differ"
    weights = objective.weights
    trained, why = (weights.trace, "") if facts.policy_gradient else (0, f" (that of traces by method {method!r})")
    if facts.samples and not any((trained, weights.answer, weights.format)):
        yield f"all three objective.weights are 0{why}, so nothing would be learned"
    if facts.samples and not facts.policy_gradient and weights.trace not in (0, Weights().trace):
        yield f"objective.weights.trace has no effect on method {method!r}, which does not train traces; remove it"
