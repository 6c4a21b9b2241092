"""What a method is: facts for every table, and one pure function from a group to signals. Imports no torch by itself.

Shapes: K traces of one group, T tokens of the group's one reference answer (eos included).

All answers of a group have the same tokens, so nothing here is padded. Everything stays in the log domain, since an
answer's probability underflows float32 from about -100 nats on (decision 5); advantages do not depend on the scale of
R, so a group's rewards are handed on divided by their largest, and that divisor's log is kept beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from nrt_cli.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from nrt_cli.config import ObjectiveSection
else:
    Tensor = Any


@dataclass(frozen=True)
class Formula:
    """One expression, `text` for people's eyes and `math` for LaTeX."""

    text: str
    math: str


@dataclass(frozen=True)
class Formulas:
    """A row of Table 1: f(c), the trace reward R and the token signal (df/dc_i) c_i; of Table 2 also the weight.

    A test evaluates `text` and compares it with what is computed.
    """

    name: str
    aggregation: Formula
    reward: Formula
    signal: Formula
    weight: Formula | None = None
    place: float = 100
    """Where the row stands in Table 1."""


@dataclass(frozen=True)
class Group:
    """What a method may look at: one group, detached, in float64."""

    logprobs_KT: Tensor
    """log c of every answer token given each trace, under the current policy."""
    base_logprobs_T: Tensor
    """log c_base, given the null trace, under pi_old."""
    settings: ObjectiveSection

    @classmethod
    def of(cls, logprobs_KT: Tensor, base_logprobs_T: Tensor, settings: ObjectiveSection) -> Group:
        """Detached and widened."""
        return cls(logprobs_KT.detach().double(), base_logprobs_T.detach().double(), settings)


@dataclass(frozen=True)
class Signals:
    """What a method makes of a group: R = scaled_K * exp(log_scale), and the null trace's on the same scale.

    At least one of the scaled rewards is of order 1, so differences between tiny rewards survive.
    """

    scaled_K: Tensor
    scaled_base: Tensor
    """R_base / exp(log_scale), but no more than exp(700), so that it is finite; any value above 1 is above every R."""
    log_scale: Tensor
    token_KT: Tensor
    """The weight of each answer token's cross-entropy, (df/dc_i) c_i (Eq. 8)."""
    base: Tensor
    """R_base itself, a scalar; like R, may underflow to 0."""

    @classmethod
    def of(cls, reward_K: Tensor, base: Tensor, token_KT: Tensor) -> Signals:
        """From rewards as they are."""
        return cls(reward_K, base, base.new_zeros(()), token_KT, base)

    @classmethod
    def of_logs(cls, log_reward_K: Tensor, log_base: Tensor, token_KT: Tensor) -> Signals:
        """From the logs of rewards, which may be too small to be numbers."""
        # One divisor for the whole group: exact, since max(0, R - R_base) is homogeneous in R. The null trace's reward
        # is no candidate: where it is far larger, the group's would underflow, even with no baseline to subtract.
        top = log_reward_K.max()
        log_scale = top if top.isfinite() else top.new_zeros(())
        scaled_base = (log_base - log_scale).clamp(max=700).exp()
        return cls((log_reward_K - log_scale).exp(), scaled_base, log_scale, token_KT, log_base.exp())

    @property
    def reward_K(self) -> Tensor:
        """R itself; may underflow to 0 where `scaled_K` does not."""
        return self.scaled_K * self.log_scale.exp()


class Method:
    """A method: a file of `nrt_cli/methods`, or a user's class, named as `module:Class`, over a whole group."""

    name: ClassVar[str] = ""
    """What `method` is set to."""
    title: ClassVar[str] = ""
    """What tables, figures and lists call its runs: the paper's name, if it has one (Table 3)."""
    summary: ClassVar[str] = ""
    """What it learns from, for `nrt train --help`."""
    aliases: ClassVar[tuple[str, ...]] = ()
    """Other names that `method` may be set to, in small letters."""
    place: ClassVar[float] = 50
    """Where it stands among the others: the paper's come first, in the order of its Table 3."""
    formulas: ClassVar[Formulas | None] = None
    samples: ClassVar[bool] = True
    """Whether traces are sampled and rewarded; without, y* (and a reference trace before it) is all that is learned."""
    policy_gradient: ClassVar[bool] = True
    """Whether the trace is trained by what its reward says."""
    in_log: ClassVar[bool] = False
    """Whether R is positive and made in logs."""
    reads: ClassVar[tuple[str, ...]] = ()
    """Keys of `objective` that this method reads and not every method."""
    hook: ClassVar[str] = "method"

    def signals(self, group: Group) -> Signals:
        """Rewards, the null trace's reward and token signals of one group."""
        raise NotImplementedError


class Rowwise(Method):
    """A reward that is the same function of each trace, once its constants are prepared from the group.

    `reward` is R, or log R with `in_log`. `token_signal` is (df/dc_i) c_i = df/du_i with u_i = log c_i, the constants
    held, in closed form; None asks autograd.
    """

    token_signal: Callable[[Any, Any], Tensor] | None = None

    def constants(self, group: Group) -> Any:
        """What is alike for all rows and not differentiated: by default log c_base of the null trace, [T]."""
        return group.base_logprobs_T

    def reward(self, logprobs_KT: Tensor, constants: Any) -> Tensor:
        """reward_K, differentiable in the first argument, row by row."""
        raise NotImplementedError

    def signals(self, group: Group) -> Signals:
        constants = self.constants(group)
        reward_K = self.reward(group.logprobs_KT, constants)
        base = self.reward(group.base_logprobs_T[None], constants)[0]
        if self.token_signal is None:
            token_KT = self.autograd_signal(group.logprobs_KT, constants)
        else:
            token_KT = self.token_signal(group.logprobs_KT, constants)
        return (Signals.of_logs if self.in_log else Signals.of)(reward_K, base, token_KT)

    def autograd_signal(self, logprobs_KT: Tensor, constants: Any) -> Tensor:
        """The token signal by automatic differentiation: the slow truth for closed forms."""
        import torch

        with torch.enable_grad():
            leaf_KT = logprobs_KT.detach().requires_grad_()
            reward_K = self.reward(leaf_KT, constants)
            # d exp(log R) = R d(log R). Summing over K is safe: R_k depends on row k alone.
            (signal_KT,) = torch.autograd.grad((reward_K.exp() if self.in_log else reward_K).sum(), leaf_KT)
        return signal_KT


