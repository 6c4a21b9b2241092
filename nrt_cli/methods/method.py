"""What a method is: facts for every table, and one pure function from a group to signals. Imports no torch by itself.

Shapes: K traces of one group, T tokens of the group's one reference answer (eos included), Z positions of its longest
trace, what ended it included.

All answers of a group have the same tokens, so nothing here is padded. Everything stays in the log domain, since an
answer's probability underflows float32 from about -100 nats on (decision 5); advantages do not depend on the scale of
R, so a group's rewards are handed on divided by their largest, and that divisor's log is kept beside them.
"""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

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

    `name` is what the row is called; formulas are written as those of the methods here. Of the paper's own a test
    evaluates `text` and compares it with what is computed.
    """

    name: str
    aggregation: Formula
    reward: Formula
    signal: Formula
    weight: Formula | None = None
    place: float = 200
    """Where the row stands in Table 1; by default after those that have a place."""


@dataclass(frozen=True)
class Group:
    """What a method may look at: one group, detached, in float64."""

    logprobs_KT: Tensor
    """log c of every answer token given each trace, under the current policy."""
    base_logprobs_T: Tensor
    """log c_base, given the null trace, under pi_old."""
    settings: ObjectiveSection
    trace_logprobs_KZ: Tensor | None = None
    """asks "traces": log pi of what the policy chose of each trace, its end included, under the current policy."""
    trace_mask_KZ: Tensor | None = None
    """asks "traces": True where the policy chose the token, so not at padding or at a t_end that was appended."""
    lengths_K: Tensor | None = None
    """asks "traces": tokens of each trace, without what ended it."""
    closed_K: Tensor | None = None
    """asks "traces": True where the policy ended the trace with t_end itself."""
    reference_logprobs_KT: Tensor | None = None
    """asks "reference": as `logprobs_KT`, under the starting model."""
    reference_trace_KZ: Tensor | None = None
    """asks "reference": as `trace_logprobs_KZ`, under the starting model."""
    follower_logprobs_KT: Tensor | None = None
    """asks "follower": as `logprobs_KT`, under the slow copy of the policy."""
    finished_K: Tensor | None = None
    """asks "answers": True where an answer that was sampled after the trace ended by itself, not at the cap."""
    verdicts_K: Tensor | None = None
    """asks "verdicts": the score, 0 to 1, of an answer that was sampled after each trace; NaN where none could be."""
    guided_K: Tensor | None = None
    """asks "guide": True where the trace was sampled with y* in view."""
    guide_gap_K: Tensor | None = None
    """asks "guide": log q(z) - log pi_old(z) of what was chosen of each trace, q the policy that sees y*; nats."""
    memory: Mapping[str, float] = field(default_factory=dict)
    """What `remember` returned before this step; empty at first."""

    @classmethod
    def of(cls, logprobs_KT: Tensor, base_logprobs_T: Tensor, settings: ObjectiveSection, **asked: Any) -> Group:
        """Detached and widened; `asked` are the fields that a method asks for."""
        wide: Any = {name: each if name == "memory" else _wide(each) for name, each in asked.items()}
        return cls(_wide(logprobs_KT), _wide(base_logprobs_T), settings, **wide)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().double() if tensor.is_floating_point() else tensor


ASKS = {
    "traces": "log-probs and lengths of the traces themselves",
    "reference": "what the starting model says of trace and answer",
    "follower": "what a slowly following copy of the policy says of the answer",
    "answers": "an answer that is sampled after each trace",
    "verdicts": "an answer that is sampled after each trace, and judged",
    "guide": "traces that are sampled with the answer in view, and what the policy that sees it says of all traces",
}
"""What a method may ask for besides the answer's log-probs, and what that is."""


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
    kept: bool = True
    """False for a group that the method filters out: its traces get no policy gradient, and it is counted."""
    noted: Mapping[str, float] = field(default_factory=dict)
    """What `remember` is to know of the group besides."""
    weight_K: Tensor | None = None
    """What each trace counts for, in every term and in the group's mean and deviation; None: 1. An importance weight
    where not all traces were sampled from the policy itself."""
    answer: bool = True
    """False where the group's y* is not trained, whatever `objective.token_signal` says."""

    @classmethod
    def of(cls, reward_K: Tensor, base: Tensor, token_KT: Tensor) -> Signals:
        """From rewards as they are."""
        return cls(reward_K, base, token_KT.new_zeros(()), token_KT, base)

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
    asks: ClassVar[frozenset[str]] = frozenset()
    """What of `ASKS` has to be computed for it besides, which `Group` then has."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """The nested settings that belong to the method, as published if it was: over the preset's, below the user's."""
    every_row: ClassVar[bool] = False
    """Whether, asking for verdicts, it has no other reward, so that every row needs a verifier."""
    text: ClassVar[bool] = False
    """Whether it learns from plain text, cut by `nrt data prepare --spans`, and from nothing else."""
    paper: ClassVar[bool] = False
    """Whether it is one of the schemes that the paper compares."""
    free: ClassVar[tuple[str, ...]] = ()
    """Of "token signals" and "baseline" what is on purpose not (dR/dc) c, or the null trace's reward (`prove`)."""
    hook: ClassVar[str] = "method"

    def signals(self, group: Group) -> Signals:
        """Rewards, the null trace's reward and token signals of one group."""
        raise NotImplementedError(f"{type(self).__name__} has no signals(group)")

    def remember(self, memory: Mapping[str, float], signals: Sequence[Signals]) -> Mapping[str, float]:
        """What the groups of the next step get as `memory`, from this step's and the signals of all its groups.

        It is saved in checkpoints. Signals are made from what was remembered before the step, so that they depend on no
        order of groups.
        """
        return memory


