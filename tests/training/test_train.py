"""What a run leaves behind, for every method, and that each setting changes what it should and nothing else."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from nrt_cli import config as configs
from nrt_cli.backends.local.backend import LocalBackend
from nrt_cli.config import parse_override
from nrt_cli.errors import ConfigError
from nrt_cli.files import read_record
from nrt_cli.models.prepare import prepare_model
from nrt_cli.models.sources import model_fingerprint
from nrt_cli.progress import COLUMNS, Progress
from nrt_cli.records import TRACE_COLUMNS, XRAY_COLUMNS, TraceRow
from nrt_cli.store import Run
from nrt_cli.training import start
from nrt_cli.workflows.train import train

SCHEMES = ("logp", "p", "am", "gm", "ws-inv-p", "ws-neg-log-p")
DOCUMENT = (Path(__file__).parents[2] / "nrt_cli" / "store" / "README.md").read_text(encoding="utf-8")


def weights(run, step=None):
    """The weights of a checkpoint, by name."""
    tensors = run.load_checkpoint(step or run.checkpoint_steps()[-1]).tensors
    return {name.removeprefix("weight."): value for name, value in tensors.items() if name.startswith("weight.")}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def am_run(shared_run):
    return shared_run("method=am", "train.trace_groups=2")


@pytest.fixture
def gm_weights(shared_run):
    return weights(shared_run("method=gm", "data.validation=null"))


def test_a_run_leaves_its_config_and_manifest(am_run, tiny_config, tiny_model_dir):
    stored = configs.resolve(configs.read_yaml(am_run.path / "config.yaml"))
    # `auto` is recorded as what it was.
    assert stored == tiny_config("method=am", "train.trace_groups=2", "rollout.engine=native")
    manifest = am_run.manifest()
    assert (manifest["status"], manifest["method"], manifest["steps"]) == ("finished", "am", 3)
    # PyPI names no build of the one for CUDA.
    assert manifest["versions"]["torch"] in (torch.__version__, torch.__version__.partition("+")[0])
    assert manifest["device"]["name"] == "cpu"
    assert manifest["device"]["threads"] == 1
    assert manifest["command"].startswith("nrt")
    assert manifest["fingerprints"].keys() == {"model", "train", "validation"}
    assert manifest["fingerprints"]["model"] == model_fingerprint(tiny_model_dir)
    assert manifest["summary"]["held_out_after"]["step"] == 3
    assert [e["kind"] for e in am_run.events()] == ["started", *["checkpoint"] * 3, "finished"]
    assert not am_run.being_written
    assert not list(am_run.path.rglob("*.tmp"))


def test_a_run_leaves_one_record_per_step_with_everything_that_is_shown(am_run):
    assert [r["step"] for r in am_run.metrics()] == [1, 2, 3]
    assert [r["step"] for r in am_run.metrics("held_out")] == [0, 3]
    for record in am_run.metrics():
        assert COLUMNS.keys() <= record.keys()
        assert all(math.isfinite(value) for key, value in record.items() if key != "kind")
    for line in (am_run.path / "metrics.jsonl").read_text().splitlines():
        json.loads(line)


def test_every_metric_and_column_is_documented(am_run, train_run):
    sft = train_run("method=sft")
    keys = {key for run in (am_run, sft) for kind in ("train", "held_out") for r in run.metrics(kind) for key in r}
    assert not [key for key in keys - {"kind", "step"} if f"| `{key}`" not in DOCUMENT]
    for name, column in (*TRACE_COLUMNS.items(), *XRAY_COLUMNS.items()):
        row = f"| `{name}` | {column.unit} | {column.what} |".replace("y*", r"y\*")
        assert row in DOCUMENT, f"put this line there: {row}"
    for run, marked in ((am_run, False), (sft, True)):
        train_keys = {key for record in run.metrics() for key in record} - {"kind", "step"}
        for key in train_keys if marked else ():
            assert f"| `{key}` S |" in DOCUMENT


def test_traces_are_stored_as_they_were_trained_on(am_run, tiny_model_dir):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    assert am_run.trace_names() == ["held-out-000000", "held-out-000003", *(f"step-00000{s}" for s in (1, 2, 3))]
    rows = am_run.traces("step-000002")
    assert len(rows) == 2 * 4  # groups kept x K
    assert [row["k"] for row in rows] == [0, 1, 2, 3] * 2
    for row in rows:
        assert row.keys() == TRACE_COLUMNS.keys()
        for name in ("prompt", "trace", "answer"):
            assert tokenizer.decode(row[f"{name}_ids"]) == row[name]
        assert row["answer_ids"][-1] == tokenizer.eos_token_id
        positions, answer = len(row["trace_ids"]) + 1, len(row["answer_ids"])
        assert [len(row[c]) for c in ("sampled", "trace_logprobs", "trace_entropies")] == [positions] * 3
        assert [len(row[c]) for c in ("answer_logprobs", "null_logprobs", "token_signals")] == [answer] * 3
        assert row["sampled"] == [True] * (positions - 1) + [row["stop"] == "end"]
        assert len(row["sampler_logprobs"]) == sum(row["sampled"])
        assert row["sampler_logprobs"] == pytest.approx(row["trace_logprobs"][: sum(row["sampled"])], abs=1e-5)
        assert row["gain"] == pytest.approx(sum(row["answer_logprobs"]) - sum(row["null_logprobs"]), abs=1e-5)
        # am: the mean of c
        assert row["reward"] == pytest.approx(sum(math.exp(c) for c in row["answer_logprobs"]) / answer, rel=1e-5)
        assert row["token_signals"] == pytest.approx([math.exp(c) / answer for c in row["answer_logprobs"]], rel=1e-5)
    for group in (rows[:4], rows[4:]):
        # Eq. 9 and 10 by hand, from the stored rewards.
        clipped = [max(0.0, row["reward_scaled"] - row["reward_base_scaled"]) for row in group]
        mean = sum(clipped) / 4
        std = math.sqrt(sum((c - mean) ** 2 for c in clipped) / 4)
        assert group[0]["dead_group"] == (std <= 1e-6)
        want = [(c - mean) / std if std > 1e-6 else 0.0 for c in clipped]
        assert [row["advantage"] for row in group] == pytest.approx(want, abs=1e-6)


def test_trace_files_have_one_schema(am_run, tmp_path):
    files = [pq.read_schema(am_run.path / "traces" / f"{name}.parquet") for name in am_run.trace_names()]
    assert all(schema.equals(files[0]) for schema in files)
    held_out = am_run.traces("held-out-000003")
    assert len(held_out) == 8
    assert {row["advantage"] for row in held_out} == {None}
    # Rows without a single trace token have the same types.
    other = Run.create(tmp_path / "other", "", {"status": "created"})
    other.write_traces("empty", [TraceRow(step=1, trace_ids=[], sampled=[False])])
    assert pq.read_schema(other.path / "traces" / "empty.parquet").equals(files[0])


def test_held_out_rows_add_up_to_the_record(shared_run):
    for method, kinds in (("am", ("thinking", "null", "direct", "other_trace")), ("sft", ("direct",))):
        run = shared_run(f"method={method}", "train.validate_every=1")
        assert [name for name in run.trace_names() if name.startswith("held-out")] == (
            [] if method == "sft" else [f"held-out-{step:06d}" for step in range(4)]
        )
        for record in run.metrics("held_out"):
            rows = run.held_out_rows(record["step"])
            assert [row["grader"] for row in rows] == ["number"] * record["examples"]
            assert [len(row["answer_logprobs"]) for row in rows] == [len(row["answer_ids"]) for row in rows]
            assert sum(sum(row["answer_logprobs"]) for row in rows) / len(rows) == record["answer_logprob"]
            if method == "am":
                assert sum(sum(row["null_logprobs"]) for row in rows) / len(rows) == record["null_logprob"]
            ends = record["step"] in (0, 3)
            for kind in ("thinking", "null", "direct", "other_trace"):
                measured = kind in kinds if ends or method == "sft" else kind == "thinking"
                assert (f"accuracy_{kind}" in record) == measured
                scores = [row[f"{kind}_score"] for row in rows]
                assert (sum(scores) / len(rows) == record[f"accuracy_{kind}"]) if measured else scores[0] is None
                assert measured == all(isinstance(row[f"{kind}_reply"], str) for row in rows)
            assert record["graded"] == record["examples"]


def test_accuracies_change_nothing_that_is_learned(shared_run, train_run):
    import nrt_cli.training.start as start_room

    graded = shared_run("method=am", "train.validate_every=1")
    with pytest.MonkeyPatch.context() as patch:
        kept = start_room.graded_pairs
        patch.setattr(start_room, "graded_pairs", lambda *a: [replace(pair, grader="none") for pair in kept(*a)])
        ungraded = train_run("method=am", "train.validate_every=1")
    assert "graded" not in ungraded.metrics("held_out")[0]
    assert same(weights(graded), weights(ungraded))


def test_a_backend_that_answers_no_questions_trains_all_the_same(train_run, monkeypatch):
    monkeypatch.setattr(LocalBackend, "reasoner", lambda self: None)
    records = train_run("method=am", "train.steps=1").metrics("held_out")
    assert [record["step"] for record in records] == [0, 1]
    assert all(math.isfinite(record["answer_logprob"]) for record in records)
    assert not any(key.startswith("accuracy") for record in records for key in record)


@pytest.mark.parametrize("method", ["sft", *SCHEMES])
def test_every_method_trains_and_exports(method, train_run, tiny_model_dir):
    run = train_run(f"method={method}", "train.keep_checkpoints=2")
    assert run.checkpoint_steps() == [2, 3]
    assert len(run.metrics()) == 3
    direct = [name for name in run.trace_names() if name.startswith("direct-")]
    assert direct == (run.trace_names() if method == "sft" else [])
    trained = weights(run)
    exported = AutoModelForCausalLM.from_pretrained(run.export_path).state_dict()
    assert all(torch.equal(exported[name], value) for name, value in trained.items())
    before = load_file(tiny_model_dir / "model.safetensors")
    assert not same(before, trained)
    tokenizer = AutoTokenizer.from_pretrained(run.export_path)
    assert tokenizer.encode("<|think_end|>", add_special_tokens=False) != [tokenizer.unk_token_id]
    about = read_record(run.export_path / "nrt.json")
    assert about["training"] | {"method": method, "thinks": method != "sft"} == about["training"]
    assert "fingerprint" not in about  # it is not what was prepared any more


def test_a_users_own_scheme_trains(train_run, tmp_path, monkeypatch):
    (tmp_path / "mine_for_train.py").write_text("def worst(logprobs_KT, base_T):\n    return logprobs_KT.amin(-1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    run = train_run("method=mine_for_train:worst")
    assert len(run.metrics()) == 3
    row = run.traces("step-000001")[0]
    assert row["reward"] == pytest.approx(min(row["answer_logprobs"]))
    assert sum(signal != 0 for signal in row["token_signals"]) == 1


def test_the_reference_preset_trains_on_a_model_prepared_for_it(train_run, make_tiny_source, tiny_tokenizer, tmp_path):
    source = make_tiny_source(tmp_path / "source", tiny_tokenizer)
    prepare_model(str(source), tmp_path / "prepared", None, "<|response_start|>", dtype="float32")
    preset = configs.read_yaml(configs.configs_dir() / "presets" / "reference.yaml")
    run = train_run(f"model.path={tmp_path / 'prepared'}", "method=gm", *settings(preset), "optimiser.lr=1e-3")
    assert configs.resolve(configs.read_yaml(run.config_path)).tokens.think_start is None
    row = run.traces("step-000001")[0]
    assert set(row["token_signals"]) != {1.0}  # what the scheme says; the loss uses 1
    assert len(run.metrics()) == 3
    assert run.metrics()[0]["kind"] == "train"


def settings(values):
    """Nested values as `key=value`."""
    return [f"{key}={json.dumps(value)}" for key, value in configs.flatten(values).items()]


def test_the_second_minibatch_is_off_policy(train_run):
    whole = train_run("method=gm", "optimiser.lr=1e-2")
    halves = train_run("method=gm", "optimiser.lr=1e-2", "train.minibatch_size=2", "objective.clip_low=0.001")
    assert not same(weights(whole), weights(halves))
    assert whole.metrics()[0]["ratio_clipped"] == 0
    assert halves.metrics()[0]["ratio_clipped"] > 0
    assert halves.load_checkpoint(3).state["updates"] == 6
    # pi_old is scored before the first update, so that the sampler agrees with it on every row.
    assert halves.metrics()[2]["sampler_gap_max"] < 1e-4


@pytest.mark.parametrize(
    "setting",
    [
        "objective.kl_weight=5",
        "objective.entropy_weight=0.5",
        "objective.weights.format=0",
        "objective.weights.answer=0.1",
        "objective.advantage=raw",
        "objective.tis_cap=0.5",
        "rollout.temperature=0.7",
        "optimiser.lr=2e-3",
        "optimiser.schedule=cosine",
        "seed=1",
    ],
)
def test_a_setting_has_an_effect(setting, train_run, gm_weights):
    assert not same(gm_weights, weights(train_run("method=gm", "data.validation=null", setting)))


@pytest.mark.parametrize(
    "setting", ["train.micro_batch_tokens=60", "rollout.batch_rows=4", "objective.tis_cap=10", "train.trace_groups=0"]
)
def test_a_setting_that_only_costs_or_stores_less_changes_no_result(setting, train_run, gm_weights):
    other = weights(train_run("method=gm", "data.validation=null", setting))
    for name, value in gm_weights.items():
        # Where a gradient is all but 0, rounding is a share of Adam's step, which is 1e-3 whatever the gradient.
        torch.testing.assert_close(value, other[name], rtol=1e-4, atol=5e-5)


def test_gradient_checkpointing_gives_the_same_weights(train_run, gm_weights):
    recomputed = train_run("method=gm", "data.validation=null", "model.gradient_checkpointing=true")
    assert same(gm_weights, weights(recomputed))


def test_kl_is_measured_against_the_starting_model(train_run):
    metrics = train_run("method=gm", "objective.kl_weight=0.1").metrics()
    assert metrics[0]["kl"] == pytest.approx(0, abs=1e-9)
    assert metrics[2]["kl"] > 1e-7


def test_bfloat16_trains_with_float32_masters(train_run):
    run = train_run("method=gm", "model.dtype=bfloat16", "optimiser.lr=1e-4")
    masters = weights(run)
    assert {value.dtype for value in masters.values()} == {torch.float32}
    exported = AutoModelForCausalLM.from_pretrained(run.export_path).state_dict()
    for name, master in masters.items():
        assert exported[name].dtype == torch.bfloat16
        assert torch.equal(exported[name], master.bfloat16())
        assert not torch.equal(master, master.bfloat16().float())  # the masters hold what bfloat16 cannot


def test_two_runs_of_one_seed_are_the_same(train_run, untimed):
    a, b = train_run("method=gm"), train_run("method=gm")
    assert untimed(a) == untimed(b)
    assert same(weights(a), weights(b))


def test_what_was_not_measured_is_null_in_the_file_and_nan_for_readers(tmp_path):
    run = Run.create(tmp_path / "run", "", {"status": "created"})
    run.append_metrics({"kind": "train", "step": 1, "gain": math.nan})
    assert (run.path / "metrics.jsonl").read_text().startswith('{"kind": "train", "step": 1, "gain": null, ')
    assert math.isnan(run.metrics()[0]["gain"])


def test_a_profile_shows_where_a_step_went(tiny_config, tmp_path):
    train(tmp_path / "run", tiny_config("method=am", "train.steps=2"), False, Progress, profile=True)
    (folder,) = (tmp_path / "run" / "profiles").iterdir()
    assert folder.name == "step-000002"
    table = (folder / "table.txt").read_text()
    assert "aten::mm" in table or "aten::addmm" in table
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    assert any(event.get("name") == "_SelectedLogprobs" for event in events)
    assert len(list(Run.open(tmp_path / "run").metrics())) == 2


def test_a_run_older_than_a_key_goes_on_as_it_began(tiny_config, tmp_path):
    """Under a recipe whose preset has decided something since, such as a study's, with nothing else changed."""
    planned = tiny_config()
    assert planned.rollout.max_response_tokens == 4096
    without = re.sub(r"\n *max_response_tokens: .*", "", configs.to_yaml(planned))
    run = Run.create(tmp_path / "run", without, {"method": planned.method})
    resumed = start.resumed_config(run, planned, ())
    assert resumed.rollout.max_response_tokens is None
    with pytest.raises(ConfigError, match=r"optimiser\.lr"):
        start.resumed_config(run, tiny_config("optimiser.lr=1e-4"), ())


