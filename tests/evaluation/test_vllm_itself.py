"""`--engine vllm` beside transformers, where vLLM is installed: prompts, traces, cuts and grades by document."""

from pathlib import Path

import pytest
from families import scripted

from nrt_cli import config as configs
from nrt_cli.backends.vllm_engine import installed
from nrt_cli.evaluation.evaluate import evaluate
from nrt_cli.evaluation.session import Job
from nrt_cli.progress import EvalProgress
from nrt_cli.store.evals import Evaluation

DATA = Path(__file__).parents[1] / "eval_data"


@pytest.mark.slow
@pytest.mark.skipif(installed() is None, reason="vllm is not installed")
@pytest.mark.parametrize(
    "name", ["qwen", *(pytest.param(name, marks=pytest.mark.full) for name in ("llama-2", "gemma"))]
)
def test_tokenizers_of_every_kind_are_cut_and_graded_alike(name, tmp_path):
    model = scripted(tmp_path, name)
    for think in ("on", "off"):
        found = []
        for engine in ("hf", "vllm"):
            given = [f"eval.data_dir={DATA}", "eval.max_answer_tokens=6", "eval.max_trace_tokens=8"]
            settings = configs.load(None, [*given, "model.dtype=float32", "model.device=cpu"])
            job = Job(
                str(model), ("gsm8k",), 2, "lm-eval", engine=engine, think=think, out=tmp_path / f"{engine}-{think}"
            )
            (row,) = evaluate(job, settings, EvalProgress())["benchmarks"]
            assert row["failed"] is None
            found.append(Evaluation(Path(row["folder"])).documents())
        transformers, vllm = found
        assert transformers.keys() == vllm.keys()
        for key, ours in transformers.items():
            (reply,) = ours.replies
            assert (reply.trace, reply.answer, reply.cut) == ("so" * (think == "on"), " 42", False)
            assert (vllm[key].messages, vllm[key].replies, vllm[key].scores) == (
                ours.messages,
                ours.replies,
                ours.scores,
            )