class Rowwise(Method):
    """A reward that is the same function of each trace, once its constants are prepared from the group.

    `reward` is R, or log R with `in_log`. `token_signal` is (df/dc_i) c_i = df/d(log c_i), the constants held; None: by
    autograd.
    """

    token_signal: Callable[[Any, Any], Tensor] | None = None

    def constants(self, group: Group) -> Any:
        """What is alike for all rows and not differentiated: by default log c_base of the null trace, [T]."""
        return group.base_logprobs_T

    def reward(self, logprobs_KT: Tensor, constants: Any) -> Tensor:
        """reward_K, differentiable in the first argument, row by row."""
        raise NotImplementedError(f"{type(self).__name__} has no reward(logprobs_KT, constants)")

    def signals(self, group: Group) -> Signals:
        constants = self.constants(replace(group, logprobs_KT=group.logprobs_KT.detach()))
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

    def __call__(self, *given: Any) -> Tensor:
        return self.reward(*given)


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


def place(error: BaseException, *ours: str) -> str:
    """` at FILE:LINE`, where an error came from outside of installed packages and of our files; or nothing."""
    for at in reversed(traceback.extract_tb(error.__traceback__)):
        if not {"site-packages", "importlib"} & {*at.filename.split(os.sep)} and at.filename not in (__file__, *ours):
            near = os.path.relpath(at.filename)
            return "" if at.filename[0] == "<" else f" at {at.filename if near[0] == '.' else near}:{at.lineno}"
    return ""


TRIES = (
    *((2, 3, -2.6, False), (3, 1, -2.6, False), (4, 5, -2.6, False), (3, 4, -2.6, True), (2, 2, 0.0, True)),
    *((16, 40, -2.6, False), (5, 40, -60.0, False)),
)
"""Traces, answer tokens, the least log c, and whether the traces are alike."""


def slopes(method: Method, group: Group) -> dict[str, Tensor]:
    """(dR/dc) c of the first half of a group that has each trace twice: with all others, or with what all share, held.

    What a trace's twin does to its reward comes by way of the group: without that, what they share is held.
    """
    import torch

    half, leaf_KT = len(group.logprobs_KT) // 2, group.logprobs_KT.detach().clone().requires_grad_()
    with torch.enable_grad():
        reward_K = method.signals(replace(group, logprobs_KT=leaf_KT)).reward_K
    if not reward_K.requires_grad:
        return {}
    by_KKT = torch.stack([torch.autograd.grad(reward, leaf_KT, retain_graph=True)[0] for reward in reward_K[:half]])
    one, twin = by_KKT[range(half), range(half)], by_KKT[range(half), range(half, 2 * half)]
    return {"others held": one, "shared held": one - twin}


