"""The schemes as they are written in tables, evaluated, against the schemes as they are computed."""

import math
import re

import pytest
import torch

from nrt_cli import methods
from nrt_cli.config import ObjectiveSection
from nrt_cli.methods import FORMULAS, SCHEMES, Group

C, C_BASE = [0.5, 0.25, 0.9], [0.1, 0.8, 0.3]


def evaluated(text, i=0, weight=None):
    """A formula's value, at answer token i where it has one."""
    for written, python in (
        ("π(y*|x,z)", "math.prod(c)"), ("cⱼ,base", "b[j]"), ("cᵢ,base", "b[i]"), ("cⱼ", "c[j]"), ("cᵢ", "c[i]"),
        ("wⱼ", "w[j] *"), ("^", "**"), ("·", "*"), ("] log", "] * log"),
    ):  # fmt: skip
        text = text.replace(written, python)
    text = re.sub(r"log (\S+)", r"math.log(\1)", text)
    text = re.sub(r"Πⱼ (c\[j\])", r"math.prod(\1 for j in range(T))", text)
    text = re.sub(r"Σⱼ (.*)$", r"sum(\1 for j in range(T))", text)
    names = {"math": math, "c": C, "b": C_BASE, "w": weight, "T": len(C), "i": i, "sum": sum, "range": range}
    return eval(text, {"__builtins__": {}, **names})


PAPER = [name for name in SCHEMES if name in FORMULAS and FORMULAS[name].place < 100]
"""Those of Tables 1 and 2, whose notation this file reads; a method that came later may have its own."""


def test_the_papers_schemes_are_written_down():
    assert len(PAPER) == 6


@pytest.mark.parametrize("name", PAPER)
def test_what_is_written_is_what_is_computed(name):
    formulas = FORMULAS[name]
    logprobs_KT, base_T = torch.tensor([C]).double().log(), torch.tensor(C_BASE).double().log()
    signals = methods.get(name).signals(Group.of(logprobs_KT, base_T, ObjectiveSection()))
    computed = float(signals.reward_K[0])
    weight = [evaluated(formulas.weight.text, i) for i in range(3)] if formulas.weight else None
    assert evaluated(formulas.aggregation.text, weight=weight) == pytest.approx(computed)
    assert evaluated(formulas.reward.text) == pytest.approx(computed)
    assert [evaluated(formulas.signal.text, i) for i in range(3)] == pytest.approx(signals.token_KT[0].tolist())