class _Hook(Rowwise):
    """A user's function over one trace."""

    hook = "reward"

    def __init__(self, function: Any, constants: Any, in_log: bool) -> None:
        self.reward, self.in_log = function, in_log  # type: ignore
        if constants is not None:
            self.constants = constants  # type: ignore


def reward(
    function: Callable[[Tensor, Any], Tensor] | None = None,
    *,
    constants: Callable[[Group], Any] | None = None,
    in_log: bool = False,
) -> Any:
    """Register a function as a reward: `method` may then be set to `module:function`.

    Args:
        function: (logprobs_KT, constants) -> reward_K: each trace's row of log c to its reward, differentiable. More
            rows than one come at a time, and no row may look at another.
        constants: what it gets besides, prepared once from the `Group`; None: log c_base of the null trace, [T].
        in_log: it returns log R, for rewards that are positive and may be too small to be numbers.
    """
    if function is None:
        return lambda given: _Hook(given, constants, in_log)
    return _Hook(function, constants, in_log)


def prove(method: Method, name: str, settings: Any) -> None:
    """Refuse a user's method whose numbers would be wrong without a word. Raises ConfigError.

    Tried on groups of two to four traces, whose last one makes y* exactly as likely as the null trace does: there the
    reward must be the baseline's. Rewards must be finite and follow their traces when these change places, a function
    over one trace must not look at others, and a closed form must be what autograd finds.
    """
    import torch

    def refuse(why: str) -> None:
        raise ConfigError(f"method {name!r}: {why}")

    near = lambda a, b: torch.allclose(a, b, rtol=1e-6, atol=1e-9)  # noqa: E731
    for traces, tokens in ((2, 3), (3, 1), (4, 5)):
        at = torch.arange(traces * tokens, dtype=torch.float64).reshape(traces, tokens)
        logprobs_KT = -(0.1 + (at * 0.7548776662466927 % 1) * 2.5)
        base_T = logprobs_KT[-1].clone()
        group = Group(logprobs_KT, base_T, settings)
        size = f"{traces} traces of {tokens} answer token{'s' * (tokens > 1)}"
        try:
            found, again = method.signals(group), method.signals(group)
            turned = method.signals(Group(logprobs_KT.flip(0), base_T, settings))
        except (Exception, SystemExit) as error:
            raise ConfigError(
                f"method {name!r} fails on {size}, and any number from two on must do "
                f"({type(error).__name__}: {error}). A function takes log-probs of shape [K, T] and its constants (the "
                "null trace's log-probs of shape [T], unless it is registered with others), and returns K rewards that "
                "are differentiable in the first; a class has signals(group), which returns Signals."
            ) from None
        if not isinstance(found, Signals):
            refuse(f"signals(group) must return nrt_cli.Signals; for {size} it returned a {type(found).__name__}.")
        numbers = (found.scaled_K, found.scaled_base, found.token_KT)
        if not all(isinstance(each, torch.Tensor) and each.is_floating_point() for each in numbers):
            refuse("rewards, baseline and token signals must be tensors of floating-point numbers.")
        if found.scaled_K.shape != (traces,) or not bool(found.scaled_K.isfinite().all()):
            refuse(f"it must return one finite reward per trace, shape [K]; for {size} {found.scaled_K.tolist()}.")
        if found.token_KT.shape != (traces, tokens) or not bool(found.token_KT.isfinite().all()):
            refuse(
                f"it must have one finite token signal per answer token, shape [K, T]; for {size} it is "
                f"{found.token_KT.tolist()}."
            )
        if found.scaled_base.shape != () or not bool(found.scaled_base.isfinite()):
            refuse(f"one finite baseline is needed, a scalar; for {size} it is {found.scaled_base.tolist()}.")
        if not near(found.reward_K, again.reward_K) or not near(found.token_KT, again.token_KT):
            refuse("it makes other numbers of the same group when it is asked again.")
        if not near(found.reward_K.flip(0), turned.reward_K) or not near(found.token_KT.flip(0), turned.token_KT):
            refuse("its rewards change when the traces of a group change places.")
        if isinstance(method, Rowwise):
            constants = method.constants(group)
            alone_K = torch.cat([method.reward(row[None], constants) for row in logprobs_KT])
            if not near(method.reward(logprobs_KT, constants), alone_K):
                refuse(
                    "a trace's reward depends on the other traces of its group, so its token signals would be of "
                    "another reward. Prepare what all traces share in constants (`@nrt_cli.reward(constants=...)`), or "
                    "write a class with signals(group)."
                )
            if not near(found.token_KT, method.autograd_signal(logprobs_KT, constants)):
                refuse("its token_signal is not (dR/dc) c of its reward; leave it out, and autograd finds it.")
        if not near(found.scaled_base, found.scaled_K[-1]):
            refuse(
                f"its baseline is {float(found.base):.6g} where a trace that makes y* as likely as the null trace gets "
                f"{float(found.reward_K[-1]):.6g}; the baseline is the null trace's reward."
            )
