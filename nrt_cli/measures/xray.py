"""What log-probabilities say of a trace's steps: which matter, when the answer is decided, whether it was computed.

Pure functions of numbers in nats, natural; numpy arrays, lists and torch tensors on a CPU all do. L[n] is log P(y*)
given the first n of a trace's N steps, so L[0] is given the empty trace and L[N] given all of it.

Necessity, the truncation curve: Zhao et al., arXiv 2510.24941 (the causal share of steps); Wang et al., arXiv
2510.01367 (an answer that is decided early is the sign of a shortcut). Both there by sampled answers; here log P(y*) is
exact.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

MATTERS = -math.log(0.9)
"""Nats, 0.105: what takes a tenth of a probability or more, of the answer's or of a token's, matters."""

DECIDED = 0.1
"""Share of the trace's gain that may be missing where the answer counts as decided."""


def tolerance(gain: float) -> float:
    """Nats that log P(y*) may lack and be as good: `DECIDED` of the trace's gain, but no less than `MATTERS`."""
    return max(DECIDED * gain, MATTERS)


def needed(necessity: Sequence[float], falls: Any) -> list[float]:
    """Nats by which the answer needs each step, itself or by way of later steps that it needs.

    An answer is read off the last line of a working, so without the first line it is as likely as before: what the
    first line was needed for is the second. A step matters if what is returned is `MATTERS` or more.

    Args:
        necessity: by how much log P(y*) falls without the step.
        falls: [N, N + 1], by how much changing step i (its numbers, its names) lowers log p of what was expected of a
            later step j, and in the last column log P(y*); -inf where there is nothing to change or to lower.
    """
    found = [0.0] * len(necessity)
    for i in reversed(range(len(found))):
        chain = [falls[i][j] for j in range(i + 1, len(found)) if found[j] >= MATTERS]
        found[i] = float(max(necessity[i], falls[i][-1], *chain))
    return found


def decided_at(kept: Sequence[float]) -> int | None:
    """The first n from which on log P(y*) stays within `tolerance` of what the whole trace gives, or above it.

    0: the trace was not needed, or harmed. None where something in `kept`, L[0] to L[N], is not finite.
    """
    curve = np.asarray(kept, dtype=float)
    if not np.isfinite(curve).all():
        return None
    below = np.flatnonzero(curve < curve[-1] - tolerance(curve[-1] - curve[0]))
    return int(below[-1]) + 1 if len(below) else 0


def lasting(curve: Sequence[float]) -> np.ndarray:
    """What of a curve over a trace's beginnings is never lost again: at each n the least of what comes from there on.

    It rises by as much as the trace gains, step by step. A sentence that is cut in its middle confuses a model, or
    happens to end in the answer: neither lasts.
    """
    return np.minimum.accumulate(np.asarray(curve, dtype=float)[::-1])[::-1]


def smuggled_share(gains: Any, surprises: Any) -> float:
    """Share of what a trace gained that its own surprise pays for: 1, it was smuggled in or guessed; 0, computed.

    By Bayes' rule, reading z raises the log-probability of y* by log p(z | x, y*) - log p(z | x), which is at most
    -log p(z | x). So a reader that works out nothing gains from a word no more than the word surprises it: who is told
    the answer, or draws it by chance, is surprised by as much as is gained. Only a model for which writing something
    down is a computation gains by words that it expects. What the gains exceed the surprises by was computed.

    A right working ends with the answer too, so no overlap of words tells the two apart; this does.

    Args:
        gains: nats, of each piece of the trace (a word, or the whole): what it added to log P(y*). Losses count as 0.
        surprises: nats, of the same: -log p(piece | x, what was before) by the model that does not see y*. Of traces
            that were sampled with the answer in view, log q(z | x, y*) - log p(z | x) is the sharper price: a choice
            of words that the answer had no part in costs nothing there.

    Returns NaN where nothing was gained.
    """
    gained, paid = (np.maximum(np.asarray(values, dtype=float), 0.0) for values in (gains, surprises))
    total = float(gained.sum())
    return float(np.minimum(gained, paid).sum()) / total if total > 0 else math.nan
