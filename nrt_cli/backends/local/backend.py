"""The local backend: one process, on the CPU or one GPU.

Shapes: N scored tokens of some rows, one row after another.

A unit's loss is a function of its log-probabilities, and those of the model: the first part is differentiated on
detached leaves, the second with the gradient that comes out. So units that fit the token budget share a forward pass,
and one that does not is scored first and redone in parts; so is all of it, in smaller ones, where memory runs out.
"""

import contextlib
import gc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from nrt_cli.backends.local.attention import within
from nrt_cli.backends.local.decoding import ROWS
from nrt_cli.backends.local.optimiser import FOLLOWER, Follower, Optimiser
from nrt_cli.backends.local.policy import Policy
from nrt_cli.backends.local.throughput import matmul_ceiling
from nrt_cli.backends.reasoning import LoadedReasoner
from nrt_cli.backends.samplers import Sampler, make_sampler
from nrt_cli.config import RunConfig
from nrt_cli.models.export import export_model
from nrt_cli.models.loading import load_model, load_tokens
from nrt_cli.models.lora import adapt
from nrt_cli.objective.rows import Row, Unit, Whose, by_prompt
from nrt_cli.records import Example, RolloutGroup, SampledAnswer
from nrt_cli.text.tokens import ThinkTokens

Result = TypeVar("Result")

LEAST_TOKENS = 256
"""A pass is not made smaller than this: where it does not fit, nothing will."""


