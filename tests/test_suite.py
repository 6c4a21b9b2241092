"""The suite's data: the paper's Table 7, complete and consistent, and how benchmarks are named."""

import pytest

from nrt_cli.config.schema import EvalSection
from nrt_cli.config.suite import ORDER, benchmark, categories, select
from nrt_cli.errors import ConfigError

# Table 7 of the paper, row by row: domain, prompting strategy, shots, metric.
TABLE_7 = {
    "MMLU": ("General Knowledge", "Zero-shot CoT", 0, "Accuracy"),
    "BBH": ("General Reasoning", "CoT", 3, "Accuracy"),
    "DROP": ("Reading Comprehension", "Zero-shot Chat", 0, "F1 Score"),
    "PopQA": ("Fact-based Q&A", "Standard Prompting", 15, "Accuracy"),
    "TruthfulQA": ("Truthfulness", "Standard Prompting", 6, "Accuracy"),
    "GSM8K": ("Mathematical Reasoning", "Zero-shot CoT", 0, "Accuracy"),
    "MATH": ("Mathematical Reasoning", "Zero-shot Reasoning", 0, "Accuracy"),
    "HumanEval": ("Code Generation", "Standard Prompting", 0, "Pass@10"),
    "IFEval": ("Instruction Following", "Standard Prompting", 0, "Pass@10"),
}
# OLMES: alias, metric, aggregation, generation (answer tokens, temperature, top_p, samples), documents.
# Source: oe_eval/configs/tasks.py at 5a51f502, with the defaults of oe_eval/tasks/oe_eval_tasks.
OLMES = {
    "mmlu": ("mmlu:0shot_cot::tulu3", "exact_match", "macro", (2048, 0.0, 1.0, 1), 14042),
    "bbh": ("bbh:cot-v1::tulu", "exact_match", "micro", (512, 0.0, 1.0, 1), 6511),
    "drop": ("drop:0shot-chat::olmes", "f1", "micro", (512, 0.0, 1.0, 1), 1000),
    "popqa": ("popqa::tulu", "exact_match", "micro", (15, 0.0, 1.0, 1), 14267),
    "truthfulqa": ("truthfulqa::tulu", "mc2", "micro", (1, 0.0, 1.0, 1), 817),
    "gsm8k": ("gsm8k::zs_cot", "exact_match", "micro", (131072, 0.0, 1.0, 1), 1319),
    "math": ("minerva_math::hamish_zs_reasoning", "exact_match", "macro", (131072, 0.7, 1.0, 1), 5000),
    "humaneval": ("codex_humaneval::tulu", "pass_at_10", "micro", (999999, 0.8, 0.95, 20), 164),
    "ifeval": ("ifeval::tulu", "prompt_level_loose_acc", "micro", (2048, 0.0, 1.0, 1), 541),
}


def test_the_suite_is_table_7() -> None:
    suite = select(["all"])
    found = {spec.title: (spec.domain, spec.prompting, spec.shots, spec.paper_metric) for spec in suite}
    assert list(found.items()) == list(TABLE_7.items())


@pytest.mark.parametrize("name", ORDER)
def test_settings_are_those_of_olmes(name: str) -> None:
    spec = benchmark(name)
    settings = spec.generation
    generation = (settings.max_tokens, settings.temperature, settings.top_p, settings.samples)
    assert (spec.olmes, spec.metric, spec.aggregation, generation, spec.instances) == OLMES[name]
    stops = {
        "popqa": ("\n\n",),
        "humaneval": ("\nclass", "\nif", "\nprint", "\n#", "\n```", "\n```\n\n", "<|eot_id|>"),
    }
    assert settings.stop == stops.get(name, ())


def test_settings_lower_samples_and_make_math_greedy() -> None:
    fewer = EvalSection(max_samples=4, math_greedy=True)
    changed = {spec.name: spec.under(fewer).generation for spec in select(["all"])}
    assert {name: g.samples for name, g in changed.items() if g.samples > 1} == {"humaneval": 4}
    assert {name: g.temperature for name, g in changed.items() if g.temperature} == {"humaneval": 0.8}
    assert [spec.under(EvalSection()) for spec in select(["all"])] == list(select(["all"]))


def test_examples_are_as_many_as_the_table_says() -> None:
    for spec in select(["all"]):
        assert (spec.examples.count if spec.examples else 0) == spec.shots
        if spec.examples and not spec.examples.lm_eval_task:
            assert len(spec.examples.examples) == spec.shots


def test_subsets() -> None:
    assert {spec.name: len(spec.subsets) for spec in select(["all"]) if spec.subsets} == {
        "mmlu": 57,
        "bbh": 27,
        "math": 7,
    }
    for spec in select(["all"]):
        assert list(spec.subsets) == sorted(set(spec.subsets))
        assert set(spec.answers) - {"*"} <= set(spec.subsets)


def test_no_example_of_popqa_is_asked_twice() -> None:
    examples = benchmark("popqa").examples
    assert examples
    assert len({row["question"] for row in examples.examples}) == 15


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        (["all"], list(ORDER)),
        (["gsm8k,bbh"], ["bbh", "gsm8k"]),
        (["GSM8K", " bbh "], ["bbh", "gsm8k"]),
        (["category:math"], ["gsm8k", "math"]),
        (["category:math,gsm8k", "drop"], ["drop", "gsm8k", "math"]),
        (["digits,gsm8k"], ["gsm8k", "digits"]),  # not the paper's, so not in `all`
    ],
)
def test_select(asked: list[str], meant: list[str]) -> None:
    assert [spec.name for spec in select(asked)] == meant


def test_every_benchmark_has_one_category() -> None:
    counted = [len(select([f"category:{category}"])) for category in categories()]
    assert sum(counted) == len(ORDER)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("gsm8", "did you mean 'gsm8k'?"),
        ("arc", "choose from mmlu, bbh"),
        ("category:maths", "did you mean 'math'?"),
        ("category:", "choose from knowledge"),
        (",", "no benchmark is named"),
    ],
)
def test_unknown_names_are_named(asked: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        select([asked])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
