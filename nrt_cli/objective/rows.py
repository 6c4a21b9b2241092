"""Token sequences whose tails are scored, and what a trace is sampled after. Imports no torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nrt_cli.records import Example
from nrt_cli.text.tokens import ThinkTokens


@dataclass(frozen=True)
class Row:
    """A token sequence whose tail is scored: `ids[scored_from:]`, each predicted from the position before it.

    The first `prompt` tokens are those that rows of one example share; by default, all that are not scored. Tokens in
    `ids[tempered[0]:tempered[1]]` were chosen by the policy at the rollout temperature and are scored at it; all others
    at temperature 1.
    """

    ids: tuple[int, ...]
    scored_from: int
    tempered: tuple[int, int] = (0, 0)
    prompt: int | None = None

    @property
    def scored(self) -> int:
        """How many tokens are scored."""
        return len(self.ids) - self.scored_from


def trace_prompt(example: Example, tokens: ThinkTokens) -> tuple[int, ...]:
    """What a trace is sampled after: x t_start, or x where there is no t_start."""
    return example.prompt_ids if tokens.start_id is None else (*example.prompt_ids, tokens.start_id)


def by_prompt(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Runs of consecutive rows that have the same prompt."""
    run: list[Row] = []
    for row in rows:
        if run:
            start = min(_prompt(row), _prompt(run[0]))
            if row.ids[:start] != run[0].ids[:start]:
                yield run
                run = []
        run.append(row)
    if run:
        yield run


def _prompt(row: Row) -> int:
    return row.scored_from if row.prompt is None else row.prompt
