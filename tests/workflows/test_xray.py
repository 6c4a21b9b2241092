"""`nrt analyze xray`: every variant of a trace against the model alone, and planted worlds whose answer is known."""

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nrt_cli.data import digits
from nrt_cli.errors import ConfigError, StoreError
from nrt_cli.measures.xray import MATTERS
from nrt_cli.models.prepare import prepare_model
from nrt_cli.records import Rollout, RolloutGroup
from nrt_cli.store import Run
from nrt_cli.workflows import xray as room
from nrt_cli.workflows.scoring import Subject, asked_example, given_traces
from nrt_cli.workflows.xray import look_into, xray


def quiet(*_: Any) -> None:
    """A report that says nothing."""


def all_rows(found: list[tuple[str, list[Path]]]) -> list[dict[str, Any]]:
    return [row for _, parts in found for part in parts for row in pq.read_table(part).to_pylist()]


@pytest.fixture(scope="module")
def am(shared_run: Callable[..., Run]) -> Run:
    return shared_run("method=am", "train.keep_checkpoints=1")


@pytest.fixture(scope="module")
def slowly(am: Run) -> Callable[[list[int], int], np.ndarray]:
    """log p of each of the last ids under a run's model: one sequence, all logits, float64."""
    model = AutoModelForCausalLM.from_pretrained(am.export_path, dtype=torch.float64)

    @torch.no_grad()
    def score(ids: list[int], count: int) -> np.ndarray:
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)[-count - 1 : -1]
        return logprobs.gather(-1, torch.tensor(ids[-count:])[:, None])[:, 0].numpy()

    return score


TRACE = "So 3 plus 4 is 7. Tom has 12 of 14? No.\nThe answer is 7!"
STEPS = ["So 3 plus 4 is 7. ", "Tom has 12 of 14? ", "No.\n", "The answer is 7!"]
OTHER = "It is 9, I think. Anna has 12."


