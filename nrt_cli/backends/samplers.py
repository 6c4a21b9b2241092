"""The engines that sample traces, behind one interface."""

from collections.abc import Sequence
from typing import Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nrt_cli.backends.canary import Canary
from nrt_cli.backends.local.decoding import open_batch, prepacked
from nrt_cli.backends.local.sampler import evaluating, sample_groups
from nrt_cli.backends.vllm_engine import installed
from nrt_cli.config import RolloutSection, RunConfig
from nrt_cli.records import Example, RolloutGroup
from nrt_cli.text.tokens import ThinkTokens


class Sampler(Protocol):
    """Samples traces from the policy as it is; what a trace samples depends on its key alone."""

    name: str
    exact: bool
    """Whether what it says of its tokens is what a pass over them would say: it decodes with the policy itself."""
    settings: RolloutSection
    """How the next traces are sampled; may be changed between calls, but for what was decided when it was made."""

    def update(self) -> None:
        """The policy's weights changed: whoever holds a copy makes a new one before the next trace."""

    def sample_groups(self, examples: Sequence[Example], group_size: int, key: Sequence[int]) -> list[RolloutGroup]:
        """K traces for each example, in the examples' order; `key` names the random streams, such as (seed, step)."""


class NativeSampler:
    """Decodes with the trainer's own model; on a CPU its weights are laid out anew for each call."""

    name = "native"
    exact = True

    def __init__(
        self, config: RunConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: ThinkTokens
    ) -> None:
        self.model, self.tokens, self.settings = model, tokens, config.rollout
        self.canary = Canary(tokenizer, config.rollout.temperature)

    def update(self) -> None:
        """Nothing is kept that could be out of date."""

    def sample_groups(self, examples: Sequence[Example], group_size: int, key: Sequence[int]) -> list[RolloutGroup]:
        """K traces for each example, in the examples' order. Raises TrainingError if it decodes another model."""
        with prepacked(self.model):
            groups = sample_groups(self.model, examples, self.tokens, self.settings, group_size, key)
            told = self._next_logprobs()
        self.canary.check(told, self.model, self.name)
        return groups

    def _next_logprobs(self, count: int = 20) -> dict[int, float]:
        """What decoding says of the likeliest tokens after the canary's prompt."""
        with evaluating(self.model):
            logits_RV = open_batch(self.model, self.tokens.pad_id).add([self.canary.prompt_ids])
        logprobs, ids = (logits_RV / self.canary.temperature).log_softmax(-1)[0].topk(count)
        return dict(zip(ids.tolist(), logprobs.tolist(), strict=True))


def pick_engine(asked: str, samples: bool, device: torch.device) -> str:
    """`auto` is the faster one: vLLM on a GPU where it is installed, our own decoding everywhere else."""
    if asked != "auto":
        return asked
    return "vllm" if samples and device.type == "cuda" and installed() == "vllm" else "native"


def make_sampler(
    config: RunConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: ThinkTokens
) -> Sampler:
    """The sampler that `rollout.engine` names. Raises ModelError where it cannot run here."""
    if pick_engine(config.rollout.engine, config.samples, model.device) == "native":
        return NativeSampler(config, model, tokenizer, tokens)
    from nrt_cli.backends.vllm_rollouts import VllmSampler

    return VllmSampler(config, model, tokenizer, tokens)
