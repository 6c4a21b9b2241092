"""Rewards and token signals against autograd, hand arithmetic and exact decimals."""

import decimal
import math
import sys
import uuid
from decimal import Decimal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nrt_cli import methods
from nrt_cli.config import ObjectiveSection
from nrt_cli.errors import ConfigError
from nrt_cli.methods import Group
from nrt_cli.objective.losses import group_advantage

SCHEMES = ["logp", "p", "am", "gm", "ws-inv-p", "ws-neg-log-p"]
"""The paper's, whose numbers are known by hand."""
TINY = math.log(1e-300)


def signals(name, logprobs_KT, base_T, **settings):
    """What a method makes of a group."""
    return methods.get(name).signals(Group.of(logprobs_KT, base_T, ObjectiveSection(**settings)))


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


@st.composite
def log_probabilities(draw):
    """log c of K traces and log c_base: short and long answers, from nearly certain to 1e-300."""
    traces, tokens = draw(st.integers(1, 5)), draw(st.sampled_from([1, 2, 7, 60, 5000]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    depth, base_depth = (draw(st.sampled_from([-1e-9, -0.01, -1.0, -30.0, TINY])) for _ in range(2))
    draw_one = lambda depth, *shape: depth * torch.rand(*shape, dtype=torch.float64, generator=generator)  # noqa: E731
    return draw_one(depth, traces, tokens), draw_one(base_depth, tokens) + 1e-300 * depth


@pytest.mark.parametrize("options", [{}, {"weighted_sum": "mean"}, {"weight_cap": 3.0}])
@pytest.mark.parametrize("name", SCHEMES)
@settings(max_examples=25, deadline=None)
@given(inputs=log_probabilities())
def test_closed_forms_equal_autograd(name, options, inputs):
    logprobs_KT, base_T = inputs
    method = methods.get(name)
    constants = method.constants(Group.of(logprobs_KT, base_T, ObjectiveSection(**options)))
    got, want = method.token_signal(logprobs_KT, constants), method.autograd_signal(logprobs_KT, constants)
    assert got.shape == logprobs_KT.shape
    assert got.isfinite().all()
    # autograd's softmax loses a term that is 1e-16 of its sum, the closed form does not.
    torch.testing.assert_close(got, want, rtol=1e-9, atol=float(want.abs().max()) * 1e-15)


@pytest.mark.parametrize("options", [{}, {"weighted_sum": "mean"}, {"weight_cap": 3.0}])
@pytest.mark.parametrize("name", [name for name, method in methods.METHODS.items() if method.samples])
def test_what_every_method_says_of_its_rewards_holds(name, options):
    """The proof that a user's own has to pass, of every file of `nrt_cli/methods`."""
    methods.prove(methods.get(name), name, ObjectiveSection(**options))


# c = (1/2, 1/4) and c_base = (1/10, 4/5); reward, token signals and the null trace's reward, from Tables 1 and 2.
BY_HAND = {
    "logp": (math.log(1 / 8), (1, 1), math.log(0.08)),
    "p": (1 / 8, (1 / 8, 1 / 8), 0.08),
    "am": (3 / 8, (1 / 4, 1 / 8), 0.45),
    "gm": (math.sqrt(1 / 8), (math.sqrt(1 / 8) / 2, math.sqrt(1 / 8) / 2), math.sqrt(0.08)),
    # Weights 10 and 1.25.
    "ws-inv-p": (5.3125, (5, 0.3125), 2),
    # Weights log 10 and log 1.25.
    "ws-neg-log-p": (
        math.log(10) / 2 + math.log(1.25) / 4,
        (math.log(10) / 2, math.log(1.25) / 4),
        math.log(10) / 10 + 0.8 * math.log(1.25),
    ),
}


@pytest.mark.parametrize("name", SCHEMES)
def test_rewards_and_signals_by_hand(name):
    got = signals(name, double([0.5, 0.25], [1.0, 1.0]).log(), double(0.1, 0.8).log())
    reward, token_signals, base = BY_HAND[name]
    assert got.reward_K[0].item() == pytest.approx(reward)
    assert got.token_KT[0].tolist() == pytest.approx(token_signals)
    assert got.base.item() == pytest.approx(base)
    # The second trace makes the answer certain: log c = 0, c = 1.
    certain = {"logp": 0, "p": 1, "am": 1, "gm": 1, "ws-inv-p": 11.25, "ws-neg-log-p": math.log(12.5)}
    assert got.reward_K[1].item() == pytest.approx(certain[name])


@pytest.mark.parametrize(
    ("name", "options", "weights"),
    [
        ("ws-inv-p", {"weight_cap": 4.0}, (4, 1.25)),
        ("ws-inv-p", {"weight_cap": 0.5}, (0.5, 0.5)),
        ("ws-neg-log-p", {"weight_cap": 1.0}, (1, math.log(1.25))),
        ("ws-inv-p", {"weighted_sum": "mean"}, (5, 0.625)),
        ("ws-neg-log-p", {"weighted_sum": "mean"}, (math.log(10) / 2, math.log(1.25) / 2)),
        # The cap bounds the weight, the mean divides afterwards.
        ("ws-inv-p", {"weight_cap": 4.0, "weighted_sum": "mean"}, (2, 0.625)),
    ],
)
def test_caps_and_means_of_weights_by_hand(name, options, weights):
    got = signals(name, double([0.5, 0.25]).log(), double(0.1, 0.8).log(), **options)
    weighted = (0.5 * weights[0], 0.25 * weights[1])
    assert got.token_KT[0].tolist() == pytest.approx(weighted)
    assert got.reward_K.tolist() == pytest.approx([sum(weighted)])


@pytest.mark.parametrize("above", [0.0, 1e-7])
def test_a_null_trace_that_is_certain_leaves_neg_log_p_without_reward_and_inv_p_with_the_plain_sum(above):
    """c_base = 1: weights -log 1 = 0 and 1/1 = 1. A log-prob a hair above 0 is rounding of the same."""
    logprobs_KT, base_T = double([0.5, 0.25], [0.9, 0.1]).log(), double(above, above)
    nothing = signals("ws-neg-log-p", logprobs_KT, base_T)
    assert nothing.reward_K.tolist() == [0.0, 0.0]
    assert nothing.base.item() == 0.0
    assert nothing.token_KT.tolist() == [[0.0, 0.0], [0.0, 0.0]]
    advantage = group_advantage(nothing)
    assert advantage.dead
    assert advantage.advantage_K.tolist() == [0.0, 0.0]

    plain_sum = signals("ws-inv-p", logprobs_KT, base_T)
    assert plain_sum.reward_K.tolist() == pytest.approx([0.75, 1.0])
    assert plain_sum.token_KT.flatten().tolist() == pytest.approx([0.5, 0.25, 0.9, 0.1])
    # Without Eq. 9 (R_base = 2 is above both), two rewards are one deviation from their mean.
    assert group_advantage(plain_sum, baseline="none").advantage_K.tolist() == pytest.approx([-1, 1])


def test_one_certain_token_gets_weight_zero_and_others_keep_theirs():
    got = signals("ws-neg-log-p", double([0.5, 0.25]).log(), double(1.0, 0.1).log())
    assert got.token_KT[0].tolist() == pytest.approx([0, 0.25 * math.log(10)])
    assert got.reward_K.tolist() == pytest.approx([0.25 * math.log(10)])


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("tokens", [1, 5000])
def test_probabilities_of_1e_300_give_finite_numbers(name, tokens):
    logprobs_KT = torch.full((3, tokens), TINY, dtype=torch.float64) + double(0.0, 10.0, 20.0)[:, None] / tokens
    base_T = torch.full((tokens,), TINY, dtype=torch.float64)
    got = signals(name, logprobs_KT, base_T)
    advantage = group_advantage(got)
    for values in (got.reward_K, got.scaled_K, got.token_KT, got.base, advantage.advantage_K):
        assert values.isfinite().all()
    assert not advantage.dead
    assert advantage.advantage_K.diff().gt(0).all(), "a likelier answer has the larger advantage"


def exact_advantages(logprobs_KT, base_T):
    """Eq. 9 and 10 for `p` in decimals of 60 digits, which have no underflow here."""
    with decimal.localcontext() as context:
        context.prec, context.Emin = 60, -(10**9)
        total = lambda row: sum(map(Decimal, row.tolist()), Decimal(0)).exp()  # noqa: E731
        shaped = [max(Decimal(0), total(row) - total(base_T)) for row in logprobs_KT]
        mean = sum(shaped) / len(shaped)
        deviation = (sum((r - mean) ** 2 for r in shaped) / len(shaped)).sqrt()
        return [float((r - mean) / deviation) for r in shaped]


def test_p_still_learns_from_an_answer_of_minus_5000_nats():
    generator = torch.Generator().manual_seed(0)
    logprobs_KT = -1 + 0.01 * torch.randn(6, 5000, dtype=torch.float64, generator=generator)
    base_T = -1 + 0.01 * torch.randn(5000, dtype=torch.float64, generator=generator)
    assert not logprobs_KT.sum(-1).exp().any(), "plain exp underflows, in float64 too"
    advantage = group_advantage(signals("p", logprobs_KT, base_T))
    assert not advantage.dead
    want = exact_advantages(logprobs_KT, base_T)
    assert len(set(want)) > 2, "some trace beats the null trace, so there is something to learn"
    assert advantage.advantage_K.tolist() == pytest.approx(want, rel=1e-8)


def test_a_null_trace_that_is_e_to_the_thousands_better_leaves_an_unclipped_group_as_it_is():
    """Where baseline is none, P of -4990 and -4991 nats are one deviation from their mean; Eq. 9 clips both to 0."""
    got = signals("p", double([-4990.0], [-4991.0]), double(-1000.0))
    assert group_advantage(got, baseline="none").advantage_K.tolist() == pytest.approx([1, -1])
    for floor in (0.0, 1e-6):
        assert group_advantage(got, std_floor=floor).dead


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module of a fresh name on the import path; returns the name."""

    def write(source, folder=tmp_path):
        name = f"user_{uuid.uuid4().hex}"
        (folder / f"{name}.py").write_text(f"import torch\nimport nrt_cli\n{source}\n")
        monkeypatch.syspath_prepend(folder)
        return name

    return write


def test_a_users_scheme_may_give_log_rewards_and_a_closed_form(module):
    name = module(
        "half_p = nrt_cli.reward(lambda c, b: c.sum(-1) / 2, in_log=True)\n"
        "@nrt_cli.reward\n"
        "def closed(c, b): return c.sum(-1)\n"
        "closed.token_signal = lambda c, b: torch.ones_like(c)"
    )
    logprobs_KT, base_T = double([-4000.0, -2000.0], [-4000.0, -2002.0]), double(-3000.0, -3004.0)
    half = signals(f"{name}:half_p", logprobs_KT, base_T)
    # Log-rewards -3000, -3001 and -3002 for the null trace.
    assert half.scaled_K.tolist() == pytest.approx([1, math.exp(-1)])
    assert half.scaled_base.item() == pytest.approx(math.exp(-2))
    assert half.log_scale.item() == -3000
    assert signals(f"{name}:closed", logprobs_KT, base_T).token_KT.tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_a_scheme_beside_the_user_is_found(module, tmp_path, monkeypatch):
    """`nrt` is a console script: the working directory is not on its path by itself."""
    beside = tmp_path / "beside"
    beside.mkdir()
    (beside / "my_own_reward_module.py").write_text("def reward(c, b):\n    return c.sum(-1)\n")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.chdir(beside)
    assert methods.get("my_own_reward_module:reward").token_signal is None


@pytest.mark.parametrize("name", ["nowhere_at_all:reward", ":reward", ".relative:reward", "math:no_such_name", "math:"])
def test_a_scheme_that_cannot_be_found_is_named(name):
    with pytest.raises(ConfigError, match=f"^method {name!r} cannot be imported: .+"):
        methods.get(name)


@pytest.mark.parametrize("source", ["def broken(:", "raise RuntimeError('licence expired')"])
def test_a_module_that_fails_to_import_is_named(source, module):
    name = module(source)
    with pytest.raises(ConfigError, match=f"method '{name}:reward' cannot be imported: "):
        methods.get(f"{name}:reward")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return c.sum()", r"must have the shape \[2\] for 2 traces of 3 answer tokens; it has \[\]"),
        ("return c", r"must have the shape \[2\]"),
        ("return c.sum(-1, keepdim=True)", r"must have the shape \[2\]"),
        ("return 1.0", "must be a tensor of floating-point numbers; for 2 traces of 3 answer tokens it is a float"),
        ("return c.detach().sum(-1)", "has no derivative by log c"),
        ("return b.sum().expand(len(c))", "has no derivative by log c"),
        ("return (c - 1).log().sum(-1)", "its reward must be finite"),
        ("return 1 / (c - c).sum(-1)", "its reward must be finite"),
        ("return (c - c).sum(-1).sqrt()", "its token signals must be finite"),
        ("raise KeyError('missing')", "KeyError: 'missing'"),
    ],
)
def test_a_reward_that_cannot_be_trained_on_is_refused(body, said, module):
    name = module(f"def reward(c, b):\n    {body}")
    with pytest.raises(ConfigError, match=said) as caught:
        methods.get(f"{name}:reward")
    assert str(caught.value).startswith(f"method '{name}:reward'")


@pytest.mark.parametrize(
    ("signal", "said"),
    [("c.sum(-1)", r"have the shape \[2, 3\]"), ("c[:, :1]", r"have the shape \[2, 3\]"), ("c / 0", "be finite")],
)
def test_a_closed_form_that_is_not_one_finite_number_per_token_is_refused(signal, said, module):
    name = module(f"reward = nrt_cli.reward(lambda c, b: c.sum(-1))\nreward.token_signal = lambda c, b: {signal}")
    with pytest.raises(ConfigError, match=f"its token signals must {said}"):
        methods.get(f"{name}:reward")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(
        ConfigError,
        match=r"'pp' is unknown; choose one of sft, logp, p, am, gm, .* or module:function",
    ):
        methods.get("pp")
