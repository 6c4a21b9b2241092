"""Tables 1, 2 and 4 to 8: what was trained, on what, how, and how it was measured."""

import math
from collections.abc import Sequence
from typing import Any

from nrt_analysis.document import Cell, Column, Row, Table, numbers
from nrt_analysis.frames import STEP, trace_steps
from nrt_analysis.intervals import difference, over_seeds, trusted
from nrt_analysis.judge_report import template_label
from nrt_analysis.report.paper import paper
from nrt_analysis.report.run_cards import RunCard
from nrt_cli.config.suite import ORDER, benchmark
from nrt_cli.measures.collapse import WINDOW
from nrt_cli.measures.statistics import Difference, Mean
from nrt_cli.methods import FORMULAS, METHODS, Formula, facts
from nrt_cli.methods.weighted_sum import WEIGHTED
from nrt_cli.store.judgements import Judgements, templates

LENGTH_ROWS = 2000
"""Stored traces whose answers are measured for Table 5."""


def _formula(formula: Formula) -> Cell:
    return Cell(formula.text, math=formula.math)


def schemes_table(cards: Sequence[RunCard]) -> Table:
    """Table 1, and a row for each scheme of a user's own among the runs."""
    plain = [scheme for name, scheme in FORMULAS.items() if scheme.weight is None]
    rows = [Row((Cell(s.name), *map(_formula, (s.aggregation, s.reward, s.signal)))) for s in (*plain, WEIGHTED)]
    for method, own in {c.method: c.manifest.get("formulas") for c in cards if c.method not in METHODS}.items():
        written = [_formula(Formula(**own[part])) for part in ("aggregation", "reward", "signal")] if own else None
        rows.append(Row((Cell(own["name"] if own else method), *(written or [Cell("its code")] * 3))))
    trained = {
        "shared": "the reference answer is trained with c_i over its mean among the traces of a question",
        "derived": "the reference answer is trained with the last column's signals",
        "fixed": "the reference answer is trained with the signal 1 for every token, whatever the scheme",
    }
    said: dict[str, list[str]] = {}  # which preset runs had, and with which signals they trained the reference answer
    for card in cards:
        if card.samples and card.settings:
            signal = trained[card.settings["objective.token_signal"]]
            if card.settings.get("objective.weights.answer") == 0:
                signal = "the reference answer itself is not trained"
            said.setdefault(f"preset {card.settings.get('preset', 'unknown')}: {signal}.", []).append(card.label)
    signals = [f"{', '.join(labels)}: {t}" if len(said) > 1 else t.capitalize() for t, labels in said.items()]
    given = "c_i is the probability of answer token i given the question, the trace and the answer before it."
    return Table(
        "table-1",
        "Table 1",
        "Reward schemes: aggregation functions f of the probabilities c of the reference answer's T tokens, and what "
        "follows from them.",
        (
            Column("Scheme"),
            Column("Aggregation f(c)", math=r"\text{Aggregation } f(\mathbf{c})"),
            Column("Trace reward R"),
            Column("Token signal (∂f/∂cᵢ) cᵢ", math=r"\text{Token signal } \frac{\partial f}{\partial c_i} c_i"),
        ),
        tuple(rows),
        (given, *signals),
    )


def weights_table(cards: Sequence[RunCard]) -> Table:
    """Table 2: the two weightings, and with which settings runs departed from them."""
    rows = [
        Row((Cell(scheme.name), *map(_formula, (scheme.weight, scheme.reward, scheme.signal))))
        for scheme in FORMULAS.values()
        if scheme.weight
    ]
    notes = ["c_base is the probability given the null trace, under the policy that sampled."]
    for card in cards:
        changed = [
            f"{key}={card.settings[f'objective.{key}']}"
            for key, usual in (("weighted_sum", "sum"), ("weight_cap", None))
            if key in facts(card.method).reads and card.settings.get(f"objective.{key}", usual) != usual
        ]
        notes += [f"{card.label}: {', '.join(changed)}"] if changed else []
    return Table(
        "table-2",
        "Table 2",
        "Weighted sums that stress difficult tokens.",
        (
            Column("Weighting"),
            Column("Weight wᵢ", math=r"\text{Weight } w_i"),
            Column("Trace reward R"),
            Column("Token signal αᵢcᵢ", math=r"\text{Token signal } \alpha_i c_i"),
        ),
        tuple(rows),
        tuple(notes),
    )


