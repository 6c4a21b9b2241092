"""SFT on reference traces (Eq. 1): from a column of the data to a model that thinks."""

import json

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from nrt_cli.data.columns import parse_mapping
from nrt_cli.data.examples import References, load_examples
from nrt_cli.data.prepare import Settings, prepare
from nrt_cli.errors import DataError
from nrt_cli.models.loading import load_tokens
from nrt_cli.models.metadata import read_metadata
from nrt_cli.progress import Progress
from nrt_cli.store import Run
from nrt_cli.training.start import load_inputs
from nrt_cli.workflows.runs import held_out_measures
from nrt_cli.workflows.scoring import Subject
from nrt_cli.workflows.train import train

ON_TRACES = ("method=sft", "data.traces=true", "rollout.max_trace_tokens=40")
MAPPING = parse_mapping("question=question,answer=answer,trace=why")


def sums(count, why):
    return [
        {"question": f"{i} + 1?", "answer": f"{i + 1} #### {i + 1}"} | ({"why": text} if (text := why(i)) else {})
        for i in range(count)
    ]


def prepared(folder, rows, mapping=MAPPING, **settings):
    """The folder's files and its manifest."""
    folder.mkdir(exist_ok=True)
    (folder / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest, _ = prepare([str(folder / "qa.jsonl")], folder / "data", Settings(mapping=mapping, **settings))
    return folder / "data", manifest


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """24 pairs, of which every other has a trace; 4 questions are held out."""
    why = lambda i: f"{i} and one" if i % 2 else None  # noqa: E731
    return prepared(tmp_path_factory.mktemp("mixed"), sums(24, why), validation=4)


def of(files):
    return (f"data.train={files / 'train.parquet'}", f"data.validation={files / 'validation.parquet'}")


def test_traces_are_kept_apart_from_their_answers_and_counted(mixed, tmp_path):
    files, manifest = mixed
    rows = [row for name in ("train", "validation") for row in pq.read_table(files / f"{name}.parquet").to_pylist()]
    found = {row["prompt"][-1]["content"]: row["reward_model"] for row in rows}
    for i in range(24):
        kept = found[f"{i} + 1?"]
        assert kept["trace"] == (f"{i} and one" if i % 2 else None)
        assert kept["ground_truth"] == f"{i + 1} #### {i + 1}"
    per_split = [sum(bool(row["reward_model"]["trace"]) for row in rows[at]) for at in (slice(20), slice(20, 24))]
    assert list(manifest["traces"].values()) == per_split
    assert sum(per_split) == 12
    assert "why" not in manifest["unused_columns"]
    # What is prepared once more keeps them.
    again, _ = prepare([str(files / "train.parquet")], tmp_path / "again", Settings())
    assert again["traces"] == {"train": per_split[0], "validation": 0}


def test_without_the_column_files_are_as_before(tmp_path):
    plain, manifest = prepared(tmp_path / "plain", sums(6, lambda i: None), {})
    unread, _ = prepared(tmp_path / "unread", sums(6, lambda i: "so"), {})
    assert "traces" not in manifest
    assert pq.read_schema(plain / "train.parquet").field("reward_model").type.names == [
        "style",
        "ground_truth",
        "grader",
    ]
    assert (plain / "train.parquet").read_bytes() == (unread / "train.parquet").read_bytes()


def test_pairs_that_differ_in_their_traces_are_no_duplicates(tmp_path):
    row = {"question": "q?", "answer": "a"}
    rows = [row | {"why": "b"}, row | {"why": "c"}, row | {"why": "b"}, row, row | {"why": " \n"}]
    _, manifest = prepared(tmp_path, rows)
    assert (manifest["counts"]["train"], manifest["counts"]["dropped"]) == (3, {"duplicate": 2})


def test_a_column_that_no_row_has_is_refused(tmp_path):
    with pytest.raises(DataError, match="names column 'why', which no row has"):
        prepared(tmp_path, sums(3, lambda i: None))


def test_traces_become_tokens_that_open_and_end_nothing(tmp_path, tiny_config):
    """Think and eos tokens that are spelled out stay text, as in answers; what is too long is dropped and counted."""
    marks = "<|think_end|> <eos> <|think_start|>"
    files, _ = prepared(tmp_path, sums(8, lambda i: (marks, "z" * 99, None, "b")[i % 4]))
    data = f"data.train={files / 'train.parquet'}"
    config = tiny_config(*ON_TRACES, data, "data.validation=null")
    train_set = load_inputs(config).train
    tokenizer, tokens = load_tokens(config.model.path, "<|think_start|>", "<|think_end|>")
    assert (len(train_set), train_set.traces, train_set.dropped) == (6, 4, {"long-trace": 2})
    assert sorted(tokenizer.decode(e.trace_ids) for e in train_set) == sorted(["", "", "b", "b", marks, marks])
    assert not any(set(tokens.trace_ends) & set(e.trace_ids) for e in train_set)
    longest = max(len(e.trace_ids) for e in train_set)
    lower = tiny_config(*ON_TRACES, data, "data.validation=null", f"rollout.max_trace_tokens={longest - 1}")
    assert load_inputs(lower).train.dropped == {"long-trace": 4}
    plain = load_examples(files / "train.parquet", tokenizer, 4096, 4096)
    assert (len(plain), plain.traces, {e.trace_ids for e in plain}) == (8, 6, {()})


@pytest.mark.parametrize(
    ("why", "message"),
    [
        (lambda i: None, "no row has a reference trace; name the column"),
        (lambda i: "z" * 99, "no reference trace is left of 4: 4 are longer than rollout.max_trace_tokens"),
        (lambda i: "z" * 99 if i else None, "no reference trace is left of 3: 3 are longer"),
    ],
)
def test_without_a_trace_there_is_nothing_to_train_on(tmp_path, tiny_config, why, message):
    rows = sums(4, why)
    files, _ = prepared(tmp_path, rows, MAPPING if any("why" in row for row in rows) else {})
    with pytest.raises(DataError, match=message):
        load_inputs(tiny_config(*ON_TRACES, f"data.train={files / 'train.parquet'}", "data.validation=null"))


def test_a_think_token_that_is_no_special_token_drops_its_row(tmp_path, tiny_config):
    """As `</think>` of Qwen 3: no option of the tokenizer keeps it as text."""
    files, _ = prepared(tmp_path, sums(4, lambda i: "a" if i else "bb"))
    config = tiny_config(*ON_TRACES)
    tokenizer, _ = load_tokens(config.model.path, "<|think_start|>", "<|think_end|>")
    barred = tokenizer.encode("a", add_special_tokens=False)
    found = load_examples(
        files / "train.parquet", tokenizer, 4096, 4096, references=References(lambda answer: 9, barred)
    )
    assert (len(found), found.dropped) == (1, {"think-token-in-trace": 3})


def test_a_model_trained_on_traces_thinks(mixed, train_run):
    run = train_run(*ON_TRACES, *of(mixed[0]))
    assert read_metadata(run.export_path).thinks
    assert Subject(run.path).thinks
    kinds = ("thinking", "null", "direct", "other_trace")
    for record in run.metrics("held_out"):
        assert {"answer_logprob", "null_logprob", "gain", *(f"accuracy_{kind}" for kind in kinds)} <= record.keys()
    assert [name for name in run.trace_names() if name.startswith("held-out")] == ["held-out-000000", "held-out-000003"]
    assert {"gain", "accuracy_thinking"} <= {found.measure.key for found in held_out_measures(run)}


def test_traces_change_what_is_learned_only_where_they_are_asked_for(mixed, train_run, tmp_path):
    """SFT on pairs and RL learn from a file with traces what they learn from the same file without."""
    table = pq.read_table(mixed[0] / "train.parquet")
    at = table.column_names.index("reward_model")
    kept = [{name: row[name] for name in row if name != "trace"} for row in table["reward_model"].to_pylist()]
    pq.write_table(table.set_column(at, "reward_model", [kept]), tmp_path / "plain.parquet")

    def learned(file, *settings):
        run = train_run(*settings, f"data.train={file}", "data.validation=null", "train.steps=1")
        assert read_metadata(run.export_path).thinks == (settings[0] != "method=sft" or len(settings) > 1)
        return load_file(run.export_path / "model.safetensors")

    for method in ("method=sft", "method=am"):
        a, b = learned(mixed[0] / "train.parquet", method), learned(tmp_path / "plain.parquet", method)
        assert all((a[name] == b[name]).all() for name in a)
    direct, on_traces = (learned(mixed[0] / "train.parquet", *asked) for asked in (("method=sft",), ON_TRACES))
    assert any((direct[name] != on_traces[name]).any() for name in direct)


def test_traces_that_are_not_read_are_told_of_once(mixed, tiny_config):
    said = [load_inputs(tiny_config(*asked, *of(mixed[0]))).left_out() for asked in (("method=am",), ON_TRACES)]
    (unread,), (read,) = said
    assert unread.endswith("of 20 examples have one, not read without --method sft --set data.traces=true")
    assert read.endswith("of 20 examples have one")


def test_a_run_on_traces_that_goes_on_ends_as_one_that_never_stopped(mixed, tiny_config, train_run, tmp_path):
    settings = (*ON_TRACES, *of(mixed[0]), "train.validate_every=2", "train.keep_checkpoints=9")
    straight = train_run(*settings, "train.steps=4")
    train(tmp_path / "part", tiny_config(*settings, "train.steps=2"), False, Progress)
    train(tmp_path / "part", None, True, Progress, [{"train": {"steps": 4}}])
    part, whole = Run.open(tmp_path / "part"), straight
    a, b = (load_file(run.export_path / "model.safetensors") for run in (part, whole))
    assert all((a[name] == b[name]).all() for name in a)
    losses = [[record["loss"] for record in run.metrics()] for run in (part, whole)]
    assert losses[0] == losses[1]
