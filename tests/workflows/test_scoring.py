"""`nrt score`, `analyze tokens` and `schemes` on small runs, against slow and obvious computations."""

import io
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from nrt_cli import console
from nrt_cli.commands.score import _show as show_scores
from nrt_cli.config import to_yaml
from nrt_cli.errors import ConfigError, ModelError, StoreError
from nrt_cli.methods import METHODS, SCHEMES
from nrt_cli.models.prepare import prepare_model
from nrt_cli.records import Example
from nrt_cli.store import Run
from nrt_cli.workflows import scoring
from nrt_cli.workflows.generate import Generator
from nrt_cli.workflows.scoring import (
    SCORING_STREAM,
    Subject,
    score_answer,
    score_schemes,
    score_tokens,
    tokenizer_difference,
)

QUESTION, ANSWER = "What is 3 plus 4?", "The answer is 7."


def quiet(*_: Any) -> None:
    """A report that says nothing."""


@pytest.fixture(scope="module")
def am(shared_run: Callable[..., Run]) -> Run:
    return shared_run("method=am")


@pytest.fixture(scope="module")
def sft(shared_run: Callable[..., Run]) -> Run:
    return shared_run("method=sft")


@pytest.fixture(scope="module")
def slowly(am: Run) -> Callable[..., list[float]]:
    """log c of each of the last ids under a run's model: one sequence, all logits, float64."""
    models: dict[Path, Any] = {}

    @torch.no_grad()
    def score(run: Run, ids: list[int], count: int) -> list[float]:
        model = models.setdefault(run.path, AutoModelForCausalLM.from_pretrained(run.export_path, dtype=torch.float64))
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)[-count - 1 : -1]
        return logprobs.gather(-1, torch.tensor(ids[-count:])[:, None])[:, 0].tolist()

    return score


# --- score -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scored(am: Run) -> dict[str, Any]:
    return score_answer(str(am.path), QUESTION, ANSWER, ("3 + 4. It is 7!", "No."))


def ids_of(run: Run) -> Callable[..., list[int]]:
    """x t_start z t_end y* eos, written out."""
    tokenizer = AutoTokenizer.from_pretrained(run.export_path)

    def make(trace: str) -> list[int]:
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": QUESTION}], tokenize=False, add_generation_prompt=True
        )
        text = f"{rendered}<|think_start|>{trace}<|think_end|>"
        answer = tokenizer.encode(ANSWER, add_special_tokens=False)
        return [*tokenizer.encode(text, add_special_tokens=False), *answer, tokenizer.eos_token_id]

    return make


def test_probabilities_of_every_token(am: Run, scored: dict[str, Any], slowly: Callable[..., list[float]]) -> None:
    count = len(scored["tokens"])
    assert "".join(scored["tokens"]) == ANSWER + "<eos>"
    null = slowly(am, ids_of(am)(""), count)
    assert scored["null"]["logprobs"] == pytest.approx(null, abs=1e-5)
    for trace in scored["traces"]:
        # The text splits into the same tokens on its own and between think tokens, which are no part of any word.
        expected = slowly(am, ids_of(am)(trace["trace"]), count)
        assert trace["logprobs"] == pytest.approx(expected, abs=1e-5)
        assert trace["c"] == pytest.approx(np.exp(expected).tolist(), rel=1e-4)
        assert trace["gains"] == pytest.approx((np.array(expected) - null).tolist(), abs=1e-5)
        assert trace["probability"] == pytest.approx(math.exp(sum(expected)), rel=1e-3)


def test_rewards_of_every_scheme(scored: dict[str, Any]) -> None:
    """Tables 1 and 2 and Eq. 9 and 10 written out with numpy."""
    base = np.exp(scored["null"]["logprobs"])
    c = np.array([trace["c"] for trace in scored["traces"]])
    size = c.shape[1]
    rewards = {
        "logp": (np.log(c).sum(1), np.log(base).sum()),
        "p": (c.prod(1), base.prod()),
        "gm": (c.prod(1) ** (1 / size), base.prod() ** (1 / size)),
        "am": (c.mean(1), base.mean()),
        "ws-inv-p": ((c / base).sum(1), float(size)),
        "ws-neg-log-p": ((-np.log(base) * c).sum(1), (-np.log(base) * base).sum()),
    }
    weights = {"am": np.full(size, 1 / size), "ws-inv-p": 1 / base, "ws-neg-log-p": -np.log(base), "logp": 1 / c[0]}
    assert set(rewards) <= set(scored["traces"][0]["schemes"]) == {n for n in SCHEMES if not METHODS[n].asks}
    for name, (reward, reward_base) in rewards.items():
        clipped = np.maximum(0, reward - reward_base)
        spread = clipped.std()
        for k, trace in enumerate(scored["traces"]):
            found = trace["schemes"][name]
            assert found["reward"] == pytest.approx(reward[k], rel=1e-5)
            assert found["reward_base"] == pytest.approx(reward_base, rel=1e-5)
            assert found["clipped"] == pytest.approx(clipped[k], rel=1e-3, abs=1e-9)
            if not found["dead_group"]:
                assert found["advantage"] == pytest.approx((clipped[k] - clipped.mean()) / spread, rel=1e-2)
            assert np.multiply(found["weights"], trace["c"]).tolist() == pytest.approx(found["token_signals"])
        if name in weights:
            assert scored["traces"][0]["schemes"][name]["weights"] == pytest.approx(weights[name].tolist(), rel=1e-5)


