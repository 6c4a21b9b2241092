"""What samples traces, behind one interface; and the proof that a copy of the weights is the trainer's."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nrt_cli.backends.local.decoding import (
    ROWS,
    Asked,
    answer_of,
    answer_requests,
    evaluating,
    open_batch,
    prepacked,
    rollout_of,
    sample_answers,
    sample_groups,
)
from nrt_cli.backends.local.rounding import allowed_gap
from nrt_cli.backends.machine import GPU_ROWS
from nrt_cli.backends.vllm_engine import CACHE_SHARE, VllmEngine, VllmRequest, installed, weights_of
from nrt_cli.config import RolloutSection, RunConfig
from nrt_cli.errors import TrainingError
from nrt_cli.models.loading import positions
from nrt_cli.objective.rows import trace_prompt
from nrt_cli.records import Example, RolloutGroup, SampledAnswer
from nrt_cli.text.tokens import ThinkTokens

TEXT = "What is 3 plus 4?"
"""What the canary asks about."""

FLOOR = 0.005
"""Nats that are never a fault. SmolLM2-135M in float32 was measured at 1e-5; a step at rate 1e-5 moves 2e-4 to 1e-3."""


class Sampler:
    """Samples traces from the policy as it is; what a trace samples depends on its key alone."""

    name: str
    exact: bool
    """Whether what it says of its tokens is what a pass over them would say: it decodes with the policy itself."""
    settings: RolloutSection
    """How the next traces are sampled; may be changed between calls, but for what was decided when it was made."""

    def __init__(
        self, config: RunConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: ThinkTokens
    ) -> None:
        self.model, self.tokens, self.settings = model, tokens, config.rollout
        self.canary = Canary(tokenizer, config.rollout.temperature)

    def update(self) -> None:
        """The policy's weights changed: whoever holds a copy makes a new one before the next trace."""

    def sample_groups(self, examples: Sequence[Example], group_size: int, key: Sequence[int]) -> list[RolloutGroup]:
        """K traces for each example, in the examples' order; `key` names the random streams, such as (seed, step).

        Raises TrainingError where it does not compute what the trainer does.
        """
        raise NotImplementedError

    def sample_answers(self, groups: Sequence[RolloutGroup], key: Sequence[int]) -> list[list[SampledAnswer]]:
        """An answer after each of the groups' traces, in their order, by the same weights."""
        raise NotImplementedError


def pick_engine(asked: str, samples: bool, device: torch.device) -> str:
    """`auto` is the faster one: vLLM on a GPU where it is installed, our own decoding everywhere else."""
    if asked != "auto":
        return asked
    return "vllm" if samples and device.type == "cuda" and installed() == "vllm" else "native"


def make_sampler(
    config: RunConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: ThinkTokens
) -> Sampler:
    """The sampler that `rollout.engine` names. Raises ModelError where it cannot run here."""
    native = pick_engine(config.rollout.engine, config.samples, model.device) == "native"
    return (NativeSampler if native else VllmSampler)(config, model, tokenizer, tokens)


class NativeSampler(Sampler):
    """Decodes with the trainer's own model; on a CPU its weights are laid out anew for each call."""

    name = "native"
    exact = True

    def sample_groups(self, examples: Sequence[Example], group_size: int, key: Sequence[int]) -> list[RolloutGroup]:
        with prepacked(self.model):
            groups = sample_groups(self.model, examples, self.tokens, self.settings, group_size, key)
            told = self._next_logprobs()
        self.canary.check(told, self.model, self.name)
        return groups

    def sample_answers(self, groups: Sequence[RolloutGroup], key: Sequence[int]) -> list[list[SampledAnswer]]:
        return sample_answers(self.model, groups, self.tokens, self.settings, key)

    def _next_logprobs(self) -> dict[int, float]:
        """What decoding says of the likeliest tokens after the canary's prompt."""
        with evaluating(self.model):
            logits_RV = open_batch(self.model, self.tokens.pad_id).add([self.canary.prompt_ids])
        logprobs, ids = (logits_RV.float() / self.canary.temperature).log_softmax(-1)[0].topk(20)
        return dict(zip(ids.tolist(), logprobs.tolist(), strict=True))


