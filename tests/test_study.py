"""A study's config: what it expands into, what may change while it goes on, and what is refused."""

from pathlib import Path

import pytest
import yaml

from nrt_cli import config as configs
from nrt_cli.config import configs_dir
from nrt_cli.config.study import (
    StudyBest,
    StudyConfig,
    absolute,
    changed_sections,
    judged_runs,
    load_study,
    planned_runs,
)
from nrt_cli.errors import ConfigError
from nrt_cli.methods import METHODS
from nrt_cli.store import Run
from nrt_cli.store.study import Outcome, Study
from nrt_cli.workflows.study import with_best

SHIPPED = sorted(path.stem for path in (configs_dir() / "study").glob("*.yaml"))
SMALL = {
    "title": "small",
    "model": {"name": "m", "source": "models/m"},
    "data": {"sources": ["qa.jsonl"]},
    "methods": ["sft", "am"],
}

SCHEMES = ("logp", "p", "am", "gm", "ws-inv-p", "ws-neg-log-p")
"""The paper's."""


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_studies_compare_sft_with_all_schemes(name):
    study = load_study(name)
    methods = (*study.methods, *study.later)
    assert {"sft", *(() if study.best or study.data.spans else SCHEMES)} <= set(methods)
    runs = list(planned_runs(study, Path("s")))
    assert len(runs) == len(methods) * len(study.seeds)
    assert len({run.name for run in runs}) == len(runs)
    model = f"s/models/{study.model.name}"
    assert {(run.config.model.path, run.config.data.train) for run in runs} == {(model, "s/data/train.parquet")}


def test_the_laptop_study_is_two_seeds_and_a_control():
    study = load_study("laptop")
    runs = {run.name: run.config for run in planned_runs(study, Path("s"))}
    assert len(study.seeds) >= 2
    assert runs["control-s1"].objective.weights.trace == 0
    assert runs["control-s1"].seed == 1
    others = [config for name, config in runs.items() if not name.startswith(("sft", "control"))]
    # The schemes differ in method and seed alone.
    assert len({config.model_copy(update={"method": "am", "seed": 0}).model_dump_json() for config in others}) == 1


def test_an_arena_has_every_method_that_learns_from_answers_and_each_once():
    """By their facts: a new one joins by itself."""
    for name in ("arena", "arena-real"):
        study = load_study(name)
        methods = (*study.methods, *study.later)
        assert set(methods) == {name for name, method in METHODS.items() if not method.text}
        assert len(set(methods)) == len(methods)
        # Alike but for the method, the rows that SFT reads, and what a method brings along as published.
        runs = {run.method: run.config for run in planned_runs(study, Path("s")) if run.seed == 0}
        assert len({(config.data, config.optimiser.lr, config.rollout) for config in runs.values()}) == 1
        steps = {config.train.steps for name, config in runs.items() if name != "sft"}
        assert len(steps) == 1
    assert load_study("arena", ["methods=[sft, all]"]).methods[0] == "sft"


def test_the_best_methods_of_another_study(tmp_path):
    """By accuracy on the way, mean over seeds and scored steps; not the control, and none that lacks a seed."""
    arena = load_study("arena", ["methods=[sft, control, logp, p, gm, am]", "seeds=[0, 1]"])
    long, folder = load_study("arena-long", ["methods=[sft, am]", "best.count=2"]), tmp_path / "arena-long"
    with pytest.raises(ConfigError, match=r"has not run: `nrt reproduce arena --out .*/arena`"):
        with_best(folder, long)
    (tmp_path / "arena").mkdir()
    (tmp_path / "arena" / "study.yaml").write_text(configs.to_yaml(arena))
    # At the end all are right; gm was there first, p last with one seed.
    on_the_way = {"logp": (0.5, 0.5), "p": (0.6, 0.1), "gm": (0.9, 0.8), "am": (0.4, 0.4)}
    store, runs = Study(tmp_path / "arena"), list(planned_runs(arena, tmp_path / "arena"))
    with store.writing():
        for run in runs:
            there = Run.create(tmp_path / "arena" / "runs" / run.name, "{}", {"method": run.method})
            middle = on_the_way.get(run.method, (1.0, 1.0))[run.seed]
            for step, accuracy in ((0, 1.0), (10, middle), (20, 1.0)):
                there.append_metrics({"kind": "held_out", "step": step, "accuracy_thinking": accuracy})
            if run is runs[-1]:
                with pytest.raises(ConfigError, match=f"{run.name} has not run, so nobody knows"):
                    with_best(folder, long)
            store.record(run.name, Outcome("finished", "", ""))
    assert with_best(folder, long).methods == ("sft", "am", "gm", "logp")
    with store.writing():
        store.record("logp-s1", Outcome("failed", "it fell", ""))
    assert with_best(folder, long).methods == ("sft", "am", "gm")  # and am, which is there already
    with pytest.raises(ConfigError, match=r"3 methods have scores of every seed, and best.count=4"):
        with_best(folder, long.model_copy(update={"best": StudyBest(of="arena", count=4)}))
    # What a study has begun with it goes on with, whatever the other one comes to.
    folder.mkdir()
    (folder / "study.yaml").write_text(
        configs.to_yaml(long.model_copy(update={"methods": ("sft", "am", "gm", "logp")}))
    )
    assert with_best(folder, long).methods == ("sft", "am", "gm", "logp")
    (tmp_path / "arena" / "study.yaml").write_text(configs.to_yaml(arena.model_copy(update={"seeds": (0,)})))
    with pytest.raises(ConfigError, match="one seed, which ranks nothing"):
        with_best(tmp_path / "other", long)


