"""What people read in place of a method's name, in every table, figure and list."""

from collections.abc import Mapping
from typing import Any

TITLES = {
    "sft": "SFT",
    "logp": "JLB",
    "p": "Verifree",
    "am": "RLPR",
    "gm": "NRT-GM",
    "ws-inv-p": "NRT-WS (1/p)",
    "ws-neg-log-p": "NRT-WS (-log p)",
}
"""The names of the paper's Table 3."""

CONTROL = "Control: no policy gradient"
"""A run whose traces are not trained is nothing that the paper has a name for, whichever scheme it computes beside."""

ON_TRACES = "SFT on reference traces"
"""Eq. 1, which none of the paper's runs is."""


def method_title(method: str) -> str:
    """What the paper calls a method; one that it does not have is called what it is."""
    return TITLES.get(method, method)


def run_title(method: str, config: Mapping[str, Any], variant: str = "") -> str:
    """What a run is called.

    Args:
        config: the run's nested settings; what is not in it is the default.
        variant: what a study calls the method, where it is a variant of another one.
    """
    if is_control(method, config):
        return CONTROL
    if method == "sft" and thinks(method, config):
        return f"{variant}: {ON_TRACES}" if variant else ON_TRACES
    return f"{variant}: {method_title(method)}" if variant else method_title(method)


def run_label(method: str, config: Mapping[str, Any]) -> str:
    """Short, for a column or a legend beside other runs: the method by its setting, if that is what the run learned."""
    if method == "sft" and thinks(method, config):
        return ON_TRACES
    return CONTROL if is_control(method, config) else method


def thinks(method: str, config: Mapping[str, Any]) -> bool:
    """Whether a run's model learned to think before it answers."""
    return method != "sft" or bool(config.get("data", {}).get("traces", False))


def is_control(method: str, config: Mapping[str, Any]) -> bool:
    """Whether a run samples traces and learns nothing from their rewards."""
    return method != "sft" and config.get("objective", {}).get("weights", {}).get("trace", 1.0) == 0