def _made(method: Method, logprobs_KT: Tensor, base_T: Tensor, settings: ObjectiveSection) -> Group:
    """A group to try a method on, with all that it asks for: of each trace made from its own log c, so that like traces
    are alike in everything and those that change places take theirs along."""
    row_K = logprobs_KT.sum(-1)
    lengths_K = 1 + (row_K.abs() * 7).long() % 5
    mask_KZ = lengths_K.new_tensor(range(6)) <= lengths_K[:, None]
    trace_KZ = row_K[:, None].sin() * mask_KZ - 1.5 * mask_KZ
    asked: dict[str, Any] = {}
    if "traces" in method.asks:
        asked |= {"trace_logprobs_KZ": trace_KZ, "trace_mask_KZ": mask_KZ, "lengths_K": lengths_K}
        asked["closed_K"] = lengths_K > 1
    if "reference" in method.asks:
        asked |= {"reference_logprobs_KT": 1.1 * logprobs_KT, "reference_trace_KZ": 0.8 * trace_KZ}
    if "follower" in method.asks:
        asked["follower_logprobs_KT"] = 0.9 * logprobs_KT
    if "answers" in method.asks:
        asked["finished_K"] = lengths_K < 4
    if "verdicts" in method.asks:
        asked["verdicts_K"] = (lengths_K > 2).double()
    if "guide" in method.asks:
        asked |= {"guided_K": lengths_K > 3, "guide_gap_K": row_K.cos()}
    return Group(logprobs_KT, base_T, settings, **asked)


