"""The three terms of the loss by hand, and what clipping and group normalisation add on top of Eq. 22.

K traces, Z trace positions with t_end last, T answer tokens; everything in float64.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nrt_cli import methods
from nrt_cli.config import ObjectiveSection
from nrt_cli.objective.losses import GroupContext, GroupLogprobs, group_loss

# The one answer token's "log-prob" is the reward, so that tests choose advantages where `advantage=raw` passes them on.
GIVEN = methods.reward(lambda c, _: c[:, 0])
TRACE_ONLY = {"weights": {"trace": 1, "answer": 0, "format": 0}, "advantage": "raw", "baseline": "none"}
ANSWER_ONLY = {"weights": {"trace": 0, "answer": 1, "format": 0}}
FORMAT_ONLY = {"weights": {"trace": 0, "answer": 0, "format": 1}}


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


class Group:
    """One group: leaves to differentiate and the context around them. Traces are as long as their rows of numbers."""

    def __init__(self, traces, answers, forced=None, base=None, start=None, **others):
        pad = lambda rows: torch.nn.utils.rnn.pad_sequence([double(*row) for row in rows], batch_first=True)  # noqa: E731
        self.trace = pad(traces).requires_grad_()
        self.entropy = torch.full_like(self.trace, 0.5).requires_grad_()
        self.answer = double(*answers).requires_grad_()
        self.start = None if start is None else double(*[start] * len(traces)).requires_grad_()
        lengths = torch.tensor([[len(row)] for row in traces])
        at = torch.arange(self.trace.shape[1])
        self.mask = at < lengths
        self.forced = torch.tensor(forced or [False] * len(traces))
        sampled = self.mask & ~(self.forced[:, None] & (at == lengths - 1))
        base = double(*(base or [0.0] * self.answer.shape[1]))
        others = {f"{name}_trace_KZ": pad(rows) for name, rows in others.items()}
        self.context = GroupContext(self.mask, sampled, self.forced, base, **others)

    @property
    def logprobs(self):
        end = self.trace.gather(-1, self.mask.sum(-1, keepdim=True) - 1)[:, 0]
        return GroupLogprobs(self.start, self.trace, self.entropy, end, self.answer)

    def loss(self, scheme=GIVEN, rows=1, divisor=1, **objective):
        """The loss, after its backward pass."""
        loss = group_loss(scheme, self.logprobs, self.context, ObjectiveSection(**objective), rows, divisor)
        for leaf in (self.trace, self.entropy, self.answer, self.start):
            if leaf is not None:
                leaf.grad = torch.zeros_like(leaf)
        loss.total.backward()
        return loss


RATIOS = (1.5, 1.1, 0.5)  # above 1.28, inside, below 0.8
LOGS = (-1.0, -2.0, -0.25)


def off_policy(advantage, **others):
    """One trace whose three tokens have the ratios above."""
    return Group([LOGS], [[advantage]], old=[[lp - math.log(r) for lp, r in zip(LOGS, RATIOS, strict=True)]], **others)


# Per advantage: the objective min(rA, clamp(r)A) of each token and its gradient, which is rA unless the clamp is taken.
PPO = {
    2.0: ((2.56, 2.2, 1.0), (0, 2.2, 1.0)),
    -2.0: ((-3.0, -2.2, -1.6), (-3.0, -2.2, 0)),
}
# A token past the range in its advantage's direction is left out; others count clamp(r) A log pi, clamp(r) constant.
CISPO = {
    2.0: ((0, 2.2 * -2, 1.6 * -0.25), (0, 2.2, 1.6)),
    -2.0: ((-2.56 * -1, -2.2 * -2, 0), (-2.56, -2.2, 0)),
}


@pytest.mark.parametrize(("ratio", "table"), [("ppo", PPO), ("cispo", CISPO)])
@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_clipping_by_hand(advantage, ratio, table):
    group = off_policy(advantage)
    loss = group.loss(ratio=ratio, **TRACE_ONLY)
    values, gradients = table[advantage]
    assert loss.total.item() == pytest.approx(-sum(values))
    assert loss.trace.item() == pytest.approx(-sum(values))
    assert group.trace.grad[0].tolist() == pytest.approx([-g for g in gradients])
    assert loss.ratio_clipped.item() == pytest.approx(2 / 3)


@pytest.mark.parametrize("bounds", [{}, {"clip_low": 0.0, "clip_high": 0.0}])
@pytest.mark.parametrize("ratio", ["ppo", "cispo", "sequence"])
def test_every_ratio_is_1_on_the_first_minibatch(ratio, bounds):
    """Then the gradient is that of Eq. 22: -A per trace token and -dS per answer token."""
    group = Group([LOGS, LOGS[:2]], [[3.0], [-1.0]])
    loss = group.loss(ratio=ratio, weights={"format": 0}, advantage="raw", baseline="none", **bounds)
    assert group.trace.grad.tolist() == [[-3, -3, -3], [1, 1, 0]]
    assert group.answer.grad.tolist() == [[-1], [-1]]
    assert loss.ratio_clipped.item() == 0


def test_bounds_are_taken_from_the_config():
    group = off_policy(2.0)
    loss = group.loss(clip_low=0.6, clip_high=0.05, **TRACE_ONLY)
    assert loss.trace.item() == pytest.approx(-(2.1 + 2.1 + 1.0))
    assert loss.ratio_clipped.item() == pytest.approx(2 / 3)
    assert off_policy(2.0).loss(clip_low=0.6, clip_high=0.6, **TRACE_ONLY).ratio_clipped.item() == 0


def test_a_forced_t_end_is_credited_only_where_the_config_says_so():
    """The last of three positions was appended: no gradient, and no part in the ratio."""
    group = off_policy(2.0, forced=[True])
    group.loss(ratio="sequence", weights={"format": 0}, advantage="raw", baseline="none")
    assert group.trace.grad[0].tolist() == pytest.approx([-1.65 * 2, -1.65 * 2, 0])
    assert group.answer.grad[0].tolist() == pytest.approx([-1.65])
    loss = group.loss(**TRACE_ONLY)
    assert group.trace.grad[0].tolist() == pytest.approx([0, -2.2, 0])
    assert loss.ratio_clipped.item() == pytest.approx(1 / 2)
    loss = group.loss(credit_forced_end=True, **TRACE_ONLY)
    assert group.trace.grad[0].tolist() == pytest.approx([0, -2.2, -1.0])
    assert loss.ratio_clipped.item() == pytest.approx(2 / 3)


def test_clipping_on_top_of_group_normalisation_by_hand():
    """Four traces of one token with c = 0.1, 0.2, 0.3, 0.6 and c_base = 0.2, off-policy, all three terms.

    R' = (0, 0, 0.1, 0.4), mean 0.125, differences (-5, -5, -1, 11) / 40, squares sum to 172 / 1600, so the deviation is
    sqrt(43) / 40 and A = (-5, -5, -1, 11) / sqrt(43). Ratios 0.5 (below), 1.1, 2 (above), 2 (above).
    """
    ratios, logs = (0.5, 1.1, 2.0, 2.0), (-1.0, -2.0, -0.5, -3.0)
    group = Group(
        [[lp] for lp in logs],
        [[math.log(c)] for c in (0.1, 0.2, 0.3, 0.6)],
        base=[math.log(0.2)],
        start=-4.0,
        old=[[lp - math.log(r)] for lp, r in zip(logs, ratios, strict=True)],
    )
    loss = group.loss(methods.get("am"), rows=4, divisor=10)
    root = math.sqrt(43)
    assert loss.advantage.advantage_K.tolist() == pytest.approx([-5 / root, -5 / root, -1 / root, 11 / root])
    # min(rA, clamp(r)A): -5 * 0.8 (clipped), -5 * 1.1, -1 * 2 (not clipped: worse than it was), 11 * 1.28 (clipped).
    trace = -(-4.0 - 5.5 - 2.0 + 14.08) / root
    answer = -sum(c * math.log(c) for c in (0.1, 0.2, 0.3, 0.6))  # dS = c for one token
    form = sum(4.0 - lp for lp in logs)
    assert loss.trace.item() == pytest.approx(trace / 40)
    assert loss.answer.item() == pytest.approx(answer / 40)
    assert loss.format.item() == pytest.approx(form / 40)
    assert loss.total.item() == pytest.approx((trace + answer + 0.3 * form) / 40)
    # The traces' only token is t_end, which Eq. 11 pulls up too.
    gradients = [0.0, 5.5 / root, 2.0 / root, 0.0]
    assert group.trace.grad[:, 0].tolist() == pytest.approx([(g - 0.3) / 40 for g in gradients])
    assert group.answer.grad[:, 0].tolist() == pytest.approx([-c / 40 for c in (0.1, 0.2, 0.3, 0.6)])
    assert group.start.grad.tolist() == pytest.approx([-0.3 / 40] * 4)


def test_a_dead_group_still_trains_answer_and_format():
    group = Group([LOGS, LOGS], [[-1.0], [-1.0]], base=[0.0])
    loss = group.loss(weights={"format": 0})
    assert loss.advantage.dead
    assert not group.trace.grad.any()
    assert group.answer.grad.tolist() == [[-1.0], [-1.0]]


def test_the_format_loss_by_hand():
    """Two traces; t_end at the third and at the second position, the second one forced; t_start at -4."""
    make = lambda start: Group([LOGS, LOGS[:2]], [[0.0], [0.0]], forced=[False, True], start=start)  # noqa: E731
    both = make(-4.0)
    assert both.loss(**FORMAT_ONLY).format.item() == pytest.approx((4 + 0.25) + (4 + 2.0))
    assert both.trace.grad.tolist() == [[0, 0, -1], [0, -1, 0]]
    assert both.start.grad.tolist() == [-1, -1]

    no_start = make(None)
    assert no_start.loss(**FORMAT_ONLY).format.item() == pytest.approx(0.25 + 2.0)
    assert no_start.trace.grad.tolist() == [[0, 0, -1], [0, -1, 0]]

    missed = make(-4.0)
    assert missed.loss(format="missed-end", **FORMAT_ONLY).format.item() == pytest.approx(2.0)
    assert missed.trace.grad.tolist() == [[0, 0, 0], [0, -1, 0]]
    assert not missed.start.grad.any()


def test_weights_multiply_their_terms():
    group = Group([LOGS], [[2.0]], start=-4.0)
    loss = group.loss(weights={"trace": 0.5, "answer": 3, "format": 0.25}, advantage="raw", baseline="none")
    # The parts are reported before they are weighted.
    parts = (loss.trace.item(), loss.answer.item(), loss.format.item())
    assert parts == pytest.approx((2 * -1 * 3 / 1, -2.0, 4.25), rel=1e-9)
    assert loss.total.item() == pytest.approx(0.5 * parts[0] + 3 * parts[1] + 0.25 * parts[2])
    assert group.trace.grad[0].tolist() == pytest.approx([-1, -1, -1.25])
    assert group.answer.grad[0].tolist() == [-3]
    assert group.start.grad.tolist() == [-0.25]


def test_truncated_importance_sampling_by_hand():
    """Gaps to the sampler of 3, 0.5 and (forced, so not counted) 7 at a cap of 2: weights 2, 0.5 and 1."""
    sampler = [[lp - math.log(gap) for lp, gap in zip(LOGS, (3, 0.5, 7), strict=True)]]
    group = Group([LOGS], [[2.0]], forced=[True], sampler=sampler)
    group.loss(tis_cap=2.0, credit_forced_end=True, **TRACE_ONLY)
    assert group.trace.grad[0].tolist() == pytest.approx([-4, -1, -2])
    group.loss(tis_cap=None, credit_forced_end=True, **TRACE_ONLY)
    assert group.trace.grad[0].tolist() == [-2, -2, -2]


def test_the_sampler_is_compared_with_pi_old_and_not_with_the_current_policy():
    group = off_policy(2.0, sampler=[[lp - math.log(r) - math.log(1.2) for lp, r in zip(LOGS, RATIOS, strict=True)]])
    group.loss(tis_cap=2.0, **TRACE_ONLY)
    assert group.trace.grad[0].tolist() == pytest.approx([0, -2.2 * 1.2, -1.0 * 1.2])


def test_kl_by_hand():
    """d = log pi_ref - log pi of log 2 and -log 2: 2 - log 2 - 1 and 1/2 + log 2 - 1; the forced t_end has none."""
    reference = [[LOGS[0] + math.log(2), LOGS[1] - math.log(2), LOGS[2] + 1]]
    group = Group([LOGS], [[2.0]], forced=[True], reference=reference)
    nothing = {"weights": {"trace": 0, "answer": 0, "format": 0}}
    loss = group.loss(kl_weight=0.5, rows=2, divisor=10, **nothing)
    assert loss.kl.item() == pytest.approx(0.5 / 20)
    assert loss.total.item() == pytest.approx(0.5 * 0.5 / 20)
    # d/d log pi of e^d - d - 1 is 1 - e^d.
    assert group.trace.grad[0].tolist() == pytest.approx([0.025 * (1 - 2), 0.025 * (1 - 0.5), 0])


OPTIONS = [
    {"ratio": "ppo"},
    {"ratio": "cispo", "format": "missed-end", "credit_forced_end": True},
    {"ratio": "sequence", "baseline": "none", "advantage": "rloo"},
    {"tis_cap": 1.5, "kl_weight": 0.2, "entropy_weight": 0.1},
]


def ragged(garbage):
    """Three ragged traces, one forced; `garbage` is a list of columns of 3 numbers that are only padding."""
    generator = torch.Generator().manual_seed(5)
    draw = lambda n: (-3 * torch.rand(n, dtype=torch.float64, generator=generator)).tolist()  # noqa: E731
    lengths = (4, 1, 3)
    rows = {name: [draw(n) for n in lengths] for name in ("trace", "old", "sampler", "reference")}
    answers = [draw(2) for _ in lengths]
    group = Group(rows.pop("trace"), answers, forced=[False, True, False], base=[-2.0, -1.5], start=-4.0, **rows)
    if not garbage:
        return group
    columns = double(*garbage).T
    extend = lambda t, value=columns: torch.cat([t.detach(), value.to(t.dtype)], -1)  # noqa: E731
    # Padding that the traces' own raggedness left is garbage as well.
    fill = lambda t: torch.where(group.mask, t.detach(), columns[:, :1])  # noqa: E731
    no = torch.zeros_like(columns, dtype=torch.bool)
    context = group.context
    numbers = {f: fill(getattr(context, f)) for f in ("old_trace_KZ", "sampler_trace_KZ", "reference_trace_KZ")}
    group.context = GroupContext(
        extend(context.trace_mask_KZ, no),
        extend(context.sampled_mask_KZ, no),
        context.forced_K,
        context.base_logprobs_T,
        **{f: extend(t, columns.flip(0)) for f, t in numbers.items()},
    )
    group.trace = extend(fill(group.trace)).requires_grad_()
    group.entropy = extend(fill(group.entropy)).requires_grad_()
    return group


@pytest.mark.parametrize("options", OPTIONS)
@settings(max_examples=30, deadline=None)
@given(
    garbage=st.lists(
        st.lists(st.floats(-1e6, 1e6) | st.sampled_from([1e300, -1e300]), min_size=3, max_size=3),
        min_size=1,
        max_size=4,
    )
)
def test_padding_changes_nothing_and_gets_no_gradient(options, garbage):
    plain, padded = ragged([]), ragged(garbage)
    scheme = methods.get("gm")
    want, got = plain.loss(scheme, rows=3, divisor=7, **options), padded.loss(scheme, rows=3, divisor=7, **options)
    assert abs(want.trace.item()) > 1e-3
    for name in ("total", "trace", "answer", "format", "kl", "ratio_clipped"):
        assert getattr(got, name).item() == pytest.approx(getattr(want, name).item(), rel=1e-12)
    for name in ("trace", "entropy"):
        (a, b) = getattr(plain, name).grad, getattr(padded, name).grad
        torch.testing.assert_close(torch.where(plain.mask, a, 0.0), torch.where(plain.mask, b[:, : a.shape[1]], 0.0))
        outside = torch.ones_like(b, dtype=torch.bool)
        outside[:, : a.shape[1]] = ~plain.mask
        assert b[outside].eq(0).all()
    for name in ("answer", "start"):
        torch.testing.assert_close(getattr(plain, name).grad, getattr(padded, name).grad)


# --- token signals ---------------------------------------------------------------------------------------------------


log_probabilities = st.floats(-400.0, -1e-6)


@settings(deadline=None)
@given(
    st.integers(1, 6).flatmap(
        lambda tokens: st.lists(st.lists(log_probabilities, min_size=tokens, max_size=tokens), min_size=1, max_size=5)
    )
)
def test_shared_signals_are_the_gradient_of_the_log_mean_probability(answers):
    """However small c: the gradient of sum_i log mean_k c_ki by log c, K times; each token's signals average 1."""
    group = Group([LOGS] * len(answers), answers)
    loss = group.loss(token_signal="shared", **ANSWER_ONLY)
    leaf = double(*answers).requires_grad_()
    (leaf.logsumexp(0) - math.log(len(answers))).sum().backward()
    torch.testing.assert_close(loss.signal_KT, len(answers) * leaf.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(loss.signal_KT.mean(0), torch.ones_like(leaf[0]))


def test_balance_by_hand():
    """Two traces leave 0.5 + 0.5 and, as 0.25 counts as one token, 1 undecided: a tenth of 2 is all that y* may pull.

    The answers pull 0.5 + 0.75 + 0.9 + 0.85 = 3 at weight 1, so they count 0.2 / 3 of that. The forced t_end, which the
    policy did not choose, and padding count nothing.
    """
    half, quarter = math.log(0.5), math.log(0.75)
    answers = [[math.log(0.5), math.log(0.25)], [math.log(0.1), math.log(0.15)]]
    group = Group([[half, half], [quarter, -3.0]], answers, forced=[False, True])
    loss = group.loss(token_signal="fixed", balance="auto", **ANSWER_ONLY)
    torch.testing.assert_close(loss.signal_KT, torch.full((2, 2), 0.2 / 3, dtype=torch.float64))
    torch.testing.assert_close(group.answer.grad, -loss.signal_KT)
    assert loss.push_answer.item() == pytest.approx(0.2)
    assert loss.push_plain.item() == pytest.approx(3.0)


def test_balance_never_raises_the_answers_weight():
    """Answers that pull less than they may keep the signals they had; so do those that are certain."""
    for answers in ([[-1e-3], [-1e-3]], [[0.0], [0.0]]):
        loss = Group([LOGS, LOGS], answers).loss(token_signal="fixed", balance="auto", **ANSWER_ONLY)
        assert loss.signal_KT.eq(1).all()


@pytest.mark.parametrize("signal", ["shared", "derived", "fixed"])
def test_balance_holds_whatever_the_advantages(signal):
    """In a group without signal, where every trace is as good as the null trace, as in one that has it."""
    for base in ([0.0, 0.0], [-4.0, -3.0]):
        group = Group([LOGS, LOGS[:2]], [[-9.0, -5.0], [-7.0, -8.0]], base=base)
        loss = group.loss(methods.get("logp"), token_signal=signal, balance="auto", weights={"format": 0})
        room = sum(-math.expm1(lp) for lp in (*LOGS, *LOGS[:2]))
        assert loss.push_answer.item() == pytest.approx(0.1 * room)


# --- how hard each term pulls ----------------------------------------------------------------------------------------


def own_logit_gradient(total, logits, chosen):
    """Sum of |d total / d logit of the token itself|."""
    (gradient,) = torch.autograd.grad(total, logits, retain_graph=True, allow_unused=True)
    return 0.0 if gradient is None else gradient.gather(-1, chosen[..., None]).abs().sum().item()


@pytest.mark.parametrize("ratio", ["ppo", "cispo", "sequence"])
@pytest.mark.parametrize("signal", ["shared", "derived", "fixed"])
@pytest.mark.parametrize("tis_cap", [None, 1.1])
@pytest.mark.parametrize("balance", ["off", "auto"])
def test_a_push_is_the_gradient_by_the_logits_of_the_tokens_themselves(ratio, signal, tis_cap, balance):
    """Against autograd from logits over seven words: two traces, the second shorter and forced, and two answers."""
    torch.manual_seed(3)
    trace_logits, answer_logits, start_logits = (torch.randn(2, n, 7).double().requires_grad_() for n in (3, 4, 1))
    words = [torch.randint(7, (2, n)) for n in (3, 4, 1)]
    trace, answer, start = (
        logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
        for logits, ids in zip((trace_logits, answer_logits, start_logits), words, strict=True)
    )
    mask = torch.tensor([[True, True, True], [True, True, False]])
    forced = torch.tensor([False, True])
    sampled = torch.tensor([[True, True, True], [True, False, False]])
    moved = torch.tensor([[-0.4, 0.1, 0.5], [0.2, 0.0, 0.0]]).double()
    context = GroupContext(
        mask, sampled, forced, answer[0].detach() - 1, trace.detach() - moved, trace.detach() - 2 * moved
    )
    weights = {"trace": 0.7, "answer": 0.2, "format": 0.3}
    settings_of = {"ratio": ratio, "token_signal": signal, "tis_cap": tis_cap, "balance": balance, "baseline": "none"}
    end = trace[[0, 1], [2, 1]]
    logprobs = GroupLogprobs(start[:, 0], trace, torch.zeros_like(trace), end, answer)

    def of(**only):
        objective = ObjectiveSection(**settings_of, weights=dict.fromkeys(weights, 0.0) | only)
        return group_loss(methods.get("ws-neg-log-p"), logprobs, context, objective, 1, 1)

    loss = of(**weights)
    pulls = {
        term: sum(
            own_logit_gradient(of(**{term: weight}).total, logits, ids)
            for logits, ids in zip((trace_logits, answer_logits, start_logits), words, strict=True)
        )
        for term, weight in weights.items()
    }
    assert loss.push_trace.item() == pytest.approx(pulls["trace"])
    assert loss.push_answer.item() == pytest.approx(pulls["answer"])
    assert loss.push_format.item() == pytest.approx(pulls["format"])
    assert loss.push_plain.item() == pytest.approx((1 - answer.exp()).sum().item())
