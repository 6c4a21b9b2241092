"""Our backend beside OLMES itself, where NRT_OLMES_PYTHON names an interpreter that has it: document by document."""

import os
from pathlib import Path

import pytest
from families import scripted

from nrt_cli import config as configs
from nrt_cli.config.suite import ORDER
from nrt_cli.evaluation.evaluate import evaluate
from nrt_cli.evaluation.importing import import_results
from nrt_cli.evaluation.session import Job
from nrt_cli.progress import EvalProgress
from nrt_cli.store.evals import Evaluation

PYTHON = os.environ.get("NRT_OLMES_PYTHON")
DATA = Path(__file__).parents[1] / "eval_data"

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(PYTHON is None, reason="NRT_OLMES_PYTHON names no interpreter of an OLMES environment"),
]


def both_ways(model, benchmark, tmp_path, think, tokens, limit=2):
    """The documents by what was asked: as our backend left them, and as `nrt eval import` reads OLMES's."""
    found = []
    for backend in ("lm-eval", "olmes"):
        given = [f"eval.olmes.python={PYTHON}", "eval.olmes.gpus=0", f"eval.data_dir={DATA}", "eval.max_samples=2"]
        given.append("model.dtype=float32")  # as OLMES has it from the model's config, on every processor
        settings = configs.load(None, [*given, f"eval.max_answer_tokens={tokens}", "eval.max_trace_tokens=8"])
        job = Job(str(model), (benchmark,), limit, backend, think=think, out=tmp_path / backend)
        (row,) = evaluate(job, settings, EvalProgress())["benchmarks"]
        assert row["failed"] is None
        if backend == "olmes":
            (folder,) = (tmp_path / "olmes" / "olmes").iterdir()
            (row,) = import_results(folder, None, tmp_path / "imported", print)["benchmarks"]
        documents = Evaluation(Path(row["folder"])).documents().values()
        found.append({tuple(turn["content"] for turn in each.messages): each for each in documents})
    assert found[0].keys() == found[1].keys()  # prompts, to the byte
    return [(found[0][asked], found[1][asked]) for asked in found[0]]


@pytest.mark.parametrize("benchmark", ORDER)
def test_the_nine_are_asked_and_graded_alike(benchmark, tmp_path):
    for ours, theirs in both_ways(scripted(tmp_path, "qwen"), benchmark, tmp_path, "off", 6):
        assert (ours.subset, len(ours.replies)) == (theirs.subset, len(theirs.replies))
        if benchmark == "truthfulqa":
            # OLMES counts the line end before an answer in, which is the same for all.
            logprobs = [sorted(reply.logprob for reply in each.replies) for each in (ours, theirs)]
            ours_rest, theirs_rest = ([value - values[0] for value in values] for values in logprobs)
            assert ours_rest == pytest.approx(theirs_rest, abs=1e-3)
            assert ours.scores["mc2"] == pytest.approx(theirs.scores["mc2"], abs=1e-3)
        elif benchmark not in ("math", "humaneval"):  # which are sampled
            assert [reply.answer for reply in ours.replies] == [reply.answer for reply in theirs.replies]
            assert ours.scores["olmes"] == theirs.scores["olmes"]


@pytest.mark.parametrize("think", ["on", "off"])
@pytest.mark.parametrize("name", ["llama-2", "qwen", "gemma"])
def test_tokenizers_of_every_kind_are_cut_and_graded_alike(name, think, tmp_path):
    for ours, theirs in both_ways(scripted(tmp_path, name), "gsm8k", tmp_path, think, 6):
        (our,), (their,) = ours.replies, theirs.replies
        assert (our.trace, our.answer, our.cut) == ("so" * (think == "on"), " 42", False)
        # Llama 2's tokenizer drops the space that a text begins with, and OLMES, left alone, decodes an answer so.
        assert (their.trace, their.answer) == (our.trace, "42" if (name, think) == ("llama-2", "off") else " 42")
        assert (their.stop, their.cut) == (our.stop, False)
        assert ours.scores["exact_match"] == theirs.scores["exact_match"]
