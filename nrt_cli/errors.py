"""Errors a user can act on.

Everything that is the user's to fix is raised as an `NrtError` whose text says what is wrong, where, and what to do;
the boundary in `cli.py` prints it as one sentence and exits with `exit_code`, without a traceback.
"""


class NrtError(Exception):
    """A problem the user can fix. `str(error)` is what they read; `exit_code` is what their script sees."""

    exit_code = 1


class ConfigError(NrtError):
    """A configuration that is unknown, malformed or contradicts itself."""

    exit_code = 2


class DataError(NrtError):
    """Input data that cannot be read as question-answer pairs."""


class ModelError(NrtError):
    """A model or tokenizer that lacks what training needs."""


class StoreError(NrtError):
    """A run directory that is missing, foreign, damaged or cannot be written."""


class TrainingError(NrtError):
    """Training that cannot go on, such as a loss that is not finite. State is saved before this is raised."""

    remedy = "A new run with a lower optimiser.lr, objective.weight_cap or model.dtype=float32 is the usual remedy."


class EndpointError(NrtError):
    """A model endpoint that gave no reply to a request; `fatal` where it would give none to any other either."""

    def __init__(self, message: str, fatal: bool = False) -> None:
        super().__init__(message)
        self.fatal = fatal


class BudgetError(NrtError):
    """Work that ended at the cost it was allowed, before all of it was done; what was done is kept."""


class Interrupted(NrtError):
    """A signal asked the work to stop; it is saved. Exits as shells do: 130 after Ctrl-C, 143 after SIGTERM."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class EvalError(NrtError):
    """An evaluation that cannot be made: a package, a sandbox or another tool's output that it needs is missing."""


def first_line(error: BaseException) -> str:
    """What another's error says, without the lines that follow; the error's kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class Damage(UserWarning):
    """Something of ours that is not as it was written, and was passed over."""
