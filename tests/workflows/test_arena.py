"""A short arena with the real command: three methods, two seeds, and the study that goes on with the best of them."""

import re

import pytest

from nrt_cli.store.study import Study

pytestmark = [pytest.mark.slow, pytest.mark.full]

SMALL = (
    "run.rollout={max_trace_tokens: 12, group_size: 4}",
    "run.train={steps: 4, batch_size: 4, validate_every: 2, validation_size: 24}",
    "seeds=[0, 1]",
    "variants={sft: {train: {batch_size: 16}}}",
    "data.validation=24",
)


def command(study, *more):
    settings = (part for text in (*SMALL, *more) for part in ("--set", text))
    return ("reproduce", study, "--out", f"studies/{study}", "--jobs", "1", *settings)


@pytest.fixture(scope="module")
def folder(nrt_in, tmp_path_factory):
    where = tmp_path_factory.mktemp("arena")
    done = nrt_in(where)(*command("arena", "methods=[sft, logp, gm]", "data.sources=['generated:digits?size=200']"))
    assert done.code == 0, done.err
    assert "Method against method" in done.out
    return where / "studies"


def test_every_method_stands_beside_the_best_with_what_its_seeds_would_have_shown(folder):
    report = (folder / "arena" / "report" / "report.md").read_text()
    table = report.split("## Method against method\n")[1].split("\n## ")[0]
    rows = {row.split(" (2 seeds)")[0].strip("| "): row for row in table.splitlines() if "(2 seeds)" in row}
    assert set(rows) == {"SFT", "JLB", "NRT-GM"}
    assert sum(bool(re.search(r"not told apart|worse|alike", row)) for row in rows.values()) == 2
    assert "5.65 for three seeds" in table
    pairs = report.split("## Method against method, pair by pair")[1].split("\n## ")[0]
    assert pairs.count("2, 24") == 3  # seeds and questions of every pair
    assert "Method against method" in (folder / "arena" / "report" / "index.html").read_text()


def test_the_long_world_goes_on_with_the_best_and_shows_what_length_does(folder, nrt_in):
    more = ("methods=[sft, p]", "best.count=1", "model.pretrain.steps=4", "data.sources=['generated:reports?size=200']")
    done = nrt_in(folder.parent)(*command("arena-long", *more))
    assert done.code == 0, done.err
    ran = {name for name in Study(folder / "arena-long").outcomes() if name != "inputs"}
    (best,) = {name[:-3] for name in ran} - {"sft", "p"}
    assert best in ("logp", "gm")
    assert len(ran) == 6
    report = (folder / "arena-long" / "report" / "report.md").read_text()
    assert "## Signal by answer length" in report
    assert (folder / "arena-long" / "report" / "figures" / "figure-length.png").is_file()
    # Again nothing is to do, and the best are those that it began with.
    again = nrt_in(folder.parent)(*command("arena-long", *more))
    assert "6 runs, 0 to do" in " ".join(again.err.split())
    # One report over both: a section for each world.
    both = nrt_in(folder.parent)("report", "studies/arena", "studies/arena-long", "--out", "both", "--format", "md")
    assert both.code == 0, both.err
    table = (folder.parent / "both" / "report.md").read_text().split("## Method against method\n")[1]
    assert table.index("Arena, sums of digits") < table.index("Arena, long answers")