@pytest.fixture(scope="module")
def looked(am: Run, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    asked = ("What is 3 plus 4?", "The answer is 7.", (TRACE, OTHER, ""))
    return all_rows(xray(str(am.path), tmp_path_factory.mktemp("asked"), quiet, asked=asked))


@pytest.fixture(scope="module")
def answer(am: Run, slowly: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """log p of a trace's tokens and, its last, log P(y*): x t_start z t_end y* eos, written out."""
    tokenizer = AutoTokenizer.from_pretrained(am.export_path)
    asked = [{"role": "user", "content": "What is 3 plus 4?"}]
    rendered = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    start, end = (tokenizer.convert_tokens_to_ids(f"<|think_{which}|>") for which in ("start", "end"))
    opening = [*tokenizer.encode(rendered, add_special_tokens=False), start]
    told = [*tokenizer.encode("The answer is 7.", add_special_tokens=False), tokenizer.eos_token_id]

    def score(trace: list[int]) -> np.ndarray:
        logprobs = slowly([*opening, *trace, end, *told], len(trace) + 1 + len(told))
        return np.append(logprobs[: len(trace)], logprobs[-len(told) :].sum())

    return score


def test_every_number_is_the_models_own(am: Run, looked: list[dict[str, Any]], answer: Callable[..., Any]) -> None:
    """Each variant alone: one sequence, float64, no packing."""
    tokenizer, row = AutoTokenizer.from_pretrained(am.export_path), looked[0]
    ids = tokenizer.encode(TRACE, add_special_tokens=False)
    assert (row["steps"], row["unit"], row["traces"], row["k"]) == (STEPS, "sentence", "given", 0)
    ends = [0, *row["ends"]]
    cut = [ids[start:end] for start, end in pairwise(ends)]
    assert [tokenizer.decode(step) for step in cut] == STEPS
    flat = lambda steps: [token for step in steps for token in step]  # noqa: E731
    whole = answer(ids)
    assert row["kept"] == pytest.approx([answer(flat(cut[:n]))[-1] for n in range(5)], abs=1e-4)
    without = [whole[-1] - answer(flat(cut[:n] + cut[n + 1 :]))[-1] for n in range(4)]
    assert row["necessity"] == pytest.approx(without, abs=1e-4)
    assert row["null_logprob"] == pytest.approx(answer([])[-1], abs=1e-4)
    # A token with digits becomes the next that is alike; Tom only begins a sentence, so he is not known for a name.
    shape = lambda name: re.sub(r"\d", "0", name)  # noqa: E731
    others: dict[int, int] = {}
    for token, name in enumerate(names := tokenizer.convert_ids_to_tokens(range(len(tokenizer)))):
        alike = sorted(other for other in names if re.search(r"\d", other) and shape(other) == shape(name))
        if alike:
            others[token] = tokenizer.convert_tokens_to_ids(alike[(alike.index(name) + 1) % len(alike)])
    changed = [[others.get(token, token) for token in step] for step in cut]
    assert [step != before for step, before in zip(changed, cut, strict=True)] == [True, True, False, True]
    assert row["changed"] == pytest.approx(answer(flat(changed))[-1], abs=1e-4)
    assert row["filler"] == pytest.approx(answer([tokenizer.encode(" .", add_special_tokens=False)[-1]] * len(ids))[-1])
    assert row["swapped"] is None  # all are of one question
    orders = {tuple(order): answer(flat([cut[i] for i in order]))[-1] for order in np.ndindex(4, 4, 4, 4)
              if sorted(order) == [0, 1, 2, 3]}  # fmt: skip
    assert min(abs(orders[order] - row["shuffled"]) for order in orders if order != (0, 1, 2, 3)) < 1e-4
    assert row["copied"] == 0.75  # the, answer and 7, but no eos; `is` is the question's too
    for n, needed in enumerate(row["needed"]):
        altered = answer(flat([*cut[:n], changed[n], *cut[n + 1 :]]))
        reached = [whole[-1] - altered[-1]] if changed[n] != cut[n] else []
        for later in range(n + 1, 4):
            if row["needed"][later] >= MATTERS and changed[n] != cut[n]:
                places = [t for t in range(ends[later], ends[later + 1]) if whole[t] >= -MATTERS]
                reached += [whole[t] - altered[t] for t in places]
        assert needed == pytest.approx(max([without[n], *reached]), abs=1e-4)


def test_a_trace_of_nothing_has_no_steps(looked: list[dict[str, Any]]) -> None:
    row = looked[2]
    assert (row["steps"], row["necessity"], row["needed"], row["decided"]) == ([], [], [], 0)
    assert row["kept"] == pytest.approx([row["null_logprob"]])
    assert {row[name] for name in ("shuffled", "changed", "masked", "filler", "gained", "smuggled")} == {None}


def test_stored_traces_and_each_checkpoint_that_is_kept(am: Run, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(room, "PART", 3)
    found = xray(str(am.path), tmp_path / "xray", quiet, limit=4)
    assert [label for label, _ in found] == [f"{am.path.name}@0", am.path.name]
    rows = all_rows(found)
    assert [(row["traces"], row["model_step"]) for row in rows] == [
        (f"held-out-{step:06d}", step) for step in (0, 3) for _ in range(4)
    ]
    stored = {(row["step"], row["example"]): row for step in (0, 3) for row in am.traces(f"held-out-{step:06d}")}
    for row in rows:
        theirs = stored[row["step"], row["example"]]
        assert row["kept"][-1] == pytest.approx(sum(theirs["answer_logprobs"]), abs=1e-4)
        assert row["kept"][-1] - row["null_logprob"] == pytest.approx(theirs["gain"], abs=1e-4)
        assert "".join(row["steps"]) == theirs["trace"]
        assert row["swapped"] is not None
    # What was left out by an interruption is made again, and nothing else; the whole is the same.
    gone = found[1][1][1]
    gone.unlink()
    opened = []
    there = room.Subject.open
    monkeypatch.setattr(room.Subject, "open", lambda of: opened.append(of.located.step) or there(of))
    assert all_rows(xray(str(am.path), tmp_path / "xray", quiet, limit=4)) == rows
    assert opened == [3]
    one = all_rows(xray(str(am.path), tmp_path / "one", quiet, traces="step-000002", unit="word", max_steps=2))
    assert (len(one), {row["unit"] for row in one}) == (16, {"word"})
    assert max(len(row["steps"]) for row in one) == 2


def test_a_model_that_is_no_run_samples_first_and_once(
    am: Run, tiny_data_dir: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    how = {"data": tiny_data_dir / "validation.parquet", "limit": 3, "samples": 2, "max_trace_tokens": 5, "seed": 1}
    rows = all_rows(xray(str(am.export_path), tmp_path, quiet, **how))
    assert len(rows) == 6
    assert {(row["traces"], row["step"], row["model_step"]) for row in rows} == {("sampled", None, None)}
    sampled = [row for part in (tmp_path / "scored").glob("traces-*/*") for row in pq.read_table(part).to_pylist()]
    assert {row["trace"] for row in sampled} == {"".join(row["steps"]) for row in rows}
    monkeypatch.setattr(room.Subject, "open", lambda of: pytest.fail("all of it was there"))
    assert all_rows(xray(str(am.export_path), tmp_path, quiet, **how)) == rows


def test_where_there_are_no_traces_it_is_said_what_makes_them(am: Run, shared_run: Any, tmp_path: Path) -> None:
    sft = shared_run("method=sft")
    with pytest.raises(ConfigError, match="its method samples no traces"):
        xray(str(sft.path), tmp_path, quiet)
    with pytest.raises(ConfigError, match="answers directly"):
        xray(str(sft.path), tmp_path, quiet, asked=("What?", "7", ()))
    with pytest.raises(ConfigError, match=r"is no run, .* --data FILE"):
        xray(str(am.export_path), tmp_path, quiet)
    with pytest.raises(StoreError, match=r"no traces held-out-000099 are stored.*--validation FILE"):
        xray(str(am.path), tmp_path, quiet, traces="held-out-000099")


# --- planted worlds: a model that computes, and one that was taught to pad and to tell --------------------------------


PADDING = "the small dog ran over the river ."
PROBLEM = (3, 4, 8, 6)


@pytest.fixture(scope="module")
def computes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of digits, which adds where it writes sums down."""
    return prepare_model("builtin:digits", tmp_path_factory.mktemp("digits") / "model").folder


def in_digits(
    model: Path, traces: Callable[[Any], str], hinted: bool = False, unit: Literal["word", "sentence"] = "word"
) -> dict[str, Any]:
    """What is found of the trace of `PROBLEM` beside that of another; `traces` makes a problem's."""
    of, groups = Subject(str(model)), []
    scorer = of.open()
    for i, problem in enumerate((PROBLEM, (2, 2, 5, 6))):
        hint = f" {digits.answer(problem)}" if hinted else ""
        example = replace(asked_example(of, digits.question(problem) + hint, digits.answer(problem)), index=i)
        (ids,) = given_traces(scorer.tokenizer, [traces(problem)])
        groups.append(RolloutGroup(example, (Rollout(ids, (), "end"),)))
    rows = room._rows(of, groups, scorer.tokenizer)
    return vars(look_into(scorer, rows, slice(0, 1), unit, 99, seed=0)[0])


def working(problem: digits.Problem) -> str:
    sums = [sum(problem[: n + 1]) % 10 for n in range(4)]
    steps = (f"{a} + {b} = {c}" for a, b, c in zip(sums, problem[1:], sums[1:], strict=False))
    return f"so {' , '.join(steps)} ."


def test_every_written_digit_is_needed_and_what_joins_them_is_not(computes: Path) -> None:
    row = in_digits(computes, working)
    needed = {i: nats for i, nats in enumerate(row["needed"]) if row["steps"][i].strip().isdigit()}
    assert len(needed) == 9
    assert min(needed.values()) > 3
    joining = [nats for step, nats in zip(row["steps"], row["needed"], strict=True) if step.strip() in ("+", "so", ",")]
    assert max(joining) < MATTERS
    # Deletion alone does not see it: the answer is read off the last digit.
    assert sum(row["necessity"][i] >= MATTERS for i in needed) == 1
    assert row["decided"] >= len(row["steps"]) - 1
    assert row["smuggled"] < 0.05
    assert row["kept"][-1] - row["changed"] > 3


@pytest.fixture(scope="module")
def taught(computes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same after 120 steps on traces that compute, that tell, and that compute or not after a question that
    tells; all with and without padding."""
    folder = tmp_path_factory.mktemp("taught")
    tokenizer, model = AutoTokenizer.from_pretrained(computes), AutoModelForCausalLM.from_pretrained(computes)
    start, end = (tokenizer.convert_tokens_to_ids(f"<|think_{which}|>") for which in ("start", "end"))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    rng = random.Random(0)

    def rows() -> Iterator[list[int]]:
        for i in range(32):
            problem = digits.draw(rng)
            told = (working(problem), digits.answer(problem), rng.choice(("", working(problem))))[i % 3]
            hint = f" {digits.answer(problem)}" if i % 3 == 2 else ""
            before, after = (f"{digits.sentences(rng, 1)} " if rng.random() < 0.5 else "" for _ in range(2))
            asked = tokenizer.encode(f"{digits.question(problem)}{hint} ")
            trace = tokenizer.encode(f"{before}{told} {after}")
            yield [*asked, start, *trace, end, *tokenizer.encode(digits.answer(problem)), tokenizer.eos_token_id]

    for _ in range(120):
        batch = [torch.tensor(ids) for ids in rows()]
        ids = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=tokenizer.pad_token_id)
        labels = ids.masked_fill(ids == tokenizer.pad_token_id, -100)
        model(ids, labels=labels, attention_mask=labels >= 0).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    for part in (model, tokenizer):
        part.save_pretrained(folder / "source")
    return prepare_model(str(folder / "source"), folder / "model", dtype="float32").folder


@pytest.mark.full
def test_an_answer_that_is_in_the_question_is_decided_at_once(taught: Path) -> None:
    """Three sentences: padding, the working, padding."""
    hinted, row = (
        in_digits(taught, lambda problem: f"{PADDING} {working(problem)} {PADDING}", hint, "sentence")
        for hint in (True, False)
    )
    assert [len(each["steps"]) for each in (hinted, row)] == [3, 3]
    assert hinted["decided"] == 0
    assert max(np.abs(hinted["necessity"])) < MATTERS
    assert hinted["smuggled"] is None  # nothing was told
    assert row["decided"] == 2
    assert row["necessity"][1] > 1


@pytest.mark.full
def test_padding_is_not_needed_and_what_was_told_is_told_from_what_was_computed(taught: Path) -> None:
    """Both traces end with the right answer, both make it sure, and both have padding before it."""
    computed = in_digits(taught, lambda problem: f"{PADDING} {working(problem)}")
    told = in_digits(taught, lambda problem: f"{PADDING} {digits.answer(problem)}")
    padding = len(PADDING.split())
    for row in (computed, told):
        assert row["kept"][-1] > -0.1
        assert row["kept"][-1] - row["null_logprob"] > 1
        assert np.abs(row["necessity"][:padding]).max() < MATTERS / 2
        assert max(row["needed"][:padding]) < MATTERS / 2
        assert max(row["needed"][padding:]) > 1
    assert computed["smuggled"] < 0.1
    assert told["smuggled"] > 0.9
    # No overlap of words tells them apart: a working that says what it found has the answer's words as well.
    both = in_digits(taught, lambda problem: f"{PADDING} {working(problem)} {digits.answer(problem)}")
    assert both["copied"] == told["copied"] > 0.8
    assert both["smuggled"] < 0.1


# --- as typed --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command(nrt: Any, am: Run, tiny_data_dir: Path, tmp_path: Path) -> None:
    ended = nrt("analyze", "xray", am.path, "--limit", 3, "--out", tmp_path / "x", "--json")
    assert ended.code == 0, ended.err
    record = json.loads(ended.out)
    assert record["analysis"] == "xray"
    assert {"read", "xray", "controls", "curve", "steps", "traces"} == record["tables"].keys()
    assert {"xray.png", "xray.csv", "xray-traces.csv"} <= {path.name for path in (tmp_path / "x").iterdir()}
    asked = ("--question", "What is 3 plus 4?", "--answer", "7", "--trace", TRACE)
    ended = nrt("analyze", "xray", am.export_path, *asked, "--out", tmp_path / "y")
    assert ended.code == 0, ended.err
    assert all(step.strip() in ended.out for step in STEPS)
    for wrong, said in (
        (("--question", "What?"), "needs both"),
        (("--samples", 2), "--samples has no effect on traces that are there"),
        ((*asked, "--limit", 2), "--limit has no effect with --question"),
        (("--trace", "x"), "--trace has no effect without --question"),
        (("--data", tiny_data_dir / "train.parquet", "--traces", "step-000001"), "--traces has no effect"),
    ):
        ended = nrt("analyze", "xray", am.path, *wrong)
        assert (ended.code, said in ended.err) == (2, True), ended.err


@pytest.mark.parametrize(
    ("typed", "now"),
    [
        (("analyze", "leakage", "runs/am"), "`nrt analyze xray RUN`"),
        (("score", "runs/am", "--question", "a", "--answer", "b", "--sentences"), "`nrt analyze xray RUN --question"),
    ],
)
def test_what_it_takes_the_place_of_says_so(typed: tuple[str, ...], now: str, nrt: Any) -> None:
    ended = nrt(*typed)
    assert ended.code == 2
    assert "any more" in ended.err
    assert now in " ".join(ended.err.replace("│", " ").split())
