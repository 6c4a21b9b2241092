"""The estimator of Eq. 22 against the exact gradient of J, by enumerating every trace of a tiny world (float64).

The world: 5 tokens, of which 4 is t_end; a policy is a table of logits per (prefix of the trace), so J(theta) is a
finite sum that autograd differentiates. A trace has at most 3 tokens; one that reaches the cap gets t_end appended,
which nobody sampled.
"""

import itertools

import pytest
import torch

from nrt_cli import methods
from nrt_cli.config import ObjectiveSection
from nrt_cli.objective.losses import GroupContext, GroupLogprobs, group_loss

VOCABULARY, END, CAP = 5, 4, 3
ANSWER = (1, 3, 0)
SCHEMES = ["logp", "p", "am", "gm", "ws-inv-p", "ws-neg-log-p", "user_schemes:worst_token"]


def all_traces():
    """Every (trace, forced): shorter ones end with a sampled t_end, those of CAP tokens are forced."""
    words = [w for n in range(CAP + 1) for w in itertools.product(range(END), repeat=n)]
    return [(w, len(w) == CAP) for w in words]


TRACES = all_traces()
PREFIXES = {w: i for i, (w, _) in enumerate(TRACES)}


class Policy:
    """Trace logits per prefix and answer logits per finished trace; leaf tensors, so every gradient is checked."""

    def __init__(self, seed):
        generator = torch.Generator().manual_seed(seed)
        self.trace = torch.randn(len(PREFIXES), VOCABULARY, dtype=torch.float64, generator=generator).requires_grad_()
        self.answer = torch.randn(
            len(TRACES), len(ANSWER), VOCABULARY, dtype=torch.float64, generator=generator
        ).requires_grad_()

    def logprobs(self):
        """Trace log-probs [traces, CAP + 1] with t_end at the last real position, answers [traces, T], the mask."""
        table, size = self.trace.log_softmax(-1), len(TRACES)
        rows = torch.zeros(size, CAP + 1, dtype=torch.float64)
        mask = torch.zeros(size, CAP + 1, dtype=torch.bool)
        for k, (word, _) in enumerate(TRACES):
            ids = (*word, END)
            picks = torch.stack([table[PREFIXES[word[:i]], token] for i, token in enumerate(ids)])
            rows = rows.index_put((torch.full((len(ids),), k), torch.arange(len(ids))), picks)
            mask[k, : len(ids)] = True
        answers = self.answer.log_softmax(-1)[:, range(len(ANSWER)), ANSWER]
        return rows, answers, mask


def sampled_mask(mask):
    sampled = mask.clone()
    for k, (word, forced) in enumerate(TRACES):
        if forced:
            sampled[k, len(word)] = False
    return sampled


def linear_reward(scheme, answers, base):
    """f(c) straight from Tables 1 and 2, in plain probabilities."""
    c, b = answers.exp(), base.exp()
    return {
        "logp": lambda: c.log().sum(-1),
        "p": lambda: c.prod(-1),
        "am": lambda: c.mean(-1),
        "gm": lambda: c.prod(-1) ** (1 / len(ANSWER)),
        "ws-inv-p": lambda: (c / b).sum(-1),
        "ws-neg-log-p": lambda: -(c * b.log()).sum(-1),
        "user_schemes:worst_token": lambda: c.square().sum(-1) + (c * b).sum(-1),
    }[scheme]()


@pytest.fixture(autouse=True)
def user_scheme(tmp_path, monkeypatch):
    (tmp_path / "user_schemes.py").write_text(
        "def worst_token(logprobs, base):\n"
        "    c = logprobs.exp()\n"
        "    return c.square().sum(-1) + (c * base.exp()).sum(-1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("on_policy", [True, False])
@pytest.mark.parametrize("name", SCHEMES)
def test_expected_estimator_is_the_gradient_of_the_objective(name, on_policy):
    policy = Policy(seed=0)
    old = policy if on_policy else Policy(seed=1)
    base = torch.tensor([0.3, 0.05, 0.9], dtype=torch.float64).log()
    rows, answers, mask = policy.logprobs()
    sampled, forced = sampled_mask(mask), torch.tensor([f for _, f in TRACES])
    objective = ObjectiveSection(
        baseline="none", advantage="raw", ratio="sequence", weights={"trace": 1, "answer": 1, "format": 0}
    )

    # J = sum_z pi(z|x) f(c(z)), differentiated whole (Eq. 14).
    log_prob = torch.where(sampled, rows, 0.0).sum(-1)
    assert torch.isclose(log_prob.exp().sum(), torch.tensor(1.0, dtype=torch.float64))
    exact = torch.autograd.grad(
        (log_prob.exp() * linear_reward(name, answers, base)).sum(), (policy.trace, policy.answer), retain_graph=True
    )

    # The estimator of each single trace (K = 1), weighted by how often pi_old samples it (Eq. 22).
    old_rows = old.logprobs()[0].detach()
    old_prob = torch.where(sampled, old_rows, 0.0).sum(-1).exp()
    scheme = methods.get(name)
    expected = torch.zeros((), dtype=torch.float64)
    for k in range(len(TRACES)):
        one = slice(k, k + 1)
        loss = group_loss(
            scheme,
            GroupLogprobs(None, rows[one], torch.zeros_like(rows[one]), rows[one, mask[k].sum() - 1], answers[one]),
            GroupContext(mask[one], sampled[one], forced[one], base, old_trace_KZ=old_rows[one]),
            objective,
            rows=1,
            divisor=1,
        )
        expected = expected - old_prob[k] * loss.total
    estimate = torch.autograd.grad(expected, (policy.trace, policy.answer))
    for got, want in zip(estimate, exact, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)
