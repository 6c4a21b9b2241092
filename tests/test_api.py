"""The Python API: few names, typed and documented, and a notebook that uses them on a tiny model."""

import inspect
import json
import sys
import typing

import pytest
from torch import Tensor

import nrt_cli
from nrt_cli import api

NOTEBOOK = """
import json
import nrt_cli as nrt

# %% data and model
manifest = nrt.prepare_data("pairs.jsonl", "data", validation=4)
base = nrt.prepare_model(source, "model", dtype="float32")

# %% is it fit to train?
config = nrt.load_config(
    None,
    "method=am", "rollout.group_size=4", "rollout.max_trace_tokens=6",
    "train.batch_size=4", "train.minibatch_size=null", "train.steps=2", "train.threads=1",
    model={"path": str(base)},
    data={"train": "data/train.parquet", "validation": "data/validation.parquet"},
)
findings = {finding.check: finding for finding in nrt.doctor(config)}

# %% train, go on, look
run = nrt.train(config, "runs/am")
longer = config.train.model_copy(update={"steps": 3})
run = nrt.train(config.model_copy(update={"train": longer}), "runs/am", resume=True)
gains = run.steps.set_index("step")["gain"]
traces = run.traces(step=3)
held_out = run.traces(held_out=True)
listed = nrt.list_runs("runs", method="am")

# %% ask and score
said = nrt.generate("runs/am", "What is 3 plus 4?", max_trace_tokens=4, max_answer_tokens=4)
scored = nrt.score("runs/am", "What is 3 plus 4?", "7", traces=["3 + 4 = 7", "Apples."])

# %% figures and tables
report = nrt.analyze("dynamics", "runs/am", window=2)
report.figures["dynamics"].savefig("dynamics.png")

# %% share
shared = nrt.push("runs/am", out="shared")
again = nrt.generate("shared", "What is 3 plus 4?", max_trace_tokens=4, max_answer_tokens=4)
"""


@pytest.fixture(scope="module")
def cells(tmp_path_factory, make_tiny_source, make_tiny_tokenizer):
    """The notebook's names after all of its cells ran, and the folder it ran in."""
    folder = tmp_path_factory.mktemp("notebook")
    pairs = [{"question": f"What is {i} plus {j}?", "answer": str(i + j)} for i in range(6) for j in range(4)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    names = {"source": str(make_tiny_source(folder / "source", make_tiny_tokenizer()))}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(compile(NOTEBOOK, "notebook", "exec"), names)
        names["folder"] = folder
        yield names


def test_the_notebook_trained_and_went_on(cells):
    counts = cells["manifest"]["counts"]
    assert (counts["train"], counts["validation"]) == (20, 4)
    assert cells["run"].manifest["status"] == "finished"
    assert list(cells["gains"].index) == [1, 2, 3]
    assert cells["gains"].notna().all()
    record = cells["listed"][0]
    assert (record["run"], record["method"], record["step"]) == ("runs/am", "am", 3)
    assert repr(cells["run"]) == "OpenRun('runs/am': am, finished)"


def test_its_frames_hold_what_the_store_holds(cells):
    from nrt_cli.store import Run

    run = Run.open(cells["folder"] / "runs" / "am")
    traces = cells["traces"]
    assert traces["trace"].tolist() == [row["trace"] for row in run.traces("step-000003")]
    assert len(traces) == 4 * 4  # prompts times traces
    assert traces.groupby("example")["advantage"].sum().abs().max() < 1e-5  # Eq. 10 centres each group
    assert cells["held_out"]["reward"].isna().all()
    assert cells["run"].held_out["answer_logprob"].tolist() == [r["answer_logprob"] for r in run.metrics("held_out")]
    assert cells["run"].evaluations.empty


def test_its_scores_are_those_of_the_command(cells):
    """And the schemes follow from c by hand: am is the mean of c, gm the mean of log c, exponentiated."""
    for trace in cells["scored"]["traces"]:
        c = trace["c"]
        assert trace["schemes"]["am"]["reward"] == pytest.approx(sum(c) / len(c))
        assert trace["schemes"]["gm"]["log_reward"] == pytest.approx(sum(trace["logprobs"]) / len(c))
        null = sum(cells["scored"]["null"]["logprobs"])
        assert trace["gain"] == pytest.approx(trace["logprob"] - null)
    assert cells["said"]["trace"] is not None
    assert cells["again"] == cells["said"]


def test_its_doctor_figure_and_model_are_there(cells):
    assert cells["findings"]["positions"].verdict == "ok"
    assert (cells["folder"] / "dynamics.png").read_bytes().startswith(b"\x89PNG")
    assert cells["report"].tables["dynamics"]["step"].tolist() == [1, 2, 3]
    assert (cells["folder"] / "shared" / "README.md").is_file()


# --- names -----------------------------------------------------------------------------------------------------------


def test_there_are_few_names_and_the_package_has_them():
    assert len(api.__all__) <= 18
    assert sorted(api.__all__) == api.__all__
    for name in api.__all__:
        assert getattr(nrt_cli, name) is getattr(api, name)
        assert name in dir(nrt_cli)
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        nrt_cli.trian  # noqa: B018
    with pytest.raises(ImportError):
        exec("from nrt_cli import trian")


@pytest.mark.parametrize("name", api.__all__)
def test_every_name_is_typed_and_documented(name):
    function = getattr(api, name)
    assert function.__doc__
    signature = inspect.signature(function)
    assert isinstance(function, type) or signature.return_annotation is not inspect.Signature.empty
    assert [p.name for p in signature.parameters.values() if p.annotation is inspect.Parameter.empty] == []
    # Every annotation means something.
    from nrt_analysis.document import Analysis
    from nrt_analysis.frames import OpenRun

    from nrt_cli.checks.findings import Finding
    from nrt_cli.config import ObjectiveSection, RunConfig

    known = {kind.__name__: kind for kind in (OpenRun, Analysis, RunConfig, Finding, ObjectiveSection, Tensor)}
    typing.get_type_hints(function, globalns=vars(sys.modules[function.__module__]) | known)


def test_what_a_user_can_fix_is_an_error_with_a_sentence(tmp_path):
    from nrt_cli.errors import ConfigError, StoreError

    with pytest.raises(ConfigError, match=r"did you mean 'rollout\.group_size'"):
        nrt_cli.load_config(None, "rollout.groupsize=4")
    with pytest.raises(StoreError, match="no such run directory"):
        nrt_cli.open_run(tmp_path / "none")
    with pytest.raises(ConfigError, match="choose dynamics, vocab or cases"):
        nrt_cli.analyze("dynamic", tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="name one run"):
        nrt_cli.analyze("vocab")


def test_the_module_says_how_to_use_it():
    """The example at the head of the API parses and names only what there is."""
    example = "\n".join(line[4:] for line in api.__doc__.split("\n") if line.startswith("    "))
    compile(example, "example", "exec")
    import re

    assert set(re.findall(r"nrt\.(\w+)\(", example)) <= set(api.__all__)
    assert "nrt_cli" in sys.modules
