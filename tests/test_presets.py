"""The presets: every value that they come to, and that the decisions table states them and where they are from."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from nrt_cli import config

ROOT = Path(__file__).parent.parent
ASKED = ("eval.", "judge.", "track.")
"""How a run is asked, judged and followed, which no preset decides."""

PAPER = config.flatten(
    yaml.safe_load("""
preset: paper
method: ws-neg-log-p
seed: 0
model: {path: "", dtype: auto, device: auto, lora: {rank: null, alpha: 32.0}, gradient_checkpointing: false}
data: {train: "", validation: null, max_prompt_tokens: 4096, max_answer_tokens: 4096, strict: false, traces: false}
tokens: {think_start: <|think_start|>, think_end: <|think_end|>}
objective:
  {token_signal: derived, balance: "off", baseline: clip, advantage: std, std_floor: 1.0e-06, weight_cap: null,
  weighted_sum: sum, ratio: ppo, clip_low: 0.2, clip_high: 0.28, credit_forced_end: false, credit_eos: false,
  format: both, null_trace: think, length_divisor: cap, tis_cap: null, kl_weight: 0.0, entropy_weight: 0.0,
  reward_kl: 0.05, follower_keep: 0.9, follower_every: 100, guided_share: 0.5,
  weights: {trace: 1.0, answer: 1.0, format: 0.3}}
rollout:
  {group_size: 8, temperature: 1.0, max_trace_tokens: 2048, max_response_tokens: 4096, batch_rows: null, engine: auto,
  cache_share: null, max_answer_tokens: null}
optimiser:
  {lr: 1.0e-05, betas: [0.9, 0.999], eps: 1.0e-08, weight_decay: 0.01, clip_norm: 1.0, schedule: constant, warmup: 0.0,
  states: float32}
train:
  {epochs: 1, steps: null, batch_size: 256, minibatch_size: 64, micro_batch_tokens: 16384, checkpoint_every: 50,
  keep_checkpoints: 2, validate_every: null, validation_size: 64, trace_groups: 32, on_collapse: warn, threads: null}
engine: {name: local, packing: auto, patience: 3600.0}
parallel: {nodes: 1, gpus_per_node: 1, tensor: 1, sequence: 1, offload: false}
""")
)
AS_RUN = PAPER | {"preset": "as-run", "objective.token_signal": "fixed"}
REFERENCE = PAPER | {
    "preset": "reference",
    "tokens.think_start": None,
    "tokens.think_end": "<|response_start|>",
    "objective.token_signal": "fixed",
    "objective.baseline": "none",
    "objective.advantage": "unbiased-std",
    "objective.std_floor": 0.0,
    "objective.weighted_sum": "mean",
    "objective.ratio": "cispo",
    "objective.credit_forced_end": True,
    "objective.format": "missed-end",
    "objective.null_trace": "bare",
    "objective.length_divisor": 512,
    "optimiser.lr": 2e-06,
    "optimiser.betas": [0.9, 0.95],
    "optimiser.eps": 1e-15,
    "optimiser.warmup": 0.1,
}
NRT = PAPER | {
    "preset": "nrt",
    "objective.token_signal": "shared",
    "objective.balance": "auto",
    "objective.credit_eos": True,
}
PINNED = {"paper": PAPER, "as-run": AS_RUN, "reference": REFERENCE, "nrt": NRT}
STATED = ("paper", "as-run", "reference")
"""Presets with a column in the decisions table: ours differs from the paper's where its rows say so."""

PLACE = r"\((?:Eq|Sec|App|Table|Algorithm)[^()]* ?\d|Table \d|Eq\. \d|Sec\. \d|App\. [A-I]|not said"
LINE = r"\b[\w-]+:\d+"
"""A file and line of the released code, by the short names that stand above the table."""


def rows() -> list[list[str]]:
    """The cells of each row of the decisions table in CONTRIBUTING.md."""
    text, _, _ = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("### Methods that others published")
    found = re.findall(r"^\| \d+ \|.*\|$", text, re.MULTILINE)
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in found]


def decisions() -> list[tuple[str, str, Any]]:
    """(key, preset, value as it is stated) of the table's last four columns; an empty `as-run` is as `paper`."""
    lines = []
    for row in rows():
        key, paper, as_run, reference = (cell.replace("\\|", "|").split("<br>") for cell in row[-4:])
        as_run = paper if as_run == [""] else as_run
        stated = zip(key, paper, as_run, reference, strict=True)
        lines += [
            (key.strip("`"), preset, yaml.safe_load(value.strip("`")))
            for key, *values in stated
            for preset, value in zip(STATED, values, strict=True)
            if key != "-"
        ]
    return lines


