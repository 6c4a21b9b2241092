"""Out of memory is not the end: the same work in smaller parts has the same result."""

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")

LEAST_TOKENS = 256
"""A pass is not made smaller than this: where it does not fit, nothing will."""


def ran_out(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a GPU or a CPU."""
    # The CPU allocator raises a plain RuntimeError.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class Budget:
    """Tokens of one forward pass, halved whenever memory runs out.

    Attributes:
        say: told once, at the first time.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.say: Callable[[str], None] = lambda _: None
        self.said = False

    def retrying(self, work: Callable[[], Result], undo: Callable[[], None]) -> Result:
        """Do some work; where memory runs out, undo what it began and do it again with half the budget.

        Raises:
            MemoryError: it ran out at the smallest budget too.
        """
        while True:
            try:
                return work()
            except Exception as error:
                if not ran_out(error):
                    raise
            # Here, outside, the exception and the tensors that its traceback holds are gone.
            undo()
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if self.tokens <= LEAST_TOKENS:
                raise MemoryError
            self.tokens = max(LEAST_TOKENS, self.tokens // 2)
            if not self.said:
                self.said = True
                self.say(
                    f"memory ran out: the step is repeated in passes of at most {self.tokens} tokens (and fewer if "
                    "needed), with the same result; train.micro_batch_tokens sets this for the next run"
                )
