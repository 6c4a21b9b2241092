"""What `nrt doctor` says: one finding per check, each with what to do about it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from nrt_cli.errors import NrtError, first_line

Verdict = Literal["ok", "warning", "problem", "skipped"]


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


def advised(sentence: str) -> tuple[str, str]:
    """A user's sentence as what is wrong and what to do, which is its last clause."""
    found, _, do = sentence.rstrip(".").rpartition("; ")
    return (found, f"{do}.") if found else (sentence, "see what it says.")


def of_error(check: str, error: Exception) -> Finding:
    """A check that could not be made."""
    if isinstance(error, NrtError):
        return Finding(check, "problem", *advised(str(error)))
    what = f"{type(error).__name__}: {first_line(error) if str(error).strip() else 'no reason given'}"
    return Finding(check, "problem", what, "this is not foreseen: report it with the output of `nrt doctor --json`.")


def guarded(check: str, look: Callable[[], Iterable[Finding] | Finding]) -> Iterator[Finding]:
    """What a check finds; where it fails, last what went wrong."""
    try:
        found = look()
        yield from [found] if isinstance(found, Finding) else found
    except Exception as error:
        yield of_error(check, error)
