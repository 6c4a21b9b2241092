"""Log-probabilities and exact entropies of chosen tokens, straight from hidden states.

Shapes: N positions, V vocabulary, D hidden size, P rows of the head that are trained apart from it.

The logits of the first positions, as far as `KEPT_ELEMENTS` goes, are made at once and kept for the backward pass;
those of others are made a chunk at a time, and again there. So memory does not grow with N x V.
"""

from typing import Any

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**24
"""Logits held at once, in elements: 64 MiB in float32, of which the passes below keep two to three copies."""

BLOCK_ELEMENTS = 2**19
"""Of these, what one pass of a CPU over logits takes: 2 MiB in float32 stay in its caches from one pass to the next."""

GPU_CHUNKS = 8
"""Times as many on a GPU, which a product of 128 rows (of a vocabulary of 131,072) leaves idle."""

HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
"""Whether oneDNN's product is there: made for compiled models, it may go or change."""

KEPT_ELEMENTS = 2**27
"""Logits kept for the backward pass: 512 MiB in float32. Making them anew is a quarter of the head's arithmetic."""


def selected_logprobs(
    hidden_ND: Tensor,
    head_VD: Tensor,
    targets_N: Tensor,
    temperature_N: Tensor | None = None,
    softcap: float | None = None,
    trained_P: Tensor | None = None,
    rows_PD: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target token and entropy of the distribution it came from.

    Args:
        hidden_ND: final hidden states of the positions that predict the targets, already normed.
        head_VD: the output embedding, without bias.
        targets_N: token ids.
        temperature_N: divides the logits, per position; None is 1 everywhere.
        softcap: `cap * tanh(logits / cap)` before the softmax, as Gemma 2 does.
        trained_P: rows of a frozen head whose gradient is wanted; it goes to `rows_PD`, which holds the same numbers.

    Returns:
        logprobs_N (natural), entropies_N (exact Shannon, nats), float32 or wider; gradients reach hidden, head, rows.
    """
    return _SelectedLogprobs.apply(hidden_ND, head_VD, targets_N, temperature_N, softcap, trained_P, rows_PD)


class _SelectedLogprobs(torch.autograd.Function):
    """`selected_logprobs`; logits that were not kept are made anew in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        head_VD: Tensor,
        targets_N: Tensor,
        temperature_N: Tensor | None,
        softcap: float | None,
        trained_P: Tensor | None,
        rows_PD: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden_ND.dtype, torch.float32)
        logprobs_N = hidden_ND.new_empty(len(targets_N), dtype=wide)
        entropies_N, normalisers_N = torch.empty_like(logprobs_N), torch.empty_like(logprobs_N)
        keeps = KEPT_ELEMENTS // len(head_VD) if any(ctx.needs_input_grad) else 0
        ctx.chunks, ctx.kept = _chunks(len(targets_N), head_VD, keeps), None
        for part in ctx.chunks:
            raw_CV = _product(hidden_ND[part], head_VD)
            if part.stop <= keeps:  # the first
                ctx.kept = raw_CV
            for block in _blocks(raw_CV):
                at = slice(part.start + block.start, part.start + block.stop)
                logits_BV, _ = _logits(
                    raw_CV[block], None if temperature_N is None else temperature_N[at], softcap, wide
                )
                probs_BV = torch.softmax(logits_BV, -1)
                # log Z = logit - log p of any token: the likeliest one's is the most exact, cheaper than a logsumexp.
                top_B, at_B = logits_BV.max(-1)
                normaliser_B = top_B - probs_BV.gather(-1, at_B[:, None])[:, 0].log()
                logprobs_N[at] = logits_BV.gather(-1, targets_N[at, None])[:, 0] - normaliser_B
                normalisers_N[at] = normaliser_B
                # H = -sum p log p = log Z - sum p * logit.
                entropies_N[at] = normaliser_B - torch.linalg.vecdot(probs_BV, logits_BV)
        given = (hidden_ND, head_VD, targets_N, temperature_N, trained_P, rows_PD)
        ctx.save_for_backward(*given, normalisers_N, entropies_N)
        ctx.softcap = softcap
        return logprobs_N, entropies_N

    @staticmethod
    def backward(ctx: Any, grad_logprobs_N: Tensor, grad_entropies_N: Tensor) -> tuple[Tensor | None, ...]:
        *given, normalisers_N, entropies_N = ctx.saved_tensors
        hidden_ND, head_VD, targets_N, temperature_N, trained_P, rows_PD = given
        wide = normalisers_N.dtype
        # Sums over chunks are kept wide: adding many small bfloat16 chunks would lose their tails. One needs no sum.
        of_head, summed = ctx.needs_input_grad[1], len(ctx.chunks) > 1
        grad_rows_PD = torch.zeros_like(rows_PD, dtype=wide) if ctx.needs_input_grad[6] else None
        with_entropy = bool(grad_entropies_N.any())
        # Taken out, since the gradient is made in the memory of the logits; a second backward pass makes them anew.
        kept_CV, ctx.kept = ctx.kept, None
        # Nothing comes back to the tokens of a trace that is not trained, as in a dead group: their rows are left out.
        used_N = grad_logprobs_N.ne(0) | grad_entropies_N.ne(0)
        grad_hidden_ND = torch.zeros_like(hidden_ND)
        made = torch.zeros_like if summed or not bool(used_N.any()) else torch.empty_like
        grad_head_VD = made(head_VD, dtype=wide if summed else head_VD.dtype) if of_head else None
        for chunk in ctx.chunks:
            raw_CV, kept_CV = kept_CV, None
            used_C = used_N[chunk].nonzero()[:, 0]
            if not len(used_C):
                continue
            part: slice | Tensor = chunk if len(used_C) == chunk.stop - chunk.start else used_C + chunk.start
            apart = raw_CV is not None and part is not chunk  # those used lie among others
            if raw_CV is None:
                raw_CV = _product(hidden_ND[part], head_VD)
            temperature_C = None if temperature_N is None else temperature_N[part]
            targets_C, normalisers_C, entropies_C = targets_N[part], normalisers_N[part], entropies_N[part]
            grad_logprobs_C, grad_entropies_C = grad_logprobs_N[part], grad_entropies_N[part]
            for block in _blocks(raw_CV[: len(used_C)]):
                temperature_B = None if temperature_C is None else temperature_C[block]
                logits_BV, slope_BV = _logits(
                    raw_CV[used_C[block] if apart else block], temperature_B, ctx.softcap, wide
                )
                # In the logits' own memory: d log p_t / d logit_j = [j = t] - p_j, dH / d logit_j = -p_j (log p_j + H).
                logprobs_BV = logits_BV.sub_(normalisers_C[block, None])
                factor_BV = grad_logprobs_C[block, None]
                if with_entropy:
                    of_entropy_BV = (logprobs_BV + entropies_C[block, None]).mul_(grad_entropies_C[block, None])
                    factor_BV = factor_BV + of_entropy_BV
                grad_BV = logprobs_BV.exp_().mul_(-factor_BV)
                grad_BV[torch.arange(len(grad_BV), device=grad_BV.device), targets_C[block]] += grad_logprobs_C[block]
                if temperature_B is not None:
                    grad_BV /= temperature_B[:, None]
                if slope_BV is not None:
                    grad_BV *= slope_BV
                # Those left out make way, so no row is written before it was read.
                raw_CV[block] = grad_BV
            grad_CV = raw_CV[: len(used_C)]  # by now
            grad_hidden_ND[part] = grad_CV @ head_VD
            if grad_head_VD is not None:
                if not summed:
                    torch.mm(grad_CV.T, hidden_ND[part], out=grad_head_VD)
                elif grad_head_VD.dtype == grad_CV.dtype:
                    grad_head_VD.addmm_(grad_CV.T, hidden_ND[part])
                else:
                    # Without a second tensor as large as the head; a CPU's caches hold a product until it is added.
                    rows = max(1, (CHUNK_ELEMENTS if head_VD.is_cuda else 2 * BLOCK_ELEMENTS) // hidden_ND.shape[1])
                    for total_RD, grad_CR in zip(grad_head_VD.split(rows), grad_CV.split(rows, -1), strict=True):
                        total_RD += grad_CR.T @ hidden_ND[part]
            if grad_rows_PD is not None:
                grad_rows_PD += grad_CV[:, trained_P].T @ hidden_ND[part]
        # autograd gives each the type of its input.
        return grad_hidden_ND, grad_head_VD, None, None, None, None, grad_rows_PD


def _product(hidden_CD: Tensor, head_VD: Tensor) -> Tensor:
    """hidden @ head.T. On a CPU in float32 oneDNN takes 0.6 to 1.1 times as long for it as torch by itself, with
    up to 110 rows 0.6 to 0.95 (`tests/bench/cpu_kernels.py --head`)."""
    if head_VD.device.type == "cpu" and head_VD.dtype == torch.float32 and HAS_ONEDNN:
        return torch.ops.mkldnn._linear_pointwise(hidden_CD, head_VD, None, "none", [], "")
    return hidden_CD @ head_VD.T


def _logits(
    raw_CV: Tensor, temperature_C: Tensor | None, softcap: float | None, wide: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Capped and tempered logits, and the slope of the cap (None without one)."""
    logits_CV = raw_CV.to(wide)
    slope_CV = None
    if softcap is not None:
        bounded_CV = torch.tanh(logits_CV / softcap)
        logits_CV, slope_CV = bounded_CV * softcap, 1 - bounded_CV**2
    if temperature_C is not None:
        logits_CV = logits_CV / temperature_C[:, None]
    return logits_CV, slope_CV


def _chunks(positions: int, head_VD: Tensor, keeps: int) -> list[slice]:
    """First the `keeps` positions whose logits are kept."""
    first = min(keeps, positions)
    rest = _slices(positions - first, CHUNK_ELEMENTS * (GPU_CHUNKS if head_VD.is_cuda else 1) // head_VD.shape[0])
    return _slices(first, first) + [slice(first + part.start, first + part.stop) for part in rest]


def _blocks(raw_CV: Tensor) -> list[slice]:
    return _slices(len(raw_CV), block_rows(raw_CV))


def block_rows(logits_NV: Tensor) -> int:
    """How many rows of logits to go through at a time."""
    return len(logits_NV) if logits_NV.is_cuda else max(1, BLOCK_ELEMENTS // logits_NV.shape[1])


def _slices(count: int, most: int) -> list[slice]:
    """Of at most so many, but one at least."""
    return [slice(start, min(start + max(1, most), count)) for start in range(0, count, max(1, most))]
