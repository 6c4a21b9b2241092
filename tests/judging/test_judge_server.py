"""`nrt judge` against a real OpenAI-compatible server: `transformers serve` with a tiny model that learned to grade."""

import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nrt_cli.judging.judge import judge as run_judges
from nrt_cli.judging.plan import Plan, make_plan
from nrt_cli.records import TraceRow
from nrt_cli.store import Run
from nrt_cli.store.judgements import Judgements

NEEDED = ("openai", "fastapi", "uvicorn")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (transformers serve needs them)"),
]

GRADES = {
    "good": '{"score": 0.75, "justification": "Sound.", "flags": []}',
    "poor": '{"score": 0.25, "justification": "Vague.", "flags": ["off-topic"]}',
    "odd": "I liked it.",
}
"""What the judge learned to say of each trace."""
LEARNED = 0.1
"""Sum of the three losses, in nats per token: greedy decoding repeats the grades exactly well before this."""


def question_plan(run: Run, template: Path, model: Path) -> Plan:
    settings = {"models": [str(model)], "template": str(template), "max_output_tokens": 80, "concurrency": 2}
    return make_plan([str(run.path)], [{"judge": settings}])


@pytest.fixture(scope="module")
def run_and_template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    folder = tmp_path_factory.mktemp("judged")
    template = folder / "short.yaml"
    template.write_text("prompt: '{{ problem }}|{{ reasoning }}|{{ ground_truth }}'\nrepair: '{{ reason }}'\n")
    run = Run.create(folder / "run", "", {"method": "am"})
    rows = [TraceRow(0, e, k=0, prompt="2+2?", trace=trace, answer="4") for e, trace in enumerate(GRADES)]
    run.write_traces("held-out-000000", rows)
    return run, template


@pytest.fixture(scope="module")
def judge_model(
    run_and_template: tuple[Run, Path],
    make_tiny_source: Callable[..., Path],
    make_tiny_tokenizer: Any,
    tmp_path_factory: Any,
) -> Path:
    """A tiny model fitted to the judge's own prompts until it repeats its grades exactly."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    folder = make_tiny_source(tmp_path_factory.mktemp("judge") / "model", make_tiny_tokenizer())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder)
    plan = question_plan(*run_and_template, folder)
    rows = []
    for question in plan.questions:
        turns = [{"role": "user", "content": question.prompt}]
        x = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        y = [*tokenizer.encode(GRADES[question.shown[1]], add_special_tokens=False), tokenizer.eos_token_id]
        rows.append((torch.tensor([x + y]), torch.tensor([[-100] * len(x) + y])))
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(400):
        loss = sum(model(input_ids=ids, labels=labels).loss for ids, labels in rows)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if loss < LEARNED:
            break
    assert loss < LEARNED, "the tiny judge did not learn its lines"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def served(judge_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`transformers serve`'s address, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = "from transformers.cli.transformers import main; main()"  # what the command `transformers` does
    log = (tmp_path_factory.mktemp("log") / "serve.log").open("w+")
    with subprocess.Popen(
        [sys.executable, "-c", program, "serve", judge_model, *f"--host 127.0.0.1 --port {port} --device cpu".split()],
        stdout=log,
        stderr=log,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    ) as process:
        while not _answers(port):
            # Between two looks, see whether it is still there.
            with contextlib.suppress(subprocess.TimeoutExpired):
                raise AssertionError(f"the server ended ({process.wait(0.2)}): {Path(log.name).read_text()}")
        yield f"http://127.0.0.1:{port}/v1"
        process.terminate()


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def test_a_real_server_judges(
    served: str, run_and_template: tuple[Run, Path], judge_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    monkeypatch.setenv("OPENAI_BASE_URL", served)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    run, _ = run_and_template
    plan = question_plan(*run_and_template, judge_model)

    outcome = run_judges(plan, None, lambda *_: None)

    assert (outcome.judged, outcome.failed.total(), outcome.stopped) == (3, 0, None)
    records = {record["example"]: record for record in Judgements(run).records()}
    good, poor, odd = records[0], records[1], records[2]
    assert (good["score"], good["justification"], good["flags"]) == (0.75, "Sound.", [])
    assert (poor["score"], poor["flags"]) == (0.25, ["off-topic"])
    assert good["replies"] == [GRADES["good"]]
    # Prose: asked once more, in a conversation that the server takes, and whatever came of that is on record.
    assert odd["replies"][0] == GRADES["odd"]
    assert len(odd["replies"]) == 2
    # The server's own count of what we sent is that of our prompt in its chat template.
    turns = [{"role": "user", "content": next(q.prompt for q in plan.questions if q.example == 0)}]
    tokenizer = AutoTokenizer.from_pretrained(judge_model)
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert good["input_tokens"] == len(ids)
    assert json.loads(good["replies"][0])["score"] == good["score"]
