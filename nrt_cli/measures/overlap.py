"""What is said of questions that are trained on and asked later: figures on them show memory, not learning."""

from collections.abc import Iterator

from nrt_cli.records import Overlap


def warnings(overlap: Overlap) -> Iterator[str]:
    """What a person should know before they believe a held-out figure."""
    if overlap.shared_with_validation:
        yield (
            f"{_of_held_out(overlap)} are in the training data, so held-out figures flatter; split them with "
            "`nrt data prepare ... --validation N`, which holds out questions with all their answers."
        )
    for name, found in overlap.shared_with_benchmarks.items():
        if found:
            yield (
                f"{found:,} of {overlap.benchmark_documents[name]:,} documents of {name} are in the training data, so "
                f"scores on {name} will flatter; leave them out of one of the two."
            )


def described(overlap: Overlap) -> str:
    """Both numbers in a sentence, to stand beside held-out figures."""
    compared = [
        f"{name} {found:,} of {overlap.benchmark_documents[name]:,}"
        for name, found in overlap.shared_with_benchmarks.items()
    ]
    benchmarks = ", ".join(compared) or "none were on the machine to compare with"
    held_out = "nothing is held out" if overlap.shared_with_validation is None else f"{_of_held_out(overlap)}"
    return f"In the training data too: {held_out}; documents of benchmarks: {benchmarks}."


def _of_held_out(overlap: Overlap) -> str:
    return f"{overlap.shared_with_validation:,} of {overlap.validation_questions:,} held-out questions"
