"""`nrt doctor`: quiet where all is well, and each fault that is planted is found with what to do about it."""

import copy
import dataclasses
import json
import shutil
from types import SimpleNamespace

import psutil
import pytest
import torch
from packaging.requirements import Requirement

from nrt_cli.backends.local.policy import Policy
from nrt_cli.backends.samplers import NativeSampler
from nrt_cli.checks import doctor, doctor_environment, prediction
from nrt_cli.checks.doctor import diagnose, summary
from nrt_cli.checks.findings import Finding, of_error
from nrt_cli.checks.memory import Peak, peak_memory
from nrt_cli.data.choose import Settings
from nrt_cli.data.prepare import prepare
from nrt_cli.objective.layout import Layout
from nrt_cli.objective.rows import trace_prompt

SAMPLED = ["accuracy", "how traces end", "right traces", "answer's habit", "signal"]
ON_ROWS = [
    "positions",
    "fused against plain log-probs",
    "rollout against trainer log-probs",
    "underflow",
    "gradient",
    "memory",
    "time",
    "disk",
    "stale-weight canary",
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """In a folder of its own, in which nothing may appear; what the machine has installed is not what is tested."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setattr(doctor, "environment", lambda config: iter(()))
    yield
    assert list((tmp_path / "cwd").iterdir()) == []


def examined(config) -> dict[str, Finding]:
    return {finding.check: finding for finding in diagnose(config)}


@pytest.fixture
def found(tiny_config):
    return lambda *overrides: examined(tiny_config(*overrides))


def test_a_sound_config_has_no_problem(found):
    findings = found("method=am", "train.micro_batch_tokens=4096")
    assert list(findings) == ["token ids", "data", "held-out questions", "template", *SAMPLED, *ON_ROWS]
    assert [f for f in findings.values() if f.verdict == "problem"] == []
    assert findings["rollout against trainer log-probs"].details["max"] < 1e-4
    assert findings["stale-weight canary"].details["moved"] > 0
    assert findings["data"].details["examples"] == 40


def test_sft_has_the_checks_that_need_no_trace(found):
    findings = found("method=sft")
    assert list(findings) == [
        "token ids",
        "data",
        "held-out questions",
        "template",
        "accuracy",
        "answer's habit",
        "fused against plain log-probs",
        "memory",
        "time",
        "disk",
    ]
    assert summary(list(findings.values()))["problem"] == 0


@pytest.mark.parametrize("preset", ["paper", "reference"])
def test_positions_are_those_of_the_example(found, tiny_config, preset):
    """Eq. 8 and 11 by hand: the row is x t_start z t_end y*, and each term is where it belongs."""
    findings = found(
        "method=gm", f"preset={preset}", "tokens.think_start='<|think_start|>'", "tokens.think_end='<|think_end|>'"
    )
    trace, null = (row["tokens"] for row in findings["positions"].details["rows"])
    assert findings["positions"].verdict == "ok"
    ids = findings["token ids"].details
    end = max(i for i, token in enumerate(trace) if token["id"] == ids["t_end"])
    start = next(i for i, token in enumerate(trace) if token["id"] == ids["t_start"])
    assert all(token["terms"] == [] for token in trace[:start])
    assert all(token["terms"] == ["trace"] for token in trace[start + 1 : end])
    assert all(token["terms"] == ["answer"] for token in trace[end + 1 :])
    assert trace[-1]["id"] == ids["eos"]
    if preset == "paper":
        assert trace[start]["terms"] == ["format"]
        assert "format" in trace[end]["terms"]
    else:  # t_start is not supervised (decision 10)
        assert trace[start]["terms"] == []
    answer = [token["id"] for token in trace[end + 1 :]]
    assert [token["id"] for token in null if token["terms"]] == answer
    before = [token["id"] for token in null if not token["terms"]]
    # Decision 12: the null trace of the reference lacks t_start.
    tail = [ids["t_start"], ids["t_end"]] if preset == "paper" else [ids["t_end"]]
    assert before == [token["id"] for token in trace[:start]] + tail


# --- planted faults --------------------------------------------------------------------------------------------------


def test_a_null_trace_without_its_end_is_found(found, monkeypatch):
    right = Layout.null_row

    def wrong(self, example):
        row = right(self, example)
        ids = (*trace_prompt(example, self.tokens), self.tokens.eos_id, *example.answer_ids)
        return dataclasses.replace(row, ids=ids)

    monkeypatch.setattr(Layout, "null_row", wrong)
    finding = found("method=am")["positions"]
    assert finding.verdict == "problem"
    assert "the null trace's row is not t_end and then y*" in finding.found


def test_log_probs_that_are_off_are_found(found, monkeypatch):
    right = Policy.score_without_gradient

    def wrong(self, rows, budget):
        return [(logprobs - 0.01, entropies) for logprobs, entropies in right(self, rows, budget)]

    monkeypatch.setattr(Policy, "score_without_gradient", wrong)
    finding = found("method=am")["fused against plain log-probs"]
    assert (finding.verdict, finding.details["mean"]) == ("problem", pytest.approx(0.01, abs=1e-4))
    assert "engine.packing=off" in finding.do


def test_a_sampler_that_misreports_is_found(found, monkeypatch):
    right = NativeSampler.sample_groups

    def wrong(self, *arguments):
        groups = right(self, *arguments)
        off = [
            dataclasses.replace(
                group,
                rollouts=tuple(
                    dataclasses.replace(r, sampler_logprobs=tuple(p - 0.5 for p in r.sampler_logprobs))
                    for r in group.rollouts
                ),
            )
            for group in groups
        ]
        return off

    monkeypatch.setattr(NativeSampler, "sample_groups", wrong)
    finding = found("method=am")["rollout against trainer log-probs"]
    assert finding.verdict == "problem"
    assert finding.details["mean"] == pytest.approx(0.5, abs=0.01)
    assert "rollout.engine=native" in finding.do


def test_a_sampler_with_stale_weights_is_found(found, monkeypatch):
    """One that samples from the model as it was when it was made, and checks itself against that."""
    right = NativeSampler.__init__

    def wrong(self, config, model, tokenizer, tokens):
        right(self, config, copy.deepcopy(model), tokenizer, tokens)

    monkeypatch.setattr(NativeSampler, "__init__", wrong)
    findings = found("method=am", "optimiser.lr=1e-6")
    assert findings["stale-weight canary"].verdict == "problem"
    assert findings["stale-weight canary"].details["gap"] > 1e-3


def test_a_sampler_that_never_heard_of_the_change_fails_its_own_canary(found, monkeypatch):
    """The trainer's numbers of before the change are what a stale engine says: the canary stops it."""
    told = NativeSampler._next_logprobs
    first = {}

    def stuck(self, count=20):
        first.setdefault(id(self), told(self, count))
        return first[id(self)]

    monkeypatch.setattr(NativeSampler, "_next_logprobs", stuck)
    finding = found("method=am", "optimiser.lr=1e-9")["stale-weight canary"]
    assert finding.verdict == "problem"
    assert "does not run the trainer's weights" in finding.found
    assert finding.do == "set rollout.engine=native."


@pytest.fixture
def long_answers(tmp_path):
    """Pairs whose answers have about 40 tokens, of which an untrained model gives each a 140th."""
    text = "".join(
        json.dumps({"question": f"{i}?", "answer": f"Zq{i} xkcd vwxyz qqqq jjjj kkkk {i}"}) + "\n" for i in range(20)
    )
    (tmp_path / "long.jsonl").write_text(text)
    prepare([str(tmp_path / "long.jsonl")], tmp_path / "long", Settings())
    return f"data.train={tmp_path / 'long' / 'train.parquet'}"


def test_a_scheme_that_pays_nothing_is_named(found, long_answers):
    """P(y*) is about 140 to the power of minus 40: exp(-190), which float32 does not hold."""
    findings = found("preset=paper", "method=p", long_answers)
    underflow, gradient = findings["underflow"], findings["gradient"]
    assert underflow.details["naive_zeros"] == 1
    assert underflow.details["logprob_max"] < -103.3  # the log of the least float32, 1.4e-45
    assert underflow.details["finite"]
    assert gradient.details["answer_weight"] < 1e-6
    assert gradient.verdict == "warning"
    assert "objective.token_signal=shared" in gradient.do
    # The same rows under a mean: c is 1/140, and so is what each token's signal is a multiple of; shared, it is 1.
    assert found("preset=paper", "method=am", long_answers)["gradient"].details["answer_weight"] < 1e-2
    shared = found("preset=paper", "method=am", "objective.token_signal=shared", long_answers)["gradient"]
    assert shared.details["token_signal"] == pytest.approx(1)
    assert shared.verdict == "ok"


def test_cross_entropy_that_drowns_the_trace_is_named(found):
    findings = found("preset=as-run", "method=am")
    assert findings["gradient"].details["share_answer"] > 0.2
    assert findings["gradient"].verdict == "warning"
    assert "lower objective.weights.answer" in findings["gradient"].do
    balanced = found("method=am")["gradient"]
    assert balanced.verdict == "ok"
    # A tenth of what a trace term of advantages 1 would have; those of four traces are less than 1 on average.
    assert 0 < balanced.details["share_answer"] < 0.2


def test_too_little_memory_is_foreseen(found, monkeypatch):
    monkeypatch.setattr(prediction, "available_memory", lambda device: -1e12)
    finding = found("method=am")["memory"]
    assert finding.verdict == "warning"
    assert "train.micro_batch_tokens" in finding.do


def test_memory_is_foreseen_by_a_line_through_two_steps(tiny_config, monkeypatch):
    """1.0 GB at 100 tokens and 1.5 GB at 200 make 2.5 GB at 400, which wants a ninth more of room."""
    peaks = [SimpleNamespace(tokens=n, memory=Peak(most, 0.0)) for n, most in ((100, 1.0e9), (200, 1.5e9))]
    trial = SimpleNamespace(
        passes=peaks, engine=SimpleNamespace(backend=SimpleNamespace(policy=SimpleNamespace(device=None)))
    )
    monkeypatch.setattr(prediction, "_longest_rows", lambda config, inputs: 10**6)
    for room, verdict in ((2.9e9, "ok"), (2.7e9, "warning")):
        monkeypatch.setattr(prediction, "available_memory", lambda device, room=room: room)
        finding = prediction._memory(tiny_config("train.micro_batch_tokens=400"), None, trial)
        assert (finding.details["predicted"], finding.verdict) == (2.5e9, verdict)


def test_peak_memory_sees_what_is_gone_again():
    with peak_memory(torch.device("cpu")) as found:
        before = psutil.Process().memory_info().rss
        held = torch.ones(50_000_000)
        for _ in range(40):  # work, while the watcher looks
            held.add_(1)
        del held
    assert found.most - before > 1.5e8
    assert found.most > found.after


def test_time_scales_with_what_is_asked(found):
    short, long = (found("method=am", f"train.steps={steps}")["time"].details for steps in (3, 300))
    assert (short["steps"], long["steps"]) == (3, 300)
    for details in (short, long):
        assert details["total_seconds"] == [seconds * details["steps"] for seconds in details["step_seconds"]]
        assert details["step_seconds"][0] <= details["step_seconds"][1]


def test_disk_is_counted_from_what_a_checkpoint_holds(found, tiny_model_dir):
    disk = found("method=am", "train.keep_checkpoints=3", "train.steps=5")["disk"]
    details = disk.details
    assert f"about {details['needed'] / 1e6:.1f} MB for checkpoints and model" in disk.found
    weights = (tiny_model_dir / "model.safetensors").stat().st_size
    # Weights and two moments in float32; three are kept, and one more is being written. The model is the last one's.
    assert details["checkpoint"] == pytest.approx(3 * weights, rel=0.05)
    assert details["needed"] == pytest.approx(12 * weights, rel=0.05)
    assert details["kept"] == pytest.approx(9 * weights, rel=0.05)


def test_pad_that_is_eos_is_found(tiny_model_dir, tiny_config, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny_model_dir, model)
    path = model / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": "<eos>"}))
    finding = examined(tiny_config("method=am", f"model.path={model}"))["token ids"]
    assert finding.verdict == "problem"
    assert "eos and pad are the same" in finding.found
    assert "nrt model prepare" in finding.do


def test_a_template_that_drops_the_question_is_found(tiny_model_dir, tiny_config, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny_model_dir, model)
    (model / "chat_template.jinja").write_text("{% for m in messages %}Q: {{ m['content'][:4] }}\n{% endfor %}A:")
    finding = examined(tiny_config("method=am", f"model.path={model}"))["template"]
    assert finding.verdict == "warning"
    assert "left out" in finding.found


def test_what_is_missing_is_said_and_stops_nothing_else(found):
    findings = found("method=am", "data.train=nowhere.parquet")
    assert findings["token ids"].verdict == "ok"
    assert (findings["data"].verdict, findings["data"].do) == (
        "problem",
        "name it with --data if it was moved, or make it with `nrt data prepare`.",
    )
    findings = found("method=am", "model.path=nowhere")
    assert findings["token ids"].verdict == "problem"
    assert [f.check for f in diagnose(None)] == ["model and data"]


def test_every_finding_that_is_not_well_says_what_to_do():
    with pytest.raises(ValueError, match="says what to do"):
        Finding("x", "warning", "something")
    assert of_error("x", RuntimeError("boom")).do.startswith("this is not foreseen")


# --- the environment -------------------------------------------------------------------------------------------------


def test_a_package_out_of_range_and_a_needed_extra_are_found(tiny_config, monkeypatch):
    right = doctor_environment.version
    monkeypatch.setattr(
        doctor_environment, "version", lambda name: {"numpy": "1.0", "peft": None}.get(name, right(name))
    )
    needs = {"": [Requirement("numpy>=1.26")], "lora": [Requirement("peft>=0.18"), Requirement("bitsandbytes>=0.1")]}
    monkeypatch.setattr(doctor_environment, "_requirements", lambda: needs)
    config = tiny_config("model.lora.rank=4")
    findings = [f for f in doctor_environment.environment(config) if f.verdict == "problem"]
    assert any(f.check == "packages" and "numpy 1.0 is not >=1.26" in f.found for f in findings)
    (extra,) = [f for f in findings if f.check == "extras"]
    assert "peft is missing" in extra.found
    assert "'nrt-cli[lora]'" in extra.do


def test_an_emulated_type_is_advised_against(tiny_config, monkeypatch):
    monkeypatch.setattr(doctor_environment, "native_bfloat16", lambda device: False)
    monkeypatch.setattr(doctor_environment, "matmul_ceiling", lambda *_: 1e9)
    (finding,) = [f for f in doctor_environment.environment(tiny_config("model.dtype=bfloat16")) if f.check == "device"]
    assert finding.verdict == "warning"
    assert "model.dtype=float32" in finding.do


def test_a_companion_that_does_not_import_is_found(monkeypatch):
    monkeypatch.setattr(doctor_environment, "COMPANIONS", ("json", "no_such_companion"))
    monkeypatch.setattr(doctor_environment, "version", lambda name: "1.0")
    (finding,) = doctor_environment._companions()
    assert finding.found.startswith("no_such_companion:")
    assert "pip uninstall no_such_companion" in finding.do


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_shows_and_exits_as_it_found(nrt, tiny_yaml, tmp_path):
    (tmp_path / "cwd").mkdir(exist_ok=True)
    ended = nrt("doctor", tiny_yaml, "--json")
    record = json.loads(ended.out)
    found = {finding["check"]: finding for finding in record["findings"]}
    assert set(ON_ROWS) <= set(found)
    assert (ended.code == 1) == (record["counts"]["problem"] > 0)
    shown = nrt("doctor", tiny_yaml).out
    assert "the null trace:" in shown
    assert "t_end <|think_end|>" in shown
    bad = nrt("doctor", tiny_yaml, "--data", "nowhere.parquet")
    assert bad.code == 1
    assert "-> name it with --data if it was moved, or make it with `nrt data prepare`." in bad.out


@pytest.mark.slow
def test_a_run_is_examined_by_its_own_config(nrt, shared_run):
    run = shared_run("method=am", "train.steps=1")
    record = json.loads(nrt("doctor", run.path, "--json").out)
    assert "underflow" in {finding["check"] for finding in record["findings"]}
