"""Which words traces use more, and which less, than reference answers (Fig. 4 and App. I.1 of the paper)."""

import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from itertools import pairwise

import numpy as np
import pandas as pd
import regex
from matplotlib.axes import Axes
from wordcloud import STOPWORDS, WordCloud

from nrt_analysis.document import Document, section
from nrt_analysis.figures import COLUMN, DPI, draws, font_for, name_panels, new_figure
from nrt_analysis.frames import STEP, trace_frames, trace_steps
from nrt_cli.errors import StoreError
from nrt_cli.measures.collapse import WINDOW
from nrt_cli.store import Reference, Run
from nrt_cli.text.questions import plain_text

PRIOR = 5.0
"""Each word is counted as if it had been seen this many times more, at the same rate in traces and in answers."""


def vocabulary(
    reference: Reference,
    kind: str = STEP,
    stop_words: Collection[str] = STOPWORDS,
    top: int = 12,
    first: int | None = None,
) -> Document:
    """Word frequencies of a run's stored traces against their reference answers.

    Args:
        kind: `STEP` for traces sampled in training, `HELD_OUT` for those of held-out scores. Without steps in the
            reference, the last 10 of the former or the last one of the latter.
        stop_words: left out of rankings and clouds; the table of all words marks them.
        top: words ranked in each direction.
        first: traces counted of each step; all by default.

    Raises StoreError where the run has no such traces, or they hold no words.
    """
    run = Run.open(reference.path)
    there = trace_steps(run, kind)
    steps = reference.choose(there) if reference.spans else there[-(WINDOW if kind == STEP else 1) :]
    of_traces: Counter[str] = Counter()
    of_answers: Counter[str] = Counter()
    traces = answers = 0
    for frame in trace_frames(run, kind, steps, ("example", "trace", "answer"), first=first):  # one step at a time
        asked = frame.drop_duplicates("example")["answer"]
        for counts, texts in ((of_traces, frame["trace"]), (of_answers, asked)):
            for text in texts:
                counts.update(words(text))
        traces, answers = traces + len(frame), answers + len(asked)
    if not of_traces or not of_answers:
        raise StoreError(f"{run.path}: the stored traces hold no words to count; name other steps, as in RUN@1-10.")
    table = compare(of_traces, of_answers, stop_words)
    changes = ranked(table, top)
    figure, axes = new_figure(2, 2, COLUMN, 4.2, width_ratios=(1, 1.6))
    missing = _bars(axes[0, 0], changes[changes["ratio"] > 1], "0.25")
    missing += _bars(axes[1, 0], changes[changes["ratio"] < 1], "0.65")
    content = table[~table["stop_word"] & ~table["word"].str.startswith("[")].set_index("word")
    missing += _cloud(axes[0, 1], content["in_traces"]) + _cloud(axes[1, 1], content["in_answers"])
    name_panels(axes, "more in traces", "words of traces", "less in traces", "words of answers")
    missing = list(dict.fromkeys(missing))
    span = f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
    notes = [
        f"{traces} traces ({of_traces.total()} words) and {answers} answers ({of_answers.total()} words) of {span}, "
        f"{'sampled in training' if kind == STEP else 'held out'}",
        f"prior: {PRIOR:g} more occurrences of each word, at the same rate in both",
        f"left out of ranking and clouds: {len(stop_words)} stop words",
        "numbers, code and addresses are counted as [number], [code], [url]; LaTeX commands are words; single letters "
        "are left out; scripts without spaces are counted in pairs of characters",
    ]
    if missing:
        notes.append(
            f"no font on this machine draws {len(missing)} words of the figure, such as {missing[0]}; the table has "
            "all words"
        )
    return section("vocab", {"changes": changes, "vocab": table}, {"vocab": figure}, notes)


# Scripts written without spaces. Their runs are counted as overlapping pairs of characters, as search engines index
# them: finding words would take a dictionary for each language.
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
_LETTER = rf"[[\p{{L}}]--{_UNSPACED}]"
_MORE = rf"[[\p{{L}}\p{{M}}\u200c\u200d]--{_UNSPACED}]"  # joiners are part of Persian and Indic words

_PIECE = regex.compile(
    rf"""
    (?P<code>    ```.*?(?:```|\Z) | `[^`\n]+` )             # a fence may be cut by the cap
    |(?P<url>    \bhttps?://\S+ )
    |(?P<latex>  \\[A-Za-z]{{2,}} )                         # \n and \t are escapes, not commands
    |(?P<number> \p{{Nd}}(?:[\p{{Nd}}.,]*\p{{Nd}})?(?:(?:st|nd|rd|th)(?!\p{{L}}))? )
    |(?P<run>    {_UNSPACED}(?:{_UNSPACED}|\p{{M}})* )
    |(?P<word>   {_LETTER}{_MORE}*(?:['’]{_MORE}+)* )
    """,
    regex.VERBOSE | regex.DOTALL | regex.V1,
)


