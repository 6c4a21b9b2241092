"""What an X-ray costs beside `nrt score`: one trace of sentences of eight words, a model of 28 million random weights.

    python tests/bench/xray.py [--quick]

- score: the null trace and the whole trace, which is what `nrt score` computes of a trace.
- x-ray: all variants of the trace, as `nrt analyze xray` computes them.
- shared prompt: the same, but rows share what all of them begin with, not what each begins with.
- alone: the same, a padded row of the batch for each.

All sides have the same model, tokens and threads; what they find is the same but for rounding.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import common
import torch
from common import NAN, WORK, Figures, Job, Side, Turn, cell, ratio, shown
from torch import Tensor
from workload import set_up

from nrt_cli.backends.local import attention
from nrt_cli.backends.local.policy import Prefix
from nrt_cli.data import digits
from nrt_cli.models.prepare import prepare_model
from nrt_cli.records import RolloutGroup
from nrt_cli.training.pretraining import untrained
from nrt_cli.workflows import xray
from nrt_cli.workflows.scoring import Scorer, Subject, asked_example, given_traces

SHAPE = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 9,
    "num_key_value_heads": 3, "max_position_embeddings": 2048,
}  # fmt: skip
HEADER = ("trace tokens, side", "seconds", "times score", "by processor time", "rows", "tokens computed")


def work(how: str, job: Job, turn: Turn) -> None:
    figures = set_up(job)
    of = Subject(job["model"])
    scorer = of.open()
    torch.set_num_threads(job["threads"])
    if how == "shared prompt":
        attention._branches = _shared
    scorer.policy.packing = how != "alone"
    dice, rows = random.Random(0), list[dict[str, Any]]()
    text = lambda length: " ".join(digits.sentences(dice, 100).split()[:length])  # noqa: E731
    for _ in range(2):
        example = asked_example(of, text(job["prompt"]), text(job["answer"]))
        (ids,) = given_traces(scorer.tokenizer, [text(job["trace"])])
        each = replace(example, index=len(rows))
        rows += xray._rows(of, [RolloutGroup(each, (xray.Rollout(ids, (), "end"),))], scorer.tokenizer)
    scored = _counted(scorer)
    while True:
        turn(figures)
        scored.clear()
        start = time.perf_counter()
        if how == "score":
            scorer.score([scorer.layout.null_row(example), scorer.row(example, ids)])
        else:
            xray.look_into(scorer, rows, slice(0, 1), "sentence", 32, 0)
        figures = figures | {"seconds": time.perf_counter() - start, "rows": sum(map(len, scored))}
        figures |= {"tokens": sum(map(scorer.policy.size, scored))}


def _counted(scorer: Scorer) -> list[list[xray.Row]]:
    """The rows of each forward pass from now on."""
    passes: list[list[xray.Row]] = []
    score = scorer.policy.score

    def counted(rows: Sequence[xray.Row], prefix: Prefix | None = None) -> tuple[Tensor, Tensor]:
        passes.append(list(rows))
        return score(rows, prefix)

    scorer.policy.score = counted  # type: ignore[method-assign]
    return passes


def _shared(rows: Sequence[Sequence[int]], prefix: int | None = None) -> tuple[int, list[int], dict[int, int]]:
    hosts, shared = attention._hosts(rows), attention.common_prefix(rows) if prefix is None else prefix
    return shared, hosts, dict.fromkeys(hosts, shared)


def main() -> None:
    parser = common.parser(__doc__, rounds=3)
    parser.add_argument("--traces", type=int, nargs="+", default=[128, 384], help="tokens of the trace")
    args = parser.parse_args()
    base = common.start(args) | {"prompt": 100, "answer": 24}
    base["model"] = str(WORK / "x-ray-model")
    if not (WORK / "x-ray-model").is_dir():
        untrained(digits.vocabulary(), WORK / "x-ray-source", **SHAPE)
        prepare_model(str(WORK / "x-ray-source"), WORK / "x-ray-model", init_start="#", init_end="*")
    if args.quick:
        args.traces = [48]
    sides: dict[str, Side] = {how: partial(work, how) for how in ("score", "x-ray", "shared prompt", "alone")}
    rows: list[list[str]] = []
    measured: list[Figures] = []
    for trace in args.traces:
        figures = common.part("xray", sides, base | {"trace": trace}, args)
        measured += figures.values()
        for how, of in figures.items():
            beside = of if how != "score" else {"seconds": NAN, "processor": NAN}
            times = [shown(ratio(beside, figures["score"], key), 1) for key in ("seconds", "processor")]
            rows.append([f"{trace}, {how}", cell(of, "seconds"), *times, cell(of, "rows", 0), cell(of, "tokens", 0)])
    common.report("X-ray of a trace", args, common.table(HEADER, rows), measured)


if __name__ == "__main__":
    main()
