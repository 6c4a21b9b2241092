"""Proof that a sampler with weights of its own runs the trainer's: both say what follows a fixed prompt."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nrt_cli.backends.local.rounding import allowed_gap
from nrt_cli.errors import TrainingError

TEXT = "What is 3 plus 4?"

FLOOR = 0.005
"""Gap in nats that is never a fault. Measured with SmolLM2-135M between transformers and vLLM: 1e-5 in float32; one
step at rate 1e-5 moves the log-probs by 2e-4 to 1e-3."""


class Canary:
    """Compares the next-token log-probabilities of a sampler with the trainer's, at every update of the weights.

    Two checks. Their gap, a mean over the tokens the sampler named, weighted by the trainer's probabilities, is no more
    than rounding explains. And where the trainer's numbers moved since the last check, the sampler's moved too: a
    weight update that is lost between two nearby policies hides in a low-precision type's rounding, but leaves the
    sampler's numbers the same to the last bit.
    """

    def __init__(self, tokenizer: Any, temperature: float) -> None:
        self.prompt_ids: tuple[int, ...] = tuple(tokenizer.encode(TEXT, add_special_tokens=False))
        self.temperature = temperature
        self._last: tuple[Mapping[int, float], Tensor] | None = None
        self._allowed = FLOOR

    def check(self, sampler: Mapping[int, float], model: PreTrainedModel, name: str) -> float:
        """The gap in nats. Raises TrainingError where the sampler does not run the model's weights.

        Args:
            sampler: its log-probabilities, at the rollout temperature, of likely tokens after `prompt_ids`.
            name: of the sampler, for the error.
        """
        trainer_V = next_logprobs(model, self.prompt_ids, self.temperature)
        gap = _gap(sampler, trainer_V)
        if not gap <= self._allowed:  # not a number is not a match
            self._allowed = self._explained(sampler, model)
        if not gap <= self._allowed:
            dtype = str(model.dtype).removeprefix("torch.")
            what = f"differ by {gap:.2g} nats (rounding in {dtype} explains {self._allowed:.2g})"
        elif self._last and sampler == self._last[0] and _gap(sampler, trainer_V, self._last[1]) > self._allowed / 100:
            what = "moved in the trainer alone"
        else:
            self._last = dict(sampler), trainer_V
            return gap
        raise TrainingError(
            f"the {name} sampler does not run the trainer's weights: the next-token log-probabilities after "
            f"{TEXT!r} {what}; set rollout.engine=native."
        )

    def _explained(self, sampler: Mapping[int, float], model: PreTrainedModel) -> float:
        """The gap that rounding explains, with the weights as they are now."""
        tokens_N = torch.tensor(list(sampler))
        logprobs = lambda: next_logprobs(model, self.prompt_ids, self.temperature)[tokens_N]  # noqa: E731
        return allowed_gap(model, logprobs, floor=FLOOR, weights_N=logprobs().softmax(-1))


@torch.no_grad()
def next_logprobs(model: PreTrainedModel, prompt_ids: Sequence[int], temperature: float) -> Tensor:
    """The trainer's tempered next-token log-probabilities after a prompt, by a plain forward: [V], on the CPU."""
    logits_V = model(torch.tensor([prompt_ids], device=model.device), use_cache=False).logits[0, -1]
    return (logits_V.double() / temperature).log_softmax(-1).cpu()


def _gap(sampler: Mapping[int, float], trainer_V: Tensor, before_V: Tensor | None = None) -> float:
    """Mean absolute difference over the sampler's tokens, to it or to what the trainer said before."""
    tokens_N = torch.tensor(list(sampler))
    trainer_N = trainer_V[tokens_N]
    other_N = torch.tensor(list(sampler.values()), dtype=torch.float64) if before_V is None else before_V[tokens_N]
    return float(((trainer_N - other_N).abs() * trainer_N.softmax(-1)).sum())
