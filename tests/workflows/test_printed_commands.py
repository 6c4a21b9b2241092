"""What we print to be pasted works: from any folder, whatever runs and models are called and were made with."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrt_cli import commandline
from nrt_cli.files import read_record

pytestmark = pytest.mark.slow

PRINTED = re.compile(r"(?:Next: +|next: +|`)(nrt .+?)(?:`|$)", re.MULTILINE)
ODD = ("two words", "it's", "-x", "[a] $b")


def printed(text: str) -> list[list[str]]:
    """The commands in what a command said, as a shell splits them."""
    return [shlex.split(found)[1:] for found in PRINTED.findall(" ".join(text.split(" ")))]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), min_size=1))
def test_a_shell_reads_the_words_that_were_meant(words):
    assert shlex.split(commandline.pasted(words)) == words


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"])))
def test_a_setting_keeps_its_text(text):
    from nrt_cli.config import parse_override

    (_, word) = commandline.settings({"a.b": text})
    assert parse_override(word) == {"a": {"b": text}}


def test_a_path_is_never_an_option():
    assert commandline.nrt("runs", "show", Path("-x")) == "nrt runs show ./-x"
    assert commandline.resume(Path("two words")) == "nrt train --run 'two words' --resume"


@pytest.mark.parametrize("name", [*ODD[:1], *(pytest.param(name, marks=pytest.mark.full) for name in ODD[1:])])
def test_what_a_run_prints_can_be_typed(name, nrt, tiny_yaml):
    """Each command that training, listing and a refusal name, run as it is printed."""
    done = nrt("train", tiny_yaml, f"--run={name}", "--steps", 1)
    assert done.code == 0, done.err
    (generate,) = printed(done.out)
    answered = nrt(*generate)
    assert answered.code == 0, answered.err
    (going_on,) = printed(nrt("train", tiny_yaml, f"--run={name}").err)
    assert nrt(*going_on).code == 0
    described = json.loads(nrt("runs", "show", "--json", "--", name).out)
    evaluated = nrt(*shlex.split(described["next"])[1:])
    assert evaluated.code == 0, evaluated.err
    (nrt.folder / name / "manifest.json").write_text(
        json.dumps(read_record(nrt.folder / name / "manifest.json") | {"status": "interrupted"})
    )
    described = json.loads(nrt("runs", "show", "--json", "--", name).out)
    assert nrt(*shlex.split(described["next"])[1:]).code == 0


def test_a_model_of_ones_own_think_tokens_trains_as_printed(nrt, make_tiny_source, make_tiny_tokenizer, tiny_data_dir):
    make_tiny_source(nrt.folder / "source", make_tiny_tokenizer())
    prepared = nrt("model", "prepare", "source", "--out", "my model", "--think-start", "<a b>", "--think-end", "null")
    assert prepared.code == 0, prepared.err
    (words,) = printed(prepared.out)
    data = str(tiny_data_dir / "train.parquet")
    words = [data if word == "DATA.parquet" else word for word in words]
    small = ("--steps", 1, "--set", "rollout.max_trace_tokens=4", "--run", "run")
    done = nrt(*words, *small)
    assert done.code == 0, done.err
    # Without them, the refusal says what to add.
    refused = nrt("train", "laptop", "--model", "my model", "--data", data, "--run", "other")
    assert refused.code == 1
    added = shlex.split(refused.err.rpartition(", add ")[2].strip().rstrip("."))
    assert added == words[-4:]


def test_a_pushed_model_trains_as_its_card_and_a_refusal_say(shared_run, nrt_in, tmp_path):
    from nrt_cli.workflows.push import push

    run, pushed = shared_run("method=am", "train.steps=2"), tmp_path / "pushed model"
    push(str(run.path), pushed)
    config = run.config()
    shutil.copytree(config.model.path, pushed / Path(config.model.path).name)
    for file in (config.data.train, config.data.validation):
        shutil.copy(file, pushed)
    nrt = nrt_in(pushed)
    (words,) = (found for found in printed((pushed / "README.md").read_text()) if found[0] == "train")
    done = nrt(*words, "--steps", 1, "--run", "again")
    assert done.code == 0, done.err
    # What was pushed has think tokens of its own, which the refusal names; there is nothing to prepare.
    mine = (*words, "--model", pushed, "--steps", 1, "--run", "more")
    refused = nrt(*mine)
    assert refused.code == 1
    assert "nrt model prepare" not in refused.err
    done = nrt(*mine, *shlex.split(refused.err.rpartition(", add ")[2].strip().rstrip(".")))
    assert done.code == 0, done.err


def test_the_usual_caps_fit_a_short_context(shared_run):
    from nrt_cli.workflows.generate import Generator

    generator = Generator(shared_run("method=am", "train.steps=1").path)
    generator.reasoner.positions = 64
    requests = []
    generator.reasoner.stream = requests.append
    generator.stream("1 + 2")
    generator.stream("1 + 2", max_trace_tokens=10)
    generator.stream("1 + 2", "off")
    room = 64 - len(requests[0].prompt_ids)
    for request in requests:
        draft = generator.reasoner.draft(request)
        assert (draft.trace_cap, draft.answer_cap) == (request.max_trace_tokens, request.max_answer_tokens)
    assert requests[0].max_trace_tokens == requests[0].max_answer_tokens == (room - 2) // 2
    assert (requests[1].max_trace_tokens, requests[1].max_answer_tokens) == (10, room - 2 - 10)
    assert requests[2].max_answer_tokens == room