@pytest.mark.parametrize("preset", PINNED)
def test_every_value_of_a_preset_is_pinned(preset: str) -> None:
    flat = config.flatten(config.resolve({"preset": preset}).model_dump(mode="json"))
    assert {key: value for key, value in flat.items() if not key.startswith(ASKED)} == PINNED[preset]


@pytest.mark.parametrize("preset", PINNED)
def test_presets_leave_alone_how_a_run_is_asked_and_judged(preset: str) -> None:
    stated = config.flatten(config.read_yaml(config.configs_dir() / "presets" / f"{preset}.yaml"))
    assert not [key for key in stated if key.startswith(ASKED)]
    assert {key: PINNED[preset][key] for key in stated} == stated


def test_a_run_that_names_no_preset_has_ours() -> None:
    assert config.resolve({}) == config.resolve({"preset": "nrt"})


def test_every_preset_that_ships_is_pinned() -> None:
    shipped = {path.stem for path in (config.configs_dir() / "presets").glob("*.yaml")}
    assert shipped == set(PINNED)


@pytest.mark.parametrize(("key", "preset", "stated"), decisions())
def test_the_decisions_table_states_what_the_presets_do(key: str, preset: str, stated: Any) -> None:
    # YAML reads 1e-5 as text.
    pinned = PINNED[preset][key]
    assert stated == pinned or (isinstance(stated, str) and isinstance(pinned, float) and float(stated) == pinned)


@pytest.mark.parametrize("preset", ["as-run", "reference"])
def test_presets_differ_in_rows_of_the_decisions_table_and_nowhere_else(preset: str) -> None:
    table = {(key, of): value for key, of, value in decisions()}
    in_table = {key for key, of in table if of == preset and table[key, preset] != table[key, "paper"]}
    assert {key for key, value in PINNED[preset].items() if value != PAPER[key]} == in_table


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_every_decision_names_its_source(row: list[str]) -> None:
    """A place in the paper and a line of the released code, or that neither says anything."""
    assert len(row) == 8
    paper, code = row[2], row[3]
    assert re.search(PLACE, paper), paper
    assert re.search(LINE, code) or code.startswith("not in it"), code
    short = set(re.findall(r"\b([\w-]+):\d+", code))
    legend = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("| # | topic |")[0]
    assert all(name == "README" or f"`{name}`" in legend for name in short)


def test_the_table_counts_its_rows() -> None:
    assert [int(row[0]) for row in rows()] == list(range(1, len(rows()) + 1))


def test_row_22_quotes_the_authors() -> None:
    quoted = (
        "For training stability, our main experiments set `use_fixed_token_reward=True`, which is different from the "
    )
    assert quoted + "derived loss function in original paper." in rows()[21][3]


@pytest.mark.parametrize("recipe", ["paper-3b", "paper-mistral-7b", "paper-8b"])
def test_the_papers_recipes_are_the_preset_as_run_and_sft_has_values_of_its_own(recipe: str) -> None:
    engine = {
        "engine.name": "verl",
        "parallel.gpus_per_node": 8,
        "model.path": {"paper-3b": "models/llama-3.2-3b", "paper-8b": "models/llama-3.1-8b"}.get(
            recipe, "models/mistral-7b-v0.3"
        ),
        "model.gradient_checkpointing": True,
        "data.train": "data/tulu-200k/train.parquet",
        "data.validation": "data/tulu-200k/validation.parquet",
        "train.micro_batch_tokens": 32768,
        "train.validate_every": 50,
        "train.validation_size": 100,
    }
    sft = {
        "method": "sft",
        "optimiser.lr": 5e-06,
        "optimiser.schedule": "linear",
        "optimiser.warmup": 0.03,
        "optimiser.weight_decay": 0.0,
        "train.batch_size": 128,
        "train.minibatch_size": None,
    }
    for method, settings in (("gm", {"method": "gm"}), ("sft", sft), ("SFT", sft)):
        flat = config.flatten(config.load(recipe, method=method).model_dump(mode="json"))
        assert {key: value for key, value in flat.items() if not key.startswith(ASKED)} == AS_RUN | engine | settings
