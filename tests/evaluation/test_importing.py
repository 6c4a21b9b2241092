"""Reading what lm-eval wrote, files written by lm-eval's own tracker."""

import json

import pytest

from nrt_cli.config.suite import NAMES, ORDER, benchmark, select
from nrt_cli.errors import EvalError
from nrt_cli.evaluation import importing
from nrt_cli.evaluation.importing import read_output, results_file

(GSM8K, TRUTHFULQA, IFEVAL, MATH) = (select([name])[0] for name in ("gsm8k", "truthfulqa", "ifeval", "math"))


def sample(number, filter_key="none", resps=((" 4",),), **scores):
    """A line of samples, as lm-eval's evaluator logs it."""
    return {
        "doc_id": number,
        "doc": {"question": f"{number}?"},
        "target": "4",
        "arguments": [(f"Q: {number}?\nA:", {"until": []})],
        "resps": [list(each) for each in resps],
        "filtered_resps": ["4"],
        "filter": filter_key,
        "metrics": list(scores),
        "doc_hash": "d",
        "prompt_hash": "p",
        "target_hash": "t",
        **scores,
    }


@pytest.fixture
def write(tmp_path):
    """Lets lm-eval's tracker write `{task: (results, samples, config)}`."""
    from lm_eval.loggers import EvaluationTracker

    def write(tasks):
        tracker = EvaluationTracker(output_path=str(tmp_path / "theirs"))
        tracker.general_config_tracker.model_name_sanitized = "my__model"
        tracker.general_config_tracker.model_name = "my/model"
        results = {
            "results": {task: values for task, (values, _, _) in tasks.items()},
            "configs": {task: {"num_fewshot": 0, **config} for task, (_, _, config) in tasks.items()},
            "versions": {},
            "lm_eval_version": "0.4.13",
        }
        samples = {task: rows for task, (_, rows, _) in tasks.items()}
        tracker.save_results_aggregated(results=results, samples=samples)
        for task, rows in samples.items():
            tracker.save_results_samples(task_name=task, samples=rows)
        file = results_file(tmp_path / "theirs")
        assert file.parent.name == "my__model"
        return file

    return write


@pytest.mark.slow
def test_of_two_ways_to_extract_the_lenient_one_counts(write):
    rows = [sample(n, "strict-match", exact_match=0.0) for n in range(4)]
    rows += [sample(n, "flexible-extract", exact_match=float(n != 2)) for n in range(4)]
    results = {"exact_match,strict-match": 0.0, "exact_match,flexible-extract": 0.75}
    output = read_output(write({"gsm8k_cot_zeroshot": (results, rows, {"repeats": 1})}), GSM8K)
    assert output.score == 0.75
    assert [document.scores["exact_match"] for document in output.documents] == [1.0, 1.0, 0.0, 1.0]
    first = output.documents[0]
    assert first.messages == ({"role": "user", "content": "Q: 0?\nA:"},)
    assert (first.replies[0].answer, first.extracted, first.gold) == (" 4", ("4",), "4")
    assert output.model == "my/model"
    assert output.versions["lm_eval_version"] == "0.4.13"
    assert output.differences == []
    assert not output.lengths


@pytest.mark.slow
def test_other_settings_than_the_suites_are_named(write):
    config = {"num_fewshot": 5, "generation_kwargs": {"max_gen_toks": 256, "temperature": 0.0}}
    output = read_output(
        write({"gsm8k": ({"exact_match,strict-match": 1.0}, [sample(0, exact_match=1.0)], config)}), GSM8K
    )
    assert output.differences == ["max_gen_toks 256, in the suite 131072", "num_fewshot 5, in the suite 0"]


