"""A rank's log-probabilities and entropies, from our chunked head: the logits of a pass are never there at once.

verl's own way makes logits of all tokens, the prompt's too, and a copy of them for temperatures, in the model's type.

Shapes: R rows; N scored tokens of all rows, one row after another; S places of the pass's hidden states; V vocabulary,
D hidden size.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from transformers.modeling_outputs import MoeModelOutputWithPast

from nrt_cli.errors import ModelError
from nrt_cli.objective.logprobs import selected_logprobs


@dataclass(frozen=True)
class Scored:
    """The tokens that one rank's pass scores. Not a tuple, of which FSDP rounds temperatures to the model's type."""

    hidden_N: Tensor
    """Places, among the pass's hidden states, of those that predict them."""
    targets_N: Tensor
    temperature_N: Tensor | None
    at_N: Tensor
    """Where in the pass's result they stand."""
    size: int
    """Of that result."""


def scored_tokens(micro_batch: TensorDict, shape: torch.Size, packed: bool, rank: int = 0) -> Scored:
    """What a pass over ids of `shape` scores of a micro-batch's rows, which are nested tensors.

    Padded, ids have a row for each; `packed`, the rows lie one after another in one, and where several ranks share
    that (Ulysses), `rank` has the stretch after those of the ranks before it.
    """
    offsets, lengths = micro_batch["input_ids"].offsets(), micro_batch["responses"].offsets().diff()
    device = offsets.device
    # The position before each of the response's tokens, as the rows lie one after another.
    at_N = torch.cat(
        [torch.arange(end - n - 1, end - 1, device=device) for end, n in zip(offsets[1:], lengths, strict=True)]
    )
    targets_N = micro_batch["responses"].values()
    temperature_N = None
    if "temperatures" in micro_batch.keys():  # noqa: SIM118  a TensorDict has no `in`
        temperature_N = micro_batch["temperatures"].values()[at_N]
    if not packed:
        padding_R = torch.arange(shape[0], device=device) * shape[1] - offsets[:-1]
        return Scored(at_N + padding_R.repeat_interleave(lengths), targets_N, temperature_N, at_N, int(offsets[-1]))
    start, size = rank * shape[1], shape[1]
    here_N = (at_N >= start) & (at_N < start + size)
    own_N = at_N[here_N] - start
    if temperature_N is not None:
        temperature_N = temperature_N[here_N]
    return Scored(own_N, targets_N[here_N], temperature_N, own_N, size)


def use_chunked_head(model: Any) -> None:
    """Let a causal language model's forward pass take `scored` and return their `log_probs` and `entropy`, else 0.

    Raises ModelError where its logits are more than head @ hidden, softly capped.
    """
    head, softcap = model.get_output_embeddings(), _softcap(model)
    if not head.weight.is_meta:
        _require_plain(model, head)
    # Methods of these two objects: FSDP gathers a head's weight, which may be a unit of its own, when it is called.
    head.forward = partial(_head, head, softcap)
    model.forward = partial(_forward, model)


def _forward(model: Any, scored: Scored, **inputs: Any) -> dict[str, Tensor]:
    """The two numbers of each place of a pass."""
    hidden_SD = model.base_model(**inputs).last_hidden_state.flatten(0, 1)
    both = model.get_output_embeddings()(hidden_SD, scored)
    made = (values_N.new_zeros(scored.size).index_copy(0, scored.at_N, values_N) for values_N in both)
    return dict(zip(("log_probs", "entropy"), made, strict=True))


def _head(head: nn.Linear, softcap: float | None, hidden_SD: Tensor, scored: Scored) -> tuple[Tensor, Tensor]:
    # Under autocast, which verl has around a pass, some of the sums would be in a narrow type.
    with torch.autocast(hidden_SD.device.type, enabled=False):
        hidden_ND = hidden_SD[scored.hidden_N].to(head.weight.dtype)
        return selected_logprobs(hidden_ND, head.weight, scored.targets_N, scored.temperature_N, softcap)


def _softcap(model: Any) -> float | None:
    cap: float | None = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return cap


@torch.no_grad()
def _require_plain(model: Any, head: nn.Linear) -> None:
    """Raises ModelError for models with a bias on the head, a logit scale or the like; no layer is computed."""
    ids_1N = torch.arange(8)[None] % head.weight.shape[0]
    given_1ND = torch.randn(1, 8, head.weight.shape[1], generator=torch.Generator().manual_seed(0))
    given_1ND = given_1ND.to(head.weight.dtype)
    name, layers = model.base_model_prefix, model.base_model
    setattr(model, name, _Given(given_1ND))
    try:
        logits_NV = model(input_ids=ids_1N, use_cache=False).logits[0]
    finally:
        setattr(model, name, layers)
    want_N = logits_NV.float().log_softmax(-1).gather(-1, ids_1N.T)[:, 0]
    ours_N, _ = selected_logprobs(given_1ND[0], head.weight, ids_1N[0], softcap=_softcap(model))
    gap = float((ours_N - want_N).abs().mean())
    # A cap in bfloat16 rounds by hundredths; a scale moves by as much as the logits spread.
    if getattr(head, "bias", None) is not None or not gap <= 0.05:
        raise ModelError(
            f"{type(model).__name__} computes its logits in a way this engine does not know: they differ by "
            f"{gap:.3g}. Use a Llama, Mistral, Qwen or Gemma architecture."
        )


class _Given(nn.Module):
    """In place of a model's layers: hidden states that are given."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, *_: Any, **__: Any) -> MoeModelOutputWithPast:
        return MoeModelOutputWithPast(last_hidden_state=self.hidden)  # type: ignore[arg-type]
