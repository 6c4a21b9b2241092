"""`rlvr` and `mix` on a real model: answers from streams of their own, runs that resume, rows that are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from nrt_cli.data.prepare import Settings, Tokenizer, prepare
from nrt_cli.errors import ConfigError
from nrt_cli.progress import Progress
from nrt_cli.store import Run
from nrt_cli.training import start
from nrt_cli.training.trainer import LocalTrainer
from nrt_cli.workflows.train import train

pytestmark = pytest.mark.slow


def trainer_of(config: Any, inputs: start.Inputs) -> LocalTrainer:
    trainer = LocalTrainer(config, 3)
    trainer.verifier = inputs.verifying(trainer.backend.tokenizer, trainer.backend.tokens)
    return trainer


def test_an_answer_depends_on_its_key_alone_and_is_scored_as_it_was_sampled(tiny_config: Any) -> None:
    config = tiny_config("method=rlvr", "rollout.max_answer_tokens=5", "rollout.temperature=0.8")
    inputs = start.load_inputs(config)
    trainer = trainer_of(config, inputs)
    examples = [inputs.train[i] for i in range(3)]
    groups = trainer.answered(trainer.sample(examples, 1), 1)
    answers = [rollout.answer for group in groups for rollout in group.rollouts]
    assert all(answer and 1 <= len(answer.ids) <= 5 and answer.verdict for answer in answers)
    assert len({answer.ids for answer in answers if answer}) > 1
    # The same alone, and with fewer rows together.
    one = trainer.answered(trainer.sample(examples[1:2], 1), 1)
    assert [r.answer.ids for r in one[0].rollouts if r.answer] == [r.answer.ids for r in groups[1].rollouts if r.answer]
    for group in groups:
        scores = trainer.layout.assembled(group, trainer.backend.score(trainer.layout.rows(group)))
        context = trainer.layout.context(group, start_known(), torch.zeros(len(group.example.answer_ids)))
        gap = (scores.chosen_KZ - trainer.layout.sampler_logprobs(group))[context.chosen_mask_KZ()]
        assert float(gap.abs().max()) < 1e-4
        mask = context.sampled_answer_mask_KS
        assert mask is not None
        assert mask.sum(1).tolist() == [len(r.answer.ids) for r in group.rollouts if r.answer]
    assert {rollout.answer for rollout in trainer.held_out(examples).groups[0].rollouts} == {None}


def start_known() -> Any:
    from nrt_cli.objective.losses import Known

    return Known()


@pytest.mark.parametrize("method", ["rlvr", "mix", "guided"])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path, tiny_config: Any, method: str) -> None:
    more = () if method == "guided" else ("rollout.max_answer_tokens=4",)
    config = tiny_config(f"method={method}", "train.minibatch_size=2", "train.steps=3", *more)
    train(tmp_path / "straight", config, False, Progress)
    train(
        tmp_path / "stopped",
        config.model_copy(update={"train": config.train.model_copy(update={"steps": 2})}),
        False,
        Progress,
    )
    train(tmp_path / "stopped", None, True, Progress, changes=[{"train": {"steps": 3}}])
    runs = [Run.open(tmp_path / name) for name in ("straight", "stopped")]
    one, other = (run.load_checkpoint(3).tensors for run in runs)
    assert all(torch.equal(one[name], other[name]) for name in one)
    record = runs[0].metrics()[-1]
    if method == "guided":
        assert 0 < record["effective_traces"] <= 4
        assert record["sampler_gap"] < 1e-4
        return
    assert record["verified_share"] == 1.0
    assert record["verifier_failed"] == 0.0
    rows = runs[0].traces("step-000003")
    assert {row["verdict_fault"] for row in rows} <= {"", "refused"}
    assert all(row["sampled_answer"] is not None for row in rows)


def prepared(folder: Path, *graders: str) -> Path:
    """A file of sums with these graders."""
    import json

    for i, grader in enumerate(graders):
        rows = [{"question": f"What is {n} + {i}?", "answer": str(n + i)} for n in range(6)]
        (folder / f"{i}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        prepare([str(folder / f"{i}.jsonl")], folder / str(i), Settings(grader=grader))
    prepare([str(folder / str(i) / "train.parquet") for i in range(len(graders))], folder / "all", Settings())
    return folder / "all" / "train.parquet"


@pytest.mark.parametrize(
    ("method", "graders", "said"),
    [
        ("rlvr", ("none",), "6 rows have no verifier"),
        ("rlvr", ("number", "none"), r"6 rows have no verifier \(6 of .*train with `mix`"),
        ("mix", ("none",), "no row has a verifier"),
        ("mix", ("number", "none"), ""),
        ("rlvr", ("number",), ""),
    ],
)
def test_rows_without_a_verifier_are_refused_before_the_run(
    tmp_path: Path, tiny_config: Any, method: str, graders: tuple[str, ...], said: str
) -> None:
    file = prepared(tmp_path, *graders)
    config = tiny_config(f"method={method}", f"data.train={file}", "data.validation=null")
    if said:
        with pytest.raises(ConfigError, match=said):
            start.load_inputs(config)
    else:
        inputs = start.load_inputs(config)
        assert inputs.judged is not None
        assert sum(inputs.judged.graders.values()) == 6 * len(graders)
        assert inputs.judged[0].answer == "0"


def test_rlp_learns_from_plain_text_alone(tmp_path: Path, tiny_config: Any, tiny_tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match=r"40 of 40 rows are questions and answers, and method 'rlp' .*--spans"):
        start.load_inputs(tiny_config("method=rlp"))
    (tmp_path / "book.txt").write_text(" ".join(f"Tom has {n} apples." for n in range(80)))
    prepare(
        [str(tmp_path / "book.txt")],
        tmp_path / "book",
        Settings(spans="16:8", validation=1),
        Tokenizer(tiny_tokenizer, ""),
    )
    files = [
        f"data.{key}={tmp_path}/book/{name}.parquet" for key, name in (("train", "train"), ("validation", "validation"))
    ]
    config = tiny_config("method=rlp", *files)
    summary = train(tmp_path / "run", config, False, Progress)
    assert {"perplexity", "null_perplexity", "answer_logprob", "null_logprob"} <= summary["held_out_after"].keys()
    record = Run.open(tmp_path / "run").metrics()[-1]
    assert record["share_answer"] == 0.0
    assert record["reward_base"] == 0.0


def test_a_sampled_answer_needs_positions(tmp_path: Path, tiny_config: Any) -> None:
    with pytest.raises(ConfigError, match="positions"):
        start.load_inputs(tiny_config("method=rlvr", "rollout.max_answer_tokens=500"))