def prove(method: Method, name: str, settings: ObjectiveSection) -> None:
    """Refuse a method whose numbers would be wrong without a word. Raises ConfigError.

    Tried on the groups of `TRIES`, whose last trace makes y* exactly as likely as the null trace does. Numbers must be
    finite and follow their traces when these change places, and a reward of each trace by itself must not look at
    others. Token signals are (dR/dc) c, all other traces held or what all share; the baseline is what the null trace
    would get, as one of the group or as one more. `Method.free` excepts a class from the last two.
    """
    import torch

    size, readings = "", {"token signals": {"others held", "shared held"}, "baseline": {"one of them", "one more"}}
    again = "it makes other numbers of the same group when it is asked again"
    underived = "its reward has no derivative by log c: whole numbers, comparisons, ranks and .detach() lose it"

    def refuse(why: str) -> NoReturn:
        raise ConfigError(f"method {name!r}: {why}.")

    def near(a: Tensor, b: Tensor) -> bool:
        return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-5, atol=1e-9)

    def check(what: str, numbers: Any, *shape: int) -> None:
        if not (isinstance(numbers, torch.Tensor) and numbers.is_floating_point()):
            kind = numbers.dtype if isinstance(numbers, torch.Tensor) else f"a {type(numbers).__name__}"
            refuse(f"its {what} must be a tensor of floating-point numbers; for {size} it is {kind}")
        if numbers.shape != shape:
            refuse(f"its {what} must have the shape {[*shape]} for {size}; it has {[*numbers.shape]}")
        if not bool(numbers.isfinite().all()):
            refuse(f"its {what} must be finite; for {size} it holds {float(numbers[~numbers.isfinite()][0])}")

    def ask(logprobs_KT: Tensor, base_T: Tensor) -> Signals:
        group = _made(method, logprobs_KT.clone(), base_T.clone(), settings)
        try:
            if isinstance(method, Rowwise):
                constants, leaf_KT = method.constants(group), logprobs_KT.clone().requires_grad_()
                reward_K = method.reward(leaf_KT, constants)
                is_log = method.in_log and isinstance(reward_K, torch.Tensor)
                check("reward", reward_K.exp() if is_log else reward_K, len(leaf_KT))
                if not near(reward_K, method.reward(leaf_KT, constants)):
                    refuse(again)
                try:
                    alone = near(reward_K, torch.cat([method.reward(row[None], constants) for row in leaf_KT]))
                except (Exception, SystemExit):
                    alone = False
                if not alone:
                    refuse(
                        "a trace's reward depends on the other traces of its group, so its token signals would be of "
                        "another reward; prepare what all traces share, without a row for each, in constants "
                        "(`@nrt_cli.reward(constants=...)`), or write a class with signals(group)"
                    )
                if not reward_K.requires_grad:
                    refuse(underived)
            found = method.signals(group)
        except ConfigError:
            raise
        except (Exception, SystemExit) as error:
            refuse(f"it fails{place(error)} on {size} ({type(error).__name__}: {error})")
        if not isinstance(found, Signals):
            refuse(f"signals(group) must return nrt_cli.Signals; for {size} it returned a {type(found).__name__}")
        check("reward", found.scaled_K, len(logprobs_KT))
        check("token signals", found.token_KT, *logprobs_KT.shape)
        check("baseline", found.scaled_base)
        if not (torch.equal(group.logprobs_KT, logprobs_KT) and torch.equal(group.base_logprobs_T, base_T)):
            refuse("it changes the log-probs that it is given; work on a copy (`.exp()`, not `.exp_()`)")
        return found

    def same(one: Signals, other: Signals, why: str) -> None:
        if not (near(one.reward_K, other.reward_K) and near(one.token_KT, other.token_KT)):
            refuse(why)

    groups = []
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # torch's, of a deviation of one number
        for traces, tokens, least, alike in TRIES:
            size = f"{traces} {'like ' * alike}traces of {tokens} answer token{'s' * (tokens > 1)}"
            size += f" whose log-probs reach down to {least:g}" * (least < -3 or not least)
            at = torch.arange(traces * tokens, dtype=torch.float64).reshape(traces, tokens)
            logprobs_KT = least * (0.04 + at * 0.7548776662466927 % 1 * 0.96)
            logprobs_KT = logprobs_KT[-1:].repeat(traces, 1) if alike else logprobs_KT
            base_T = logprobs_KT[-1].clone()
            found, turned = ask(logprobs_KT, base_T), ask(logprobs_KT.flip(0), base_T)
            groups.append((logprobs_KT, base_T, found))
            same(found, ask(logprobs_KT, base_T), again)
            turned = replace(turned, scaled_K=turned.scaled_K.flip(0), token_KT=turned.token_KT.flip(0))
            same(found, turned, "its rewards change when the traces of a group change places")
            doubled_KT, more_KT = logprobs_KT.repeat(2, 1), torch.cat([logprobs_KT, base_T[None]])
            doubled, more = ask(doubled_KT, base_T), ask(more_KT, base_T)
            if not near(found.scaled_base, found.scaled_K[-1]):
                readings["baseline"].discard("one of them")
            if not near(found.base, more.reward_K[-1]):
                readings["baseline"].discard("one more")
            if not (readings["baseline"] or "baseline" in method.free):
                refuse(
                    f"its baseline is {float(found.base):.6g} where a trace that makes y* as likely as the null trace "
                    f"gets {float(found.reward_K[-1]):.6g}, and as one more of them {float(more.reward_K[-1]):.6g}: "
                    'it is the null trace\'s reward (a class that means another says free = ("baseline",))'
                )
            if alike or "token signals" in method.free:
                continue  # a deviation that is 0 has no derivative
            try:
                by_torch = slopes(method, _made(method, doubled_KT, base_T, settings))
            except (Exception, SystemExit) as error:
                refuse(f"its reward cannot be differentiated{place(error)} ({type(error).__name__}: {error})")
            readings["token signals"] &= {
                reading for reading, slope_KT in by_torch.items() if near(slope_KT, doubled.token_KT[:traces])
            }
            if not by_torch:
                refuse(underived)
            if not readings["token signals"]:
                refuse(
                    "its token_signal is not (dR/dc) c of its reward; leave it out, and autograd finds it"
                    if isinstance(method, Rowwise)
                    else "its token signals are not (dR/dc) c of its rewards, neither with all other traces held nor "
                    'with what all share (a class that means others says free = ("token signals",))'
                )
        logprobs_KT, base_T, found = groups[0]
        same(found, ask(logprobs_KT, base_T), again)
