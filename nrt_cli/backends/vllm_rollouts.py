"""Rollouts with vLLM in this process: the trainer's weights in, groups of traces out."""

from collections.abc import Iterator, Sequence

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nrt_cli.backends.canary import Canary
from nrt_cli.backends.local.sampler import rollout_of
from nrt_cli.backends.vllm_engine import CACHE_SHARE, VllmEngine, VllmRequest, weights_of
from nrt_cli.config import RunConfig
from nrt_cli.models.loading import positions
from nrt_cli.objective.rows import trace_prompt
from nrt_cli.records import Example, RolloutGroup
from nrt_cli.text.tokens import ThinkTokens


class VllmSampler:
    """Samples from a second copy of the policy, which vLLM holds; on a GPU its memory is free between samplings.

    The copy is made by `sample_groups` when `update` said that the weights changed, and a canary compares it with the
    trainer before the first token is sampled.
    """

    name = "vllm"
    exact = False

    def __init__(
        self, config: RunConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: ThinkTokens
    ) -> None:
        self.model, self.tokens, self.settings = model, tokens, config.rollout
        self.canary = Canary(tokenizer, config.rollout.temperature)
        self.engine = VllmEngine(
            config.model.path,
            str(model.dtype).removeprefix("torch."),
            model.device.type,
            _longest(config),
            config.rollout.batch_rows,
            CACHE_SHARE if config.rollout.cache_share is None else config.rollout.cache_share,
            # They come from the trainer before anything is sampled; random ones cannot be taken for them.
            load_weights=False,
            sleeps=True,
        )
        self.stale = True

    def update(self) -> None:
        """The policy's weights changed."""
        self.stale = True

    def sample_groups(self, examples: Sequence[Example], group_size: int, key: Sequence[int]) -> list[RolloutGroup]:
        """K traces for each example, in the examples' order.

        Args:
            key: names the random streams, such as (seed, step); each trace adds its example and its k.

        Raises:
            TrainingError: the copy does not compute what the trainer does.
        """
        self._synchronise()
        outputs = iter(self.engine.generate(list(self._requests(examples, group_size, key))))
        groups = []
        for example in examples:
            own = [next(outputs) for _ in range(group_size)]
            rollouts = (rollout_of(list(output.ids), list(output.logprobs), self.tokens) for output in own)
            groups.append(RolloutGroup(example, tuple(rollouts)))
        self.engine.sleep()
        return groups

    def _synchronise(self) -> None:
        """Bring the copy up to date, and prove it."""
        if not (self.stale or self.engine.asleep):
            return
        self.engine.load(weights_of(self.model))
        told = self.engine.top_logprobs(self.canary.prompt_ids, self.canary.temperature)
        self.canary.check(told, self.model, self.name)
        self.stale = False

    def _requests(self, examples: Sequence[Example], group_size: int, key: Sequence[int]) -> Iterator[VllmRequest]:
        for example in examples:
            prompt_ids = trace_prompt(example, self.tokens)
            for k in range(group_size):
                yield VllmRequest(
                    prompt_ids,
                    self.settings.trace_cap(len(example.answer_ids)),
                    self.settings.temperature,
                    seed=stream_seed(*key, example.index, k),
                    stop_ids=self.tokens.trace_ends,
                )


def stream_seed(*key: int) -> int:
    """A seed, 63 bits, that depends on nothing but the key; any two keys are as good as independent."""
    # With the key's length, since numpy takes (1,) and (1, 0) for the same.
    return int(np.random.SeedSequence([len(key), *key]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _longest(config: RunConfig) -> int:
    """Tokens of the longest sequence to expect: prompt, t_start and trace, as far as the model has positions."""
    asked = config.data.max_prompt_tokens + 1 + config.rollout.max_trace_tokens
    return min(asked, positions(config.model.path) or asked)