def data_table(cards: Sequence[RunCard]) -> Table:
    """Table 4: training examples by source; the paper's counts beside those of sources that it has too."""
    datasets = {card.fingerprint("train") or "unknown": card for card in cards if card.sources}
    whole = sum(paper()["composition"].values())
    rows: list[Row] = []
    for digest, card in datasets.items():
        counts = {source["name"]: source["train"] for source in card.sources}
        theirs: dict[str, int] = {}  # by our name of a source, of which the paper cuts one short
        for source, count in paper()["composition"].items():
            begins = source.removesuffix("...")
            theirs[next((own for own in counts if begins != source and own.startswith(begins)), source)] = count
        if 2 * len(theirs.keys() & counts.keys()) > len(theirs):
            counts = dict.fromkeys(theirs, 0) | counts  # the same mixture: what it lacks differs too
        total = sum(counts.values())
        section = f"training data {digest[:8]}" if len(datasets) > 1 else ""
        for source, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
            rows.append(_source_row(source, count, total, theirs.get(source), whole, section))
        rows.append(_source_row("TOTAL", total, total, whole, whole, section))
    gone = "what `nrt data prepare` wrote beside the training data is no longer there, or the data changed since"
    lost = [card.label for card in cards if not card.sources]
    used: dict[str, list[str]] = {}  # how many examples runs used, and why not all
    for card in cards:
        dropped = ", ".join(f"{count} {reason}" for reason, count in (card.pairs.get("dropped") or {}).items() if count)
        if "examples" in card.pairs:
            said = f"{card.pairs['examples']:,} examples trained on; dropped: {dropped or 'none'}"
            used.setdefault(said, []).append(card.label)
    return Table(
        "table-4",
        "Table 4",
        "Composition of the training data.",
        (
            Column("Source"),
            *numbers("Count", "Percentage", "Count in the paper", "Percentage in the paper"),
            *numbers("Difference in points [95 %]"),
        ),
        tuple(rows),
        notes=(
            *(f"{', '.join(labels)}: {text}" if len(used) > 1 else text for text, labels in used.items()),
            "The interval of a difference is that of two random draws: where it holds 0, chance explains it.",
            *([f"Not known for {', '.join(lost)}: the manifest beside the data is gone or newer."] if lost else []),
            f"The paper took a random 200K subset of tulu-3-sft-mixture, in print {whole:,} examples.",
        ),
        reason="" if rows else gone,
    )


def _source_row(source: str, count: int, total: int, theirs: int | None, whole: int, section: str) -> Row:
    def cells(count: int, total: int) -> tuple[Cell, Cell]:
        share = 100 * count / total if total else math.nan
        return Cell(f"{count:,}", count), Cell(f"{share:.2f}%", share)

    def estimate(count: int, total: int) -> Difference:
        """A share of so many rows, drawn at random."""
        share = count / total if total else math.nan
        return over_seeds([trusted(Mean(share, math.nan, total))])

    beside = [Cell(reason="not in the paper")] * 3
    if theirs is not None:
        apart = difference(estimate(count, total), estimate(theirs, whole))
        value, low, high = (100 * number for number in (apart.value, apart.low, apart.high))
        gap = Cell(f"{value:+.2f} [{low:+.2f}, {high:+.2f}]", value, low, high)
        beside = [*cells(theirs, whole), Cell(reason="100 % of either") if theirs == whole else gap]
    return Row((Cell(source), *cells(count, total), *beside), section=section)


def methods_table(cards: Sequence[RunCard]) -> Table:
    """Table 5: aggregation, normalisation as configured, and the lengths that were measured."""
    rows = []
    for card in cards:
        if not card.samples:
            continue
        aggregation = _formula(FORMULAS[card.method].aggregation) if card.method in FORMULAS else Cell("its code")
        # Eq. 9 and 10 as this run had them.
        clipped = "max(0, R - R_base)" if card.settings.get("objective.baseline") == "clip" else "R"
        normalised = {
            "std": f"{clipped}, minus its group's mean, by the population std",
            "unbiased-std": f"{clipped}, minus its group's mean, by the sample std",
            "rloo": f"{clipped}, minus the mean of the others",
            "mean": f"{clipped}, minus its group's mean",
            "raw": clipped,
            "scaled": f"{clipped}, by the population std, within -1 and 1",
        }.get(str(card.settings.get("objective.advantage")), "unknown")
        steps = trace_steps(card.run, STEP)
        stored = card.run.traces(f"{STEP}-{steps[-1]:06d}", ("answer_ids",), LENGTH_ROWS) if steps else []
        answers = [len(row["answer_ids"]) for row in stored if row["answer_ids"] is not None]
        lengths = (
            _mean_length([record.get("trace_length", math.nan) for record in card.steps[-WINDOW:]], "no step taken"),
            _mean_length(answers, "no traces are stored"),
        )
        printed = paper()["responses"].get(card.method)
        theirs = Cell(printed) if printed else Cell(reason="not in the paper")
        named = Cell(f"{card.title}, seed {card.seed}", note="" if card.finished else "unfinished")
        rows.append(Row((named, aggregation, Cell(normalised), *lengths, theirs), section=card.model))
    return Table(
        "table-5",
        "Table 5",
        "Each run's aggregation function, how its rewards were normalised, and how long its responses were.",
        (
            Column("Method"),
            Column("Aggregation f(c)", math=r"\text{Aggregation } f(\mathbf{c})"),
            Column("Reward normalisation", kind="long"),
            *numbers("Trace", "Answer y*", group="Mean tokens"),
            Column("In the paper", "Average response length"),
        ),
        tuple(rows),
        (
            f"Trace: mean of the last {WINDOW} steps, without its end token. Answer: reference answers of the last "
            f"stored step, of at most {LENGTH_ROWS:,} traces.",
            "The paper's lengths of JLB, VeriFree and RLPR are those of the works that first had these methods; its "
            "own 415.97 tokens are taken for reference answers, which by its Appendix D average over 400.",
        ),
        reason="" if rows else "no run here samples traces",
    )


