"""Small runs written through the store, whose numbers are written here."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nrt_cli.records import XRAY_COLUMNS, Document, Reply, TraceRow, XrayRow
from nrt_cli.store import Run
from nrt_cli.store.evals import Evaluation
from nrt_cli.store.tables import NAME, write_table
from nrt_cli.viewer.library import Library

HOSTILE = (
    "</script><script>window.pwned=1</script><img src=x onerror='window.pwned=2'> \u202egnp.exe \x1b[31m \x00 {{7*7}}"
)


def row(step: int, example: int, k: int, trace: str, **more: Any) -> TraceRow:
    """A trace of a training step; ids are the characters' code points, rewards are R = 1 + k over a baseline of 1.5."""
    question = more.pop("question", f"Question {example}?")
    answer = [ord(c) for c in "xy"]
    return TraceRow(
        **{
            "step": step,
            "example": example,
            "source": "test",
            "k": k,
            "prompt": f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n",
            "trace": trace,
            "answer": "xy<|im_end|>",
            "stop": "cap" if k == 2 else "end",
            "trace_ids": [ord(c) for c in trace],
            "answer_ids": answer,
            "sampled": [True] * (len(trace) + 1),
            "trace_logprobs": [-0.5] * (len(trace) + 1),
            "trace_entropies": [0.25] * (len(trace) + 1),
            "answer_logprobs": [-0.5 - k, -2.0],
            "null_logprobs": [-2.0, -2.0],
            "token_signals": [0.5, 0.25],
            "gain": 1.5 - k,
            "reward": 1.0 + k,
            "reward_base": 1.5,
            "reward_scaled": (1.0 + k) / 3,
            "reward_base_scaled": 0.5,
            "reward_log_scale": 1.0986122886681098,
            "advantage": k - 1.0,
            "dead_group": example == 4,
            **more,
        }
    )


def held_out(step: int, example: int, trace: str, right: float, **more: Any) -> TraceRow:
    """A held-out trace: no reward, but a graded reply; its answer gains `step` nats."""
    none = dict.fromkeys(("reward", "reward_base", "reward_scaled", "reward_base_scaled", "reward_log_scale"))
    none |= dict.fromkeys(("advantage", "dead_group", "sampled", "trace_logprobs", "trace_entropies", "token_signals"))
    known = {"answer_logprobs": [-2.0, -3.0 + step], "null_logprobs": [-2.0, -3.0], "gain": float(step)}
    known |= {"thinking_reply": "xy" if right else "no", "thinking_score": right, "grader": "exact"}
    known |= {"sampler_logprobs": [-1.0] * (len(trace) + 1)}
    return row(step, example, 0, trace, **(none | known | more))


def make_run(folder: Path, method: str = "am", config: str = "{}") -> Run:
    return Run.create(folder, config, {"method": method, "status": "running", "fingerprints": {"validation": "v"}})


def add_step(run: Run, step: int, traces: tuple[str, ...] = ("one", "two", "three"), **more: Any) -> None:
    """A training step: two questions, 3 and 4, whose traces say so; 4's group is dead."""
    rows = [row(step, e, k, f"{text} {step}", **more) for e in (3, 4) for k, text in enumerate(traces)]
    run.write_traces(f"step-{step:06d}", rows)
    run.append_metrics({"kind": "train", "step": step, "gain": float(step), "entropy": 1.0 / step, "dead_groups": 0.5})


def add_held_out(run: Run, step: int, right: float, texts: tuple[str, ...] = ("a", "b"), **more: Any) -> None:
    run.write_traces(
        f"held-out-{step:06d}", [held_out(step, 7 + i, f"{t} {step}", right, **more) for i, t in enumerate(texts)]
    )
    record = {"answer_logprob": -5.0 + step, "gain": float(step), "accuracy_thinking": right}
    run.append_metrics({"kind": "held_out", "step": step, **record})


