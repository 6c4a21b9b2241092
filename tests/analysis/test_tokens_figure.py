"""Figure 3's numbers by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from nrt_analysis import token_report as tokens
from nrt_analysis.formats import render
from nrt_analysis.token_report import bin_edges, by_entropy, token_report

from nrt_cli.errors import StoreError
from nrt_cli.store.tables import write_table
from nrt_cli.workflows.scoring import TOKEN_COLUMNS as COLUMNS

# (example, position, P_SFT, H_SFT, P)
TOKENS = [
    (0, 0, 0.5, 0.1, 0.25),
    (0, 1, 0.1, 1.2, 0.4),
    (1, 0, 0.8, 0.3, 0.8),
    (1, 1, 0.2, 1.4, 0.1),
    (1, 2, 0.01, 3.0, 0.02),
]


def tables(folder: Path, base: list[Any] = TOKENS, model: list[Any] = TOKENS) -> list[tuple[str, list[Path]]]:
    """The rows of the baseline and of a model in two parts each."""
    found = []
    for label, which, rows in (("sft", 2, base), ("am", 4, model)):
        parts = [folder / f"{label}-{part}.parquet" for part in (0, 1)]
        for part, file in enumerate(parts):
            write_table(file, COLUMNS, [token(row, row[which]) for row in rows if row[0] == part])
        found.append((label, parts))
    return found


def token(row: Any, probability: float) -> dict[str, Any]:
    where = {"example": row[0], "position": row[1], "token_id": 5, "token": "x"}
    return where | {"logprob": np.log(probability), "entropy": row[3]}


def test_ratios_by_bin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "FEWEST", 1)
    report = token_report(tables(tmp_path), width=1.0)
    found = report.frames["tokens"].set_index("h_low")
    assert found.index.tolist() == [0.0, 1.0, 3.0]  # no token between 2 and 3 nats
    assert found["h_high"].tolist() == [1.0, 2.0, np.inf]
    # P / P_SFT: 0.5 and 1; 4 and 0.5; 2.
    assert found["ratio"].tolist() == pytest.approx([0.75, 2.25, 2.0])
    assert found["typical"].tolist() == pytest.approx([np.sqrt(0.5), np.sqrt(2), 2.0])
    assert found["improved"].tolist() == [0.0, 0.5, 1.0]
    assert found["tokens"].tolist() == [2, 2, 1]
    assert found["examples"].tolist() == [2, 2, 1]
    assert found["h_mean"].tolist() == pytest.approx([0.2, 1.3, 3.0])
    assert found["p_sft"].tolist() == pytest.approx([0.65, 0.15, 0.01])
    assert found["p"].tolist() == pytest.approx([0.525, 0.25, 0.02])
    # Two examples: half of the draws have one of them only, so the interval spans both.
    assert found.loc[0.0, ["low", "high"]].tolist() == pytest.approx([0.5, 1.0])
    assert found.loc[1.0, ["typical_low", "typical_high"]].tolist() == pytest.approx([0.5, 4.0])
    assert "median H_SFT 1.200 nats" in report.notes[0]
    assert report.frames["entropy"]["tokens"].sum() == 5
    assert report.frames["ratios"]["am"].tolist()[0] == "0.750 [0.500, 1.000]"
    files = render(report, ("csv", "md"))
    assert {"tokens.png", "tokens.pdf", "tokens.csv", "tokens-entropy.csv", "tokens.md", "tokens.json"} <= files.keys()
    assert files["tokens.png"].startswith(b"\x89PNG")


def test_the_last_bins_are_joined_until_they_have_enough_tokens() -> None:
    entropies = pd.Series([0.1] * 50 + [1.1] * 40 + [2.5] * 20 + [4.2] * 10)
    assert bin_edges(entropies, 1.0).tolist() == [0.0, 1.0, 2.0, np.inf]  # 10 above 4, 30 above 2
    assert bin_edges(entropies[:50], 1.0).tolist() == [0.0, np.inf]


def test_every_token_is_in_one_bin() -> None:
    """Also one whose entropy rounding has put below 0, and those on an edge, which belong to the bin above."""
    frame = pd.DataFrame({"entropy_sft": [-1e-9, 0.0, 1.0, 2.0], "example": [0, 1, 2, 3]})
    frame = frame.assign(ratio=[1.0, 2.0, 3.0, 4.0], log_ratio=0.0, p=1.0, p_sft=1.0)
    found = by_entropy(frame, np.array([0.0, 1.0, np.inf]))
    assert found["tokens"].tolist() == [2, 2]
    assert found["ratio"].tolist() == [1.5, 3.5]


def test_other_tokens_than_the_baselines_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="am: was not scored on the baseline's tokens"):
        token_report(tables(tmp_path, model=TOKENS[:-1]))


def test_a_model_without_finite_numbers_leaves_its_cells_empty(tmp_path: Path) -> None:
    nothing = [(*row[:4], np.nan) for row in TOKENS]
    report = token_report(tables(tmp_path, model=nothing), width=1.0)
    assert render(report, ("csv", "md"))
    assert report.frames["ratios"]["am"].tolist() == ["-"]
    assert report.frames["tokens"][["ratio", "typical", "improved", "p"]].isna().all(axis=None)
    assert report.frames["summary"][["p", "ratio", "typical", "improved"]].isna().all(axis=None)


def test_a_baseline_without_finite_numbers_is_no_baseline(tmp_path: Path) -> None:
    nothing = [(*row[:2], np.nan, np.nan, row[4]) for row in TOKENS]
    with pytest.raises(StoreError, match="no finite probabilities"):
        token_report(tables(tmp_path, nothing))