def test_later_layers_win(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    small = "train: {steps: 5, batch_size: 8, minibatch_size: 8}"
    recipe.write_text(f"optimiser: {{lr: 1.0e-3}}\nrollout: {{group_size: 3}}\n{small}")
    values = SMALL | {
        "recipe": str(recipe),
        "run": {"rollout": {"group_size": 4}, "train": {"steps": 6}},
        "methods": ["am", "long"],
        "variants": {"long": {"method": "gm", "train": {"steps": 7}}},
        "seeds": [3],
    }
    short, long = planned_runs(StudyConfig.model_validate(values), Path("s"))
    assert [short.name, long.name] == ["am-s3", "long-s3"]
    assert [short.config.method, long.config.method] == ["am", "gm"]
    assert [run.config.rollout.group_size for run in (short, long)] == [4, 4]
    assert [run.config.train.steps for run in (short, long)] == [6, 7]
    assert {run.config.optimiser.lr for run in (short, long)} == {1e-3}
    assert {run.config.seed for run in (short, long)} == {3}


def test_what_comes_later_waits_for_all_seeds_of_the_others():
    study = StudyConfig.model_validate(SMALL | {"later": ["gm", "p"], "seeds": [0, 3]})
    names = [run.name for run in planned_runs(study, Path("s"))]
    assert names == ["sft-s0", "am-s0", "sft-s3", "am-s3", "gm-s0", "p-s0", "gm-s3", "p-s3"]
    assert changed_sections(StudyConfig.model_validate(SMALL), study) == []


def test_the_real_study_is_of_the_pairs_of_its_recipe():
    study, recipe = load_study("real"), configs.load("real")
    runs = {run.name: run.config for run in planned_runs(study, Path("s"))}
    (train,), (held_out,) = study.data.sources, study.data.held_out
    assert recipe.data.train == f"{train}&suffix={study.data.suffix}"
    assert recipe.data.validation == f"{held_out}&suffix={study.data.suffix}"
    assert list(runs)[:4] == ["sft-s0", "control-s0", "am-s0", "ws-neg-log-p-s0"]
    assert {name.rsplit("-", 1)[0] for name in list(runs)[:12]} == {"sft", "control", "am", "ws-neg-log-p"}
    assert {config.train.steps for name, config in runs.items() if not name.startswith("sft")} == {20}


def test_a_variant_has_a_title_beside_its_settings():
    values = SMALL | {"methods": ["am", "x"], "variants": {"x": {"title": "Mine", "method": "gm", "seed": 4}}}
    study = StudyConfig.model_validate(values)
    assert [run.config.method for run in planned_runs(study, Path("s"))] == ["am", "gm"] * 2
    assert study.variants["x"].title == "Mine"
    # It survives its YAML.
    assert StudyConfig.model_validate(yaml.safe_load(configs.to_yaml(study))) == study
    study = load_study("laptop", ["title=naïve – “study”", "seeds=[4, 5]"], jobs=3)
    assert (study.title, study.seeds, study.jobs) == ("naïve – “study”", (4, 5), 3)
    assert StudyConfig.model_validate(yaml.safe_load(configs.to_yaml(study))) == study


def test_what_only_adds_runs_may_change():
    before = load_study("laptop")
    assert changed_sections(before, load_study("laptop", ["methods=[sft]", "seeds=[7]", "eval.limit=3"], 1)) == []
    assert changed_sections(before, load_study("laptop", ["run.train.steps=3", "data.validation=8"])) == ["data", "run"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"methods": ["rlxr"]}, "run rlxr-s0: method 'rlxr' is unknown"),
        ({"methods": []}, "methods=[]: "),
        ({"stpes": 3}, "unknown key 'stpes'"),
        ({"seeds": [0, True]}, "study.yaml: seeds=true: a whole number is needed"),
        ({"seeds": ["010"]}, "seeds='010': a whole number is needed, so write 10"),
        ({"jobs": 2.0}, "jobs=2.0: a whole number is needed, so write 2"),
        ({"methods": "sft"}, "methods='sft': a list is needed, so write [sft]"),
        ({"data": {"sources": ["x"], "stratify": "yes"}}, "data.stratify='yes': true or false is needed, so write tr"),
        ({"run": {"train": {"steps": True}}}, "run sft-s0: train.steps=true: a whole number is needed"),
        ({"model": {"name": "m", "pretrain": {"steps": "1_000"}}}, "model.pretrain.steps='1_000': a whole number is"),
        ({"run": {"train": {"stepps": 3}}}, "unknown key 'train.stepps'"),
        ({"model": {"name": "m"}}, "name either model.source or model.pretrain"),
        ({"model": {"name": "../m", "source": "x"}}, "model.name='../m': "),
        ({"recipe": "nowhere"}, "nowhere: no such config file"),
        ({"analysis": {"ask": [{"question": " "}]}}, "analysis.ask=' ': a question or answer is blank"),
        ({"analysis": {"ask": [{"question": "Q", "answer": 1852}]}}, "ask=1852: a text is needed, so write "),
        ({"analysis": {"judge_max_cost": 1, "judge": {"models": ["mine"]}}}, "'analysis.judge.prices={mine: [0.2, 0"),
        ({"eval": {"benchmarks": ["gsm9k"]}}, "did you mean 'gsm8k'?"),
        ({"eval": {"benchmarks": ["digits"], "backend": "olmes"}}, "digits is not in OLMES"),
    ],
)
def test_what_cannot_be_meant_is_said_before_anything_is_made(change, said, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(SMALL | change))
    with pytest.raises(ConfigError) as caught:
        load_study(str(path))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="arena, arena-long, arena-lot, arena-real, arena-text, laptop, paper-3b"):
        load_study("labtop")