@pytest.mark.slow
def test_subsets_and_metrics_by_lm_evals_names(write):
    tasks = {
        "truthfulqa_mc2": (
            {"acc,none": 0.4},
            [sample(0, resps=(((-1.5, False),), ((-2.0, True),)), acc=0.4)],
            {"num_fewshot": 6},
        ),
        "ifeval": (
            {"prompt_level_loose_acc,none": 1.0, "prompt_level_strict_acc,none": 0.0},
            [sample(0, prompt_level_loose_acc=True, prompt_level_strict_acc=False, inst_level_loose_acc=[True])],
            {},
        ),
        "minerva_math_algebra": ({"math_verify,none": 1.0}, [sample(0, math_verify=1.0, exact_match=0.0)] * 3, {}),
        "minerva_math_counting_and_prob": ({"math_verify,none": 0.0}, [sample(0, math_verify=0.0)], {}),
    }
    file = write(tasks)
    truthfulqa = read_output(file, TRUTHFULQA)
    assert truthfulqa.documents[0].scores["mc2"] == 0.4
    assert [reply.logprob for reply in truthfulqa.documents[0].replies] == [-1.5, -2.0]
    ifeval = read_output(file, IFEVAL)
    assert (ifeval.score, ifeval.documents[0].scores[IFEVAL.metric]) == (1.0, 1.0)
    assert "inst_level_loose_acc" not in ifeval.documents[0].scores
    # macro: (3/3 + 0/1) / 2
    math = read_output(file, MATH)
    assert math.score == 0.5
    assert [document.subset for document in math.documents] == ["algebra"] * 3 + ["counting_and_probability"]
    assert read_output(file, GSM8K) is None


@pytest.mark.slow
def test_samples_that_were_not_logged_are_asked_for(write):
    file = write({"gsm8k": ({"exact_match,none": 1.0}, [sample(0, exact_match=1.0)], {})})
    next(file.parent.glob("samples_*")).unlink()
    with pytest.raises(EvalError, match="run lm-eval with --log_samples"):
        read_output(file, GSM8K)


def test_what_lm_eval_did_not_write_is_refused(tmp_path):
    assert results_file(tmp_path) is None
    file = tmp_path / "results_x.json"
    for content in ("{", "[]", json.dumps({"results": {}})):
        file.write_text(content)
        with pytest.raises(EvalError, match="not what lm-eval writes"):
            read_output(file, GSM8K)


def test_every_benchmark_has_a_name_there():
    assert [name for name in NAMES if benchmark(name).lm_eval_tasks] == [*ORDER]


def test_a_users_benchmark_is_the_task_of_its_name(write, tmp_path, nrt):
    path = tmp_path / "capitals.yaml"
    path.write_text('{rows: capitals.jsonl, prompt: "{{question}}", grader: exact}')
    rows = [sample(0, acc=1.0), sample(1, acc=0.0)]
    file = write({"capitals": ({"acc,none": 0.5, "acc_stderr,none": 0.5}, rows, {})})
    ended = nrt("eval", "import", file.parent, "--benchmarks", path, "--json")
    assert ended.code == 0, ended.err
    (row,) = json.loads(ended.out)["benchmarks"]
    assert (row["benchmark"], row["score"], row["n"]) == ("capitals", 0.5, 2)
    ended = nrt("eval", "import", file.parent)
    assert ended.code == 1
    assert "has results of none of the nine benchmarks; name one of your own with --benchmarks mine.yaml" in ended.err


@pytest.mark.parametrize(
    ("results", "samples", "said"),
    [
        ({}, [[1]], "jsonl:1: a row is a JSON object of columns, found list"),
        ({}, [{"doc_id": 0}], "jsonl:1: has no 'filter'; it has doc_id"),
        ({}, [sample(0, exact_match=1.0), {**sample(1), "metrics": 5}], "is not what lm-eval writes (TypeError"),
        ({}, [], "jsonl: has no samples"),
        ({"results": {"gsm8k": {"exact_match,none": "N/A"}}}, [sample(0)], "is not what lm-eval writes (ValueError"),
        ({"results": {}}, [sample(0)], "of gsm8k is not what lm-eval writes (KeyError: 'gsm8k')"),
    ],
)  # fmt: skip
def test_damaged_output_is_a_sentence(tmp_path, results, samples, said):
    good = {"configs": {"gsm8k": {"num_fewshot": 0}}, "results": {"gsm8k": {"exact_match,none": 1.0}}}
    (tmp_path / "results_1.json").write_text(json.dumps(good | results))
    (tmp_path / "samples_gsm8k_1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    with pytest.raises(EvalError) as caught:
        importing.import_results(tmp_path, None, tmp_path / "out", print)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