class VllmSampler(Sampler):
    """Samples from a second copy of the policy, which vLLM holds; on a GPU its memory is free between samplings.

    The copy is made when `update` said that the weights changed; before a token is sampled, a canary looks at it.
    """

    name = "vllm"
    exact = False

    def __init__(
        self, config: RunConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: ThinkTokens
    ) -> None:
        super().__init__(config, model, tokenizer, tokens)
        # Prompt, t_start and trace, and an answer where one is sampled, as far as the model has positions.
        longest = config.data.max_prompt_tokens + 1 + config.rollout.max_trace_tokens
        longest += config.more_than_prompt
        if "answers" in config.asks:
            longest += 1 + config.rollout.answer_cap(config.longest_answer)
        self.engine = VllmEngine(
            config.model.path,
            str(model.dtype).removeprefix("torch."),
            model.device.type,
            min(longest, positions(config.model.path) or longest),
            config.rollout.batch_rows or (GPU_ROWS if model.device.type == "cuda" else ROWS),
            CACHE_SHARE if config.rollout.cache_share is None else config.rollout.cache_share,
            of_trainer=True,
        )
        self.stale = True

    def update(self) -> None:
        self.stale = True

    def sample_groups(self, examples: Sequence[Example], group_size: int, key: Sequence[int]) -> list[RolloutGroup]:
        asked = [
            (trace_prompt(e, self.tokens), self.settings.trace_cap(len(e.answer_ids)), (*key, e.index, k))
            for e, k in product(examples, range(group_size))
        ]
        rollouts = (rollout_of(*sampled, self.tokens) for sampled in self._sampled(asked))
        return [RolloutGroup(example, tuple(next(rollouts) for _ in range(group_size))) for example in examples]

    def sample_answers(self, groups: Sequence[RolloutGroup], key: Sequence[int]) -> list[list[SampledAnswer]]:
        asked = [each for group in groups for each in answer_requests(group, self.tokens, self.settings, key)]
        answers = (answer_of(*sampled, self.tokens) for sampled in self._sampled(asked))
        return [[next(answers) for _ in group.rollouts] for group in groups]

    def _sampled(self, asked: Sequence[Asked]) -> Iterator[tuple[Sequence[int], Sequence[float]]]:
        """Tokens and log-probs after each prompt; the engine sleeps before they are looked at."""
        if self.stale or self.engine.asleep:
            self.engine.load(weights_of(self.model))
            told = self.engine.top_logprobs(self.canary.prompt_ids, self.canary.temperature)
            self.canary.check(told, self.model, self.name)
            self.stale = False
        temperature, ends = self.settings.temperature, self.tokens.trace_ends
        requests = [
            VllmRequest(prompt, cap, temperature, seed=stream_seed(*key), stop_ids=ends) for prompt, cap, key in asked
        ]
        outputs = self.engine.generate(requests)
        self.engine.sleep()
        return ((output.ids, output.logprobs) for output in outputs)


def stream_seed(*key: int) -> int:
    """A seed, 63 bits, that depends on nothing but the key; any two keys are as good as independent."""
    # With the key's length, since numpy takes (1,) and (1, 0) for the same.
    return int(np.random.SeedSequence([len(key), *key]).generate_state(1, np.uint64)[0] >> np.uint64(1))


class Canary:
    """Compares the next-token log-probabilities of a sampler with the trainer's, at every update of the weights.

    Two checks. Their gap, a mean over the tokens the sampler named, weighted by the trainer's probabilities, is no more
    than rounding explains. And where the trainer's numbers moved since the last check, the sampler's moved too: a lost
    update hides in a low-precision type's rounding, but leaves the sampler's numbers the same to the last bit.
    """

    def __init__(self, tokenizer: Any, temperature: float) -> None:
        self.prompt_ids: tuple[int, ...] = tuple(tokenizer.encode(TEXT, add_special_tokens=False))
        self.temperature = temperature
        self._last: tuple[Mapping[int, float], Tensor] | None = None
        self._allowed = FLOOR

    def check(self, sampler: Mapping[int, float], model: PreTrainedModel, name: str) -> float:
        """The gap in nats. Raises TrainingError where the sampler, called `name`, does not run the model's weights.

        `sampler` are its log-probabilities, at the rollout temperature, of likely tokens after `prompt_ids`.
        """
        tokens_N = torch.tensor(list(sampler))
        trainer = lambda: next_logprobs(model, self.prompt_ids, self.temperature)  # noqa: E731
        trainer_TV, sampler_N = trainer(), torch.tensor(list(sampler.values()), dtype=torch.float64)
        trainer_V = trainer_TV[-1]
        trainer_N = trainer_V[tokens_N]
        weights_N = trainer_N.softmax(-1)
        distance = lambda other_N: float(((trainer_N - other_N).abs() * weights_N).sum())  # noqa: E731
        gap = distance(sampler_N)
        if not gap <= self._allowed:  # not a number is not a match
            # What rounding explains, with the weights as they are now. One position is one sample of it, which may be
            # small by chance: bfloat16 moved SmolLM2's by 0.01 to 0.05 nats. So of the prompt's positions, the largest.
            likely_TN = trainer_TV.topk(len(tokens_N)).indices
            likely = lambda: trainer().gather(-1, likely_TN)  # noqa: E731
            weights_TN = trainer_TV.gather(-1, likely_TN).softmax(-1)
            self._allowed = allowed_gap(model, likely, floor=FLOOR, weights_N=weights_TN)
        if not gap <= self._allowed:
            dtype = str(model.dtype).removeprefix("torch.")
            what = f"differ by {gap:.2g} nats (rounding in {dtype} explains {self._allowed:.2g})"
        elif self._last and sampler == self._last[0] and distance(self._last[1][tokens_N]) > self._allowed / 100:
            what = "moved in the trainer alone"
        else:
            self._last = dict(sampler), trainer_V
            return gap
        raise TrainingError(
            f"the {name} sampler does not run the trainer's weights: the next-token log-probabilities after "
            f"{TEXT!r} {what}; set rollout.engine=native."
        )


@torch.no_grad()
def next_logprobs(model: PreTrainedModel, prompt_ids: Sequence[int], temperature: float) -> Tensor:
    """The trainer's tempered next-token log-probabilities along a prompt, by a plain forward: [T, V], on the CPU."""
    logits_TV = model(torch.tensor([prompt_ids], device=model.device), use_cache=False).logits[0]
    return (logits_TV.double() / temperature).log_softmax(-1).cpu()
