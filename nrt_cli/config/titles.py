"""What people read in place of a method's name, in every table, figure and list."""

from collections.abc import Mapping
from typing import Any

from nrt_cli import methods

TITLES = {name: method.title for name, method in methods.METHODS.items()}
"""The names of the paper's Table 3."""

CONTROL = methods.CONTROL.title
"""A run whose traces are not trained is nothing that the paper has a name for, whichever scheme it computes beside."""

ON_TRACES = "SFT on reference traces"
"""Eq. 1, which none of the paper's runs is."""


def method_title(method: str) -> str:
    """What the paper calls a method; one that it does not have is called what it is."""
    return TITLES.get(method, method)


def run_title(method: str, config: Mapping[str, Any], variant: str = "", own: str = "") -> str:
    """What a run is called.

    Args:
        config: the run's nested settings; what is not in it is the default.
        variant: what a study calls the method, where it is a variant of another one.
        own: the title that a user's class has, as the run's manifest keeps it.
    """
    if is_control(method, config):
        return CONTROL
    title = ON_TRACES if not methods.facts(method).samples and thinks(method, config) else own or method_title(method)
    return f"{variant}: {title}" if variant else title


def run_label(method: str, config: Mapping[str, Any]) -> str:
    """Short, for a column or a legend beside other runs: the method by its setting, if that is what the run learned."""
    return run_title(method, config, own=method)


def thinks(method: str, config: Mapping[str, Any]) -> bool:
    """Whether a run's model learned to think before it answers."""
    return methods.facts(method).samples or bool(config.get("data", {}).get("traces", False))


def is_control(method: str, config: Mapping[str, Any]) -> bool:
    """Whether a run samples traces and learns nothing from their rewards."""
    facts, weights = methods.facts(method), config.get("objective", {}).get("weights", {})
    return facts.samples and (weights.get("trace", 1.0) == 0 or not facts.policy_gradient)
