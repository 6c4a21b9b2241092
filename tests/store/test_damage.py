"""What is not as it was written is named by what reads it, and never half read."""

import contextlib
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrt_cli.errors import ConfigError, NrtError, StoreError
from nrt_cli.files import Damage, line_of, read_record, record_of, record_text, sealed, unsealed
from nrt_cli.store import Run, find_runs
from nrt_cli.store.evals import Evaluation
from nrt_cli.store.judgements import Judgements
from nrt_cli.store.tables import bank_rows
from nrt_cli.workflows.runs import check


@pytest.fixture
def run(shared_run: Callable[..., Run], tmp_path: Path) -> Run:
    """A finished run of 3 steps, to damage."""
    return Run.open(shutil.copytree(shared_run("method=am").path, tmp_path / "run"))


@given(st.dictionaries(st.text(), st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists)))
def test_a_record_comes_back_and_no_part_of_it_does(tmp_path_factory: pytest.TempPathFactory, values: dict) -> None:
    values.pop("checksum", None)
    file = tmp_path_factory.getbasetemp() / "record.json"
    text = record_text(file.name, values)
    file.write_text(text)
    assert read_record(file) == values
    other = file.with_name("other.json")
    other.write_text(text)
    with pytest.raises(ValueError, match="checksum differs"):
        read_record(other)