LORA, REFERENCE, CONSTANT = "model.lora.rank=2", "preset=reference", "optimiser.schedule=constant"
TOKENS = ("tokens.think_start=<|think_start|>", "tokens.think_end=<|think_end|>")


@pytest.mark.parametrize(
    "settings",
    [
        *((f"optimiser.states={states}", *lora) for states in ("float32", "cpu", "8bit") for lora in ((), (LORA,))),
        ("engine.packing=off",),
        ("engine.packing=off", "train.micro_batch_tokens=64"),
        ("model.gradient_checkpointing=true",),
        ("model.dtype=bfloat16",),
        ("model.dtype=bfloat16", LORA, "optimiser.states=cpu", "model.gradient_checkpointing=true"),
        ("objective.kl_weight=0.1", "objective.entropy_weight=0.1", "train.minibatch_size=1"),
        (REFERENCE, *TOKENS, CONSTANT, "optimiser.warmup=0", "train.minibatch_size=1", "rollout.batch_rows=3"),
        ("method=sft", LORA, "model.dtype=bfloat16"),
    ],
    ids=" ".join,
)
def test_every_kind_of_weights_states_and_passes_resumes_exactly(settings, tiny_config, tmp_path, untimed):
    if "optimiser.states=8bit" in settings or LORA in settings:
        pytest.importorskip("peft", reason="the lora extra is not installed")
    settings = ("method=am", "train.batch_size=2", *settings)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(whole, tiny_config(*settings, "train.steps=2"), False, Progress)
    train(parts, tiny_config(*settings, "train.steps=1"), False, Progress)
    train(parts, None, True, Progress, [parse_override("train.steps=2")])
    runs = [Run.open(path) for path in (whole, parts)]
    assert untimed(runs[0], "train") == untimed(runs[1], "train")
    first, second = (run.load_checkpoint(2).tensors for run in runs)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    saved = [load_file(run.export_path / "model.safetensors") for run in runs]
    assert saved[0].keys() == load_file(tiny_config().model.path + "/model.safetensors").keys()
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])
