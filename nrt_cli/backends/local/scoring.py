"""A model that says how probable a reference answer is: given a trace, the null trace, or nothing. No gradients.

Shapes: T answer tokens, eos included.
"""

from collections.abc import Sequence

from torch import Tensor

from nrt_cli.backends.local.decoding import sample_groups
from nrt_cli.backends.local.policy import Policy
from nrt_cli.config import ModelSection, RolloutSection
from nrt_cli.errors import ModelError
from nrt_cli.models.loading import load_model, load_tokens, positions
from nrt_cli.objective.rows import Layout, Row, trace_prompt
from nrt_cli.records import Example, RolloutGroup

BUDGET = 4096
"""Tokens of one forward pass; results do not depend on it."""


class Scorer:
    """A loaded model folder; its memory does not grow with what it is asked to score.

    Without `think_start` a trace follows the prompt directly; with `bare_null` the null trace lacks t_start too
    (decision 12).
    """

    def __init__(self, section: ModelSection, think_start: str | None, think_end: str, bare_null: bool = False) -> None:
        self.folder = section.path
        self.tokenizer, self.tokens = load_tokens(section.path, think_start, think_end)
        self.policy = Policy(load_model(section), self.tokens.pad_id, packing=True)
        self.layout = Layout(self.tokens, bare_null)
        self.limit = positions(section.path)

    def sample(
        self, examples: Sequence[Example], group_size: int, settings: RolloutSection, key: Sequence[int]
    ) -> list[RolloutGroup]:
        """K traces for each example, each from a random stream of its own (`key`, example, k)."""
        for example in examples:
            # t_start and t_end are two more.
            self._check_room(example, settings.max_trace_tokens + 2)
        return sample_groups(self.policy.model, examples, self.tokens, settings, group_size, key)

    def score(self, rows: Sequence[Row]) -> list[tuple[Tensor, Tensor]]:
        """For each row, per answer token: log c, natural, and the entropy of the distribution it came from, in nats."""
        return self.policy.score_without_gradient(rows, BUDGET)

    def row(self, example: Example, trace_ids: Sequence[int]) -> Row:
        """x [t_start] z t_end y*, of which y* is scored."""
        self._check_room(example, len(trace_ids) + 2)
        before = (*trace_prompt(example, self.tokens), *trace_ids, self.tokens.end_id)
        return Row((*before, *example.answer_ids), len(before), prompt=len(example.prompt_ids))

    def null_row(self, example: Example) -> Row:
        """x [t_start] t_end y*: the null trace that a reward is compared with; `bare_null` leaves t_start out."""
        return self.layout.null_row(example)

    def direct_row(self, example: Example) -> Row:
        """x y*: how a model answers that does not think."""
        self._check_room(example, 0)
        return self.layout.direct_row(example)

    def _check_room(self, example: Example, trace: int) -> None:
        """Refuse what would not fit the model's positions."""
        need = len(example.prompt_ids) + trace + len(example.answer_ids)
        if self.limit is not None and need > self.limit:
            raise ModelError(
                f"{self.folder}: example {example.index} needs {need} positions (prompt {len(example.prompt_ids)}, "
                f"trace {trace}, answer {len(example.answer_ids)}), but the model has {self.limit}; shorten them."
            )
