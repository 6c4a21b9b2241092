"""`nrt doctor`: quiet where all is well, and each fault that is planted is found with what to do about it."""

import copy
import dataclasses
import json
import math
import shutil
from types import SimpleNamespace

import psutil
import pytest
import torch
from packaging.requirements import Requirement

from nrt_cli.backends.local.policy import Policy
from nrt_cli.backends.samplers import NativeSampler
from nrt_cli.checks import doctor, trial
from nrt_cli.checks.doctor import diagnose
from nrt_cli.checks.estimate import PAPER_LENGTHS, plan, refined
from nrt_cli.checks.findings import Checks, Finding, of_error, ok, warning
from nrt_cli.checks.trial import Pass, Trial, peak_memory
from nrt_cli.data.prepare import Settings, prepare
from nrt_cli.errors import NrtError
from nrt_cli.objective.rows import Layout, trace_prompt
from nrt_cli.records import Gpu, ModelShape

SAMPLED = ["accuracy", "how traces end", "right traces", "answer's habit", "signal"]
ON_ROWS = [
    "positions",
    "fused against plain log-probs",
    "rollout against trainer log-probs",
    "underflow",
    "one group by hand",
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
    monkeypatch.setattr(doctor.ENVIRONMENT, "looks", {})
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
    assert [f for f in findings.values() if f.verdict == "problem"] == []


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


@pytest.mark.parametrize("method", ["am", "latro", "nover", "verifree", "rlpr"])
def test_one_group_can_be_made_again_by_hand(method, found):
    """Each number of the table from those before it, in plain floats."""
    finding = found(f"method={method}", "rollout.group_size=4")["one group by hand"]
    *rows, null = finding.details["group"]
    column = lambda name: [row[name] for row in rows]  # noqa: E731
    rewards, shaped = column("R"), column("R'")
    if method == "am":
        assert shaped == pytest.approx([max(0.0, r - null["R"]) for r in rewards])
    else:
        assert shaped == pytest.approx(rewards)
    if method == "latro":
        drift = column("drift")
        assert rewards == pytest.approx([p - 0.05 * d for p, d in zip(column("log P(y*)"), drift, strict=True)])
        assert null["R"] == pytest.approx(null["log P(y*)"])
        assert any(drift)
    if method == "verifree":
        assert rewards == pytest.approx([math.exp(p) for p in column("log P(y*)")])
        assert column("weights") == [pytest.approx([r] * len(rows[0]["weights"])) for r in rewards]
    mean = sum(shaped) / len(shaped)
    centred = [r - mean for r in shaped]
    spread = sum(c * c for c in centred)
    how = {"am": math.sqrt(spread / 4), "rlpr": math.sqrt(spread / 3), "nover": 1.0}.get(method, 3 / 4)
    want = [c / how if how else 0.0 for c in centred]
    assert column("A") == pytest.approx(want, rel=1e-4, abs=1e-9) or not any(column("A"))
    assert set(finding.details["columns"]) == {*rows[0]}


@pytest.mark.parametrize("method", ["latro", "nover"])
def test_positions_of_methods_that_need_more_are_looked_at(method, found):
    assert found(f"method={method}", "objective.credit_eos=true")["positions"].verdict == "ok"


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

    def stuck(self):
        first.setdefault(id(self), told(self))
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
    monkeypatch.setattr(trial.psutil, "virtual_memory", lambda: SimpleNamespace(available=-1e12, total=1e12))
    finding = found("method=am")["memory"]
    assert finding.verdict == "warning"
    assert "train.micro_batch_tokens" in finding.do


def measured(config, passes, groups=(), **metrics):
    """A trial whose steps are made up: of 100 examples of at most 30 tokens, one of two questions was tried."""
    inputs = SimpleNamespace(train=SimpleNamespace(longest=30, longest_with=lambda cap: 30 + cap(10)))
    weights = [torch.zeros(1000)]
    backend = SimpleNamespace(
        policy=SimpleNamespace(device=torch.device("cpu"), model=SimpleNamespace(parameters=lambda: weights)),
        optimiser=SimpleNamespace(
            state=lambda: {"weight": weights[0], "exp_avg": weights[0], "exp_avg_sq": weights[0]}
        ),
    )
    return Trial(
        config, SimpleNamespace(backend=backend), inputs, [None, None], passes, groups, SimpleNamespace(metrics=metrics)
    )


def test_memory_is_foreseen_by_a_line_through_two_steps(tiny_config, monkeypatch):
    """1.0 GB at 100 tokens and 1.5 GB at 200 make 2.5 GB at 400, which wants a ninth more of room."""
    passes = [Pass(100, 1.0e9, 0.0), Pass(200, 1.5e9, 0.0)]
    made = measured(tiny_config("train.micro_batch_tokens=400", "train.batch_size=100"), passes, seconds_update=1.0)
    made.plan = refined(planned(made.config), made.config, made)
    for room, verdict in ((2.9e9, "ok"), (2.7e9, "warning")):
        monkeypatch.setattr(trial.psutil, "virtual_memory", lambda room=room: SimpleNamespace(available=room))
        finding = trial.memory(made)
        assert (finding.details["predicted"], finding.details["at_tokens"]) == (2.5e9, 400)
        assert finding.verdict == verdict


def test_a_measured_step_takes_the_place_of_arithmetic(tiny_config):
    """Two questions with two traces of 3 tokens took 1 s to sample and 2 s to update, at 10 ms a token."""
    config = tiny_config("method=am", "train.steps=5", "train.keep_checkpoints=1", "train.batch_size=4")
    groups = [SimpleNamespace(rollouts=[None, None])] * 2
    metrics = {"seconds_update": 2.0, "seconds_rollout": 1.0, "tokens": 200.0, "trace_length": 3.0}
    made = measured(config, [Pass(100, 1e9, 0.0)], groups, **metrics)
    # At most 4096 tokens a pass; 4 questions of 5 rows (4 traces, one null) of 30 + 6 tokens.
    assert made.largest_pass == 4 * 5 * 36
    found = refined(planned(config), config, made)
    assert found.seconds == 2 * 2 * (2.0 + 1.0)  # twice the questions, twice the traces
    # Three more tokens for each of 16 traces, and sampling that takes twice as long.
    assert found.gpu_hours_most == pytest.approx(5 * (12 + 16 * 3 * 0.01 + 4.0) / 3600)
    assert found.memory_peak == 1e9  # one step tells nothing of what more tokens cost
    # Weights and two moments in float32; one is kept, one more is being written, and the model is the last one's.
    assert (found.disk, found.disk_kept) == (2 * 12_000, 12_000)
    assert found.assumptions == ("from 2 questions with 2 traces of 3 tokens", "without held-out scores")
    assert (found.steps, found.model) == (5, planned(config).model)


def planned(config):
    return plan(
        config, ModelShape("small", 1000, 2, 8, 16, 2, 1, 4, 10, tied=True), 40, PAPER_LENGTHS, Gpu("none", 1e9)
    )


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
    shutil.copytree(tiny_model_dir, model, ignore=shutil.ignore_patterns("nrt.json"))  # which would not fit any more
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


def test_a_check_is_a_function_of_its_subject():
    """Named where it is registered; one that fails never stops the next, and one that does not apply is not asked."""
    numbers = Checks()

    @numbers.check("halves")
    def halves(number):
        return [ok(f"{number} is even")] if number % 2 == 0 else [warning(f"{number} is odd", "double it.")]

    @numbers.check("inverse")
    def inverse(number):
        return ok(f"{1 / number}")

    @numbers.check("root", when=lambda number: number >= 0)
    def root(number):
        return ok(f"{number**0.5}")

    assert [(f.check, f.verdict, f.text) for f in numbers.findings(0)] == [
        ("halves", "ok", "0 is even"),
        ("inverse", "problem", f"ZeroDivisionError: division by zero; {of_error('', ValueError()).do}"),
        ("root", "ok", "0.0"),
    ]
    assert [(f.check, f.text) for f in numbers.findings(-1)] == [
        ("halves", "-1 is odd; double it."),
        ("inverse", "-1.0"),
    ]
    (failed,) = numbers.of("a number", lambda: int("none"))
    assert (failed.check, failed.verdict) == ("a number", "problem")
    assert Finding("x", "skipped", "not there", "make it.").text == "not there"
    assert of_error("x", NrtError("it is full; free some.")).text == "it is full; free some."
    assert of_error("x", NrtError("it is full.")).text == "it is full."


# --- the environment -------------------------------------------------------------------------------------------------


def test_a_package_out_of_range_and_a_needed_extra_are_found(tiny_config, monkeypatch):
    right = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: {"numpy": "1.0", "peft": None}.get(name, right(name)))
    needs = {"": [Requirement("numpy>=1.26")], "lora": [Requirement("peft>=0.18"), Requirement("bitsandbytes>=0.1")]}
    monkeypatch.setattr(doctor, "required", lambda extra="": needs.get(extra, []))
    findings = [doctor.packages(None), *doctor.extras(tiny_config("model.lora.rank=4"))]
    package, extra = findings
    assert (package.verdict, extra.verdict) == ("problem", "problem")
    assert "numpy 1.0 is not >=1.26" in package.found
    assert "peft is missing" in extra.found
    assert "'nrt-cli[lora]'" in extra.do


def test_an_emulated_type_is_advised_against(tiny_config, monkeypatch):
    monkeypatch.setattr(doctor, "native_bfloat16", lambda device: False)
    monkeypatch.setattr(doctor, "matmul_ceiling", lambda *_: 1e9)
    finding = doctor.device(tiny_config("model.dtype=bfloat16"))
    assert finding.verdict == "warning"
    assert "model.dtype=float32" in finding.do


def test_a_companion_that_does_not_import_is_found(monkeypatch):
    monkeypatch.setattr(doctor, "COMPANIONS", ("json", "no_such_companion"))
    monkeypatch.setattr(doctor, "version", lambda name: "1.0")
    (finding,) = doctor.companions(None)
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
