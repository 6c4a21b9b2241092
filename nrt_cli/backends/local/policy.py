"""The policy: a transformers model, and what one forward pass says about chosen tokens.

Shapes: R rows of a padded batch, T positions, N scored tokens of all rows one after another, D hidden size.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nrt_cli.backends.local import attention
from nrt_cli.backends.local.attention import (
    Behind,
    FlexSegments,
    Reading,
    Segment,
    Segments,
    branching,
    common_prefix,
    pack,
    packed_amounts,
    within,
)
from nrt_cli.backends.local.fused import fuse, sparing
from nrt_cli.backends.local.rounding import allowed_gap, widened
from nrt_cli.backends.local.throughput import Work
from nrt_cli.errors import ModelError, first_line
from nrt_cli.models.lora import table_of
from nrt_cli.objective.logprobs import selected_logprobs
from nrt_cli.objective.rows import Row, by_prompt

BUDGET = 4096
"""Tokens of one forward pass where nothing else is asked; results do not depend on it."""


class Policy:
    """A causal language model whose head is applied only where a token is scored.

    With `packing`, rows that share a prompt are laid side by side and share its computation too (`attention.py`).
    """

    def __init__(self, model: PreTrainedModel, pad_id: int, temperature: float = 1.0, packing: bool = False) -> None:
        self.model = model
        self.pad_id = pad_id
        self.temperature = temperature
        head = model.get_output_embeddings()
        if getattr(head, "bias", None) is not None:
            raise ModelError(f"{type(model).__name__} has a bias on its output embedding, which is not supported.")
        self.softcap: float | None = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        self._work = Work(model)
        fuse(model)
        self.no_packing = attention.enable(model) if packing else None
        self.packing = packing and self.no_packing is None
        self.flex = False
        self.say: Callable[[str], None] = lambda _: None
        self.no_flex: str | None = None
        """Why a device's one kernel for packed rows is not used."""
        # What a narrow type's rounding would hide, such as positions that are off by a few, shows in float32.
        try:
            with widened(model) if model.dtype.itemsize < 4 else contextlib.nullcontext():
                self._check_passes()
        except RuntimeError:  # code that names a type, as some routers of experts do, or no memory for a layer more
            self._check_passes()
        if self.packing:
            self._check_packing()

    @property
    def device(self) -> torch.device:
        return self.model.device

    def score(self, rows: Sequence[Row], prefix: "Prefix | None" = None) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies of the rows' scored tokens, rows one after another: logprobs_N, entropies_N.

        One forward pass; gradients flow if they are enabled, up to a prefix that was read before.
        """
        with sparing() if torch.is_grad_enabled() else contextlib.nullcontext():
            hidden_ND = self._packed(rows, prefix) if self.packing else self._padded(rows)
        return self._selected(rows, hidden_ND)

    def _selected(self, rows: Sequence[Row], hidden_ND: Tensor) -> tuple[Tensor, Tensor]:
        """What the head says of the scored tokens, from the hidden states that predict them."""
        weight_VD, *trained = table_of(self.model.get_output_embeddings())
        targets_N = torch.tensor([token for row in rows for token in row.ids[row.scored_from :]], device=self.device)
        temperature_N = None
        if self.temperature != 1.0:
            parts = []
            for row in rows:
                temperature = torch.ones(len(row.ids))
                temperature[slice(*row.tempered)] = self.temperature
                parts.append(temperature[row.scored_from :])
            temperature_N = torch.cat(parts).to(self.device)
        return selected_logprobs(hidden_ND, weight_VD, targets_N, temperature_N, self.softcap, *trained)

    def _padded(self, rows: Sequence[Row]) -> Tensor:
        """Hidden states that predict the scored tokens: a row of the batch for each row."""
        width = max(len(row.ids) for row in rows)
        ids_RT = torch.full((len(rows), width), self.pad_id)
        mask_RT = torch.zeros((len(rows), width), dtype=torch.long)
        for i, row in enumerate(rows):
            # Padding is on the right, so positions count from 0 and causal attention never reaches it.
            ids_RT[i, : len(row.ids)] = torch.tensor(row.ids)
            mask_RT[i, : len(row.ids)] = 1
        hidden_RTD: Tensor = self.model.base_model(
            input_ids=ids_RT.to(self.device), attention_mask=mask_RT.to(self.device), use_cache=False
        ).last_hidden_state
        # Position t predicts token t + 1, hence the shift by one to the left.
        at_N = torch.cat([torch.arange(i * width + r.scored_from, i * width + len(r.ids)) for i, r in enumerate(rows)])
        return hidden_RTD.flatten(0, 1)[(at_N - 1).to(self.device)]

    def _packed(self, rows: Sequence[Row], prefix: "Prefix | None" = None) -> Tensor:
        """The same, with rows of one prompt side by side in a single row."""
        packed = pack(_read(rows), None if prefix is None else prefix.length)
        ids, positions = (torch.tensor([column], device=self.device) for column in (packed.ids, packed.positions))
        attend = lambda pattern: attention.run(self.model.base_model, pattern, ids, positions)  # noqa: E731
        # The position before a row's token, wherever in the packed row that lies.
        before_N = [place for row, at in zip(rows, packed.at, strict=True) for place in at[row.scored_from - 1 :]]
        at_N = torch.tensor(before_N, device=self.device)
        if prefix is not None:
            hidden_PD, *layers = prefix.leaves
            if len(packed.ids) == prefix.length:  # no row goes on
                return hidden_PD[at_N]
            tails = (column[:, prefix.length :] for column in (ids, positions))
            output = attention.run(self.model.base_model, Behind(packed.pattern, layers), *tails)
            return torch.cat([hidden_PD, output.last_hidden_state[0]])[at_N]
        output = None
        if self.flex:
            try:
                output = attend(FlexSegments(packed.pattern, len(packed.ids), self.device))
            except Exception as error:
                if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                    raise
                self.flex, self.no_flex = (
                    False,
                    f"cannot be compiled for {len(packed.ids)} tokens ({first_line(error)})",
                )
                self.tell_of_kernel()
        hidden_GD: Tensor = (output or attend(packed.pattern)).last_hidden_state[0]
        return hidden_GD[at_N]

    def passes(self, rows: Sequence[Row], budget: int = BUDGET) -> Iterator[tuple[list[Row], "Prefix | None"]]:
        """The rows that share a forward pass each, of at most `budget` tokens, in order, as `score` takes them.

        Rows of a prompt that do not fit into one pass share what they begin with, which is read once before them; what
        they send back there goes on by `Prefix.backward`. A row that fits none alone goes so.
        """
        if not self.packing:
            yield from ((part, None) for part in self.micro_batches(rows, budget))
            return
        for groups in within(list(by_prompt(rows)), budget, lambda part: self.size([row for g in part for row in g])):
            together = [row for group in groups for row in group]
            if self.one_pass(together, budget):
                yield together, None
                continue
            if branching(*_read(together)):  # each pass along its first row, with which the others share more
                yield from ((part, None) for part in self.micro_batches(together, budget))
                continue
            prefix = Prefix(self, together)
            # The prefix's own activations stay; behind a long one there is room for a quarter of a pass at least.
            for part in self.micro_batches(together, max(budget, prefix.length + budget // 4)):
                yield part, prefix

    def one_pass(self, rows: Sequence[Row], budget: int) -> bool:
        """Whether rows are scored in one forward pass."""
        return len(rows) == 1 or self.size(rows) <= budget

    @torch.no_grad()
    def score_without_gradient(self, rows: Sequence[Row], budget: int = BUDGET) -> list[tuple[Tensor, Tensor]]:
        """(logprobs, entropies) of each row, in as many forward passes as the budget of tokens asks for."""
        scores: list[tuple[Tensor, Tensor]] = []
        for part, prefix in self.passes(rows, budget):
            logprobs_N, entropies_N = self.score(part, prefix)
            sizes = [row.scored for row in part]
            scores += zip(logprobs_N.split(sizes), entropies_N.split(sizes), strict=True)
        return scores

    def size(self, rows: Sequence[Row]) -> int:
        if self.packing:
            return sum(packed_amounts(group)[0] for group in _read(rows))
        return len(rows) * max(len(row.ids) for row in rows)

    def work(self, rows: Sequence[Row], backward: bool = False) -> float:
        """Floating-point operations of one pass over these rows, forward and perhaps back; padding is not work."""
        groups = _read(rows) if self.packing else [[row.ids] for row in rows]
        tokens, pairs = map(sum, zip(*map(packed_amounts, groups), strict=True))
        amounts = tokens, sum(row.scored for row in rows), pairs
        return self._work.forward(*amounts) + (self._work.backward(*amounts) if backward else 0.0)

    def micro_batches(self, rows: Sequence[Row], budget: int = BUDGET) -> Iterator[list[Row]]:
        """Consecutive rows whose size stays within `budget` tokens; a single longer row goes alone."""
        return within(rows, budget, self.size)

    def _check_passes(self) -> None:
        self._check_head()
        self.verify_packing(_some_rows(self.model))

    @torch.no_grad()
    def _check_head(self) -> None:
        """Refuse models whose logits are not head @ hidden, such as those with a logit scale."""
        ids = torch.arange(8, device=self.device)[None] % self.model.config.get_text_config().vocab_size
        logits = lambda: self.model(input_ids=ids, use_cache=False).logits[0, :-1].double()  # noqa: E731
        plain = lambda: logits().log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]  # noqa: E731
        ours = lambda: self.score([Row(tuple(ids[0].tolist()), 1)])[0]  # noqa: E731
        want = plain()
        if not want.isfinite().all():
            raise ModelError("the model's weights are not finite: its log-probabilities are NaN or infinite.")
        gap_N = (ours() - want).abs()
        gap = float(gap_N.mean())
        # A scale, a cap or a bias that is not known moves them by more than a thousandth of a nat.
        if not gap <= allowed_gap(self.model, plain, ours, floor=1e-3, gap=gap):
            raise ModelError(
                f"{type(self.model).__name__} computes its logits in a way this engine does not know: they "
                f"differ by up to {gap_N.max():.3g}. Use a Llama, Mistral, Qwen or Gemma architecture."
            )

    def _check_packing(self) -> None:
        """Take the one kernel where there is one and it agrees; go on padded where this type's kernels do not."""
        rows = _some_rows(self.model)
        if _has_one_kernel(self.device):
            self.flex = True
            # It is compiled once for a block of 128 tokens and once for more.
            longer = [Row((*(rows[0].ids[:8] * 18), *row.ids), 150) for row in rows]
            try:
                doubts = [self._packing_doubt(some) for some in (rows, longer)]
                self.no_flex = self.no_flex or next(filter(None, doubts), None)
                # Back through every layer's attention too, if anything is trained.
                if trained := [weight for weight in self.model.parameters() if weight.requires_grad]:
                    for some in (rows, longer):
                        torch.autograd.grad(self.score(some)[0].sum(), trained[0])
            except Exception as error:  # a compiler that is missing, a head size it does not take
                self.no_flex = f"does not work here ({first_line(error)})"
            self.flex = self.no_flex is None
        if self.model.dtype.itemsize < 4 and not self.flex:
            self.verify_packing(rows)

    def tell_of_kernel(self) -> None:
        """Say where the one kernel is not used."""
        if self.packing and self.no_flex:
            self.say(f"packed rows take several calls of attention instead of one, since FlexAttention {self.no_flex}")

    def verify_packing(self, rows: Sequence[Row]) -> bool:
        """Whether packed and padded passes say the same of some rows; where they do not, nothing is packed any more."""
        if doubt := self._packing_doubt(rows):
            self.packing, self.no_packing = False, doubt
        return self.packing

    @torch.no_grad()
    def _packing_doubt(self, rows: Sequence[Row]) -> str | None:
        """Why packed log-probabilities are not to be trusted; None where rounding explains how they differ."""
        if not self.packing:
            return None
        packed = lambda: self.score(rows)[0]  # noqa: E731
        padded = lambda: self._selected(rows, self._padded(rows))[0]  # noqa: E731
        # The one kernel knows no wider type.
        ways = (padded,) if self.flex else (padded, packed)
        found = [packed()]
        if len(list(by_prompt(rows))) == 1:
            found.append(self.score(rows, Prefix(self, rows))[0])
        want = padded()
        gap = max(float((said - want).abs().mean()) for said in found)
        allowed = allowed_gap(self.model, *ways, gap=gap)
        if gap <= allowed:
            return None
        return (
            f"packed and padded log-probabilities of {type(self.model).__name__} differ by {gap:.2g} nats on average, "
            f"and rounding explains {allowed:.2g}"
        )


