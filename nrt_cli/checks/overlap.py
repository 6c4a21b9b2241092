"""Which questions of the training data are asked again: held out, or by a benchmark whose documents are here."""

from pathlib import Path

from nrt_cli.config import RunConfig
from nrt_cli.config.suite import NAMES, benchmark
from nrt_cli.data.examples import documents_in
from nrt_cli.evaluation.rows import questions_here
from nrt_cli.records import Overlap
from nrt_cli.text.questions import KnownDocuments
from nrt_cli.training.start import Inputs


def overlap(config: RunConfig, inputs: Inputs) -> Overlap:
    """Compares the data of a run. Uses no network: a benchmark is compared with where its documents are here."""
    folder = Path(config.eval.data_dir).expanduser() if config.eval.data_dir else None
    documents, owners = [], []
    for name in NAMES:
        here = questions_here(benchmark(name), folder)
        documents += here
        owners += [name] * len(here)
    found = documents_in(Path(config.data.train), KnownDocuments(documents)) if documents else set()
    names, held_out = dict.fromkeys(owners), inputs.validation
    return Overlap(
        shared_with_validation=held_out.shared_questions(inputs.train) if held_out else None,
        validation_questions=held_out.questions() if held_out else 0,
        shared_with_benchmarks={name: sum(owners[number] == name for number in found) for name in names},
        benchmark_documents={name: owners.count(name) for name in names},
    )
