"""Whether what trains y* and what trains the trace are in proportion, read off a step's metrics (`metrics.py`).

Too little of the answer term, and y* is never learned; too much, and y* is learned without the trace before the policy
gradient has found what a trace is good for.
"""

from collections.abc import Mapping

from nrt_cli.config import ObjectiveSection

VANISHING = 0.01
"""An answer term that pulls less than this share of plain cross-entropy teaches y* too slowly to be seen."""

DROWNING = 0.2
"""Plain cross-entropy above this share of the gradient was seen to wipe out the way from trace to answer."""


def described(metrics: Mapping[str, float]) -> str:
    """A step's shares and token signals in words."""
    shares = ", ".join(f"{term} {metrics[f'share_{term}']:.0%}" for term in ("trace", "answer", "format"))
    total, length = metrics["token_signal"] * metrics["answer_tokens"], metrics["answer_tokens"]
    return (
        f"{shares}; an answer's token signals sum to {total:.3g} of {length:.0f} tokens, and its "
        f"term pulls {metrics['answer_weight']:.2g} times as hard as plain cross-entropy"
    )


def doubt(metrics: Mapping[str, float], objective: ObjectiveSection) -> str:
    """What is out of proportion and what to do; "" where nothing is, or nothing pulls."""
    if not objective.weights.answer or not objective.weights.trace:
        return ""  # the control, or a run that is not meant to learn y*
    if metrics["answer_weight"] < VANISHING:
        return "y* is as good as not learned from: set objective.token_signal=shared or raise objective.weights.answer."
    # Balanced, its share is only large where no trace is rewarded yet.
    plain = objective.token_signal == "fixed" and objective.balance == "off"
    if plain and metrics["share_answer"] > DROWNING:
        return (
            "the answers' cross-entropy may teach y* without the trace before a trace can help: set "
            "objective.balance=auto or lower objective.weights.answer."
        )
    return ""