def add_xray(run: Run, table: str, step: int, example: int, steps: list[str], necessity: list[float]) -> None:
    """What an X-ray would have found of a trace: the answer at -9 nats before its first step, and what each adds."""
    kept = [-9.0]
    for value in necessity:
        kept.append(kept[-1] + value)
    where = {"traces": table, "step": step, "example": example, "k": 0, "model_step": step, "unit": "word"}
    numbers = {"necessity": necessity, "kept": kept, "null_logprob": -9.0, "decided": 1, "smuggled": 0.25}
    found = XrayRow(**where, steps=steps, **numbers)
    columns = {name: column.type for name, column in XRAY_COLUMNS.items()}
    folder = run.path / "analysis" / "xray" / "scored" / f"{table}-abc"
    write_table(folder / "part-000000.parquet", columns, [vars(found)])


def add_evaluation(run: Run, right: tuple[bool, ...], text: str = "so it is 4") -> None:
    """A benchmark of questions `q0`, `q1`, ..., of which these are right."""
    evaluation = Evaluation.create(run.path / "evals" / "export", "sums", {}, {})
    for i, one in enumerate(right):
        turns = ({"role": "user", "content": f"question {i}"},)
        reply = Reply(text, f"The answer is {4 if one else 5}.", 3, 4, "end")
        read = "4" if one else "5"
        evaluation.append(Document("sums", "", f"q{i}", turns, "4", (reply,), (read,), {"exact_match": float(one)}))
    scores = {"benchmark": "sums", "score": sum(right) / len(right), "error": 0.1, "n": len(right)}
    evaluation.write_scores(scores | {"metric": "exact_match"})


def small_world(root: Path) -> Path:
    for name, right in (("a", 0.0), ("b", 1.0)):
        run = make_run(root / name, config=f"seed: {int(right)}\n")
        add_held_out(run, 0, 0.0)
        for step in (1, 2):
            add_step(run, step)
        add_held_out(run, 2, right)
        run.event("checkpoint", step=2)
        add_xray(run, "held-out-000002", 2, 7, ["a ", "2"], [3.0, -1.0])
        add_evaluation(run, (not right, bool(right), True))
        run.update_manifest(status="finished", steps=2)
    return root


def hostile_world(root: Path) -> Path:
    run = make_run(root / "h", config="seed: 1\n")
    run.update_manifest(command=HOSTILE, versions={HOSTILE: HOSTILE})
    add_step(run, 1, (HOSTILE, "x" * 1_000_000, "\u2028\u200b\ufeff"), question=HOSTILE)
    add_held_out(run, 1, 1.0, (HOSTILE,), question=HOSTILE, thinking_reply=HOSTILE)
    run.event("collapse", step=1, seen=HOSTILE)
    return root


PER_TABLE = 256
SAID = "so let us see what this makes when first and second are taken together then rest is added"


def letters(folder: Path) -> Callable[[Sequence[int]], list[str]]:
    return lambda ids: [chr(i) for i in ids]


def opened(root: Path, pieces: Any = letters) -> Library:
    """A library that has read all that there is."""
    library = Library([root], pieces)
    library.look()
    library.refresh()
    library.read()
    return library


def many_tables(root: Path, tables: int) -> None:
    """Tables like those of training, whose traces differ in their numbers and words."""
    run, random = make_run(root / "million"), np.random.default_rng(0)
    texts = [" ".join(random.choice(SAID.split(), 40)) for _ in range(PER_TABLE)]
    run.write_traces("step-000001", [row(1, i // 8, i % 8, text) for i, text in enumerate(texts)])
    first = pq.read_table(run.path / "traces" / "step-000001.parquet")
    for step in range(2, tables + 1):
        at = {name: first.schema.get_field_index(name) for name in ("step", "example", "gain", "reward", "trace")}
        rolled = texts[step % PER_TABLE :] + texts[: step % PER_TABLE]
        new = {"step": np.full(PER_TABLE, step), "example": step * 32 + np.arange(PER_TABLE) // 8}
        new |= {"gain": random.normal(size=PER_TABLE), "reward": random.exponential(size=PER_TABLE)}
        new["trace"] = [f"{text} {step}" for text in rolled]
        table = first
        for name, values in new.items():
            table = table.set_column(at[name], first.field(name), pa.array(values, first.field(name).type))
        file = run.path / "traces" / f"step-{step:06d}.parquet"
        table = table.replace_schema_metadata({NAME: file.name})
        pq.write_table(table, file, compression="zstd", write_page_checksum=True)
