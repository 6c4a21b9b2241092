"""lm-eval's tasks made from the suite's YAML: lm-eval renders the prompts, builds the requests and asks our scorers.

A task of each subset is made in memory; `lm_eval.evaluate` takes it like one of its own.
"""

import json
import logging
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from nrt_cli.config.suite import BenchmarkSpec
from nrt_cli.evaluation.lm_eval.rows import Row
from nrt_cli.evaluation.lm_eval.scorers import GRADERS
from nrt_cli.records import Request
from nrt_cli.text.prompts import encode_within, render_prompt


class _Rows(list[Row]):
    """A split as lm-eval handles it: a list that knows its columns."""

    @property
    def features(self) -> dict[str, None]:
        return dict.fromkeys(self[0])


def make_task(spec: BenchmarkSpec, subset: str, rows: Sequence[Row]) -> Any:
    """The lm-eval task of one subset over these rows, scored by ours."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it logs its defaults at every task
    from lm_eval.api.task import ConfigurableTask

    shots = _examples(spec, subset)
    config: dict[str, Any] = {
        "task": f"nrt_{spec.name}_{subset}" if subset else f"nrt_{spec.name}",
        "custom_dataset": lambda **_: {"test": _Rows(rows)},
        "test_split": "test",
        "doc_to_text": spec.prompt,
        "doc_to_target": "",
        "target_delimiter": spec.examples.delimiter if spec.examples else "",
        "description": _description(spec, subset),
        "num_fewshot": len(shots),
        "process_results": lambda row, results: GRADERS[spec.grader](spec, subset, row, _answers(spec, results)).scores,
        "metric_list": [{"metric": spec.metric, "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": spec.olmes},
    }
    if shots:
        config["fewshot_config"] = {"sampler": "first_n", "samples": shots, "doc_to_target": "{{target}}"}
    if spec.mode == "loglikelihood":
        config |= {"output_type": "multiple_choice", "doc_to_target": 0, "doc_to_choice": _choices}
    else:
        config |= {"output_type": "generate_until", **_generation(spec)}
    return ConfigurableTask(config=config)


def _generation(spec: BenchmarkSpec) -> dict[str, Any]:
    settings = spec.generation
    return {
        "generation_kwargs": {
            "until": list(settings.stop),
            "max_gen_toks": settings.max_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "do_sample": settings.temperature > 0,
        },
        "repeats": settings.samples,
        "filter_list": [
            {"name": "none", "filter": [{"function": "take_first_k", "k": settings.samples}]},
        ],
    }


def _answers(spec: BenchmarkSpec, results: Sequence[Any]) -> Sequence[Any]:
    """lm-eval's results of a document as its scorer takes them."""
    return [logprob for logprob, _ in results] if spec.mode == "loglikelihood" else results[0]


def _choices(row: Row) -> list[str]:
    if "target" in row:
        return [row["target"]]  # a worked example
    # lm-eval leaves the delimiter out after a chat template; the space belongs to the answer here, as in OLMES.
    return [f" {choice}" for choice in row["mc2_targets"]["choices"]]


def _examples(spec: BenchmarkSpec, subset: str) -> list[Row]:
    """The worked examples of a subset, as rows."""
    if spec.examples is None:
        return []
    found = list(spec.examples.examples)
    if spec.examples.lm_eval_task:
        found = _lm_eval_file(spec.examples.lm_eval_task.replace("{subset}", subset))["fewshot_config"]["samples"]
    return [dict(row) for row in found[: spec.examples.count]]


@cache
def _lm_eval_file(name: str) -> Mapping[str, Any]:
    """One of lm-eval's own task files."""
    import lm_eval
    import yaml

    path = Path(str(lm_eval.__file__)).parent / "tasks" / name
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


def _description(spec: BenchmarkSpec, subset: str) -> str:
    """What stands before the examples of a subset."""
    if spec.examples and spec.examples.lm_eval_task:
        name = spec.examples.lm_eval_task.replace("{subset}", subset)
        return str(_lm_eval_file(name).get("description", ""))
    return spec.description


def context(spec: BenchmarkSpec, task: Any, row: Row) -> str:
    """The turns of a document's prompt, as JSON."""
    return str(
        task.fewshot_context(
            row,
            task.config.num_fewshot,
            apply_chat_template=True,
            fewshot_as_multiturn=bool(spec.examples and spec.examples.multiturn),
            chat_template=as_json,
        )
    )


def as_json(turns: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
    """A chat template that keeps the turns, for us to render with the model's own.

    lm-eval makes a description a system turn; in OLMES it is the beginning of the user's first.
    """
    kept = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    if kept[0]["role"] == "system":
        kept[1]["content"] = kept[0]["content"] + kept[1]["content"]
        del kept[0]
    return json.dumps(kept, ensure_ascii=False)


def to_request(instance: Any, tokenizer: Any, key: str, seed: int, sample: int) -> Request:
    """One call of the model from an lm-eval instance whose context are turns as JSON.

    Its random stream is named by the seed, the prompt and the sample's number, whoever asks.
    """
    turns, asked = instance.args
    request = Request(key=f"{key}#{sample}", prompt_ids=tuple(render_prompt(tokenizer, json.loads(turns))))
    if instance.request_type == "loglikelihood":
        continuation = tuple(encode_within(tokenizer, asked))
        return replace(request, mode="loglikelihood", continuation_ids=continuation)
    return replace(
        request,
        max_answer_tokens=asked["max_gen_toks"],
        stop=tuple(asked["until"]),
        temperature=asked["temperature"],
        top_p=asked["top_p"],
        seed_key=(seed, zlib.crc32(turns.encode()), sample),
    )