def test_sampled_traces_are_a_group_and_the_seed_decides_them(am: Run) -> None:
    of = {"max_trace_tokens": 5, "schemes": ("am",)}
    one, again, other = (score_answer(str(am.path), QUESTION, ANSWER, **of, seed=seed) for seed in (0, 0, 1))
    assert len(one["traces"]) == 4  # the group size of its run
    assert one == again
    assert all(trace["trace_tokens"] <= 5 for trace in one["traces"])
    assert [t["trace"] for t in other["traces"]] != [t["trace"] for t in one["traces"]]


def test_a_model_that_does_not_think_answers_directly(sft: Run, slowly: Callable[..., list[float]]) -> None:
    found = score_answer(str(sft.path), QUESTION, ANSWER, samples=2)
    assert not {"traces", "null"} & found.keys()
    tokenizer = AutoTokenizer.from_pretrained(sft.export_path)
    rendered = ids_of(sft)("")
    ids = rendered[: rendered.index(tokenizer.convert_tokens_to_ids("<|think_start|>"))] + found["token_ids"]
    assert found["direct"]["logprobs"] == pytest.approx(slowly(sft, ids, len(found["token_ids"])), abs=1e-5)


def test_a_given_trace_alone_has_no_advantage_and_its_special_tokens_stay_text(am: Run) -> None:
    plain, spelled = (
        score_answer(str(am.path), QUESTION, ANSWER, (text,), schemes=("am",))["traces"][0]
        for text in ("", "<|think_end|>")
    )
    assert (plain["schemes"]["am"]["advantage"], plain["schemes"]["am"]["dead_group"]) == (None, None)
    assert plain["trace_tokens"] == 0
    assert spelled["trace_tokens"] > 1
    assert spelled["trace"] == "<|think_end|>"
    with pytest.raises(ConfigError, match="the question or the answer is empty"):
        score_answer(str(am.path), " ", ANSWER)


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_what_is_not_finite_is_a_dash(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that diverged still has its table."""
    answer = {"logprobs": [value], "c": [value], "logprob": value, "probability": value}
    scheme = dict.fromkeys(("reward", "log_reward", "reward_base", "clipped"), value) | {"token_signals": [value]}
    scheme |= {"advantage": None, "dead_group": None}
    trace = answer | {"trace": "so", "trace_tokens": 1, "stop": "end", "gains": [value], "gain": value}
    trace |= {"schemes": {"am": scheme}}
    record = {"model": "m", "title": None, "tokens": ["7"], "direct": answer, "null": answer, "traces": [trace]}
    said = io.StringIO()
    monkeypatch.setattr(console, "stdout", Console(file=said, width=100))
    show_scores([record], tokens=True)
    text = said.getvalue()
    assert "P(y*) = -, log P(y*) = - nats" in text
    assert "nan" not in text
    assert "None" not in text
    (row,) = (line for line in text.splitlines() if line.strip().startswith("am "))
    assert row.split()[1:] == ["-"] * 4


# --- tokens ----------------------------------------------------------------------------------------------------------


def all_rows(parts: list[Path]) -> list[dict[str, Any]]:
    return [row for part in parts for row in pq.read_table(part).to_pylist()]


def test_ground_truth_tokens_under_both_models(
    sft: Run, am: Run, tmp_path: Path, slowly: Callable[..., list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "TOKENS_PART", 3)
    (label, base), (other, model) = score_tokens(str(sft.path), [str(am.path)], tmp_path, quiet, count=8)
    assert (label, other, len(base)) == ("sft", "am", 3)
    rows, theirs = all_rows(base), all_rows(model)
    assert [(r["example"], r["position"], r["token_id"]) for r in rows] == [
        (r["example"], r["position"], r["token_id"]) for r in theirs
    ]
    held_out = {row["example"]: row for row in am.traces("held-out-000003")}
    assert {row["example"] for row in rows} == set(held_out)
    network = AutoModelForCausalLM.from_pretrained(sft.export_path, dtype=torch.float64)
    for example, known in held_out.items():
        mine = [row for row in rows if row["example"] == example]
        assert [row["token_id"] for row in mine] == known["answer_ids"]
        ids = [*known["prompt_ids"], *known["answer_ids"]]
        assert [row["logprob"] for row in mine] == pytest.approx(slowly(sft, ids, len(mine)), abs=1e-5)
        with torch.no_grad():
            logprobs = network(torch.tensor([ids])).logits[0].log_softmax(-1)[-len(mine) - 1 : -1]
        entropies = -(logprobs.exp() * logprobs).sum(-1)
        assert [row["entropy"] for row in mine] == pytest.approx(entropies.tolist(), abs=1e-5)
        assert mine[0]["stop"] is None


def test_a_models_probabilities_are_given_its_own_sampled_trace(
    sft: Run, am: Run, tmp_path: Path, slowly: Callable[..., list[float]]
) -> None:
    _, (_, model) = score_tokens(str(sft.path), [str(am.path)], tmp_path, quiet, count=2, seed=5, max_trace_tokens=4)
    scorer = Subject(am.path).open()
    known = {row["example"]: row for row in am.traces("held-out-000003")}
    for example in {row["example"] for row in all_rows(model)}:
        mine = [row for row in all_rows(model) if row["example"] == example]
        one = Example(example, "", tuple(known[example]["prompt_ids"]), tuple(known[example]["answer_ids"]))
        (group,) = scorer.sample([one], 1, Subject(am.path).rollout(4), (5, SCORING_STREAM))
        (rollout,) = group.rollouts
        ids = [*one.prompt_ids, scorer.tokens.start_id, *rollout.trace_ids, scorer.tokens.end_id, *one.answer_ids]
        assert [row["logprob"] for row in mine] == pytest.approx(slowly(am, ids, len(mine)), abs=1e-5)
        assert {(row["trace_tokens"], row["stop"]) for row in mine} == {(len(rollout.trace_ids), rollout.stop)}


def test_only_what_an_interruption_left_out_is_made_again(
    sft: Run, am: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "TOKENS_PART", 3)
    arguments = (str(sft.path), [str(am.path)], tmp_path, quiet)
    scored = score_tokens(*arguments, count=8)
    whole = [all_rows(parts) for _, parts in scored]
    scored[1][1][1].unlink()
    loaded = []
    open_it = scoring.Subject.open
    monkeypatch.setattr(scoring.Subject, "open", lambda of: loaded.append(of.config.method) or open_it(of))
    assert [all_rows(parts) for _, parts in score_tokens(*arguments, count=8)] == whole
    assert loaded == ["am"]  # the baseline's rows were all there, so its model was not even loaded
    score_tokens(*arguments, count=8, seed=1)
    assert loaded == ["am", "sft", "am"]  # other examples are other rows


def test_a_runs_dtype_is_that_of_all_that_looks_into_it(
    sft: Run, am: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs in float32 are scored in float32, whatever `auto` is here; no part of another dtype is reused."""
    monkeypatch.setenv("NRT_AUTO_DTYPE", "bfloat16")
    assert Subject(am.path).open().policy.model.dtype == torch.float32
    assert Subject(f"{am.path}@0").open().policy.model.dtype == torch.float32
    assert Subject(am.export_path).open().policy.model.dtype == torch.bfloat16  # a folder does not say whose it is
    assert Generator(am.path).reasoner.model.dtype == torch.float32
    arguments = (str(sft.path), [str(am.path)], tmp_path, quiet)
    wide = [parts[0].parent for _, parts in score_tokens(*arguments, count=2)]
    narrow_sft, narrow_am = (_narrow(run, tmp_path) for run in (sft, am))
    scored = score_tokens(str(narrow_sft), [str(narrow_am)], tmp_path, quiet, count=2)
    narrow = [parts[0].parent for _, parts in scored]
    assert Subject(narrow_am).open().policy.model.dtype == torch.bfloat16
    assert not set(wide) & set(narrow)


def _narrow(run: Run, folder: Path) -> Path:
    """The same run, had it been trained in bfloat16."""
    copy = folder / f"narrow-{run.path.name}"
    shutil.copytree(run.path, copy)
    config = Run(copy).config()
    model = config.model.model_copy(update={"dtype": "bfloat16"})
    Run(copy).update_config(to_yaml(config.model_copy(update={"model": model})))
    return copy


def test_other_tokenizers_are_refused_with_the_reason(
    sft: Run, tmp_path: Path, make_tiny_source: Any, make_tiny_tokenizer: Any
) -> None:
    make_tiny_source(tmp_path / "source", make_tiny_tokenizer(bos_token="<bos>"))
    prepare_model(str(tmp_path / "source"), tmp_path / "other", dtype="float32")
    with pytest.raises(ModelError, match=r"have different tokenizers .* is 2 in one and 3 in the other"):
        score_tokens(str(sft.path), [str(tmp_path / "other")], tmp_path, quiet)
    first, turned = make_tiny_tokenizer(), make_tiny_tokenizer(chat_template="{{ messages }}")
    assert tokenizer_difference(first, make_tiny_tokenizer()) is None
    assert tokenizer_difference(first, turned).startswith("the same tokens, ")
    assert "'<end>' is" in tokenizer_difference(first, make_tiny_tokenizer(eos_token="<end>"))


def test_a_baseline_that_thinks_is_refused(am: Run, sft: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the baseline is to answer directly, but this model thinks"):
        score_tokens(str(am.path), [str(sft.path)], tmp_path, quiet)
    with pytest.raises(ConfigError, match=r"name at least one model"):
        score_tokens(str(sft.path), [], tmp_path, quiet)


# --- schemes ---------------------------------------------------------------------------------------------------------


def test_the_runs_own_scheme_is_what_it_was_trained_with(am: Run) -> None:
    """The store has R, R_base and A of the run's own scheme: the same rollouts give the same numbers again."""
    rows, method = score_schemes(am.path, quiet)
    assert method == "am"
    rows = [row for row in rows if (row["kind"], row["scheme"]) == ("trace", "am")]
    stored = [row for step in (1, 2, 3) for row in am.traces(f"step-{step:06d}")]
    assert len(rows) == len(stored) == 3 * 4 * 4
    for mine, theirs in zip(rows, stored, strict=True):
        assert (mine["step"], mine["example"], mine["k"]) == (theirs["step"], theirs["example"], theirs["k"])
        assert mine["reward"] == pytest.approx(theirs["reward"], rel=1e-5)
        assert mine["reward_base"] == pytest.approx(theirs["reward_base"], rel=1e-5)
        assert mine["advantage"] == pytest.approx(theirs["advantage"], rel=1e-2, abs=1e-3)
        assert mine["gain"] == pytest.approx(theirs["gain"], abs=1e-4)
        assert mine["trace_length"] == len(theirs["trace_ids"])


def test_nothing_is_clipped_where_no_baseline_is_taken_off(am: Run) -> None:
    """JEPO's baseline is none; RLPR's under the run's own settings is the null trace's."""
    rows, _ = score_schemes(am.path, quiet, ("am", "jepo"), count=4)
    clipped = {
        name: [row["clipped"] for row in rows if row["scheme"] == name and "k" in row] for name in ("am", "jepo")
    }
    assert len(clipped["am"]) == len(clipped["jepo"]) == 16
    assert np.isnan(clipped["jepo"]).all()
    assert (np.array(clipped["am"]) >= 0).all()


def test_a_bank_may_lie_anywhere_and_be_of_any_size(am: Run, tmp_path: Path) -> None:
    shutil.copy(am.path / "traces" / "step-000002.parquet", tmp_path / "bank.parquet")
    rows, method = score_schemes(tmp_path / "bank.parquet", quiet, ("am", "gm"), count=2)
    assert method is None
    assert {row["step"] for row in rows} == {2}
    assert len([row for row in rows if row["kind"] == "group"]) == 2 * 2  # groups times schemes
    assert [row["group"] for row in rows if row["kind"] == "group" and row["scheme"] == "am"] == [0, 3]


def test_a_bank_has_what_a_method_asks_of_the_traces_themselves(
    am: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their log-probs where the policy chose, and their lengths; a table without these columns says what is needed."""
    (tmp_path / "traces_ask.py").write_text(
        "import nrt_cli\n"
        "class Brief(nrt_cli.Method):\n"
        "    asks = frozenset({'traces'})\n"
        "    defaults = {'objective': {'advantage': 'raw', 'baseline': 'none'}}\n"
        "    free = ('token signals', 'baseline')\n"
        "    def signals(self, group):\n"
        "        reward_K = group.trace_logprobs_KZ.sum(-1) - 100 * group.lengths_K + 1e4 * group.closed_K\n"
        "        return nrt_cli.Signals.of(reward_K, reward_K.new_zeros(()), group.logprobs_KT.exp())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    rows, _ = score_schemes(am.path, quiet, ("am", "traces_ask:Brief"))
    mine = [row for row in rows if (row["kind"], row["scheme"]) == ("trace", "traces_ask:Brief")]
    stored = [row for step in (1, 2, 3) for row in am.traces(f"step-{step:06d}")]
    for scored, row in zip(mine, stored, strict=True):
        chosen = [p for p, sampled in zip(row["trace_logprobs"], row["sampled"], strict=True) if sampled]
        closed = 1e4 * (row["stop"] == "end")
        assert scored["reward"] == pytest.approx(sum(chosen) - 100 * len(row["trace_ids"]) + closed, rel=1e-6)
        assert scored["advantage"] == pytest.approx(scored["reward"])  # by the settings that it brings along
    table = pq.read_table(am.path / "traces" / "step-000001.parquet").drop(["sampled"])
    pq.write_table(table, tmp_path / "without.parquet")
    assert score_schemes(tmp_path / "without.parquet", quiet, ("am", "gm"))[0]
    with pytest.raises(ConfigError, match="needs more than log-probs of answers: log-probs and lengths of the traces"):
        score_schemes(tmp_path / "without.parquet", quiet, ("am", "traces_ask:Brief"))


def test_banks_that_cannot_be_scored(am: Run, sft: Run, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no scored traces are stored there; they come from `nrt train`"):
        score_schemes(sft.path, quiet)
    # Held-out traces of runs from before their rows were kept.
    scored = pq.read_table(am.path / "traces" / "held-out-000003.parquet")
    for name in ("answer_logprobs", "null_logprobs"):
        at = scored.schema.get_field_index(name)
        scored = scored.set_column(at, name, pa.nulls(len(scored), scored.schema.field(at).type))
    pq.write_table(scored, tmp_path / "old.parquet")
    with pytest.raises(StoreError, match=r"its traces were not scored token by token"):
        score_schemes(tmp_path / "old.parquet", quiet)
    for names in (("am",), ("am", "AM")):
        with pytest.raises(ConfigError, match=r"name at least two schemes"):
            score_schemes(am.path, quiet, names)
    with pytest.raises(ConfigError, match=r"method 'sft' rewards no traces, so it is no scheme"):
        score_schemes(am.path, quiet, ("sft", "am"))
    pq.write_table(pq.read_table(am.path / "traces" / "step-000001.parquet").drop(["trace"]), tmp_path / "x.parquet")
    with pytest.raises(StoreError, match=r"column trace is missing"):
        score_schemes(tmp_path / "x.parquet", quiet)
    (tmp_path / "y.parquet").write_text("text")
    with pytest.raises(StoreError, match=r"is damaged"):
        score_schemes(tmp_path / "y.parquet", quiet)


# --- commands --------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_the_commands(nrt: Any, am: Run, sft: Run, tmp_path: Path) -> None:
    """Each prints its table, leaves its files and speaks JSON."""
    ended = nrt("score", am.path, sft.path, "--question", QUESTION, "--answer", ANSWER, "--trace", "3 + 4", "--tokens")
    assert ended.code == 0, ended.err
    assert all(text in ended.out for text in ("3 + 4", "ws-neg-log-p", "P(y* | x, z)"))
    ended = nrt("score", am.path, "--question", QUESTION, "--answer", ANSWER, "--samples", 2, "--json")
    assert json.loads(ended.out)[0]["traces"][1]["schemes"]["logp"]["log_reward"] is None
    ended = nrt("score", am.path, "--question", QUESTION, "--answer", ANSWER, "--samples", 2, "--trace", "a")
    assert (ended.code, "give either --trace or how to sample" in ended.err) == (2, True)

    for arguments, stem in (
        (("tokens", "--baseline", sft.path, "--runs", am.path, "--n", 4), "tokens"),
        (("schemes", am.path), "schemes"),
    ):
        ended = nrt("analyze", *arguments, "--out", tmp_path / stem, "--json")
        assert ended.code == 0, ended.err
        record = json.loads(ended.out)
        assert record["analysis"] == stem
        assert f"{stem}.png" in {path.name for path in (tmp_path / stem).iterdir()}
        ended = nrt("analyze", *arguments, "--out", tmp_path / stem)
        assert f"Written to {tmp_path / stem}" in ended.out
