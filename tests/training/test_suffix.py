"""A model whose training questions all ended in one line is asked with that line."""

import json
import shutil

import pytest

from nrt_cli import config as configs
from nrt_cli.data.prepare import Settings, prepare
from nrt_cli.evaluation.pairs import evaluate_pairs
from nrt_cli.evaluation.session import Job
from nrt_cli.files import read_record
from nrt_cli.models.metadata import read_metadata
from nrt_cli.progress import EvalProgress
from nrt_cli.text.prompts import render_prompt
from nrt_cli.training.locate import locate_model
from nrt_cli.workflows.generate import Conversation, Generator
from nrt_cli.workflows.push import push
from nrt_cli.workflows.scoring import score_answer

LINE = "Answer with one short equation."
ASKED = "What is 3 plus 4?"


@pytest.fixture(scope="module")
def run(shared_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("suffixed") / "data"
    prepare(["generated:sums?size=24"], folder, Settings(validation=4, suffix=LINE))
    files = (f"data.train={folder / 'train.parquet'}", f"data.validation={folder / 'validation.parquet'}")
    made = shared_run("method=am", "train.steps=1", "train.checkpoint_every=1", *files)
    shutil.rmtree(folder)  # it is known without the data
    return made


def question_of(generator, **settings):
    return list(generator.request(ASKED, **settings).prompt_ids)


def test_it_is_asked_with_it_wherever_the_model_is(run, tmp_path):
    push(str(run.path), tmp_path / "pushed")
    for ref in (run.path, f"{run.path}@0", f"{run.path}@1", run.path / "export", tmp_path / "pushed"):
        assert locate_model(ref).suffix == LINE, ref
        generator = Generator(ref)
        tokenizer = generator.reasoner.tokenizer
        want = render_prompt(tokenizer, [{"role": "user", "content": f"{ASKED}\n{LINE}"}])
        assert question_of(generator) == want
        assert list(generator.request(f"{ASKED}\n{LINE}").prompt_ids) == want
        bare = render_prompt(tokenizer, [{"role": "user", "content": ASKED}])
        assert question_of(Generator(ref, suffix=False)) == bare
    assert LINE in (tmp_path / "pushed" / "README.md").read_text()


def test_a_checkpoint_written_as_a_model_knows_it(run):
    folder = run.path / "models" / "step-000001"
    shutil.rmtree(folder, ignore_errors=True)
    run.path.joinpath("export").rename(run.path / "elsewhere")
    try:
        prepared = locate_model(f"{run.path}@1").folder
    finally:
        run.path.joinpath("elsewhere").rename(run.path / "export")
    assert read_metadata(prepared).suffix == LINE


def test_a_conversation_and_a_score_have_it(run):
    talk = Conversation(Generator(run.path), max_trace_tokens=2, max_answer_tokens=2)
    list(talk.ask(ASKED))
    assert talk.turns[0]["content"] == f"{ASKED}\n{LINE}"
    found = score_answer(str(run.path), ASKED, "7", traces=("3 + 4",))
    assert found["question"] == f"{ASKED}\n{LINE}"


def test_an_older_run_and_a_plain_model_have_none(run, tiny_model_dir, tmp_path):
    assert locate_model(tiny_model_dir).suffix is None
    older = tmp_path / "older"
    shutil.copytree(run.path, older)
    manifest = read_record(older / "manifest.json")
    del manifest["data"]
    (older / "manifest.json").write_text(json.dumps(manifest))
    assert locate_model(older).suffix is None


def test_an_evaluation_says_where_its_questions_end_otherwise(run, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(EvalProgress, "warn", lambda self, text: told.append(text))
    caps = ("eval.max_trace_tokens=2", "eval.max_answer_tokens=2", "model.device=cpu")
    for name, suffix, said in (("same", LINE, None), ("none", None, "do not"), ("other", "Why?", "end in 'Why?'")):
        prepare(["generated:sums?size=2&seed=5"], tmp_path / name, Settings(suffix=suffix))
        with EvalProgress() as display:
            job, config = Job(str(run.path), out=tmp_path / "evals", limit=1), configs.load(None, [*caps])
            evaluate_pairs(job, config, display, tmp_path / name / "train.parquet")
        assert bool(told) == bool(said), told
        assert all(said in text and LINE in text for text in told)
        told.clear()
