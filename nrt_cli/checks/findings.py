"""How something is looked at before it runs: a check is a function of one subject, and what it says is a `Finding`.

@ROWS.check("data")
def data(run: Candidate) -> Finding:
    return warning("40 examples, 30 dropped", "raise data.max_prompt_tokens.") if ... else ok("40 examples")
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from operator import attrgetter
from typing import Any, Generic, Literal, TypeVar

from nrt_cli.errors import NrtError, first_line

Subject = TypeVar("Subject")
Verdict = Literal["ok", "warning", "problem", "skipped"]
VERDICTS: tuple[Verdict, ...] = ("problem", "warning", "skipped", "ok")
WITH_TRACES = attrgetter("config.samples")
"""When a check asks something of a subject whose method samples traces."""
READ = "see what it says."
"""What to do about an error that does not say it."""


@dataclass(frozen=True)
class Finding:
    """What one check found. `do` is what to do about it; only where all is well may it be empty."""

    check: str
    verdict: Verdict
    found: str
    do: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.verdict != "ok" and not self.do:
            raise ValueError(f"{self.check}: a finding that is not ok says what to do")

    @property
    def text(self) -> str:
        """In one sentence: what is not well, with what to do; what is well or was not looked at, without."""
        advised = self.verdict in ("warning", "problem") and self.do != READ
        return f"{self.found}; {self.do}" if advised else self.found


ok, warning = partial(Finding, "", "ok"), partial(Finding, "", "warning")
problem, skipped = partial(Finding, "", "problem"), partial(Finding, "", "skipped")
"""What a check returns, (found, do, details): its name is that under which it is registered."""


def judged(found: str, do: str, details: Mapping[str, Any]) -> Finding:
    """A warning where there is something to do, else all is well."""
    return Finding("", "warning" if do else "ok", found, do, details)


class Checks(Generic[Subject]):
    """The checks of one kind of subject, in the order in which they stand in their file."""

    def __init__(self) -> None:
        self.looks: dict[str, Callable[[Subject], Iterable[Finding]]] = {}

    def check(self, name: str, when: Callable[[Subject], bool] = lambda _: True) -> Callable[..., Any]:
        """Registers a function of the subject that returns a finding, or several; `when` says whether it applies."""

        def register(look: Callable[[Subject], Finding | Iterable[Finding]]) -> Any:
            def asked(subject: Subject) -> Iterable[Finding]:
                found = look(subject) if when(subject) else ()
                return [found] if isinstance(found, Finding) else found

            self.looks[name] = asked
            return look

        return register

    def findings(self, subject: Subject) -> Iterator[Finding]:
        """What each check finds, one at a time; one that fails never stops the next."""
        for name, look in self.looks.items():
            yield from guarded(name, partial(look, subject))

    def of(self, what: str, make: Callable[[], Subject]) -> Iterator[Finding]:
        """The findings of a subject that has to be made first; where that fails, one of that name says why."""
        try:
            subject = make()
        except Exception as error:
            yield of_error(what, error)
            return
        yield from self.findings(subject)


def guarded(check: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """What a check finds; where it fails, last what went wrong."""
    try:
        for finding in look():
            yield replace(finding, check=check)
    except Exception as error:
        yield of_error(check, error)


def of_error(check: str, error: Exception) -> Finding:
    """A check that could not be made."""
    if isinstance(error, NrtError):
        return Finding(check, "problem", *advised(str(error)))
    what = f"{type(error).__name__}: {first_line(error) if str(error).strip() else 'no reason given'}"
    return Finding(check, "problem", what, "this is not foreseen: report it with the output of `nrt doctor --json`.")


def advised(sentence: str) -> tuple[str, str]:
    """A user's sentence as what is wrong and what to do, which is its last clause."""
    found, _, do = sentence.rstrip(".").rpartition("; ")
    return (found, f"{do}.") if found else (sentence, READ)