def ran_out(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a GPU or a CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # The CPU's allocator, and a GPU's libraries, which take memory past torch's. Of these types themselves: what Ray
    # makes of a rank's error has the same words, and other help.
    words = ("can't allocate memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")
    return type(error) in (RuntimeError, torch.AcceleratorError) and any(said in str(error) for said in words)


class Budget:
    """Tokens of one forward pass, halved whenever memory runs out; `say` is told once, at the first time."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.say: Callable[[str], None] = lambda _: None
        self.said = False

    def retrying(self, work: Callable[[], Result], undo: Callable[[], None]) -> Result:
        """Do some work; where memory runs out, undo what it began and do it again with half the budget.

        Raises MemoryError where it ran out at the smallest budget too.
        """
        while True:
            try:
                return work()
            except Exception as error:
                if not ran_out(error):
                    raise
            # Here, outside, the exception and the tensors that its traceback holds are gone.
            undo()
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if self.tokens <= LEAST_TOKENS:
                raise MemoryError
            self.tokens = max(LEAST_TOKENS, self.tokens // 2)
            if not self.said:
                self.said = True
                self.say(
                    f"memory ran out: the step is repeated in passes of at most {self.tokens} tokens (and fewer if "
                    "needed), with the same result; train.micro_batch_tokens sets this for the next run"
                )


class Loaded(NamedTuple):
    """A model that is in memory already, with its tokenizer."""

    model: Any
    tokenizer: Any
    tokens: ThinkTokens


class LocalBackend:
    """A policy, its optimiser and its sampler; the verbs are `training.trainer.Backend`'s. `loaded` or the config's."""

    def __init__(self, config: RunConfig, loaded: Loaded | None = None) -> None:
        self.config = config
        self.budget = Budget(config.train.micro_batch_tokens)
        if loaded is None:
            tokenizer, tokens = load_tokens(config.model.path, config.tokens.think_start, config.tokens.think_end)
            model = load_model(config.model)
            if config.model.lora.rank is not None:
                model = adapt(model, config.model.lora, tokens, config.seed)
            loaded = Loaded(model, tokenizer, tokens)
        model, self.tokenizer, self.tokens = loaded
        packing = config.engine.packing == "auto"
        self.policy = Policy(model, self.tokens.pad_id, config.rollout.temperature, packing)
        self.device = self.policy.device
        self.optimiser = Optimiser(model, config.optimiser)
        self.sampler: Sampler | None = None
        if config.thinks:
            self.sampler = make_sampler(config, model, self.tokenizer, self.tokens)
        self.exact_sampler = self.sampler is not None and self.sampler.exact
        self.reference: Policy | None = None
        self.follower = Follower(self.optimiser) if "follower" in config.asks else None
        if "reference" in config.asks:
            frozen = load_model(config.model).requires_grad_(False)
            self.reference = Policy(frozen, self.tokens.pad_id, config.rollout.temperature, packing)
        self.ceiling = matmul_ceiling(model.device, model.dtype, torch.get_num_threads())
        self.work = 0.0
        self.verified = self.published = False
        self.said: list[Any] = []

    def tell(self, say: Callable[[str], None]) -> None:
        self.budget.say = self.policy.say = say
        self.policy.tell_of_kernel()
        if self.policy.no_packing:
            say(f"nothing is packed, since {self.policy.no_packing}")

    def sample(self, examples: Sequence[Example], group_size: int, key: Sequence[int]) -> list[RolloutGroup]:
        assert self.sampler is not None
        return self.sampler.sample_groups(examples, group_size, key)

    def answer(self, groups: Sequence[RolloutGroup], key: Sequence[int]) -> list[list[SampledAnswer]]:
        assert self.sampler is not None
        return self.sampler.sample_answers(groups, key)

    def publish(self) -> None:
        if self.sampler is not None and not self.published:
            self.sampler.update()
        self.published = True

    def reasoner(self) -> LoadedReasoner:
        return LoadedReasoner(self.policy.model, self.tokenizer, self.tokens, self.config.rollout.batch_rows or ROWS)

    # --- scores and gradients ----------------------------------------------------------------------------------------

    def score(self, rows: Sequence[Row], whose: Whose = "policy") -> list[tuple[Tensor, Tensor]]:
        policy = self.reference if whose == "reference" else self.policy
        assert policy is not None

        def work() -> list[tuple[Tensor, Tensor]]:
            self._verify(rows)
            return policy.score_without_gradient(rows, self.budget.tokens)

        with self.follower.in_place() if whose == "follower" else contextlib.nullcontext():  # type: ignore[union-attr]
            scores = self.budget.retrying(work, undo=lambda: None)
        self.work += policy.work(rows)
        return scores

    def follow(self, keep: float) -> None:
        assert self.follower is not None
        self.follower.move(keep)

    def _verify(self, rows: Sequence[Row]) -> None:
        """Once on real rows, the longest and the shortest of a prompt, before anything is made of what they score: the
        shortest way to find a model for which packing is not what it should be."""
        if self.verified:
            return
        group = sorted(next(by_prompt(rows)), key=lambda row: len(row.ids))
        if self.policy.packing and not self.policy.verify_packing([group[-1], group[0]]):
            self.budget.say(f"nothing is packed, since {self.policy.no_packing}")
        self.verified = True

    def fits(self, rows: Sequence[Row]) -> bool:
        """Whether rows of one prompt are packed into one forward pass."""
        return self.policy.packing and self.policy.size(rows) <= self.budget.tokens

    def forward_backward(self, units: Sequence[Unit]) -> None:
        # Where all losses are tiny, as of probabilities of long answers that nothing normalises, gradients get down to
        # subnormal numbers, with which some CPUs compute many times as long: they become 0.
        torch.set_flush_denormal(True)
        try:
            self.said += self.budget.retrying(lambda: self._accumulate(units), self.optimiser.forget)
        finally:
            torch.set_flush_denormal(False)

    def _accumulate(self, units: Sequence[Unit]) -> list[Any]:
        """Add the gradient of some units' losses to the model's; returns what the losses said besides."""
        self._verify(units[0].rows)
        said = []
        # Consecutive units share a forward pass; one that fits none goes alone.
        size = lambda part: self.policy.size([row for unit in part for row in unit.rows])  # noqa: E731
        for together in within(units, self.budget.tokens, size):
            rows = [row for unit in together for row in unit.rows]
            # Several units are together because they fit.
            whole = len(together) > 1 or self.policy.one_pass(rows, self.budget.tokens)
            parts = [] if whole else list(self.policy.passes(rows, self.budget.tokens))
            if whole:
                graph = self.policy.score(rows)
            else:
                with torch.no_grad():  # behind prefixes that are read once, for this and for the gradient
                    scored = [self.policy.score(*part) for part in parts]
                graph = (torch.cat([s[0] for s in scored]), torch.cat([s[1] for s in scored]))
            leaves = [scored_N.detach().double().requires_grad_() for scored_N in graph]
            sizes = [sum(row.scored for row in unit.rows) for unit in together]
            columns = (leaf.split(sizes) for leaf in leaves)
            losses = [unit.loss(*scores) for unit, *scores in zip(together, *columns, strict=True)]
            torch.stack([loss for loss, _ in losses]).sum().backward()
            said += [besides for _, besides in losses]
            # A leaf that no loss used has no gradient.
            grads = [
                (torch.zeros_like(leaf) if leaf.grad is None else leaf.grad).to(scored_N.dtype)
                for leaf, scored_N in zip(leaves, graph, strict=True)
            ]
            if whole:
                torch.autograd.backward(graph, grads)
            else:
                end = 0
                for part, prefix in parts:
                    start, end = end, end + sum(row.scored for row in part)
                    torch.autograd.backward(self.policy.score(part, prefix), [grad[start:end] for grad in grads])
                for read in dict.fromkeys(prefix for _, prefix in parts if prefix is not None):
                    read.backward()
            # A pass that is done twice for want of memory is useful once.
            self.work += self.policy.work(rows, backward=True)
        return said

    def step(self, rate: float) -> tuple[float, list[Any]]:
        norm = self.optimiser.step(rate)
        self.published = False
        said, self.said = self.said, []
        return norm, said

    def mfu(self, seconds: float) -> float:
        rate = self.work / seconds
        if rate > self.ceiling:
            # Something else kept the machine busy while the ceiling was measured.
            again = matmul_ceiling.__wrapped__(self.device, self.policy.model.dtype, torch.get_num_threads())
            self.ceiling = max(self.ceiling, again)
        return rate / self.ceiling

    # --- files -------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        return {"budget": self.budget.tokens}

    def save(self) -> Mapping[str, Tensor]:
        return self.optimiser.state() | (self.follower.state() if self.follower else {})

    def broken_weight(self) -> str | None:
        masters = self.optimiser.masters
        return next((name for name, weight in masters.items() if not bool(torch.isfinite(weight).all())), None)

    def load(self, folder: Path, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        if self.follower:
            self.follower.load_state(tensors)
        self.optimiser.load_state({name: each for name, each in tensors.items() if not name.startswith(FOLLOWER)})
        # Halved where memory ran out: with it, gradients are summed in the same parts as they would have been.
        self.budget.tokens = min(self.budget.tokens, state.get("budget", self.budget.tokens))
        self.published = False

    def export(self, folder: Path, checkpoint: Path) -> None:
        base = Path(self.config.model.path)
        export_model(self.policy.model, self.tokenizer, self.tokens, self.config, base, folder)
