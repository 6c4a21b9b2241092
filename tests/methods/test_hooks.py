"""Methods of a user's own: weights from the variance over a group's traces, a harmonic mean, classes, refusals."""

import importlib
import re
import uuid
from fractions import Fraction
from importlib.util import find_spec

import pytest
import torch
import yaml

from nrt_cli import methods
from nrt_cli.config import ObjectiveSection, resolve
from nrt_cli.errors import ConfigError
from nrt_cli.grading.grading import find
from nrt_cli.methods import Group
from nrt_cli.objective.losses import group_advantage
from nrt_cli.renamed import TABLE

SOURCE = """
import torch
import yaml
import nrt_cli

def spread(group, unbiased):
    return group.logprobs_KT.exp().var(0, unbiased=unbiased)

@nrt_cli.reward(constants=lambda group: spread(group, False))
def biased(logprobs_KT, weight_T):
    return (weight_T * logprobs_KT.exp()).sum(-1)

@nrt_cli.reward(constants=lambda group: spread(group, True))
def unbiased(logprobs_KT, weight_T):
    return (weight_T * logprobs_KT.exp()).sum(-1)

def harmonic(logprobs_KT, base_T):
    return logprobs_KT.shape[-1] / (-logprobs_KT).exp().sum(-1)

def undeclared(logprobs_KT, base_T):
    c = logprobs_KT.exp()
    return (c.var(0, unbiased=False) * c).sum(-1)

class Centred(nrt_cli.Method):
    def signals(self, group):
        c, b = group.logprobs_KT.exp(), group.base_logprobs_T.exp()
        return nrt_cli.Signals.of(c.mean(-1), b.mean(), c / c.shape[-1])

class NoBaseline(nrt_cli.Method):
    def signals(self, group):
        c = group.logprobs_KT.exp()
        return nrt_cli.Signals.of(c.mean(-1), c.new_zeros(()), c / c.shape[-1])

class Ranked(nrt_cli.Method):
    def signals(self, group):
        c = group.logprobs_KT.exp()
        return nrt_cli.Signals.of(c.mean(-1) * c.new_tensor(range(1, len(c) + 1)), c.new_zeros(()), c)

class LeaveOneOut(nrt_cli.Method):
    sign = 1

    def signals(self, group):
        c, b = group.logprobs_KT.exp(), group.base_logprobs_T.exp()
        weight = 1 - (c.sum(0) - c) / (len(c) - 1)
        return nrt_cli.Signals.of((weight * c).sum(-1), ((1 - c.mean(0)) * b).sum(), self.sign * weight * c)

class Opposed(LeaveOneOut):
    sign = -1

class Meant(Opposed):
    free = ("token signals",)

class Spread(nrt_cli.Method):
    share = 1

    def signals(self, group):
        c, b = group.logprobs_KT.exp(), group.base_logprobs_T.exp()
        weight = c.var(0)
        return nrt_cli.Signals.of((weight * c).sum(-1), (weight * b).sum(), self.share * weight * c)

class Biased(Spread):
    def signals(self, group):
        self.share = 1 - 1 / len(group.logprobs_KT)
        return super().signals(group)

class ZScore(nrt_cli.Method):
    def signals(self, group):
        c, b = group.logprobs_KT.exp(), group.base_logprobs_T.exp()
        weight = 1 / c.std(0)
        return nrt_cli.Signals.of((weight * c).sum(-1), (weight * b).sum(), weight * c)

class FloatBase(nrt_cli.Method):
    def signals(self, group):
        return nrt_cli.Signals.of(group.logprobs_KT.mean(-1), 0.5, group.logprobs_KT)

class Numpy(nrt_cli.Method):
    def signals(self, group):
        c = torch.from_numpy(group.logprobs_KT.numpy()).exp()
        return nrt_cli.Signals.of(c.mean(-1), group.base_logprobs_T.exp().mean(), c / c.shape[-1])

class InPlace(nrt_cli.Method):
    def signals(self, group):
        c, b = group.logprobs_KT.exp_(), group.base_logprobs_T.exp()
        return nrt_cli.Signals.of(c.mean(-1), b.mean(), c / c.shape[-1])

class Named(Centred):
    name = "am"

class Empty(nrt_cli.Method):
    pass

class Running(nrt_cli.Rowwise):
    top = -9.0

    def constants(self, group):
        self.top = max(self.top, float(group.logprobs_KT.max()))
        return self.top

    def reward(self, logprobs_KT, top):
        return logprobs_KT.mean(-1) - top

@nrt_cli.reward(constants=lambda group: group.logprobs_KT.exp())
def row_each(logprobs_KT, c):
    return (c * logprobs_KT.exp()).sum(-1)

def deviation(logprobs_KT, base_T):
    return (logprobs_KT.exp().std(0) * logprobs_KT.exp()).sum(-1)

def large_alone(logprobs_KT, base_T):
    return logprobs_KT.sum(-1) - (logprobs_KT.sum(-1).mean() if len(logprobs_KT) > 4 else 0)

def unlikely(logprobs_KT, base_T):
    return (logprobs_KT.sum(-1) + 400).sqrt()

def ranked(logprobs_KT, base_T):
    return (logprobs_KT > -1).double().sum(-1)

class CapOnly(nrt_cli.Rowwise):
    def reward(self, logprobs_KT, base_T):
        return logprobs_KT.sum(-1)

    def signals(self, group):
        found = super().signals(group)
        return found if group.settings.weight_cap is None else nrt_cli.Signals.of(*[found.scaled_K.log()] * 3)

class Stranger:
    pass

class Needy(nrt_cli.Method):
    def __init__(self, alpha):
        self.alpha = alpha

class Bare(nrt_cli.Method):
    def signals(self, group):
        return group.logprobs_KT.sum(-1)

class Whole(nrt_cli.Method):
    def signals(self, group):
        ones = group.logprobs_KT.new_ones(group.logprobs_KT.shape)
        return nrt_cli.Signals.of(ones.sum(-1).long(), ones[0].sum().long(), ones)

class Wide(nrt_cli.Method):
    def signals(self, group):
        return nrt_cli.Signals.of(group.logprobs_KT.mean(-1), group.base_logprobs_T, group.logprobs_KT)

class Wrong(nrt_cli.Rowwise):
    def reward(self, logprobs_KT, base_T):
        return logprobs_KT.exp().mean(-1)

    def token_signal(self, logprobs_KT, base_T):
        return 5 * logprobs_KT.exp() / logprobs_KT.shape[-1]

class Untrained(nrt_cli.Method):
    policy_gradient = False

class Moody(nrt_cli.Method):
    asked = 0

    def signals(self, group):
        self.asked += 1
        c = group.logprobs_KT.exp() * self.asked
        return nrt_cli.Signals.of(c.mean(-1), group.base_logprobs_T.exp().mean() * self.asked, c)

def leaving(logprobs_KT, base_T):
    raise SystemExit("bye")

@nrt_cli.grader
def same(row, reply):
    return reply == row.answer

number = 7
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    name = f"mine_{uuid.uuid4().hex}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    return lambda attribute: f"{name}:{attribute}"


# Two traces and the null trace of two answer tokens; c of the first token differs by 1/2, of the second by 1/4.
C, C_BASE = ((Fraction(3, 4), Fraction(1, 2)), (Fraction(1, 4), Fraction(1, 4))), (Fraction(1, 2), Fraction(1, 8))


def signals_of(name):
    logprobs_KT = torch.tensor([[float(c) for c in row] for row in C], dtype=torch.float64).log()
    base_T = torch.tensor([float(c) for c in C_BASE], dtype=torch.float64).log()
    return methods.get(name).signals(Group.of(logprobs_KT, base_T, ObjectiveSection()))


@pytest.mark.parametrize(("name", "share"), [("biased", 1), ("unbiased", 2)])
def test_weights_from_the_variance_over_the_traces_by_hand(name, share, mine):
    """Of two numbers the variance is (half their distance)^2, twice that without bias: weights 1/16, 1/64, or twice."""
    found = signals_of(mine(name))
    weight = (Fraction(share, 16), Fraction(share, 64))
    # 3/4 / 16 + 1/2 / 64 = 7/128, 1/4 / 16 + 1/4 / 64 = 5/256, and for the null trace 1/2 / 16 + 1/8 / 64 = 17/512.
    assert [float(x) for x in found.reward_K] == pytest.approx([share * 7 / 128, share * 5 / 256])
    assert float(found.base) == pytest.approx(share * 17 / 512)
    # The weights are constants, so dR/dc * c is w * c, of the trace alone.
    want = [[float(w * c) for w, c in zip(weight, row, strict=True)] for row in C]
    assert found.token_KT.tolist() == [pytest.approx(row) for row in want]
    # The first is above the null trace, the second below it and clipped to 0: one deviation from their mean.
    advantage = group_advantage(found)
    assert advantage.advantage_K.tolist() == pytest.approx([1, -1])


def test_a_harmonic_mean_by_hand(mine):
    """2 / (4/3 + 2) = 3/5 and 2 / (4 + 4) = 1/4; for the null trace 2 / (2 + 8) = 1/5. dR/dc_i c_i = R^2 / (2 c_i)."""
    with torch.no_grad():  # where scores are made
        found = signals_of(mine("harmonic"))
    assert found.reward_K.tolist() == pytest.approx([0.6, 0.25])
    assert float(found.base) == pytest.approx(0.2)
    assert found.token_KT.tolist() == [pytest.approx([0.24, 0.36]), pytest.approx([0.125, 0.125])]


def test_a_class_over_a_group_is_a_method(mine):
    found = signals_of(mine("Centred"))
    assert found.reward_K.tolist() == pytest.approx([0.625, 0.25])
    assert float(found.base) == pytest.approx(0.3125)
    config = resolve({"method": mine("Centred")})
    assert config.samples
    assert config.thinks


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("undeclared", "depends on the other traces of its group"),
        ("NoBaseline", "its baseline is 0 where a trace that makes y* as likely as the null trace gets"),
        ("Opposed", "its token signals are not (dR/dc) c of its rewards"),
        ("Biased", "its token signals are not (dR/dc) c of its rewards"),
        ("ZScore", "its reward must be finite; for 3 like traces of 4 answer tokens it holds inf"),
        (
            "FloatBase",
            "its baseline must be a tensor of floating-point numbers; for 2 traces of 3 answer tokens it is a f",
        ),
        ("Numpy", "its reward cannot be differentiated at "),
        ("InPlace", "it changes the log-probs that it is given"),
        ("Named", "its class's name 'am' is a built-in method's"),
        ("Empty", "Empty has no signals(group)"),
        ("Running", "other numbers of the same group when it is asked again"),
        ("row_each", "without a row for each, in constants"),
        ("deviation", "depends on the other traces of its group"),
        ("large_alone", "depends on the other traces of its group"),
        ("unlikely", "40 answer tokens whose log-probs reach down to -60 it holds nan"),
        ("ranked", "its reward has no derivative by log c"),
        ("Biased_", "did you mean 'Biased'?"),
        ("Ranked", "change when the traces of a group change places"),
        ("Stranger", "is a class, but no nrt_cli.Method"),
        ("same", "is registered as a grader, and method takes a method or reward"),
        ("number", "neither a function nor a class"),
        ("Needy", "cannot be made without arguments"),
        ("Bare", "must return nrt_cli.Signals; for 2 traces of 3 answer tokens it returned a Tensor"),
        ("Whole", "must be a tensor of floating-point numbers; for 2 traces of 3 answer tokens it is torch.int64"),
        ("Wide", "its baseline must have the shape []"),
        ("Wrong", "its token_signal is not (dR/dc) c of its reward"),
        ("Untrained", "yours samples traces and trains them"),
        ("Moody", "other numbers of the same group when it is asked again"),
        ("leaving", "SystemExit: bye"),
        ("gone", "cannot be imported"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(name, said, mine):
    with pytest.raises(ConfigError) as refused:
        methods.get(mine(name))
    assert said in str(refused.value)
    assert mine(name) in str(refused.value)


MOVED = yaml.safe_load(TABLE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("old", [old for names in MOVED.values() for old in names.split()])
def test_a_module_that_has_moved_is_refused_with_where_it_is_now(old, tmp_path, monkeypatch):
    name, hook = old if old == "analysis" else f"nrt_cli.{old}", f"mine_{uuid.uuid4().hex}"
    (now,) = (places for places, names in MOVED.items() if old in names.split())
    assert all(find_spec(place) for place in re.findall(r"nrt_\w[\w.]*", now))
    (tmp_path / f"{hook}.py").write_text(f"import {name}.inner")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=f"it is in {re.escape(now)} now"):
        methods.get(f"{hook}:reward")


@pytest.mark.parametrize("name", ["LeaveOneOut", "Spread", "Meant"])
def test_what_a_class_takes_from_its_group_may_be_of_the_others_or_of_all(name, mine):
    """Weights of 1 less the other's c: 3/4 3/4 + 3/4 1/2, 1/4 1/4 + 1/2 1/4; or of the variance, 1/8 and 1/32."""
    want = [3 / 32 + 1 / 64, 1 / 32 + 1 / 128] if name == "Spread" else [15 / 16, 3 / 16]
    assert signals_of(mine(name)).reward_K.tolist() == pytest.approx(want)


def test_a_method_is_tried_under_the_runs_own_objective(mine):
    methods.get(mine("CapOnly"))
    with pytest.raises(ConfigError, match="its reward must be finite"):
        methods.get(mine("CapOnly"), ObjectiveSection(weight_cap=2.0))


def test_a_registered_function_is_called_as_before(mine):
    module, _, _ = mine("").partition(":")
    weight = torch.tensor([0.5, 0.25])
    assert importlib.import_module(module).biased(torch.zeros(1, 2), weight).tolist() == [0.75]


def test_an_error_of_a_users_code_says_where(mine):
    number = SOURCE.splitlines().index('    raise SystemExit("bye")') + 1
    with pytest.raises(
        ConfigError, match=rf"it fails at .*\.py:{number} on 2 traces of 3 answer tokens \(SystemExit: bye"
    ):
        methods.get(mine("leaving"))


def test_a_grader_is_told_from_a_reward(mine):
    assert find(mine("same")) is not None
    with pytest.raises(ConfigError, match="is registered as a reward, and grader takes a grader"):
        find(mine("biased"))
