"""The config: merge order, refusals and what each refusal says."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from typer.testing import CliRunner

from nrt_cli import config
from nrt_cli.backends import BACKENDS
from nrt_cli.commands.config import app
from nrt_cli.config import explain as config_explain
from nrt_cli.config import validation
from nrt_cli.config.explain import commented, explain
from nrt_cli.config.study import StudyConfig, StudyQuestion, Variant
from nrt_cli.errors import ConfigError
from nrt_cli.methods import METHODS
from nrt_cli.workflows.speedrun import Entry, Score

ROOT = Path(__file__).parent.parent
PRESETS = ("as-run", "nrt", "paper", "reference")
NRT, PAPER, REFERENCE = (config.resolve({"preset": name}) for name in ("nrt", "paper", "reference"))


def refusal(*overrides: str) -> str:
    """What a user reads when `--set` overrides are refused."""
    with pytest.raises(ConfigError) as caught:
        config.load(None, overrides)
    return str(caught.value)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "train").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_training_config_is_valid(path: Path) -> None:
    assert config.load(f"train/{path.stem}") == config.load(str(path))


# --- methods -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("JLB", "logp"),
        ("VeriFree", "verifree"),
        ("VeriFree (paper's version)", "p"),
        ("RLPR", "rlpr"),
        ("RLPR (paper's version)", "am"),
        ("NRT-GM", "gm"),
        ("NRT-WS (1/p)", "ws-inv-p"),
        ("NRT-WS (-log p)", "ws-neg-log-p"),
        ("NRT-WS", "ws-neg-log-p"),
        ("SFT", "sft"),
        ("AM", "am"),
        ("my_module:reward", "my_module:reward"),
    ],
)
def test_paper_names_and_user_schemes_are_methods(name: str, method: str) -> None:
    assert config.resolve({"method": name}).method == method


# --- merging and --set -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optimiser.lr=1e-5", {"optimiser": {"lr": 1e-5}}),
        ("optimiser.lr=2.5E-6", {"optimiser": {"lr": 2.5e-6}}),
        ("train.steps=30", {"train": {"steps": 30}}),
        ("data.validation=null", {"data": {"validation": None}}),
        ("optimiser.betas=[9e-1, 0.95]", {"optimiser": {"betas": [0.9, 0.95]}}),
        ("track.to=[wandb]", {"track": {"to": ["wandb"]}}),
        ("model.gradient_checkpointing=true", {"model": {"gradient_checkpointing": True}}),
        ("data.train=a=b.parquet", {"data": {"train": "a=b.parquet"}}),
        (" method = p", {"method": "p"}),
        ("method=module:function", {"method": "module:function"}),
    ],
)
def test_override_values_mean_what_they_look_like(text: str, expected: dict[str, Any]) -> None:
    assert config.parse_override(text) == expected


def test_later_layers_win_and_neighbours_survive(tmp_path: Path) -> None:
    """Schema < preset < file < --set < flags; a key that a layer does not name keeps its value."""
    path = tmp_path / "run.yaml"
    path.write_text("preset: reference\nrollout: {group_size: 4, temperature: 0.7}\nseed: 1\n")
    loaded = config.load(str(path), ["rollout.temperature=0.9", "seed=2"], seed=3, method=None)
    assert (loaded.rollout.group_size, loaded.rollout.temperature, loaded.seed) == (4, 0.9, 3)
    assert (loaded.optimiser.lr, loaded.rollout.max_trace_tokens) == (2e-6, 2048)
    assert loaded.method == "ws-neg-log-p"


@pytest.mark.parametrize("value", [7, "x", [1], False])
def test_a_key_that_is_set_and_has_keys_below_it_is_refused(value: Any) -> None:
    """The keys below would else take the place of the whole section that was there before."""
    with pytest.raises(ConfigError, match=r"optimiser: is set to .*, and so is optimiser\.lr below it; leave .* out"):
        config.merge({"optimiser": {"betas": [0.9, 0.95]}}, {"optimiser": value}, {"optimiser": {"lr": 1e-3}})
    assert config.merge({"optimiser": None}, {"optimiser": {"lr": 1e-3}}) == {"optimiser": {"lr": 1e-3}}


def test_merge_changes_neither_side() -> None:
    base, over = {"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}
    assert config.merge(base, over) == {"a": {"b": 3, "c": 2}}
    assert (base, over) == ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})


@given(
    st.sampled_from(["nrt", "paper", "reference"]),
    st.floats(1e-12, 1.0),
    st.integers(2, 64),
    st.one_of(st.none(), st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)),
)
def test_saved_yaml_reads_back_as_the_same_config(preset: str, lr: float, group_size: int, path: str | None) -> None:
    asked = {"preset": preset, "optimiser": {"lr": lr}, "rollout": {"group_size": group_size}}
    resolved = config.resolve(asked, {"data": {"validation": path}})
    for text in (config.to_yaml(resolved), commented(resolved)):
        assert config.resolve(yaml.safe_load(text)) == resolved


# --- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "unknown", "nearest"),
    [
        ("rollout.group_sise=4", "rollout.group_sise", "rollout.group_size"),
        ("group_size=4", "group_size", "rollout.group_size"),
        ("objective.group_size=4", "objective.group_size", "rollout.group_size"),
        ("lr=1e-5", "lr", "optimiser.lr"),
        ("optimizer.lr=1e-5", "optimizer", "optimiser"),
        ("weights.format=1", "weights", "objective.weights"),
        ("objective.weights.formt=1", "objective.weights.formt", "objective.weights.format"),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest_full_key(override: str, unknown: str, nearest: str) -> None:
    assert refusal(override) == f"--set: unknown key {unknown!r} (did you mean {nearest!r}?)."


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["method=ws-neg-log"], "method 'ws-neg-log' is unknown (did you mean 'ws-neg-log-p'?); choose one of sft, "),
        (
            ["rollout.group_size=1"],
            "rollout.group_size=1 leaves objective.advantage=std nothing to compare a trace with",
        ),
        (["train.minibatch_size=512"], "train.minibatch_size=512 is larger than train.batch_size=256; lower it"),
        (["train.minibatch_size=100"], "train.batch_size=256 is not a multiple of train.minibatch_size=100"),
        (["method=gm", "objective.weight_cap=10"], "objective.weight_cap has no effect on method 'gm', which does not"),
        (["tokens.think_end=<|think_start|>"], "tokens.think_start and tokens.think_end must differ"),
        (
            ["objective.weights={trace: 0, answer: 0, format: 0}"],
            "all three objective.weights are 0, so nothing would be learned",
        ),
        (
            ["method=control", "objective.weights={answer: 0, format: 0}"],
            "all three objective.weights are 0 (that of traces by method 'control'), so nothing would be learned",
        ),
        (
            ["method=control", "objective.weights.trace=0.5"],
            "objective.weights.trace has no effect on method 'control'",
        ),
        (["data.traces=true"], "data.traces has no effect on method 'ws-neg-log-p', which samples traces of its own"),
        (["method=sft", "data.traces=true", "engine.name=verl"], "data.traces is not on engine.name=verl"),
        (["method=gm", "objective.weighted_sum=mean"], "objective.weighted_sum has no effect on method 'gm'"),
        (["method=sft", "rollout.group_size=1"], "rollout.group_size has no effect on method 'sft', which samples no"),
        (["method=sft", "objective.ratio=cispo"], "objective.ratio has no effect on method 'sft', which samples no"),
        (
            ["objective={advantage: mean}", "objective.std_floor=0"],
            "objective.std_floor has no effect with objective.adv",
        ),
        (
            ["objective.ratio=sequence", "objective.clip_low=0"],
            "objective.clip_low has no effect with objective.ratio=",
        ),
        (["model.lora.alpha=8"], "model.lora.alpha has no effect without model.lora.rank; remove it"),
        (["train.steps=9", "train.epochs=2"], "train.epochs has no effect beside train.steps; remove it"),
        (["train.validate_every=2"], "train.validate_every has no effect without data.validation; remove it"),
        (["method=sft", "objective.kl_weight=0.1"], "objective.kl_weight has no effect on method 'sft', which samples"),
        (["method=sft", "objective.tis_cap=2"], "objective.tis_cap has no effect on method 'sft', which samples"),
    ],
)
def test_contradictions_are_refused_with_their_reason(overrides: list[str], sentence: str) -> None:
    assert refusal(*overrides).removeprefix("config: ").removeprefix("--set: ").startswith(sentence)


@pytest.mark.parametrize(
    "overrides",
    [
        ["rollout.group_size=1", "objective.advantage=raw"],
        ["train.batch_size=8", "train.minibatch_size=null"],
        ["objective.weight_cap=10"],
        ["model.lora={rank: 4, alpha: 8}"],
        ["data.train=generated:sums", "train.validation_size=8"],  # a share of which is held out
        ["objective.weights.trace=0"],
        ["tokens.think_start=null"],
    ],
)
def test_what_only_looks_contradictory_is_accepted(overrides: list[str]) -> None:
    config.load(None, overrides)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.steps=0", "train.steps=0: Input should be greater than or equal to 1."),
        ("rollout.temperature=0", "rollout.temperature=0: Input should be greater than 0."),
        ("optimiser.lr=.INF", "optimiser.lr=inf: Input should be a finite number."),
        ("optimiser.lr=1e400", "optimiser.lr=inf: Input should be a finite number."),
        ("objective.weights.trace=.nan", "objective.weights.trace=nan: Input should be a finite number."),
        ("optimiser.betas=[0.9, 1.5]", "optimiser.betas=1.5: Input should be less than 1."),
        (
            "objective.length_divisor=0",
            "objective.length_divisor=0: Input should be 'cap'; or Input should be greater ",
        ),
        ("objective.ratio=grpo", "objective.ratio='grpo': Input should be 'ppo', 'cispo' or 'sequence'."),
        ("track.to=[visdom]", "track.to='visdom': Input should be 'tensorboard', 'wandb', 'mlflow' or 'trackio'."),
        ("preset=mine", "preset 'mine' is unknown; choose one of as-run, nrt, paper, reference."),
        ("rollout=5", "rollout=5: a mapping of keys to values is needed."),
        ("tokens.think_end=''", "tokens.think_end='': String should have at least 1 character."),
    ],
)
def test_bad_values_are_named_with_what_is_accepted(override: str, sentence: str) -> None:
    assert refusal(override).startswith(f"--set: {sentence}")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.steps=true", "train.steps=true: a whole number is needed."),
        ("seed=010", "seed='010': a whole number is needed, so write 10."),
        ("seed=00", "seed='00': a whole number is needed, so write 0."),
        ("seed=1_000", "seed='1_000': a whole number is needed, so write 1000."),
        ("seed=0b11", "seed='0b11': a whole number is needed."),
        ("seed=12:30", "seed='12:30': a whole number is needed."),
        ("seed=2026-01-01", "seed='2026-01-01': a whole number is needed."),
        ("seed='7'", "seed='7': a whole number is needed, so write 7."),
        ("seed=8.0", "seed=8.0: a whole number is needed, so write 8."),
        ("seed=1e3", "seed=1000.0: a whole number is needed, so write 1000."),
        ("seed=8.5", "seed=8.5: a whole number is needed."),
        ("seed=null", "seed=null: a whole number is needed."),
        ("seed=99999999999999999999", "seed=99999999999999999999: Input should be less than 9223372036854775808."),
        ("train.steps=yes", "train.steps='yes': a whole number is needed."),
        ("optimiser.lr=true", "optimiser.lr=true: a number is needed."),
        ("optimiser.lr='1e-5'", "optimiser.lr='1e-5': a number is needed, so write 1e-5."),
        ("optimiser.lr=01.5", "optimiser.lr='01.5': a number is needed, so write 1.5."),
        ("optimiser.lr=0,5", "optimiser.lr='0,5': a number is needed."),
        ("optimiser.lr=inf", "optimiser.lr='inf': a number is needed."),
        ("optimiser.betas=[0.9, true]", "optimiser.betas=true: a number is needed."),
        ("objective.length_divisor=true", "objective.length_divisor=true: Input should be 'cap'; or a whole number is"),
        ("model.gradient_checkpointing=yes", "model.gradient_checkpointing='yes': true or false is needed, so write t"),
        ("model.gradient_checkpointing=Off", "model.gradient_checkpointing='Off': true or false is needed, so write f"),
        ("model.gradient_checkpointing=1", "model.gradient_checkpointing=1: true or false is needed."),
        ("engine.packing=false", "engine.packing=false: Input should be 'auto' or 'off'."),
        ("track.to=wandb", "track.to='wandb': a list is needed, so write [wandb]."),
        ("track.project=12", "track.project=12: a text is needed, so write --set 'track.project=\"12\"'."),
        ("track.project=true", "track.project=true: a text is needed, so write --set 'track.project=\"true\"'."),
        ("judge.prices={a: [1, true]}", "judge.prices=true: a number is needed."),
        ("preset=true", "preset True is unknown; choose one of as-run, nrt, paper, reference."),
    ],
)
def test_nothing_is_converted_without_a_word(override: str, sentence: str) -> None:
    """From `--set` and from a file alike; what is proposed instead is taken."""
    said = refusal(override)
    assert said.startswith(f"--set: {sentence}")
    key, _, text = override.partition("=")
    nested = "".join(f"{part}:\n{' ' * depth}" for depth, part in enumerate(key.split("."), 1))
    with pytest.raises(ConfigError) as caught:
        config.resolve(config.load_yaml(f"{nested}{text}", "file"), origin="file")
    assert str(caught.value).startswith(f"file: {sentence.partition(' --set')[0]}")
    if proposed := re.search(r"so write (?:--set '[^=]*=)?(.+?)'?\.$", said):
        config.load(None, [f"{key}={proposed[1]}"])


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("train.steps=0x10", "train.steps", 16),
        ("train.steps=0o17", "train.steps", 15),
        ("train.steps=+5", "train.steps", 5),
        ("optimiser.lr=1e-5", "optimiser.lr", 1e-5),
        ("optimiser.lr=.5", "optimiser.lr", 0.5),
        ("optimiser.lr=1", "optimiser.lr", 1.0),
        ("engine.packing=off", "engine.packing", "off"),
        ("track.project=no", "track.project", "no"),
        ("track.project=12:30", "track.project", "12:30"),
        ("track.project=2026-01-01", "track.project", "2026-01-01"),
        ("track.project=1_000", "track.project", "1_000"),
        ("track.project='1e5'", "track.project", "1e5"),
        ("train.steps=~", "train.steps", None),
        ("tokens.think_start='#think'", "tokens.think_start", "#think"),
    ],
)
def test_values_that_have_one_meaning_are_taken(override: str, key: str, expected: Any) -> None:
    found = config.flatten(config.load(None, [override]).model_dump(mode="json"))[key]
    assert (found, type(found)) == (expected, type(expected))


def test_python_values_are_as_strict(tmp_path: Path) -> None:
    assert config.resolve({"data": {"train": tmp_path}}).data.train == str(tmp_path)
    assert config.resolve({"optimiser": {"betas": (0.5, 0.6)}}).optimiser.betas == (0.5, 0.6)
    for values in ({"seed": True}, {"seed": 1.0}, {"seed": "1"}, {"train": {"steps": object()}}):
        with pytest.raises(ConfigError):
            config.resolve(values)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("tokens.think_start=#think", "write --set 'tokens.think_start=\"#think\"'"),
        ("data.train=my pairs #2.parquet", "write --set 'data.train=\"my pairs #2.parquet\"'"),
        *((text, "write key=value") for text in ("rollout.group_size", "=4", " =4", "")),
        ("optimiser.betas=[0.9", "optimiser.betas=[0.9"),
        ("data.validation=", "no value is given; write --set data.validation=null for none"),
        ("train={steps: 1, steps: 2}", "key 'steps' is given twice"),
        ("track.project=!!timestamp 2026-01-01", "could not determine a constructor"),
        ("seed=" + "9" * 5000, "a number of 5,000 digits is too long"),
    ],
)
def test_what_yaml_would_take_for_something_else_is_refused(override: str, said: str) -> None:
    assert said in refusal(override)


@given(st.text(), st.sampled_from(["1e5", "010", "0o17", "off", "No", "12:30", "2026-01-01", "~", "0x1F", ".inf", "="]))
def test_every_text_is_written_so_that_any_reader_has_it_back(text: str, word: str) -> None:
    values = {"a": text, "b": word, "c": {"d": [1e-5, 3, None, True]}}
    written = config.dump_yaml(values)
    assert config.load_yaml(written, "x") == values
    # PyYAML alone reads YAML 1.1; of line ends in texts it keeps no promise (see `dump_yaml`).
    assert "\x85" in text or yaml.safe_load(written) == values


def test_a_config_cannot_be_changed_after_validation() -> None:
    with pytest.raises(ValueError, match="frozen"):
        PAPER.rollout.group_size = 2  # type: ignore[misc]


# --- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "where", "what"),
    [
        (b"seed: 1\ntrain: [1, 2\nmethod: p\n", ":3", "not valid YAML"),
        (b"seed: 1\n\tmethod: p\n", ":2", "not valid YAML"),
        (b"train: {steps: 3}\nseed: 1\ntrain: {epochs: 2}\n", ":3", "not valid YAML: key 'train' is given twice"),
        (b"- seed\n", "", "a config is a mapping of keys to values, found list"),
        (b"just words\n", "", "a config is a mapping of keys to values, found str"),
        (b"method: \xff\xfe\n", "", "not UTF-8 text"),
        (b"method: \x00\n", "", "not valid YAML"),
        (b"seed: 1\n2: 3\n", ":2", "not valid YAML: a key is a text, found 2; quote it"),
        (b"train: {true: 1}\n", ":1", "not valid YAML: a key is a text, found true; quote it"),
        (b"seed: " + b"9" * 5000, ":1", "not valid YAML: a number of 5,000 digits is too long"),
        (b"a: " + b"[" * 5000, ":1", "not valid YAML: nested too deeply"),
    ],
)
def test_a_file_that_is_no_config_is_named_with_its_line(tmp_path: Path, content: bytes, where: str, what: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        config.load(str(path))
    assert str(caught.value).startswith(f"{path}{where}: {what}")
    assert "\n" not in str(caught.value)


def test_yaml_never_builds_python_objects(tmp_path: Path) -> None:
    path, witness = tmp_path / "run.yaml", tmp_path / "ran"
    path.write_text(f"method: !!python/object/apply:os.mkdir ['{witness}']\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        config.load(str(path))
    assert not witness.exists()


def test_an_empty_file_is_the_default_preset(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing yet\n")
    assert config.load(str(path)) == NRT


def test_refusals_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("rolout: {group_size: 4}\n")
    with pytest.raises(ConfigError, match=re.escape(f"{path}: unknown key 'rolout' (did you mean 'rollout'?).")):
        config.load(str(path))


def test_a_key_that_was_renamed_or_is_gone_is_refused_with_what_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    renamed = {"optimizer": "optimiser", "train.device": "name the device under model"}
    monkeypatch.setattr(validation, "RENAMED", renamed)
    assert refusal("optimizer.lr=1") == "--set: there is no optimizer any more: it is called optimiser."
    assert refusal("train.device=cpu") == "--set: there is no train.device any more: name the device under model."


# --- the command -------------------------------------------------------------------------------------------------

RUN = CliRunner()


def test_explain_says_what_a_key_is_and_who_reads_it() -> None:
    shown = RUN.invoke(app, ["explain", "optimiser.betas", "--json"])
    assert json.loads(shown.stdout) == {
        "key": "optimiser.betas",
        "sentence": "Decay of the mean gradient and of its square (row 17).",
        "value": "list of 2, each number at least 0 and below 1",
        "defaults": {name: [0.9, 0.95 if name == "reference" else 0.999] for name in PRESETS},
        "read_by": ["nrt_cli.backends.local.optimiser", "nrt_cli.backends.verl.settings"],
    }
    told = RUN.invoke(app, ["explain", "optimiser.betas"]).stdout
    assert re.search(r"default +\[0.9, 0.999\] \(as-run, nrt, paper\) *\n *default +\[0.9, 0.95\] \(reference\)", told)


def test_explain_lists_the_keys_of_a_section() -> None:
    shown = json.loads(RUN.invoke(app, ["explain", "model.lora", "--json"]).stdout)
    assert shown["sentence"].startswith("A trained update of low rank")
    assert list(shown["keys"]) == ["model.lora.rank", "model.lora.alpha"]
    assert "nrt_cli.models.lora" in shown["read_by"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rollout.cache_share", "number above 0 and below 1 or null"),
        ("objective.length_divisor", "cap or whole number at least 1"),
        ("data.strict", "true or false"),
        ("verl", "mapping"),
        ("engine.name", " | ".join(BACKENDS)),
        ("method", " | ".join([*METHODS, "module:function", "module:Class"])),
        ("model.device", "auto | cpu | cuda"),
        ("judge.models", "list of text"),
    ],
)
def test_explain_says_what_a_key_may_be(key: str, value: str) -> None:
    assert explain(key)["value"] == value


def test_a_key_that_is_none_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"there is no key 'bettas' \(did you mean 'optimiser.betas'\?\)"):
        explain("bettas")


def test_every_key_is_read() -> None:
    """A setting without effect would be a lie."""
    assert [key for key in config.sentences(config.RunConfig) if not explain(key)["read_by"]] == []


def test_what_reads_a_key_is_found_by_the_classes_of_expressions() -> None:
    job = ast.parse("class Job:\n    given: RunConfig | None\ndef made() -> 'ObjectiveSection': ...")
    own = ast.parse("class ParallelSection:\n    def ranks(self): return self.nodes * self.gpus_per_node")
    source = config_explain.Source(job, own)

    def reads(*lines: str) -> set[str]:
        return source.reads(ast.parse("\n".join(lines)))

    assert reads("def f(config: RunConfig):", "    a, b = config.train, 1", "    return a.steps") == {"train.steps"}
    assert reads("def f(job: Job): return job.given.model.lora.rank") == {"model.lora.rank"}
    assert reads("made().tis_cap") == {"objective.tis_cap"}
    # A model of something else, and a config whose section is handed on whole.
    assert reads("def f(model: Model, config: RunConfig): return model.path, g(config.model)") == set()
    # What a method of a section reads, its callers do.
    assert reads("def f(given: ParallelSection): return given.ranks") == {"parallel.nodes", "parallel.gpus_per_node"}


def test_show_prints_yaml_and_json_that_read_back() -> None:
    command = ["show", "reference", "--set", "rollout.group_size=4"]
    expected = config.load(None, ["preset=reference", "rollout.group_size=4"])
    assert config.resolve(yaml.safe_load(RUN.invoke(app, command).stdout)) == expected
    assert config.resolve(json.loads(RUN.invoke(app, [*command, "--json"]).stdout)) == expected


def test_check_says_whether_a_config_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("method: RLPR\n")
    assert RUN.invoke(app, ["check", str(path)]).stdout == f"{path}: valid.\n"
    checked = RUN.invoke(app, ["check", str(path), "--json"])
    assert json.loads(checked.stdout) == {"config": str(path), "valid": True}
    assert isinstance(RUN.invoke(app, ["check", "paper", "--set", "rollout.group_size=1"]).exception, ConfigError)


def test_diff_lists_what_differs_and_nothing_else() -> None:
    listed = json.loads(RUN.invoke(app, ["diff", "paper", "reference", "--json"]).stdout)
    assert {row["key"]: (row["left"], row["right"]) for row in listed} == {
        key: (left, right) for key, left, right in config.diff(PAPER, REFERENCE)
    }
    assert {"key": "optimiser.lr", "left": 1e-5, "right": 2e-6} in listed
    assert json.loads(RUN.invoke(app, ["diff", "paper", "paper", "--json"]).stdout) == []
    assert RUN.invoke(app, ["diff", "paper", "paper"]).exit_code == 0


# --- variants: what a config sets for one method alone ----------------------------------------------------------------

VARIANTS = {
    "optimiser": {"lr": 1e-4, "eps": 1e-6},
    "variants": {"sft": {"optimiser": {"lr": 2e-4}}, "NRT-GM": {"seed": 7}, "am": {"rollout": {"group_size": 4}}},
}


@pytest.mark.parametrize(
    ("method", "lr", "seed"), [("sft", 2e-4, 0), ("SFT", 2e-4, 0), ("gm", 1e-4, 7), ("logp", 1e-4, 0)]
)
def test_a_variant_is_of_its_method_alone(method: str, lr: float, seed: int) -> None:
    found = config.resolve(VARIANTS, {"method": method})
    assert (found.optimiser.lr, found.optimiser.eps, found.seed, found.rollout.group_size) == (lr, 1e-6, seed, 8)


def test_what_comes_after_a_file_wins_over_its_variants(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(VARIANTS))
    assert config.load(str(path), ["optimiser.lr=3e-4"], method="sft").optimiser.lr == 3e-4
    assert config.load(str(path), ["variants.gm.seed=9"], method="gm").seed == 9


@pytest.mark.parametrize(
    ("variants", "said"),
    [
        ({"sft": {"optimiser": {"rate": 1.0}}}, "variants.sft: unknown key 'optimiser.rate'"),
        ({"stf": {"seed": 1}}, "method 'stf' is unknown (did you mean 'sft'?)"),
        ({"sft": 3}, "variants: methods are needed, each with a mapping of keys to values."),
        ([1], "variants: methods are needed, each with a mapping of keys to values."),
    ],
)
def test_a_variant_that_means_nothing_is_refused_whatever_the_method(variants: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.resolve({"variants": variants, "method": "gm"})
    assert said in str(caught.value)


# --- configs that runs have kept -----------------------------------------------------------------------------------


def test_what_a_stored_config_is_older_than_stays_as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A preset that decides something new leaves runs alone that began before there was the key."""
    presets = tmp_path / "presets"
    presets.mkdir()
    (presets / "paper.yaml").write_text("objective: {tis_cap: 2.0}\n")
    monkeypatch.setattr(config, "configs_dir", lambda: tmp_path)
    stored = {"preset": "paper", "rollout": {"group_size": 3}}
    old = config.recorded(stored, {"seed": 5}, origin="config.yaml")
    assert (old.objective.tis_cap, old.rollout.group_size, old.seed) == (None, 3, 5)
    given = config.resolve(
        {"preset": "paper", "rollout": {"group_size": 4, "temperature": 0.5}, "optimiser": {"lr": 1.0}}
    )
    assert given.objective.tis_cap == 2.0
    # Only what the old config was given counts: the rest of a study's recipe is not another experiment.
    assert config.flatten(config.as_old(given, old).model_dump()) == config.flatten(old.model_dump()) | {
        "rollout.group_size": 4,
        "seed": 0,
    }


def test_a_stored_config_is_refused_as_a_typed_one_is() -> None:
    with pytest.raises(ConfigError, match=r"runs/a/config\.yaml: unknown key 'rollout\.group_sise'"):
        config.recorded({"rollout": {"group_sise": 4}}, origin="runs/a/config.yaml")


# --- what settings say of themselves ------------------------------------------------------------------------------


@pytest.mark.parametrize("section", [config.RunConfig, StudyConfig, StudyQuestion, Variant, Entry, Score])
def test_every_key_and_section_has_a_sentence(section: type[BaseModel]) -> None:
    said = config.sentences(section)
    for key, sentence in said.items():
        assert re.fullmatch(r"(?s)\S+ .+\.", sentence), f"{key}: {sentence!r} is no sentence"