def words(text: str) -> Iterator[str]:
    r"""The words of decoded text, lower-cased in Unicode's NFKC form, special tokens left out.

    English possessives lose their 's. Single letters are left out: they are variables, choices, or stop words. Scripts
    without spaces give pairs of characters.
    """
    for match in _PIECE.finditer(unicodedata.normalize("NFKC", plain_text(text))):
        kind, piece = match.lastgroup, match.group()
        if kind == "latex":
            yield piece
        elif kind == "run":
            characters = regex.findall(r"\X", piece)  # with their marks; a single one is itself
            yield from [a + b for a, b in pairwise(characters)] or characters
        elif kind == "word":
            word = piece.lower().replace("’", "'").removesuffix("'s")
            if len(word) > 1:
                yield word
        else:
            yield f"[{kind}]"


def compare(traces: Mapping[str, int], answers: Mapping[str, int], stop_words: Collection[str]) -> pd.DataFrame:
    """One row per word: counts, rates, and how much more often traces use it; the most increased first.

    With n words in all of a text and N in both, a word's count y gets a pseudo-count a = PRIOR n / N: the prior is that
    its rate is the same in both, so a word seen once says little. With A the sum of a text's pseudo-counts,

        ratio = (y_z + a_z) / (n_z + A_z)  /  (y_y + a_y) / (n_y + A_y)
        log_odds = log (y_z + a_z) / (n_z + A_z - y_z - a_z) - the same of the answers
        z = log_odds / sqrt(1 / (y_z + a_z) + 1 / (y_y + a_y))

    The last two are Eq. 15-22 of Monroe, Colaresi and Quinn, "Fightin' Words" (2008).
    """
    vocabulary = sorted(traces.keys() | answers.keys())
    counts = [np.array([text.get(word, 0) for word in vocabulary], dtype=float) for text in (traces, answers)]
    totals = [count.sum() for count in counts]
    pseudo = [PRIOR * total / sum(totals) for total in totals]
    posterior = [count + a for count, a in zip(counts, pseudo, strict=True)]
    rates = [y / y.sum() for y in posterior]
    with np.errstate(divide="ignore", invalid="ignore"):  # a vocabulary of one word has no odds: NaN
        log_odds = np.log(rates[0] / (1 - rates[0])) - np.log(rates[1] / (1 - rates[1]))
    table = pd.DataFrame(
        {
            "word": vocabulary,
            "stop_word": [word in stop_words for word in vocabulary],
            "in_traces": counts[0].astype(int),
            "in_answers": counts[1].astype(int),
            "per_1000_traces": 1000 * counts[0] / totals[0],
            "per_1000_answers": 1000 * counts[1] / totals[1],
            "ratio": rates[0] / rates[1],
            "log_odds": log_odds,
            "z": log_odds / np.sqrt(1 / posterior[0] + 1 / posterior[1]),
        }
    )
    return table.sort_values(["ratio", "word"], ascending=[False, True], ignore_index=True)


def ranked(table: pd.DataFrame, top: int) -> pd.DataFrame:
    """The words with the largest increase, then those with the largest decrease, largest first; no stop words."""
    table = table.loc[~table["stop_word"], ["word", "in_traces", "in_answers", "ratio", "log_odds", "z"]]
    more, less = table[table["ratio"] > 1], table[table["ratio"] < 1]
    less = less.sort_values(["ratio", "word"])
    return pd.concat([more.head(top), less.head(top)], ignore_index=True)


def _bars(axis: Axes, words: pd.DataFrame, color: str) -> list[str]:
    """Ratios on a logarithmic axis, from 1; returns the words that the font cannot draw."""
    places = np.arange(len(words))
    axis.barh(places, words["ratio"] - 1, left=1, color=color, height=0.7)
    font = font_for(words["word"])
    font.set_size(6.5)
    axis.set_yticks(
        places,
        ["".join(c if draws(font, c) else "\ufffd" for c in word[:16]) for word in words["word"]],
        parse_math=False,
        fontproperties=font,
    )
    axis.invert_yaxis()
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(lambda ratio, _: f"{ratio:g}" if ratio >= 1 else f"1/{1 / ratio:g}")
    axis.set_xlabel("rate in traces / in answers")
    axis.grid(axis="y", visible=False)
    axis.set_axisbelow(True)
    return [word for word in words["word"] if not draws(font, word)]


def _cloud(axis: Axes, counts: pd.Series) -> list[str]:
    """A cloud of the words that one font can draw; returns those of the rest that would have been in it."""
    axis.set_axis_off()
    counts = counts[counts > 0].sort_values(ascending=False, kind="stable").head(80)
    font = font_for(counts.index)
    able = [draws(font, word) for word in counts.index]
    if any(able):
        cloud = WordCloud(
            font_path=font.get_file(),
            width=round(1.75 * DPI),
            height=round(1.85 * DPI),
            min_font_size=round(5.5 * DPI / 72),
            max_font_size=round(20 * DPI / 72),
            background_color="white",
            color_func=lambda *_, font_size, **__: "black" if font_size > 12 * DPI / 72 else "#444444",
            prefer_horizontal=1.0,
            margin=6,
            relative_scaling=0.5,
            random_state=0,  # where words land is a search; the same every time
        ).generate_from_frequencies(counts[able].to_dict())
        axis.imshow(cloud.to_array(), interpolation="none", aspect="equal")
        axis.set_anchor("N")
    return [word for word, drawn in zip(counts.index, able, strict=True) if not drawn]