@given(st.text(alphabet=st.characters(blacklist_categories=["Cs"])), st.integers(0, 1 << 40), st.data())
def test_a_line_comes_back_where_it_stood_as_it_was(text: str, at: int, data: st.DataObject) -> None:
    record = {"step": 1, "text": text}
    line = line_of(json.dumps(record), at)
    assert record_of(line, at) == record
    assert record_of(line[: data.draw(st.integers(0, len(line) - 2))], at) is None
    with pytest.raises(ValueError, match="checksum differs"):
        record_of(line, at + 1)
    flipped, bit = bytearray(line), data.draw(st.integers(0, 8 * len(line) - 1))
    flipped[bit // 8] ^= 1 << bit % 8
    with contextlib.suppress(ValueError):  # where the checksum's name was hit, nothing else was
        assert (record_of(bytes(flipped), at) or record).items() >= record.items()


def test_a_config_that_lost_lines_is_no_config(run: Run) -> None:
    whole = run.config_path.read_text().splitlines(keepends=True)
    for cut in range(1, len(whole)):
        run.config_path.write_text("".join(whole[:cut]))
        with pytest.raises(ConfigError, match=r"config\.yaml: is damaged"):
            run.config()
        # Whoever changes it by hand takes the checksum out.
    run.config_path.write_text("".join(whole[1:-1]))
    assert run.config().method == "am"
    assert all(unsealed(sealed(text)).splitlines()[1] == "a: 1" for text in ("a: 1\n", "a: 1"))


DAMAGED = (
    *("config.yaml", "manifest.json", "metrics.jsonl", "events.jsonl", "traces/step-000002.parquet"),
    *("traces/held-out-000003.parquet", "export/model.safetensors", "export/nrt.json", "export/config.json"),
    *("checkpoints/step-000003/state.json", "checkpoints/step-000003/checksums.json"),
    "checkpoints/step-000003/model.safetensors",
)


@pytest.mark.parametrize("how", ["bit", "half", "empty", "gone"])
@pytest.mark.parametrize("name", DAMAGED)
def test_a_check_names_every_file_that_is_not_as_it_was_written(run: Run, name: str, how: str) -> None:
    file = run.path / name
    content = bytearray(file.read_bytes())
    if how == "gone":
        file.unlink()
    else:
        content[len(content) // 2] ^= 4
        file.write_bytes({"bit": content, "half": content[: len(content) // 2], "empty": b""}[how])
    faults = check(run.path)
    assert faults, "nothing was found"
    assert any(file.name in fault.what or file.parent.name in fault.what for fault in faults)


@pytest.mark.parametrize("left", [0, 1])
def test_lines_that_are_gone_are_missed(run: Run, left: int) -> None:
    """Each line has its checksum; that there were more, only another file knows."""
    judgements = Judgements(run)
    with judgements.writing():
        for number in range(3):
            judgements.append({"key": str(number), "score": 1.0})
    assert check(run.path) == []
    for file, read in (
        (judgements.path / "scores.jsonl", judgements.records),
        (run.path / "metrics.jsonl", run.metrics),
    ):
        whole = file.read_bytes()
        file.write_bytes(b"".join(whole.splitlines(keepends=True)[:left]))
        (fault,) = check(run.path)
        assert file.name in fault.what
        with pytest.warns(Damage, match=file.name):
            assert len(read()) <= left
        file.write_bytes(whole)
    assert check(run.path) == []


def test_a_whole_run_has_no_fault(run: Run, nrt_in: Callable, tmp_path: Path) -> None:
    assert check(run.path) == []
    nrt = nrt_in(tmp_path)
    assert nrt("runs", "check", "run").code == 0
    table = run.path / "traces" / "step-000001.parquet"
    table.write_bytes(table.read_bytes()[:-9])
    ended = nrt("runs", "check", ".", "--json")
    assert ended.code == 1
    assert [Path(fault["of"]).name for fault in json.loads(ended.out)] == ["run"]
    assert "step-000001.parquet" in json.loads(ended.out)[0]["what"]


def test_a_table_under_another_name_or_with_a_changed_page_is_refused(run: Run) -> None:
    first, second = (run.path / "traces" / f"step-00000{n}.parquet" for n in (1, 2))
    whole = second.read_bytes()
    shutil.copy(first, second)
    with pytest.raises(StoreError, match=r"step-000002\.parquet"):
        run.traces("step-000002")
    with pytest.raises(StoreError, match=r"step-000002\.parquet: is another table"):
        bank_rows(second, ["example"])
    assert bank_rows(Path(shutil.copy(first, run.path.parent / "mine.parquet")), ["example"])
    page = pq.ParquetFile(first).metadata.row_group(0).column(2).data_page_offset + 40
    column = whole.rindex(b"trace_ids")  # in its foot: another name is a column that is missing
    for at in (page, column):
        second.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(StoreError, match=r"step-000002\.parquet"):
            run.traces("step-000002")


def test_a_damaged_run_is_left_out_of_a_list_with_a_word(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "other")
    (run.path / "manifest.json").write_bytes((run.path / "manifest.json").read_bytes()[:200])
    with pytest.warns(Damage, match=r"run/manifest\.json: is damaged .* left out"):
        assert [found.path.name for found in find_runs(tmp_path)] == ["other"]


@pytest.mark.parametrize("text", ["{}", '{"model_type": "llama"}', '{"format": 0}'])
def test_another_json_file_in_a_manifest_s_place_is_damage(run: Run, text: str) -> None:
    (run.path / "manifest.json").write_text(text)
    with pytest.warns(Damage, match=r"run/manifest\.json: is not that of a run"):
        assert find_runs(run.path.parent) == []
    assert [fault.of for fault in check(run.path)] == [str(run.path)]


@pytest.mark.parametrize(
    "name", ["evals/export/one/scores.json", "judgements/size.json", "tags.json", "analysis/tokens/tokens.json"]
)
def test_another_json_file_in_a_record_s_place_is_damage(run: Run, name: str) -> None:
    """Such as a tokenizer's settings, which have no checksum that could differ."""
    evaluation = Evaluation.create(run.path / "evals" / "export", "one", {}, {})
    made = evaluation.path.rename(evaluation.path.with_name("one"))
    Evaluation(made).write_scores({"benchmark": "gsm8k", "score": 0.5, "error": 0.1, "n": 0})
    assert check(run.path) == []
    (run.path / name).parent.mkdir(parents=True, exist_ok=True)
    (run.path / name).write_text('{"model_type": "llama"}')
    (fault,) = check(run.path)
    assert name in fault.what
    assert "is another file than" in fault.what


@pytest.mark.parametrize("text", ["", "[]", "1", "[" * 10_000 + "]" * 10_000, '{"a": ' * 10_000 + "1" + "}" * 10_000])
@pytest.mark.parametrize("name", ["manifest.json", "metrics.jsonl", "config.yaml", "export/nrt.json"])
def test_a_file_that_is_something_else_costs_a_sentence(run: Run, name: str, text: str) -> None:
    (run.path / name).write_text(text)
    assert check(run.path)
    for read in (run.manifest, run.config, run.metrics):
        with contextlib.suppress(NrtError), warnings.catch_warnings(action="ignore"):
            read()


def test_a_start_that_was_killed_leaves_a_place_for_the_next(tmp_path: Path) -> None:
    for left in ("config.yaml", "config.yaml.tmp", "manifest.json.tmp"):
        folder = tmp_path / left
        folder.mkdir()
        for name in {".lock", "config.yaml", left}:
            (folder / name).write_text("half")
        with pytest.warns(Damage, match="taken over"):
            Run.create(folder, "method: am\n", {"status": "created"})
        assert Run.open(folder).manifest()["status"] == "created"


@pytest.mark.parametrize("name", ["train.parquet", "model.safetensors", "nrt.json", "manifest.json"])
def test_what_was_changed_since_it_was_prepared_trains_nothing(
    name: str, nrt: Callable, tiny_yaml: Path, tiny_model_dir: Path, tiny_data_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model_dir, tmp_path / "model")
    shutil.copytree(tiny_data_dir, tmp_path / "data")
    file = next(tmp_path.glob(f"*/{name}"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    paths = ("--data", "data/train.parquet", "--validation", "data/validation.parquet", "--model", "model")
    ended = nrt("train", tiny_yaml, "--run", "run", "--steps", 1, *paths)
    assert ended.code == 1
    assert file.parent.name in ended.err
    assert "Traceback" not in ended.err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_checkpoint_that_a_kill_left_over_goes_at_the_next_start(run: Run, nrt: Callable) -> None:
    assert run.checkpoint_steps() == [2, 3]
    shutil.copytree(run.path / "checkpoints" / "step-000002", run.path / "checkpoints" / "step-000001")
    (run.path / "manifest.json").write_text(json.dumps({**run.manifest(), "status": "running"}))
    assert nrt("train", "--run", "run", "--resume", "--steps", 4).code == 0
    assert run.checkpoint_steps() == [3, 4]
