"""What a study looks into with its models, besides scores: the first seed's runs on held-out pairs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from nrt_cli.config.study import Planned, StudyConfig, planned_runs
from nrt_cli.records import json_line
from nrt_cli.store.reports import write_report
from nrt_cli.store.study import Study
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
    direct = [run for run in runs if run.config.method == "sft"]
    thinking = [places[run.name] for run in runs if run.config.method != "sft"]
    if not (study.analysis.tokens and direct and thinking):
        return None
    where = folder / "analysis" / "tokens"
    return score_tokens(places[direct[0].name], thinking, where, report, count=study.analysis.tokens)


def score_questions(folder: Path, study: StudyConfig, report: Report) -> list[Path]:
    """Held-out questions under every method, each as the JSON list that `nrt score ... --json` prints."""
    runs, written = first_runs(folder, study), []
    for number, pair in enumerate(_held_out(folder, study)):
        records: list[dict[str, Any]] = []
        for done, run in enumerate(runs, 1):
            record = score_answer(str(folder / "runs" / run.name), Question(*pair))
            records.append(json.loads(json_line(record)))  # in which what is not finite is null
            report(f"question {number + 1}", done, len(runs))
        text = json.dumps(records, indent=2, ensure_ascii=False) + "\n"
        written += write_report(folder / "analysis" / "score", {f"question-{number + 1}.json": text.encode()})
    return written


def _held_out(folder: Path, study: StudyConfig) -> Iterator[tuple[str, str]]:
    """The first held-out questions, which are ordered at random, and their answers."""
    path = folder / "data" / "validation.parquet"
    if not (study.analysis.questions and path.is_file()):
        return
    rows = pq.read_table(path, columns=["prompt", "reward_model"]).slice(0, study.analysis.questions)
    for row in rows.to_pylist():
        yield row["prompt"][-1]["content"], row["reward_model"]["ground_truth"]
