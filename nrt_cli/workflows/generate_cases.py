"""The same questions to several models, one after the other, so that one of them is in memory at a time."""

from collections.abc import Callable, Mapping, Sequence

from nrt_cli.workflows.generate import open_generator


def generate_cases(
    models: Mapping[str, str],
    questions: Sequence[str],
    max_trace_tokens: int,
    max_answer_tokens: int,
    say: Callable[[str], None],
) -> list[dict[str, str | None]]:
    """What each model thinks and answers, greedily, as it was trained to.

    Args:
        models: label -> RUN, RUN@STEP or model folder.

    Returns rows of `question`, `run`, `trace` (None where the model does not think), `answer`, and `cut`: which of the
    two ran into its cap.
    """
    rows: list[dict[str, str | None]] = []
    for label, model in models.items():
        say(f"{label}: {len(questions)} questions")
        generator = open_generator(model)
        for question in questions:
            reply = generator.reply(question, max_trace_tokens, max_answer_tokens)
            trace = reply.trace if generator.thinks("on") else None
            cut = ["trace"] * (reply.stop == "cap") + ["answer"] * reply.cut
            rows.append(
                {"question": question, "run": label, "trace": trace, "answer": reply.answer, "cut": ", ".join(cut)}
            )
    return sorted(rows, key=lambda row: questions.index(str(row["question"])))