def _mean_length(lengths: Sequence[float], why: str) -> Cell:
    known = [length for length in lengths if not math.isnan(length)]
    mean = sum(known) / len(known) if known else math.nan
    return Cell(f"{mean:.1f}", mean) if known else Cell(reason=why)


def settings_table(cards: Sequence[RunCard]) -> Table:
    """Table 6 from the resolved configs, beside what the paper had."""
    steps: dict[int, list[str]] = {}
    for card in cards:
        if (number := card.settings.get("train.steps")) is not None:
            steps.setdefault(number, []).append(card.label)
    rows = []
    for section, parameters in paper()["hyperparameters"].items():
        for parameter in parameters:
            values: dict[str, list[str]] = {}  # each value that runs had, with its runs
            of_rl = set()
            for card in cards if parameter["key"] else ():
                if card.settings and (card.samples or not parameter.get("thinks")):
                    value = _shown(card.settings.get(parameter["key"]))
                    values.setdefault(value, []).append(card.label)
                    of_rl |= {value} if card.samples else set()
            same = parameter.get("same", [_shown(parameter["value"])])
            note = "" if same == "any" or of_rl <= set(same) else "not the paper's"
            texts = [value if len(values) == 1 else f"{value} ({', '.join(runs)})" for value, runs in values.items()]
            ours = Cell("; ".join(texts), note=note) if texts else Cell(reason="no run here has it")
            ours = ours if parameter["key"] else Cell(parameter["ours"])
            cells = (Cell(parameter["name"]), ours, Cell(_shown(parameter["value"])), Cell(parameter["key"] or "-"))
            rows.append(Row(cells, section=section))
    return Table(
        "table-6",
        "Table 6",
        "Hyperparameters, as the runs had them and as the paper prints them.",
        (Column("Parameter"), Column("Value", kind="long"), Column("In the paper"), Column("Setting")),
        tuple(rows),
        notes=(
            "`GRPO` is objective.advantage=std on clipped rewards; Dr.GRPO is any constant objective.length_divisor.",
            "The paper's values are those of RL; for SFT it prints none.",
            # Steps stand for epochs where they were set.
            *(f"train.steps={number} in place of epochs: {', '.join(labels)}" for number, labels in steps.items()),
        ),
        reason="" if any(card.settings for card in cards) else "no run's config can be read",
    )


def _shown(value: Any) -> str:
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def benchmarks_table() -> Table:
    """Table 7 from the suite, with how the score is really made."""
    rows = []
    for spec in map(benchmark, ORDER):
        scored = f"{spec.metric}, mean of {'the subsets' if spec.aggregation == 'macro' else 'all documents'}"
        texts = (spec.title, spec.domain, spec.prompting, str(spec.shots), spec.paper_metric, scored)
        rows.append(Row((*map(Cell, texts), Cell(f"{spec.instances:,}", spec.instances))))
    titles = ("Benchmark", "Domain", "Prompting strategy", "Shot count", "Metric", "Scored as")
    return Table(
        "table-7",
        "Table 7",
        "The evaluation benchmarks.",
        (*map(Column, titles), Column("Documents", "", "number")),
        tuple(rows),
        notes=("Metric is what the paper prints, `scored as` what `nrt eval` computes.",),
    )


def judge_table(cards: Sequence[RunCard]) -> Table:
    """Table 8: what judges were asked, word for word."""
    asked: dict[str, dict[str, str]] = {}
    names: dict[str, str] = {}
    who: dict[str, set[str]] = {}
    for card in cards:
        found = templates(card.run)
        asked |= found
        for record in Judgements(card.run).records() if found else ():
            digest = str(record["template"])
            names[digest] = template_label(digest, record.get("template_name"))
            who.setdefault(digest, set()).add(f"{record['judge']}, temperature {_shown(record['temperature'])}")
    rows = []
    for digest, texts in sorted(asked.items()):
        asking = "; ".join(sorted(who.get(digest, {"nothing was judged with it"})))
        section = f"template {names.get(digest, digest)}: {asking}"
        for part, prompt in texts.items():
            # A row per paragraph: pages of print break between rows only.
            for number, paragraph in enumerate(str(prompt).strip().split("\n\n")):
                rows.append(Row((Cell("" if number else str(part)), Cell(paragraph)), section=section))
    theirs = paper()["judge"]
    return Table(
        "table-8",
        "Table 8",
        "The prompt template of the LLM judge, as used.",
        (Column("Part"), Column("Text", kind="long")),
        tuple(rows),
        notes=(
            f"The paper asked {theirs['model']} at temperature {theirs['temperature']:g} about {theirs['traces']} "
            "validation traces of each checkpoint.",
        ),
        reason="" if rows else "no trace of these runs was judged; `nrt judge RUN` does",
    )