class Prefix:
    """What rows of one prompt begin with, read once: its last hidden states, and the keys and values of each layer.

    `leaves`, which later passes start from, collect their gradients for `backward`.
    """

    def __init__(self, policy: Policy, rows: Sequence[Row]) -> None:
        read = [row.ids[:-1] for row in rows]
        self.length = common_prefix(read)
        reading = Reading(Segments((Segment((0, self.length)),)))
        ids = torch.tensor([read[0][: self.length]], device=policy.device)
        positions = torch.arange(self.length, device=policy.device)[None]
        output = attention.run(policy.model.base_model, reading, ids, positions)
        self._made = (output.last_hidden_state[0], *reading.layers)
        self.leaves = [made.detach().requires_grad_(made.requires_grad) for made in self._made]

    def backward(self) -> None:
        """Send back what the passes behind it sent here."""
        sent = [made for made, leaf in zip(self._made, self.leaves, strict=True) if leaf.grad is not None]
        if sent:
            torch.autograd.backward(sent, [leaf.grad for leaf in self.leaves if leaf.grad is not None])


def _some_rows(model: PreTrainedModel) -> list[Row]:
    """Rows of two prompts, of which those of the second leave the first of them at different places."""
    words = [(3 + 7 * i) % model.config.get_text_config().vocab_size for i in range(24)]
    rows = [Row((*words[:8], *words[start:end]), 8) for start, end in ((8, 20), (10, 11), (5, 24))]
    return rows + [Row((*words[1:at], *words[: 24 - at]), 6, prompt=6) for at in (24, 20, 16, 12, 8)]


def _has_one_kernel(device: torch.device) -> bool:
    """Whether FlexAttention has a backward pass here."""
    return device.type == "cuda"


def _read(rows: Sequence[Row]) -> list[list[tuple[int, ...]]]:
    """What a packed pass reads of rows, by prompt: all but the last token of each, which predicts none."""
    return [[row.ids[:-1] for row in group] for group in by_prompt(rows)]