def test_held_out_pairs_may_have_sources_of_their_own(tmp_path, monkeypatch):
    (run,) = planned_runs(load_study("laptop", ["methods=[am]", "seeds=[0]"]), tmp_path)
    assert run.config.data.validation == str(tmp_path / "held-out" / "train.parquet")
    (run,) = planned_runs(load_study("laptop", ["methods=[am]", "seeds=[0]", "data.held_out=[]"]), tmp_path)
    assert run.config.data.validation == str(tmp_path / "data" / "validation.parquet")
    with pytest.raises(ConfigError, match="how many of its pairs are held out: a number"):
        load_study("laptop", ["data.validation=0.1"])
    (tmp_path / "qa.jsonl").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert absolute(load_study("laptop", ["data.held_out=[qa.jsonl]"])).data.held_out == (str(tmp_path / "qa.jsonl"),)


def test_a_study_keeps_paths_that_mean_the_same_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "qa.jsonl").write_text("{}")
    (tmp_path / "recipe.yaml").write_text("method: am")
    monkeypatch.chdir(tmp_path)
    study = load_study("laptop", ["model.pretrain=null", "model.source=builtin:tiny", "recipe=recipe.yaml"])
    study = study.model_copy(update={"data": study.data.model_copy(update={"sources": ("qa.jsonl", "org/set")})})
    kept = absolute(study)
    assert kept.data.sources == (str(tmp_path / "qa.jsonl"), "org/set")
    assert (kept.recipe, kept.model.source) == (str(tmp_path / "recipe.yaml"), "builtin:tiny")
    monkeypatch.chdir("/")
    assert absolute(kept) == kept


def test_the_papers_studies_ask_its_two_questions_and_a_judge():
    """Tables 9 and 10 and Appendix H."""
    for name in ("paper-3b", "paper-mistral-7b", "paper-8b"):
        study = load_study(name)
        asked = [(each.question, each.answer) for each in study.analysis.ask]
        assert asked == [
            ("Questions: ['when did luois braille die?'] Solution:", "1852"),
            ("What is a good 7 module coaching course?", None),
        ]
        runs = judged_runs(study, Path("s"))
        assert {run.config.method for run in runs} == set(SCHEMES)
        assert study.analysis.judge.n == 100
        assert {run.config.train.validation_size for run in runs} == {100}
    assert not load_study("laptop").analysis.judge_max_cost
    assert not judged_runs(load_study("laptop"), Path("s"))
