"""What a study looks into with its models, besides scores: the first seed's runs on held-out pairs."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from nrt_cli.config.study import Planned, StudyConfig, StudyQuestion, held_out_file, judged_runs, planned_runs
from nrt_cli.judging.plan import Plan, make_plan
from nrt_cli.records import json_line
from nrt_cli.store.files import write_report
from nrt_cli.store.study import Study
from nrt_cli.workflows.cases import generate_cases
from nrt_cli.workflows.score import Question, score_answer
from nrt_cli.workflows.scoring import Report
from nrt_cli.workflows.tokens import ScoredModel, score_tokens


def first_runs(folder: Path, study: StudyConfig) -> list[Planned]:
    """The finished runs of the first seed, as the study orders them."""
    outcomes = Study(folder).outcomes()
    runs = [run for run in planned_runs(study, folder) if run.seed == study.seeds[0]]
    return [run for run in runs if run.name in outcomes and outcomes[run.name].status == "finished"]


def score_pairs(folder: Path, study: StudyConfig, report: Report) -> list[ScoredModel] | None:
    """Held-out pairs token by token, the SFT run's first; None where that, or another to compare, is missing."""
    runs = first_runs(folder, study)
    places = {run.name: str(folder / "runs" / run.name) for run in runs}
    direct = [run for run in runs if not run.config.thinks]
    thinking = [places[run.name] for run in runs if run.config.thinks]
    if not (study.analysis.tokens and direct and thinking):
        return None
    where = folder / "analysis" / "tokens"
    return score_tokens(places[direct[0].name], thinking, where, report, count=study.analysis.tokens)


def judge_plan(folder: Path, study: StudyConfig) -> Plan | None:
    """What a judge is to be asked about the finished runs; None where none is asked, or none has finished."""
    finished = {run.name for run in first_runs(folder, study)}
    runs = [str(folder / "runs" / run.name) for run in judged_runs(study, folder) if run.name in finished]
    return make_plan(runs, [{"judge": study.analysis.judge.model_dump()}]) if runs else None


def score_questions(folder: Path, study: StudyConfig, report: Report) -> list[Path]:
    """Questions with a reference answer under every method, each as the JSON that `nrt score ... --json` prints."""
    runs, written = first_runs(folder, study), []
    scored = [(asked.question, asked.answer) for asked in questions(folder, study) if asked.answer is not None]
    for number, pair in enumerate(scored, 1):
        records: list[dict[str, Any]] = []
        for done, run in enumerate(runs, 1):
            record = score_answer(str(folder / "runs" / run.name), Question(*pair))
            records.append(json.loads(json_line(record)))  # in which what is not finite is null
            report(f"question {number}", done, len(runs))
        text = json.dumps(records, indent=2, ensure_ascii=False) + "\n"
        written += write_report(folder / "analysis" / "score", {f"question-{number}.json": text.encode()})
    return written


def answer_questions(folder: Path, study: StudyConfig, report: Report) -> list[dict[str, str | None]]:
    """What every method thinks and answers to the questions, as `generate_cases` has it; up to the caps of training."""
    asked, runs = [each.question for each in questions(folder, study)], first_runs(folder, study)
    rows: list[dict[str, str | None]] = []
    for done, run in enumerate(runs if asked else (), 1):
        caps = (run.config.rollout.max_trace_tokens, run.config.data.max_answer_tokens)
        rows += generate_cases({run.name: str(folder / "runs" / run.name)}, asked, *caps, lambda _: None)
        report("answers", done, len(runs))
    return sorted(rows, key=lambda row: asked.index(str(row["question"])))


def questions(folder: Path, study: StudyConfig) -> list[StudyQuestion]:
    """Those that the study names, then the first held-out ones, which are ordered at random."""
    found, path = list(study.analysis.ask), folder / held_out_file(study.data)
    if study.analysis.questions and path.is_file():
        rows = pq.read_table(path, columns=["prompt", "reward_model"]).slice(0, study.analysis.questions)
        pairs = [(row["prompt"][-1]["content"], row["reward_model"]["ground_truth"]) for row in rows.to_pylist()]
        found += [StudyQuestion(question=question, answer=answer) for question, answer in pairs]
    return found
